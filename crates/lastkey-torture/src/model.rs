//! What callers were told, and what must be true because of it.
//!
//! A key is a handful of registers (state, text, tags, …). At most one change of a register is
//! under way at a time, so each of them has the certain value or the one that its open change
//! gives it. What became of open changes is settled by [`reconcile`](Model::reconcile), when
//! nothing is under way: after a start, and after a fault.

mod key;
mod reconcile;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lastkey_crypto::{ClusterId, EncryptionContext, Epoch, KeyId, KeyVersionId};
use lastkey_engine::{
    AliasName, Error, ErrorKind, Key, KeyRef, Timestamp, command::PluginEncrypted,
};

pub use key::{KeyModel, Register, Snap};
pub use reconcile::Observed;

use crate::op::{Answer, Mutation, Op};

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nobody was told yet.
    Flying,
    /// It was answered.
    Acknowledged,
    /// It was refused for a reason of its own, and that was recorded.
    Refused(&'static str),
    /// It was refused because it could not be done: nothing was.
    NotMade,
    /// The caller was told that nobody knows, or never heard.
    Unknown,
}

/// A command that was given to the engine.
#[derive(Debug)]
pub struct Issued {
    /// The request's id as records show it.
    pub request: String,
    /// What was asked.
    pub op: Op,
    /// What became of it.
    pub fate: Fate,
    at: Timestamp,
    /// What it must be answered with, if nothing else happens to its key meanwhile.
    expected: Option<(Result<(), &'static str>, u64)>,
    nonce: Option<String>,
    /// Whether an open change was made; settled by reconciliation.
    made: Option<bool>,
}

/// An acknowledged ciphertext.
#[derive(Debug)]
pub struct Ciphertext {
    /// Under which key.
    pub key: KeyId,
    /// The blob.
    pub blob: Vec<u8>,
    /// Its context.
    pub context: EncryptionContext,
    /// What is in it, as far as we know.
    pub plaintext: Option<Vec<u8>>,
}

/// The same for a plugin.
#[derive(Debug)]
pub struct PluginCiphertext {
    /// Under which key.
    pub key: KeyId,
    /// For which cluster.
    pub cluster: ClusterId,
    /// The blob and what its key id is made of.
    pub sealed: PluginEncrypted,
    /// What is in it.
    pub plaintext: Vec<u8>,
}

/// The registered cluster.
#[derive(Clone, Debug)]
pub struct ClusterModel {
    /// Its id.
    pub id: ClusterId,
    /// The keys it was given.
    pub keys: Vec<KeyId>,
    /// Its plugin's fingerprint.
    pub fingerprint: String,
}

/// What must be true.
#[derive(Debug, Default)]
pub struct Model {
    /// The keys that exist for certain.
    pub keys: BTreeMap<KeyId, KeyModel>,
    /// The keys that were destroyed.
    pub gone: BTreeSet<KeyId>,
    /// Where each alias points for certain.
    pub aliases: BTreeMap<AliasName, KeyId>,
    /// Aliases that an open change concerns.
    pub busy: BTreeMap<AliasName, usize>,
    /// The acknowledged cluster.
    pub cluster: Option<ClusterModel>,
    /// An open [`Op::AddCluster`].
    pub adding: Option<usize>,
    /// All commands.
    pub issued: Vec<Issued>,
    /// All acknowledged ciphertexts.
    pub ciphertexts: Vec<Ciphertext>,
    /// All of plugins.
    pub sealed: Vec<PluginCiphertext>,
    /// Small files, by their paths.
    pub files: BTreeMap<&'static str, Vec<u8>>,
    /// The request nonces of acknowledged commands.
    pub nonces: Vec<(String, Timestamp)>,
    epochs: HashMap<Epoch, (KeyId, KeyVersionId)>,
    versions: HashMap<KeyVersionId, Epoch>,
    /// Counts what may change the answer to a command under way.
    stirs: u64,
    settled: usize,
}

impl Model {
    /// Whether the command can be issued without two open changes of one thing.
    pub fn may(&self, op: &Op) -> bool {
        if op.alias().is_some_and(|alias| self.busy.contains_key(alias)) {
            return false;
        }
        match op {
            Op::Mutate { key, by } => {
                self.keys.get(key).is_some_and(|key| !key.open.contains_key(&Register::of(by)))
            }
            Op::AddCluster { .. } => self.cluster.is_none() && self.adding.is_none(),
            _ => true,
        }
    }

