//! A change: what must hold, and what to write then.

use std::collections::HashSet;

use crate::{CommitError, Revision};

/// A condition on one path.
#[derive(Clone, PartialEq, Eq)]
pub enum Compare {
    /// Nothing is stored at the path.
    Absent(String),
    /// The path holds an entry last changed at this revision.
    Revision(String, Revision),
    /// The path holds an entry, whatever its revision.
    Exists(String),
    /// The path holds exactly this value, whatever its revision. Because transactions are judged
    /// in order, one may expect a value that an earlier one, not answered yet, will write.
    Value(String, Vec<u8>),
}

impl Compare {
    /// The path it speaks of.
    pub fn path(&self) -> &str {
        match self {
            Self::Absent(path)
            | Self::Revision(path, _)
            | Self::Exists(path)
            | Self::Value(path, _) => path,
        }
    }

    /// Whether it holds where `found` is what is stored at the path.
    pub(crate) fn holds(&self, found: Option<(Revision, &[u8])>) -> bool {
        match self {
            Self::Absent(_) => found.is_none(),
            Self::Revision(_, expected) => found.is_some_and(|found| found.0 == *expected),
            Self::Exists(_) => found.is_some(),
            Self::Value(_, expected) => found.is_some_and(|found| found.1 == expected),
        }
    }

    fn bytes(&self) -> usize {
        let value = if let Self::Value(_, value) = self { value.len() } else { 0 };
        self.path().len() + value
    }
}

/// Shows a value's length only: values are none of a log's business.
impl std::fmt::Debug for Compare {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent(path) => write!(f, "Absent({path:?})"),
            Self::Revision(path, revision) => write!(f, "Revision({path:?}, {revision})"),
            Self::Exists(path) => write!(f, "Exists({path:?})"),
            Self::Value(path, value) => write!(f, "Value({path:?}, {} bytes)", value.len()),
        }
    }
}

/// A write to one path.
#[derive(Clone, PartialEq, Eq)]
pub enum Operation {
    /// Stores the value, replacing an older one.
    Put {
        /// Where.
        path: String,
        /// What.
        value: Vec<u8>,
    },
    /// Removes the entry; of an absent path, does nothing.
    Delete {
        /// Where.
        path: String,
    },
}

/// Shows the value's length only: values are none of a log's business.
impl std::fmt::Debug for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Put { path, value } => write!(f, "Put({path:?}, {} bytes)", value.len()),
            Self::Delete { path } => write!(f, "Delete({path:?})"),
        }
    }
}

impl Operation {
    /// The path it changes.
    pub fn path(&self) -> &str {
        match self {
            Self::Put { path, .. } | Self::Delete { path } => path,
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Put { path, value } => path.len() + value.len(),
            Self::Delete { path } => path.len(),
        }
    }
}

/// Compares and operations that are judged and done at one moment.
///
/// All compares look at the state before the transaction. A path may be changed once only (etcd
/// knows no order inside a transaction).
///
/// ```
/// # use lastkey_store::{Revision, Transaction};
/// let change = Transaction::new()
///     .expect_revision("keys/1", Revision(7))
///     .put("keys/1", b"new".as_slice())
///     .expect_absent("aliases/a")
///     .put("aliases/a", b"1".as_slice());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Transaction {
    compares: Vec<Compare>,
    operations: Vec<Operation>,
}

impl Transaction {
    /// The most operations in one transaction (etcd's default).
    pub const MAX_OPERATIONS: usize = 128;
    /// The most compares in one transaction, counted apart from the operations.
    pub const MAX_COMPARES: usize = 128;
    /// The longest path.
    pub const MAX_PATH_BYTES: usize = 1024;
    /// The most bytes of paths and values together (etcd takes requests up to 1.5 MiB).
    pub const MAX_BYTES: usize = 1 << 20;

    /// Neither compares nor operations.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requires that nothing is stored at `path`.
    pub fn expect_absent(mut self, path: impl Into<String>) -> Self {
        self.compares.push(Compare::Absent(path.into()));
        self
    }

    /// Requires that `path` was last changed at `revision`.
    pub fn expect_revision(mut self, path: impl Into<String>, revision: Revision) -> Self {
        self.compares.push(Compare::Revision(path.into(), revision));
        self
    }

    /// Requires that something is stored at `path`.
    pub fn expect_exists(mut self, path: impl Into<String>) -> Self {
        self.compares.push(Compare::Exists(path.into()));
        self
    }

    /// Requires that exactly `value` is stored at `path`.
    pub fn expect_value(mut self, path: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.compares.push(Compare::Value(path.into(), value.into()));
        self
    }

    /// Stores `value` at `path`.
    pub fn put(mut self, path: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.operations.push(Operation::Put { path: path.into(), value: value.into() });
        self
    }

    /// Removes what is stored at `path`, if anything is.
    pub fn delete(mut self, path: impl Into<String>) -> Self {
        self.operations.push(Operation::Delete { path: path.into() });
        self
    }

