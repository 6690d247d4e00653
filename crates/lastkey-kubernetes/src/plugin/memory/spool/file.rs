//! The spool's file: appended to and synced batch by batch, read by the courier, begun anew once
//! everything in it was delivered. All of it blocks.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use lastkey_client::native::CachedAnswers;
use lastkey_crypto::{SpoolId, SystemEntropy};
use rustix::fs::{FlockOperation, OFlags, flock};

use super::format::{self, FormatError, Header};

/// More than this waits for no server: hours of a busy apiserver's answers.
const MAX_BYTES: u64 = 16 << 20;
/// A file of which all was delivered is begun anew above this.
const BEGIN_ANEW: u64 = 64 << 10;
/// Bytes read at once for delivery; a batch has at most some 5 KiB.
const CHUNK: u64 = 256 << 10;
/// Batches in one delivery; the server takes no more.
const AT_ONCE: usize = 64;

/// Why answers cannot be recorded.
#[derive(Debug, thiserror::Error)]
pub(in crate::plugin::memory) enum SpoolError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: another plugin keeps its records there; give each its own --state-dir", .0.display())]
    Taken(PathBuf),
    #[error("{}: others can write there, and take records away; run: chmod go-w {}", .0.display(), .0.display())]
    Writable(PathBuf),
    #[error("{}: it belongs to another user, who could take records away; run: chown {us} {}", path.display(), path.display())]
    Foreign { path: PathBuf, us: u32 },
    #[error("{}: {source}; move it away to begin a new one", path.display())]
    Format { path: PathBuf, source: FormatError },
    #[error("{}: it holds {MAX_BYTES} bytes that no server has taken yet", .0.display())]
    Full(PathBuf),
}

/// An open spool, ours alone.
#[derive(Debug)]
pub(super) struct SpoolFile {
    /// Held, because it is locked.
    _directory: File,
    path: PathBuf,
    file: File,
    spool: SpoolId,
    next: u64,
    /// Up to where all is durable.
    end: u64,
    /// Up to where all was delivered.
    delivered: u64,
    waiting: usize,
}

/// Batches to be delivered.
#[derive(Debug)]
pub(super) struct Parcel {
    pub(super) spool: SpoolId,
    pub(super) batches: Vec<CachedAnswers>,
    end: u64,
}

