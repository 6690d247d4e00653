//! Properties of the short formats: what goes in comes out, and nothing else opens.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Given, context, key, tampered, version};
use lastkey_crypto::{
    ClusterId, ContextError, EncryptionContext, Epoch, KeyMaterial, KeyVersionId, Lineage,
    SystemEntropy, Unauthentic,
    blob::{self, Blob, BlobError},
    plugin_blob::{self, PluginBlob, PluginBlobError, PluginKey},
    record::{self, RecordError, SealedRecord},
    wrap::{self, UnwrapError},
};
use proptest::{collection::vec, prelude::*};

fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
    proptest::collection::btree_map("\\PC{0,6}", "\\PC{0,12}", 0..6)
        .prop_map(|map| map.into_iter().collect())
}

fn material() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 16), vec(any::<u8>(), 24), vec(any::<u8>(), 32)]
}

proptest! {
    #[test]
    fn a_blob_opens_with_its_key_and_context(
        material in material(),
        id in any::<[u8; 16]>(),
        pairs in pairs(),
        plaintext in vec(any::<u8>(), 0..200),
    ) {
        let material = KeyMaterial::from_slice(&material);
        let id = KeyVersionId::from_bytes(id);
        let context = EncryptionContext::from_pairs(pairs).unwrap();
        let sealed = blob::seal(&material, &id, &context, &plaintext, &SystemEntropy);
        prop_assert_eq!(sealed.len(), plaintext.len() + blob::OVERHEAD);
        prop_assert_eq!(&blob::from_base64(&blob::to_base64(&sealed)).unwrap()[..], &sealed[..]);

        let parsed = Blob::parse(&sealed).unwrap();
        prop_assert_eq!(parsed.key_version_id(), id);
        prop_assert_eq!(parsed.plaintext_len(), plaintext.len());
        let opened = parsed.open(&material, &context).unwrap();
        prop_assert_eq!(opened.expose(), &plaintext[..]);
    }

    #[test]
    fn a_context_is_a_set(pairs in pairs(), seed in any::<u64>()) {
        let mut shuffled = pairs.clone();
        let len = shuffled.len().max(1);
        shuffled.rotate_left(seed as usize % len);
        if seed & 1 == 1 {
            shuffled.reverse();
        }
        let json = serde_json::Value::from_iter(pairs.clone()).to_string();
        let one = EncryptionContext::from_pairs(pairs.clone()).unwrap();
        let other = EncryptionContext::from_pairs(shuffled).unwrap();
        prop_assert_eq!(&one, &other);
        prop_assert_eq!(&one, &EncryptionContext::parse_json(&json).unwrap());
        prop_assert_eq!(
            one.associated_data(b"l", &version(1)),
            other.associated_data(b"l", &version(1))
        );
        for (name, value) in &pairs {
            prop_assert_eq!(one.get(name), Some(value.as_str()));
        }
        prop_assert_eq!(one.names().count(), pairs.len());
    }

    /// Different contexts never share associated data, however names and values are cut.
    #[test]
    fn associated_data_is_injective(a in pairs(), b in pairs()) {
        let one = EncryptionContext::from_pairs(a).unwrap();
        let other = EncryptionContext::from_pairs(b).unwrap();
        let same_bytes =
            one.associated_data(b"l", &version(1)) == other.associated_data(b"l", &version(1));
        prop_assert_eq!(same_bytes, one == other);
    }

    #[test]
    fn a_record_opens_at_its_path(
        number in any::<u32>(),
        counter in any::<u64>(),
        path in "\\PC{0,40}",
        plaintext in vec(any::<u8>(), 0..300),
    ) {
        let sealed = record::seal(number, &key(1), &path, counter, &plaintext, &SystemEntropy);
        prop_assert_eq!(sealed.len(), plaintext.len() + record::OVERHEAD);
        let parsed = SealedRecord::parse(&sealed).unwrap();
        prop_assert_eq!((parsed.keyring_key(), parsed.counter()), (number, counter));
        let opened = parsed.open(&key(1), &path).unwrap();
        prop_assert_eq!(opened.expose(), &plaintext[..]);
        prop_assert!(parsed.open(&key(1), &(path.clone() + "/")).is_err());
        prop_assert!(parsed.open(&key(2), &path).is_err());
    }

    #[test]
    fn a_wrapped_secret_unwraps(purpose in "\\PC{0,20}", secret in vec(any::<u8>(), 0..200)) {
        let wrapped = wrap::wrap(&key(1), &purpose, &secret, &SystemEntropy);
        prop_assert_eq!(wrapped.len(), secret.len() + wrap::OVERHEAD);
        let unwrapped = wrap::unwrap(&key(1), &purpose, &wrapped).unwrap();
        prop_assert_eq!(unwrapped.expose(), &secret[..]);
        prop_assert!(wrap::unwrap(&key(1), &(purpose.clone() + "."), &wrapped).is_err());
        prop_assert!(wrap::unwrap(&key(2), &purpose, &wrapped).is_err());
    }

    #[test]
    fn a_plugin_blob_reads_as_written(
        ids in any::<[[u8; 16]; 4]>(),
        plaintext in vec(any::<u8>(), 0..800),
    ) {
        let key_of = plugin_key(ids);
        let inner = blob::seal(
            &key(1), &key_of.key_version, &key_of.context(), &plaintext, &SystemEntropy,
        );
        let bytes = PluginBlob::new(key_of, &inner).unwrap().encode();
        let parsed = PluginBlob::parse(&bytes).unwrap();
        prop_assert_eq!(parsed.key(), &key_of);
        prop_assert_eq!(parsed.blob_bytes(), &inner[..]);
        prop_assert_eq!(parsed.encode(), bytes);
    }

    /// No input makes a parser panic, and what parses is written back as it was.
    #[test]
    fn parsers_take_anything(bytes in vec(any::<u8>(), 0..400), text in "\\PC{0,100}") {
        let _ = Blob::parse(&bytes);
        let _ = SealedRecord::parse(&bytes);
        let _ = wrap::unwrap(&key(1), "p", &bytes);
        let _ = EncryptionContext::parse_json(&text);
        let _ = blob::from_base64(&text);
        if let Ok(parsed) = PluginBlob::parse(&bytes) {
            prop_assert_eq!(parsed.encode(), bytes);
        }
    }
}