    /// A command is given to the engine.
    #[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
    pub fn issue(
        &mut self,
        op: Op,
        request: String,
        now: Timestamp,
        nonce: Option<String>,
    ) -> usize {
        let number = self.issued.len();
        let expected = self.expected(&op, now).map(|expected| (expected, 0));
        match &op {
            Op::Mutate { key, by } => {
                if let Some(key) = self.keys.get_mut(key) {
                    key.open.insert(Register::of(by), number);
                }
            }
            Op::AddCluster { .. } => self.adding = Some(number),
            _ => {}
        }
        if let Some(alias) = op.alias() {
            self.busy.insert(alias.clone(), number);
        }
        self.stirs += u64::from(op.changes());
        let expected = expected.map(|(expected, _)| (expected, self.stirs));
        let fate = Fate::Flying;
        self.issued.push(Issued { request, op, fate, at: now, expected, nonce, made: None });
        number
    }

    /// Nobody will hear of what is under way.
    pub fn abandon(&mut self) {
        for issued in &mut self.issued[self.settled..] {
            if issued.fate == Fate::Flying {
                issued.fate = Fate::Unknown;
            }
        }
    }

    /// Nobody will hear of this one.
    pub fn hang_up(&mut self, number: usize) {
        self.issued[number].fate = Fate::Unknown;
    }

    /// The engine answered. `troubled` while something fails on purpose.
    ///
    /// # Errors
    /// The answer is wrong.
    pub fn answer(
        &mut self,
        number: usize,
        answer: Result<Answer, Error>,
        troubled: bool,
    ) -> Result<(), String> {
        let issued = &self.issued[number];
        let expected = issued.expected.filter(|(_, stirs)| *stirs == self.stirs);
        let told = answer.as_ref().map(|_| ()).map_err(Error::code);
        let refused_for_now = answer.as_ref().is_err_and(|error| {
            matches!(error.kind(), ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Internal)
        });
        if let Some((expected, _)) = expected
            && expected != told
            && !refused_for_now
        {
            return Err(format!("{:?} was answered {told:?}, not {expected:?}", issued.op));
        }
        match answer {
            Ok(answer) => self.acknowledge(number, answer),
            Err(error) => self.refuse(number, &error, troubled),
        }
    }

    fn refuse(&mut self, number: usize, error: &Error, troubled: bool) -> Result<(), String> {
        let op = self.issued[number].op.clone();
        let fate = match (error.kind(), error) {
            (ErrorKind::Internal, _) => return Err(format!("{op:?} failed: {error}")),
            (ErrorKind::Busy, _) => Fate::Unknown,
            (ErrorKind::Unavailable, _) if !troubled => {
                return Err(format!("{op:?} was refused for no reason: {error}"));
            }
            (_, Error::StorageFull) => Fate::NotMade,
            (ErrorKind::Unavailable, _) => Fate::Unknown,
            (_, Error::InvalidCiphertext) if !self.may_be_gone(&op) => {
                return Err(format!("{op:?}: an acknowledged ciphertext does not open"));
            }
            _ => Fate::Refused(error.code()),
        };
        self.issued[number].fate = fate;
        if fate != Fate::Unknown {
            self.close(number);
        }
        Ok(())
    }

    /// Whether the key that made this ciphertext may have been destroyed.
    fn may_be_gone(&self, op: &Op) -> bool {
        let key = match op {
            Op::Decrypt { number, .. } | Op::ReEncrypt { number, .. } => {
                self.ciphertexts[*number].key
            }
            Op::PluginDecrypt { number, .. } => self.sealed[*number].key,
            _ => return true,
        };
        self.keys.get(&key).is_none_or(|key| key.snap.due.is_some())
    }

    /// The command changes nothing any more.
    fn close(&mut self, number: usize) {
        let op = self.issued[number].op.clone();
        if let Op::Mutate { key, by } = &op
            && let Some(key) = self.keys.get_mut(key)
        {
            key.open.remove(&Register::of(by));
        }
        if let Some(alias) = op.alias() {
            self.busy.remove(alias);
        }
        if self.adding == Some(number) {
            self.adding = None;
        }
        self.stirs += u64::from(op.changes());
    }

