//! The spool's file: appended to and synced batch by batch, read by the courier, begun anew once
//! everything in it was delivered. All of it blocks.
//!
//! Room for what comes next is taken from the disk ahead, behind the file's end and without moving
//! it: what was noted can be written on a disk that has become full since. A file system that
//! cannot do so is written to as far as it goes.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use lastkey_client::native::CachedAnswers;
use lastkey_crypto::{SpoolId, SystemEntropy};
use rustix::{
    fs::{FallocateFlags, FlockOperation, OFlags, fallocate, flock},
    io::{Errno, retry_on_intr},
};

use super::format::{self, FormatError, Header};

/// More than this waits for no server: hours of a busy apiserver's answers.
const MAX_BYTES: u64 = 16 << 20;
/// A file of which all was delivered is begun anew above this.
const BEGIN_ANEW: u64 = 64 << 10;
/// So much room is taken ahead, if there is; less than half of it is made whole again.
const AHEAD: u64 = 128 << 10;
/// With less than this, nothing more is to be noted.
pub(super) const LEAST_AHEAD: u64 = 16 << 10;
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
    #[error("{}: its disk has no room for {LEAST_AHEAD} bytes more; make some there", .0.display())]
    NoRoom(PathBuf),
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
    /// Up to where there is room; none where the file system takes none ahead.
    room: Option<u64>,
    /// Whether there is something behind the end, torn or of an attempt that failed.
    torn: bool,
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
                begin(&path, &held, (header, |_: &File| Ok(()))).map_err(at(&path))?
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
            room: Some(parsed.end as u64),
            torn: parsed.end < bytes.len(),
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

    /// Bytes that can be appended for certain, as far as the file system takes room ahead.
    pub(super) fn room(&self) -> u64 {
        self.room.unwrap_or(MAX_BYTES).min(MAX_BYTES).saturating_sub(self.end)
    }

    /// Takes room ahead, where little is left.
    ///
    /// # Errors
    /// There is too little for anything more to be noted.
    pub(super) fn reserve(&mut self) -> Result<(), SpoolError> {
        // it could not be begun anew when the last of it was delivered, for want of room
        if self.delivered == self.end && self.end >= BEGIN_ANEW {
            let _ = self.begin_anew();
        }
        if self.end + LEAST_AHEAD > MAX_BYTES {
            return Err(SpoolError::Full(self.path.clone()));
        }
        let Some(room) = self.room else { return Ok(()) };
        if room.saturating_sub(self.end) < AHEAD / 2 {
            let ahead = take_ahead(&self.file, self.end, LEAST_AHEAD).map_err(self.io())?;
            self.room = ahead.map(|end| end.max(room));
        }
        match self.room() {
            0..LEAST_AHEAD => Err(SpoolError::NoRoom(self.path.clone())),
            _ => Ok(()),
        }
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
        if self.torn {
            // it must not stay behind something shorter; the room behind it goes with it
            self.file.set_len(self.end).map_err(self.io())?;
            let ahead = take_ahead(&self.file, self.end, 0).map_err(self.io())?;
            (self.torn, self.room) = (false, ahead);
        }
        let written = self.file.write_all_at(&text, self.end).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.torn = true;
            return Err(self.io()(error));
        }
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
        self.begin_anew()
    }

    /// Begins the file anew, with no less room ahead than there was: that may be spoken for. Where
    /// there is not so much, it stays as it is.
    fn begin_anew(&mut self) -> Result<(), SpoolError> {
        let header = Header::new(self.spool, self.next);
        let end = format::line(&header).len() as u64;
        let (needed, mut room) = (self.room(), self.room.map(|_| end));
        let ahead = |file: &File| {
            if room.is_some() {
                room = take_ahead(file, end, needed)?;
            }
            match room.is_none_or(|room| room - end >= needed) {
                true => Ok(()),
                false => Err(io::ErrorKind::StorageFull.into()),
            }
        };
        match begin(&self.path, &self._directory, (header, ahead)) {
            Ok(file) => self.file = file,
            Err(error) if is_full(&error) => return Ok(()),
            Err(error) => return Err(self.io()(error)),
        }
        (self.end, self.delivered, self.room) = (end, end, room);
        (self.torn, self.waiting) = (false, 0);
        Ok(())
    }

    fn io(&self) -> impl Fn(io::Error) -> SpoolError + use<> {
        let path = self.path.clone();
        move |source| SpoolError::Io { path: path.clone(), source }
    }
}

