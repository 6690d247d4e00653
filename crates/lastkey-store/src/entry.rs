//! What the store holds.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The number of a change to the store; each transaction that changes something gets the next.
///
/// An empty store is at revision 0, so no entry ever has that revision.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    pub(crate) fn next(self) -> Self {
        // 2^64 commits at a million a second last for half a million years.
        Self(self.0 + 1)
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A path, its value, and the revision that wrote it last (etcd's `mod_revision`).
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where the value lies.
    pub path: String,
    /// The value, opaque to the store.
    pub value: Vec<u8>,
    /// The revision of the last change to this path.
    pub revision: Revision,
}

/// Shows the value's length only: values are none of a log's business.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("path", &self.path)
            .field("value_bytes", &self.value.len())
            .field("revision", &self.revision)
            .finish()
    }
}
