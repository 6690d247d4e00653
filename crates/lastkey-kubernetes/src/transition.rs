//! Another provider for what a cluster encrypts: into the KMS, out of it, or over to another one.
//!
//! An apiserver fails every list that holds one value it cannot read, so the order is what matters:
//!
//! 1. The new provider is added behind the one that writes now. Once every apiserver has loaded
//!    that, each can read what any of them will write ([`Stage::Readable`]).
//! 2. It is put first ([`Stage::Writing`]). Once every apiserver has loaded that, nothing is written
//!    by the old one any more.
//! 3. Every object is written anew, as in a rotation ([`crate::rotation`]).
//! 4. What nothing rests under any more is taken out ([`Stage::Clean`]).
//!
//! [`plan`] says which providers a configuration has after each stage, and changes nothing that is
//! there already: run again after any interruption it goes on. [`Place`] is the file, [`loaded`]
//! says which apiservers work by it.

pub mod loaded;
mod place;
mod plan;

use std::path::PathBuf;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use place::{Place, PlaceError, hash};
pub(crate) use plan::covers;
pub use plan::{
    PlanError, Target, in_clear, names_of_ours, next, resources_to_enable, resources_under,
};

use crate::{cluster::EtcdAccess, encryption_config::EncryptionConfiguration};

/// What is wanted in the end; kept by the server with the work.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goal {
    /// What it is for, as an EncryptionConfiguration names it.
    pub resources: Vec<String>,
    /// What shall write, and at last be alone.
    pub target: Target,
}

/// How far the configuration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The target can be read.
    Readable,
    /// The target writes.
    Writing,
    /// What is not needed any more is gone.
    Clean,
}

/// What a worker has at hand to change a configuration.
pub struct Hands {
    /// Where the registered configuration lies, on this machine or another.
    pub place: Place,
    /// Have each step put in place by somebody else, even if it could be written here, and shown to
    /// them even if it holds keys.
    pub by_hand: bool,
    /// Go on from the file as it is, although somebody changed it.
    pub accept: bool,
    /// A copy of the configuration, where it does not lie here.
    pub copy: Option<PathBuf>,
    /// How to count what rests where, exactly.
    pub etcd: Option<EtcdAccess>,
    /// What the registered configuration is said to encrypt.
    pub registered: Vec<String>,
    /// What was printed last and cannot be read back; begins as `None`.
    pub printed: Mutex<Option<Zeroizing<String>>>,
}

/// A configuration without the lines it was written on, to compare two.
pub(crate) fn bare(config: &EncryptionConfiguration) -> EncryptionConfiguration {
    use crate::encryption_config::{LocalKey, ProviderKind};
    let mut config = config.clone();
    for rule in &mut config.rules {
        rule.line = None;
        rule.resources.iter_mut().for_each(|named| named.line = None);
        for provider in &mut rule.providers {
            provider.line = None;
            for kind in &mut provider.kinds {
                match kind {
                    ProviderKind::Kms(kms) => kms.line = None,
                    ProviderKind::AesCbc(keys)
                    | ProviderKind::AesGcm(keys)
                    | ProviderKind::Secretbox(keys) => {
                        keys.iter_mut().for_each(|key: &mut LocalKey| key.line = None);
                    }
                    ProviderKind::Identity => {}
                }
            }
        }
    }
    config
}
