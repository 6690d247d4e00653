//! A cluster as Lastkey reaches it: its apiservers and, where that is allowed, its etcd.
//!
//! [`Access`] is what `lastkey cluster add` registers: addresses, whom to trust, and one credential.
//! [`ApiServer`] lists, reads and writes back what an apiserver keeps, [`Etcd`] reads what rests
//! under it. Both pass values on as the bytes they came as: nothing here looks into a Secret,
//! prints one, or keeps one longer than the page it came with, and what is freed is zeroed first.

mod access;
mod apiserver;
mod connect;
mod error;
mod etcd;
#[cfg(test)]
pub(crate) mod fake;
#[doc(hidden)]
pub mod fuzzing;
mod kubeconfig;
mod migrations;
mod object;
mod packed;
mod resource;
mod role;

pub use access::{Access, AccessError, Credential, EtcdAccess, Migrate, ServerUrl};
pub use apiserver::{ApiServer, ListQuery, Reply, Shape};
pub use connect::certificates_in;
pub use error::ApiError;
pub use etcd::{Etcd, EtcdError, Scan};
pub use kubeconfig::{Kubeconfig, KubeconfigError};
pub use migrations::{MIGRATION_VERBS, MIGRATIONS, Migration, MigrationState, Right};
pub use object::{Meta, Object, Page};
pub(crate) use resource::BUILT_IN;
pub use resource::{Discovery, Resource};
pub use role::{NAMESPACE, Role};
