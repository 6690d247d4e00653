//! The golden vectors: formats that must never change.
//!
//! They were made by `vectors/generate.py`, which knows the formats from their description alone.
//! Each case is sealed again with the same random bytes, and opened.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Given;
use lastkey_crypto::{
    EncryptionContext, KeyMaterial, KeyVersionId, blob,
    envelope::{Decryptor, Encryptor, Header, HeldKey, KeySalt, NewFile, Pipeline, Room, Stanza},
    mac::sha256,
    plugin_blob::{PluginBlob, PluginKey},
    record, wrap,
};
use serde_json::Value;

struct Case(Value);

impl Case {
    fn text(&self, field: &str) -> &str {
        self.0[field].as_str().unwrap_or_else(|| panic!("no text {field}"))
    }

    fn bytes(&self, field: &str) -> Vec<u8> {
        hex::decode(self.text(field)).unwrap()
    }

    fn key(&self, field: &str) -> KeyMaterial {
        KeyMaterial::from_slice(&self.bytes(field))
    }

    fn number(&self, field: &str) -> u64 {
        self.0[field].as_u64().unwrap_or_else(|| panic!("no number {field}"))
    }

    fn context(&self) -> EncryptionContext {
        EncryptionContext::parse_json(&self.0["context"].to_string()).unwrap()
    }

    fn version(&self) -> KeyVersionId {
        self.text("key_version").parse().unwrap()
    }
}

fn cases(file: &str) -> Vec<Case> {
    let path = format!("{}/tests/vectors/{file}.json", env!("CARGO_MANIFEST_DIR"));
    let set: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let cases: Vec<Case> = set["cases"].as_array().unwrap().iter().cloned().map(Case).collect();
    assert!(!cases.is_empty());
    cases
}

#[test]
fn context() {
    for case in cases("context") {
        let made = case.context().associated_data(&case.bytes("label"), &case.version());
        assert_eq!(hex::encode(made), case.text("associated_data"), "{}", case.text("name"));
    }
}

#[test]
fn blobs() {
    for case in cases("blob") {
        let (material, context) = (case.key("material"), case.context());
        let plaintext = case.bytes("plaintext");
        let random = Given::hex(case.text("random"));
        let made = blob::seal(&material, &case.version(), &context, &plaintext, &random);
        assert_eq!(hex::encode(&made), case.text("blob"), "{}", case.text("name"));

        let parsed = blob::Blob::parse(&made).unwrap();
        assert_eq!(parsed.key_version_id(), case.version());
        assert_eq!(parsed.open(&material, &context).unwrap().expose(), plaintext);
    }
}

#[test]
fn records() {
    for case in cases("record") {
        let material = case.key("material");
        let (path, plaintext) = (case.text("path"), case.bytes("plaintext"));
        let number = case.number("keyring_key").try_into().unwrap();
        let counter = case.number("counter");
        let random = Given::hex(case.text("random"));
        let made = record::seal(number, &material, path, counter, &plaintext, &random);
        assert_eq!(hex::encode(&made), case.text("record"), "{path}");

        let parsed = record::SealedRecord::parse(&made).unwrap();
        assert_eq!((parsed.keyring_key(), parsed.counter()), (number, counter));
        assert_eq!(parsed.open(&material, path).unwrap().expose(), plaintext);
    }
}

#[test]
fn wraps() {
    for case in cases("wrap") {
        let (root, purpose) = (case.key("root"), case.text("purpose"));
        let made =
            wrap::wrap(&root, purpose, &case.bytes("secret"), &Given::hex(case.text("random")));
        assert_eq!(hex::encode(&made), case.text("wrapped"), "{purpose}");
        assert_eq!(wrap::unwrap(&root, purpose, &made).unwrap().expose(), case.bytes("secret"));
    }
}

#[test]
fn plugin_blobs() {
    for case in cases("plugin_blob") {
        let key = PluginKey {
            lineage: case.text("lineage").parse().unwrap(),
            cluster: case.text("cluster").parse().unwrap(),
            key_version: case.version(),
            epoch: case.text("epoch").parse().unwrap(),
        };
        assert_eq!(key.key_id(), case.text("key_id"));

        let (material, plaintext) = (case.key("material"), case.bytes("plaintext"));
        let random = Given::hex(case.text("random"));
        let inner = blob::seal(&material, &key.key_version, &key.context(), &plaintext, &random);
        let made = PluginBlob::new(key, &inner).unwrap().encode();
        assert_eq!(hex::encode(&made), case.text("plugin_blob"));

        let parsed = PluginBlob::parse(&made).unwrap();
        assert_eq!(parsed.key(), &key);
        let opened = parsed.blob().open(&material, &parsed.key().context()).unwrap();
        assert_eq!(opened.expose(), plaintext);
    }
}