fn plugin_key([lineage, cluster, key_version, epoch]: [[u8; 16]; 4]) -> PluginKey {
    PluginKey {
        lineage: Lineage::from_bytes(lineage),
        cluster: ClusterId::from_bytes(cluster),
        key_version: KeyVersionId::from_bytes(key_version),
        epoch: Epoch::from_bytes(epoch),
    }
}

#[test]
fn no_byte_of_a_blob_can_change() {
    let context = context(&[("tenant", "a")]);
    let sealed = blob::seal(&key(1), &version(0xab), &context, b"attack at dawn", &SystemEntropy);
    for (at, copy) in tampered(&sealed) {
        let opened = Blob::parse(&copy).map(|blob| blob.open(&key(1), &context));
        assert!(!matches!(opened, Ok(Ok(_))), "byte {at} changed");
    }
    for len in 0..sealed.len() {
        let opened = Blob::parse(&sealed[..len]).map(|blob| blob.open(&key(1), &context));
        assert!(!matches!(opened, Ok(Ok(_))), "cut to {len}");
    }
    let longer = [&sealed[..], b"\0"].concat();
    assert!(Blob::parse(&longer).unwrap().open(&key(1), &context).is_err());
}

#[test]
fn a_blob_opens_in_its_own_context_alone() {
    let own = context(&[("tenant", "a"), ("app", "b")]);
    let sealed = blob::seal(&key(1), &version(1), &own, b"x", &SystemEntropy);
    let parsed = Blob::parse(&sealed).unwrap();
    assert!(parsed.open(&key(1), &context(&[("app", "b"), ("tenant", "a")])).is_ok());
    for other in [
        context(&[]),
        context(&[("tenant", "a")]),
        context(&[("tenant", "A"), ("app", "b")]),
        context(&[("tenant", "b"), ("app", "a")]),
        context(&[("tenant", "a"), ("app", "b"), ("more", "")]),
    ] {
        assert_eq!(parsed.open(&key(1), &other).unwrap_err(), Unauthentic);
    }
    assert_eq!(parsed.open(&key(2), &own).unwrap_err(), Unauthentic);
}

#[test]
fn a_blob_of_one_version_does_not_open_as_another_with_the_same_material() {
    let none = EncryptionContext::empty();
    let mut sealed = blob::seal(&key(1), &version(1), &none, b"x", &SystemEntropy);
    sealed[..36].copy_from_slice(&version(2).text());
    assert!(Blob::parse(&sealed).unwrap().open(&key(1), &none).is_err());
}

#[test]
fn malformed_blobs_say_what_is_wrong() {
    assert_eq!(Blob::parse(b"").unwrap_err(), BlobError::TooShort);
    assert_eq!(Blob::parse(&[0; 79]).unwrap_err(), BlobError::TooShort);
    assert_eq!(Blob::parse(&[0; 80]).unwrap_err(), BlobError::NoKeyVersion);
    for wrong in ["%", "YQ", "YQ=", "YR==", "YQ==\n", "Y-_=", " YQ=="] {
        assert_eq!(blob::from_base64(wrong), Err(BlobError::NotBase64), "{wrong:?}");
    }
}

