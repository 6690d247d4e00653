//! The log itself: one committer thread that batches what concurrent callers append.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use lastkey_crypto::KeyMaterial;
use lastkey_store::disk::{Disk, DiskFile, FileSystem};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::{
    AuditError, AuditSink, Head, Query, QueryPage, Ticket, Verification,
    journal::{FRAME_BYTES, Frame, Journal, MAX_PAYLOAD, Position},
    query,
    segment::{self, Segment},
    verify,
};

/// A segment is closed when it is this large.
const SEGMENT_BYTES: u64 = 64 << 20;
/// At most this many records wait; one more is refused.
const QUEUE: usize = 16_384;
/// A batch is closed when it is this large, far below what a journal frame can carry.
const BATCH_BYTES: usize = 1 << 20;
/// What a line adds to its record's body.
const LINE_OVERHEAD: usize = 128;

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

struct Pending {
    body: Vec<u8>,
    done: oneshot::Sender<Result<u64, AuditError>>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Pending>,
    closed: bool,
}

/// What readers of the log may know about its writer.
#[derive(Clone, Debug)]
struct Published {
    head: Head,
    end: Position,
    health: Result<(), AuditError>,
}

struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    published: Mutex<Published>,
}

/// The append-only log in a directory.
pub struct AuditLog {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    shared: Arc<Shared>,
    committer: Mutex<Option<JoinHandle<()>>>,
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
        Self::open_on(Arc::new(FileSystem), directory, journal_directory, key)
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
        let io = |source| AuditOpenError::Io { path: directory.to_owned(), source };
        for directory in [directory, journal_directory] {
            disk.create_directory(directory).map_err(io)?;
        }
        let segments = segment::list(&*disk, directory).map_err(io)?;
        let (journal, recovered) = Journal::open(&*disk, journal_directory, key).map_err(io)?;
        let (head, end) = match recovered {
            Some(found) => {
                restore(&*disk, directory, &found.frames).map_err(io)?;
                (found.head, found.position)
            }
            None if segments.is_empty() => (Head::EMPTY, Position { segment: 1, offset: 0 }),
            None => return Err(AuditOpenError::Headless { path: directory.to_owned() }),
        };
        let (segment, end) = resume(&*disk, directory, head, end).map_err(io)?;
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            arrived: Condvar::new(),
            published: Mutex::new(Published { head, end, health: Ok(()) }),
        });
        let committer = Committer {
            disk: Arc::clone(&disk),
            directory: directory.to_owned(),
            shared: Arc::clone(&shared),
            journal,
            segment,
            head,
            end,
            behind: Vec::new(),
            syncer: Syncer::start().map_err(io)?,
        };
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || committer.run())
            .map_err(io)?;
        let directory = directory.to_owned();
        Ok(Self { disk, directory, shared, committer: Mutex::new(Some(thread)) })
    }
}

impl AuditSink for AuditLog {
    fn append(&self, body: Vec<u8>) -> Ticket {
        let (done, ticket) = Ticket::new();
        let mut queue = self.shared.queue.lock();
        let refusal = if queue.closed {
            Some(AuditError::Closed)
        } else if queue.waiting.len() >= QUEUE {
            Some(AuditError::Busy)
        } else if body.len() + LINE_OVERHEAD > BATCH_BYTES {
            Some(AuditError::Failed("the record is too large".into()))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            let _ = done.send(Err(refusal));
            return ticket;
        }
        queue.waiting.push(Pending { body, done });
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
        self.shared.published.lock().health.clone()
    }

    fn query(&self, query: &Query) -> io::Result<QueryPage> {
        let head = self.head();
        query::run(&*self.disk, &self.directory, query, head.seq)
    }

    fn verify(&self, known: &[Head]) -> io::Result<Verification> {
        let published = self.shared.published.lock().clone();
        let files = (&*self.disk, self.directory.as_path());
        verify::run(files, published.head, published.end, known)
    }

    fn close(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.arrived.notify_one();
        if let Some(thread) = self.committer.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        self.close();
    }
}

