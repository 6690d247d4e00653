//! The demo: a real etcd and kube-apiserver beside `lastkey up`, shown step by step.
//!
//! Started by `cargo xtask demo`. Ctrl-C ends it, and everything that it started with it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to a terminal")]

use clap::Parser;
use lastkey_testbed::{
    Apiserver, ApiserverOptions, Encrypted, Error, Etcd, Lastkey, Peers, Running, eventually,
};
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// A real kube-apiserver that keeps its Secrets under a key of Lastkey.
#[derive(Parser)]
struct Options {
    /// The lastkey binary
    #[arg(long)]
    lastkey: PathBuf,
    /// Which kube-apiserver to show
    #[arg(long, default_value = "1.37.0")]
    kubernetes: String,
    /// Where everything lies; emptied first
    #[arg(long, default_value = "target/demo")]
    folder: PathBuf,
    /// Stop after the last step instead of leaving everything running
    #[arg(long)]
    once: bool,
}

const KEY: &str = "alias/kubernetes";
const PASSWORD: &str = "correct horse battery staple";

/// The apiserver asks for the plugin's status once a minute.
const STATUS: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nThe demo failed: {}", with_causes(&error));
            ExitCode::FAILURE
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let cause = error.source().map(|cause| format!(": {}", with_causes(cause)));
    format!("{error}{}", cause.unwrap_or_default())
}

fn run(options: &Options) -> Result<(), Error> {
    let apiserver = format!("kube-apiserver-{}", options.kubernetes);
    let peers = Peers::find(&["etcd", "kubectl", &apiserver])?;
    let folder = empty_folder(&options.folder)?;
    let mut demo = Demo::start(options, &peers, &folder)?;
    demo.create_and_look()?;
    demo.rotate()?;
    if options.once {
        return Ok(());
    }
    demo.leave_running(&peers)
}

struct Demo {
    lastkey: Lastkey,
    up: Running,
    etcd: Etcd,
    apiserver: Apiserver,
}

impl Demo {
    fn start(options: &Options, peers: &Peers, folder: &Path) -> Result<Self, Error> {
        step("1", "lastkey up");
        let start = Instant::now();
        let lastkey = Lastkey::new(&options.lastkey, folder);
        let up = lastkey.up(&folder.join("lastkey"), "127.0.0.1:0")?;
        say(&format!("server and plugin are ready after {:.1} s", start.elapsed().as_secs_f32()));
        say(&format!("server  {}", up.ready.url));
        say(&format!("plugin  {}", up.ready.plugin_socket.display()));

        step("2", &format!("etcd 3.6.7 and kube-apiserver {}", options.kubernetes));
        let start = Instant::now();
        let etcd = Etcd::start(peers, folder)?;
        let config = &up.ready.encryption_config_file;
        let how = ApiserverOptions {
            version: &options.kubernetes,
            encryption_config: config,
            flags: &[],
        };
        say(&format!("--encryption-provider-config={}", config.display()));
        let apiserver = Apiserver::start(peers, &etcd, folder, &how)?;
        say(&format!("serving after {:.1} s", start.elapsed().as_secs_f32()));
        Ok(Self { lastkey, up, etcd, apiserver })
    }

    fn create_and_look(&self) -> Result<(), Error> {
        step(
            "3",
            &format!("kubectl create secret generic database --from-literal=value='{PASSWORD}'"),
        );
        self.apiserver.create_secret("database", PASSWORD)?.expect_ok("creating the secret")?;
        say(&format!("the apiserver reads it back: {}", self.apiserver.secret_value("database")?));

        let path = Apiserver::etcd_path("database");
        step("4", &format!("What etcd holds under {path}"));
        let raw = self.stored()?;
        hexdump(&raw, 8);
        let object = parse(&raw)?;
        say(&format!("provider {}, key_id {}", object.provider, object.key_id));
        let found = self.etcd.disk_contains(PASSWORD)?;
        say(&format!(
            "the password in any file of etcd: {}",
            if found { "FOUND, which is a defect" } else { "not found" }
        ));
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), Error> {
        step("5", &format!("lastkey key rotate {KEY}"));
        let old = parse(&self.stored()?)?.key_id;
        let credentials = &self.up.ready.credentials_file;
        self.lastkey
            .cli(Some(credentials), &["key", "rotate", KEY])?
            .expect_ok("lastkey key rotate")?;
        say("a new key version encrypts from now on; the apiserver learns of it when it next asks");
        let start = Instant::now();
        print!("   waiting, up to a minute ");
        let new = eventually("the new key_id arrives in etcd", STATUS, || {
            print!(".");
            std::io::stdout().flush().ok();
            thread::sleep(Duration::from_secs(2));
            // Writing a Secret back as it is changes nothing, unless it is stale.
            self.apiserver.touch_secret("database")?;
            match parse(&self.stored()?)?.key_id {
                now if now == old => Err(Error::Late {
                    what: "a new key_id".into(),
                    seconds: 0,
                    last: "the old one".into(),
                }),
                now => Ok(now),
            }
        });
        println!();
        say(&format!("after {} s the Secret was rewritten", start.elapsed().as_secs()));
        say(&format!("was key_id {old}"));
        say(&format!("now key_id {}", new?));
        say(&format!("the apiserver reads it back: {}", self.apiserver.secret_value("database")?));
        Ok(())
    }

    fn leave_running(&mut self, peers: &Peers) -> Result<(), Error> {
        step("6", "It is yours until Ctrl-C");
        println!("   export KUBECONFIG={}", self.apiserver.kubeconfig().display());
        println!("   export LASTKEY_CREDENTIALS={}", self.up.ready.credentials_file.display());
        println!("   {} get secrets -o yaml", peers.path("kubectl").display());
        println!("   {} key describe {KEY}", self.lastkey.binary().display());
        println!("   {} audit tail", self.lastkey.binary().display());
        loop {
            thread::sleep(Duration::from_secs(1));
            match self.up.process.check() {
                Ok(()) => {}
                // Ctrl-C reaches it too, and may do so first.
                Err(Error::Ended { status, .. }) if status.ends_with("status: 0") => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    fn stored(&self) -> Result<Vec<u8>, Error> {
        let path = Apiserver::etcd_path("database");
        self.etcd.get(&path)?.map(|value| value.bytes).ok_or_else(|| Error::Answer {
            what: format!("etcd get {path}"),
            status: 404,
            body: "nothing is there".into(),
        })
    }
}

fn parse(raw: &[u8]) -> Result<Encrypted, Error> {
    Encrypted::parse(raw).map_err(|cause| Error::Answer {
        what: "what etcd holds".into(),
        status: 200,
        body: cause.to_string(),
    })
}

fn empty_folder(folder: &Path) -> Result<PathBuf, Error> {
    let broken = |source| Error::File { path: folder.to_path_buf(), source };
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(broken)?;
    }
    std::fs::create_dir_all(folder).map_err(broken)?;
    folder.canonicalize().map_err(broken)
}

fn step(number: &str, text: &str) {
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m{number}  {text}\x1b[0m");
    } else {
        println!("\n{number}  {text}");
    }
}

fn say(text: &str) {
    println!("   {text}");
}

/// The first lines of a value, as `hexdump -C` shows them.
fn hexdump(bytes: &[u8], lines: usize) {
    for (number, line) in bytes.chunks(16).take(lines).enumerate() {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let text: String = line
            .iter()
            .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { *byte as char } else { '.' })
            .collect();
        println!("   {:08x}  {:47}  |{text}|", number * 16, hex.join(" "));
    }
    if bytes.len() > lines * 16 {
        println!("   … {} bytes in all", bytes.len());
    }
}
