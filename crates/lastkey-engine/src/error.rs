//! Why a command was refused, in terms that every front end maps to its own wire.

use lastkey_store::{CommitError, StoreError};

use crate::{Dependant, Life, Unconfirmed};

/// What kind of refusal an [`Error`] is; front ends and the CLI map this to statuses and exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong.
    Invalid,
    /// Something it names does not exist.
    NotFound,
    /// The caller may not.
    Denied,
    /// The state of the thing does not allow it.
    Conflict,
    /// Something depends on it.
    Dependency,
    /// Too much at once; try again later.
    Busy,
    /// The service cannot work at the moment.
    Unavailable,
    /// A fault of ours.
    Internal,
}

/// A refused or failed command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No rule allows it. Says nothing about whether the thing exists.
    #[error("you are not allowed to do this")]
    Denied,
    /// The node was turned out.
    #[error("the node was revoked; `lastkey cluster node approve NAME` lets it in again")]
    NodeRevoked,
    /// No such key.
    #[error("the key does not exist; `lastkey key list` shows which do")]
    KeyNotFound,
    /// No such version of that key.
    #[error("the key version does not exist")]
    KeyVersionNotFound,
    /// No such alias.
    #[error("the alias does not exist; `lastkey key list` shows which do")]
    AliasNotFound,
    /// Another named thing does not exist.
    #[error("the {0} does not exist")]
    NotFound(&'static str),
    /// The alias is taken.
    #[error("the alias exists already; update it, or delete it first")]
    AliasExists,
    /// Another named thing exists already.
    #[error("a {0} of that name exists already")]
    Exists(&'static str),
    /// The key is disabled.
    #[error("the key is disabled; enable it to use it")]
    KeyDisabled,
    /// The key waits for its deletion.
    #[error("the key is pending deletion; cancel the deletion to use it")]
    KeyPendingDeletion,
    /// The key's state does not allow the change.
    #[error("the key's state ({state}) does not allow this")]
    StateConflict {
        /// The state it is in.
        state: &'static str,
    },
    /// The version was retired.
    #[error(
        "the key version is retired and decrypts no more; `lastkey key versions reinstate` takes \
         that back until it is destroyed"
    )]
    KeyVersionRetired,
    /// The version is the one that encrypts.
    #[error("the version is the one that the key encrypts with; rotate the key first")]
    PrimaryVersion,
    /// Somebody else has to agree first.
    #[error(
        "a second person has to confirm this until {until}: `lastkey key confirm-override {id}`, by \
         another than {by}"
    )]
    AwaitsSecondPerson {
        /// The request's id.
        id: String,
        /// Who asked for it.
        by: String,
        /// Until when it can be confirmed.
        until: crate::Timestamp,
    },
    /// One person cannot be two.
    #[error("{by} has asked for this: another person has to confirm it")]
    SamePerson {
        /// Who asked for it.
        by: String,
    },
    /// Deletion protection is on.
    #[error("the key has deletion protection; switch it off first")]
    DeletionProtected,
    /// Something still needs the key.
    #[error("{}", depended_advice(.0))]
    Depended(Vec<Dependant>),
    /// KMS plugins reach their key by this name.
    #[error("{}", in_use_advice(.0))]
    AliasInUse(Vec<Unconfirmed>),
    /// Somebody else works on it.
    #[error("{by} works on it until {until}")]
    Claimed {
        /// What they call themselves.
        by: String,
        /// When their claim runs out, unless they renew it.
        until: crate::Timestamp,
    },
    /// Something is done with the cluster already.
    #[error(
        "`cluster {0}` of this cluster is under way: the same command goes on with it, with \
         --cancel it is given up"
    )]
    UnderWay(&'static str),
    /// A parameter is missing.
    #[error("the parameter {0} is missing")]
    MissingParameter(&'static str),
    /// A parameter's value is not allowed.
    #[error("the parameter {name} is not valid: {reason}")]
    InvalidParameter {
        /// The wire's name of the parameter.
        name: &'static str,
        /// What is expected; never the value itself.
        reason: String,
    },
    /// A ciphertext that does not open: forged, damaged, of another context or another cluster.
    #[error(
        "the ciphertext does not open: it is damaged, or its key or encryption context is another"
    )]
    InvalidCiphertext,
    /// A bound on the number of things.
    #[error("the limit of {limit} {what} is reached")]
    LimitExceeded {
        /// What is counted.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// Known, but not for this kind of key or in this release.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// The pinned key version is not the primary one any more.
    #[error("the key was rotated; ask for its status and use the version named there")]
    StaleKeyVersion,
    /// A dry run that would have succeeded.
    #[error("the request would have succeeded, but DryRun is set")]
    DryRun,
    /// Too many callers.
    #[error("too many requests at once; try again in a second")]
    Busy,
    /// Records cannot be written because the disk is full.
    #[error(
        "the disk with the data directory is full, so no request can be recorded; make room, the \
         service recovers by itself"
    )]
    StorageFull,
    /// The service cannot work.
    #[error("the service is unavailable: {0}")]
    Unavailable(String),
    /// The change was made, or may have been: it is not to be repeated without a look.
    #[error("the change may have been made ({0}); look before you repeat it")]
    Uncertain(String),
    /// The server has no root key, or not in memory.
    #[error("{}", sealed_advice(*.0))]
    Sealed(Life),
    /// The store was changed by somebody else while the server ran.
    #[error(
        "the store is not the one that this server has written ({0}); restart it, and see \
         `lastkey operator status`"
    )]
    StoreRolledBack(String),
    /// A stored record did not open: it was changed, swapped or damaged.
    #[error("the stored record {path} is not authentic; restore it from a backup")]
    CorruptRecord {
        /// The record's path.
        path: String,
    },
    /// A fault of ours.
    #[error("internal failure; the server's log has more under the request id")]
    Internal,
}

