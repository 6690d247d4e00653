//! The Alibaba Cloud KMS wire.
pub mod signature;
