//! The restore drill: a snapshot of etcd and a backup of our state, brought up together and read.
//!
//! 1. The backup is copied into the scratch directory; the snapshot restored into it, its hash
//!    checked.
//! 2. etcd runs on what was restored, and every value's beginning is looked at: by whom and under
//!    which key version it was encrypted. Nobody has written to it yet.
//! 3. Our server runs on the copy, on a port and sockets of its own, and is unsealed. It notices
//!    that it is a copy and gives every key a new epoch, as after any restore.
//! 4. For each cluster that objects were encrypted for, the server issues an identity, and a plugin
//!    runs with it: the policy that applies to a real plugin applies here.
//! 5. An apiserver runs on etcd with every provider that occurs, and each object is read by itself,
//!    because a list fails as a whole if one of its objects cannot be read.
//! 6. What failed is looked at once more, and a reason found for it.

mod findings;
pub(crate) mod reading;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use lastkey_crypto::ClusterId;
use serde_json::{Value, json};
use tokio::time::Instant;

use self::{
    findings::Findings,
    reading::{Outcome, Reading},
};
use crate::{
    DrillError, Event, LocalProviders, Operator, Programs, Scratch,
    apiserver::{Apiserver, Options},
    child::{Child, Ground},
    copy,
    etcd::{self, Etcd},
    lastkey::{Plugin, Server},
    objects::{Contents, Origin},
    pki::Authority,
    report::{self, RestoreReport},
    scratch::write_private,
    state::Known,
};

/// For checks of an apiserver that fail for whatever a snapshot holds.
const PATIENCE: Duration = Duration::from_secs(60);

/// What our plugin is called on the copy.
const PLUGIN: &str = "drill";

/// What is restored, and how.
pub struct Restore {
    /// The programs.
    pub programs: Programs,
    /// Where the scratch directory is made.
    pub scratch_dir: PathBuf,
    /// The snapshot of etcd.
    pub snapshot: PathBuf,
    /// The copy of our data directory.
    pub state: PathBuf,
    /// The root key, where it is kept apart.
    pub root_key: Option<PathBuf>,
    /// Keys of local providers.
    pub local: LocalProviders,
    /// The apiservers' `--etcd-prefix`.
    pub prefix: String,
    /// Take a snapshot without a hash.
    pub skip_hash_check: bool,
    /// Options of the server that reach a token.
    pub token: Vec<OsString>,
    /// Further flags of the apiserver.
    pub apiserver_flags: Vec<String>,
    /// Kinds that no apiserver serves any more and nobody misses, as they are called in etcd.
    pub leftovers: Vec<String>,
    /// How many objects are read at once.
    pub workers: usize,
}

/// A provider of the scratch apiserver that is our plugin.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Provider {
    name: String,
    api: &'static str,
    cluster: ClusterId,
}

impl Restore {
    /// Holds the drill.
    ///
    /// # Errors
    /// When it cannot be held. What cannot be read is in the report.
    pub async fn run(&self, operator: &mut dyn Operator) -> Result<RestoreReport, DrillError> {
        let began = Instant::now();
        // before anything large is copied
        etcd::look_at(&self.snapshot)?;
        let scratch = Scratch::new(&self.scratch_dir)?.swept_by(&self.programs.lastkey)?;
        let started = made_at(scratch.root());
        let ground = self.ground(&scratch)?;
        // 1.
        step(operator, "copying the backup");
        let (data, copied) = copy::state(&self.state, self.root_key.as_deref(), &scratch).await?;
        step(operator, "restoring the snapshot");
        let snapshot = self.restore_snapshot(&scratch, &ground).await?;
        // 2.
        step(operator, "starting etcd");
        let ca = Authority::new()?;
        let prefix = format!("/{}", self.prefix.trim_matches('/'));
        let etcd = (self.programs.etcd.as_path(), &ground);
        let etcd = Etcd::start(etcd, &ca, scratch.root(), &prefix).await?;
        let mut contents = Contents::default();
        let below = format!("{prefix}/");
        let note = |key: &[u8], value: &[u8]| contents.note(&below, key, value);
        etcd.reader()?.scan(&below, note).await?;
        if contents.items.is_empty() {
            let reason =
                format!("it holds nothing below {below}; give the apiservers' --etcd-prefix");
            return Err(DrillError::Snapshot { file: self.snapshot.clone(), reason });
        }
        // 3.
        step(operator, "starting the server on the copy of the backup");
        let server = Server::start(&ground, &data, "127.0.0.1:0", &self.token).await;
        let server = server.map_err(|error| self.state_failed(error))?;
        let opened = server.open(operator).await?;
        let known = Known::of(&server.client, &wanted(&contents)).await?;
        // 4. and 5.
        let mut findings = Findings::new(&contents, &known, (&self.local, &self.leftovers));
        findings.needs_acceptance(opened.held.as_deref());
        let passes = passes(&contents, &known);
        let cluster = ScratchCluster { drill: self, ground: &ground, ca: &ca, etcd: &etcd };
        for (number, providers) in passes.iter().enumerate() {
            let plugins = cluster.plugins((&server, &known), providers, &scratch).await?;
            cluster.pass((number, providers), &scratch, (&mut findings, &mut *operator)).await?;
            drop(plugins);
        }
        // 6.
        let state = report::State {
            directory: self.state.display().to_string(),
            bytes: copied.bytes,
            unsealed_by: opened.by(),
            seal: opened.seal,
            clusters: known.clusters.len() as u64,
            key_versions: known.versions.len() as u64,
            newest_key_version: known.newest_before(&started),
            needs_acceptance: opened.held,
        };
        let snapshot =
            report::Snapshot { file: self.snapshot.display().to_string(), status: snapshot };
        let mut report = findings.report(snapshot, state);
        report.seconds = began.elapsed().as_secs();
        Ok(report)
    }

