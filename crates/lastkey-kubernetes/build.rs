//! Generates the KMS v1 and v2 types, clients and server traits; protox compiles the files, so no
//! protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let files = ["proto/kms_v2.proto", "proto/kms_v1beta1.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["proto"])?;
    tonic_prost_build::configure()
        // only unix sockets are dialled, with a connector of the caller's
        .build_transport(false)
        // messages carry plaintext: none may print itself
        .skip_debug(["."])
        // an apiserver's messages are small
        .codec_path("crate::proto::SmallCodec")
        .compile_fds(descriptors)?;
    // we read etcd and never pose as one
    let etcd = "proto/etcd.proto";
    println!("cargo::rerun-if-changed={etcd}");
    tonic_prost_build::configure()
        .build_transport(false)
        .build_server(false)
        .skip_debug(["."])
        .compile_fds(protox::compile([etcd], ["proto"])?)?;
    Ok(())
}
