//! What the fuzz targets call: each function reads arbitrary bytes with one parser of this crate,
//! and panics only if the parser broke a promise.

use lastkey_crypto::{KeyMaterial, KeyVersionId, signing::SigningKey};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    AccessKey, AliasName, Cluster, ClusterName, Dependant, FileSeal, Key, KeyRef, OverrideRequest,
    Rotation, SecondPerson, Timestamp, audit, outbox,
    records::{AliasRecord, Version},
    time_guard, uses, verify_report,
};

/// A line of the audit log.
pub fn audit_line(line: &[u8]) {
    audit::parse_line(line);
}

/// A segment of the audit log, plain or compressed.
pub fn audit_segment(bytes: &[u8]) {
    audit::parse_segment(bytes);
}

/// A file of checkpoints.
pub fn audit_checkpoints(bytes: &[u8]) {
    audit::parse_checkpoints(bytes);
}

/// The index of a compressed segment.
pub fn audit_index(bytes: &[u8]) {
    audit::parse_index(bytes);
}

/// A journal file.
pub fn audit_journal(bytes: &mut [u8]) {
    audit::parse_journal(bytes);
}

/// The records that are not JSON: versions, access keys, outbox parcels, the newest checkpoint.
pub fn records(bytes: &[u8]) {
    let id = KeyVersionId::from_bytes([0; 16]);
    if let Some(version) = Version::decode(id, bytes) {
        assert_eq!(&version.encode()[..], bytes, "a version is written as it was read");
    }
    if let Some(key) = AccessKey::decode(bytes) {
        assert_eq!(&key.encode()[..], bytes, "an access key is written as it was read");
    }
    if let Some((count, direct)) = uses::decode_of(bytes) {
        let again = uses::encode_of(count, direct);
        assert_eq!(uses::decode_of(&again), Some((count, direct)), "a count comes back");
    }
    outbox::parse(bytes);
    audit::parse_remembered(bytes);
}

/// The records that are JSON: keys, aliases, clusters, what needs keys, rotations, what is kept of
/// the clock; and a report, which is JSON too.
pub fn json_records(bytes: &[u8]) {
    reads_as_it_writes::<Key>(bytes);
    reads_as_it_writes::<AliasRecord>(bytes);
    reads_as_it_writes::<Cluster>(bytes);
    reads_as_it_writes::<Dependant>(bytes);
    reads_as_it_writes::<Rotation>(bytes);
    reads_as_it_writes::<OverrideRequest>(bytes);
    reads_as_it_writes::<SecondPerson>(bytes);
    reads_as_it_writes::<time_guard::Kept>(bytes);
    let nobody = SigningKey::from_seed(KeyMaterial::from_slice(&[7; 32]));
    if let (Ok(line), Some(nobody)) = (str::from_utf8(bytes), nobody) {
        assert!(verify_report(line, nobody.public()).is_err(), "nobody has signed it");
    }
    if let Ok(key) = serde_json::from_slice::<Key>(bytes) {
        let _ = (key.next_rotation(), key.rotation_state());
    }
}

fn reads_as_it_writes<T: Serialize + DeserializeOwned>(bytes: &[u8]) {
    let Ok(record) = serde_json::from_slice::<T>(bytes) else { return };
    let written = serde_json::to_vec(&record).expect("what was read can be written");
    let again = serde_json::from_slice::<T>(&written).expect("what was written can be read");
    assert_eq!(serde_json::to_vec(&again).ok(), Some(written));
}

/// The texts that callers send as names and times.
pub fn names(text: &str) {
    if let Ok(alias) = AliasName::parse(text) {
        assert_eq!(alias.as_str(), text);
    }
    if let Ok(name) = ClusterName::parse(text) {
        assert_eq!(name.as_str(), text);
    }
    let _ = KeyRef::parse(text);
    if let Ok(time) = Timestamp::parse(text) {
        assert_eq!(Timestamp::parse(&time.to_string()).ok(), Some(time), "{time}");
    }
}

/// The record of the seal, and the file of a root key.
pub fn seal_record(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        FileSeal::parse_text(text);
    }
    if let Ok(record) = crate::seal::parse_record(bytes) {
        let again = crate::seal::parse_record(&record.encode());
        assert_eq!(again.ok().as_ref(), Some(&record), "a record is read as it was written");
    }
}

/// What notices a rollback: heads, the mark, the anchor and the keyring, all without their seals.
pub fn heads(bytes: &[u8]) {
    crate::heads::parse(bytes);
    crate::anchor::parse(bytes);
    crate::barrier::parse_keyring(bytes);
}
