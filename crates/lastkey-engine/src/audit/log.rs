//! The log itself: one committer thread that batches what concurrent callers append.
//!
//! A caller who is alone for a while commits by itself ([`AuditOptions::alone`]): the way to the
//! thread and back takes as long as everything else does, where the disk is fast.

use std::{
    io,
    iter::Peekable,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use lastkey_crypto::{
    KeyMaterial, mac,
    signing::{PublicKey, SIGNATURE_LEN},
};
use lastkey_store::disk::{Disk, FileSystem, Patience, is_full};
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use super::{
    AuditError, AuditSink, Head, Nonces, Query, QueryPage, Recalled, Remembered, Ticket,
    Verification, ballast,
    batch::{Answers, BATCH_BYTES, Batch, LINE_OVERHEAD, Pending, Waiting},
    checkpoint::{self, LogId},
    files,
    journal::{FRAME_BYTES, Journal, Position},
    keeper::{Bell, Keeper, Shelf},
    progress::Progress,
    query, recover,
    retain::{self, Deletion, Retention},
    segment::Segment,
    signer::{self, Checkpointing, Rotations, Signer},
    syncer::Syncer,
    verify,
};
use crate::Timestamp;

/// A segment is closed when it is this large, unless the options say otherwise.
pub const SEGMENT_BYTES: u64 = 64 << 20;
const LOG_ID_LABEL: &[u8] = b"lastkey audit log id";
const INDEX_KEY_LABEL: &[u8] = b"lastkey audit index";
/// A deletion waits at most this long for those who read.
const PATIENCE: Duration = Duration::from_secs(2);
/// At most this many records wait; one more is refused.
const QUEUE: usize = 16_384;
/// So many records in a row that nobody else's came near to, and a caller counts as alone.
const ALONE_AFTER: u32 = 4;
/// On a slower disk nobody commits by itself: the way to the thread costs little beside it, and
/// whoever blocks is late for everything else that its own thread has to do.
const FAST: Duration = Duration::from_millis(1);

/// Why the log did not open.
#[derive(Debug, thiserror::Error)]
pub enum AuditOpenError {
    /// The file system refused.
    #[error("the audit log in {path} cannot be opened: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There are records, but no journal that says where they end.
    #[error(
        "{path} holds audit records, but the journal that authenticates them is gone or belongs \
         to another installation; put the journal back, or move the records away to start a new log"
    )]
    Headless {
        /// The directory of the segments.
        path: PathBuf,
    },
}

/// How a log is kept.
pub struct AuditOptions {
    /// Where its files are.
    pub disk: Arc<dyn Disk>,
    /// A segment is closed when it is this large.
    pub segment_bytes: u64,
    /// Whether closed segments are compressed.
    pub compress: bool,
    /// What is kept. Deleting needs checkpoints, for they state it.
    pub retention: Retention,
    /// How checkpoints are made; `None` makes none.
    pub checkpoints: Option<Checkpointing>,
    /// Whether a caller who is alone commits on its own thread, which the disk then blocks, for as
    /// long as it takes: so only while it is fast. Not for a runtime that has no other thread to go
    /// on with.
    pub alone: bool,
}

impl Default for AuditOptions {
    /// On the machine's file system, in plain segments of [`SEGMENT_BYTES`], without checkpoints.
    fn default() -> Self {
        Self {
            disk: Arc::new(FileSystem),
            segment_bytes: SEGMENT_BYTES,
            compress: false,
            retention: Retention::default(),
            checkpoints: None,
            alone: false,
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: Waiting,
    closed: bool,
    /// Records in a row that came while nothing else went on.
    alone: u32,
    /// The last batch took the disk some time.
    slow: bool,
}

/// What readers of the log may know about its writer.
#[derive(Clone, Debug)]
struct Published {
    /// The last record that is durable.
    head: Head,
    /// The last one that the segments hold: the same, unless one of them refuses what the journal
    /// has.
    written: Head,
    end: Position,
    health: Result<(), AuditError>,
}

struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    published: Mutex<Published>,
    /// The committer's, whoever it is.
    patience: Patience,
}

impl Shared {
    /// Notes that so many records were committed in this time, and whether more came meanwhile.
    fn count_alone(&self, committed: usize, took: Duration) {
        let mut queue = self.queue.lock();
        let alone = committed == 1 && queue.waiting.is_empty();
        queue.alone = if alone { queue.alone.saturating_add(1) } else { 0 };
        queue.slow = took > FAST;
    }
}

/// The append-only log in a directory.
pub struct AuditLog {
    shelf: Arc<Shelf>,
    shared: Arc<Shared>,
    committer: Arc<Mutex<Committer>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    alone: bool,
    signer: Option<Signer>,
    keeper: Option<Keeper>,
    retention: Retention,
    /// Held while segments are read, so that none is deleted meanwhile.
    reading: RwLock<()>,
}

impl AuditLog {
    /// Opens the log: segments in `directory`, the journal in `journal_directory`; both are made
    /// where they are missing. What a crash kept from the segments is put back first.
    ///
    /// # Errors
    /// [`AuditOpenError`].
    pub fn open(
        directory: &Path,
        journal_directory: &Path,
        key: KeyMaterial,
    ) -> Result<Self, AuditOpenError> {
        Self::open_with(directory, journal_directory, key, AuditOptions::default())
    }

