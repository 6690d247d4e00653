//! Key material in locked memory, and the codecs of everything Lastkey encrypts.
//!
//! Pure functions: no I/O of its own (the file envelope reads and writes what it is given), no
//! clock, and randomness comes in as an [`Entropy`] value. Every primitive is AWS-LC's, through
//! `aws-lc-rs`; nothing here invents one.
//!
//! # Which module for what
//!
//! | you hold | you want | use |
//! |---|---|---|
//! | a key version and a short plaintext | the ciphertext blob a caller keeps | [`blob`] |
//! | a keyring key and a store path | a record at rest that cannot be moved or rolled back | [`record`] |
//! | the root key and the keyring | the keyring at rest | [`wrap`] |
//! | a data key and a file | the file envelope | [`envelope`] |
//! | a blob and its cluster | what the Kubernetes plugin hands to the apiserver | [`plugin_blob`] |
//! | a checkpoint of the audit log | a signature that anybody can check | [`signing`] |
//!
//! # One construction
//!
//! A blob, a record and a wrapped keyring are sealed alike (suite 1): a message key comes from
//! HKDF-SHA256 over the long-lived key, with 16 fresh random bytes as salt; AES-GCM under that
//! message key with 12 fresh random bytes as IV does the rest. Salt and IV are 28 random bytes
//! together, which is why one key version may seal 2⁴⁰ messages and more, where bare AES-GCM with
//! random nonces must stop at 2³². What differs between the three is the HKDF label and what the
//! associated data binds.
//!
//! # What is secret
//!
//! [`KeyMaterial`] (long-lived, in locked memory) and [`SecretBytes`] (short-lived, on the heap)
//! are the only types that carry secrets. Neither can be cloned, serialised or printed, and both
//! are zeroed when dropped. Whatever fails to open fails as [`Unauthentic`], without a reason.

pub mod blob;
pub mod context;
pub mod entropy;
pub mod envelope;
pub mod ids;
pub mod mac;
pub mod memory;
pub mod plugin_blob;
pub mod record;
pub mod share;
pub mod signing;
pub mod suite;
pub mod wrap;

mod cipher;

pub use context::{ContextError, EncryptionContext};
pub use entropy::{Entropy, SystemEntropy};
pub use ids::{ClusterId, Epoch, IdError, KeyId, KeyVersionId, Lineage, SpoolId};
pub use memory::{KeyMaterial, SecretBytes};
pub use suite::{Algorithm, Suite};
pub use wrap::UnwrapError;

/// A ciphertext did not open.
///
/// Wrong key, wrong context and damage look alike on purpose: the difference would be an oracle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ciphertext does not open: wrong key, wrong encryption context, or damaged")]
pub struct Unauthentic;
