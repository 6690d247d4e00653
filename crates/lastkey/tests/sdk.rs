//! Lane: the official SDKs, unmodified, over TLS with a CA of our own: the life cycle of keys, all
//! cryptographic calls, paging and errors. The scripts are in `sdk/`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use lastkey_testbed::Peers;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::Lab;

#[test]
fn python_old_sdk_with_rpc_v1() {
    python("python_old_sdk_with_rpc_v1", "old");
}

#[test]
fn python_new_sdk_with_acs3() {
    python("python_new_sdk_with_acs3", "acs3");
}

#[test]
fn python_new_sdk_with_rpc_v1() {
    python("python_new_sdk_with_rpc_v1", "v2");
}

#[test]
fn python_new_sdk_with_acs4() {
    python("python_new_sdk_with_acs4", "v4");
}

#[test]
fn npm_kms_client() {
    node("npm_kms_client", "kms");
}

#[test]
fn npm_pop_core() {
    node("npm_pop_core", "pop");
}

fn python(test: &str, flavour: &str) {
    let Some(peers) = Peers::or_skip(test, &["python"]) else { return };
    let mut command = Command::new(peers.path("python"));
    command.env("PYTHONDONTWRITEBYTECODE", "1").arg(script("lifecycle.py"));
    run(command, flavour);
}

fn node(test: &str, flavour: &str) {
    let Some(peers) = Peers::or_skip(test, &["node"]) else { return };
    let mut command = Command::new("node");
    command.env("NODE_PATH", peers.path("node")).arg(script("lifecycle.js"));
    run(command, flavour);
}

/// Runs a script against a server of its own; the server must have no complaint afterwards.
fn run(mut command: Command, flavour: &str) {
    let lab = Lab::new();
    let mut up = lab.up();
    command.arg(flavour).arg(&up.ready.credentials_file);
    command.env("NODE_EXTRA_CA_CERTS", &up.ready.ca_file);
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(output.status.success(), "{flavour}: {}\n{text}", output.status);
    assert!(text.contains(" checks"), "the script ran to its end: {text}");
    lab.cli(&up.ready, &["audit", "verify"]);
    assert!(up.stop().unwrap().success());
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk").join(name)
}