#[test]
fn two_blobs_of_one_plaintext_differ() {
    let seal = || blob::seal(&key(1), &version(1), &context(&[]), b"same", &SystemEntropy);
    let (one, other) = (seal(), seal());
    assert_ne!(one[36..64], other[36..64]);
    assert_ne!(one[64..], other[64..]);
}

#[test]
fn no_byte_of_a_record_can_change() {
    let sealed = record::seal(7, &key(1), "keys/a", 42, b"value", &SystemEntropy);
    for (at, copy) in tampered(&sealed) {
        let opened = SealedRecord::parse(&copy).map(|record| record.open(&key(1), "keys/a"));
        assert!(!matches!(opened, Ok(Ok(_))), "byte {at} changed");
    }
    for len in 0..sealed.len() {
        let opened =
            SealedRecord::parse(&sealed[..len]).map(|record| record.open(&key(1), "keys/a"));
        assert!(!matches!(opened, Ok(Ok(_))), "cut to {len}");
    }
    assert_eq!(SealedRecord::parse(&[2; 80]).unwrap_err(), RecordError::UnknownVersion(2));
    assert_eq!(SealedRecord::parse(&[1; 56]).unwrap_err(), RecordError::TooShort);
}

#[test]
fn no_byte_of_a_wrapped_secret_can_change() {
    let wrapped = wrap::wrap(&key(1), "keyring", b"secret", &SystemEntropy);
    for (at, copy) in tampered(&wrapped) {
        assert!(wrap::unwrap(&key(1), "keyring", &copy).is_err(), "byte {at} changed");
    }
    assert_eq!(wrap::unwrap(&key(1), "keyring", b"").unwrap_err(), UnwrapError::TooShort);
    assert_eq!(
        wrap::unwrap(&key(1), "keyring", &[9; 90]).unwrap_err(),
        UnwrapError::UnknownVersion(9)
    );
    assert_eq!(
        wrap::unwrap(&key(2), "keyring", &wrapped).unwrap_err(),
        UnwrapError::Unauthentic(Unauthentic)
    );
}

/// One key in two places: what one format sealed is nothing to another.
#[test]
fn formats_do_not_open_each_other() {
    let random = || Given::bytes((0..28).collect());
    let record = record::seal(0, &key(1), "", 0, b"value", &random());
    let wrapped = wrap::wrap(&key(1), "", b"value", &random());
    assert_ne!(record[record.len() - 21..], wrapped[wrapped.len() - 21..]);
    assert!(wrap::unwrap(&key(1), "", &record).is_err());
}

#[test]
fn no_byte_of_a_plugin_blob_can_change() {
    let key_of = plugin_key([[0xa1; 16], [0xb2; 16], [0xc3; 16], [0xd4; 16]]);
    let inner =
        blob::seal(&key(1), &key_of.key_version, &key_of.context(), b"seed", &SystemEntropy);
    let bytes = PluginBlob::new(key_of, &inner).unwrap().encode();
    for (at, copy) in tampered(&bytes) {
        let opened = PluginBlob::parse(&copy)
            .map(|parsed| parsed.blob().open(&key(1), &parsed.key().context()));
        assert!(!matches!(opened, Ok(Ok(_))), "byte {at} changed");
    }
}

#[test]
fn malformed_plugin_blobs_say_what_is_wrong() {
    let key_of = plugin_key([[1; 16], [2; 16], [3; 16], [4; 16]]);
    let none = EncryptionContext::empty();
    let inner = |id, len| blob::seal(&key(1), &id, &none, &vec![0; len], &SystemEntropy);
    let parse = |bytes: &[u8]| PluginBlob::parse(bytes).unwrap_err();

    let longest = plugin_blob::MAX_LEN - plugin_blob::OVERHEAD - blob::OVERHEAD;
    assert!(PluginBlob::new(key_of, &inner(key_of.key_version, longest)).is_ok());
    assert_eq!(
        PluginBlob::new(key_of, &inner(key_of.key_version, longest + 1)).unwrap_err(),
        PluginBlobError::TooLong(1025)
    );
    assert_eq!(
        PluginBlob::new(key_of, &inner(version(9), 1)).unwrap_err(),
        PluginBlobError::KeyVersionMismatch
    );
    let longest = inner(key_of.key_version, longest);
    let longest = PluginBlob::new(key_of, &longest).unwrap().encode();
    assert_eq!(longest.len(), 1024);
    assert_eq!(PluginBlob::parse(&longest).unwrap().encode(), longest);
    assert_eq!(parse(&[1; 1025]), PluginBlobError::TooLong(1025));
    assert_eq!(parse(&[1; 4096]), PluginBlobError::TooLong(4096));
    let shortest = PluginBlob::new(key_of, &inner(key_of.key_version, 0)).unwrap().encode().len();
    assert_eq!(shortest, plugin_blob::OVERHEAD + blob::OVERHEAD);
    assert_eq!(parse(b""), PluginBlobError::TooShort);
    assert_eq!(parse(&[1; 64]), PluginBlobError::TooShort);
    assert_eq!(parse(&[7; 300]), PluginBlobError::UnknownVersion(7));
    assert_eq!(parse(&[1; 65]), PluginBlobError::Blob(BlobError::TooShort));
}

