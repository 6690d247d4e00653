//! A scratch etcd: empty, or with what a snapshot holds. Nobody on the machine but us can talk to
//! it: it wants a certificate of ours, because what it holds may be in clear.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use lastkey_kubernetes::cluster::{Etcd as Reader, EtcdAccess};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    DrillError,
    child::{Child, Environment, Ground, LOOK_EVERY, Program, late},
    pki::Authority,
    scratch::free_port,
};

const START: Duration = Duration::from_secs(120);
/// A snapshot of some gigabytes is copied and its hash computed.
const RESTORE: Duration = Duration::from_secs(1800);
/// Never dialled: there is one member.
const PEER: &str = "https://127.0.0.1:2380";
const NAME: &str = "drill";
/// A port that was free may be taken a moment later.
const ATTEMPTS: usize = 3;

/// A snapshot, as `etcdutl snapshot status` describes it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SnapshotStatus {
    /// Over all keys and values, as eight hexadecimal digits.
    pub hash: String,
    /// The store's revision.
    pub revision: i64,
    /// How many keys, all their revisions and etcd's own included.
    pub keys: i64,
    /// Bytes.
    pub size: i64,
    /// The version of the storage; empty before 3.6.
    pub version: String,
}

/// A running etcd.
pub(crate) struct Etcd {
    pub(crate) child: Child,
    pub(crate) access: EtcdAccess,
    pub(crate) files: Files,
    pub(crate) url: String,
}

/// What a client of it shows.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) ca: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Whether a snapshot is a file with something in it.
pub(crate) fn look_at(snapshot: &Path) -> Result<(), DrillError> {
    let broken = |reason: String| DrillError::Snapshot { file: snapshot.to_owned(), reason };
    let file = std::fs::File::open(snapshot).map_err(|error| broken(error.to_string()))?;
    match file.metadata() {
        Ok(meta) if meta.is_file() && meta.len() > 0 => Ok(()),
        _ => Err(broken("it is no file with something in it".to_owned())),
    }
}

/// Looks at a snapshot and restores it into `data`; its own hash is checked unless that is waived.
pub(crate) async fn restore(
    (etcdutl, ground): (&Path, &Ground),
    snapshot: &Path,
    data: &Path,
    skip_hash_check: bool,
) -> Result<SnapshotStatus, DrillError> {
    let broken = |reason: String| DrillError::Snapshot { file: snapshot.to_owned(), reason };
    let run = |name: &str, args: Vec<OsString>| {
        let program = Program {
            name: name.to_owned(),
            path: etcdutl.to_owned(),
            args,
            environment: Environment::Bare,
        };
        Child::start(&program, ground)
    };
    let mut args: Vec<OsString> = vec!["snapshot".into(), "restore".into(), snapshot.into()];
    args.extend(["--data-dir".into(), data.into(), "--name".into(), NAME.into()]);
    args.extend(["--initial-cluster".into(), format!("{NAME}={PEER}").into()]);
    args.extend(["--initial-advertise-peer-urls".into(), PEER.into()]);
    if skip_hash_check {
        args.push("--skip-hash-check".into());
    }
    // the restore first: it checks the file's own hash before anything is believed
    run("etcdutl-restore", args)?.output(RESTORE).await.map_err(|e| broken(why(&e)))?;
    let args = ["snapshot", "status", "--write-out", "json"].map(OsString::from);
    let args = args.into_iter().chain([snapshot.into()]).collect();
    let said = run("etcdutl-status", args)?.output(RESTORE).await.map_err(|e| broken(why(&e)))?;
    parse_status(&said).ok_or_else(|| broken("etcdutl describes it in a way unknown".to_owned()))
}

/// What etcdutl says is wrong, in one sentence.
fn why(error: &DrillError) -> String {
    let DrillError::Ended { log, .. } = error else { return error.to_string() };
    let said = log.lines().rev().find_map(|line| line.strip_prefix("Error: "));
    let said = said.unwrap_or_else(|| {
        let line = log.lines().find(|line| line.contains("panic:"));
        line.or_else(|| log.lines().last()).unwrap_or("no reason is given")
    });
    if said.contains("missing hash") {
        return format!(
            "{said}: it was not made by `etcdctl snapshot save`. For a copy of etcd's own file \
             (member/snap/db) give --skip-hash-check"
        );
    }
    if said.starts_with("expected sha256") {
        return "its content is not what its hash says: it is damaged or was changed".to_owned();
    }
    said.chars().take(500).collect()
}

/// Reads what `etcdutl snapshot status --write-out json` prints.
pub(crate) fn parse_status(text: &str) -> Option<SnapshotStatus> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Status {
        hash: u32,
        revision: i64,
        total_key: i64,
        total_size: i64,
        #[serde(default)]
        version: String,
    }
    let status: Status = serde_json::from_str(text.trim()).ok()?;
    Some(SnapshotStatus {
        hash: format!("{:08x}", status.hash),
        revision: status.revision,
        keys: status.total_key,
        size: status.total_size,
        version: status.version.chars().take(32).collect(),
    })
}