fn stanzas(case: &Case) -> Vec<Stanza> {
    // A long list is told by its first stanza, a long one by what it repeats.
    let [copies, repeats] = ["stanza_copies", "wrapped_repeats"]
        .map(|field| case.0[field].as_u64().map_or(1, |count| usize::try_from(count).unwrap()));
    let stanzas = case.0["stanzas"].as_array().unwrap().iter().cloned().map(Case);
    let stanzas: Vec<Stanza> = stanzas
        .map(|s| (s.text("key_id").parse().unwrap(), s.bytes("wrapped").repeat(repeats)))
        .map(|(key_id, wrapped)| Stanza::new(key_id, wrapped).unwrap())
        .collect();
    vec![stanzas; copies].concat()
}

/// Seals and opens a case, chunk by chunk and on several threads.
fn check_envelope(case: &Case, key_salt: &str, new_file: impl Fn() -> NewFile) {
    let name = case.text("name");
    let plaintext: Vec<u8> = (0..case.number("plaintext_len")).map(|i| (i % 251) as u8).collect();

    let mut made = Vec::new();
    let pipeline = Pipeline::new().workers(3);
    let count = pipeline.encrypt(new_file(), &plaintext[..], &mut made).unwrap();
    assert_eq!(count, plaintext.len() as u64, "{name}");
    assert_eq!(made.len() as u64, case.number("envelope_len"), "{name}");
    assert_eq!(hex::encode(sha256(&[&made])), case.text("envelope_sha256"), "{name}");
    if let Some(whole) = case.0["envelope"].as_str() {
        assert_eq!(hex::encode(&made), whole, "{name}");
    }
    let mut file = Encryptor::new(Vec::new(), new_file()).unwrap();
    file.copy_from(&mut &plaintext[..]).unwrap();
    assert!(file.finish().unwrap() == made, "{name}");

    let mut source = &made[..];
    let header = Header::read(&mut source).unwrap();
    assert_eq!(header.stanzas(), stanzas(case));
    assert_eq!(header.version(), if case.0["key_salt"].is_string() { 2 } else { 1 });
    assert_eq!(header.context().get("lastkey:file-salt"), Some(key_salt));
    let data_key = case.key("data_key");
    let mut opened = Vec::new();
    Decryptor::new(source, &header, &data_key).unwrap().copy_to(&mut opened).unwrap();
    assert!(opened == plaintext, "{name}");
    opened.clear();
    let key = header.open(&data_key).unwrap();
    Pipeline::new().workers(3).decrypt(&key, source, &mut opened).unwrap();
    assert!(opened == plaintext, "{name}");
}

#[test]
fn envelopes_of_format_1() {
    for case in cases("envelope") {
        check_envelope(&case, case.text("salt"), || {
            let salt = KeySalt::random(&Given::hex(case.text("salt")));
            assert_eq!(salt.context().get("lastkey:file-salt"), Some(case.text("salt")));
            NewFile::in_format_1(salt, &case.key("data_key"), stanzas(&case)).unwrap()
        });
    }
}

#[test]
fn envelopes_of_format_2() {
    for case in cases("envelope_2") {
        check_envelope(&case, case.text("key_salt"), || {
            let salt = KeySalt::random(&Given::hex(case.text("key_salt")));
            assert_eq!(salt.context().get("lastkey:file-salt"), Some(case.text("key_salt")));
            let held = HeldKey::new(salt, case.key("data_key"), stanzas(&case)).unwrap();
            let room = if case.number("slot_blocks") == 0 { Room::Tight } else { Room::Spare };
            held.new_file(room, &Given::hex(case.text("file_salt")))
        });
    }
}

/// Stanzas replaced in place, and stopped after each step.
#[test]
fn envelopes_with_other_stanzas() {
    for case in cases("envelope_rewrap") {
        let name = case.text("name");
        let before = case.bytes("header_before");
        let mut header = Header::read(&mut &before[..]).unwrap();
        let [first, second] = header.replace(stanzas(&case)).unwrap().unwrap();
        let mut file = before;
        for (patch, expected) in [(first, "header_between"), (second, "header_after")] {
            let from = usize::try_from(patch.offset).unwrap();
            file[from..from + patch.bytes.len()].copy_from_slice(&patch.bytes);
            let digest = hex::encode(sha256(&[&file]));
            assert_eq!(digest, case.text(expected), "{name}, {expected}");
            assert_eq!(Header::read(&mut &file[..]).unwrap(), header, "{name}, {expected}");
        }
    }
}
