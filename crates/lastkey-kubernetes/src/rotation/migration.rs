//! Who writes the objects anew: Lastkey, or the cluster itself by StorageVersionMigrations.
//!
//! Lastkey's own way is quicker, keeps a rate and names what refuses, so it is taken wherever the
//! registered account may read and update what is encrypted. Where it may not, or must not, the
//! cluster's own is the better one: no object passes through Lastkey, which only asks for
//! migrations and sees in etcd that nothing is left ([`super::by_cluster`]).

use std::time::Duration;

use lastkey_client::native::{self, RotationPhase};
use serde::{Deserialize, Serialize};

use super::{Claim, RotateError, Stop, Worker, discover_once};
use crate::cluster::{
    ApiError, ApiServer, Discovery, MIGRATION_VERBS, MIGRATIONS, Migrate, Resource, Right,
};

/// The version that is spoken.
const VERSION: &str = "v1";
/// A role that was changed a moment ago may not be known to every apiserver yet.
const AGAIN: Duration = Duration::from_secs(1);
/// A question that is not answered is asked this often again.
const MAX_TRIES: u32 = 10;

/// By whom objects are written anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Lastkey.
    #[default]
    Own,
    /// kube-controller-manager.
    Cluster,
}

/// What the choice depends on, besides what the account may do.
#[derive(Debug, Clone, Copy)]
pub struct Choice<'a> {
    /// What is wanted.
    pub wanted: Migrate,
    /// What is gone through.
    pub resources: &'a [Resource],
    /// Only this namespace.
    pub namespace: Option<&'a str>,
    /// Whether etcd was registered, without which the cluster's way proves nothing.
    pub etcd: bool,
    /// An option that the cluster's way does not know.
    pub only_own: Option<&'static str>,
}

/// By whom, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// By whom.
    pub by: By,
    /// In a sentence, for events and the report.
    pub why: String,
}

/// Decides who writes the objects of a mere rotation anew.
///
/// # Errors
/// [`RotateError::MayNot`] where a right is missing, [`RotateError::NotByCluster`] where the
/// cluster's own way was asked for and cannot be had, [`RotateError::OnlyOwn`] where an option stands
/// against it; and that an apiserver cannot be asked.
pub async fn choose(
    api: &ApiServer,
    served: &Discovery,
    choice: &Choice<'_>,
) -> Result<Chosen, RotateError> {
    let missing = match choice.wanted {
        Migrate::Cluster => None,
        Migrate::Auto | Migrate::Own => missing_to_write(api, choice).await?,
    };
    match (choice.wanted, missing) {
        (Migrate::Own, None) => Ok(own("Lastkey's own way was asked for")),
        (Migrate::Own, Some(missing)) => Err(RotateError::MayNot {
            missing,
            instead: "--migration own was asked for".to_owned(),
        }),
        (Migrate::Auto, None) => Ok(own(&why_own(served))),
        (Migrate::Auto, Some(missing)) => match cannot_migrate(api, served, choice).await? {
            None => Ok(by_cluster(&format!(
                "the registered account may not {missing}, and need not: no object passes through Lastkey"
            ))),
            Some(Obstacle::Option(option)) => Err(RotateError::OnlyOwn { option }),
            Some(Obstacle::Cluster(instead)) => Err(RotateError::MayNot { missing, instead }),
        },
        (Migrate::Cluster, _) => match cannot_migrate(api, served, choice).await? {
            None => Ok(by_cluster("it was asked for: no object passes through Lastkey")),
            Some(Obstacle::Option(option)) => Err(RotateError::OnlyOwn { option }),
            Some(Obstacle::Cluster(why)) => Err(RotateError::NotByCluster { why }),
        },
    }
}

fn own(why: &str) -> Chosen {
    Chosen { by: By::Own, why: why.to_owned() }
}

fn by_cluster(why: &str) -> Chosen {
    Chosen { by: By::Cluster, why: why.to_owned() }
}

/// Why the cluster's own way is not the better one where Lastkey may write the objects.
fn why_own(served: &Discovery) -> String {
    let why = match is_served(served) {
        false => "the cluster serves no storagemigration.k8s.io/v1, and",
        true => {
            "the cluster's own is slower, keeps no rate and no namespace, stops at the first object \
             that is refused, and needs another look at all objects all the same;"
        }
    };
    format!("{why} the registered account may read and update what is encrypted")
}

fn is_served(served: &Discovery) -> bool {
    served.matching(MIGRATIONS).any(|found| found.version == VERSION)
}

