//! The golden vectors: formats that must never change.
//!
//! They were made by `vectors/generate.py`, which knows the formats from their description alone.
//! Each case is sealed again with the same random bytes, and opened.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::Given;
use lastkey_crypto::{
    EncryptionContext, KeyMaterial, KeyVersionId, blob,
    envelope::{Decryptor, Encryptor, FileSalt, Header, Stanza},
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

#[test]
fn envelopes() {
    for case in cases("envelope") {
        let name = case.text("name");
        let plaintext: Vec<u8> =
            (0..case.number("plaintext_len")).map(|i| (i % 251) as u8).collect();
        let stanzas: Vec<Stanza> = case.0["stanzas"]
            .as_array()
            .unwrap()
            .iter()
            .cloned()
            .map(Case)
            .map(|s| Stanza::new(s.text("key_id").parse().unwrap(), s.bytes("wrapped")).unwrap())
            .collect();
        let data_key = case.key("data_key");

        let salt = FileSalt::random(&Given::hex(case.text("salt")));
        assert_eq!(salt.context().get("lastkey:file-salt"), Some(case.text("salt")));
        let mut file = Encryptor::new(Vec::new(), salt, &data_key, stanzas.clone()).unwrap();
        assert_eq!(file.copy_from(&mut &plaintext[..]).unwrap(), plaintext.len() as u64);
        let made = file.finish().unwrap();
        assert_eq!(made.len() as u64, case.number("envelope_len"), "{name}");
        assert_eq!(hex::encode(sha256(&[&made])), case.text("envelope_sha256"), "{name}");
        if let Some(whole) = case.0["envelope"].as_str() {
            assert_eq!(hex::encode(&made), whole, "{name}");
        }

        let mut source = &made[..];
        let header = Header::read(&mut source).unwrap();
        assert_eq!(header.stanzas(), stanzas);
        assert_eq!(header.context().get("lastkey:file-salt"), Some(case.text("salt")));
        let mut opened = Vec::new();
        Decryptor::new(source, &header, &data_key).unwrap().copy_to(&mut opened).unwrap();
        assert!(opened == plaintext, "{name}");
    }
}