impl SpoolFile {
    /// Opens the spool in a directory, making both if need be. What is in it counts as not
    /// delivered: the server knows better.
    pub(super) fn open(directory: &Path) -> Result<Self, SpoolError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| SpoolError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(at(directory))?;
        let held = File::open(directory).map_err(at(directory))?;
        let found = held.metadata().map_err(at(directory))?;
        let us = rustix::process::geteuid().as_raw();
        if found.uid() != us && found.uid() != 0 {
            return Err(SpoolError::Foreign { path: directory.to_owned(), us });
        }
        if found.mode() & 0o022 != 0 {
            return Err(SpoolError::Writable(directory.to_owned()));
        }
        match flock(&held, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(SpoolError::Taken(directory.to_owned()));
            }
            Err(error) => return Err(at(directory)(error.into())),
        }
        let path = directory.join("answers.spool");
        let mut file = match open_file(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let header = Header::new(SpoolId::random(&SystemEntropy), 1);
                begin(&path, &held, header).map_err(at(&path))?
            }
            Err(error) => return Err(at(&path)(error)),
        };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(0)).map_err(at(&path))?;
        (&file).take(2 * MAX_BYTES).read_to_end(&mut bytes).map_err(at(&path))?;
        let parsed = format::parse(&bytes)
            .map_err(|source| SpoolError::Format { path: path.clone(), source })?;
        if parsed.damaged > 0 {
            let (damaged, path) = (parsed.damaged, path.display());
            tracing::error!(damaged, %path, "batches of answers are damaged, and not delivered");
        }
        Ok(Self {
            _directory: held,
            file,
            spool: parsed.header.spool,
            next: parsed.next,
            end: parsed.end as u64,
            delivered: parsed.start as u64,
            waiting: parsed.batches,
            path,
        })
    }

    pub(super) fn id(&self) -> SpoolId {
        self.spool
    }

    /// Batches that no server has taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Numbers the batches, appends them, and syncs. After a failure the same batches may be given
    /// again: what was written of them is written over.
    pub(super) fn append(&mut self, batches: &mut [CachedAnswers]) -> Result<(), SpoolError> {
        let mut text = Vec::new();
        for (batch, sequence) in batches.iter_mut().zip(self.next..) {
            batch.sequence = sequence;
            text.extend(format::line(batch));
        }
        let end = self.end + text.len() as u64;
        if end > MAX_BYTES {
            return Err(SpoolError::Full(self.path.clone()));
        }
        let write = || {
            // what an earlier attempt left there must not stay behind a shorter one
            self.file.set_len(self.end)?;
            self.file.write_all_at(&text, self.end)?;
            self.file.sync_data()
        };
        write().map_err(|source| SpoolError::Io { path: self.path.clone(), source })?;
        self.end = end;
        self.next += batches.len() as u64;
        self.waiting += batches.len();
        Ok(())
    }

    /// The oldest batches that were not delivered.
    pub(super) fn parcel(&self) -> Result<Option<Parcel>, SpoolError> {
        let length = (self.end - self.delivered).min(CHUNK);
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        let io = |source| SpoolError::Io { path: self.path.clone(), source };
        self.file.read_exact_at(&mut bytes, self.delivered).map_err(io)?;
        let found = format::batches(&bytes, AT_ONCE);
        let end = self.delivered + found.length as u64;
        let (spool, batches) = (self.spool, found.batches);
        Ok((found.length > 0).then_some(Parcel { spool, batches, end }))
    }

    /// These were delivered. A file that holds nothing else is begun anew, with the next number.
    pub(super) fn delivered(&mut self, parcel: &Parcel) -> Result<(), SpoolError> {
        self.delivered = parcel.end;
        self.waiting = self.waiting.saturating_sub(parcel.batches.len());
        if self.delivered < self.end || self.end < BEGIN_ANEW {
            return Ok(());
        }
        let io = |source| SpoolError::Io { path: self.path.clone(), source };
        let header = Header::new(self.spool, self.next);
        self.file = begin(&self.path, &self._directory, header).map_err(io)?;
        self.end = format::line(&header).len() as u64;
        self.delivered = self.end;
        self.waiting = 0;
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Puts a spool without batches in place of what is there, durably.
fn begin(path: &Path, directory: &File, header: Header) -> io::Result<File> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(&format::line(&header))?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    directory.sync_all()?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use lastkey_crypto::KeyVersionId;

    use super::*;

    fn batch(count: u64) -> CachedAnswers {
        CachedAnswers {
            sequence: 0,
            api: "v2".into(),
            key_version: KeyVersionId::from_bytes([3; 16]),
            count,
            first_ms: 5,
            last_ms: 6,
            uids: vec!["a".repeat(36); 64],
        }
    }

    fn sequences(spool: &SpoolFile) -> Vec<u64> {
        let parcel = spool.parcel().unwrap();
        parcel.map(|it| it.batches.iter().map(|batch| batch.sequence).collect()).unwrap_or_default()
    }

    #[test]
    fn numbers_go_on_after_a_restart_and_after_a_delivery() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path().join("made/on/the/way");
        let mut spool = SpoolFile::open(&directory).unwrap();
        assert!(spool.parcel().unwrap().is_none());
        spool.append(&mut [batch(1), batch(2)]).unwrap();
        assert_eq!(sequences(&spool), [1, 2]);
        let id = spool.id();
        drop(spool);
        let mut spool = SpoolFile::open(&directory).unwrap();
        assert_eq!((spool.id(), spool.waiting()), (id, 2));
        spool.append(&mut [batch(3)]).unwrap();
        assert_eq!(sequences(&spool), [1, 2, 3]);
        let mode = fs::metadata(directory.join("answers.spool")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // Once all was delivered, the file begins anew; its numbers don't.
        let mut many: Vec<_> = (0..60).map(batch).collect();
        spool.append(&mut many).unwrap();
        let parcel = spool.parcel().unwrap().unwrap();
        assert!(spool.end > BEGIN_ANEW && parcel.batches.len() == 63);
        spool.delivered(&parcel).unwrap();
        assert!(spool.end < 200 && spool.waiting() == 0);
        drop(spool);
        let mut spool = SpoolFile::open(&directory).unwrap();
        assert_eq!((spool.id(), spool.next), (id, 64));
        spool.append(&mut [batch(1)]).unwrap();
        assert_eq!(sequences(&spool), [64]);
    }

    #[test]
    fn a_torn_batch_is_written_over() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = SpoolFile::open(directory.path()).unwrap();
        spool.append(&mut [batch(1)]).unwrap();
        let (end, path) = (spool.end, spool.path.clone());
        drop(spool);
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"0123 {\"sequ").unwrap();
        let mut spool = SpoolFile::open(directory.path()).unwrap();
        let next = spool.next;
        assert!(spool.end == end && next > 2, "its number may have been used");
        spool.append(&mut [batch(9)]).unwrap();
        assert_eq!(sequences(&spool), [1, next]);
    }

    #[test]
    fn one_plugin_has_it_alone() {
        let directory = tempfile::tempdir().unwrap();
        let _spool = SpoolFile::open(directory.path()).unwrap();
        assert!(matches!(SpoolFile::open(directory.path()), Err(SpoolError::Taken(_))));
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let allow = |mode| fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode));
        for mode in [0o777, 0o1777, 0o770] {
            allow(mode).unwrap();
            let error = SpoolFile::open(directory.path()).unwrap_err();
            assert!(error.to_string().contains("run: chmod go-w"), "{mode:o}: {error}");
        }
        assert!(fs::read_dir(directory.path()).unwrap().next().is_none());
        allow(0o755).unwrap();
        SpoolFile::open(directory.path()).unwrap();
    }

    #[test]
    fn it_is_bounded_and_large_deliveries_are_cut() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = SpoolFile::open(directory.path()).unwrap();
        let many: Vec<_> = (0..100).map(batch).collect();
        while spool.append(&mut many.clone()).is_ok() {}
        assert!(spool.end <= MAX_BYTES && spool.end > MAX_BYTES - (1 << 20));
        let first = spool.parcel().unwrap().unwrap();
        assert!((50..=AT_ONCE).contains(&first.batches.len()), "{}", first.batches.len());
        spool.delivered(&first).unwrap();
        let second = spool.parcel().unwrap().unwrap();
        assert_eq!(second.batches[0].sequence, first.batches.len() as u64 + 1);
    }

    #[test]
    fn anothers_file_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("answers.spool"), "mine\n").unwrap();
        assert!(matches!(SpoolFile::open(directory.path()), Err(SpoolError::Format { .. })));
        let text = fs::read_to_string(directory.path().join("answers.spool")).unwrap();
        assert_eq!(text, "mine\n");
    }
}
