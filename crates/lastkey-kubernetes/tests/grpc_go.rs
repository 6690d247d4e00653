//! A real grpc-go client against the plugin, with every `:authority` an apiserver is known to send.
//!
//! Needs Go; where it is missing, the test says so loudly and proves nothing, and CI fails. Real
//! apiservers have lanes of their own; this one takes seconds.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test fails by panicking, and says why

mod support;

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use lastkey_kubernetes::socket::SocketAddress;
use support::{FakeKms, Running};
use tokio::net::UnixListener;

/// The program in `tests/grpc-go`, built once per target directory; `None` without Go.
fn client() -> Option<PathBuf> {
    if Command::new("go").arg("version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "CI needs Go for the grpc-go client");
        eprintln!("SKIPPED: go is not installed, so no grpc-go client was tried");
        return None;
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc-go");
    let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("grpc-go-client");
    let build = Command::new("go")
        .args(["build", "-mod=readonly", "-o"])
        .arg(&binary)
        .arg(".")
        .current_dir(source)
        .output()
        .unwrap();
    assert!(build.status.success(), "{}", String::from_utf8_lossy(&build.stderr));
    Some(binary)
}

async fn dial(client: &Path, socket: &str, mode: &str) -> Output {
    let mut command = tokio::process::Command::new(client);
    command.args([socket, mode]).output().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_go_is_understood_with_every_authority() {
    let Some(client) = client() else { return };
    let name = format!("lastkey-test-{}", uuid::Uuid::new_v4());
    let abstract_socket = SocketAddress::Abstract(name);
    let mut plugin = Running::start_with(FakeKms::new(), |config| {
        // fifty round trips of each version at once
        config.max_calls = 200;
        config.sockets.push(abstract_socket.clone());
    })
    .await;
    plugin.ready().await;
    for socket in [plugin.socket.display().to_string(), abstract_socket.to_string()] {
        for mode in ["v1.31", "raw", "v1.32"] {
            let output = dial(&client, &socket, mode).await;
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{mode} on {socket}: {error}");
            let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!((&said["version"], &said["healthz"]), (&"v2beta1".into(), &"ok".into()));
            assert_eq!(said["key_id"], plugin.kms.key().key_id());
        }
    }
}

/// The control: without the filter, h2 refuses what the test above sends.
#[tokio::test(flavor = "multi_thread")]
async fn without_the_filter_h2_refuses_a_path() {
    let Some(client) = client() else { return };
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("kms.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let response = http::Response::builder().header("grpc-status", "12");
                    let _ = respond.send_response(response.body(()).unwrap(), true);
                }
            });
        }
    });
    for (mode, refused) in [("v1.31", true), ("raw", true), ("v1.32", false)] {
        let output = dial(&client, &socket.display().to_string(), mode).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(error.contains("PROTOCOL_ERROR"), refused, "{mode}: {error}");
    }
}
