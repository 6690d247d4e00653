//! A cluster's Secrets brought under a new key version: by `lastkey cluster rotate`, by the loop that
//! people run today, and by bare workers, which list by pages, write back, and do nothing else.
//!
//! All three have the same apiserver, the same Secrets, which are stale before each turn, and the same
//! credential; the bare workers have our HTTP client, too. They speak JSON, as a tool that somebody
//! writes for this does; ours speaks protobuf. The cluster is registered with its etcd, in which ours
//! sees that nothing is left.

mod bare;

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lastkey_testbed::{
    Apiserver, ApiserverOptions, Encrypted, Etcd, Lastkey, Peers, Ready, eventually,
};
use serde_json::{Value, json};

pub(crate) use self::bare::run as run_bare;
use crate::{
    error::Error,
    options::Options,
    report::{Reporter, RotateLine, say},
    sides::{KEY, Ours, binary},
    stats::{least, median, most},
};

const VERSION: &str = "1.37.0";
/// The loop takes its time.
const MOST_ROUNDS: usize = 3;
/// What ours and the bare workers write at once, and list at once.
const WORKERS: usize = 16;
const PAGE: u32 = 500;
/// Bytes of a Secret's value, as its JSON has them.
const VALUE: usize = 1024;
const MAKERS: usize = 8;
/// An apiserver asks for the key id once a minute.
const CONVERGENCE: Duration = Duration::from_secs(180);
const PREFIX: &str = "/registry/secrets/default/";

/// One turn of ours.
struct Rotation {
    /// The pass that writes.
    pass: f64,
    /// All of it, from start to end of the process.
    whole: f64,
}

/// Measures rotations.
pub(crate) fn measure(
    options: &Options,
    ours: &Ours,
    dir: &Path,
    reporter: &mut Reporter,
) -> Result<(), Error> {
    let dir = dir.join("rotate");
    let field = Field::start(options, ours, &dir)?;
    let rounds = options.rounds.min(MOST_ROUNDS);
    let (mut loops, mut bares, mut rotations) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        for turn in 0..3 {
            field.make_stale()?;
            match (turn + round) % 3 {
                0 => loops.push(field.loop_over(round)?),
                1 => bares.push(field.bare()?),
                _ => rotations.push(field.rotate()?),
            }
            field.check()?;
        }
    }
    let objects = options.objects as f64;
    let over = |of: &dyn Fn(usize) -> f64| (0..rounds).map(of).collect::<Vec<_>>();
    let to_bare = over(&|round| bares[round] / rotations[round].pass);
    let to_loop = over(&|round| loops[round] / rotations[round].whole);
    let pass = median(rotations.iter().map(|rotation| rotation.pass));
    reporter.rotation(RotateLine {
        event: "rotate",
        objects: options.objects,
        rounds,
        loop_s: median(loops),
        bare_per_second: objects / median(bares),
        pass_per_second: objects / pass,
        whole_s: median(rotations.iter().map(|rotation| rotation.whole)),
        to_bare: median(to_bare.iter().copied()),
        to_bare_min: least(&to_bare),
        to_bare_max: most(&to_bare),
        to_loop: median(to_loop.iter().copied()),
        to_loop_min: least(&to_loop),
        to_loop_max: most(&to_loop),
    })
}

/// A cluster with Secrets.
struct Field<'a> {
    options: &'a Options,
    ready: &'a Ready,
    lastkey: Lastkey,
    apiserver: Apiserver,
    etcd: Etcd,
    peers: Peers,
    dir: &'a Path,
}

impl<'a> Field<'a> {
    fn start(options: &'a Options, ours: &'a Ours, dir: &'a Path) -> Result<Self, Error> {
        let kube = format!("kube-apiserver-{VERSION}");
        let peers = Peers::find(&["etcd", &kube, "kubectl"])?;
        std::fs::create_dir_all(dir)?;
        let (ready, lastkey) = (ours.ready(), Lastkey::new(binary(options)?, dir));
        let etcd = Etcd::start(&peers, dir)?;
        let config = &ready.encryption_config_file;
        let start = ApiserverOptions { version: VERSION, encryption_config: config, flags: &[] };
        let apiserver = Apiserver::start(&peers, &etcd, dir, &start)?;
        let field = Self { options, ready, lastkey, apiserver, etcd, peers, dir };
        field.populate()?;
        let (kubeconfig, out) = (field.apiserver.kubeconfig().display(), dir.join("out"));
        let (kubeconfig, out) = (kubeconfig.to_string(), out.display().to_string());
        let add = ["cluster", "add", "bench", "--kubeconfig", &kubeconfig, "--out", &out];
        // The same credential for all three; and etcd, as an operator registers it.
        let more = ["--own-credential", "--resource", "secrets", "--etcd", field.etcd.url()];
        field.cli(&[&add[..], &more].concat())?;
        Ok(field)
    }