    /// Both transactions as one.
    pub fn merge(mut self, other: Self) -> Self {
        self.compares.extend(other.compares);
        self.operations.extend(other.operations);
        self
    }

    /// What must hold.
    pub fn compares(&self) -> &[Compare] {
        &self.compares
    }

    /// What will be written.
    pub fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Whether there is neither a compare nor an operation.
    pub fn is_empty(&self) -> bool {
        self.compares.is_empty() && self.operations.is_empty()
    }

    pub(crate) fn into_operations(self) -> Vec<Operation> {
        self.operations
    }

    /// Bytes of all paths and values.
    pub(crate) fn bytes(&self) -> usize {
        self.compares.iter().map(Compare::bytes).sum::<usize>()
            + self.operations.iter().map(Operation::bytes).sum::<usize>()
    }

    /// Checks what every store can check without looking at its content.
    pub(crate) fn validate(&self) -> Result<(), CommitError> {
        at_most("operations", self.operations.len(), Self::MAX_OPERATIONS)?;
        at_most("compares", self.compares.len(), Self::MAX_COMPARES)?;
        at_most("bytes", self.bytes(), Self::MAX_BYTES)?;
        for path in self.compares.iter().map(Compare::path) {
            validate_path(path)?;
        }
        let mut changed = HashSet::with_capacity(self.operations.len());
        for path in self.operations.iter().map(Operation::path) {
            validate_path(path)?;
            if !changed.insert(path) {
                return Err(malformed("a path is changed twice", path));
            }
        }
        Ok(())
    }
}

fn validate_path(path: &str) -> Result<(), CommitError> {
    at_most("bytes in a path", path.len(), Transaction::MAX_PATH_BYTES)?;
    if path.is_empty() { Err(malformed("a path is empty", path)) } else { Ok(()) }
}

fn at_most(what: &'static str, size: usize, limit: usize) -> Result<(), CommitError> {
    if size > limit { Err(CommitError::TooLarge { what, size, limit }) } else { Ok(()) }
}

fn malformed(what: &'static str, path: &str) -> CommitError {
    CommitError::Malformed { what, path: path.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_inclusive() {
        let mut change = Transaction::new();
        for i in 0..128 {
            change = change.expect_absent(format!("c{i}")).put(format!("p{i}"), vec![0; 8]);
        }
        assert!(change.validate().is_ok());
        let operations = change.clone().delete("one more").validate();
        assert!(matches!(operations, Err(CommitError::TooLarge { what: "operations", .. })));
        let compares = change.expect_exists("one more").validate();
        assert!(matches!(compares, Err(CommitError::TooLarge { what: "compares", .. })));
    }

    #[test]
    fn bytes_and_paths_are_bounded() {
        let fits = Transaction::new().put("p", vec![0; Transaction::MAX_BYTES - 1]);
        assert!(fits.validate().is_ok());
        let over = Transaction::new().put("p", vec![0; Transaction::MAX_BYTES]);
        assert!(matches!(over.validate(), Err(CommitError::TooLarge { what: "bytes", .. })));
        // What is compared counts like what is written, with its path.
        let compared = |bytes| Transaction::new().expect_value("p", vec![0; bytes]).validate();
        assert!(compared(Transaction::MAX_BYTES - 1).is_ok());
        assert!(matches!(
            compared(Transaction::MAX_BYTES),
            Err(CommitError::TooLarge { what: "bytes", .. })
        ));
        let path = "x".repeat(Transaction::MAX_PATH_BYTES + 1);
        assert!(Transaction::new().expect_absent(path).validate().is_err());
        assert!(Transaction::new().delete("").validate().is_err());
    }

    #[test]
    fn two_become_one_in_their_order() {
        let one = Transaction::new().expect_absent("a").put("a", "1");
        let both = one.merge(Transaction::new().expect_exists("b").delete("b"));
        let compared: Vec<&str> = both.compares().iter().map(Compare::path).collect();
        assert_eq!(compared, ["a", "b"]);
        assert_eq!(both.operations().len(), 2);
        assert!(matches!(&both.operations()[1], Operation::Delete { path } if path == "b"));
    }

    #[test]
    fn one_that_compares_or_changes_is_not_empty() {
        assert!(Transaction::new().is_empty());
        assert!(!Transaction::new().expect_absent("p").is_empty());
        assert!(!Transaction::new().delete("p").is_empty());
    }

    #[test]
    fn a_path_is_changed_once() {
        let twice = Transaction::new().put("p", vec![1]).delete("p").validate();
        assert!(matches!(twice, Err(CommitError::Malformed { path, .. }) if path == "p"));
    }

    #[test]
    fn debug_shows_no_value() {
        let change = Transaction::new().put("p", b"secret".as_slice());
        let shown = format!("{:?}", change.expect_value("q", b"secret".as_slice()));
        assert!(!shown.contains("115"), "{shown}");
        assert!(shown.contains("6 bytes"), "{shown}");
    }
}