/// What stands against the cluster's own way.
enum Obstacle {
    Option(&'static str),
    Cluster(String),
}

async fn cannot_migrate(
    api: &ApiServer,
    served: &Discovery,
    choice: &Choice<'_>,
) -> Result<Option<Obstacle>, RotateError> {
    if choice.namespace.is_some() {
        return Ok(Some(Obstacle::Option("--namespace")));
    }
    if let Some(option) = choice.only_own {
        return Ok(Some(Obstacle::Option(option)));
    }
    let why = if !is_served(served) {
        "the cluster serves no storagemigration.k8s.io/v1 (Kubernetes does by default from 1.37 on)"
            .to_owned()
    } else if !choice.etcd {
        "its etcd is not registered, and nothing else shows that no object is left: `lastkey cluster \
         add NAME --kubeconfig FILE --migration cluster --etcd URL`"
            .to_owned()
    } else {
        let (resource, group) = MIGRATIONS.split_once('.').unwrap_or((MIGRATIONS, ""));
        let rights = MIGRATION_VERBS.map(|verb| Right { verb, group, resource, namespace: None });
        match missing(api, &rights).await? {
            None => return Ok(None),
            Some(missing) => format!(
                "the registered account may not {missing}: `lastkey cluster add NAME --kubeconfig \
                 FILE --migration cluster --etcd URL` gives it that right and takes all others"
            ),
        }
    };
    Ok(Some(Obstacle::Cluster(why)))
}

/// The first right that is missing to write every object back, in words.
async fn missing_to_write(
    api: &ApiServer,
    choice: &Choice<'_>,
) -> Result<Option<String>, RotateError> {
    let everything = ["get", "list", "update"].map(|verb| {
        let namespace = choice.namespace;
        Right { verb, group: "*", resource: "*", namespace }
    });
    if choice.resources.len() > 2 && missing(api, &everything).await?.is_none() {
        return Ok(None);
    }
    let rights: Vec<Right<'_>> = choice
        .resources
        .iter()
        .flat_map(|of| {
            let namespace = choice.namespace.filter(|_| of.namespaced);
            ["update", "list", "get"].map(|verb| Right {
                verb,
                group: &of.group,
                resource: &of.name,
                namespace,
            })
        })
        .collect();
    let found = missing(api, &rights).await?;
    if found.is_none() {
        return Ok(None);
    }
    tokio::time::sleep(AGAIN).await;
    missing(api, &rights).await
}

/// Repeats a question that may do better a moment later.
pub(super) async fn patiently<T, F: Future<Output = Result<T, ApiError>>>(
    ask: impl Fn() -> F,
) -> Result<T, ApiError> {
    let mut tries = 0;
    loop {
        match ask().await {
            Err(error) if error.is_transient() && tries < MAX_TRIES => tries += 1,
            answer => return answer,
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The first of these rights that the account does not have. Who may not even ask is taken to have
/// them: the call itself tells.
async fn missing(api: &ApiServer, rights: &[Right<'_>]) -> Result<Option<String>, RotateError> {
    for right in rights {
        match patiently(|| api.may(right)).await {
            Ok(true) | Err(ApiError::Forbidden { .. } | ApiError::NotFound) => {}
            Ok(false) => {
                let group = if right.group.is_empty() { "" } else { "." };
                let inside = right.namespace.map(|ns| format!(" in {ns}")).unwrap_or_default();
                return Ok(Some(format!(
                    "{} {}{group}{}{inside}",
                    right.verb, right.resource, right.group
                )));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// What a rotation was begun with and what is wanted now, each in the version it is to be written
/// back in now; without what cannot be written back any more.
fn taken_up(begun: &[Resource], wanted: Vec<Resource>, served: &Discovery) -> Vec<Resource> {
    let is_as_begun = |one: &&Resource| {
        let now = wanted.iter().find(|now| now.full_name() == one.full_name());
        now.is_none_or(|now| now == *one) && !served.lossy.contains(&one.full_name())
    };
    let mut all: Vec<Resource> = begun.iter().filter(is_as_begun).cloned().collect();
    let new = wanted.into_iter().filter(|one| !begun.contains(one));
    all.extend(new);
    all
}

/// Whether the group of a resource was asked, has answered, and does not have it any more.
pub(super) fn is_gone(one: &Resource, names: &[String], served: &Discovery) -> bool {
    let asked = names.iter().any(|name| {
        let group = name.split_once('.').map_or("", |(_, group)| group);
        group == "*" || group == one.group
    });
    let of_group = |away: &String| away.split('/').next() == Some(one.group.as_str());
    let answered = !served.unavailable.iter().any(of_group);
    let name = one.full_name();
    asked && answered && !served.resources.iter().any(|known| known.full_name() == name)
}

impl Worker {
    /// By whom the objects of this rotation are written anew.
    pub(super) async fn choose(
        &self,
        rotation: &native::Rotation,
        resources: &[Resource],
        served: &Discovery,
    ) -> Result<Chosen, RotateError> {
        if rotation.course.is_some() {
            return Ok(own("a change of provider goes Lastkey's own way"));
        }
        let choice = Choice {
            wanted: self.options.migrate,
            resources,
            namespace: rotation.namespace.as_deref(),
            etcd: self.etcd.is_some(),
            only_own: self.options.only_own,
        };
        choose(&self.api, served, &choice).await
    }

    /// What a cluster serves of these names, once all of it is known.
    pub(super) async fn served(&self, names: &[String]) -> Result<Discovery, ApiError> {
        self.patiently(|| discover_once(&self.api, names)).await
    }

    /// The names that a rotation is of: those of all workers that it has had, and of this one.
    pub(super) fn names(&self, claim: &Claim) -> Vec<String> {
        let mut names = claim.state.names.clone();
        let new = self.options.resources.iter().filter(|name| !claim.state.names.contains(name));
        names.extend(new.cloned());
        names
    }

    /// What is gone through: what it was begun with, and what is wanted now besides. One that was
    /// begun for a part of what is encrypted, and is gone on with as a whole, goes through all of it
    /// before anything becomes free.
    pub(super) async fn take_up(&self, claim: &mut Claim) -> Result<(), Stop> {
        let begins = claim.state.resources.is_empty() && claim.state.names.is_empty();
        // What is counted at the end is of the last pass.
        if claim.rotation.phase == RotationPhase::Removing && !begins {
            return Ok(());
        }
        let names = self.names(claim);
        let served = self.meanwhile(claim, self.served(&names)).await??;
        let wanted = self.resources(claim, (&names, &served))?;
        if !begins && claim.state.names.is_empty() {
            // An earlier release has begun it: what its names were is not known.
            claim.state.whole = false;
        }
        claim.state.names = names;
        claim.state.whole |= self.options.whole;
        claim.state.configured |= self.options.whole && self.options.configured;
        claim.state.left_out = served.left_out(&claim.state.names);
        if begins {
            let chosen = self.choose(&claim.rotation, &wanted, &served).await?;
            (claim.state.by, claim.state.migration) = (chosen.by, chosen.why);
            claim.state.resources = wanted;
            return Ok(());
        }
        let begun = claim.state.resources.clone();
        self.drop_gone(claim, &served);
        let all = taken_up(&claim.state.resources, wanted, &served);
        if all == begun {
            return Ok(());
        }
        match claim.rotation.course.is_some() {
            true => {
                claim.state.go_through(all);
                claim.state.begin_pass();
                Ok(())
            }
            false => self.choose_again(claim, all).await,
        }
    }

    /// Leaves out what is not served any more.
    fn drop_gone(&self, claim: &mut Claim, served: &Discovery) {
        let state = &mut claim.state;
        let gone = state.resources.iter().filter(|one| is_gone(one, &state.names, served));
        let gone: Vec<String> = gone.map(Resource::full_name).collect();
        state.drop_those(&gone);
    }

    /// Takes what is served now of the names to what is gone through; whether that is anything new.
    pub(super) fn merge(&self, claim: &mut Claim, served: &Discovery) -> Result<bool, RotateError> {
        let names = self.names(claim);
        let wanted = self.resources(claim, (&names, served))?;
        let begun = &claim.state.resources;
        let all = taken_up(begun, wanted, served);
        let new = all.iter().any(|one| !begun.contains(one));
        claim.state.left_out = served.left_out(&names);
        claim.state.go_through(all);
        Ok(new)
    }

    /// Asks again what is served once nothing is written under an older key id any more: a kind that
    /// came since it was begun may have been. `false` where there is nothing new.
    pub(super) async fn look_again(&self, claim: &mut Claim) -> Result<bool, Stop> {
        let names = self.names(claim);
        let served = self.meanwhile(claim, self.served(&names)).await??;
        self.drop_gone(claim, &served);
        Ok(self.merge(claim, &served)?)
    }

    /// The same before anything becomes free, where etcd is not the proof: what is new by then is
    /// gone through before that. What has gone since it was gone through needs nothing.
    pub(super) async fn is_nothing_new(&self, claim: &mut Claim) -> Result<(), Stop> {
        let names = self.names(claim);
        let served = self.meanwhile(claim, self.served(&names)).await??;
        let before = std::mem::take(&mut claim.state.left_out);
        if self.merge(claim, &served)? {
            return self.begin_with_more(claim).await;
        }
        if claim.rotation.course.is_some() {
            // More names than those of the goal were asked for.
            let now = &mut claim.state.left_out;
            let more: Vec<String> = before.into_iter().filter(|why| !now.contains(why)).collect();
            now.extend(more);
        }
        Ok(())
    }

    /// Begins again because there is more to go through; never answers with a success.
    pub(super) async fn begin_with_more(&self, claim: &mut Claim) -> Result<(), Stop> {
        if claim.rotation.course.is_some() {
            claim.state.begin_pass();
            self.save(claim, Some(RotationPhase::Rewriting), false).await?;
        } else {
            let resources = claim.state.resources.clone();
            self.choose_again(claim, resources).await?;
        }
        Err(Stop::Again)
    }

    /// Whether somebody has asked for another way than the one it was begun with.
    pub(super) fn wants_otherwise(&self, claim: &Claim) -> bool {
        let wanted = match self.options.migrate {
            Migrate::Auto => return false,
            Migrate::Own => By::Own,
            Migrate::Cluster => By::Cluster,
        };
        claim.rotation.course.is_none() && claim.state.by != wanted
    }

    /// Begins again, with these and perhaps another way.
    pub(super) async fn choose_again(
        &self,
        claim: &mut Claim,
        resources: Vec<Resource>,
    ) -> Result<(), Stop> {
        let names = self.names(claim);
        let served = self.meanwhile(claim, self.served(&names)).await??;
        let chosen = self.choose(&claim.rotation, &resources, &served).await?;
        claim.state.go_through(resources);
        if claim.state.by == By::Cluster {
            self.tidy(claim).await;
        }
        (claim.state.by, claim.state.migration) = (chosen.by, chosen.why);
        (claim.state.stale, claim.state.rounds) = (None, 0);
        claim.state.begin_pass();
        self.save(claim, Some(RotationPhase::Converging), false).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(name: &str, version: &str) -> Resource {
        Resource {
            group: "example.org".to_owned(),
            version: version.to_owned(),
            name: name.to_owned(),
            kind: String::new(),
            namespaced: true,
            updatable: true,
        }
    }

    #[test]
    fn only_a_group_that_answers_says_what_is_gone() {
        let (one, other) = (resource("a", "v1"), resource("b", "v1"));
        let all = ["*.*".to_owned()];
        let served = Discovery { resources: vec![other.clone()], ..Discovery::default() };
        assert!(is_gone(&one, &all, &served) && !is_gone(&other, &all, &served));
        assert!(is_gone(&one, &["b.example.org".to_owned()], &served));
        for names in [&["secrets".to_owned()][..], &["*.apps".to_owned()], &[]] {
            assert!(!is_gone(&one, names, &served), "{names:?}: its group was not asked");
        }
        let unavailable = vec!["example.org/v2".to_owned()];
        let served = Discovery { unavailable, ..served };
        assert!(!is_gone(&one, &all, &served));
        // It is there, and cannot be written back.
        let updatable = false;
        let resources = vec![Resource { updatable, ..resource("a", "v2") }];
        assert!(!is_gone(&one, &all, &Discovery { resources, ..Discovery::default() }));
    }

    #[test]
    fn what_was_begun_goes_on_in_the_version_of_now() {
        let [a, b, new] = ["a", "b", "new"].map(|name| resource(name, "v1"));
        let served = Discovery::default();
        let begun = [a.clone(), b.clone()];
        // What is chosen now does not take away what it was begun with.
        assert_eq!(taken_up(&begun, vec![b.clone()], &served), begun);
        let all = taken_up(&begun, vec![a.clone(), new.clone()], &served);
        assert_eq!(all, [a, b.clone(), new]);
        let other = resource("a", "v2");
        assert_eq!(taken_up(&begun, vec![other.clone()], &served), [b.clone(), other]);
        let served = Discovery { lossy: vec!["a.example.org".to_owned()], ..served };
        assert_eq!(taken_up(&begun, Vec::new(), &served), [b]);
    }
}
