//! Looks for keys and plaintexts in everything that the real binary writes: its data directory,
//! its log at the highest level, its errors and its answers to wrong requests.
//!
//! `memory.rs` looks for them in the process itself.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_client::{Client, Config, Credentials, Kms as _};
use lastkey_crypto::{EncryptionContext, KeyMaterial, record::SealedRecord, wrap};
use lastkey_store::{OpenOptions, RedbStore, Store as _};
use lastkey_testbed::Daemon;
use support::{Lab, PLAINTEXT, SOON};

/// What must not be found, and under which name to say that it was.
struct Needle {
    name: String,
    bytes: Vec<u8>,
}

/// A secret in each form that it could take in a file.
fn needles(name: &str, secret: &[u8]) -> Vec<Needle> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    // Base64 depends on what goes before: inside of something longer it has one of three forms.
    let base64 = (0..3).map(|before| {
        let text = STANDARD.encode([&vec![0; before][..], secret].concat());
        let from = [0, 2, 3][before];
        (format!("{name} in base64"), text.as_bytes()[from..text.len() - 4].to_vec())
    });
    let plain = [
        (name.to_owned(), secret.to_vec()),
        (format!("{name} in hexadecimal"), hex.clone().into_bytes()),
        (format!("{name} in hexadecimal"), hex.to_uppercase().into_bytes()),
        (format!("{name} as a list of numbers"), format!("{secret:?}").into_bytes()),
    ];
    plain.into_iter().chain(base64).map(|(name, bytes)| Needle { name, bytes }).collect()
}

/// A server whose log says all that it ever says.
struct Site {
    lab: Lab,
    server: Option<Daemon>,
}

impl Site {
    fn start() -> Self {
        let mut site = Self { lab: Lab::new(), server: None };
        site.run();
        site
    }

    fn data(&self) -> PathBuf {
        self.lab.path("data")
    }

    fn run(&mut self) {
        let data = self.data();
        let mut command = Command::new(self.lab.lastkey.binary());
        command.args(["server", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&data);
        command.env("LASTKEY_LOG", "trace");
        let mut server = Daemon::start("server", &command, &self.lab.folder("logs")).unwrap();
        server
            .until("the server is ready", SOON, || {
                let said =
                    self.lab.lastkey.cli(Some(&data.join("credentials.json")), &["status"])?;
                said.expect_ok("status")
            })
            .unwrap();
        self.server = Some(server);
    }

    fn cli(&self, args: &[&str]) -> (i32, String) {
        let outcome =
            self.lab.lastkey.cli(Some(&self.data().join("credentials.json")), args).unwrap();
        (outcome.code, outcome.stdout + &outcome.stderr)
    }

    /// Has every kind of secret made, used, asked for wrongly and refused; gives the data key, and
    /// all that was said when something was wrong.
    fn work(&self) -> (Vec<u8>, Vec<String>) {
        assert_eq!(self.cli(&["key", "create", "--alias", "alias/app"]).0, 0);
        let credentials = Credentials::read(&self.data().join("credentials.json")).unwrap();
        let client = Client::new(Config::from_credentials(credentials)).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let context =
                EncryptionContext::from_pairs([("app".to_owned(), PLAINTEXT.to_owned())]).unwrap();
            let plaintext = PLAINTEXT.as_bytes();
            let sealed = client.encrypt("alias/app", plaintext, &context).await.unwrap();
            assert_eq!(client.decrypt(&sealed.blob, &context).await.unwrap().expose(), plaintext);
            let data_key = client.generate_data_key("alias/app", 32, &context).await.unwrap();
            let mut said = Vec::new();
            let mut wrong = |outcome: Result<serde_json::Value, lastkey_client::Error>| {
                let error = outcome.unwrap_err();
                said.push(format!("{error} {error:?}"));
            };
            for (action, parameters) in [
                ("Encrypt", vec![("KeyId", "alias/nobody"), ("Plaintext", PLAINTEXT)]),
                ("Encrypt", vec![("KeyId", PLAINTEXT), ("Plaintext", PLAINTEXT)]),
                (
                    "Encrypt",
                    vec![
                        ("KeyId", "alias/app"),
                        ("Plaintext", PLAINTEXT),
                        ("EncryptionContext", PLAINTEXT),
                    ],
                ),
                ("Decrypt", vec![("CiphertextBlob", PLAINTEXT)]),
                ("NoSuchAction", vec![("Plaintext", PLAINTEXT)]),
                ("CreateKey", vec![("KeySpec", "none"), ("Plaintext", PLAINTEXT)]),
            ] {
                // A key that does not exist is named in the answer: it is no secret.
                let outcome = client.alibaba(action, &parameters).await;
                if parameters[0] != ("KeyId", PLAINTEXT) {
                    wrong(outcome);
                } else {
                    outcome.unwrap_err();
                }
            }
            (data_key.plaintext.expose().to_vec(), said)
        })
    }

    /// Everything that may be found nowhere.
    fn secrets(&self, data_key: &[u8]) -> Vec<Needle> {
        let copy = self.lab.path("copy.redb");
        fs::copy(self.data().join("store.redb"), &copy).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let keys = runtime.block_on(keys_of(&copy, &root_of(&self.data())));
        fs::remove_file(copy).unwrap();
        let mut all = needles("a plaintext", PLAINTEXT.as_bytes());
        all.extend(needles("a data key", data_key));
        all.extend(keys.iter().flat_map(|(name, key)| needles(name, key)));
        all
    }
}

