//! What was found, held against what callers were told.

use std::collections::{BTreeMap, BTreeSet};

use lastkey_crypto::{ClusterId, KeyId};
use lastkey_engine::{AliasName, Key, Timestamp};

use super::{Fate, Issued, Model, Snap, key::REGISTERS};
use crate::{
    log::Log,
    op::{Mutation, Op},
};

/// What the engine shows while nothing is under way.
#[derive(Debug, Default)]
pub struct Observed {
    /// All keys.
    pub keys: BTreeMap<KeyId, Key>,
    /// All aliases.
    pub aliases: BTreeMap<AliasName, KeyId>,
    /// All clusters.
    pub clusters: BTreeSet<ClusterId>,
}

impl Model {
    /// Settles what is open, and checks everything else.
    ///
    /// # Errors
    /// What is not as it must be.
    pub fn reconcile(
        &mut self,
        observed: &Observed,
        log: &Log,
        now: Timestamp,
    ) -> Result<(), String> {
        self.settle_creations(observed)?;
        self.settle_cluster(observed)?;
        self.settle_keys(observed, now)?;
        self.settle_aliases(observed)?;
        self.check_losses(log)?;
        self.check_log(log)?;
        self.settled = self.issued.len();
        Ok(())
    }

    fn open(&self) -> impl Iterator<Item = (usize, &Issued)> {
        let issued = self.issued.iter().enumerate().skip(self.settled);
        issued.filter(|(_, issued)| issued.fate == Fate::Unknown)
    }

    /// Keys that somebody asked for and never heard of: whole or not at all.
    fn settle_creations(&mut self, observed: &Observed) -> Result<(), String> {
        let open: Vec<(usize, String, Option<AliasName>)> = self
            .open()
            .filter_map(|(number, issued)| match &issued.op {
                Op::Create { description, alias, .. } => {
                    Some((number, description.clone(), alias.clone()))
                }
                _ => None,
            })
            .collect();
        for (number, description, alias) in open {
            let made = observed.keys.values().find(|key| key.description == description);
            self.issued[number].made = Some(made.is_some());
            if let Some(alias) = alias {
                self.busy.remove(&alias);
                if let Some(key) = made {
                    self.aliases.insert(alias, key.id);
                }
            }
            if let Some(key) = made {
                self.adopt(key)?;
            }
        }
        Ok(())
    }

    fn settle_cluster(&mut self, observed: &Observed) -> Result<(), String> {
        let known = self.cluster.as_ref().map(|cluster| cluster.id);
        if let Some(known) = known
            && !observed.clusters.contains(&known)
        {
            return Err(format!("the acknowledged cluster {known} is lost"));
        }
        let found = observed.clusters.iter().find(|id| Some(**id) != known).copied();
        let adding = self.adding.take();
        match (found, adding.map(|number| (number, self.issued[number].op.clone()))) {
            (Some(id), Some((number, Op::AddCluster { keys, fingerprint, .. }))) => {
                self.issued[number].made = Some(true);
                self.cluster = Some(super::ClusterModel { id, keys, fingerprint });
            }
            (Some(id), _) => return Err(format!("nobody made the cluster {id}")),
            (None, Some((number, _))) => self.issued[number].made = Some(false),
            (None, None) => {}
        }
        Ok(())
    }

    fn settle_keys(&mut self, observed: &Observed, now: Timestamp) -> Result<(), String> {
        if let Some(stranger) = observed.keys.keys().find(|id| !self.keys.contains_key(id)) {
            let was = if self.gone.contains(stranger) { "was destroyed" } else { "nobody made" };
            return Err(format!("there is a key {stranger} that {was}"));
        }
        for id in self.keys.keys().copied().collect::<Vec<_>>() {
            match observed.keys.get(&id) {
                Some(key) => self.settle_key(key)?,
                None => self.settle_loss(id, now)?,
            }
        }
        Ok(())
    }

    /// A key that is not there must have been destroyed.
    fn settle_loss(&mut self, id: KeyId, now: Timestamp) -> Result<(), String> {
        let Some(key) = self.keys.remove(&id) else { return Ok(()) };
        let mut due = key.snap.due;
        for number in key.open.values() {
            let issued = &self.issued[*number];
            if let Op::Mutate { by: by @ Mutation::Schedule(_), .. } = &issued.op {
                due = key.snap.after(by, issued.at).due;
            }
        }
        if due.is_none_or(|due| due > now) {
            return Err(format!("the acknowledged key {id} is lost"));
        }
        self.aliases.retain(|_, target| *target != id);
        self.gone.insert(id);
        Ok(())
    }

