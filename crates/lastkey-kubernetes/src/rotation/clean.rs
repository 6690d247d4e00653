//! The end of a change of provider: what nothing rests under is taken out, it is counted once more,
//! and the server hears what needs its keys now.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use lastkey_client::native::{FinishRotation, FoundObjects, RotationPhase, Way};
use lastkey_crypto::{KeyId, KeyVersionId};
use serde_json::{Value, json};

use super::{
    ASK_EVERY, Claim, Event, RENEW_EVERY, RotateError, Stop, Worker, change::config_now, told_last,
};
use crate::{
    cluster::{Etcd, EtcdError, Resource},
    coverage::{self, Coverage, not_theirs, resources_of},
    doctor::reads,
    encryption_config::{EncryptionConfiguration, Named, Provider, ProviderKind},
    transition::{Stage, covers, in_clear, loaded::Seen},
};

/// So often what was left is written anew once more.
const MAX_ROUNDS: u32 = 3;
/// What shows what rests where.
const REGISTER: &str = "register etcd (`lastkey cluster add --etcd`) and run this again";
/// An apiserver asks a plugin once a minute.
const ASKED_WITHIN: Duration = Duration::from_secs(75);

/// When somebody last asked, by who and what in words.
type LastAsked = BTreeMap<(String, String), String>;

/// A rule and a provider of it, by their lines.
pub(super) type Place = (Option<usize>, Option<usize>);

impl Worker {
    /// Takes out what is not needed any more, and ends with the report.
    pub(super) async fn clean(&self, claim: &mut Claim) -> Result<(), Stop> {
        self.step(claim, Stage::Clean).await?;
        let (goal, way, hands) = self.goal(claim)?;
        if way == Way::Disable {
            self.wait_until_left(claim, &config_now(hands)?).await?;
        }
        let status = self.ask(|| self.client.status()).await?;
        let began = status.map_err(RotateError::from)?["now"].clone();
        let (coverage, unserved) = self.exactly(claim).await?;
        if coverage.is_none() {
            self.is_nothing_new(claim).await?;
        }
        let config = config_now(hands)?;
        if coverage.is_none()
            && (claim.state.is_left()
                || !claim.state.change.left.is_empty()
                || self.not_shown(claim, &config).await?.is_some()
                || !unserved.is_empty()
                || !is_whole(&config, (&goal.resources, &hands.registered)))
        {
            // What is left is not known by version: nothing is settled.
            return self.finish_change(claim, (None, None)).await;
        }
        let elsewhere = config.rules.iter().flat_map(|rule| &rule.providers).any(|provider| {
            matches!(provider.kind(), Some(ProviderKind::Kms(_))) && !goal.target.is(provider)
        });
        let counted = coverage.as_ref().map(Coverage::versions).unwrap_or_else(|| match way {
            Way::Enable => BTreeMap::from([(claim.rotation.target, claim.state.pass.current)]),
            Way::Disable => BTreeMap::new(),
        });
        self.settle_others(claim, (&counted, &began, elsewhere)).await?;
        let own = self.versions_of(claim.rotation.key).await?;
        let versions = counted.into_iter().filter(|(id, _)| own.contains(id)).collect();
        let began = began.as_str().unwrap_or_default().to_owned();
        let found = FoundObjects { began, versions };
        match elsewhere && way == Way::Disable {
            // Something else of this cluster still writes under its keys.
            true => {
                self.put(claim, claim.rotation.key, (&found, true)).await?;
                self.finish_change(claim, (None, coverage)).await
            }
            false => self.finish_change(claim, (Some(found), coverage)).await,
        }
    }

    /// Waits until no apiserver asks a plugin any more that was taken out of the configuration. One that
    /// does not name the file it works by (up to 1.35) may have been started again with an older one:
    /// it would go on to write under the KMS while that is counted.
    async fn wait_until_left(
        &self,
        claim: &mut Claim,
        config: &EncryptionConfiguration,
    ) -> Result<(), Stop> {
        let kept: BTreeSet<String> = config.kms().map(|kms| kms.name.clone()).collect();
        let mut before = self.still_told(&kept).await;
        while !before.is_empty() {
            let until = Instant::now() + ASKED_WITHIN;
            while Instant::now() < until {
                if claim.saved.elapsed() >= RENEW_EVERY {
                    self.save(claim, None, false).await?;
                }
                self.go_on()?;
                tokio::time::sleep(ASK_EVERY).await;
            }
            let now = self.still_told(&kept).await;
            let asks = asked_since(&before, &now);
            if asks.is_empty() {
                return Ok(());
            }
            (self.watch)(&Event::Behind(asks));
            before = now;
        }
        Ok(())
    }