impl Etcd {
    /// Starts one on `<directory>/etcd` and waits until it answers. `prefix` is where the
    /// apiserver keeps its objects.
    pub(crate) async fn start(
        (program, ground): (&Path, &Ground),
        ca: &Authority,
        directory: &Path,
        prefix: &str,
    ) -> Result<Self, DrillError> {
        let ca_file = directory.join("etcd-ca.pem");
        crate::scratch::write_private(&ca_file, ca.certificate.as_bytes())?;
        let (cert, key) = ca.server("etcd")?.write(directory, "etcd")?;
        let client = ca.client("drill", "")?;
        let (certificate, client_key) = client.write(directory, "etcd-client")?;
        let files = Files { ca: ca_file, certificate, key: client_key };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (port, peer) = (free_port()?, free_port()?);
            let url = format!("https://127.0.0.1:{port}");
            let program = Program {
                name: "etcd".to_owned(),
                path: program.to_owned(),
                args: args(&directory.join("etcd"), (&files.ca, &cert, &key), (&url, peer)),
                environment: Environment::Bare,
            };
            let access = EtcdAccess {
                servers: vec![url.parse()?],
                ca_pem: Some(ca.certificate.clone()),
                certificate_pem: Some(client.certificate.clone()),
                key_pem: Some(client.key.clone()),
                prefix: prefix.to_owned(),
            };
            let child = Child::start(&program, ground)?;
            let mut etcd = Self { child, access, files: files.clone(), url };
            match etcd.wait().await {
                Ok(()) => return Ok(etcd),
                Err(DrillError::Ended { log, .. })
                    if attempt < ATTEMPTS && log.contains("address already in use") => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn wait(&mut self) -> Result<(), DrillError> {
        let mut reader = self.reader()?;
        let start = Instant::now();
        loop {
            self.child.check()?;
            match reader.scan("/lastkey-drill-asks-whether-you-answer/", |_, _| {}).await {
                Ok(_) => return Ok(()),
                Err(error) if start.elapsed() > START => {
                    return Err(late("etcd answers", START, &error.to_string()));
                }
                Err(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Reads what it holds.
    pub(crate) fn reader(&self) -> Result<Reader, DrillError> {
        Ok(Reader::new(&self.access)?)
    }
}

fn args(
    data: &Path,
    (ca, cert, key): (&Path, &Path, &Path),
    (url, peer): (&str, u16),
) -> Vec<OsString> {
    let mut args: Vec<OsString> = vec!["--data-dir".into(), data.into()];
    let file = |args: &mut Vec<OsString>, flag: &str, path: &Path| {
        args.extend([flag.into(), path.into()]);
    };
    for of in ["", "peer-"] {
        file(&mut args, &format!("--{of}trusted-ca-file"), ca);
        file(&mut args, &format!("--{of}cert-file"), cert);
        file(&mut args, &format!("--{of}key-file"), key);
        args.push(format!("--{of}client-cert-auth").into());
    }
    let peer = format!("https://127.0.0.1:{peer}");
    for (flag, value) in [
        ("--name", NAME),
        ("--listen-client-urls", url),
        ("--advertise-client-urls", url),
        ("--listen-peer-urls", &peer),
        ("--initial-advertise-peer-urls", PEER),
        ("--initial-cluster", &format!("{NAME}={PEER}")),
        // it is thrown away in the end
        ("--unsafe-no-fsync", "true"),
        ("--log-level", "warn"),
    ] {
        // a flag that is a boolean takes its value behind `=` only
        args.push(format!("{flag}={value}").into());
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_etcdutl_says_is_read() {
        let text =
            r#"{"hash":3474280705,"revision":5,"totalKey":12,"totalSize":24576,"version":"3.6.0"}"#;
        let status = parse_status(text).unwrap();
        assert_eq!((status.hash.as_str(), status.revision, status.keys), ("cf155101", 5, 12));
        assert_eq!(parse_status("{}"), None);
        let ended = |log: &str| {
            let (name, status) = ("etcdutl".to_owned(), "exit status: 1".to_owned());
            why(&DrillError::Ended { name, status, log: log.to_owned() })
        };
        assert!(ended("Error: expected sha256 [1 2], got [3 4]").contains("damaged"));
        let missing = "x\nError: snapshot missing hash but --skip-hash-check=false";
        assert!(ended(missing).contains("give --skip-hash-check"));
        assert_eq!(ended("Error: invalid database"), "invalid database");
        assert_eq!(
            ended("goroutine 1\npanic: page 3 already freed\nx"),
            "panic: page 3 already freed"
        );
    }
}
