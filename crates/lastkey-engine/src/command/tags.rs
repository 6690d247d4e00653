//! Tags: labels on keys.

use std::collections::{BTreeMap, BTreeSet};

use lastkey_crypto::KeyId;

use lastkey_store::Transaction;

use super::{Command, Done, Scope, keys::change_key};
use crate::{
    Error,
    action::Action,
    audit::Record,
    engine::Core,
    key::{Key, KeyRef, KeyState, MAX_TAGS, check_tag},
    policy::Resource,
    records::Change,
};

/// One command changes the tags of at most this many keys.
pub const MAX_RESOURCES: usize = 50;
/// The records of all keys that one command changes have at most this many bytes; the rest of a
/// transaction is for their paths, their authentication, and the audit record.
const MAX_BYTES: usize = Transaction::MAX_BYTES - (128 << 10);

/// Adds tags to a key, or gives them new values.
#[derive(Clone, Debug)]
pub struct TagResource {
    /// Which key.
    pub key: KeyRef,
    /// The tags.
    pub tags: BTreeMap<String, String>,
}

impl Command for TagResource {
    const ACTION: Action = Action::TagResource;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    fn validate(&self) -> Result<(), Error> {
        check_tags(&self.tags)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        change_key(core, scope, &self.key, |key| tag(key, &self.tags)).await
    }
}

/// Adds tags to several keys, or gives them new values: to all of them or to none.
#[derive(Clone, Debug)]
pub struct TagResources {
    /// Which keys.
    pub keys: Vec<KeyRef>,
    /// The tags.
    pub tags: BTreeMap<String, String>,
}

impl Command for TagResources {
    const ACTION: Action = Action::TagResource;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        resource_of(core, record, &self.keys)
    }

    fn validate(&self) -> Result<(), Error> {
        check_keys(&self.keys)?;
        check_tags(&self.tags)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        change_keys(core, scope, &self.keys, |key| tag(key, &self.tags)).await
    }
}

fn check_tags(tags: &BTreeMap<String, String>) -> Result<(), Error> {
    if tags.is_empty() {
        return Err(Error::MissingParameter("Tags"));
    }
    tags.iter().try_for_each(|(key, value)| check_tag(key, value))
}

fn tag(key: &mut Key, tags: &BTreeMap<String, String>) -> Result<(), Error> {
    if key.state == KeyState::PendingDeletion {
        return Err(Error::KeyPendingDeletion);
    }
    key.tags.extend(tags.clone());
    if key.tags.len() > MAX_TAGS {
        return Err(Error::LimitExceeded { what: "tags", limit: MAX_TAGS });
    }
    Ok(())
}

/// Which tags to remove.
#[derive(Clone, Debug)]
pub enum UntagWhich {
    /// Those of these names.
    Names(Vec<String>),
    /// All of them.
    All,
}

/// Removes tags from a key; names it does not have are no error.
#[derive(Clone, Debug)]
pub struct UntagResource {
    /// Which key.
    pub key: KeyRef,
    /// Which tags.
    pub which: UntagWhich,
}

impl Command for UntagResource {
    const ACTION: Action = Action::UntagResource;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    fn validate(&self) -> Result<(), Error> {
        self.which.check()
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        change_key(core, scope, &self.key, |key| self.which.untag(key)).await
    }
}

/// Removes tags from several keys, from all of them or from none; names that one does not have are
/// no error.
#[derive(Clone, Debug)]
pub struct UntagResources {
    /// Which keys.
    pub keys: Vec<KeyRef>,
    /// Which tags.
    pub which: UntagWhich,
}

impl Command for UntagResources {
    const ACTION: Action = Action::UntagResource;
    type Output = ();

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        resource_of(core, record, &self.keys)
    }

    fn validate(&self) -> Result<(), Error> {
        check_keys(&self.keys)?;
        self.which.check()
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        change_keys(core, scope, &self.keys, |key| self.which.untag(key)).await
    }
}

impl UntagWhich {
    fn check(&self) -> Result<(), Error> {
        match self {
            Self::Names(names) if names.is_empty() => Err(Error::MissingParameter("TagKeys")),
            Self::Names(_) | Self::All => Ok(()),
        }
    }

    fn untag(&self, key: &mut Key) -> Result<(), Error> {
        match self {
            Self::Names(names) => {
                for name in names {
                    key.tags.remove(name);
                }
            }
            Self::All => key.tags.clear(),
        }
        Ok(())
    }
}

/// One key is decided on as by the command for one; several ask for the right to them all.
fn resource_of(core: &Core, record: &mut Record, keys: &[KeyRef]) -> Resource {
    match keys {
        [key] => core.key_resource(key, record),
        _ => Resource::Service,
    }
}

