//! Looks for keys in the memory of the real binary: where they lie while it is unsealed, and that
//! they are gone once it was sealed.
//!
//! What to look for is worked out here, from the root key and a copy of the store, and it is
//! looked for in every readable byte of the process. To look into it takes root: the process
//! keeps everybody else out, which is then what is tested.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "who skips a test says so")]

mod support;
#[path = "memory/swap.rs"]
mod swap;

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use lastkey_crypto::{
    KeyMaterial,
    record::SealedRecord,
    share::{Share, combine},
    wrap,
};
use lastkey_store::{OpenOptions, RedbStore, Store as _};
use lastkey_testbed::Running;
use serde_json::Value;
use support::{Lab, PLAINTEXT};

/// What must not be found, and what it is called.
struct Needle {
    name: String,
    bytes: Vec<u8>,
    /// Whether it is a key that lives as long as the server is unsealed.
    lives: bool,
}

/// One place where a needle was found.
#[derive(Debug)]
struct Place {
    needle: String,
    #[allow(dead_code, reason = "shown by a failed test")]
    region: String,
    flags: String,
}

struct Site {
    lab: Lab,
    running: Running,
}

impl Site {
    fn start(options: &[&str]) -> Self {
        let lab = Lab::new();
        let data = lab.path("data");
        let fixed = ["server", "--data-dir", data.to_str().unwrap(), "--listen", "127.0.0.1:0"];
        let args: Vec<&OsStr> = fixed.iter().chain(options).map(OsStr::new).collect();
        let running = lab.lastkey.long_running("server", args).unwrap();
        Self { lab, running }
    }

    fn data(&self) -> PathBuf {
        self.lab.path("data")
    }

    fn operator(&self, args: &[&str], input: &str) -> Value {
        let socket = self.data().join("admin.sock");
        let mut child = Command::new(self.lab.lastkey.binary())
            .arg("operator")
            .args(args)
            .args(["--output", "json", "--admin-socket"])
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "operator {args:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn cli(&self, args: &[&str]) -> Value {
        let credentials = self.data().join("credentials.json");
        let outcome = self.lab.lastkey.cli(Some(&credentials), args).unwrap();
        outcome.expect_ok(&args.join(" ")).unwrap().json()
    }

    /// Has a key made and used, so that it is in every cache.
    fn work(&self) {
        let (plain, sealed) = (self.lab.path("plain"), self.lab.path("sealed"));
        fs::write(&plain, PLAINTEXT).unwrap();
        self.cli(&["key", "create", "--alias", "alias/app"]);
        let (from, to) = (plain.to_str().unwrap(), sealed.to_str().unwrap());
        self.cli(&["encrypt", "--key", "alias/app", "-i", from, "-o", to]);
        let opened = self.lab.path("opened");
        self.cli(&["decrypt", "-i", to, "-o", opened.to_str().unwrap()]);
    }

    /// All keys of this installation, by the root key and a copy of the store.
    fn needles(&self, root: &KeyMaterial) -> Vec<Needle> {
        let copy = self.lab.path("copy.redb");
        fs::copy(self.data().join("store.redb"), &copy).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let needles = runtime.block_on(keys_of(&copy, root));
        fs::remove_file(copy).unwrap();
        needles
    }

    fn look_for(&self, needles: &[Needle]) -> Vec<Place> {
        look_into(self.running.process.pid(), needles)
    }
}

fn needle(name: &str, bytes: &[u8], lives: bool) -> [Needle; 2] {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        Needle { name: name.to_owned(), bytes: bytes.to_vec(), lives },
        Needle { name: format!("{name} in hexadecimal"), bytes: hex.into_bytes(), lives: false },
    ]
}