    /// The same on any disk.
    ///
    /// # Errors
    /// [`AuditOpenError`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        directory: &Path,
        journal_directory: &Path,
        key: KeyMaterial,
    ) -> Result<Self, AuditOpenError> {
        let options = AuditOptions { disk, ..AuditOptions::default() };
        Self::open_with(directory, journal_directory, key, options)
    }

    /// The same, kept as `options` say.
    ///
    /// # Errors
    /// [`AuditOpenError`].
    pub fn open_with(
        directory: &Path,
        journal_directory: &Path,
        key: KeyMaterial,
        options: AuditOptions,
    ) -> Result<Self, AuditOpenError> {
        let opened = Self::open_files(directory, journal_directory, key, options);
        opened.map_err(|source| AuditOpenError::Io { path: directory.to_owned(), source })?
    }

    fn open_files(
        directory: &Path,
        journal_directory: &Path,
        key: KeyMaterial,
        options: AuditOptions,
    ) -> io::Result<Result<Self, AuditOpenError>> {
        let AuditOptions { disk, segment_bytes, compress, retention, checkpoints, alone } = options;
        for directory in [directory, journal_directory] {
            disk.create_directory(directory)?;
        }
        let log = log_id(&key);
        let shelf = Arc::new(Shelf {
            disk: Arc::clone(&disk),
            directory: directory.to_owned(),
            key: mac::derive(&key, b"", &[INDEX_KEY_LABEL], 32),
            names: Mutex::default(),
        });
        let segments = files::list(&*disk, directory)?;
        let (journal, recovered) = Journal::open(&*disk, journal_directory, key)?;
        let (head, end) = match recovered {
            Some(found) => {
                let deleted = || match &checkpoints {
                    Some(by) => signer::deleted_through(&*disk, directory, by.key.public(), log),
                    None => Ok(0),
                };
                recover::restore(&*disk, directory, &found.frames, deleted)?;
                (found.head, found.position)
            }
            None if files::are_empty(&*disk, directory, &segments)? => {
                (Head::EMPTY, Position { segment: 1, offset: 0 })
            }
            None => return Ok(Err(AuditOpenError::Headless { path: directory.to_owned() })),
        };
        let (segment, end) = recover::resume(&*disk, directory, head, end)?;
        if let Err(error) = recover::give_back(&*disk, directory, end.segment) {
            tracing::warn!(%error, "closed audit segments keep more of the disk than they need");
        }
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            published: Mutex::new(Published { head, written: head, end, health: Ok(()) }),
            patience: Patience::default(),
        });
        let signer = match checkpoints {
            Some(by) => {
                let shared = Arc::clone(&shared);
                let head = move || shared.published.lock().written;
                Some(Signer::start((Arc::clone(&disk), directory), log, by, head)?)
            }
            None => None,
        };
        let keeper = if compress {
            let shared = Arc::clone(&shared);
            let open = move || shared.published.lock().end.segment;
            Some(Keeper::start(Arc::clone(&shelf), open)?)
        } else {
            None
        };
        let syncer = Syncer::start(journal.generation().saturating_sub(1))?;
        let committer = Committer {
            disk,
            directory: directory.to_owned(),
            shared: Arc::clone(&shared),
            journal,
            segment,
            segment_bytes,
            head,
            end,
            behind: Vec::new(),
            written: head,
            syncer,
            rotations: signer.as_ref().map(Signer::rotations),
            bell: keeper.as_ref().map(Keeper::bell),
            closed_one: false,
        };
        let committer = Arc::new(Mutex::new(committer));
        let thread = {
            let (committer, shared) = (Arc::clone(&committer), Arc::clone(&shared));
            std::thread::Builder::new().name("audit".into()).spawn(move || run(&committer, &shared))
        };
        let (thread, reading) = (Mutex::new(Some(thread?)), RwLock::new(()));
        Ok(Ok(Self { shelf, shared, committer, thread, alone, signer, keeper, retention, reading }))
    }
}