    fn ground(&self, scratch: &Scratch) -> Result<Ground, DrillError> {
        Ok(Ground { lastkey: self.programs.lastkey.clone(), directory: scratch.folder("run")? })
    }

    async fn restore_snapshot(
        &self,
        scratch: &Scratch,
        ground: &Ground,
    ) -> Result<etcd::SnapshotStatus, DrillError> {
        let size = std::fs::metadata(&self.snapshot).map_or(0, |meta| meta.len());
        // the copy, etcd's log (its files have 64 MB from the beginning), what a start writes
        scratch.needs(size.saturating_mul(2) + (200 << 20))?;
        let etcdutl = self.programs.etcdutl.as_deref().unwrap_or(Path::new("etcdutl"));
        let data = scratch.root().join("etcd");
        etcd::restore((etcdutl, ground), &self.snapshot, &data, self.skip_hash_check).await
    }

    /// A server that does not start on a backup says why; that is what is wrong with the backup.
    fn state_failed(&self, error: DrillError) -> DrillError {
        match error {
            DrillError::Ended { log, .. } => {
                let said = log.lines().rev().find_map(|line| {
                    let error: Value = serde_json::from_str(line).ok()?;
                    error["error"]["message"].as_str().map(str::to_owned)
                });
                let reason = said.unwrap_or(log);
                DrillError::State { directory: self.state.clone(), reason }
            }
            other => other,
        }
    }
}

/// Everything that a pass needs beside its providers.
struct ScratchCluster<'a> {
    drill: &'a Restore,
    ground: &'a Ground,
    ca: &'a Authority,
    etcd: &'a Etcd,
}