fn root_of(data: &Path) -> KeyMaterial {
    let text = fs::read_to_string(data.join("root.key")).unwrap();
    let digits = text.trim_end().rsplit(' ').next().unwrap();
    let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
    KeyMaterial::from_slice(&(0..64).step_by(2).map(byte).collect::<Vec<u8>>())
}

/// Every key in a copy of the store: the keyring's, and those in the records that it opens.
async fn keys_of(store: &Path, root: &KeyMaterial) -> Vec<(String, Vec<u8>)> {
    let store = RedbStore::open(store, OpenOptions::default()).unwrap();
    let wrapped = store.get("meta/keyring").await.unwrap().unwrap().value;
    let keyring = wrap::unwrap(root, "keyring", &wrapped).unwrap();
    // Whichever 32 bytes of the keyring open records are its keys, whatever its format.
    let windows: Vec<KeyMaterial> =
        keyring.expose().windows(32).map(KeyMaterial::from_slice).collect();
    let mut keys = vec![("the root key".to_owned(), root.expose().to_vec())];
    for (prefix, name, length) in [
        ("version/", "a key version", 32),
        ("meta/audit-key", "the audit key", 32),
        ("access-key/", "the access key's secret", 43),
        ("sealed/", "the authority's key", 100),
    ] {
        for entry in store.list(prefix, None, 100).await.unwrap() {
            let Ok(sealed) = SealedRecord::parse(&entry.value) else { continue };
            let opened =
                windows.iter().find_map(|key| Some((key, sealed.open(key, &entry.path).ok()?)));
            let (key, plain) = opened.unwrap_or_else(|| panic!("{} does not open", entry.path));
            let plain = plain.expose();
            keys.push((name.to_owned(), plain[plain.len().saturating_sub(length)..].to_vec()));
            keys.push(("a keyring key".to_owned(), key.expose().to_vec()));
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

/// Every file below a folder, with what it holds.
fn files(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_dir() {
            files(&path, found);
        } else if metadata.is_file() {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
}

/// Where needles were found: file and secret.
fn found_in(dirs: &[PathBuf], needles: &[Needle]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    dirs.iter().for_each(|dir| files(dir, &mut all));
    assert!(all.len() > 5, "there are files to look into");
    let hits = all.iter().flat_map(|(path, bytes)| {
        let name = path.file_name().and_then(OsStr::to_str).unwrap();
        let hits = needles.iter().filter(|n| memchr::memmem::find(bytes, &n.bytes).is_some());
        hits.map(move |needle| (name.to_owned(), needle.name.clone()))
    });
    hits.collect()
}

#[test]
fn no_key_and_no_plaintext_is_in_a_file_a_log_or_an_error() {
    let mut site = Site::start();
    let (data_key, said) = site.work();
    let secrets = site.secrets(&data_key);
    let names: std::collections::BTreeSet<&str> =
        secrets.iter().map(|needle| &*needle.name).filter(|name| !name.contains(" in ")).collect();
    for name in ["the root key", "a keyring key", "a key version", "the authority's key"] {
        assert!(names.contains(name), "{name} is among what is looked for: {names:?}");
    }
    let dirs = [site.data(), site.lab.folder("logs")];
    // The control: these two are where they are meant to be, and found there.
    let meant = [
        ("root.key".to_owned(), "the root key in hexadecimal".to_owned()),
        ("credentials.json".to_owned(), "the access key's secret".to_owned()),
    ];
    let check = |when: &str| {
        let found = found_in(&dirs, &secrets);
        for place in &meant {
            assert!(found.contains(place), "{when}: {place:?} is not even found where it is");
        }
        let others: Vec<_> = found.iter().filter(|place| !meant.contains(place)).collect();
        assert!(others.is_empty(), "{when}: {others:?}");
    };
    check("running");
    for text in &said {
        for needle in &secrets {
            let inside = memchr::memmem::find(text.as_bytes(), &needle.bytes).is_some();
            assert!(!inside, "{} is in an error: {text}", needle.name);
        }
    }
    site.server = None; // kill -9
    check("killed");
    site.run();
    assert_eq!(site.cli(&["key", "rotate", "alias/app"]).0, 0);
    check("started again");
}
