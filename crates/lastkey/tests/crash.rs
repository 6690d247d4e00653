//! Process test: `kill -9` in the middle of writes. What was acknowledged is there afterwards, and
//! the audit chain verifies.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use lastkey_testbed::{Lastkey, Ready};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;
use support::Lab;

const ROUNDS: u64 = 6;
const CLIENTS: usize = 6;

#[test]
fn what_was_acknowledged_survives_kill_9() {
    let lab = Lab::new();
    let data = lab.path("data");
    let mut server = lab.lastkey.server(&data, "127.0.0.1:0").unwrap();
    let address = server.ready.address().to_owned();
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        // 1. Many clients write; the server is killed at a moment that differs each round.
        let running = AtomicBool::new(true);
        let made = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (lastkey, ready) = (&lab.lastkey, &server.ready);
                let (running, made) = (&running, &made);
                scope.spawn(move || {
                    let mut number = 0;
                    while running.load(Ordering::Relaxed) {
                        number += 1;
                        let name = format!("crash-{round}-{client}-{number}");
                        if let Some(key) = write(lastkey, ready, &name) {
                            made.lock().unwrap().push(key);
                        }
                    }
                });
            }
            thread::sleep(Duration::from_millis(1200 + round * 331));
            server.process.kill();
            running.store(false, Ordering::Relaxed);
        });
        let made = made.into_inner().unwrap();
        assert!(!made.is_empty(), "nothing was acknowledged in round {round}; the test is void");
        acknowledged.extend(made);
        // 2. It starts again by itself, on the same store.
        server = lab.lastkey.server(&data, &address).unwrap();
        // 3. Every key that was acknowledged is there, and so is its audit record.
        let listed = keys(&lab, &server.ready);
        for key in &acknowledged {
            assert!(listed.contains(key), "key {key} was acknowledged and is gone");
        }
        let log = audit_text(&data);
        for key in &acknowledged {
            assert!(log.contains(key.as_str()), "key {key} has no audit record");
        }
        // 4. The chain verifies.
        lab.cli(&server.ready, &["audit", "verify"]);
    }
    assert!(server.stop().unwrap().success());
}

/// Creates a key; its id once that was acknowledged.
fn write(lastkey: &Lastkey, ready: &Ready, name: &str) -> Option<String> {
    let args = ["key", "create", "--description", name];
    let outcome = lastkey.cli(Some(&ready.credentials_file), &args).ok()?;
    if outcome.code != 0 {
        return None;
    }
    key_id(&outcome.json())
}

fn keys(lab: &Lab, ready: &Ready) -> HashSet<String> {
    let all = lab.cli(ready, &["key", "list", "--all"]);
    all["items"].as_array().unwrap().iter().filter_map(key_id).collect()
}

fn key_id(json: &serde_json::Value) -> Option<String> {
    ["key_id", "KeyId", "id"].iter().find_map(|name| json[name].as_str()).map(str::to_owned)
}

fn audit_text(data: &Path) -> String {
    let segments = std::fs::read_dir(data.join("audit")).unwrap();
    segments.map(|s| std::fs::read_to_string(s.unwrap().path()).unwrap()).collect()
}
