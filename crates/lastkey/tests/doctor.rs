//! Process tests: `lastkey doctor` on a node whose parts break one after the other, and the alert
//! rules, the board and the image that a control plane is fitted out with.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use lastkey_testbed::{Client, Running, eventually, free_port};
use serde_json::Value;
use support::{KEY, Lab, SOON, encryption_config, keeper::Keeper};

/// A node: a plugin that runs, and an apiserver's manifest that names its socket.
struct Node {
    lab: Lab,
    up: Running,
    plugin: Keeper,
    manifest: PathBuf,
    config: PathBuf,
}

impl Node {
    fn new() -> Self {
        let lab = Lab::new();
        let up = lab.up();
        let mut plugin = Keeper::new(&lab, &up.ready);
        plugin.start();
        plugin.works();
        let config = lab.folder("config").join("encryption.yaml");
        let node = Self { manifest: lab.path("kube-apiserver.yaml"), lab, up, plugin, config };
        node.configure(&format!("{}  - identity: {{}}\n", node.provider()));
        node.pod("/livez?exclude=kms-providers");
        node
    }

    fn provider(&self) -> String {
        let socket = self.plugin.socket.display();
        format!(
            "  - kms:\n      apiVersion: v2\n      name: lastkey\n      endpoint: unix://{socket}\n\
             \x20     timeout: 3s\n"
        )
    }

    fn configure(&self, providers: &str) {
        encryption_config(&self.config, providers).unwrap();
    }

    /// The configuration is mounted somewhere else inside the pod.
    fn pod(&self, liveness: &str) {
        let pod = serde_json::json!({"apiVersion": "v1", "kind": "Pod", "spec": {
            "containers": [{
                "name": "kube-apiserver",
                "command": [
                    "kube-apiserver",
                    "--encryption-provider-config=/etc/kubernetes/lastkey/encryption.yaml",
                    "--encryption-provider-config-automatic-reload=true",
                ],
                "livenessProbe": {"httpGet": {"path": liveness}},
                "volumeMounts": [{"name": "c", "mountPath": "/etc/kubernetes/lastkey"}],
            }],
            "volumes": [{"name": "c", "hostPath": {"path": self.config.parent().unwrap()}}],
        }});
        fs::write(&self.manifest, pod.to_string()).unwrap();
    }

    fn doctor(&self) -> (i32, Vec<Value>) {
        let pid = self.plugin.main().as_raw_nonzero().to_string();
        self.doctor_of(&pid)
    }

    fn doctor_of(&self, plugin: &str) -> (i32, Vec<Value>) {
        let manifest = self.manifest.to_str().unwrap();
        let words = ["doctor", "--apiserver", manifest, "--plugin", plugin];
        let outcome = self.lab.lastkey.cli(None, &words).unwrap();
        let json = outcome.json();
        let items = json["items"].as_array().unwrap_or_else(|| panic!("{outcome:?}")).clone();
        assert_eq!(json["next"], Value::Null);
        for item in &items {
            assert!(["error", "warning", "info"].contains(&item["severity"].as_str().unwrap()));
            assert!(item["severity"] == "info" || item["fix"] != "", "{item}");
        }
        (outcome.code, items)
    }

    /// It fails, and says so with that code.
    fn finds(&self, code: &str) -> Value {
        let (exit, items) = self.doctor();
        assert_eq!(exit, 1, "{items:#?}");
        with_code(&items, code).unwrap_or_else(|| panic!("no {code}: {items:#?}"))
    }

    /// What the plugin announces.
    fn plugin_key_id(&self) -> String {
        let (_, items) = self.doctor();
        let works = with_code(&items, "plugin-works").unwrap_or_else(|| panic!("{items:#?}"));
        works["message"].as_str().unwrap().rsplit_once(' ').unwrap().1.to_owned()
    }

    fn is_well(&self) {
        let (exit, items) = self.doctor();
        assert_eq!(exit, 0, "{items:#?}");
        let severe: Vec<&Value> = items.iter().filter(|it| it["severity"] != "info").collect();
        assert!(severe.is_empty(), "{severe:#?}");
        for code in ["plugin-works", "certificate-good", "server-allows-the-key", "clock-agrees"] {
            assert!(with_code(&items, code).is_some(), "no {code}: {items:#?}");
        }
    }
}

