//! Apiservers that are waited for, and what whoever waits is told.

use super::*;

/// A process of that name, with such flags, that ends with the test.
struct Flagged(std::process::Child);

impl Flagged {
    fn apiserver(port: u16, more: &[&str]) -> Self {
        use std::os::unix::process::CommandExt as _;
        let mut command = std::process::Command::new("sh");
        command.arg0("kube-apiserver").args(["-c", "read line"]);
        command.arg(format!("--secure-port={port}")).args(more);
        let child = command.stdin(std::process::Stdio::piped()).spawn().unwrap();
        // It is spawned a moment before the kernel shows its words.
        let words = format!("/proc/{}/cmdline", child.id());
        while !std::fs::read_to_string(&words).unwrap().starts_with("kube-apiserver") {
            std::thread::yield_now();
        }
        Self(child)
    }
}

impl Drop for Flagged {
    fn drop(&mut self) {
        let _ = (self.0.kill(), self.0.wait());
    }
}

/// What is said first of those that it waits for; then it is interrupted.
pub(super) async fn first_waited_for(lab: &Lab, mut worker: Worker) -> String {
    let said = Arc::new(Mutex::new(Vec::new()));
    let (stop, told) = (Arc::clone(&worker.stop), Arc::clone(&said));
    worker.watch = Box::new(move |event| {
        if let Event::Behind(behind) = event {
            told.lock().push(behind.join("; "));
            stop.store(true, Ordering::Relaxed);
        }
    });
    assert!(matches!(lab.run(&worker).await, Err(RotateError::Interrupted)));
    said.lock().remove(0)
}

/// One that was started without a configuration never takes a key id: who waits for it has to hear
/// what to do, even where the file is as it should be.
#[tokio::test]
async fn an_apiserver_without_a_configuration_is_told_its_flags() {
    for enables in [true, false] {
        let mut world = World::with(&[("", "secrets", 1)]);
        world.deaf = true;
        if enables {
            let target = Target::Kms { name: "lastkey".to_owned(), endpoint: ELSEWHERE.to_owned() };
            let goal = Goal { resources: vec!["*.apps".to_owned()], target };
            world.rotation["course"] = json!({ "way": "enable", "goal": goal });
            world.rotation["phase"] = json!("preparing");
        }
        let lab = Lab::new(world).await;
        let path = lab.folder.path().join("config.yaml");
        // as `up` writes it
        let kms = KMS.replace("unix:///a", ELSEWHERE);
        std::fs::write(&path, configuration(&format!("{kms}{CLEAR}"))).unwrap();
        let worker =
            || Worker { change: enables.then(|| unattended(&path)), ..lab.worker(&["secrets"]) };
        let file = if enables { path.to_str().unwrap() } else { "FILE" };
        let flags = format!(
            "--encryption-provider-config={file} --encryption-provider-config-automatic-reload=true"
        );
        let port = lab.access.servers[0].port();
        let running = Flagged::apiserver(port, &[]);
        let said = first_waited_for(&lab, worker()).await;
        assert!(said.contains("it was started without") && said.contains(&flags), "{said}");
        drop(running);
        // One that has read it too early.
        let running = Flagged::apiserver(port, &["--encryption-provider-config=/a"]);
        let said = first_waited_for(&lab, worker()).await;
        assert!(said.ends_with("restart it"), "{said}");
        drop(running);
        // One elsewhere, of which nobody sees the flags: once it is late.
        let said = first_waited_for(&lab, worker()).await;
        let why = if enables { "has not loaded it yet" } else { "was not told the new key id yet" };
        assert!(said.ends_with(why), "{said}");
        let place = (enables.then_some(path.as_path()), true);
        let said = convergence::behind(&worker().api, KEY_ID, place).await.join("");
        assert!(said.contains(&flags), "{said}");
    }
}

/// One that was started while its plugin is down counts nothing either: its configuration is as it
/// should be.
#[tokio::test]
async fn an_apiserver_whose_plugin_is_down_is_not_to_be_restarted() {
    let world = World { deaf: true, unanswered: true, ..World::with(&[("", "secrets", 1)]) };
    let lab = Lab::new(world).await;
    let worker = lab.worker(&["secrets"]);
    let port = lab.access.servers[0].port();
    for flags in [None, Some("--encryption-provider-config=/a")] {
        let running = flags.map(|flags| Flagged::apiserver(port, &[flags]));
        for late in [false, true] {
            let said = convergence::behind(&worker.api, KEY_ID, (None, late)).await.join("");
            assert!(said.ends_with("is the plugin running?"), "{said}");
        }
        drop(running);
    }
}

/// One that works by another KMS provider never takes a key id either.
#[tokio::test]
async fn an_apiserver_with_another_provider_is_told_what_to_do() {
    let world = World { told_others: true, ..World::with(&[("", "secrets", 1)]) };
    let lab = Lab::new(world).await;
    let worker = lab.worker(&["secrets"]);
    let path = Path::new("/etc/enc.yaml");
    for (path, file) in [(Some(path), "/etc/enc.yaml"), (None, "FILE")] {
        let said = convergence::behind(&worker.api, KEY_ID, (path, false)).await.join("");
        assert!(said.ends_with("was not told the new key id yet"), "{said}");
        let said = convergence::behind(&worker.api, KEY_ID, (path, true)).await.join("");
        assert!(said.contains(&format!("has not loaded {file}: without")), "{said}");
    }
}
