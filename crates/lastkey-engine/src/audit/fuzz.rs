//! For the fuzz target: whatever reads the lines of segments, from bytes instead of files.

use std::io::Cursor;

use lastkey_crypto::KeyMaterial;

use super::{
    Query, files,
    files::Line,
    index::{Builder, Field, Index},
    query,
    retain::Told,
    scan::Matcher,
    seconds::Seconds,
    segment,
    walk::{MAX_PROBLEMS, Walk},
};
use crate::Timestamp;

/// No more is decompressed of one input.
const LIMIT: u64 = 1 << 20;
/// With what a zstd frame begins (RFC 8878 §3.1.1).
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Walks, indexes and searches arbitrary bytes as a segment; as a compressed one, where they look
/// like it.
pub(crate) fn parse_segment(bytes: &[u8]) {
    let open = || files::lines_of(Cursor::new(bytes.to_vec()), bytes.starts_with(ZSTD), LIMIT);
    let Ok(lines) = open() else { return };
    let walk = Walk::through("segment".to_owned(), lines, &[]).expect("nothing here is a disk");
    assert!(walk.problems.len() <= MAX_PROBLEMS && walk.bytes <= LIMIT);
    if let (Some(start), true) = (walk.start, walk.problems.is_empty()) {
        assert_eq!(walk.at.seq - start.seq + 1, walk.records, "a chain without a gap");
    }
    let (mut whole, mut builder) = (Vec::new(), Builder::new());
    let mut lines = open().expect("it was opened before");
    while let Ok(Some(Line::Whole(line))) = lines.next() {
        builder.line(line);
        let _ = query::nonce(line);
        told(line);
        whole.extend_from_slice(line);
        whole.push(b'\n');
    }
    builder.block(whole.len(), whole.len());
    let index = builder.finish();
    let key = KeyMaterial::from_slice(&[0; 32]);
    assert_eq!(Index::decode(1, &key, &index.encode(1, &key)).as_ref(), Some(&index));
    search(&whole, &index);
}

/// What a deletion's record tells of lost nonces, and any line as such a text.
fn told(line: &[u8]) {
    let told = serde_json::from_slice(line).ok().and_then(|record| Told::read(&record));
    if let Some(told) = told {
        let (from, now) = (Timestamp::from_millis(0), Timestamp::from_millis(3_600_000));
        let _ = told.at_start(from, now);
    }
    if let Some((text, set)) =
        std::str::from_utf8(line).ok().and_then(|text| Some((text, Seconds::parse(text)?)))
    {
        assert_eq!(set.to_string(), text, "it is written as it was read");
    }
}

/// Every search finds what lies there, in order, and nothing that the index denies.
fn search(lines: &[u8], index: &Index) {
    let all = Query::default();
    let named =
        Query { action: Some("Encrypt".to_owned()), key: Some("k".to_owned()), ..all.clone() };
    for query in [all, named] {
        let matcher = Matcher::new(&query, u64::MAX);
        matcher.scan(lines, &mut |seq, line| {
            assert_eq!(segment::link(line).map(|link| link.seq), Some(seq));
            assert!(index.blocks.iter().any(|block| {
                (block.first..=block.last).contains(&seq)
                    && query.key.as_ref().is_none_or(|key| block.may_hold(Field::Key, key))
            }));
            true
        });
    }
}