/// What tells this log from others: its authentication key is its own, and stays.
fn log_id(key: &KeyMaterial) -> LogId {
    let code = mac::hmac_sha256(key.expose(), &[LOG_ID_LABEL]);
    let mut id = LogId::default();
    id.copy_from_slice(&code[..16]);
    id
}

impl AuditSink for AuditLog {
    fn append(&self, body: Vec<u8>) -> Ticket {
        let (done, ticket) = Ticket::new();
        let mut queue = self.shared.queue.lock();
        let refusal = if queue.closed {
            Some(AuditError::Closed)
        } else if queue.waiting.len() >= QUEUE {
            Some(AuditError::Busy)
        } else if FRAME_BYTES + body.len() + LINE_OVERHEAD > BATCH_BYTES {
            Some(AuditError::Failed("the record is too large".into()))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let _ = done.send(Err(refusal));
            return ticket;
        }
        let is_alone = queue.waiting.is_empty() && queue.alone >= ALONE_AFTER && !queue.slow;
        if self.alone && is_alone {
            let free = self.committer.try_lock();
            if let Some(mut committer) = free {
                drop(queue);
                let alone = Pending { body: &body, done };
                let answers = committer.commit_next(&mut std::iter::once(alone).peekable());
                drop(committer);
                answers.give();
                return ticket;
            }
            queue.alone = 0;
        }
        queue.waiting.push(&body, done);
        let first = queue.waiting.len() == 1;
        drop(queue);
        if first {
            self.shared.arrived.notify_one();
        }
        ticket
    }

    fn head(&self) -> Head {
        self.shared.published.lock().head
    }

    fn health(&self) -> Result<(), AuditError> {
        if self.shared.queue.lock().closed {
            return Err(AuditError::Closed);
        }
        let health = self.shared.published.lock().health.clone();
        if health.is_ok() && self.shared.patience.is_over() {
            return Err(AuditError::Silent);
        }
        health
    }

    fn query(&self, query: &Query) -> io::Result<QueryPage> {
        let _reading = self.reading.read();
        query::run(&self.shelf, query, self.head().seq)
    }

    fn nonces(&self, from: Timestamp, limit: usize) -> io::Result<Nonces> {
        let _reading = self.reading.read();
        query::nonces(&self.shelf, from, limit, self.head().seq)
    }

    fn verify_watched(&self, known: &[Head], progress: &Arc<Progress>) -> io::Result<Verification> {
        let _reading = self.reading.read();
        let signed = self.signer.as_ref().map(|signer| (signer.public(), signer.log()));
        // Taken before the file is read: what is signed meanwhile may not be in what was read.
        let checkpoints = self.signer.as_ref().map(Signer::known).unwrap_or_default();
        let Shelf { disk, directory, .. } = &*self.shelf;
        let files = verify::Files { disk: &**disk, directory, progress };
        let mut attempts = 3;
        loop {
            let Published { head: Head { seq: durable, .. }, written: head, end, .. } =
                self.shared.published.lock().clone();
            let checkpoints = checkpoints.as_slice();
            let live = verify::Live { head, durable, end, known, signed, checkpoints };
            let found = verify::live(&files, &live)?;
            attempts -= 1;
            // A segment that the writer began meanwhile is none of what was looked at.
            let moved = self.shared.published.lock().end.segment != end.segment;
            if found.ok || !moved || attempts == 0 {
                return Ok(found);
            }
        }
    }

    fn to_delete(&self, now: Option<Timestamp>) -> io::Result<Option<Deletion>> {
        let Some(signer) = &self.signer else { return Ok(None) };
        let open = self.shared.published.lock().end.segment;
        let chosen = retain::choose(&self.shelf, self.retention, open, now)?;
        if chosen.is_some() {
            // Before it is recorded.
            signer.can_state()?;
        }
        Ok(chosen)
    }

    fn delete(&self, deletion: &Deletion) -> io::Result<()> {
        let Some(signer) = &self.signer else {
            return Err(io::Error::other("without checkpoints nothing can be deleted"));
        };
        // The keeper would bring back what it is about to give another name.
        let _names = self.shelf.names.lock();
        let Some(_alone) = self.reading.try_write_for(PATIENCE) else {
            return Err(io::Error::other("the log is being read"));
        };
        signer.retire(deletion.through)?;
        retain::remove(&self.shelf, deletion.through.seq)
    }