    fn acknowledge(&mut self, number: usize, answer: Answer) -> Result<(), String> {
        let issued = &mut self.issued[number];
        issued.fate = Fate::Acknowledged;
        let (op, at) = (issued.op.clone(), issued.at);
        if let Some(nonce) = issued.nonce.take() {
            self.nonces.push((nonce, at));
        }
        self.close(number);
        match (op, answer) {
            (Op::Create { description, alias, tags }, Answer::Key(key)) => {
                if key.description != description || key.tags != tags {
                    return Err(format!("another key was made than was asked for: {key:?}"));
                }
                self.adopt(&key)?;
                if let Some(alias) = alias {
                    self.aliases.insert(alias, key.id);
                }
            }
            (Op::Mutate { key, by: Mutation::Rotate }, Answer::Version(version)) => {
                self.saw(key, version);
            }
            (Op::Mutate { key, by }, Answer::Done) => {
                if let Some(key) = self.keys.get_mut(&key) {
                    key.snap = key.snap.after(&by, at);
                }
            }
            (Op::CreateAlias { name, key } | Op::UpdateAlias { name, key }, Answer::Done) => {
                self.aliases.insert(name, key);
            }
            (Op::DeleteAlias { name }, Answer::Done) => drop(self.aliases.remove(&name)),
            (Op::AddCluster { keys, fingerprint, .. }, Answer::Clusters(ids)) => {
                let id = *ids.first().ok_or("a cluster without an id")?;
                self.cluster = Some(ClusterModel { id, keys, fingerprint });
            }
            (op, answer) => self.acknowledge_use(op, answer)?,
        }
        Ok(())
    }

    fn acknowledge_use(&mut self, op: Op, answer: Answer) -> Result<(), String> {
        match (op, answer) {
            (Op::Encrypt { plaintext, context, .. }, Answer::Sealed(sealed, _)) => {
                self.saw(sealed.key_id, sealed.key_version);
                let (key, blob) = (sealed.key_id, sealed.blob);
                let plaintext = Some(plaintext);
                self.ciphertexts.push(Ciphertext { key, blob, context, plaintext });
            }
            (Op::DataKey { context, .. }, Answer::Sealed(sealed, shown)) => {
                self.saw(sealed.key_id, sealed.key_version);
                let (key, blob) = (sealed.key_id, sealed.blob);
                let plaintext = shown.map(|shown| shown.expose().to_vec());
                self.ciphertexts.push(Ciphertext { key, blob, context, plaintext });
            }
            (Op::ReEncrypt { number, context, .. }, Answer::Sealed(sealed, _)) => {
                self.saw(sealed.key_id, sealed.key_version);
                let (key, blob) = (sealed.key_id, sealed.blob);
                let plaintext = self.ciphertexts[number].plaintext.clone();
                self.ciphertexts.push(Ciphertext { key, blob, context, plaintext });
            }
            (Op::Decrypt { number, .. }, Answer::Opened(found)) => {
                let found = found.expose().to_vec();
                let known = self.ciphertexts[number].plaintext.get_or_insert_with(|| found.clone());
                if *known != found {
                    return Err("a ciphertext opens as something else".into());
                }
            }
            (Op::PluginEncrypt { cluster, key, plaintext }, Answer::PluginSealed(sealed)) => {
                self.saw(key, sealed.key.key_version);
                self.note_epoch(key, sealed.key.key_version, sealed.key.epoch)?;
                self.sealed.push(PluginCiphertext { key, cluster, sealed, plaintext });
            }
            (Op::PluginDecrypt { number, .. }, Answer::Opened(found))
                if self.sealed[number].plaintext != found.expose() =>
            {
                return Err("a plugin's ciphertext opens as something else".into());
            }
            (Op::PluginStatus { key, .. }, Answer::Plugin(state)) => {
                self.saw(key, state.key_version);
                self.note_epoch(key, state.key_version, state.epoch)?;
            }
            (Op::Describe { .. }, Answer::Key(key)) => {
                key.versions.iter().for_each(|version| self.saw(key.id, *version));
                self.note_epoch(key.id, key.primary.version, key.primary.epoch)?;
            }
            (Op::Verify, Answer::Verified(found)) if !found.ok => {
                return Err(format!("the audit chain does not verify: {:?}", found.problems));
            }
            _ => {}
        }
        Ok(())
    }

