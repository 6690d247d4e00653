//! The end of a change of provider: what nothing rests under is taken out, it is counted once more,
//! and the server hears what needs its keys now.

use std::collections::{BTreeMap, BTreeSet};

use lastkey_client::native::{FinishRotation, FoundObjects, RotationPhase, Way};
use lastkey_crypto::{KeyId, KeyVersionId};
use serde_json::{Value, json};

use super::{Claim, RotateError, Stop, Worker, change::config_now};
use crate::{
    cluster::Etcd,
    coverage::{self, Coverage, not_theirs, resources_of},
    doctor::reads,
    encryption_config::{EncryptionConfiguration, Named, ProviderKind},
    transition::Stage,
};

/// So often what was left is written anew once more.
const MAX_ROUNDS: u32 = 3;

/// A rule and a provider of it, by their lines.
pub(super) type Place = (Option<usize>, Option<usize>);

impl Worker {
    /// Takes out what is not needed any more, and ends with the report.
    pub(super) async fn clean(&self, claim: &mut Claim) -> Result<(), Stop> {
        self.step(claim, Stage::Clean).await?;
        let (_, way, hands) = self.goal(claim)?;
        let status = self.ask(|| self.client.status()).await?;
        let began = status.map_err(RotateError::from)?["now"].clone();
        let coverage = self.exactly(claim).await?;
        if coverage.is_none() && claim.state.pass.refused > 0 {
            // What is left is not known by version: nothing is settled.
            return self.finish_change(claim, (None, None)).await;
        }
        let config = config_now(hands)?;
        let (goal, _, _) = self.goal(claim)?;
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

    async fn finish_change(
        &self,
        claim: &mut Claim,
        (found, coverage): (Option<FoundObjects>, Option<Coverage>),
    ) -> Result<(), Stop> {
        let content = self.change_report(claim, coverage.is_some())?;
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
        let coverage = self.exactly(claim).await?;
        let refused = claim.state.pass.refused > 0;
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
                    None => u64::from(refused),
                };
                let shown = shown(provider);
                match objects {
                    0 => removed.push(shown),
                    objects => {
                        let of = coverage.as_ref().map(|_| objects.to_string());
                        let of = of.unwrap_or_else(|| "some".to_owned());
                        left.push(format!("{of} objects are under {shown}"));
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

    /// What rests where, if etcd may be read and is that of these apiservers.
    async fn exactly(&self, claim: &mut Claim) -> Result<Option<Coverage>, Stop> {
        let (goal, _, hands) = self.goal(claim)?;
        let Some(access) = &hands.etcd else { return Ok(None) };
        let discovery = self.api.discover().await.map_err(RotateError::from)?;
        let mut names = hands.registered.clone();
        let config = config_now(hands)?;
        names.extend(goal.resources.into_iter().chain(config.names().map(|n| n.name.clone())));
        let (resources, unknown) = resources_of(&names, &discovery);
        let mut etcd = Etcd::new(access).map_err(|error| RotateError::Etcd(error.into()))?;
        let other = not_theirs(&self.api, &mut etcd, (&access.prefix, &resources)).await;
        if let Some(why) = other.map_err(RotateError::Etcd)? {
            claim.state.proof.why = format!("the registered etcd is not the apiservers': {why}");
            return Ok(None);
        }
        let counted = coverage::exact(&mut etcd, &access.prefix, (&resources, unknown)).await;
        Ok(Some(counted.map_err(RotateError::Etcd)?))
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

fn shown(provider: &crate::encryption_config::Provider) -> String {
    match provider.kind() {
        Some(ProviderKind::Kms(kms)) => format!("kms {} {}", kms.version(), kms.name),
        Some(ProviderKind::Identity) | None => "clear".to_owned(),
        Some(kind) => kind.name().to_owned(),
    }
}
