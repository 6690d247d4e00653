//! Who signs checkpoints, when, and where they are kept.
//!
//! A thread of its own signs, so that no record waits for a signature: at most every
//! [`CHECKPOINT_EVERY`] while there are new records, when a segment is closed, and when the log
//! is. A statement that everything up to a record is to be deleted is signed on demand.
//!
//! A start reads the end of the file and checks the newest signature. What stands before is a
//! verification's business: whoever changes it is found out there.

mod tail;

use std::{
    cmp::Ordering,
    io::{self, ErrorKind, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lastkey_crypto::signing::{PublicKey, SIGNATURE_LEN, SigningKey};
use lastkey_store::disk::{Access, Disk, DiskFile, is_full, read_full};
use parking_lot::{Condvar, Mutex};

use super::{
    Head,
    checkpoint::{self, Checkpoint, CheckpointKind, LogId, Statement},
    files::{At, Line, Lines},
    remembered::{Known, Remembered},
};
use crate::{Clock, Timestamp};

/// New records are signed at least this often: ten seconds less than a minute, for slow disks.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(50);
/// The largest file of checkpoints that a verification reads: it holds all of it.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// What every statement about a deletion holds.
const RETENTION: &[u8] = br#""kind":"retention""#;
/// So many lines at the file's end may be what a crash made of writes that were never synced: one of
/// two that were written over each other, and what was left behind it.
const TORN_LINES: usize = 2;
/// A start looks so far back for what the store remembers: through 2500 checkpoints.
const LOOK_BACK: u64 = 1 << 20;
/// Where the file is written anew.
const TEMPORARY: &str = "checkpoints.new";
/// So much is left to others when it is.
const LEFT_FREE: u64 = 16 << 20;
/// Checkpoints that stay are copied in pieces of this much.
const PIECE: usize = 1 << 20;

/// How checkpoints are made.
pub struct Checkpointing {
    /// What signs them. It is kept outside of the store and of what a snapshot copies.
    pub key: SigningKey,
    /// The time they name.
    pub clock: Arc<dyn Clock>,
    /// How often new records are signed.
    pub every: Duration,
}

impl Checkpointing {
    /// With this key, as often as promised.
    pub fn new(key: SigningKey, clock: Arc<dyn Clock>) -> Self {
        Self { key, clock, every: CHECKPOINT_EVERY }
    }
}

pub(super) use tail::{backwards, end_of_lines};

/// Opens the file of checkpoints to read it, if there is one.
pub(super) fn open_file(
    disk: &dyn Disk,
    directory: &Path,
) -> io::Result<Option<Arc<dyn DiskFile>>> {
    match disk.open(&directory.join(checkpoint::FILE), Access::Read) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        file => file.map(Some),
    }
}

/// Reads the whole file of checkpoints; empty where there is none.
pub(super) fn read_file(disk: &dyn Disk, directory: &Path) -> io::Result<Vec<u8>> {
    let Some(file) = open_file(disk, directory)? else { return Ok(Vec::new()) };
    let length = file.length()?;
    if length > MAX_FILE_BYTES {
        return Err(io::Error::new(ErrorKind::FileTooLarge, "the checkpoints are over 1 GiB"));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
    let filled = read_full(&*file, &mut bytes, 0)?;
    bytes.truncate(filled);
    Ok(bytes)
}

/// Up to which record everything was deleted, as this key's checkpoints say; 0 for nothing.
pub(super) fn deleted_through(
    disk: &dyn Disk,
    directory: &Path,
    key: PublicKey,
    log: LogId,
) -> io::Result<u64> {
    let Some(file) = open_file(disk, directory)? else { return Ok(0) };
    let mut lines = Lines::new(Box::new(At::new(file, 0)));
    let mut through = 0;
    while let Some(line) = lines.next()? {
        let Line::Whole(line) = line else { continue };
        if memchr::memmem::find(line, RETENTION).is_none() {
            continue;
        }
        if let Some(found) = checkpoint::read(line)
            && found.statement.kind == CheckpointKind::Retention
            && found.statement.log == log
            && found.is_signed_by(key)
        {
            through = through.max(found.statement.head.seq);
        }
    }
    Ok(through)
}

/// The number of the newest checkpoint, whoever signed it; 0 for none.
pub(super) fn newest_number(disk: &dyn Disk, directory: &Path) -> io::Result<u64> {
    let Some(file) = open_file(disk, directory)? else { return Ok(0) };
    let mut newest = None;
    tail::backwards(&*file, tail::end_of_lines(&*file)?, |_, lines| {
        let read = checkpoint::lines(lines).filter_map(checkpoint::read);
        newest = read.map(|found| found.statement.number).max();
        newest.is_some()
    })?;
    Ok(newest.unwrap_or(0))
}

/// The file, and what the next line in it says of the one before.
struct Book {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    file: Arc<dyn DiskFile>,
    length: u64,
    log: LogId,
    number: u64,
    prev: [u8; 32],
    /// The newest record that is signed for.
    signed: u64,
    newest: Option<Checkpoint>,
    /// What the store may remember: the newest one, unless others are missing that it remembers.
    kept: Option<Known>,
    /// The newest one that was missing when the log was opened, for the store to remember.
    lost: Option<Known>,
    /// What was looked for then.
    recalled: Option<Known>,
    /// Whether the file is durable, as it is and under its name.
    settled: bool,
    /// Whether it could not be read as far back as what the store remembers: then that stays.
    unread: bool,
    /// So many bytes behind the last line may be what is left of an attempt that failed.
    tried: u64,
    options: Checkpointing,
    told: Arc<Mutex<Told>>,
}

/// What others are told, who do not wait for the disk.
#[derive(Default)]
struct Told {
    /// The newest checkpoint's record and time.
    newest: Option<(u64, Timestamp)>,
    /// Why the last attempt failed, if it did.
    failing: Option<String>,
}

impl Book {
    fn open(
        disk: Arc<dyn Disk>,
        directory: &Path,
        log: LogId,
        options: Checkpointing,
    ) -> io::Result<Self> {
        let file = disk.open(&directory.join(checkpoint::FILE), Access::Create)?;
        disk.sync_directory(directory)?;
        let mut book = Self {
            disk,
            directory: directory.to_owned(),
            file,
            length: 0,
            log,
            number: 0,
            prev: [0; 32],
            signed: 0,
            newest: None,
            kept: None,
            lost: None,
            recalled: None,
            settled: false,
            unread: false,
            tried: 0,
            options,
            told: Arc::default(),
        };
        book.length = tail::end_of_lines(&*book.file)?;
        for _ in 0..TORN_LINES {
            let Some(start) = book.torn_line()? else { break };
            tracing::warn!("the last audit checkpoint was not written whole, and is made again");
            book.length = start;
        }
        if book.length < book.file.length()? {
            book.file.set_length(book.length)?;
        }
        book.look_back()?;
        book.kept = book.newest.as_ref().map(Known::of);
        book.tell();
        if book.number > 0 && book.newest.is_none() {
            tracing::warn!(
                key = book.options.key.public().id(),
                "the audit checkpoints so far bear another key's signature: hand the new public \
                 key to whoever checks them (`lastkey audit public-key`)"
            );
        }
        Ok(book)
    }

    /// Where the last line begins, if it is neither another key's checkpoint nor a whole one of this
    /// key: a sync that failed may have kept pieces of several that were tried in one place. To take
    /// it away gives nobody anything who could have taken the last line away himself.
    fn torn_line(&self) -> io::Result<Option<u64>> {
        let (mut torn, own) = (None, self.options.key.public());
        tail::backwards(&*self.file, self.length, |from, lines| {
            let line = lines.strip_suffix(b"\n").unwrap_or(lines);
            let start = memchr::memrchr(b'\n', line).map_or(0, |before| before + 1);
            let is_whole = checkpoint::read(&line[start..])
                .is_some_and(|found| found.key != own.id() || found.is_signed_by(own));
            if !is_whole && (start > 0 || from == 0) {
                torn = Some(from + start as u64);
            }
            true
        })?;
        Ok(torn)
    }

    /// Finds what to go on from in the newest lines: as far back as one that is ours and about
    /// records, or through the first piece of the file that holds a checkpoint at all.
    fn look_back(&mut self) -> io::Result<()> {
        let file = Arc::clone(&self.file);
        let mut prev = None;
        tail::backwards(&*file, self.length, |_, lines| {
            for line in checkpoint::lines(lines).rev() {
                prev.get_or_insert_with(|| checkpoint::link(line));
                if self.recall(line) {
                    return true;
                }
            }
            self.number > 0
        })?;
        self.prev = prev.unwrap_or_default();
        Ok(())
    }

    /// Takes up what a line says, those behind it being known; whether that is all.
    fn recall(&mut self, line: &[u8]) -> bool {
        let Some(found) = checkpoint::read(line) else { return false };
        self.number = self.number.max(found.statement.number);
        if found.statement.log != self.log || !found.is_signed_by(self.options.key.public()) {
            return false;
        }
        self.signed = self.signed.max(found.statement.head.seq);
        let about_records = found.statement.kind != CheckpointKind::Retention;
        self.newest.get_or_insert(found);
        about_records
    }

    /// Compares the file with what the store remembers. If that is gone, numbers go on behind it,
    /// so that a file which begins anew does not look whole; not in a log that begins anew itself.
    /// What cannot be looked at counts as missing, and is looked for again at the next start.
    fn compare(&mut self, remembered: Remembered, is_new: bool) -> io::Result<Option<String>> {
        let Remembered { newest, lost } = remembered;
        let looked = self.look_for(&newest, Some(LOOK_BACK));
        self.unread = looked.is_err();
        let (missing, what) = match looked.transpose() {
            Some(what) => (newest, what),
            None => {
                self.recalled = Some(newest);
                // One that was missing before may be back.
                let Some(lost) = lost else { return Ok(None) };
                let Some(what) = self.look_for(&lost, None).transpose() else { return Ok(None) };
                (lost, what)
            }
        };
        self.recalled = Some(missing);
        if !(is_new && self.number == 0) {
            self.lost = Some(missing);
            if self.number <= newest.number {
                (self.number, self.prev) = (newest.number, newest.link);
            }
        }
        if missing == newest {
            self.kept = None;
        }
        what.map(Some)
    }

    /// Looks for a checkpoint that there was, and answers what became of it if it is not there. What
    /// is further `back` than that is not looked at, if we signed a later one since; a verification
    /// looks at everything.
    fn look_for(&self, known: &Known, back: Option<u64>) -> io::Result<Option<String>> {
        let own = self.options.key.public();
        let (mut ended, mut answer) = (false, Some(known.gone_after(0)));
        // Anybody can write lines: without one of ours among the newest, all are looked at.
        let (mut is_near, mut vouched) = (back.is_some(), false);
        tail::backwards(&*self.file, self.length, |from, lines| {
            for line in checkpoint::lines(lines).rev() {
                let Some(found) = checkpoint::read(line) else { continue };
                if found.statement.log != self.log {
                    continue;
                }
                let number = found.statement.number;
                (ended, answer) = match number.cmp(&known.number) {
                    Ordering::Equal if checkpoint::link(line) == known.link => (true, None),
                    Ordering::Equal => (true, Some(known.replaced())),
                    Ordering::Less => (true, Some(known.gone_after(number))),
                    Ordering::Greater
                        if known.was_retired_by(&found.statement) && found.is_signed_by(own) =>
                    {
                        (true, None)
                    }
                    Ordering::Greater => {
                        vouched = vouched || (is_near && found.is_signed_by(own));
                        continue;
                    }
                };
                return ended;
            }
            if from > 0 && back.is_some_and(|back| self.length - from >= back) {
                is_near = false;
                if vouched {
                    (ended, answer) = (true, None);
                }
            }
            ended
        })?;
        Ok(answer)
    }

    /// What the store may remember. What is read back from a file that was never synced since may
    /// still be lost: it is made durable first.
    fn settle(&mut self) -> io::Result<Option<Remembered>> {
        if self.kept.is_some() && !self.settled {
            self.file.sync()?;
            self.disk.sync_directory(&self.directory)?;
            self.settled = true;
        }
        let (lost, kept) = (self.lost, self.kept.filter(|_| !self.unread));
        Ok(kept.map(|newest| Remembered { newest, lost }))
    }

    fn sign(&mut self, kind: CheckpointKind, head: Head) -> io::Result<()> {
        let signed = self.sign_line(kind, head);
        let why = signed.as_ref().err().map(ToString::to_string);
        let failed = std::mem::replace(&mut self.told.lock().failing, why);
        match &signed {
            Ok(()) if failed.is_some() => tracing::info!("audit checkpoints are written again"),
            Err(error) if failed.is_none() => {
                tracing::error!(%error, "an audit checkpoint cannot be written; trying again");
            }
            _ => {}
        }
        signed
    }

    fn sign_line(&mut self, kind: CheckpointKind, head: Head) -> io::Result<()> {
        let (line, checkpoint) = self.next(kind, head);
        self.is_as_it_was_left()?;
        if self.tried > 0 {
            // A longer line may lie there, whose end would stay behind this one.
            self.file.set_length(self.length)?;
        }
        self.tried = self.tried.max(line.len() as u64);
        self.file.write_at(&line, self.length)?;
        self.file.sync()?;
        self.turn_to(&line, checkpoint);
        self.length += line.len() as u64;
        self.tried = 0;
        Ok(())
    }

    /// Refuses to write to a file that somebody else removed, replaced or changed: what is written
    /// would be lost, or stand on lines that were put back. A start goes on from what is there. Goes
    /// on here with another file of that name that holds the same, as who puts it back leaves it.
    fn is_as_it_was_left(&mut self) -> io::Result<()> {
        let ours = self.length..=self.length.saturating_add(self.tried);
        if let Some(named) = open_file(&*self.disk, &self.directory)?
            && ours.contains(&named.length()?)
            && ours.contains(&self.file.length()?)
        {
            if !self.file.is_removed()? {
                return Ok(());
            }
            if self.holds_the_same(&*named)? {
                let path = self.directory.join(checkpoint::FILE);
                (self.file, self.settled) = (self.disk.open(&path, Access::Write)?, false);
                return Ok(());
            }
        }
        Err(io::Error::other(
            "checkpoints.log was removed, replaced or changed while the server runs: stop the \
             server, put back what is missing, and start it again",
        ))
    }

    /// Whether another file holds the lines that this one does.
    fn holds_the_same(&self, other: &dyn DiskFile) -> io::Result<bool> {
        let (mut ours, mut theirs) = (vec![0; PIECE], vec![0; PIECE]);
        let mut at = 0;
        while at < self.length {
            let left = usize::try_from(self.length - at).unwrap_or(PIECE).min(PIECE);
            let (ours, theirs) = (&mut ours[..left], &mut theirs[..left]);
            let filled = read_full(&*self.file, ours, at)?;
            if filled < left || read_full(other, theirs, at)? < left || ours != theirs {
                return Ok(false);
            }
            at += left as u64;
        }
        Ok(true)
    }

    /// Whether a deletion could be stated. A file that was removed comes back with what we know of
    /// it; another one is not written over.
    fn can_state(&mut self) -> io::Result<()> {
        match open_file(&*self.disk, &self.directory)? {
            Some(_) => self.is_as_it_was_left(),
            None => Ok(()),
        }
    }

    fn next(&self, kind: CheckpointKind, head: Head) -> (Vec<u8>, Checkpoint) {
        let statement = Statement {
            log: self.log,
            number: self.number.saturating_add(1),
            prev: self.prev,
            kind,
            head,
            time: self.options.clock.now(),
        };
        let checkpoint = statement.sign(&self.options.key);
        (format!("{}\n", checkpoint.to_line()).into_bytes(), checkpoint)
    }

    fn turn_to(&mut self, line: &[u8], checkpoint: Checkpoint) {
        self.number = checkpoint.statement.number;
        self.prev = checkpoint::link(&line[..line.len() - 1]);
        let Head { seq, .. } = checkpoint.statement.head;
        self.signed = self.signed.max(seq);
        self.kept = Some(Known { number: self.number, seq, link: self.prev });
        self.newest = Some(checkpoint);
        self.tell();
    }

    fn tell(&self) {
        let newest = self.newest.as_ref().map(|found| &found.statement);
        self.told.lock().newest = newest.map(|statement| (statement.head.seq, statement.time));
    }

    /// States that everything up to `through` is to be deleted, and forgets what was stated about
    /// it, unless there is no room for that: then the next deletion does.
    fn retire(&mut self, through: Head) -> io::Result<()> {
        self.can_state()?;
        // One that a crash has left takes the room that it is looked for.
        let _ = self.disk.remove(&self.directory.join(TEMPORARY));
        let needed = self.length.saturating_add(LEFT_FREE);
        if self.file.free_space().is_some_and(|free| free < needed) {
            return self.sign(CheckpointKind::Retention, through);
        }
        let retired = self.rewrite(through);
        if retired.is_err() {
            let _ = self.disk.remove(&self.directory.join(TEMPORARY));
        }
        match retired {
            Err(error) if is_full(&error) => self.sign(CheckpointKind::Retention, through),
            retired => retired,
        }
    }

    /// Writes the file anew with that statement, without the lines before the first that is about
    /// what stays.
    fn rewrite(&mut self, through: Head) -> io::Result<()> {
        let (line, checkpoint) = self.next(CheckpointKind::Retention, through);
        let temporary = self.directory.join(TEMPORARY);
        let file = self.disk.open(&temporary, Access::Create)?;
        file.set_length(0)?;
        let mut copy = Copy { to: &*file, offset: 0, piece: Vec::new() };
        self.copy_what_stays(through, &mut copy)?;
        copy.take(&line)?;
        copy.write()?;
        let length = copy.offset;
        file.sync()?;
        self.disk.rename(&temporary, &self.directory.join(checkpoint::FILE))?;
        // Whatever comes now, the old file has no name any more: nothing may be written to it.
        self.file = file;
        self.settled = false;
        self.tried = 0;
        self.length = length;
        self.turn_to(&line, checkpoint);
        self.disk.sync_directory(&self.directory)
    }

    fn copy_what_stays(&self, through: Head, copy: &mut Copy<'_>) -> io::Result<()> {
        let source = At::new(Arc::clone(&self.file), 0).take(self.length);
        let mut lines = Lines::new(Box::new(source));
        let mut stays = false;
        while let Some(line) = lines.next()? {
            match line {
                Line::Whole(line) => {
                    stays = stays
                        || checkpoint::read(line)
                            .is_none_or(|found| found.statement.head.seq > through.seq);
                    if stays {
                        copy.take(line)?;
                        copy.take(b"\n")?;
                    }
                }
                // No checkpoint: whatever it is, it stays for a verification to show.
                Line::Torn(piece) => {
                    stays = true;
                    copy.take(piece)?;
                }
            }
        }
        Ok(())
    }
}

/// Writes a file from its beginning, a piece at a time.
struct Copy<'a> {
    to: &'a dyn DiskFile,
    offset: u64,
    piece: Vec<u8>,
}

impl Copy<'_> {
    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() < PIECE { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> io::Result<()> {
        self.to.write_at(&self.piece, self.offset)?;
        self.offset += self.piece.len() as u64;
        self.piece.clear();
        Ok(())
    }
}

#[derive(Default)]
struct Demand {
    closed_segments: Vec<Head>,
    close: bool,
}

struct Shared {
    book: Mutex<Book>,
    told: Arc<Mutex<Told>>,
    demand: Mutex<Demand>,
    demanded: Condvar,
    log: LogId,
    public: PublicKey,
}

/// The signing thread's handle.
pub(super) struct Signer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the committer tells the signer with.
#[derive(Clone)]
pub(super) struct Rotations(Arc<Shared>);

impl Rotations {
    /// A segment was closed at this head. Costs a short lock.
    pub(super) fn tell(&self, head: Head) {
        self.0.demand.lock().closed_segments.push(head);
        self.0.demanded.notify_one();
    }
}

impl Signer {
    /// Starts to sign what `head` returns.
    pub(super) fn start(
        (disk, directory): (Arc<dyn Disk>, &Path),
        log: LogId,
        options: Checkpointing,
        head: impl Fn() -> Head + Send + 'static,
    ) -> io::Result<Self> {
        let (public, every) = (options.key.public(), options.every);
        let book = Book::open(disk, directory, log, options)?;
        let (told, book) = (Arc::clone(&book.told), Mutex::new(book));
        let (demand, demanded) = (Mutex::default(), Condvar::new());
        let shared = Arc::new(Shared { book, told, demand, demanded, log, public });
        let work = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("audit-sign".into())
            .spawn(move || work.run(every, &head))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn rotations(&self) -> Rotations {
        Rotations(Arc::clone(&self.shared))
    }

    pub(super) fn public(&self) -> PublicKey {
        self.shared.public
    }

    /// Signs something else than a checkpoint.
    pub(super) fn sign(&self, text: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.shared.book.lock().options.key.sign(text)
    }

    pub(super) fn log(&self) -> LogId {
        self.shared.log
    }

    /// The newest checkpoint's record and time.
    pub(super) fn newest(&self) -> Option<(u64, Timestamp)> {
        self.shared.told.lock().newest
    }

    /// Why the last attempt to sign failed, if it did.
    pub(super) fn failing(&self) -> Option<String> {
        self.shared.told.lock().failing.clone()
    }

    /// What the store may remember of the newest checkpoint.
    pub(super) fn to_remember(&self) -> io::Result<Option<Remembered>> {
        self.shared.book.lock().settle()
    }

    /// Compares the checkpoints with what the store remembers; `is_new` says that there are no
    /// records. Answers what is missing; an error says that they cannot be read so far back.
    pub(super) fn compare(
        &self,
        remembered: Remembered,
        is_new: bool,
    ) -> io::Result<Option<String>> {
        self.shared.book.lock().compare(remembered, is_new)
    }

    /// Whether there is no checkpoint at all.
    pub(super) fn has_none(&self) -> bool {
        self.shared.book.lock().number == 0
    }

    /// Which checkpoints the file must hold: what the store remembered, and the newest.
    pub(super) fn known(&self) -> Vec<Known> {
        let book = self.shared.book.lock();
        let newest = book.kept.filter(|kept| Some(*kept) != book.recalled);
        book.recalled.into_iter().chain(newest).collect()
    }

    /// Whether [`retire`](Self::retire) could write down what it signs, room aside.
    pub(super) fn can_state(&self) -> io::Result<()> {
        self.shared.book.lock().can_state()
    }

    /// Signs that everything up to `through` is to be deleted.
    pub(super) fn retire(&self, through: Head) -> io::Result<()> {
        self.shared.book.lock().retire(through)
    }

    /// Signs what is left to sign, and ends the thread.
    pub(super) fn close(&self) {
        self.shared.demand.lock().close = true;
        self.shared.demanded.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, every: Duration, head: &dyn Fn() -> Head) {
        let mut due = Instant::now() + every;
        loop {
            let (closed_segments, close) = {
                let mut demand = self.demand.lock();
                while demand.closed_segments.is_empty() && !demand.close {
                    if self.demanded.wait_until(&mut demand, due).timed_out() {
                        break;
                    }
                }
                (std::mem::take(&mut demand.closed_segments), demand.close)
            };
            let mut book = self.book.lock();
            for closed in closed_segments {
                // One that fails is made up for by the next that is due.
                let _ = book.sign(CheckpointKind::Rotation, closed);
            }
            let timed = Instant::now() >= due;
            if close || timed {
                let kind = if close { CheckpointKind::Close } else { CheckpointKind::Time };
                let head = head();
                if head.seq > book.signed {
                    let _ = book.sign(kind, head);
                }
            }
            if close {
                return;
            }
            if timed {
                due = Instant::now() + every;
            }
        }
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        self.close();
    }
}