    /// Takes a key for certain.
    fn adopt(&mut self, key: &Key) -> Result<(), String> {
        self.note_epoch(key.id, key.primary.version, key.primary.epoch)?;
        let model = KeyModel {
            snap: Snap::of(key),
            versions: key.versions.iter().copied().collect(),
            open: BTreeMap::new(),
        };
        if self.keys.insert(key.id, model).is_some() {
            return Err(format!("the key id {} came twice", key.id));
        }
        Ok(())
    }

    /// An acknowledged answer named this version: it must stay.
    fn saw(&mut self, key: KeyId, version: KeyVersionId) {
        if let Some(key) = self.keys.get_mut(&key) {
            key.versions.insert(version);
        }
    }

    /// A version has one epoch, and an epoch one version, for ever.
    fn note_epoch(
        &mut self,
        key: KeyId,
        version: KeyVersionId,
        epoch: Epoch,
    ) -> Result<(), String> {
        let known = *self.epochs.entry(epoch).or_insert((key, version));
        let before = *self.versions.entry(version).or_insert(epoch);
        if known != (key, version) || before != epoch {
            return Err(format!("the epoch of version {version} of {key} came twice or changed"));
        }
        Ok(())
    }

    /// What the command must be answered with, as far as that is certain.
    fn expected(&self, op: &Op, now: Timestamp) -> Option<Result<(), &'static str>> {
        let alias_is_free = |name: &AliasName| !self.busy.contains_key(name);
        let key = |id: &KeyId| {
            let key = self.keys.get(id)?;
            let calm = key.open.is_empty() && key.snap.due.is_none_or(|due| due > now);
            calm.then_some(&key.snap)
        };
        match op {
            Op::Create { alias: Some(name), .. } if self.aliases.contains_key(name) => {
                Some(Err("AliasAlreadyExists"))
            }
            Op::Create { .. } | Op::Keys { .. } | Op::Aliases { .. } | Op::Verify => Some(Ok(())),
            Op::Mutate { key: id, by } => {
                let told = key(id)?.judge(by);
                let ends = matches!(by, Mutation::Disable | Mutation::Schedule(_));
                (told.is_err() || !ends || !self.may_be_granted(id)).then_some(told)
            }
            Op::CreateAlias { name, key: id } => Some(key(id)?.named().and_then(|()| {
                if self.aliases.contains_key(name) { Err("AliasAlreadyExists") } else { Ok(()) }
            })),
            Op::UpdateAlias { name, key: id } => {
                let told = key(id)?.named().and_then(|()| self.is_alias(name));
                (told.is_err() || !self.may_be_reached_by(name)).then_some(told)
            }
            Op::DeleteAlias { name } => {
                (!self.may_be_reached_by(name)).then(|| self.is_alias(name))
            }
            Op::Encrypt { key: KeyRef::Id(id), .. } | Op::DataKey { key: KeyRef::Id(id), .. } => {
                Some(key(id)?.usable())
            }
            Op::Encrypt { key: KeyRef::Alias(name), .. }
            | Op::DataKey { key: KeyRef::Alias(name), .. }
                if alias_is_free(name) =>
            {
                match self.aliases.get(name) {
                    Some(id) => Some(key(id)?.usable()),
                    None => Some(Err("Forbidden.AliasNotFound")),
                }
            }
            Op::Decrypt { number, .. } => match self.ciphertexts[*number].key {
                gone if self.gone.contains(&gone) => Some(Err("InvalidParameter")),
                id => Some(key(&id)?.usable()),
            },
            Op::Describe { key: id } => key(id).map(|_| Ok(())),
            Op::PluginEncrypt { key: id, .. } | Op::PluginDecrypt { key: id, .. } => {
                Some(key(id)?.usable())
            }
            _ => None,
        }
    }

    /// Whether a plugin may reach its key by this name: then the guard may refuse to take it away.
    fn may_be_reached_by(&self, name: &AliasName) -> bool {
        self.aliases.get(name).is_some_and(|key| self.may_be_granted(key))
    }

    /// Whether a plugin may have used the key: then the guard may refuse to take it away.
    fn may_be_granted(&self, key: &KeyId) -> bool {
        self.adding.is_some() || self.cluster.as_ref().is_some_and(|it| it.keys.contains(key))
    }

    fn is_alias(&self, name: &AliasName) -> Result<(), &'static str> {
        if self.aliases.contains_key(name) { Ok(()) } else { Err("Forbidden.AliasNotFound") }
    }
}