    fn settle_key(&mut self, found: &Key) -> Result<(), String> {
        self.note_epoch(found.id, found.primary.version, found.primary.epoch)?;
        let Some(key) = self.keys.get_mut(&found.id) else { return Ok(()) };
        let shown = Snap::of(found);
        for register in REGISTERS {
            let Some(number) = key.open.remove(&register) else {
                if !shown.agrees(&key.snap, register) {
                    let id = found.id;
                    return Err(format!(
                        "{register:?} of key {id} is {shown:?}, but acknowledged is {:?}",
                        key.snap
                    ));
                }
                continue;
            };
            let issued = &mut self.issued[number];
            let Op::Mutate { by, .. } = &issued.op else { continue };
            let new = key.snap.after(by, issued.at);
            issued.made = match (shown.agrees(&new, register), shown.agrees(&key.snap, register)) {
                (true, true) => None,
                (true, false) => Some(true),
                (false, true) => Some(false),
                (false, false) => {
                    return Err(format!(
                        "{register:?} of key {} is {shown:?}, neither {:?} nor after {by:?}",
                        found.id, key.snap
                    ));
                }
            };
        }
        // An open rotation shows in the versions, which the log accounts for.
        key.open.clear();
        if let Some(lost) = key.versions.iter().find(|version| !found.versions.contains(version)) {
            return Err(format!("version {lost} of key {} is lost", found.id));
        }
        if found.versions.last() != Some(&found.primary.version) {
            return Err(format!("the primary version of key {} is not its newest", found.id));
        }
        key.versions.extend(found.versions.iter().copied());
        key.snap = shown;
        Ok(())
    }

    fn settle_aliases(&mut self, observed: &Observed) -> Result<(), String> {
        for (name, number) in std::mem::take(&mut self.busy) {
            let (before, found) = (self.aliases.get(&name), observed.aliases.get(&name));
            let after = match &self.issued[number].op {
                Op::CreateAlias { key, .. } | Op::UpdateAlias { key, .. } => Some(key),
                Op::DeleteAlias { .. } => None,
                _ => continue,
            };
            // Its key may have been destroyed since.
            let after = after.filter(|key| !self.gone.contains(key));
            self.issued[number].made = match (found == after, found == before) {
                (true, true) => None,
                (true, false) => Some(true),
                (false, true) => Some(false),
                (false, false) => return Err(format!("{name} is {found:?} after a change")),
            };
            match found.copied() {
                Some(key) => drop(self.aliases.insert(name, key)),
                None => drop(self.aliases.remove(&name)),
            }
        }
        if self.aliases != observed.aliases {
            let (known, found) = (&self.aliases, &observed.aliases);
            return Err(format!("the aliases are {found:?}, but acknowledged are {known:?}"));
        }
        Ok(())
    }

    /// Every version has its record, and every record its version.
    ///
    /// # Errors
    /// The ones that differ.
    pub fn versions_agree(&self, observed: &Observed, log: &Log) -> Result<(), String> {
        for key in observed.keys.values() {
            let there: BTreeSet<String> = key.versions.iter().map(ToString::to_string).collect();
            let recorded = log.versions.get(&key.id.to_string()).into_iter().flatten();
            let recorded: BTreeSet<String> = recorded.cloned().collect();
            if there != recorded {
                return Err(format!(
                    "key {} has the versions {there:?}, but recorded are {recorded:?}",
                    key.id
                ));
            }
        }
        Ok(())
    }

    fn check_losses(&self, log: &Log) -> Result<(), String> {
        let gone = self.gone.iter().map(ToString::to_string);
        match { gone }.find(|id| !log.destroyed.contains(id)) {
            Some(id) => Err(format!("key {id} is gone without a record")),
            None => Ok(()),
        }
    }

    /// Exactly one record for what was answered, and as many as can be for the rest.
    fn check_log(&self, log: &Log) -> Result<(), String> {
        for issued in &self.issued[self.settled..] {
            let none = Vec::new();
            let records = log.by_request.get(&issued.request).unwrap_or(&none);
            let (done, all) = (records.iter().filter(|r| r.outcome == "ok").count(), records.len());
            let order = matches!(issued.op, Op::RotateRoot);
            let right = match issued.fate {
                Fate::Flying => true,
                // An order and what it changes have a record each. Where a failing disk leaves open
                // whether the change was made, and it was, that stands before the second.
                Fate::Acknowledged if order => done == 2 && all <= 3,
                _ if order => done <= 2 && all <= 3,
                Fate::Acknowledged => (done, all) == (1, 1),
                Fate::Refused(code) => done == 0 && all == 1 && records[0].outcome == code,
                Fate::NotMade => done == 0 && all <= 1,
                Fate::Unknown => {
                    all <= 2 && done <= 1 && issued.made.is_none_or(|made| (done == 1) == made)
                }
            };
            if !right {
                return Err(format!(
                    "{:?} ({:?}, made: {:?}, request {}) has the records {records:?}",
                    issued.op, issued.fate, issued.made, issued.request
                ));
            }
        }
        let known: std::collections::HashSet<&str> =
            self.issued.iter().map(|issued| issued.request.as_str()).collect();
        let stranger = log.by_request.iter().find(|(request, records)| {
            !known.contains(request.as_str())
                && records.iter().any(|record| record.principal != "system")
        });
        match stranger {
            Some((request, records)) => {
                Err(format!("nobody made the request {request}, but recorded is {records:?}"))
            }
            None => Ok(()),
        }
    }
}