/// Takes room for as much as is wanted behind `end`, at least for so much. Answers up to where there
/// is some, or none if the file system does not do that.
fn take_ahead(file: &File, end: u64, least: u64) -> io::Result<Option<u64>> {
    let least = least.max(LEAST_AHEAD);
    let mut wanted = AHEAD.max(least);
    loop {
        // the end stays where it is, and so does what reads up to there
        let took = retry_on_intr(|| fallocate(file, FallocateFlags::KEEP_SIZE, end, wanted));
        match took {
            Ok(()) => return Ok(Some(end + wanted)),
            Err(Errno::NOSPC | Errno::DQUOT) if wanted == least => return Ok(Some(end)),
            Err(Errno::NOSPC | Errno::DQUOT) => wanted = (wanted / 2).max(least),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn open_file(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)
}

/// Puts a spool without batches in place of what is there, durably, once it is prepared.
fn begin(
    path: &Path,
    directory: &File,
    (header, prepare): (Header, impl FnOnce(&File) -> io::Result<()>),
) -> io::Result<File> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options.read(true).write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(&format::line(&header)).and_then(|()| prepare(&file));
    if let Err(error) = written.and_then(|()| file.sync_all()) {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
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

    /// Room is taken behind the end, which it does not move: what reads the file sees none of it.
    #[test]
    fn room_is_taken_ahead_and_again_after_use() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = SpoolFile::open(directory.path()).unwrap();
        spool.reserve().unwrap();
        if spool.room.is_none() {
            return; // this file system takes no room ahead
        }
        let check = |spool: &SpoolFile| {
            let file = fs::metadata(&spool.path).unwrap();
            assert_eq!(file.len(), spool.end);
            assert!((AHEAD / 2..=AHEAD).contains(&spool.room()), "{}", spool.room());
            assert!(file.blocks() * 512 >= spool.end + spool.room(), "{file:?}");
        };
        check(&spool);
        for _ in 0..5 {
            spool.append(&mut (0..10).map(batch).collect::<Vec<_>>()).unwrap();
            spool.reserve().unwrap();
            check(&spool);
        }
        // a torn end costs no room, nor does it come back when nothing is appended
        let torn = OpenOptions::new().append(true).open(&spool.path);
        torn.unwrap().write_all(b"0123 {\"sequ").unwrap();
        drop(spool);
        let mut spool = SpoolFile::open(directory.path()).unwrap();
        spool.reserve().unwrap();
        spool.append(&mut [batch(1)]).unwrap();
        check(&spool);
        // a file that begins anew has as much
        spool.append(&mut (0..20).map(batch).collect::<Vec<_>>()).unwrap();
        while let Some(parcel) = spool.parcel().unwrap() {
            spool.delivered(&parcel).unwrap();
        }
        assert!(spool.end < 200);
        check(&spool);
    }

    #[test]
    fn nothing_more_is_to_be_noted_where_a_file_is_almost_full() {
        let directory = tempfile::tempdir().unwrap();
        let mut spool = SpoolFile::open(directory.path()).unwrap();
        spool.reserve().unwrap();
        spool.end = MAX_BYTES - LEAST_AHEAD;
        spool.reserve().unwrap();
        assert_eq!(spool.room(), LEAST_AHEAD);
        spool.end += 1;
        assert!(matches!(spool.reserve(), Err(SpoolError::Full(_))));
    }
}
