//! What apiservers show of where objects rest, where etcd is not read.
//!
//! An apiserver that is given an object back as it is, and would not store it otherwise, reads it from
//! etcd once more to be sure, and writes nothing. It counts that by the provider that the object was
//! read under (`apiserver_storage_transformation_operations_total`). So an answer with the same
//! resource version, while that count has grown for the target and for nothing else, says two things:
//! the object rests under the target, and this apiserver writes by it, or it would have written the
//! object anew. Neither the time of a file nor that of a start has a part in it.
//!
//! Up to 1.31 these counts are of all resources together: what others read meanwhile blurs them, and
//! it is tried again.

use std::{collections::BTreeMap, time::Duration};

use lastkey_client::native::RotationPhase;

use super::{
    Claim, RotateError, Stop, Worker,
    pass::{FIRST_PAUSE, MAX_TRIES},
};
use crate::{
    cluster::{ApiError, ListQuery, Resource, Shape},
    coverage::samples,
    encryption_config::{EncryptionConfiguration, ProviderKind},
    transition::Target,
};

const TRANSFORMED: &str = "apiserver_storage_transformation_operations_total";
const STARTED: &str = "process_start_time_seconds";
/// So often an unclear answer is tried again, each time after a pause.
const TRIES: usize = 6;
const PAUSE: Duration = Duration::from_millis(400);
/// So many objects are at hand to try with: somebody may just be writing one of them.
const AT_HAND: u32 = 5;

/// What one apiserver shows of one resource.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// It is under the target, and written by it.
    Target,
    /// There is no object of it.
    NoObject,
    /// It is under something else, and is left there; in a sentence.
    Other(String),
    /// That cannot be seen; in a sentence.
    Unclear(String),
}

/// What an apiserver has read since it was started, by provider.
#[derive(Debug, Default, PartialEq)]
struct Reads {
    started: f64,
    target: f64,
    others: BTreeMap<String, f64>,
}

impl Reads {
    /// Of the resource of that name, where it is counted by resource.
    fn of(metrics: &str, (resource, target): (&str, &[String])) -> Self {
        let started = samples(metrics, &[STARTED]).map(|one| one.value).fold(0.0, f64::max);
        let mut reads = Self { started, ..Self::default() };
        for sample in samples(metrics, &[TRANSFORMED]) {
            let own = sample.label("resource").is_none_or(|named| named == resource);
            let prefix = sample.label("transformer_prefix").unwrap_or_default();
            // Each key in the file counts once more, by its own name.
            let is_provider =
                prefix == "identity" || prefix == "unknown" || prefix.starts_with("k8s:enc:");
            if !own || !is_provider || sample.label("transformation_type") != Some("from_storage") {
                continue;
            }
            if !target.iter().any(|own| own == prefix) {
                *reads.others.entry(prefix.to_owned()).or_default() += sample.value;
            } else if sample.label("status").is_none_or(|status| status == "OK") {
                reads.target += sample.value;
            }
        }
        reads
    }

    /// What was read since: whether anything under the target, and what else.
    fn since<'a>(&'a self, before: &Self) -> Option<(bool, Vec<&'a str>)> {
        // Counts begin anew with a process.
        if self.started != before.started || self.target < before.target {
            return None;
        }
        let grown = |(prefix, count): &(&String, &f64)| {
            before.others.get(*prefix).copied().unwrap_or_default() != **count
        };
        let others = self.others.iter().filter(grown).map(|(prefix, _)| prefix.as_str());
        Some((self.target > before.target, others.collect()))
    }
}

/// What one try has shown.
enum Try {
    Clear(Shown),
    /// And why not.
    Again(String),
}

/// What apiservers count reads under a target by; `config` says what it is called there.
pub(super) fn prefixes(config: &EncryptionConfiguration, target: &Target) -> Vec<String> {
    match target {
        Target::Identity => vec!["identity".to_owned()],
        Target::Local { kind } => vec![format!("k8s:enc:{kind}:v1:")],
        Target::Kms { .. } => {
            let providers = config.rules.iter().flat_map(|rule| &rule.providers);
            let own = providers.filter(|provider| target.is(provider));
            let names = own.filter_map(|provider| match provider.kind() {
                Some(ProviderKind::Kms(kms)) => Some(format!("k8s:enc:kms:v2:{}:", kms.name)),
                _ => None,
            });
            names.collect()
        }
    }
}

