//! The payload on all cores: reading, cryptography and writing overlap.
//!
//! ```text
//! source ─▶ reader ─▶ chunks ─▶ one worker a core ─▶ in order ─▶ sink
//!             ▲                                         │
//!             └──────────────── buffers ◀───────────────┘
//! ```
//!
//! The buffers are the bound: a chunk is read only once a buffer is free, and a buffer is free
//! only once its chunk was written. There is one a worker and four more, 1 MiB each.
//!
//! The sink gets chunks in the order of the file, each after it was sealed or opened. The first
//! problem in that order ends the work, as it would with one chunk after the other.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    num::NonZero,
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    thread,
};

use super::{
    EncryptError, NewFile, PayloadError, PayloadKey,
    chunk::{Buffer, CHUNK_LEN, Chunk, Counter, Position, SEALED_LEN, read_full},
};
use crate::cipher::MessageKey;

/// Buffers beside one for each worker: the reader has two in hand, the writer one.
const SPARE_BUFFERS: usize = 4;

/// Encrypts and decrypts whole payloads on several threads.
///
/// ```
/// use lastkey_crypto::{KeyId, KeyMaterial, SystemEntropy};
/// use lastkey_crypto::envelope::{HeldKey, Header, KeySalt, Pipeline, Room, Stanza};
///
/// let salt = KeySalt::random(&SystemEntropy);
/// let data_key = KeyMaterial::generate(32, &SystemEntropy); // from GenerateDataKey, in truth
/// let stanza = Stanza::new(KeyId::random(&SystemEntropy), vec![7; 112])?;
/// let held = HeldKey::new(salt, data_key, vec![stanza])?;
///
/// let mut sealed = Vec::new();
/// let file = held.new_file(Room::Spare, &SystemEntropy);
/// Pipeline::new().encrypt(file, &b"attack at dawn"[..], &mut sealed)?;
///
/// let mut source = &sealed[..];
/// let header = Header::read(&mut source)?;
/// let mut opened = Vec::new();
/// let key = header.open(held.data_key())?;
/// Pipeline::new().decrypt(&key, source, &mut opened)?;
/// assert_eq!(opened, b"attack at dawn");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Pipeline<'a> {
    workers: usize,
    progress: Box<dyn FnMut(u64) + 'a>,
}

impl Default for Pipeline<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Pipeline<'a> {
    /// One worker a core.
    pub fn new() -> Self {
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        Self { workers, progress: Box::new(|_| {}) }
    }

    /// So many workers, at least one.
    #[must_use]
    pub fn workers(self, workers: usize) -> Self {
        Self { workers: workers.max(1), ..self }
    }

    /// Tells how many bytes of plaintext are done, after each chunk that was written.
    #[must_use]
    pub fn on_progress(self, progress: impl FnMut(u64) + 'a) -> Self {
        Self { progress: Box::new(progress), ..self }
    }

    /// Writes the whole envelope: header, and all that `source` yields. Returns how many bytes of
    /// plaintext that were. The sink is flushed.
    ///
    /// # Errors
    ///
    /// [`EncryptError`]; what the sink got until then is recognised as cut short.
    pub fn encrypt(
        self,
        file: NewFile,
        source: impl Read + Send,
        mut sink: impl Write,
    ) -> Result<u64, EncryptError> {
        let NewFile { header, key } = file;
        sink.write_all(&header.encode()).map_err(EncryptError::Write)?;
        self.run(source, sink, &Seal(&key)).map_err(|problem| match problem {
            Problem::Write(error) => EncryptError::Write(error),
            Problem::Read(error) => EncryptError::Read(error),
            // Sealing does not fail.
            Problem::Payload(error) => EncryptError::Read(error.into()),
        })
    }

    /// Decrypts what follows the header in `source`, to its end, by the key from
    /// [`Header::open`](super::Header::open). Returns how many bytes of plaintext that were. The
    /// sink is flushed.
    ///
    /// # Errors
    ///
    /// [`PayloadError`]; what the sink got until then is authentic, but not the whole file, and
    /// has to be thrown away.
    pub fn decrypt(
        self,
        key: &PayloadKey,
        source: impl Read + Send,
        sink: impl Write,
    ) -> Result<u64, PayloadError> {
        self.run(source, sink, &Open(&key.0)).map_err(|problem| match problem {
            Problem::Write(error) => PayloadError::Write(error),
            Problem::Read(error) => PayloadError::Read(error),
            Problem::Payload(error) => error,
        })
    }

    /// Reads portion after portion, has them worked on, and writes them in order.
    fn run(
        mut self,
        source: impl Read + Send,
        mut sink: impl Write,
        work: &impl Work,
    ) -> Result<u64, Problem> {
        let (free, freed) = channel();
        let (todo, queue) = channel();
        let (done, finished) = channel();
        let queue = Mutex::new(queue);
        let reader = Reader {
            portion: work.portion(),
            freed,
            todo,
            most: self.workers + SPARE_BUFFERS,
            counter: Counter::new(),
        };
        let writer = Writer { finished, free, progress: &mut self.progress };
        thread::scope(|scope| {
            let reader = scope.spawn(move || reader.run(source));
            for _ in 0..self.workers {
                let (queue, done) = (&queue, done.clone());
                scope.spawn(move || worker(queue, work, &done));
            }
            drop(done);
            // When the writer ends early it drops its ends of the channels, and all others stop.
            let total = writer.run(&mut sink)?;
            match reader.join() {
                Ok(Ok(())) => Ok(total),
                Ok(Err(error)) => Err(Problem::Read(error)),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
        .and_then(|total| sink.flush().map(|()| total).map_err(Problem::Write))
    }
}

impl std::fmt::Debug for Pipeline<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipeline").field("workers", &self.workers).finish_non_exhaustive()
    }
}

