//! The anchor: what remembers, apart from the store, how far the store had come.
//!
//! A store file put back as a whole, in an older version of itself, fits its own heads. The anchor
//! knows for each shard a sequence that was durable in the store; a store with a lower one is
//! older. It follows the store by up to a second, so it never knows more than the store holds. The
//! audit log is the other witness, to the record; the anchor tells also when nothing is left of
//! the log, and it can lie on another medium.
//!
//! Anchor (wrapped under a key that only the store's keyring gives, purpose `anchor`):
//! ```text
//! 00  1    format 1
//! 01  16   store id
//! 11  2048 for each shard, 8: a sequence that was durable
//! ```
//! Behind a zero byte, it is that of a store which is about to get its heads.

use std::{
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
};

use lastkey_crypto::{SystemEntropy, wrap};
use lastkey_store::disk::{Access, Disk, DiskFile, FileSystem, Reader, is_full};
use parking_lot::Mutex;

use crate::{
    Error,
    barrier::{Barrier, Inspection, Witness},
    heads::{self, Counts, SHARDS, StoreId},
};

pub(crate) const PURPOSE: &str = "anchor";
const FORMAT: u8 = 1;
/// What comes before the anchor of heads that are about to be made.
const ANNOUNCED: u8 = 0;
/// More than an anchor has.
const MAX_BYTES: u64 = 4096;

/// Keeps a few bytes apart from the store.
pub trait Anchor: Send + Sync + 'static {
    /// What was written last; `None` if nothing ever was.
    ///
    /// # Errors
    /// The medium cannot be read.
    fn read(&self) -> io::Result<Option<Vec<u8>>>;

    /// Puts `bytes` in place of what was there: after a crash, one of the two is there.
    ///
    /// # Errors
    /// The medium refused; what was there before is still there.
    fn write(&self, bytes: &[u8]) -> io::Result<()>;

    /// Whether it remembers anything at all.
    fn is_there(&self) -> bool {
        true
    }
}

/// Remembers nothing: an old store is noticed by the audit log only.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoAnchor;

impl Anchor for NoAnchor {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn write(&self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn is_there(&self) -> bool {
        false
    }
}

/// In memory, for tests.
#[derive(Debug, Default)]
pub struct MemoryAnchor(Mutex<Option<Vec<u8>>>);

impl Anchor for MemoryAnchor {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().clone())
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        *self.0.lock() = Some(bytes.to_vec());
        Ok(())
    }
}

impl MemoryAnchor {
    /// Puts back what it once held, as somebody with the disk can.
    pub fn tamper(&self, bytes: Option<Vec<u8>>) {
        *self.0.lock() = bytes;
    }
}

/// A small file of mode 0600.
#[derive(Debug)]
pub struct FileAnchor {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl FileAnchor {
    /// An anchor in the file `path`; `path` with `.new` behind it is used as well.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::on(Arc::new(FileSystem), path)
    }

    /// The same on any disk.
    pub fn on(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Self {
        Self { disk, path: path.into() }
    }

    fn open(&self) -> io::Result<Option<Arc<dyn DiskFile>>> {
        match self.disk.open(&self.path, Access::Read) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some),
        }
    }
}

impl Anchor for FileAnchor {
    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open()? else { return Ok(None) };
        let mut bytes = Vec::new();
        Reader::new(file).take(MAX_BYTES).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    fn write(&self, bytes: &[u8]) -> io::Result<()> {
        let mut draft = self.path.clone().into_os_string();
        draft.push(".new");
        let draft = PathBuf::from(draft);
        let file = self.disk.open(&draft, Access::Create)?;
        file.set_length(0)?;
        file.write_at(bytes, 0)?;
        file.sync()?;
        self.disk.rename(&draft, &self.path)?;
        // A rename that a power cut takes back would leave the anchor of another history of the
        // store, where a first start was cut short before, or none at all.
        self.path.parent().map_or(Ok(()), |directory| self.disk.sync_directory(directory))
    }
}

/// What an anchor says.
#[derive(Debug, PartialEq, Eq)]
struct Anchored {
    store: StoreId,
    sequences: Counts,
}

impl Anchored {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + 16 + 8 * SHARDS);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.store);
        self.sequences.iter().for_each(|sequence| bytes.extend_from_slice(&sequence.to_be_bytes()));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&[FORMAT])?;
        let (store, sequences) = rest.split_first_chunk()?;
        Some(Self { store: *store, sequences: heads::decode_counts(sequences)? })
    }
}