fn check_keys(keys: &[KeyRef]) -> Result<(), Error> {
    match keys.len() {
        0 => Err(Error::MissingParameter("ResourceId")),
        1..=MAX_RESOURCES => Ok(()),
        _ => Err(Error::LimitExceeded { what: "resources", limit: MAX_RESOURCES }),
    }
}

/// Changes the records of several keys in one transaction. The audit record names them all, done or
/// refused, and as its target the one for which it was refused.
async fn change_keys(
    core: &Core,
    scope: &mut Scope<'_>,
    keys: &[KeyRef],
    change: impl Fn(&mut Key) -> Result<(), Error>,
) -> Result<Done<()>, Error> {
    if let [key] = keys {
        return change_key(core, scope, key, change).await;
    }
    let named: BTreeSet<KeyId> = keys.iter().filter_map(|key| core.resolve(key)).collect();
    scope.record.changed_keys(named.into_iter());
    let mut ids = BTreeSet::new();
    let (mut whole, mut bytes) = (Change::new(), 0);
    for key in keys {
        let changed = async {
            let old = core.records.key(core.require(key)?).await?;
            let mut new = old.value.clone();
            change(&mut new)?;
            Ok((old, new))
        };
        let (old, new) = match changed.await {
            Ok(both) => both,
            Err(error) => {
                core.key_resource(key, scope.record);
                return Err(error);
            }
        };
        // By its id and by an alias it is the same key.
        if !ids.insert(old.value.id) || new == old.value {
            continue;
        }
        bytes += serde_json::to_vec(&new).map_err(|_| Error::Internal)?.len();
        whole = whole.update_key(&old, new);
    }
    if bytes > MAX_BYTES {
        let too_much = "what is stored of these keys is too much for one request; name fewer";
        return Err(Error::invalid("ResourceId", too_much));
    }
    if whole.len() == 0 {
        return Ok(Done::read(()));
    }
    Ok(Done::write((), whole))
}

/// Answers with the tags of one key.
#[derive(Clone, Debug)]
pub struct ListResourceTags {
    /// Which key.
    pub key: KeyRef,
}

/// A key and its tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaggedKey {
    /// The key.
    pub key_id: KeyId,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

impl Command for ListResourceTags {
    const ACTION: Action = Action::ListResourceTags;
    type Output = TaggedKey;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        core.key_resource(&self.key, record)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<TaggedKey>, Error> {
        let key = core.records.key(core.require(&self.key)?).await?;
        scope.used(key.value.id, None);
        Ok(Done::read(TaggedKey { key_id: key.value.id, tags: key.value.tags.clone() }))
    }
}

/// At most this many keys are answered at once.
const TAGGED_PAGE: usize = 100;

/// Answers with keys and their tags, by key, by tag, or both.
#[derive(Clone, Debug, Default)]
pub struct ListTagResources {
    /// Only these keys, if any is named.
    pub keys: Vec<KeyRef>,
    /// Only keys that have each of these tags, with this value where one is given.
    pub tags: Vec<(String, Option<String>)>,
    /// Go on after this key.
    pub after: Option<KeyId>,
}

impl Command for ListTagResources {
    const ACTION: Action = Action::ListTagResources;
    /// The keys, and where to go on.
    type Output = (Vec<TaggedKey>, Option<KeyId>);

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Self::Output>, Error> {
        let ids: Vec<KeyId> = if self.keys.is_empty() {
            core.records.with_key_ids(|ids| ids.iter().copied().collect())
        } else {
            let mut ids: Vec<KeyId> =
                self.keys.iter().map(|key| core.require(key)).collect::<Result<_, _>>()?;
            ids.sort_unstable();
            ids.dedup();
            ids
        };
        let mut found: Vec<TaggedKey> = Vec::new();
        for id in ids.into_iter().filter(|id| self.after.is_none_or(|after| *id > after)) {
            let key = match core.records.key(id).await {
                Err(Error::KeyNotFound) => continue,
                other => other?,
            };
            let tags = &key.value.tags;
            let matches = self.tags.iter().all(|(name, value)| {
                tags.get(name).is_some_and(|found| value.as_ref().is_none_or(|v| v == found))
            });
            if tags.is_empty() || !matches {
                continue;
            }
            if found.len() == TAGGED_PAGE {
                let next = found.last().map(|last| last.key_id);
                return Ok(Done::read((found, next)));
            }
            found.push(TaggedKey { key_id: id, tags: tags.clone() });
        }
        Ok(Done::read((found, None)))
    }
}
