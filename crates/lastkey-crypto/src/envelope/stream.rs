//! The payload as a stream: STREAM over AES-256-GCM, one chunk in memory at a time.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use super::{
    EncryptError, Header, NewFile, PayloadError,
    chunk::{Buffer, CHUNK_LEN, Counter, Position, SEALED_LEN, read_full, read_some},
};
use crate::{KeyMaterial, cipher::MessageKey};

/// Writes an envelope: what goes in comes out encrypted at the sink.
///
/// Holds one chunk (1 MiB). Nothing is complete before [`Encryptor::finish`]; an envelope that
/// was only dropped is recognised as cut short.
#[must_use = "an envelope is complete only after finish()"]
pub struct Encryptor<W> {
    sink: W,
    key: MessageKey,
    counter: Counter,
    buffer: Buffer,
    filled: usize,
}

impl<W: Write> Encryptor<W> {
    /// Writes the header and gets ready for the plaintext.
    ///
    /// # Errors
    ///
    /// [`EncryptError::Write`] from the sink.
    pub fn new(mut sink: W, file: NewFile) -> Result<Self, EncryptError> {
        sink.write_all(&file.header.encode()).map_err(EncryptError::Write)?;
        let buffer = Buffer::new(SEALED_LEN);
        Ok(Self { sink, key: file.key, counter: Counter::new(), buffer, filled: 0 })
    }

    /// Encrypts everything that `source` yields, and returns how many bytes that was.
    ///
    /// # Errors
    ///
    /// From the source or the sink. Data read so far stays in the envelope, so after an error of
    /// the source the caller may go on; after one of the sink it cannot.
    pub fn copy_from(&mut self, source: &mut impl Read) -> io::Result<u64> {
        let mut total = 0;
        loop {
            self.counter.check()?;
            let read = if self.filled < CHUNK_LEN {
                let read = read_some(source, &mut self.buffer[self.filled..CHUNK_LEN])?;
                self.filled += read;
                read
            } else {
                // Only the next byte tells whether this full chunk is the last one.
                let mut ahead = Zeroizing::new([0]);
                let read = read_some(source, &mut ahead[..])?;
                if read > 0 {
                    self.write_all(&ahead[..])?;
                }
                read
            };
            match read {
                0 => return Ok(total),
                read => total += read as u64,
            }
        }
    }

    /// Seals the last chunk and returns the sink, flushed.
    ///
    /// # Errors
    ///
    /// From the sink.
    pub fn finish(mut self) -> io::Result<W> {
        self.seal(Position::Last)?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    /// Encrypts the buffer as the next chunk and writes it.
    fn seal(&mut self, position: Position) -> io::Result<()> {
        let chunk = self.counter.next(position)?;
        let sealed = chunk.seal(&self.key, &mut self.buffer, self.filled);
        // A failed write leaves ciphertext in the buffer: it must not be taken for plaintext.
        self.filled = 0;
        self.sink.write_all(&self.buffer[..sealed]).inspect_err(|_| self.counter.stop())
    }
}

impl<W: Write> Write for Encryptor<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.filled == CHUNK_LEN && !data.is_empty() {
            self.seal(Position::Inner)?;
        }
        self.counter.check()?;
        let taken = data.len().min(CHUNK_LEN - self.filled);
        self.buffer[self.filled..self.filled + taken].copy_from_slice(&data[..taken]);
        self.filled += taken;
        Ok(taken)
    }

    /// Flushes the sink; a chunk that is not full stays here, since it may be the last.
    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

impl<W> std::fmt::Debug for Encryptor<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encryptor").field("chunk", &self.counter.number()).finish_non_exhaustive()
    }
}

/// Reads the payload of an envelope: plaintext comes out, each chunk only once it has opened.
///
/// Holds one chunk (1 MiB). A damaged file yields the plaintext before the damage and then an
/// error, so a caller writes to a temporary file and keeps it only after the end was reached.
pub struct Decryptor<R> {
    source: R,
    key: MessageKey,
    counter: Counter,
    buffer: Buffer,
    /// The first byte of the next chunk, which told that another one follows.
    ahead: Option<u8>,
    /// Where in `buffer` the plaintext lies that was not yet handed out.
    ready: std::ops::Range<usize>,
    finished: bool,
}

impl<R: Read> Decryptor<R> {
    /// Gets ready to decrypt what follows `header` in `source`.
    ///
    /// # Errors
    ///
    /// [`PayloadError::WrongDataKey`] if the header does not commit to `data_key`.
    pub fn new(source: R, header: &Header, data_key: &KeyMaterial) -> Result<Self, PayloadError> {
        Ok(Self {
            source,
            key: header.open(data_key)?.0,
            counter: Counter::new(),
            // One byte beyond a whole chunk shows that another follows.
            buffer: Buffer::new(SEALED_LEN + 1),
            ahead: None,
            ready: 0..0,
            finished: false,
        })
    }

    /// Decrypts everything into `sink`, and returns how many bytes that was.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Damaged`], [`PayloadError::Read`] and [`PayloadError::Write`]; what `sink` got until then is
    /// authentic, but not the whole file.
    pub fn copy_to(&mut self, sink: &mut impl Write) -> Result<u64, PayloadError> {
        let mut total = 0;
        while self.fill()? {
            sink.write_all(&self.buffer[self.ready.clone()]).map_err(PayloadError::Write)?;
            total += self.ready.len() as u64;
            self.ready = 0..0;
        }
        Ok(total)
    }

    /// Makes sure that plaintext is ready; `false` at the end of the file.
    fn fill(&mut self) -> Result<bool, PayloadError> {
        while self.ready.is_empty() && !self.finished {
            self.next_chunk().inspect_err(|_| self.counter.stop())?;
        }
        Ok(!self.ready.is_empty())
    }

    fn next_chunk(&mut self) -> Result<(), PayloadError> {
        self.counter.check().map_err(PayloadError::Read)?;
        let read = self.read_chunk().map_err(PayloadError::Read)?;
        let (position, sealed_len) = if read > SEALED_LEN {
            self.ahead = Some(self.buffer[SEALED_LEN]);
            (Position::Inner, SEALED_LEN)
        } else {
            (Position::Last, read)
        };
        let chunk = self.counter.next(position).map_err(PayloadError::Read)?;
        let plaintext = chunk.open(&self.key, &mut self.buffer[..sealed_len])?;
        self.ready = 0..plaintext;
        self.finished = position == Position::Last;
        Ok(())
    }

    /// Reads a chunk, its tag, and one byte more, as far as the source goes.
    fn read_chunk(&mut self) -> io::Result<usize> {
        let taken = match self.ahead.take() {
            Some(first) => {
                self.buffer[0] = first;
                1
            }
            None => 0,
        };
        Ok(taken + read_full(&mut self.source, &mut self.buffer[taken..])?)
    }
}

impl<R: Read> Read for Decryptor<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() || !self.fill()? {
            return Ok(0);
        }
        let taken = out.len().min(self.ready.len());
        let from = self.ready.start;
        out[..taken].copy_from_slice(&self.buffer[from..from + taken]);
        self.ready.start += taken;
        Ok(taken)
    }
}

impl<R> std::fmt::Debug for Decryptor<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decryptor").field("chunk", &self.counter.number()).finish_non_exhaustive()
    }
}
