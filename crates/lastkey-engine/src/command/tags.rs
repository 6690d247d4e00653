//! Tags: labels on keys.

use std::collections::BTreeMap;

use lastkey_crypto::KeyId;

use super::{Command, Done, Scope, keys::change_key};
use crate::{
    Error,
    action::Action,
    audit::Record,
    engine::Core,
    key::{KeyRef, KeyState, MAX_TAGS, check_tag},
    policy::Resource,
};

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
        if self.tags.is_empty() {
            return Err(Error::MissingParameter("Tags"));
        }
        self.tags.iter().try_for_each(|(key, value)| check_tag(key, value))
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        change_key(core, scope, &self.key, |key| {
            if key.state == KeyState::PendingDeletion {
                return Err(Error::KeyPendingDeletion);
            }
            key.tags.extend(self.tags.clone());
            if key.tags.len() > MAX_TAGS {
                return Err(Error::LimitExceeded { what: "tags", limit: MAX_TAGS });
            }
            Ok(())
        })
        .await
    }
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
        match &self.which {
            UntagWhich::Names(names) if names.is_empty() => Err(Error::MissingParameter("TagKeys")),
            UntagWhich::Names(_) | UntagWhich::All => Ok(()),
        }
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<()>, Error> {
        change_key(core, scope, &self.key, |key| {
            match &self.which {
                UntagWhich::Names(names) => {
                    for name in names {
                        key.tags.remove(name);
                    }
                }
                UntagWhich::All => key.tags.clear(),
            }
            Ok(())
        })
        .await
    }
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