fn sealed_advice(life: Life) -> &'static str {
    match life {
        Life::Uninitialised => "the server has no root key yet; run `lastkey operator init`",
        Life::Held => {
            "the server does not serve, because its store is older than it should be; \
             `lastkey operator status` says more"
        }
        Life::Sealed | Life::Unsealed => "the server is sealed; run `lastkey operator unseal`",
    }
}

/// So many dependants are named in a sentence.
const NAMED: usize = 10;

fn depended_advice(dependants: &[Dependant]) -> String {
    let named: Vec<String> = dependants.iter().take(NAMED).map(ToString::to_string).collect();
    let more = match dependants.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "the key is still needed by {}{more}; `lastkey key impact` shows what would become \
         unreadable, and who wants it nevertheless names the key once more (--override KEY \
         --reason TEXT)",
        named.join(", ")
    )
}

fn in_use_advice(plugins: &[Unconfirmed]) -> String {
    let named: Vec<String> = (plugins.iter().take(NAMED))
        .map(|one| match &one.cluster_name {
            Some(cluster) => format!("{cluster}/{} (until {})", one.plugin, one.until),
            None => format!("{}/{} (until {})", one.cluster, one.plugin, one.until),
        })
        .collect();
    let more = match plugins.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "KMS plugins reach their key by this alias: {}{more}; give them its id (kms-plugin --key \
         ID) or stop them, and wait until then",
        named.join(", ")
    )
}

impl Error {
    /// An [`Error::InvalidParameter`].
    pub fn invalid(name: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidParameter { name, reason: reason.into() }
    }

    /// The stable code of this error, as audit records and the native wire spell it
    /// (the names are those of the Alibaba KMS API).
    pub fn code(&self) -> &'static str {
        match self {
            Self::Denied => "Forbidden.NoPermission",
            Self::NodeRevoked => "Forbidden.NodeRevoked",
            Self::KeyNotFound => "Forbidden.KeyNotFound",
            Self::KeyVersionNotFound => "Forbidden.KeyVersionNotFound",
            Self::AliasNotFound => "Forbidden.AliasNotFound",
            Self::NotFound(_) => "Forbidden.ResourceNotFound",
            Self::AliasExists => "AliasAlreadyExists",
            Self::Exists(_) => "Rejected.ResourceExist",
            Self::KeyDisabled => "Rejected.Disabled",
            Self::KeyPendingDeletion => "Rejected.PendingDeletion",
            Self::StateConflict { .. } => "Rejected.StateModifiedFailed",
            Self::KeyVersionRetired => "Rejected.KeyVersionRetired",
            Self::PrimaryVersion => "Rejected.PrimaryVersion",
            Self::AwaitsSecondPerson { .. } => "Rejected.AwaitsSecondPerson",
            Self::SamePerson { .. } => "Forbidden.SamePerson",
            Self::DeletionProtected => "Rejected.DeletionProtected",
            Self::Depended(_) | Self::AliasInUse(_) => "Rejected.HasDependants",
            Self::Claimed { .. } => "Rejected.ClaimedByAnother",
            Self::UnderWay(_) => "Rejected.UnderWay",
            Self::MissingParameter(_) => "MissingParameter",
            Self::InvalidParameter { .. } | Self::InvalidCiphertext => "InvalidParameter",
            Self::LimitExceeded { .. } => "Rejected.LimitExceeded",
            Self::Unsupported(_) => "Rejected.UnsupportedOperation",
            Self::StaleKeyVersion => "Rejected.StaleKeyVersion",
            Self::DryRun => "DryRunOperationError",
            Self::Busy => "Rejected.Throttling",
            Self::StorageFull | Self::Unavailable(_) => "ServiceUnavailableTemporary",
            Self::Uncertain(_) => "Unavailable.Uncertain",
            Self::Sealed(_) => "Unavailable.Sealed",
            Self::StoreRolledBack(_) => "Unavailable.StoreRolledBack",
            Self::CorruptRecord { .. } | Self::Internal => "InternalFailure",
        }
    }

    /// The kind of refusal.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Denied | Self::NodeRevoked | Self::SamePerson { .. } => ErrorKind::Denied,
            Self::KeyNotFound
            | Self::KeyVersionNotFound
            | Self::AliasNotFound
            | Self::NotFound(_) => ErrorKind::NotFound,
            Self::AliasExists
            | Self::Exists(_)
            | Self::KeyDisabled
            | Self::KeyPendingDeletion
            | Self::KeyVersionRetired
            | Self::PrimaryVersion
            | Self::StateConflict { .. }
            | Self::Claimed { .. }
            | Self::UnderWay(_)
            | Self::StaleKeyVersion => ErrorKind::Conflict,
            Self::DeletionProtected
            | Self::Depended(_)
            | Self::AliasInUse(_)
            | Self::AwaitsSecondPerson { .. } => ErrorKind::Dependency,
            Self::MissingParameter(_)
            | Self::InvalidParameter { .. }
            | Self::InvalidCiphertext
            | Self::LimitExceeded { .. }
            | Self::Unsupported(_)
            | Self::DryRun => ErrorKind::Invalid,
            Self::Busy => ErrorKind::Busy,
            Self::StorageFull
            | Self::Unavailable(_)
            | Self::Uncertain(_)
            | Self::Sealed(_)
            | Self::StoreRolledBack(_) => ErrorKind::Unavailable,
            Self::CorruptRecord { .. } | Self::Internal => ErrorKind::Internal,
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Unavailable(error.to_string())
    }
}

impl From<CommitError> for Error {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Full => Self::StorageFull,
            CommitError::Busy => Self::Busy,
            other => Self::Unavailable(other.to_string()),
        }
    }
}