impl ScratchCluster<'_> {
    /// A plugin for each cluster.
    async fn plugins(
        &self,
        (server, known): (&Server, &Known),
        providers: &BTreeSet<Provider>,
        scratch: &Scratch,
    ) -> Result<Vec<Child>, DrillError> {
        let clusters: BTreeSet<ClusterId> = providers.iter().map(|one| one.cluster).collect();
        let mut plugins = Vec::with_capacity(clusters.len());
        for cluster in clusters {
            let Some(key) = known.key_for(cluster) else { continue };
            let directory = scratch.folder(&format!("plugin-{}", short(cluster)))?;
            let plugin = Plugin {
                name: format!("kms-plugin-{}", short(cluster)),
                socket: socket(scratch.root(), cluster),
                key: key.to_string(),
                server: server.url.clone(),
                identity: server.identity((cluster, PLUGIN), &directory).await?,
                leases: Vec::new(),
            };
            plugins.push(plugin.start(self.ground).await?);
        }
        Ok(plugins)
    }

    /// An apiserver with these providers, and every object that is read by it.
    async fn pass(
        &self,
        (number, providers): (usize, &BTreeSet<Provider>),
        scratch: &Scratch,
        (findings, operator): (&mut Findings<'_>, &mut dyn Operator),
    ) -> Result<(), DrillError> {
        step(operator, "starting an apiserver");
        let config = scratch.root().join("encryption-config.json");
        let content = self.config(providers, scratch.root()).to_string();
        write_private(&config, zeroize::Zeroizing::new(content).as_bytes())?;
        let mut flags = self.drill.apiserver_flags.clone();
        if providers.iter().any(|provider| provider.api == "v1") {
            flags.insert(0, "--feature-gates=KMSv1=true".to_owned());
        }
        let options = Options {
            name: "kube-apiserver",
            encryption_config: &config,
            flags: &flags,
            patience: PATIENCE,
        };
        let program = (self.drill.programs.kube_apiserver.as_path(), self.ground);
        let mut apiserver =
            Apiserver::start(program, (self.etcd, self.ca), scratch.root(), &options).await?;
        let wanted = findings.items_of(number, |name, api, cluster| {
            providers.contains(&Provider { name: name.to_owned(), api, cluster })
        });
        step(operator, &format!("reading {} objects one by one", wanted.len()));
        let mut reading = Reading::new(&apiserver.api, self.etcd, self.drill.workers);
        reading.find_resources(findings.contents(), &wanted).await?;
        let outcomes = reading.read_all(findings.contents(), &wanted, operator).await?;
        // an apiserver that has ended says no less about what it could not answer any more
        apiserver.child.check()?;
        if findings.take(&reading, &wanted, outcomes) {
            findings.note_unready(&apiserver.failing().await?);
        }
        Ok(())
    }

    /// Reads everything; writes, of which there is next to none, in clear.
    fn config(&self, providers: &BTreeSet<Provider>, root: &Path) -> Value {
        let identity = json!({ "identity": {} });
        let plugins = providers.iter().map(|provider| {
            let endpoint = format!("unix://{}", socket(root, provider.cluster).display());
            json!({ "kms": {
                "apiVersion": provider.api, "name": provider.name, "endpoint": endpoint,
                // a busy machine is no reason to call an object unreadable
                "timeout": "10s",
            } })
        });
        let providers: Vec<Value> =
            std::iter::once(identity).chain(plugins).chain(self.drill.local.providers()).collect();
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "EncryptionConfiguration",
            "resources": [{ "resources": ["*.*"], "providers": providers }],
        })
    }
}

/// The versions that objects rest under.
fn wanted(contents: &Contents) -> HashSet<lastkey_crypto::KeyVersionId> {
    let ours = contents.origins.iter().filter_map(|origin| match origin {
        Origin::Ours { version, .. } => Some(*version),
        _ => None,
    });
    ours.collect()
}

/// Which providers the apiserver has, one time after another: a name stands for one cluster at a
/// time only. There is always one pass, and nearly always no other.
fn passes(contents: &Contents, known: &Known) -> Vec<BTreeSet<Provider>> {
    let mut by_name: BTreeMap<&str, BTreeSet<Provider>> = BTreeMap::new();
    for origin in &contents.origins {
        let Origin::Ours { api, provider, cluster, .. } = origin else { continue };
        if known.key_for(*cluster).is_some() {
            let one = Provider { name: provider.clone(), api, cluster: *cluster };
            by_name.entry(provider).or_default().insert(one);
        }
    }
    let count = by_name.values().map(BTreeSet::len).max().unwrap_or(0).max(1);
    let pass = |number: usize| {
        by_name.values().filter_map(|one| one.iter().nth(number).cloned()).collect()
    };
    (0..count).map(pass).collect()
}

fn socket(root: &Path, cluster: ClusterId) -> PathBuf {
    root.join(format!("{}.sock", short(cluster)))
}

/// Enough of an id to tell a handful of clusters apart: the path of a socket has to be short.
fn short(cluster: ClusterId) -> String {
    let text = cluster.to_string();
    text.rsplit('-').next().unwrap_or(&text).to_owned()
}

fn step(operator: &mut dyn Operator, what: &str) {
    operator.tell(&Event::Step(what.to_owned()));
}

/// When a directory was made, as the server writes times.
fn made_at(directory: &Path) -> String {
    let made = std::fs::metadata(directory).and_then(|meta| meta.modified()).ok();
    let made = made.and_then(|time| jiff::Timestamp::try_from(time).ok());
    made.map(|time| format!("{time:.3}")).unwrap_or_default()
}

/// What a pass came to.
type Outcomes = Vec<Outcome>;
