//! The apiserver's messages and services, generated from `proto/`.
//!
//! No maintained crate has them. The messages have no `Debug`, because they carry plaintext.

mod codec;

pub use codec::SmallCodec;

/// KMS v2: `v2.KeyManagementService`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v2 {
    tonic::include_proto!("v2");
}

/// KMS v1: `v1beta1.KeyManagementService`.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod v1beta1 {
    tonic::include_proto!("v1beta1");
}

/// etcd: the part of `etcdserverpb.KV` that reads.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}
