//! What is stored is what was written down: vectors from an independent implementation
//! (`tests/vectors/generate.py`).

use lastkey_crypto::KeyMaterial;
use serde_json::Value;

use crate::{
    anchor, audit, barrier,
    heads::{self, Head, Mark, Sum},
    outbox, uses,
};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../tests/vectors/formats.json")).unwrap()
}

fn bytes(vectors: &Value, name: &str) -> Vec<u8> {
    hex::decode(vectors[name].as_str().unwrap()).unwrap()
}

fn counts() -> heads::Counts {
    let mut counts = heads::zeros();
    (0..).zip(counts.iter_mut()).for_each(|(n, count): (u64, _)| *count = n * n);
    counts
}

#[test]
fn codes_and_their_sum() {
    let vectors = vectors();
    let key = KeyMaterial::from_slice(&(0..32).collect::<Vec<u8>>());
    let mut sum = Sum::default();
    for record in vectors["codes"].as_array().unwrap() {
        let path = record["path"].as_str().unwrap();
        let code = Sum::of(&key, path, &bytes(record, "stored"));
        assert_eq!(code.to_bytes().as_slice(), bytes(record, "code"), "{path}");
        assert_eq!(u64::from(heads::shard_of(path)), record["shard"].as_u64().unwrap(), "{path}");
        sum = sum.plus(code);
    }
    assert_eq!(sum.to_bytes().as_slice(), bytes(&vectors, "sum"));
    let head = Head { sequence: 7, records: 4, sum };
    let store = std::array::from_fn(|i| u8::try_from(i).unwrap());
    assert_eq!(head.encode(&store).as_slice(), bytes(&vectors, "head"));
    assert_eq!(Head::decode(&bytes(&vectors, "head")), Some((store, head)));
}

#[test]
fn mark_and_anchor() {
    let vectors = vectors();
    let log = audit::Head { seq: 99, hash: [0xab; 32] };
    let mark = Mark { log, settled: counts() };
    assert_eq!(mark.encode(), bytes(&vectors, "mark"));
    assert_eq!(Mark::decode(&bytes(&vectors, "mark")), Some(mark));
    // Releases without heads: number and hash, nothing else.
    assert_eq!(Mark::decode_log(&bytes(&vectors, "mark")[1..41]), Some(log));
    let store = std::array::from_fn(|i| u8::try_from(i).unwrap());
    assert_eq!(anchor::encoded(store, counts()), bytes(&vectors, "anchor"));
}

#[test]
fn checkpoints_that_the_store_remembers() {
    let vectors = vectors();
    let newest = (7, 104, [0x33; 32]);
    assert_eq!(audit::remembered(newest, None), bytes(&vectors, "checkpoint"));
    let lost = Some((4, 80, [0x22; 32]));
    assert_eq!(audit::remembered(newest, lost), bytes(&vectors, "checkpoint_behind_a_lost_one"));
}

#[test]
fn parcels_and_uses() {
    let vectors = vectors();
    assert_eq!(outbox::shards_of(&bytes(&vectors, "parcel")), Some(vec![0x00, 0x7f, 0xff]));
    let request = crate::RequestId::random(&lastkey_crypto::SystemEntropy);
    let head = audit::Head { seq: 98, hash: [0; 32] };
    let parcel = outbox::Parcel::new(request, br#""time":"now""#.to_vec(), head);
    assert_eq!(parcel.pack(vec![0x00, 0x7f, 0xff]), bytes(&vectors, "parcel"));
    assert_eq!(uses::encode(1 << 40).as_slice(), bytes(&vectors, "uses"));
}

#[test]
fn keyrings() {
    let vectors = vectors();
    for name in ["keyring", "keyring_of_the_first_release"] {
        let stored = bytes(&vectors, name);
        assert_eq!(barrier::keyring_again(&stored).as_deref(), Some(stored.as_slice()), "{name}");
    }
}
