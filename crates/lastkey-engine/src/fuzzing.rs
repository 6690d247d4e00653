//! What the fuzz targets call: each function reads arbitrary bytes with one parser of this crate,
//! and panics only if the parser broke a promise.

use lastkey_crypto::KeyVersionId;

use crate::{
    AccessKey, AliasName, ClusterName, KeyRef, Timestamp, audit, outbox, records::Version,
};

/// A line of the audit log.
pub fn audit_line(line: &[u8]) {
    audit::parse_line(line);
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

/// The records that are not JSON: versions, access keys, outbox parcels.
pub fn records(bytes: &[u8]) {
    let id = KeyVersionId::from_bytes([0; 16]);
    if let Some(version) = Version::decode(id, bytes) {
        assert_eq!(&version.encode()[..], bytes, "a version is written as it was read");
    }
    if let Some(key) = AccessKey::decode(bytes) {
        assert_eq!(&key.encode()[..], bytes, "an access key is written as it was read");
    }
    outbox::parse(bytes);
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

/// The record of the seal.
pub fn seal_record(bytes: &[u8]) {
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