fn with_code(items: &[Value], code: &str) -> Option<Value> {
    items.iter().find(|item| item["code"] == code).cloned()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The fix is a command: run it.
fn mend(finding: &Value) {
    let command = finding["fix"].as_str().unwrap();
    let done = Command::new("/bin/sh").args(["-c", command]).status().unwrap();
    assert!(done.success(), "{command}");
}

#[test]
fn a_node_is_examined_part_by_part() {
    let mut node = Node::new();
    node.is_well();
    // 1. Who may touch what.
    chmod(&node.lab.path("run"), 0o777);
    mend(&node.finds("socket-directory-unsafe"));
    node.is_well();
    chmod(&node.up.ready.plugin_key_file, 0o644);
    mend(&node.finds("private-key-open"));
    node.is_well();
    // 2. The apiserver's side.
    node.configure(&format!("  - identity: {{}}\n{}", node.provider()));
    let (exit, items) = node.doctor();
    let severe = items.iter().any(|it| it["severity"] == "error" && it["line"].is_number());
    assert!(exit == 1 && severe, "identity first leaves writes in clear: {items:#?}");
    node.configure(&format!("{}  - identity: {{}}\n", node.provider()));
    node.pod("/livez");
    let (exit, items) = node.doctor();
    // it matters to old releases only, and which this one is nobody says
    let liveness = with_code(&items, "apiserver-liveness").unwrap();
    assert!(exit == 0 && liveness["severity"] == "info", "{items:#?}");
    assert!(liveness["message"].as_str().unwrap().starts_with("up to 1.28"), "{liveness}");
    node.pod("/livez?exclude=kms-providers");
    let good = fs::read_to_string(&node.manifest).unwrap();
    fs::write(&node.manifest, good.replace("encryption-provider-config", "audit-policy")).unwrap();
    node.finds("apiserver-does-not-encrypt");
    fs::write(&node.manifest, good.replace("/etc/kubernetes/lastkey\"", "/elsewhere\"")).unwrap();
    node.finds("encryption-config-not-mounted");
    fs::write(&node.manifest, good).unwrap();
    node.is_well();
    // 3. The key, and the server.
    node.lab.cli_overriding(&node.up.ready, &["key", "disable", KEY], KEY);
    let refused = node.finds("key-refused");
    assert!(refused["message"].as_str().unwrap().contains("disabled"), "{refused}");
    node.lab.cli(&node.up.ready, &["key", "enable", KEY]);
    eventually("the plugin has heard", SOON, || match node.doctor() {
        (0, _) => Ok(()),
        (_, items) => Err(format!("{items:?}")),
    })
    .unwrap();
    node.up.stop().unwrap();
    node.finds("server-unreachable");
    // 4. The plugin: what is left is how it was started.
    let pod = serde_json::json!({"spec": {"containers": [{"args": arguments(&node)}]}});
    let manifest = node.lab.path("plugin.yaml");
    fs::write(&manifest, pod.to_string()).unwrap();
    node.plugin.kill();
    let (exit, items) = node.doctor_of(manifest.to_str().unwrap());
    assert!(exit == 1 && with_code(&items, "socket-dead").is_some(), "{items:#?}");
}

/// Each file of the identity, and the address, wrong in each way.
#[test]
fn an_identity_is_examined_without_the_plugin() {
    let node = Node::new();
    let other = Lab::new();
    let stranger = other.up();
    let place = node.lab.folder("identity");
    let copy = |from: &Path, name: &str| {
        let to = place.join(name);
        fs::copy(from, &to).unwrap();
        to.to_str().unwrap().to_owned()
    };
    let (ours, theirs) = (&node.up.ready, &stranger.ready);
    let finds = |change: &[(&str, &str)], code: &str, fix: &str| {
        let mut words = arguments(&node);
        for (option, value) in change {
            let at = words.iter().position(|word| word == option).unwrap();
            words[at + 1] = (*value).to_owned();
        }
        let pod = serde_json::json!({"spec": {"containers": [{"args": words}]}});
        let manifest = node.lab.path("identity.yaml");
        fs::write(&manifest, pod.to_string()).unwrap();
        // a connection that closes too early can hide why for a moment
        eventually(code, SOON, || {
            let (exit, items) = node.doctor_of(manifest.to_str().unwrap());
            let errors: Vec<&Value> = items.iter().filter(|it| it["severity"] == "error").collect();
            let fixes = |it: &Value| it["fix"].as_str().unwrap().contains(fix);
            // one cause, one error
            match errors[..] {
                [error] if exit == 1 && error["code"] == code && fixes(error) => Ok(()),
                _ => Err(format!("{exit} {items:#?}")),
            }
        })
        .unwrap();
    };
    let none = place.join("none.pem");
    finds(
        &[("--client-cert", none.to_str().unwrap())],
        "certificate-unreadable",
        "cluster certificate",
    );
    fs::write(place.join("nonsense.pem"), "nonsense").unwrap();
    let nonsense = place.join("nonsense.pem").to_str().unwrap().to_owned();
    finds(&[("--client-cert", &nonsense)], "certificate-unreadable", "cluster certificate");
    // the other installation's certificate, which ours does not know
    let cert = copy(&theirs.plugin_cert_file, "their.pem");
    let key = copy(&theirs.plugin_key_file, "their.key");
    chmod(Path::new(&key), 0o600);
    let both = [("--client-cert", &*cert), ("--client-key", &*key)];
    finds(&both, "identity-refused", "cluster certificate");
    finds(&[("--client-key", &key)], "private-key-unusable", "cluster certificate");
    chmod(Path::new(&nonsense), 0o600);
    finds(&[("--client-key", &nonsense)], "private-key-unusable", "cluster certificate");
    finds(&[("--client-key", none.to_str().unwrap())], "private-key-unusable", "certificate");
    fs::write(place.join("empty.pem"), "").unwrap();
    for name in ["none.pem", "empty.pem", "nonsense.pem"] {
        let ca = place.join(name).to_str().unwrap().to_owned();
        finds(&[("--ca-file", &ca)], "ca-unreadable", "lastkey ca print");
    }
    // the other installation's CA, or its server
    let ca = copy(&theirs.ca_file, "their-ca.pem");
    finds(&[("--ca-file", &ca)], "server-not-trusted", "--ca-file");
    finds(&[("--server", &theirs.url)], "server-not-trusted", "--ca-file");
    finds(&[("--key", "alias/nothing")], "identity-refused", "cluster list");
    let closed = format!("https://127.0.0.1:{}", free_port().unwrap());
    finds(&[("--server", &closed)], "server-unreachable", "the network");
    assert!(ours.plugin_cert_file.exists());
    node.is_well();
}

/// The plugin inside `up` is one as well.
#[test]
fn the_plugin_of_up_is_examined() {
    let node = Node::new();
    let socket = node.up.ready.plugin_socket.clone();
    let provider = node.provider();
    let own = node.plugin.socket.display().to_string();
    let theirs = provider.replace(&own, &socket.display().to_string());
    node.configure(&format!("{theirs}  - identity: {{}}\n"));
    let (exit, items) = node.doctor_of(&node.up.process.pid().to_string());
    assert_eq!(exit, 0, "{items:#?}");
    for code in ["plugin-works", "certificate-good", "server-allows-the-key", "clock-agrees"] {
        assert!(with_code(&items, code).is_some(), "no {code}: {items:#?}");
    }
}

/// A plugin of the cluster `prod`, whose files the test may replace, and another cluster's files.
#[test]
fn another_certificate_is_of_the_same_cluster() {
    let lab = Lab::new();
    let up = lab.up();
    let out = |name: &str| lab.path(name).to_str().unwrap().to_owned();
    let add = |name: &str, out: &str| {
        let words = ["cluster", "add", name, "--key", KEY, "--out", out];
        lab.lastkey.cli(Some(&up.ready.credentials_file), &words).unwrap()
    };
    for name in ["prod", "prod-2"] {
        let added = add(name, &out(name));
        assert_eq!(added.code, 0, "{added:?}");
    }
    let files = |name: &str| ["plugin.pem", "plugin.key"].map(|file| lab.path(name).join(file));
    let [certificate, key] = files("prod");
    let ready = lastkey_testbed::Ready {
        plugin_cert_file: certificate.clone(),
        plugin_key_file: key.clone(),
        ..up.ready.clone()
    };
    let mut plugin = Keeper::new(&lab, &ready);
    plugin.start();
    plugin.works();
    let config = lab.folder("config").join("encryption.yaml");
    let node = Node { manifest: lab.path("kube-apiserver.yaml"), lab, up, plugin, config };
    node.configure(&format!("{}  - identity: {{}}\n", node.provider()));
    node.pod("/livez?exclude=kms-providers");
    node.is_well();
    let before = node.plugin_key_id();
    // 1. What is named where another certificate is needed is a command that makes one.
    fs::rename(&certificate, certificate.with_extension("bak")).unwrap();
    let missing = node.finds("certificate-unreadable");
    assert!(missing["fix"].as_str().unwrap().contains("lastkey cluster certificate "), "{missing}");
    let out = |name: &str| node.lab.path(name).to_str().unwrap().to_owned();
    let credentials = &node.up.ready.credentials_file;
    let cli = |words: &[&str]| node.lab.lastkey.cli(Some(credentials), words).unwrap();
    let again = cli(&["cluster", "add", "prod", "--key", KEY, "--out", &out("again")]);
    let said = format!("{again:?}");
    assert!(
        again.code == 1 && said.contains("lastkey cluster certificate prod --out DIR"),
        "{said}"
    );
    // 2. Another cluster's is not taken up, and not called good.
    let put = |name: &str| {
        for (from, to) in files_in(&node, name).iter().zip([&certificate, &key]) {
            fs::copy(from, to).unwrap();
        }
    };
    put("prod-2");
    let differs = node.finds("plugin-key-differs");
    assert!(differs["message"].as_str().unwrap().contains(&before), "{differs}");
    eventually("it is said in the log", LATER, || match node.plugin.log() {
        log if log.contains("it is a certificate of the cluster") => Ok(()),
        log => Err(log),
    })
    .unwrap();
    assert_eq!(node.plugin_key_id(), before);
    // 3. One that is good is not replaced unasked.
    let anew = out("anew");
    let refused = cli(&["cluster", "certificate", "prod", "--out", &anew]);
    assert!(refused.code == 1 && format!("{refused:?}").contains("--replace"), "{refused:?}");
    assert!(!Path::new(&anew).exists(), "nothing is made before");
    let made = cli(&["cluster", "certificate", "prod", "--out", &anew, "--replace"]);
    assert_eq!(made.code, 0, "{made:?}");
    assert_eq!(made.json()["plugin"], "plugin");
    for name in ["plugin.pem", "plugin.key", "ca.pem"] {
        let mode = fs::metadata(Path::new(&anew).join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let twice = cli(&["cluster", "certificate", "prod", "--out", &anew, "--replace"]);
    assert!(twice.code == 1 && format!("{twice:?}").contains("exists already"), "{twice:?}");
    // 4. The one that was made is.
    put("anew");
    eventually("it is taken up", LATER, || match node.plugin.log() {
        log if log.contains("certificate was replaced") => Ok(()),
        log => Err(log),
    })
    .unwrap();
    assert_eq!(node.plugin_key_id(), before);
    eventually("the plugin is well again", SOON, || match node.doctor() {
        (0, _) => Ok(()),
        (_, items) => Err(format!("{items:#?}")),
    })
    .unwrap();
    // 5. For one more node.
    let more = cli(&["cluster", "certificate", "prod", "--plugin", "cp-2", "--out", &out("cp-2")]);
    assert_eq!(more.code, 0, "{more:?}");
    node.is_well();
}

/// Files are looked at every ten seconds.
const LATER: std::time::Duration = std::time::Duration::from_secs(60);

fn files_in(node: &Node, name: &str) -> [PathBuf; 2] {
    ["plugin.pem", "plugin.key"].map(|file| node.lab.path(name).join(file))
}

fn arguments(node: &Node) -> Vec<String> {
    let pid = node.plugin.main().as_raw_nonzero();
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    line.trim_end_matches('\0').split('\0').skip(1).map(str::to_owned).collect()
}

#[test]
fn a_table_for_people_and_nothing_to_look_at() {
    let lab = Lab::new();
    let missing = lab.path("none.yaml");
    let output = Command::new(lab.lastkey.binary())
        .args(["doctor", "--apiserver"])
        .arg(&missing)
        .arg("--plugin")
        .arg(&missing)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("SEVERITY") && text.contains("manifest-unreadable"), "{text}");
}

/// Metrics of audit sinks (`lastkey-sinks`, `metrics.rs`) and of rotations (`lastkey-server`,
/// `rotation_gauges.rs`), which this server has none of.
const SHOWN_ONCE_THERE_IS_ONE: [&str; 3] =
    ["lastkey_audit_sink_up", "lastkey_audit_sink_missed", "lastkey_rotation_failures"];

/// What `cluster config` prints is what the doctor calls fine; that others than Secrets are meant is
/// taken, and said.
#[test]
fn a_printed_configuration_encrypts_what_it_is_for() {
    let lab = Lab::new();
    let print = |resources: &[&str]| {
        let mut command = Command::new(lab.lastkey.binary());
        command.args(["cluster", "config", "encryption", "--server", "https://kms:7343"]);
        command.args(resources.iter().flat_map(|name| ["--resource", name]));
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    for (resources, warned) in [(&[][..], false), (&["*.*"], false), (&["configmaps"], true)] {
        let (code, file, said) = print(resources);
        assert_eq!((code, said.contains("leaves Secrets in clear")), (Some(0), warned), "{said}");
        let path = lab.path("printed.yaml");
        fs::write(&path, file).unwrap();
        let words = ["cluster", "doctor", "--encryption-config", path.to_str().unwrap()];
        let outcome = lab.lastkey.cli(None, &words).unwrap();
        let json = outcome.json();
        let uncovered = with_code(json["items"].as_array().unwrap(), "secrets-uncovered");
        assert_eq!((outcome.code, uncovered.is_some()), (i32::from(warned), warned), "{outcome:?}");
    }
    for (resources, fix) in [
        (&["secret"][..], "write `secrets`"),
        (&["secrets", "deployments"], "write `deployments.apps`"),
        (&["serviceipallocations"], "remove it"),
    ] {
        let (code, file, said) = print(resources);
        assert!(code == Some(2) && file.is_empty() && said.contains(fix), "{resources:?}: {said}");
    }
}

/// Every metric of ours that an alert or a panel names is one that server or plugin has.
#[test]
fn alerts_and_board_name_metrics_that_exist() {
    let lab = Lab::new();
    let up = lab.up();
    let address = format!("127.0.0.1:{}", free_port().unwrap());
    let mut plugin = Keeper::new(&lab, &up.ready).with(&["--metrics-listen", &address]);
    plugin.start();
    plugin.works();
    let ours = eventually("metrics are served", SOON, || {
        Client::plain(&address).get("/metrics")?.expect_ok("metrics")
    });
    let server = up.client().unwrap().get("/metrics").unwrap();
    let exposed = format!("{}\n{}", ours.unwrap().text(), server.text());
    let known: BTreeSet<&str> = exposed
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|line| line.split(' ').next())
        .map(|name| name.trim_end_matches("_total"))
        .chain(SHOWN_ONCE_THERE_IS_ONE.iter().copied())
        .collect();
    for piece in ["alerts", "dashboard"] {
        let output = Command::new(lab.lastkey.binary())
            .args(["cluster", "config", piece, "--server", "https://kms.example.org:7343"])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if piece == "dashboard" {
            let board: Value = serde_json::from_str(&text).unwrap();
            assert!(board["panels"].as_array().unwrap().len() > 10);
        }
        let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
        let named: BTreeSet<&str> =
            text.split(word).filter(|word| word.starts_with("lastkey_")).collect();
        assert!(named.len() > 8, "{named:?}");
        for name in named {
            let base = ["_total", "_bucket"].iter().fold(name, |it, end| it.trim_end_matches(end));
            assert!(known.contains(base), "{piece}: no metric {name} in {known:?}");
        }
    }
}

/// The image holds the binary and what it is linked with, and is the same whenever it is built.
#[test]
fn the_image_is_reproducible_and_runs() {
    let lab = Lab::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/oci/build-image.sh");
    let build = |name: &str, zone: &str, mask: &str| {
        let image = lab.path(name);
        let output = Command::new("/bin/sh")
            .args(["-c", &format!("umask {mask}; exec \"$0\" \"$@\""), script])
            .args([lab.lastkey.binary(), image.as_path()])
            .arg("localhost/lastkey:test")
            .env("TZ", zone)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (fs::read(image).unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (one, digest) = build("one.tar", "UTC", "022");
    let (two, _) = build("two.tar", "Asia/Tokyo", "077");
    assert!(one == two, "two builds differ");
    drop((one, two));
    let unpack = |archive: &Path, name: &str| {
        let place = lab.folder(name);
        let tar = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&place).status();
        assert!(tar.unwrap().success());
        place
    };
    let layout = unpack(&lab.path("one.tar"), "layout");
    let json =
        |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let blob = |digest: &Value| {
        layout.join("blobs/sha256").join(digest.as_str().unwrap().strip_prefix("sha256:").unwrap())
    };
    let index = json(layout.join("index.json"));
    let named = &index["manifests"][0];
    assert_eq!(named["digest"], digest.trim());
    assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "localhost/lastkey:test");
    let manifest = json(blob(&named["digest"]));
    let layer = blob(&manifest["layers"][0]["digest"]);
    assert_eq!(fs::metadata(&layer).unwrap().len(), manifest["layers"][0]["size"]);
    let config = json(blob(&manifest["config"]["digest"]));
    assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/local/bin/lastkey");
    let root = unpack(&layer, "root");
    assert!(!root.join("bin").exists(), "no shell");
    if rustix::process::geteuid().is_root() {
        let mut run = Command::new("chroot");
        let output = run.arg(&root).args(["/usr/local/bin/lastkey", "--version"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// containerd keeps an imported image under the name in its index, and the kubelet looks for the one
/// in the pod. All that is printed and packaged means one image by default.
#[test]
fn the_image_that_is_built_is_the_one_that_pods_name() {
    let lab = Lab::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/oci/build-image.sh");
    let image = lab.path("image.tar");
    let build = |name: &[&str]| {
        let mut command = Command::new("/bin/sh");
        command.arg(script).args([lab.lastkey.binary(), image.as_path()]).args(name);
        command.output().unwrap()
    };
    let built = build(&[]);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let index =
        Command::new("tar").arg("-xOf").arg(&image).arg("./index.json").output().unwrap().stdout;
    let index: Value = serde_json::from_slice(&index).unwrap();
    let annotations = &index["manifests"][0]["annotations"];
    let name = annotations["io.containerd.image.name"].as_str().unwrap();
    assert_eq!(annotations["org.opencontainers.image.ref.name"], name);
    assert_eq!(String::from_utf8(built.stderr).unwrap().trim(), name);
    // a reference that completing leaves as it is, and no kubelet fetches
    assert_eq!(name, concat!("localhost/lastkey:", env!("CARGO_PKG_VERSION")));

    let server = ["--server", "https://kms.example.org:7343"];
    let print = |args: &[&str]| {
        let mut command = Command::new(lab.lastkey.binary());
        command.args(["cluster", "config"]).args(args).args(server).output().unwrap()
    };
    // the value of the line that begins with this
    let value = |yaml: &[u8], field: &str| {
        let yaml = std::str::from_utf8(yaml).unwrap();
        let line = yaml.lines().find_map(|line| line.trim().strip_prefix(field)).unwrap();
        line.trim().trim_matches('"').to_owned()
    };
    let pod = print(&["static-pod"]).stdout;
    assert_eq!(
        (value(&pod, "image:"), value(&pod, "imagePullPolicy:")),
        (name.into(), "Never".into())
    );
    let enrol = ["helm", "--enrol", "83eb9abc-da3e-494e-b0e6-96b3c401cd15"];
    assert_eq!(value(&print(&enrol).stdout, "image:"), name);
    let chart = fs::read(packaged("helm/lastkey-kms-plugin/values.yaml")).unwrap();
    assert_eq!(value(&chart, "image:"), name);

    // What would be looked for elsewhere is refused by both, with the way out.
    for wrong in ["lastkey:1", "acme/lastkey:1", "localhost/lastkey"] {
        let printed = print(&["static-pod", "--image", wrong]);
        let (built, printed) = (build(&[wrong]), (printed.status.code(), printed.stderr));
        assert!(!built.status.success() && printed.0 == Some(2), "{wrong}: {printed:?}");
        for said in [built.stderr, printed.1] {
            let said = String::from_utf8(said).unwrap();
            assert!(said.contains("localhost/"), "{wrong}: {said}");
        }
    }
}

/// A file of the project.
fn packaged(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(path)
}