async fn keys_of(store: &Path, root: &KeyMaterial) -> Vec<Needle> {
    let store = RedbStore::open(store, OpenOptions::default()).unwrap();
    let wrapped = store.get("meta/keyring").await.unwrap().unwrap().value;
    let keyring = wrap::unwrap(root, "keyring", &wrapped).unwrap();
    let mut needles = Vec::from(needle("the root key", root.expose(), true));
    // Whichever 32 bytes of the keyring open records are its keys, whatever its format.
    let windows: Vec<KeyMaterial> =
        keyring.expose().windows(32).map(KeyMaterial::from_slice).collect();
    let mut found = std::collections::BTreeSet::new();
    for prefix in ["version/", "meta/audit-key", "access-key/", "sealed/"] {
        for entry in store.list(prefix, None, 100).await.unwrap() {
            let Ok(sealed) = SealedRecord::parse(&entry.value) else { continue };
            let opened = windows
                .iter()
                .enumerate()
                .find_map(|(at, key)| Some((at, sealed.open(key, &entry.path).ok()?)));
            let (at, plain) = opened.unwrap_or_else(|| panic!("{} does not open", entry.path));
            found.insert(at);
            let plain = plain.expose();
            match prefix {
                "version/" => {
                    let material = &plain[plain.len() - 32..];
                    needles.extend(needle("the key version", material, true));
                }
                "meta/audit-key" => needles.extend(needle("the audit key", plain, true)),
                // The secret is text, and ends the record.
                "access-key/" => {
                    let secret = plain[plain.len() - 43..].to_vec();
                    let name = "the access key's secret".to_owned();
                    needles.push(Needle { name, bytes: secret, lives: true });
                }
                // The private key's own 32 bytes lie within its encoding (RFC 5915).
                _ => {
                    let at = plain.windows(7).rposition(|w| w == [2, 1, 1, 4, 0x20, w[5], w[6]]);
                    let at = at.expect("a P-256 key in PKCS #8") + 5;
                    needles.extend(needle("the authority's key", &plain[at..at + 32], true));
                }
            }
        }
    }
    for at in found {
        needles.extend(needle("a keyring key", windows[at].expose(), true));
    }
    needles
}

/// Every place in a process's memory that holds one of the needles.
fn look_into(pid: u32, needles: &[Needle]) -> Vec<Place> {
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut places = Vec::new();
    let mut region: Option<(u64, u64, String)> = None;
    for line in smaps.lines() {
        if let Some((range, rest)) = line.split_once(' ')
            && let Some((from, to)) = range.split_once('-')
            && let (Ok(from), Ok(to)) = (u64::from_str_radix(from, 16), u64::from_str_radix(to, 16))
        {
            region = rest.starts_with('r').then(|| (from, to, line.to_owned()));
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && let Some((from, to, name)) = region.take()
        {
            let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
            // Some regions are the kernel's own.
            if memory.read_exact_at(&mut bytes, from).is_err() {
                continue;
            }
            for needle in needles {
                let count = memchr::memmem::find_iter(&bytes, &needle.bytes).count();
                places.extend((0..count).map(|_| Place {
                    needle: needle.name.clone(),
                    region: name.clone(),
                    flags: flags.trim().to_owned(),
                }));
            }
        }
    }
    places
}

/// Whether memory of other processes can be looked at here.
fn may_look(site: &Site) -> bool {
    let pid = site.running.process.pid();
    if rustix::process::geteuid().is_root() {
        return true;
    }
    // Not even its own user may.
    assert!(File::open(format!("/proc/{pid}/mem")).is_err());
    eprintln!("!!!!  SKIPPED looking for keys in memory: it takes root");
    false
}

fn root_of(site: &Site) -> KeyMaterial {
    let text = fs::read_to_string(site.data().join("root.key")).unwrap();
    let digits = text.trim_end().rsplit(' ').next().unwrap();
    let bytes: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap()).collect();
    KeyMaterial::from_slice(&bytes)
}