    /// When apiservers that name no file have asked plugins of other providers than these last.
    async fn still_told(&self, kept: &BTreeSet<String>) -> LastAsked {
        let mut told = BTreeMap::new();
        for (server, url) in self.api.urls().enumerate() {
            let url = url.to_string();
            match self.api.metrics(server).await {
                Ok(metrics) if Seen::read(&url, &metrics).hashes.is_empty() => {
                    for (provider, last) in told_last(&metrics) {
                        if !kept.contains(&provider) {
                            let what = format!(
                                "still asks the plugin of the provider {provider}: it \
                                                works by an older configuration"
                            );
                            told.insert((url.clone(), what), last.at.to_string());
                        }
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    // Never the same twice, so that it is asked again.
                    let when = format!("{:?}", Instant::now());
                    told.insert((url, format!("cannot be asked: {error}")), when);
                }
            }
        }
        told
    }

    async fn finish_change(
        &self,
        claim: &mut Claim,
        (found, coverage): (Option<FoundObjects>, Option<Coverage>),
    ) -> Result<(), Stop> {
        let mut content = self.change_report(claim, coverage.is_some())?;
        content["whole"] = json!(coverage.is_some() || found.is_some());
        let finish = FinishRotation { fence: claim.rotation.fence, content, found };
        match self.ask(|| self.client.finish_rotation(&claim.rotation, &finish)).await? {
            Ok(finished) => {
                claim.rotation = finished;
                Ok(())
            }
            Err(error) if error.code() == Some("Rejected.StaleKeyVersion") => {
                claim.state.begin_pass();
                self.save(claim, Some(RotationPhase::Converging), false).await?;
                Err(Stop::Again)
            }
            Err(error) => Err(RotateError::from(error).into()),
        }
    }

    /// The providers that something of the goal still rests under.
    pub(super) async fn in_use(
        &self,
        claim: &mut Claim,
        config: &EncryptionConfiguration,
    ) -> Result<Vec<Place>, Stop> {
        let (goal, _, _) = self.goal(claim)?;
        let (coverage, unserved) = self.exactly(claim).await?;
        if coverage.is_none() {
            self.is_nothing_new(claim).await?;
        }
        let refused = claim.state.is_left();
        // That no apiserver wrote an object anew in the last pass is true of one, too, that works by
        // another file.
        let unclear = match coverage.is_none() && !refused {
            true => self.not_shown(claim, config).await?,
            false => None,
        };
        let (mut kept, mut left, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        for rule in &config.rules {
            if !rule.providers.iter().any(|provider| goal.target.is(provider)) {
                continue;
            }
            for provider in rule.providers.iter().filter(|provider| !goal.target.is(provider)) {
                let objects = match &coverage {
                    Some(coverage) => {
                        count(coverage, &rule.resources, &|under| reads(provider, under))
                    }
                    // What is served by nobody was not written anew, and is not known.
                    None => {
                        let names = rule.resources.iter().map(|named| &named.name);
                        let hidden = names.filter(|name| unserved.contains(name)).count();
                        u64::from(refused || hidden > 0 || unclear.is_some())
                    }
                };
                let shown = shown(provider);
                match objects {
                    0 => removed.push(shown),
                    objects => {
                        let of = coverage.as_ref().map(|_| objects.to_string());
                        let of = of.unwrap_or_else(|| "some".to_owned());
                        left.push(match &unclear {
                            Some(why) => format!("objects may be under {shown}: {why}; {REGISTER}"),
                            None => format!("{of} objects are under {shown}"),
                        });
                        kept.push((rule.line, provider.line));
                    }
                }
            }
        }
        let change = &mut claim.state.change;
        if coverage.is_some() && !kept.is_empty() && !refused && change.rounds < MAX_ROUNDS {
            change.rounds += 1;
            claim.state.begin_pass();
            self.save(claim, Some(RotationPhase::Rewriting), false).await?;
            return Err(Stop::Again);
        }
        for name in removed {
            if !change.removed.contains(&name) {
                change.removed.push(name);
            }
        }
        change.left = left;
        Ok(kept)
    }

    /// What rests where, if etcd may be read and is that of these apiservers; and the names of single
    /// resources that nobody serves just now, which etcd may have objects of all the same.
    async fn exactly(&self, claim: &mut Claim) -> Result<(Option<Coverage>, Vec<String>), Stop> {
        let (goal, _, hands) = self.goal(claim)?;
        let mut names = hands.registered.clone();
        let config = config_now(hands)?;
        names.extend(goal.resources.into_iter().chain(config.names().map(|n| n.name.clone())));
        let discovery = self.meanwhile(claim, self.served(&names)).await??;
        let (mut resources, mut unserved) = resources_of(&names, &discovery);
        unserved.retain(|name| !name.contains('*'));
        let Some(access) = &hands.etcd else { return Ok((None, unserved)) };
        let mut etcd = Etcd::new(access).map_err(|error| RotateError::Etcd(error.into()))?;
        let other = not_theirs(&self.api, &mut etcd, (&access.prefix, &resources)).await;
        if let Some(why) = other.map_err(RotateError::Etcd)? {
            claim.state.proof.why = format!("the registered etcd is not the apiservers': {why}");
            return Ok((None, unserved));
        }
        resources.extend(unserved.iter().map(|name| unserved_resource(name)));
        let counted = coverage::exact(&mut etcd, &access.prefix, (&resources, Vec::new())).await;
        let counted = match counted {
            Err(error @ EtcdError::Refused { .. }) if !unserved.is_empty() => {
                claim.state.proof.why = error.to_string();
                return Ok((None, unserved));
            }
            counted => counted.map_err(RotateError::Etcd)?,
        };
        if counted.partly && discovery.unanswered(&names).next().is_some() {
            // Neither the apiservers nor etcd tell of it.
            claim.state.left_out = discovery.left_out(&names);
            claim.state.proof.why = claim.state.left_out.join("; ");
            return Ok((None, unserved));
        }
        Ok((Some(counted), unserved))
    }

    pub(super) async fn versions_of(
        &self,
        key: KeyId,
    ) -> Result<BTreeSet<KeyVersionId>, RotateError> {
        let impact = self.ask(|| self.client.key_impact(key, None)).await??;
        let all = impact["versions"].as_array().cloned().unwrap_or_default();
        let ids = all.iter().filter_map(|known| known["key_version_id"].as_str()?.parse().ok());
        Ok(ids.collect())
    }

    /// Tells the server what needs the cluster's other keys now.
    async fn settle_others(
        &self,
        claim: &Claim,
        (counted, began, elsewhere): (&BTreeMap<KeyVersionId, u64>, &Value, bool),
    ) -> Result<(), RotateError> {
        let clusters = self.ask(|| self.client.clusters()).await??.items;
        let id = claim.rotation.cluster.to_string();
        let own = clusters.iter().find(|one| one["id"] == id.as_str());
        let keys = own.and_then(|one| one["keys"].as_array()).into_iter().flatten();
        let keys = keys.filter_map(|key| key.as_str()?.parse::<KeyId>().ok());
        for key in keys.filter(|key| *key != claim.rotation.key) {
            let ids = self.versions_of(key).await?;
            let own = counted.iter().filter(|(id, _)| ids.contains(id));
            let versions = own.map(|(id, objects)| (*id, *objects)).collect();
            let began = began.as_str().unwrap_or_default().to_owned();
            self.put(claim, key, (&FoundObjects { began, versions }, elsewhere)).await?;
        }
        Ok(())
    }

    /// Writes down what the cluster needs of a key. Unless somebody may still write under it,
    /// nobody does.
    async fn put(
        &self,
        claim: &Claim,
        key: KeyId,
        (found, written): (&FoundObjects, bool),
    ) -> Result<(), RotateError> {
        let clusters = self.ask(|| self.client.clusters()).await??.items;
        let id = claim.rotation.cluster.to_string();
        let name = clusters.iter().find(|one| one["id"] == id.as_str());
        let name = name.and_then(|one| one["name"].as_str()).unwrap_or_default();
        let in_use = if written { Value::Null } else { json!([]) };
        let dependant = json!({
            "kind": "cluster", "id": id, "name": name, "versions": found.versions,
            "seen_at": found.began, "in_use": in_use,
        });
        Ok(self.ask(|| self.client.put_dependant(key, &dependant)).await??)
    }

    fn change_report(&self, claim: &Claim, exact: bool) -> Result<Value, RotateError> {
        let (goal, way, hands) = self.goal(claim)?;
        let change = &claim.state.change;
        let mut content = self.report(claim);
        content["way"] = json!(way);
        content["to"] = json!(goal.target.shown());
        content["configuration"] = json!(hands.place.path);
        content["configuration_hash"] = json!(change.base);
        content["predecessors"] = json!(change.kept);
        content["removed"] = json!(change.removed);
        content["left"] = json!(change.left);
        content["exact"] = json!(exact);
        if way == Way::Enable {
            content["in_clear"] = json!(in_clear(&config_now(hands)?));
        }
        let proof = match exact {
            true => {
                "etcd was read to the end: what was taken out of the configuration has no object"
            }
            false => {
                "in the last pass no apiserver wrote an object anew, and all have loaded the configuration"
            }
        };
        content["proof"] = json!(proof);
        if exact {
            content["verified"] = json!({ "by": "etcd" });
        }
        Ok(content)
    }
}

/// A resource by its name alone, which is enough to find it in etcd.
fn unserved_resource(name: &str) -> Resource {
    let (name, group) = name.split_once('.').unwrap_or((name, ""));
    Resource {
        group: group.to_owned(),
        version: String::new(),
        name: name.to_owned(),
        kind: String::new(),
        namespaced: true,
        updatable: false,
    }
}

/// How many objects of these names rest under what `counts`.
fn count(coverage: &Coverage, names: &[Named], counts: &dyn Fn(&coverage::Under) -> bool) -> u64 {
    let of_rule = |full: &str| {
        let (resource, group) = full.split_once('.').unwrap_or((full, ""));
        names.iter().any(|named| named.covers(resource, group))
    };
    let resources = coverage.resources.iter().filter(|one| of_rule(&one.resource));
    let shares = resources.flat_map(|one| &one.under).filter(|share| counts(&share.under));
    shares.map(|share| share.objects.unwrap_or(1)).sum()
}

/// Who has asked since.
fn asked_since(before: &LastAsked, now: &LastAsked) -> Vec<String> {
    let asks = now.iter().filter(|(who, told)| before.get(*who) != Some(*told));
    asks.map(|((url, what), _)| format!("{url} {what}")).collect()
}

/// Whether all that may be under a KMS was gone through: what the configuration has a KMS for, and
/// what was registered. What was not may be under any version of the keys.
fn is_whole(
    config: &EncryptionConfiguration,
    (gone_through, registered): (&[String], &[String]),
) -> bool {
    let by_kms = |provider: &Provider| matches!(provider.kind(), Some(ProviderKind::Kms(_)));
    let rules = config.rules.iter().filter(|rule| rule.providers.iter().any(by_kms));
    let configured = rules.flat_map(|rule| &rule.resources).map(|named| &named.name);
    // What was registered and is in no rule any more rests as it did.
    let dropped = registered.iter().filter(|name| {
        let (resource, group) = name.split_once('.').unwrap_or((name.as_str(), ""));
        !config.names().any(|named| named.name == **name || named.covers(resource, group))
    });
    let is_covered = |name: &String| gone_through.iter().any(|wide| covers(wide, name));
    configured.chain(dropped).all(is_covered)
}

fn shown(provider: &Provider) -> String {
    match provider.kind() {
        Some(ProviderKind::Kms(kms)) => format!("kms {} {}", kms.version(), kms.name),
        Some(ProviderKind::Identity) | None => "clear".to_owned(),
        Some(kind) => kind.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption_config::examine;

    #[test]
    fn a_part_of_what_is_under_a_kms_is_not_all() {
        let config = examine(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [secrets]\n  providers:\n  - identity: {}\n  - kms: {apiVersion: v2, name: a, \
             endpoint: 'unix:///a'}\n- resources: [configmaps]\n  providers:\n  - kms: {apiVersion: \
             v2, name: b, endpoint: 'unix:///a'}\n- resources: [pods]\n  providers:\n  - identity: {}\n",
        )
        .config;
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let whole = |through: &[&str], registered: &[&str]| {
            is_whole(&config, (&names(through), &names(registered)))
        };
        assert!(whole(&["secrets", "configmaps"], &["secrets"]));
        assert!(!whole(&["configmaps"], &[]), "Secrets can be read by the KMS");
        assert!(!whole(&["secrets", "configmaps"], &["widgets.example.org"]));
        assert!(whole(&["secrets", "configmaps"], &["pods"]), "its rule has no KMS");
        assert!(whole(&["*.*"], &["widgets.example.org"]));
        assert!(!whole(&["*.apps"], &[]));
    }

    #[test]
    fn who_asks_again_works_by_an_older_file() {
        let one = |at: &str| {
            BTreeMap::from([(("https://a:1".to_owned(), "asks".to_owned()), at.to_owned())])
        };
        assert!(asked_since(&one("1"), &one("1")).is_empty());
        assert_eq!(asked_since(&one("1"), &one("61")), ["https://a:1 asks"]);
        assert_eq!(asked_since(&LastAsked::new(), &one("1")), ["https://a:1 asks"], "restarted");
    }
}