/// Puts back what the segments lost of the journal's frames: bytes missing at the end, or blocks
/// of zeros. Other bytes in their place were changed by somebody; they stay, as evidence.
fn restore(disk: &dyn Disk, directory: &Path, frames: &[Frame]) -> io::Result<()> {
    let mut restored = 0usize;
    let mut open: Option<(u64, Segment)> = None;
    for frame in frames.iter().filter(|frame| !frame.payload.is_empty()) {
        let first = frame.position.segment;
        if open.as_ref().is_none_or(|(of, _)| *of != first) {
            if let Some((_, done)) = open.take() {
                done.sync()?;
            }
            open = Some((first, Segment::open(disk, directory, first)?));
        }
        let Some((_, segment)) = &open else { continue };
        let found = segment.read_at(frame.payload.len(), frame.position.offset)?;
        if found == frame.payload {
            continue;
        }
        let lost = frame
            .payload
            .iter()
            .enumerate()
            .all(|(i, b)| found.get(i).is_none_or(|seen| seen == b || *seen == 0));
        if lost {
            segment.write_at(&frame.payload, frame.position.offset)?;
            restored += frame.payload.len();
        } else {
            tracing::error!(
                segment = segment::name(first),
                "audit records differ from the journal's; run `lastkey audit verify`"
            );
        }
    }
    if let Some((_, last)) = open {
        last.sync()?;
    }
    if restored > 0 {
        tracing::warn!(bytes = restored, "audit records were put back from the journal");
    }
    Ok(())
}

/// The segment to go on with. One that does not end where it should is left as it is, for
/// `audit verify` to show, and a new one is begun.
fn resume(
    disk: &dyn Disk,
    directory: &Path,
    head: Head,
    end: Position,
) -> io::Result<(Segment, Position)> {
    if end.offset == 0 || segment::exists(disk, directory, end.segment)? {
        let segment = Segment::open(disk, directory, end.segment)?;
        if segment.len()? == end.offset {
            return Ok((segment, end));
        }
    }
    tracing::error!(
        segment = segment::name(end.segment),
        "the audit segment does not end where the journal says; run `lastkey audit verify`"
    );
    let fresh = Position { segment: head.seq + 1, offset: 0 };
    Ok((Segment::open(disk, directory, fresh.segment)?, fresh))
}

/// A generation of the journal, and the segment that holds the same.
type Job = (u64, Arc<dyn DiskFile>);

