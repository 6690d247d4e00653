//! What needs another process: sockets handed over by `LISTEN_FDS`, and another user's connection.
//!
//! The other process is this very test binary, started again with one of the ignored tests below.

#![allow(clippy::unwrap_used, clippy::print_stderr)] // a test fails by panicking, and says why

use std::{
    env,
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        linux::net::SocketAddrExt,
        unix::{
            net::{SocketAddr, UnixListener, UnixStream},
            process::CommandExt,
        },
    },
    process::{Child, Command, Stdio},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use lastkey_kubernetes::socket::{
    Closed, Door, Listener, SocketAddress, SocketError, accept_all, accept_through,
    from_environment,
};
use tokio::io::AsyncWriteExt;

const GREETING: &[u8] = b"hello";

/// Starts one of the ignored tests with `socket` as descriptor 3.
fn with_descriptor(test: &str, socket: impl Into<OwnedFd>) -> Child {
    // the process id is known only inside, and `exec` keeps it
    let script = r#"LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=kms exec "$0" --exact "$1" --ignored 3<&0 0</dev/null"#;
    Command::new("/bin/sh")
        .args(["-c", script])
        .arg(env::current_exe().unwrap())
        .arg(test)
        .stdin(Stdio::from(socket.into()))
        .spawn()
        .unwrap()
}

/// False when somebody runs all ignored tests.
fn is_child() -> bool {
    env::var_os("LISTEN_FDS").is_some()
}

#[test]
fn a_handed_over_socket_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kms.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // dialled before the other process exists, as an apiserver does during a restart
    let mut early = UnixStream::connect(&path).unwrap();
    early.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut child = with_descriptor("child_serves_the_handed_over_socket", listener);
    let mut greeting = [0; GREETING.len()];
    early.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, GREETING);
    assert!(child.wait().unwrap().success());
    assert!(path.exists(), "it belongs to whoever made it");
}

#[tokio::test]
#[ignore = "the other process of the test above"]
async fn child_serves_the_handed_over_socket() {
    if !is_child() {
        return;
    }
    let listeners = from_environment().unwrap();
    assert_eq!(listeners.len(), 1);
    assert!(listeners[0].address().ends_with("kms.sock"), "{}", listeners[0].address());
    assert!(from_environment().unwrap().is_empty(), "it is handed over once");
    greet_one(listeners).await;
}

/// Whoever gets in first.
async fn greet_one(listeners: Vec<Listener>) {
    let mut incoming = Box::pin(accept_all::<()>(listeners).unwrap());
    let mut connection = incoming.next().await.unwrap().unwrap();
    connection.write_all(GREETING).await.unwrap();
}

#[test]
fn something_else_handed_over_is_refused() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut child = with_descriptor("child_refuses_what_is_no_listener", theirs);
    assert!(child.wait().unwrap().success());
    drop(ours);
}

#[test]
#[ignore = "the other process of the test above"]
fn child_refuses_what_is_no_listener() {
    if !is_child() {
        return;
    }
    assert!(
        matches!(from_environment(), Err(SocketError::NotAListener { fd: 3, name }) if name == "kms")
    );
}

/// A service manager's socket is as open as its unit says; where everybody may dial, we ask.
#[tokio::test(flavor = "multi_thread")]
async fn a_handed_over_socket_that_everybody_may_dial_asks_who_is_there() {
    let directory = tempfile::Builder::new().prefix("lastkey").tempdir_in("/tmp").unwrap();
    let path = directory.path().join("kms.sock");
    let listener = UnixListener::bind(&path).unwrap();
    chmod(directory.path(), 0o755);
    chmod(&path, 0o666);
    let mut child = with_descriptor("child_serves_the_handed_over_socket", listener);
    let name = path.to_str().unwrap();
    if rustix::process::geteuid().is_root() {
        assert_eq!(greeting_as(name, Some(65534)).await, Some(Vec::new()));
    } else {
        eprintln!("SKIPPED: only root can become another user, so a refusal was not tried");
    }
    assert_eq!(greeting_as(name, None).await, Some(GREETING.to_vec()));
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_handed_over_socket_that_others_could_replace_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(directory.path().join("kms.sock")).unwrap();
    chmod(directory.path(), 0o777);
    let mut child = with_descriptor("child_refuses_an_open_directory", listener);
    assert!(child.wait().unwrap().success());
}

#[test]
#[ignore = "the other process of the test above"]
fn child_refuses_an_open_directory() {
    if !is_child() {
        return;
    }
    let error = from_environment().unwrap_err();
    assert!(matches!(error, SocketError::OpenDirectory { .. }), "{error}");
    assert!(error.to_string().contains("run: chmod go-w /"), "{error}");
}

fn chmod(path: &std::path::Path, mode: u32) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
    std::fs::set_permissions(path, mode).unwrap();
}

#[test]
fn without_the_environment_nothing_is_taken() {
    assert!(from_environment().unwrap().is_empty());
}

/// On an abstract socket our own user gets in, and nobody else.
#[tokio::test(flavor = "multi_thread")]
async fn an_abstract_socket_asks_who_is_there() {
    let name = format!("lastkey-test-{}", uuid::Uuid::new_v4());
    let listener = Listener::bind(&SocketAddress::Abstract(name.clone())).unwrap();
    let (door, closed) = (Door::default(), Arc::<Closed>::default());
    door.open();
    let incoming = accept_through::<()>(&door, vec![listener], Arc::clone(&closed)).unwrap();
    let mut incoming = Box::pin(incoming);
    tokio::spawn(async move {
        while let Some(Ok(mut connection)) = incoming.next().await {
            connection.write_all(GREETING).await.unwrap();
        }
    });
    assert_eq!(greeting_as(&name, None).await, Some(GREETING.to_vec()));
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become another user, so a refusal was not tried");
        return;
    }
    assert_eq!(closed.refused.load(Ordering::Relaxed), 0);
    assert_eq!(greeting_as(&name, Some(65534)).await, Some(Vec::new()));
    assert_eq!(closed.refused.load(Ordering::Relaxed), 1);
}

/// What another process, perhaps of another user, is greeted with.
async fn greeting_as(name: &str, user: Option<u32>) -> Option<Vec<u8>> {
    // the target directory may be closed to other users
    let directory = tempfile::Builder::new().prefix("lastkey").tempdir_in("/tmp").unwrap();
    let binary = directory.path().join("child");
    std::fs::copy(env::current_exe().unwrap(), &binary).unwrap();
    chmod(directory.path(), 0o755);
    let mut command = Command::new(&binary);
    command.args(["--exact", "child_dials", "--ignored", "--nocapture"]).env("DIAL", name);
    if let Some(user) = user {
        command.uid(user);
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let said = text.lines().find_map(|line| line.strip_prefix("greeting: "))?;
    Some(said.as_bytes().to_vec())
}

#[test]
#[ignore = "the other process of the test above"]
fn child_dials() {
    let Ok(name) = env::var("DIAL") else { return };
    let mut stream = match name.starts_with('/') {
        true => UnixStream::connect(name).unwrap(),
        false => UnixStream::connect_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap(),
    };
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut greeting = vec![0; GREETING.len()];
    let count = stream.read(&mut greeting).unwrap();
    let greeting = String::from_utf8_lossy(&greeting[..count]);
    writeln!(std::io::stderr(), "greeting: {greeting}").unwrap();
}