enum Problem {
    Read(io::Error),
    Write(io::Error),
    Payload(PayloadError),
}

/// What is done with each chunk.
trait Work: Sync {
    /// Bytes in every chunk of the source but the last.
    fn portion(&self) -> usize;

    /// Works on the first `len` bytes of the buffer, in place.
    fn act(&self, chunk: Chunk, buffer: &mut [u8], len: usize) -> Result<Outcome, PayloadError>;
}

struct Seal<'a>(&'a MessageKey);

impl Work for Seal<'_> {
    fn portion(&self) -> usize {
        CHUNK_LEN
    }

    fn act(&self, chunk: Chunk, buffer: &mut [u8], len: usize) -> Result<Outcome, PayloadError> {
        Ok(Outcome { out: chunk.seal(self.0, buffer, len), plaintext: len })
    }
}

struct Open<'a>(&'a MessageKey);

impl Work for Open<'_> {
    fn portion(&self) -> usize {
        SEALED_LEN
    }

    fn act(&self, chunk: Chunk, buffer: &mut [u8], len: usize) -> Result<Outcome, PayloadError> {
        let plaintext = chunk.open(self.0, &mut buffer[..len])?;
        Ok(Outcome { out: plaintext, plaintext })
    }
}

/// A chunk that was read.
struct Todo {
    chunk: Chunk,
    buffer: Buffer,
    /// How much of the buffer was filled.
    len: usize,
}

/// What became of a chunk.
struct Outcome {
    /// How much of the buffer goes to the sink.
    out: usize,
    plaintext: usize,
}

struct Done {
    number: u64,
    buffer: Buffer,
    outcome: Result<Outcome, PayloadError>,
}

struct Reader {
    portion: usize,
    freed: Receiver<Buffer>,
    todo: Sender<Todo>,
    /// How many buffers may still be made.
    most: usize,
    counter: Counter,
}

impl Reader {
    /// Hands out everything up to the source's end; ends early when nobody wants more.
    fn run(mut self, mut source: impl Read) -> io::Result<()> {
        // A full portion is held back until the next one shows whether it is the last.
        let mut held = None;
        while let Some(mut buffer) = self.buffer() {
            let len = read_full(&mut source, &mut buffer[..self.portion])?;
            if len > 0
                && let Some(held) = held.take()
                && !self.hand_out(held, Position::Inner)?
            {
                break;
            }
            if len == self.portion {
                held = Some((buffer, len));
                continue;
            }
            let last = if len == 0 { held.take().unwrap_or((buffer, 0)) } else { (buffer, len) };
            self.hand_out(last, Position::Last)?;
            break;
        }
        Ok(())
    }

    /// Whether somebody took it.
    fn hand_out(&mut self, (buffer, len): (Buffer, usize), position: Position) -> io::Result<bool> {
        let chunk = self.counter.next(position)?;
        Ok(self.todo.send(Todo { chunk, buffer, len }).is_ok())
    }

    /// A buffer that is free, or a new one while there may be more; nothing when the writer left.
    fn buffer(&mut self) -> Option<Buffer> {
        match self.freed.try_recv() {
            Ok(free) => Some(free),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) if self.most == 0 => self.freed.recv().ok(),
            Err(TryRecvError::Empty) => {
                self.most -= 1;
                Some(Buffer::new(SEALED_LEN))
            }
        }
    }
}

fn worker(queue: &Mutex<Receiver<Todo>>, work: &impl Work, done: &Sender<Done>) {
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Todo { chunk, mut buffer, len }) = next else { return };
        let outcome = work.act(chunk, &mut buffer, len);
        if done.send(Done { number: chunk.number, buffer, outcome }).is_err() {
            return;
        }
    }
}

struct Writer<'a> {
    finished: Receiver<Done>,
    free: Sender<Buffer>,
    progress: &'a mut dyn FnMut(u64),
}

impl Writer<'_> {
    /// Writes each chunk when its turn comes, and gives its buffer back.
    fn run(self, sink: &mut impl Write) -> Result<u64, Problem> {
        let mut waiting = BTreeMap::new();
        let (mut turn, mut total) = (0, 0);
        while let Ok(Done { number, buffer, outcome }) = self.finished.recv() {
            waiting.insert(number, (buffer, outcome));
            while let Some((buffer, outcome)) = waiting.remove(&turn) {
                let Outcome { out, plaintext } = outcome.map_err(Problem::Payload)?;
                sink.write_all(&buffer[..out]).map_err(Problem::Write)?;
                total += plaintext as u64;
                turn += 1;
                (self.progress)(total);
                // The reader is gone once everything was read.
                let _ = self.free.send(buffer);
            }
        }
        Ok(total)
    }
}
