//! The domain of Lastkey: keys, identity, policy, audit, rotation. No HTTP, no Kubernetes.
//!
//! A front end proves who calls, makes a [`Caller`], and gives one [`Command`] to
//! [`Engine::execute`], the only door: it authorises, validates, acts, audits and answers, in that
//! order, for every command alike. The engine takes its store, seal, clock, entropy and audit log
//! as values ([`Parts`]).
//!
//! It trusts the seal to give the right root key, and the store and the log's files to keep what
//! they acknowledged. It promises that an answered change is durable and audited, that every
//! stored record is authentic or refused, and that nobody without a rule that allows it gets in.

mod action;
mod anchor;
pub mod audit;
mod barrier;
mod caller;
mod cluster;
pub mod command;
mod dependants;
mod due;
mod engine;
mod error;
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod golden;
mod heads;
mod holders;
mod identity;
mod instance;
mod jobs;
mod key;
mod key_index;
mod last_use;
mod node;
mod nonce;
mod opening;
mod outbox;
mod policy;
mod records;
mod retention;
mod retirement;
mod rotation_index;
mod seal;
mod second_person;
mod time;
mod time_guard;
mod uses;

pub use action::Action;
pub use anchor::{Anchor, FileAnchor, MemoryAnchor, NoAnchor};
pub use caller::{Caller, NoncePrint, Principal, RequestId, Source};
pub use cluster::{
    Automatic, Cluster, ClusterName, Identities, LateIdentity, NextIdentity, OtherIdentity,
    PluginIdentity,
};
pub use command::Command;
pub use dependants::{CLUSTER_KIND, Dependant, Label};
pub use engine::{Engine, Incarnation, OpenAudit, Parts, StartError};
pub use error::{Error, ErrorKind};
pub use holders::{Taken, Unconfirmed};
pub use identity::AccessKey;
pub use instance::{
    Attendant, GIVEN_UP, Instance, InstanceStatus, Life, LifeEvent, NewShares, OperatorError,
    Order, Outcome, With,
};
pub use jobs::{
    Course, LEASE, Lease, Phase, Problem, Progress, ReportError, Rotation, Way, verify_report,
};
pub use key::{
    AliasName, Key, KeyEvent, KeyRef, KeySpec, KeyState, KeyUsage, KeyVersion, Listing, Origin,
    Page, Primary, ProtectionLevel, RotationPolicy,
};
pub use last_use::LastUse;
pub use node::{
    Approval, Fingerprint, LIVES, NODE_LIFE, Node, NodeName, NodeRequest, NodeRoot, NodeState,
    PLUGIN_LIFE,
};
pub use nonce::{NonceRefusal, SKEW};
pub use policy::{BuiltinPolicy, Policy, Resource};
pub use retirement::{Retirement, VersionEvent, VersionState};
pub use rotation_index::{RotationGauge, RotationWork};
pub use seal::{
    FileSeal, ROOT_KEY_BYTES, RootPrint, Seal, SealEntry, SealError, SealKind, SealRecord,
    SealSummary, Seals, ShareRefused, Threshold, TokenConfig, TokenEntry, TokenSeal,
};
pub use second_person::{OverrideRequest, Proposed, SecondPerson};
pub use time::{Clock, InvalidTimestamp, ManualClock, SystemClock, Timestamp};