/// Synchronises segments in the background, so that no caller waits for it.
struct Syncer {
    jobs: Option<mpsc::SyncSender<Job>>,
    done: mpsc::Receiver<Result<u64, io::Error>>,
    completed: u64,
    /// A synchronisation that failed may have lost data for good; only a restart, which reads the
    /// journal again, is safe.
    failed: Option<String>,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    fn start() -> io::Result<Self> {
        let (jobs, work) = mpsc::sync_channel::<Job>(2);
        let (answer, done) = mpsc::channel();
        let thread = std::thread::Builder::new().name("audit-sync".into()).spawn(move || {
            for (generation, file) in work {
                let synced = file.sync().map(|()| generation);
                if answer.send(synced).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs: Some(jobs), done, completed: 0, failed: None, thread: Some(thread) })
    }

    /// Begins to make durable what the journal's `generation` holds.
    fn begin(&mut self, generation: u64, file: Arc<dyn DiskFile>) -> io::Result<()> {
        let gone = || io::Error::other("the audit synchroniser is gone");
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send((generation, file)).map_err(|_| gone())
    }

    /// Waits until that generation's records are durable in the segments.
    fn wait_for(&mut self, generation: u64) -> io::Result<()> {
        while self.completed < generation && self.failed.is_none() {
            match self.done.recv() {
                Ok(Ok(completed)) => self.completed = completed,
                Ok(Err(error)) => self.failed = Some(error.to_string()),
                Err(_) => self.failed = Some("its thread is gone".into()),
            }
        }
        match &self.failed {
            Some(reason) => Err(io::Error::other(format!(
                "the disk lost audit records that the journal still holds ({reason}); restart"
            ))),
            None => Ok(()),
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Committer {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    shared: Arc<Shared>,
    journal: Journal,
    segment: Segment,
    head: Head,
    end: Position,
    /// Durable in the journal, but refused by the segment's file; written before anything else.
    behind: Vec<u8>,
    syncer: Syncer,
}

/// A batch as it goes into the journal: room for the frame's fields, then the lines.
struct Batch {
    frame: Vec<u8>,
    done: Vec<oneshot::Sender<Result<u64, AuditError>>>,
    head: Head,
}

impl Committer {
    fn run(mut self) {
        let mut waiting = Vec::new();
        while self.wait(&mut waiting) {
            let mut bodies = waiting.drain(..).peekable();
            while bodies.peek().is_some() {
                let batch = Batch::collect(&mut bodies, self.head);
                self.commit(batch);
            }
        }
        if let Err(error) = self.close() {
            tracing::error!(%error, "the audit log was not closed cleanly");
        }
    }

    /// Takes all that waits; false once the log is closed and nothing waits any more.
    fn wait(&self, waiting: &mut Vec<Pending>) -> bool {
        let mut queue = self.shared.queue.lock();
        while queue.waiting.is_empty() {
            if queue.closed {
                return false;
            }
            self.shared.arrived.wait(&mut queue);
        }
        std::mem::swap(&mut queue.waiting, waiting);
        true
    }

    fn commit(&mut self, batch: Batch) {
        let (head, first) = (batch.head, self.head.seq + 1);
        let outcome = self.write(batch.frame, head);
        let health = outcome.as_ref().map_err(refusal).copied();
        {
            let mut published = self.shared.published.lock();
            if published.health != health
                && let Err(error) = &health
            {
                tracing::error!(%error, "audit records cannot be written");
            }
            *published = Published { head: self.head, end: self.end, health: health.clone() };
        }
        for (seq, done) in (first..).zip(batch.done) {
            let _ = done.send(health.clone().map(|()| seq));
        }
    }

    /// Makes a batch durable and moves the head behind it.
    fn write(&mut self, mut frame: Vec<u8>, head: Head) -> io::Result<()> {
        self.catch_up()?;
        let payload = frame.len() - FRAME_BYTES;
        if self.segment.is_gone()? {
            tracing::error!("the open audit segment was removed or replaced; a new one is begun");
            self.next_segment()?;
        } else if self.end.offset >= SEGMENT_BYTES {
            self.next_segment()?;
        }
        self.segment.reserve(self.end.offset + payload as u64)?;
        if !self.journal.has_room(payload) {
            self.turn_journal()?;
        }
        self.journal.append(&mut frame, self.end, head)?;
        // Durable from here on: whatever the segment's file does now, the journal has it.
        self.behind = frame.split_off(FRAME_BYTES);
        self.head = head;
        if let Err(error) = self.catch_up() {
            tracing::error!(%error, "an audit segment refused what its journal holds; trying again");
        }
        Ok(())
    }

    /// Writes to the segment what the journal holds already.
    fn catch_up(&mut self) -> io::Result<()> {
        if !self.behind.is_empty() {
            self.segment.write_at(&self.behind, self.end.offset)?;
            self.end = self.end.plus(self.behind.len());
            self.behind.clear();
        }
        Ok(())
    }

    fn next_segment(&mut self) -> io::Result<()> {
        let end = Position { segment: self.head.seq + 1, offset: 0 };
        let segment = Segment::open(&*self.disk, &self.directory, end.segment)?;
        let closed = std::mem::replace(&mut self.segment, segment);
        self.end = end;
        // The closed segment is not in the next background job any more.
        closed.sync()
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
        self.segment.sync()?;
        if !self.journal.has_room(0) {
            self.turn_journal()?;
        }
        self.journal.append_clean(self.end, self.head)
    }
}

impl Batch {
    /// Renders records until there are no more or the batch is large enough.
    fn collect(
        bodies: &mut std::iter::Peekable<impl Iterator<Item = Pending>>,
        mut head: Head,
    ) -> Self {
        const { assert!(BATCH_BYTES + FRAME_BYTES < MAX_PAYLOAD) };
        let mut frame = vec![0; FRAME_BYTES];
        let mut done = Vec::new();
        while let Some(pending) = bodies
            .next_if(|pending| frame.len() + pending.body.len() + LINE_OVERHEAD <= BATCH_BYTES)
        {
            let seq = head.seq + 1;
            let hash = segment::write_line(&mut frame, seq, &head.hash, &pending.body);
            head = Head { seq, hash };
            done.push(pending.done);
        }
        Self { frame, done, head }
    }
}

fn refusal(error: &io::Error) -> AuditError {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => AuditError::Full,
        _ => AuditError::Failed(error.to_string()),
    }
}
