//! Process test: what the plugin's log says of each call, as JSON.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "load/grpc.rs"]
#[allow(dead_code, reason = "one call of it is used here")]
mod grpc;
mod support;

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use lastkey_testbed::{Lastkey, eventually};
use serde_json::Value;
use support::{Lab, SOON, plugin_options};

/// Field 1 and field 2 of a request, both short texts.
fn message(first: &str, uid: &str) -> Vec<u8> {
    let field =
        |tag: u8, text: &str| [&[tag, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [field(0x0a, first), field(0x12, uid)].concat()
}

fn call(socket: &Path, method: &str, message: &[u8]) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let call = async { tokio::time::timeout(SOON, grpc::call(socket, method, message)).await };
    runtime.block_on(call).unwrap().is_ok()
}

#[test]
fn each_call_is_a_line_of_json_with_the_apiservers_uid() {
    let lab = Lab::new();
    let up = lab.up();
    let script = lab.path("lastkey-json");
    let binary = lab.lastkey.binary().display().to_string();
    let text = format!(
        "#!/bin/sh\nLASTKEY_LOG_FORMAT=json LASTKEY_LOG=info,lastkey_kubernetes=debug exec '{binary}' \"$@\"\n"
    );
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let socket = lab.path("json.sock");
    let mut files = up.ready;
    files.plugin_socket.clone_from(&socket);
    let plugin = Lastkey::new(&script, lab.folder("json")).plugin(&plugin_options(&files)).unwrap();
    assert!(call(&socket, "Encrypt", &message("a seed", "uid-of-a-seed")));
    assert!(!call(&socket, "Decrypt", &message("nonsense", "uid-of-nonsense")));
    let line = |uid: &str| {
        eventually(&format!("the log has {uid}"), SOON, || {
            let log = plugin.process.log();
            let lines = log.lines().map(serde_json::from_str::<Value>);
            let lines: Vec<Value> =
                lines.collect::<Result<_, _>>().map_err(|e| format!("{e}: {log}"))?;
            lines.into_iter().find(|line| line["uid"] == uid).ok_or(log)
        })
        .unwrap()
    };
    let done = line("uid-of-a-seed");
    assert_eq!((&done["method"], &done["api"]), (&"Encrypt".into(), &"v2".into()), "{done}");
    assert_eq!(done["level"], "DEBUG", "{done}");
    let refused = line("uid-of-nonsense");
    assert_eq!(refused["code"], "InvalidArgument", "{refused}");
    assert_eq!((&refused["method"], &refused["level"]), (&"Decrypt".into(), &"WARN".into()));
    assert!(refused["problem"].as_str().unwrap().contains("no ciphertext"), "{refused}");
    assert!(!plugin.process.log().contains("a seed"), "no data of a call");
}