    fn give_room(&self) -> io::Result<bool> {
        ballast::give(&self.shelf)
    }

    fn keep_room(&self, again: bool) -> io::Result<bool> {
        // Without checkpoints nothing is deleted.
        let retention = if self.signer.is_some() { self.retention } else { Retention::default() };
        ballast::keep(&self.shelf, retention, again)
    }

    fn newest_checkpoint(&self) -> Option<(u64, Timestamp)> {
        self.signer.as_ref().and_then(Signer::newest)
    }

    fn signing_fails(&self) -> Option<String> {
        self.signer.as_ref().and_then(Signer::failing)
    }

    fn checkpoint_to_remember(&self) -> Option<Remembered> {
        let kept = self.signer.as_ref()?.to_remember();
        kept.unwrap_or_else(|error| {
            tracing::warn!(%error, "the audit checkpoints may not be durable; trying again");
            None
        })
    }

    fn recall_checkpoint(&self, remembered: Option<Remembered>) -> Recalled {
        let Some(signer) = &self.signer else { return Recalled::default() };
        let Published { head, end, .. } = self.shared.published.lock().clone();
        let (file, is_new) = (checkpoint::FILE, head.seq == 0);
        if let Some(remembered) = remembered {
            let (warning, begins_anew) = match signer.compare(remembered, is_new) {
                Ok(None) => return Recalled::default(),
                Ok(Some(found)) => {
                    let warning = format!(
                        "{found} in audit/{file}, so nothing vouches for what they were about: stop \
                         the server, put the lines back, before those that are there now, from a \
                         backup or a sink, and start it again; if you did not take them away yourself, take the log \
                         for rewritten"
                    );
                    (warning, is_new && signer.has_none())
                }
                Err(error) => {
                    let warning = format!(
                        "audit/{file} cannot be read as far back as the store remembers ({error}), \
                         so checkpoints may be missing: see to the disk; or stop the server, put the \
                         file back from a backup or a sink, and start it again"
                    );
                    (warning, false)
                }
            };
            tracing::error!("{warning}");
            return Recalled { warning: Some(warning), begins_anew };
        }
        let in_closed = end.segment.saturating_sub(1);
        let warning = (in_closed > 0 && signer.has_none()).then(|| {
            let warning = format!(
                "there are audit records up to {in_closed} in closed segments and no checkpoint, and \
                 the store remembers none: if there was one, stop the server, put audit/{file} back, \
                 and start it again"
            );
            tracing::warn!("{warning}");
            warning
        });
        Recalled { warning, begins_anew: false }
    }

    fn sign(&self, text: &[u8]) -> Option<[u8; SIGNATURE_LEN]> {
        self.signer.as_ref().map(|signer| signer.sign(text))
    }

    fn checkpoint_key(&self) -> Option<PublicKey> {
        self.signer.as_ref().map(Signer::public)
    }

    fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.arrived.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
        if let Some(signer) = &self.signer {
            signer.close();
        }
        if let Some(keeper) = &self.keeper {
            keeper.close();
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.close();
    }
}

struct Committer {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    shared: Arc<Shared>,
    journal: Journal,
    segment: Segment,
    segment_bytes: u64,
    head: Head,
    end: Position,
    /// The frame whose lines are durable in the journal, but refused by the segment's file; they
    /// are written before anything else. Empty otherwise, and then the next batch's memory.
    behind: Vec<u8>,
    /// The last record that the segments hold.
    written: Head,
    syncer: Syncer,
    rotations: Option<Rotations>,
    bell: Option<Bell>,
    /// A segment was closed, and the keeper does not know it yet.
    closed_one: bool,
}

/// Commits what waits until the log is closed.
fn run(committer: &Mutex<Committer>, shared: &Shared) {
    let mut waiting = Waiting::default();
    while wait(committer, shared, &mut waiting) {
        let mut records = waiting.records();
        while records.peek().is_some() {
            let answers = committer.lock().commit_next(&mut records);
            answers.give();
        }
        drop(records);
        waiting.clear();
    }
    if let Err(error) = committer.lock().close() {
        tracing::error!(%error, "the audit log was not closed cleanly");
    }
}

/// Takes all that waits; false once the log is closed and nothing waits any more.
fn wait(committer: &Mutex<Committer>, shared: &Shared, waiting: &mut Waiting) -> bool {
    let mut queue = shared.queue.lock();
    while queue.waiting.is_empty() {
        if queue.closed {
            return false;
        }
        shared.arrived.wait(&mut queue);
    }
    MutexGuard::unlocked(&mut queue, || committer.lock().segment.gather());
    std::mem::swap(&mut queue.waiting, waiting);
    true
}