/// Compares a store with what its anchor says: what does not fit, in words for the operator.
pub(crate) fn compare(
    anchor: &dyn Anchor,
    barrier: &Barrier,
    inspection: &Inspection,
) -> Result<Option<String>, Error> {
    if !anchor.is_there() {
        return Ok(None);
    }
    let found = anchor.read().map_err(unusable)?;
    let Some(Witness { store, key }) = barrier.witness(PURPOSE) else {
        // No heads yet: the store is new, or of an older release, or was put back.
        let anchored = found.is_some_and(|bytes| bytes.first() != Some(&ANNOUNCED));
        return Ok(anchored.then(|| {
            "its anchor belongs to a later state of it, which had sealed heads".to_owned()
        }));
    };
    let Some(found) = found else { return Ok(Some("its anchor is missing".to_owned())) };
    let wrapped = found.strip_prefix(&[ANNOUNCED]).unwrap_or(&found);
    let opened = wrap::unwrap(&key, PURPOSE, wrapped).ok();
    let anchored = opened.and_then(|plain| Anchored::decode(plain.expose()));
    let Some(anchored) = anchored.filter(|anchored| anchored.store == store) else {
        return Ok(Some("its anchor belongs to another history of the store".to_owned()));
    };
    let behind = anchored.sequences.iter().zip(inspection.sequences.iter());
    let behind = behind.filter(|(anchored, found)| anchored > found).count();
    Ok((behind > 0).then(|| format!("{behind} of {SHARDS} shards are older than its anchor")))
}

/// Lets the anchor know of heads that are about to be made: whichever comes first after a crash,
/// they belong together.
pub(crate) fn announce(anchor: &dyn Anchor, witness: &Witness) -> Result<(), Error> {
    let wrapped = wrapped(witness, heads::zeros());
    anchor.write(&[&[ANNOUNCED], wrapped.as_slice()].concat()).map_err(unusable)
}

/// Lets the anchor know what is durable in the store now.
pub(crate) fn write(anchor: &dyn Anchor, barrier: &Barrier) -> Result<(), Error> {
    if let (Some(sequences), Some(witness)) = (barrier.committed(), barrier.witness(PURPOSE)) {
        anchor.write(&wrapped(&witness, sequences)).map_err(unusable)?;
    }
    Ok(())
}

fn wrapped(witness: &Witness, sequences: Counts) -> Vec<u8> {
    let plain = Anchored { store: witness.store, sequences }.encode();
    wrap::wrap(&witness.key, PURPOSE, &plain, &SystemEntropy)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn unusable(error: io::Error) -> Error {
    match is_full(&error) {
        true => Error::StorageFull,
        false => Error::Unavailable(format!("the store's anchor cannot be used: {error}")),
    }
}

/// For the golden vectors.
#[cfg(test)]
pub(crate) fn encoded(store: StoreId, sequences: Counts) -> Vec<u8> {
    Anchored { store, sequences }.encode()
}

/// For the fuzz target: reads an unwrapped anchor.
pub(crate) fn parse(bytes: &[u8]) {
    if let Some(anchored) = Anchored::decode(bytes) {
        assert_eq!(anchored.encode(), bytes, "an anchor is written as it was read");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole() {
        let directory = tempfile::tempdir().unwrap();
        let anchor = FileAnchor::new(directory.path().join("anchor"));
        assert_eq!(anchor.read().unwrap(), None);
        for bytes in [b"one".as_slice(), b"", b"longer than before"] {
            anchor.write(bytes).unwrap();
            assert_eq!(anchor.read().unwrap().as_deref(), Some(bytes));
        }
    }

    #[test]
    fn what_is_cut_or_longer_is_no_anchor() {
        let mut sequences = heads::zeros();
        sequences[3] = 7;
        let bytes = Anchored { store: [9; 16], sequences }.encode();
        assert_eq!(Anchored::decode(&bytes).unwrap().sequences[3], 7);
        for length in 0..bytes.len() {
            assert_eq!(Anchored::decode(&bytes[..length]), None);
        }
        assert_eq!(Anchored::decode(&[bytes.as_slice(), &[0]].concat()), None);
    }
}