/// As it is called elsewhere.
fn provider(prefix: &str) -> String {
    match prefix.strip_prefix("k8s:enc:") {
        Some(rest) => rest.trim_end_matches(':').replace(':', " "),
        None if prefix == "identity" => "clear".to_owned(),
        None => "nothing that it knows".to_owned(),
    }
}

/// Those whose rule has the target.
pub(super) fn concerned(
    config: &EncryptionConfiguration,
    target: &Target,
    resources: &[Resource],
) -> Vec<Resource> {
    let has_target = |of: &&Resource| {
        let mut rules = config.rules.iter();
        let own = rules.find(|rule| rule.resources.iter().any(|n| n.covers(&of.name, &of.group)));
        own.is_some_and(|rule| rule.providers.iter().any(|provider| target.is(provider)))
    };
    resources.iter().filter(has_target).cloned().collect()
}

impl Worker {
    /// What the apiserver of that number shows of a resource.
    pub(super) async fn shown_by(&self, server: usize, of: &Resource, target: &[String]) -> Shown {
        let name = of.full_name();
        let url = self.api.urls().nth(server).map(ToString::to_string).unwrap_or_default();
        let unclear = |why: String| {
            Shown::Unclear(format!("{url} does not show what {name} is under ({why})"))
        };
        let (mut turn, mut failed) = (0, 0);
        loop {
            let why = match self.try_with((server, of), turn, target).await {
                Ok(Try::Clear(Shown::Other(under))) => {
                    return Shown::Other(format!(
                        "{url} reads {name} under {under} and leaves it there: it works by another \
                         file"
                    ));
                }
                Ok(Try::Clear(shown)) => return shown,
                Ok(Try::Again(why)) => why,
                Err(ApiError::Conflict) => "somebody else has written it just now".to_owned(),
                Err(error) => {
                    let pause = FIRST_PAUSE * 2_u32.pow(failed);
                    let pause = match &error {
                        ApiError::TooMany { retry_after } if failed < MAX_TRIES => {
                            retry_after.unwrap_or(pause)
                        }
                        error if self.may_change(error, failed).await => pause,
                        error => return unclear(error.to_string()),
                    };
                    failed += 1;
                    tokio::time::sleep(pause).await;
                    continue;
                }
            };
            turn += 1;
            if turn >= TRIES {
                return unclear(why);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_with(
        &self,
        (server, of): (usize, &Resource),
        turn: usize,
        target: &[String],
    ) -> Result<Try, ApiError> {
        let query = ListQuery { limit: AT_HAND, shape: Shape::Packed, ..ListQuery::default() };
        let mut page = self.api.list(of, &query).await?;
        let count = page.objects.len();
        page.objects.rotate_left(turn % count.max(1));
        let name = of.full_name();
        let before = Reads::of(&self.api.metrics(server).await?, (&name, target));
        let mut answered = None;
        for object in page.objects {
            answered = match self.api.put_back_at(server, of, &object).await {
                // It was deleted since.
                Err(ApiError::NotFound) if self.api.get_again(of, &object).await?.is_none() => {
                    continue;
                }
                answer => Some((answer?, object)),
            };
            break;
        }
        let Some((answer, object)) = answered else {
            return Ok(match page.next {
                None => Try::Clear(Shown::NoObject),
                Some(_) => Try::Again("what was tried is deleted".to_owned()),
            });
        };
        let after = Reads::of(&self.api.metrics(server).await?, (&name, target));
        if answer.meta().resource_version != object.meta().resource_version {
            return Ok(Try::Again("it was written anew just now".to_owned()));
        }
        let Some((under_target, others)) = after.since(&before) else {
            return Ok(Try::Again("it was restarted just now".to_owned()));
        };
        let others = others.into_iter().map(provider).collect::<Vec<_>>().join(", ");
        Ok(match (under_target, others.is_empty()) {
            (true, true) => Try::Clear(Shown::Target),
            (false, false) => Try::Clear(Shown::Other(others)),
            (true, false) => Try::Again(format!("it reads others under {others} all the time")),
            (false, true) => Try::Again("it does not count what it reads of it".to_owned()),
        })
    }

    /// Why it is not shown that everything rests under the target and every apiserver writes by it;
    /// `None` if it is. There are no objects but those of the last pass.
    ///
    /// # Errors
    /// [`RotateError::OtherFile`] where one is seen to work by another file; then everything is gone
    /// through anew by whoever goes on.
    pub(super) async fn not_shown(
        &self,
        claim: &mut Claim,
        config: &EncryptionConfiguration,
    ) -> Result<Option<String>, Stop> {
        let (goal, _, hands) = self.goal(claim)?;
        let path = hands.place.path.clone();
        let target = prefixes(config, &goal.target);
        let resources = concerned(config, &goal.target, &claim.state.resources);
        for server in 0..self.api.urls().len() {
            for of in &resources {
                match self.meanwhile(claim, self.shown_by(server, of, &target)).await? {
                    Shown::Target | Shown::NoObject => {}
                    Shown::Unclear(why) => return Ok(Some(why)),
                    Shown::Other(why) => {
                        claim.state.begin_pass();
                        self.save(claim, Some(RotationPhase::Rewriting), false).await?;
                        return Err(RotateError::OtherFile { why, path }.into());
                    }
                }
                self.go_on()?;
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(labels: &str, prefix: &str, count: u32) -> String {
        format!(
            "{TRANSFORMED}{{{labels}status=\"OK\",transformation_type=\"from_storage\",\
             transformer_prefix=\"{prefix}\"}} {count}\n"
        )
    }

    /// Whether anything was read under the target in between, and what else.
    fn between(before: &str, after: &str) -> Option<(bool, Vec<String>)> {
        let target = ["k8s:enc:kms:v2:new:".to_owned()];
        let [before, after] = [before, after].map(|text| Reads::of(text, ("secrets", &target)));
        let (ours, others) = after.since(&before)?;
        Some((ours, others.into_iter().map(provider).collect()))
    }

    #[test]
    fn what_was_read_in_between() {
        let (new, old) = ("k8s:enc:kms:v2:new:", "k8s:enc:kms:v2:old:");
        // Up to 1.31 without the resource.
        for labels in ["", "resource=\"secrets\","] {
            let lines =
                |ours: u32, theirs: u32| line(labels, new, ours) + &line(labels, old, theirs);
            assert_eq!(between(&lines(1, 1), &lines(2, 1)), Some((true, vec![])));
            assert_eq!(between("", &lines(0, 1)), Some((false, vec!["kms v2 old".to_owned()])));
            assert_eq!(between(&lines(1, 1), &lines(1, 1)), Some((false, vec![])));
            let both = between(&lines(1, 1), &lines(2, 2));
            assert_eq!(both, Some((true, vec!["kms v2 old".to_owned()])));
            let restarted = lines(9, 9) + STARTED + " 7\n";
            assert_eq!(between(&lines(1, 1), &restarted), None);
            assert_eq!(between(&lines(2, 1), &lines(1, 1)), None);
        }
        // Other resources, a key's own count, what was written, and what could not be read.
        for text in [
            line("resource=\"configmaps\",", old, 5),
            line("", "key1:", 5),
            line("", old, 5).replace("from_storage", "to_storage"),
            line("", new, 5).replace("OK", "Internal"),
        ] {
            assert_eq!(between("", &text), Some((false, vec![])), "{text}");
        }
        let others = between("", &(line("", "identity", 1) + &line("", "unknown", 1)));
        let names = ["clear", "nothing that it knows"].map(str::to_owned).to_vec();
        assert_eq!(others, Some((false, names)));
    }
}