impl Committer {
    /// Commits as many of the records as fit into one batch.
    fn commit_next<'a>(
        &mut self,
        records: &mut Peekable<impl Iterator<Item = Pending<'a>>>,
    ) -> Answers {
        let frame =
            if self.behind.is_empty() { std::mem::take(&mut self.behind) } else { Vec::new() };
        let batch = Batch::collect(frame, records, self.head);
        self.commit(batch)
    }

    fn commit(&mut self, batch: Batch) -> Answers {
        let (head, first) = (batch.head, self.head.seq + 1);
        let began = self.shared.patience.begin();
        let outcome = self.write(batch.frame, head);
        let took = began.elapsed();
        self.shared.patience.end();
        let health = outcome.as_ref().map_err(refusal).copied();
        {
            let mut published = self.shared.published.lock();
            if published.health != health
                && let Err(error) = &health
            {
                tracing::error!(%error, "audit records cannot be written");
            }
            let (head, written, end) = (self.head, self.written, self.end);
            *published = Published { head, written, end, health: health.clone() };
        }
        // Only now does the keeper see that another segment is open.
        if std::mem::take(&mut self.closed_one)
            && let Some(bell) = &self.bell
        {
            bell.ring();
        }
        self.shared.count_alone(batch.done.len(), took);
        Answers { done: batch.done, first, health }
    }

    /// Makes a batch durable and moves the head behind it.
    fn write(&mut self, mut frame: Vec<u8>, head: Head) -> io::Result<()> {
        self.catch_up()?;
        let payload = frame.len() - FRAME_BYTES;
        if self.segment.is_gone()? {
            tracing::error!("the open audit segment was removed or replaced; a new one is begun");
            self.next_segment()?;
        } else if self.end.offset >= self.segment_bytes && !self.syncer.has_failed() {
            self.next_segment()?;
        }
        self.segment.reserve(self.end.offset + payload as u64)?;
        if !self.journal.has_room(payload) {
            self.turn_journal()?;
        }
        self.journal.append(&mut frame, self.end, head)?;
        // Durable from here on: whatever the segment's file does now, the journal has it.
        self.behind = frame;
        self.head = head;
        if let Err(error) = self.catch_up() {
            tracing::error!(%error, "an audit segment refused what its journal holds; trying again");
        }
        Ok(())
    }

    /// Writes to the segment what the journal holds already.
    fn catch_up(&mut self) -> io::Result<()> {
        if let Some(lines) = self.behind.get(FRAME_BYTES..) {
            self.segment.write_at(lines, self.end.offset)?;
            self.end = self.end.plus(lines.len());
            self.behind.clear();
        }
        self.written = self.head;
        Ok(())
    }

    fn next_segment(&mut self) -> io::Result<()> {
        // The closed segment is not in the next background job any more. One that does not become
        // durable stays open: nobody may compress it, and the journal must not forget its records.
        if let Err(error) = self.segment.sync() {
            self.syncer.fail(&error);
            return Err(error);
        }
        if let Err(error) = self.segment.give_back() {
            tracing::warn!(%error, "a closed audit segment keeps more of the disk than it needs");
        }
        let end = Position { segment: self.head.seq + 1, offset: 0 };
        self.segment = Segment::open(&*self.disk, &self.directory, end.segment)?;
        self.end = end;
        if let Some(rotations) = &self.rotations {
            rotations.tell(self.head);
        }
        self.closed_one = true;
        Ok(())
    }

    fn turn_journal(&mut self) -> io::Result<()> {
        let generation = self.journal.generation();
        // The file we are about to reuse is that of the generation before this one.
        self.syncer.wait_for(generation.saturating_sub(1))?;
        if generation > self.syncer.completed {
            self.syncer.begin(generation, self.segment.handle())?;
        }
        self.journal.turn(self.head, self.end)
    }

    fn close(&mut self) -> io::Result<()> {
        self.catch_up()?;
        // A clean end says that the segments have everything for certain. After a synchronisation
        // that failed they may not, whatever a later one says: the next start reads the journal.
        self.syncer.wait_for_all()?;
        self.segment.sync()?;
        if !self.journal.has_room(0) {
            self.turn_journal()?;
        }
        self.journal.append_clean(self.end, self.head)
    }
}

fn refusal(error: &io::Error) -> AuditError {
    match is_full(error) {
        true => AuditError::Full,
        false => AuditError::Failed(error.to_string()),
    }
}
