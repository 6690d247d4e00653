//! The audit log as a stranger reads it: lines of JSON, chained by SHA-256.
//!
//! Whoever had copied each segment before retention deleted it has the whole chain, and knows what
//! was deleted: nothing but what a record says.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

use lastkey_crypto::mac;
use serde_json::Value;

use crate::{disk::SimDisk, image::Image, world::AUDIT};

/// One record, as far as it matters here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its number.
    pub seq: u64,
    /// What was done.
    pub action: String,
    /// `ok` or a code.
    pub outcome: String,
    /// By whom.
    pub principal: String,
}

/// What the log holds.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The records of each request.
    pub by_request: HashMap<String, Vec<Found>>,
    /// The versions that records say were made, by key.
    pub versions: BTreeMap<String, Vec<String>>,
    /// The keys whose end is recorded.
    pub destroyed: Vec<String>,
    /// The last record that may be gone, as records say.
    deletable: u64,
    /// How many segments are gone.
    pub deleted: usize,
    last: u64,
    prev: [u8; 32],
}

impl Log {
    /// How many records there are.
    pub fn len(&self) -> u64 {
        self.last
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.last == 0
    }

    /// Reads what came since the last time, and makes sure that what was there has not changed.
    ///
    /// # Errors
    /// What is wrong.
    pub fn follow(&mut self, disk: &SimDisk) -> Result<(), String> {
        let mut seq = 0;
        let mut prev = [0; 32];
        let (known, known_hash) = (self.last, self.prev);
        let mut gone = (0, 0);
        for Segment { text, live } in segments(disk)? {
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                let Some(line) = line.strip_suffix(b"\n") else {
                    return Err(format!("record {} ends in the middle", seq + 1));
                };
                seq += 1;
                let head = format!(r#"{{"seq":{seq},"prev":"{}","#, hex::encode(prev));
                if !line.starts_with(head.as_bytes()) {
                    return Err(format!("record {seq} is not in its place in the chain"));
                }
                prev = mac::sha256(&[line]);
                if seq == known && prev != known_hash {
                    return Err(format!("record {seq} is another than it was"));
                }
                if seq > known {
                    self.take(seq, line)?;
                }
            }
            if !live && !text.is_empty() {
                gone = (gone.0 + 1, seq);
            }
        }
        self.deleted = gone.0;
        if gone.1 > self.deletable {
            let (gone, deletable) = (gone.1, self.deletable);
            return Err(format!("record {gone} was deleted; records allow it up to {deletable}"));
        }
        if seq < known {
            return Err(format!("the log ended at record {known} and ends at {seq}"));
        }
        (self.last, self.prev) = (seq, prev);
        Ok(())
    }

    fn take(&mut self, seq: u64, line: &[u8]) -> Result<(), String> {
        let record: Value = serde_json::from_slice(line)
            .map_err(|error| format!("record {seq} is no JSON: {error}"))?;
        let text = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
        let found = Found {
            seq,
            action: text("action"),
            outcome: text("outcome"),
            principal: text("principal"),
        };
        if found.outcome == "ok" {
            let versions = self.versions.entry(text("key")).or_default();
            match found.action.as_str() {
                "CreateKey" => versions.push(text("key_version")),
                "CreateKeyVersion" | "RotateDueKey" if record["new_key_version"].is_string() => {
                    versions.push(text("new_key_version"));
                }
                "DeleteAudit" => {
                    let through = record["through"].as_u64().unwrap_or_default();
                    self.deletable = self.deletable.max(through);
                }
                "DestroyKey" if record["step"] == "end" => self.destroyed.push(text("key")),
                _ => {}
            }
        }
        self.by_request.entry(text("id")).or_default().push(found);
        Ok(())
    }
}

/// A segment's lines, and whether it is still there.
struct Segment {
    text: Vec<u8>,
    live: bool,
}

/// The segments in their order; a compressed one counts where the plain one is gone, and one that
/// was removed where neither is there.
fn segments(disk: &SimDisk) -> Result<Vec<Segment>, String> {
    let mut found: BTreeMap<String, (bool, Image, bool)> = BTreeMap::new();
    disk.with(|state| {
        let Some(directory) = state.directories.get(Path::new(AUDIT)) else { return };
        let live = directory.names.iter().map(|(name, file)| {
            let image = &state.files[*file].content;
            (name, image, true)
        });
        let buried = state.buried.iter().map(|(name, image)| (name, image, false));
        let forms = live.chain(buried).collect::<Vec<_>>();
        for suffix in [".jsonl", ".jsonl.zst"] {
            for (name, image, live) in &forms {
                let name = name.to_string_lossy();
                let Some(stem) = name.strip_suffix(suffix) else { continue };
                let form = (suffix != ".jsonl", (*image).clone(), *live);
                match found.get(stem) {
                    Some((_, _, known)) if *known || !live => {}
                    _ => drop(found.insert(stem.to_owned(), form)),
                }
            }
        }
    });
    let read = |(name, (compressed, image, live)): (String, (bool, Image, bool))| {
        let bytes = image.bytes();
        let text = if compressed { zstd::decode_all(bytes.as_slice()) } else { Ok(bytes) };
        let text =
            text.map_err(|error| format!("the closed segment {name} cannot be read: {error}"));
        text.map(|text| Segment { text, live })
    };
    found.into_iter().map(read).collect()
}