#[test]
fn keys_lie_in_locked_memory_alone_and_are_gone_once_the_server_is_sealed() {
    let site = Site::start(&[]);
    if !may_look(&site) {
        return;
    }
    site.work();
    let needles = site.needles(&root_of(&site));
    assert!(needles.len() >= 10, "{} needles", needles.len());

    // The control: each is found, or looking for them proves nothing.
    let before = site.look_for(&needles);
    for needle in needles.iter().filter(|needle| needle.lives) {
        let found = before.iter().any(|place| place.needle == needle.name);
        assert!(found, "{} is nowhere: this test looks in the wrong way", needle.name);
    }
    let unlocked = site.cli(&["status"])["key_pages_unlocked"].as_u64().unwrap();
    for place in &before {
        let flags: Vec<&str> = place.flags.split(' ').collect();
        // Not in core dumps, not in children, not in swap.
        assert!(flags.contains(&"dd") && flags.contains(&"dc"), "{place:?}");
        assert!(flags.contains(&"lo") || unlocked > 0, "{place:?}");
    }
    site.operator(&["seal"], "");
    let after = site.look_for(&needles);
    assert!(after.is_empty(), "{after:#?}");
    // And back: the same keys, in the same kind of place.
    site.operator(&["unseal"], "");
    site.work_again();
    let again = site.look_for(&needles);
    assert!(again.iter().any(|place| place.needle == "the key version"));
    assert!(again.iter().all(|place| place.flags.contains("dd")), "{again:#?}");
}

impl Site {
    fn work_again(&self) {
        let opened = self.lab.path("opened-again");
        let _ = fs::remove_file(&opened);
        let sealed = self.lab.path("sealed");
        let (from, to) = (sealed.to_str().unwrap(), opened.to_str().unwrap());
        self.cli(&["decrypt", "-i", from, "-o", to]);
    }
}

#[test]
fn shares_and_what_they_give_are_gone_once_they_were_entered() {
    let site = Site::start(&["--seal", "shamir"]);
    if !may_look(&site) {
        return;
    }
    let made = site.operator(&["init", "--shares", "3", "--threshold", "2"], "");
    let texts: Vec<String> = made["shares"]
        .as_array()
        .unwrap()
        .iter()
        .map(|share| share["share"].as_str().unwrap().to_owned())
        .collect();
    let shares: Vec<Share> = texts.iter().map(|text| Share::parse(text).unwrap()).collect();
    let unseal_key = combine(&shares[..2]).unwrap();
    let mut needles = Vec::from(needle("the unseal key", unseal_key.expose(), false));
    for text in &texts {
        // The middle, which is a share's own.
        let middle = text.as_bytes()[25..80].to_vec();
        needles.push(Needle { name: "a share's text".into(), bytes: middle, lives: false });
        needles.push(Needle {
            name: "a share's value".into(),
            bytes: value_of(text),
            lives: false,
        });
    }
    assert!(site.look_for(&needles).is_empty(), "after init: {:#?}", site.look_for(&needles));
    site.operator(&["unseal"], &texts[0]);
    // The control: one share waits, in locked memory.
    let waiting = site.look_for(&needles);
    assert!(waiting.iter().any(|place| place.needle == "a share's value"), "{waiting:#?}");
    assert!(waiting.iter().all(|place| place.flags.contains("dd")), "{waiting:#?}");
    site.operator(&["unseal"], &texts[2]);
    let after = site.look_for(&needles);
    assert!(after.is_empty(), "{after:#?}");
}

/// The 32 bytes of a share's value: digits of five bits, behind nine bytes.
fn value_of(text: &str) -> Vec<u8> {
    let alphabet = b"0123456789abcdefghjkmnpqrstvwxyz";
    let digits = text.bytes().skip(4).filter(|byte| *byte != b'-');
    let (mut held, mut bits, mut bytes) = (0u32, 0, Vec::new());
    for digit in digits {
        let value = alphabet.iter().position(|known| *known == digit).unwrap();
        held = (held << 5) | u32::try_from(value).unwrap();
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    bytes[9..41].to_vec()
}

#[test]
fn the_process_leaves_no_core_dump() {
    let site = Site::start(&[]);
    let pid = site.running.process.pid();
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    let numbers: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(numbers, ["0", "0"], "{core}");
    // A process that may not be dumped belongs to root in /proc, whoever runs it.
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(fs::metadata(format!("/proc/{pid}/mem")).unwrap().uid(), 0);
}