    fn populate(&self) -> Result<(), Error> {
        let (apiserver, objects) = (&self.apiserver, self.options.objects);
        let value = "QUJD".repeat(VALUE / 4);
        let make = |maker: usize| -> Result<(), Error> {
            let mut session = apiserver.client().session();
            for n in (maker..objects).step_by(MAKERS) {
                let secret = json!({
                    "apiVersion": "v1", "kind": "Secret",
                    "metadata": { "name": format!("bench-{n}") }, "data": { "value": value },
                });
                let path = "/api/v1/namespaces/default/secrets";
                let answer = session.send("POST", path, Some(&secret));
                let answer = answer.map_err(std::io::Error::other)?;
                if answer.status >= 300 {
                    let what = format!("{} to the creation of a Secret", answer.status);
                    return Err(Error::Answer { side: "the apiserver", what });
                }
            }
            Ok(())
        };
        let make = &make;
        std::thread::scope(|scope| {
            let makers: Vec<_> = (0..MAKERS).map(|n| scope.spawn(move || make(n))).collect();
            let ended = |maker: std::thread::ScopedJoinHandle<'_, Result<(), Error>>| {
                let gone = || Err(std::io::Error::other("a thread panicked").into());
                maker.join().unwrap_or_else(|_| gone())
            };
            makers.into_iter().try_for_each(ended)
        })
    }

    fn cli(&self, args: &[&str]) -> Result<Value, Error> {
        let outcome = self.lastkey.cli(Some(&self.ready.credentials_file), args)?;
        Ok(outcome.expect_ok(&format!("lastkey {}", args.join(" ")))?.json())
    }

    fn key_id(&self, name: &str) -> Result<String, Error> {
        let stored = self.etcd.get(&format!("{PREFIX}{name}"))?;
        let bytes = stored.map(|value| value.bytes).unwrap_or_default();
        Ok(Encrypted::parse(&bytes).map_err(std::io::Error::other)?.key_id)
    }

    /// Gives the key a new version and waits until the apiserver writes under it.
    fn make_stale(&self) -> Result<(), Error> {
        self.apiserver.create_secret("probe", "0")?;
        self.apiserver.touch_secret("probe")?;
        let old = self.key_id("probe")?;
        self.cli(&["key", "rotate", KEY])?;
        Ok(eventually("the apiserver writes under the new version", CONVERGENCE, || {
            // Being asked for its health, it asks its plugin.
            self.apiserver.client().get("/readyz?verbose")?;
            self.apiserver.touch_secret("probe")?;
            std::thread::sleep(Duration::from_secs(1));
            match self.key_id("probe")? {
                id if id != old => Ok(()),
                _ => Err(Error::Answer { side: "the apiserver", what: "the old key id".into() }),
            }
        })?)
    }

    /// Everything is under one key id.
    fn check(&self) -> Result<(), Error> {
        let id = self.key_id("probe")?;
        let stored = self.etcd.list(PREFIX)?;
        let fresh = |value: &[u8]| Encrypted::parse(value).is_ok_and(|object| object.key_id == id);
        let stale = stored.iter().filter(|(_, value)| !fresh(&value.bytes)).count();
        match stale {
            0 => Ok(()),
            _ => Err(Error::Answer {
                side: "etcd",
                what: format!("{stale} of {} objects under an older version", stored.len()),
            }),
        }
    }

    /// Today's way; how many seconds it took.
    fn loop_over(&self, round: usize) -> Result<f64, Error> {
        let (kubectl, config) = (self.peers.path("kubectl"), self.apiserver.kubeconfig());
        let line = format!(
            "\"$0\" get secrets --all-namespaces --output json | \
             \"$0\" annotate --overwrite --filename - example.org/rotated={round} > /dev/null"
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-ec", &line]).arg(kubectl).env("KUBECONFIG", config);
        // What it has discovered it keeps at home.
        command.env("HOME", self.dir).stdin(Stdio::null());
        let begun = Instant::now();
        let status = command.status()?;
        let seconds = begun.elapsed().as_secs_f64();
        say(&format!("loop: {seconds:.1} s"));
        match status.success() {
            true => Ok(seconds),
            false => Err(Error::Worker { status, said: line }),
        }
    }

    /// A list by pages and writes, in a process of its own; how many seconds these took.
    fn bare(&self) -> Result<f64, Error> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare-rotate").arg("--kubeconfig").arg(self.apiserver.kubeconfig());
        command.args(["--workers", &WORKERS.to_string(), "--page", &PAGE.to_string()]);
        let output = command.stdin(Stdio::null()).output()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let Ok(seconds) = said.parse() else {
            return Err(Error::Worker { status: output.status, said: said + &errors });
        };
        say(&format!("bare workers: {seconds:.2} s"));
        Ok(seconds)
    }

    /// Ours.
    fn rotate(&self) -> Result<Rotation, Error> {
        let mut command = Command::new(self.lastkey.binary());
        command.args(["cluster", "rotate", "bench", "--keep-version", "--output", "json"]);
        command.args(["--workers", &WORKERS.to_string(), "--page", &PAGE.to_string()]);
        command.env("LASTKEY_CREDENTIALS", &self.ready.credentials_file);
        let begun = Instant::now();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let (mut rewriting, mut verifying, mut verified) = (None, None, Value::Null);
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).lines() {
                let event: Value = serde_json::from_str(&line?).unwrap_or_default();
                match event["phase"].as_str() {
                    Some("rewriting") => rewriting = rewriting.or(Some(begun.elapsed())),
                    Some("verifying") => verifying = verifying.or(Some(begun.elapsed())),
                    _ => {}
                }
                if event["event"] == "report" {
                    verified = event["verified"]["by"].clone();
                }
            }
        }
        let status = child.wait()?;
        let whole = begun.elapsed().as_secs_f64();
        let (Some(from), Some(to), true) = (rewriting, verifying, status.success()) else {
            return Err(Error::Worker { status, said: "no end of the pass".to_owned() });
        };
        let (before, pass) = (from.as_secs_f64(), to.saturating_sub(from).as_secs_f64());
        let after = whole - before - pass;
        say(&format!(
            "ours: {before:.2} s until it writes, {pass:.2} s for the pass that writes, {after:.2} s \
             from there to the end, {whole:.2} s in all; the proof is by {verified}"
        ));
        Ok(Rotation { pass, whole })
    }
}
