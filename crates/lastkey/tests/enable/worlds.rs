//! A cluster of its own for each test, and the command under way.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
};

use lastkey_testbed::{ApiserverOptions, Outcome, Peers, Ready, Running};
use serde_json::Value;

use crate::support::{Cluster, Lab, PLAINTEXT};

pub(crate) const SECRETS: usize = 60;
pub(crate) const RELOADS: &str = "--encryption-provider-config-automatic-reload=true";
pub(crate) const AES: &str = "  # as in 2024\n  - aescbc:\n      keys:\n      - name: k1\n        secret: p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=\n";
pub(crate) const BOX: &str = "  - secretbox:\n      keys:\n      - name: k1\n        secret: qJf8Zz0uT3kV5x1mWb7yRc9dLh2nEo4sGpXaKiUvM6Q=\n";
pub(crate) const CLEAR: &str = "  - identity: {}\n";

/// A cluster whose configuration is one of its own, registered with its etcd.
pub(crate) struct World {
    pub(crate) lab: Lab,
    pub(crate) up: Running,
    pub(crate) cluster: Cluster,
    pub(crate) config: PathBuf,
    pub(crate) names: Vec<String>,
}

impl World {
    pub(crate) fn new(
        test: &str,
        version: &str,
        providers: &[&str],
        flags: &[&str],
    ) -> Option<Self> {
        let peers = Peers::or_skip(test, &["etcd", &format!("kube-apiserver-{version}")])?;
        let lab = Lab::new();
        let up = lab.up();
        let config = lab.folder("etc").join("encryption.yaml");
        write_config(&config, providers);
        let options = ApiserverOptions { version, encryption_config: &config, flags };
        let cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
        let names = cluster.create_secrets("s", SECRETS);
        let world = Self { lab, up, cluster, config, names };
        world.register();
        Some(world)
    }

    pub(crate) fn register(&self) {
        self.register_at(&[]);
    }

    /// With these apiservers; by default the one that its kubeconfig names.
    pub(crate) fn register_at(&self, urls: &[String]) {
        self.register_with(urls, &["--etcd", self.cluster.etcd.url()]);
    }

    /// What rests in etcd cannot be looked at.
    pub(crate) fn register_without_etcd(&self) {
        self.register_with(&[], &[]);
    }

    fn register_with(&self, urls: &[String], etcd: &[&str]) {
        let out = self.lab.path("identity");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (kubeconfig, config) = (text(self.cluster.apiserver.kubeconfig()), text(&self.config));
        let add = [
            "cluster",
            "add",
            "prod",
            "--kubeconfig",
            &kubeconfig,
            "--encryption-config",
            &config,
            "--out",
            &text(&out),
        ];
        let urls = urls.iter().flat_map(|url| ["--apiserver", url]);
        let more = urls.chain(etcd.iter().copied());
        self.lab.cli(self.ready(), &add.into_iter().chain(more).collect::<Vec<_>>());
    }

    pub(crate) fn ready(&self) -> &Ready {
        &self.up.ready
    }

    pub(crate) fn start(&self, verb: &str, more: &[&str]) -> Work {
        Work::start(self, verb, more)
    }

    /// Runs it to its end; answers with the report.
    pub(crate) fn run(&self, verb: &str, more: &[&str]) -> Value {
        let mut work = self.start(verb, more);
        let report = work.wait_for(|event| event["event"] == "report");
        assert!(work.child.wait().unwrap().success());
        report
    }

    pub(crate) fn cli(&self, args: &[&str]) -> Outcome {
        self.lab.lastkey.cli(Some(&self.ready().credentials_file), args).unwrap()
    }

    /// Etcd's Secrets, by what each value begins with.
    pub(crate) fn stored(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for (_, value) in self.cluster.etcd.list("/registry/secrets/default/").unwrap() {
            *counts.entry(beginning(&value.bytes)).or_default() += 1;
        }
        counts
    }

    pub(crate) fn assert_all_under(&self, prefix: &str) {
        assert_eq!(self.stored(), BTreeMap::from([(prefix.to_owned(), SECRETS)]));
        self.cluster.assert_readable(&self.names);
    }

    pub(crate) fn providers(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.config).unwrap();
        let config = lastkey_kubernetes::encryption_config::examine(&text).config;
        let of_secrets = config.providers_of("secrets");
        of_secrets.iter().map(|provider| provider.kind().unwrap().name().to_owned()).collect()
    }

    pub(crate) fn encryption(&self) -> Value {
        let status = self.lab.cli(self.ready(), &["cluster", "status", "prod"]);
        status["items"][0]["encryption"].clone()
    }
}

pub(crate) fn beginning(value: &[u8]) -> String {
    let Some(rest) = value.strip_prefix(b"k8s:enc:") else { return "clear".to_owned() };
    let text = String::from_utf8_lossy(&rest[..rest.len().min(60)]).into_owned();
    let parts: Vec<&str> = text.split(':').take(3).collect();
    if parts[0] == "kms" { parts.join(":") } else { parts[0].to_owned() }
}

pub(crate) fn write_config(file: &Path, providers: &[&str]) {
    let text = format!(
        "# by hand\napiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
         resources:\n- resources:\n  - secrets\n  providers:\n{}",
        providers.concat()
    );
    std::fs::write(file, text).unwrap();
}

/// `lastkey cluster enable` or `disable` under way.
pub(crate) struct Work {
    pub(crate) child: Child,
    pub(crate) lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Work {
    pub(crate) fn start(world: &World, verb: &str, more: &[&str]) -> Self {
        let mut child = Command::new(world.lab.lastkey.binary())
            .args(["cluster", verb, "prod"])
            .args(more)
            .args(["--output", "json"])
            .env("LASTKEY_CREDENTIALS", &world.ready().credentials_file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The first event that is wanted.
    pub(crate) fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut seen = Vec::new();
        for line in self.lines.by_ref() {
            let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert!(!event.to_string().contains(PLAINTEXT), "no event shows a value");
            if wanted(&event) {
                return event;
            }
            seen.push(event.to_string());
        }
        let said = self.errors();
        panic!("it ended without what was waited for:\n{}\n{said}", seen.join("\n"));
    }

    /// What it says on standard error, until it ends.
    pub(crate) fn errors(&mut self) -> String {
        let mut said = String::new();
        if let Some(mut errors) = self.child.stderr.take() {
            errors.read_to_string(&mut said).unwrap();
        }
        said
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
