//! Lastkey's part inside Kubernetes: the KMS plugin, and what configures an apiserver for it.
//!
//! Everything here is a client of the server, over TLS, with an identity of its own that can do
//! nothing else; nothing here holds a key.

pub mod authority;
pub mod cluster;
pub mod cluster_config;
pub mod coverage;
pub mod doctor;
pub mod encryption_config;
pub mod node;
pub mod plugin;
pub mod proto;
mod protobuf;
pub mod rotation;
pub mod socket;
pub mod transition;
