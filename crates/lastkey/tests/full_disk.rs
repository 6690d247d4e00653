//! Process test: a disk that is full. Work is refused with a clear error, and goes on by itself
//! once there is room; nothing that was acknowledged is lost. Needs the right to mount a tmpfs.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use lastkey_testbed::eventually;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Lab, SOON};

/// The contract: a first start fits into 48 MiB.
const SIZE: &str = "size=48m";

#[test]
fn a_full_disk_refuses_work_and_recovers() {
    let lab = Lab::new();
    let Some(disk) = SmallDisk::mount(&lab.folder("disk")) else { return };
    // 1. A first start, and some work.
    let up = lab.lastkey.up(&disk.path.join("data"), "127.0.0.1:0").unwrap();
    let client = up.client().unwrap();
    let create = |name: &str| {
        let args = ["key", "create", "--description", name];
        lab.lastkey.cli(Some(&up.ready.credentials_file), &args).unwrap()
    };
    let mut made = Vec::new();
    made.push(create("before").expect_ok("creating a key").unwrap().json());
    // 2. The disk fills up: work is refused as unavailable, and the health says so.
    let ballast = disk.fill();
    let mut refusal = None;
    for number in 0..400 {
        let outcome = create(&format!("full-{number}"));
        if outcome.code != 0 {
            refusal = Some(outcome);
            break;
        }
        made.push(outcome.json());
    }
    let refusal = refusal.expect("work is refused on a full disk, at last");
    assert_eq!(refusal.code, 6, "{refusal:?}");
    assert!(refusal.stderr.contains("disk"), "the cause is named: {}", refusal.stderr);
    eventually("/readyz fails and says why", SOON, || match client.get("/readyz") {
        Ok(answer) if answer.status == 200 => Err("still ready".to_owned()),
        Ok(answer) if answer.text().contains("disk") => Ok(()),
        Ok(answer) => Err(answer.text()),
        Err(error) => Err(error.to_string()),
    })
    .unwrap();
    // The operator gets in over the local socket and sees the state.
    let local = |args: &[&str]| {
        let socket = up.ready.admin_socket.to_string_lossy().into_owned();
        lab.lastkey.cli(None, &[&["--admin-socket", &socket], args].concat()).unwrap()
    };
    local(&["operator", "status"]).expect_ok("the operator's status on a full disk").unwrap();
    // 3. There is room again: it goes on by itself.
    fs::remove_file(ballast).unwrap();
    eventually("/readyz is well", SOON, || client.get("/readyz")?.expect_ok("readyz")).unwrap();
    made.push(create("after").expect_ok("creating a key").unwrap().json());
    // 4. Everything that was acknowledged is there.
    let listed = lab.cli(&up.ready, &["key", "list", "--all"]).to_string();
    for key in &made {
        let id = ["key_id", "KeyId", "id"].iter().find_map(|name| key[name].as_str()).unwrap();
        assert!(listed.contains(id), "key {id} was acknowledged and is gone");
    }
    lab.cli(&up.ready, &["audit", "verify"]);
}

/// A small file system of its own; unmounted when dropped.
struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// `None` after a loud skip where mounting is not allowed.
    fn mount(path: &Path) -> Option<Self> {
        let mount = ["-t", "tmpfs", "-o", SIZE, "tmpfs"];
        let done = Command::new("mount").args(mount).arg(path).output();
        if done.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self { path: path.to_path_buf() });
        }
        let why = done.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        let why = why.unwrap_or_else(|error| error.to_string());
        // Not for CI to require: a right of the machine, not a peer.
        let text = format!("\n!!!!  SKIPPED a_full_disk_refuses_work_and_recovers: {why}\n");
        std::io::stderr().write_all(text.as_bytes()).ok();
        None
    }

    /// Writes until nothing fits any more.
    fn fill(&self) -> PathBuf {
        let path = self.path.join("ballast");
        let mut file = File::create(&path).unwrap();
        let mut step = 1 << 20;
        while step > 0 {
            if file.write_all(&vec![0; step]).is_err() {
                step /= 2;
            }
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.path).status().ok();
    }
}