#[test]
fn key_ids_differ_in_every_part() {
    let base = [[1; 16], [2; 16], [3; 16], [4; 16]];
    let mut seen = std::collections::HashSet::from([plugin_key(base).key_id()]);
    for part in 0..4 {
        let mut other = base;
        other[part][15] ^= 1;
        assert!(seen.insert(plugin_key(other).key_id()), "part {part}");
    }
    assert!(seen.insert(plugin_key([[2; 16], [1; 16], [3; 16], [4; 16]]).key_id()));
    assert!(seen.iter().all(|id| id.len() == 64));
}

#[test]
fn contexts_that_are_no_contexts() {
    let parse = |text: &str| EncryptionContext::parse_json(text).unwrap_err();
    for wrong in ["", "null", "[]", "\"a\"", "{", "{}x", "{'a':'b'}", r#"{"a":"b",}"#, "{1:\"\"}"] {
        assert_eq!(parse(wrong), ContextError::NotAnObject, "{wrong}");
    }
    let duplicate = |name: &str| ContextError::Duplicate { name: name.to_owned() };
    assert_eq!(parse(r#"{"a":"1","b":"2","a":"1"}"#), duplicate("a"));
    assert_eq!(parse(r#"{"a":"1","\u0061":"2"}"#), duplicate("a"));
    for value in ["1", "-1", "1.5", "1e99", "true", "null", "[]", "{}", "[[\"x\"]]", r#"{"x":1}"#] {
        let text = format!(r#"{{"ok":"x","n":{value}}}"#);
        assert_eq!(parse(&text), ContextError::NotAString { name: "n".into() }, "{text}");
    }
    let deep = format!(r#"{{"a":{}{}}}"#, "[".repeat(4000), "]".repeat(4000));
    assert_eq!(parse(&deep), ContextError::NotAString { name: "a".into() });

    let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
    let two = EncryptionContext::from_pairs([pair("a", "1"), pair("a", "1")]);
    assert_eq!(two.unwrap_err(), duplicate("a"));
}

#[test]
fn a_context_has_at_most_8192_characters() {
    let text = |len: usize| format!(r#"{{"a":"{}"}}"#, "ü".repeat(len - 8));
    assert!(EncryptionContext::parse_json(&text(8192)).is_ok());
    assert_eq!(EncryptionContext::parse_json(&text(8193)), Err(ContextError::TooLong));
    let long = EncryptionContext::from_pairs([("a".to_owned(), "b".repeat(8192))]);
    assert_eq!(long, Err(ContextError::TooLong));
    let longest = EncryptionContext::from_pairs([("a".to_owned(), "b".repeat(8191))]);
    assert_eq!(longest.unwrap().get("a").map(str::len), Some(8191));
}

#[test]
fn a_context_tells_its_pairs_in_order() {
    let context = context(&[("b", "2"), ("a", "1")]);
    assert_eq!(context.iter().collect::<Vec<_>>(), [("a", "1"), ("b", "2")]);
    assert_eq!(context.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!((context.len(), context.is_empty()), (2, false));
}

#[test]
fn an_empty_context_is_no_context() {
    let empty = EncryptionContext::parse_json(" {} ").unwrap();
    assert_eq!(empty, EncryptionContext::empty());
    assert_eq!(empty, EncryptionContext::default());
    assert!(empty.is_empty());
    assert_eq!(empty.len(), 0);
    assert_eq!(empty.get("a"), None);
}

#[test]
fn names_of_our_own_are_recognised() {
    assert_eq!(context(&[("a", "b")]).reserved_name(), None);
    assert_eq!(context(&[("lastkey:file-salt", "00")]).reserved_name(), None);
    assert_eq!(
        context(&[("a", "b"), ("lastkey:cluster", "x")]).reserved_name(),
        Some("lastkey:cluster")
    );
}

#[test]
fn debug_prints_no_values() {
    let text = format!("{:?}", context(&[("tenant", "hunter2")]));
    assert!(text.contains("tenant") && !text.contains("hunter2"), "{text}");

    let sealed = blob::seal(&key(1), &version(1), &context(&[]), b"hunter2", &SystemEntropy);
    let text = format!("{:?}", Blob::parse(&sealed).unwrap().open(&key(1), &context(&[])));
    assert_eq!(text, "Ok(SecretBytes(..))");
    let text = format!("{:?}", Blob::parse(&sealed).unwrap());
    assert!(text.len() < 100, "{text}");
}
