//! The payload: STREAM over AES-256-GCM, one chunk in memory at a time.

use std::io::{self, Read, Write};

use zeroize::Zeroizing;

use super::{FileSalt, Header, HeaderError, Stanza, header::CHUNK_BITS};
use crate::{
    KeyMaterial,
    cipher::{IV_LEN, MessageKey, TAG_LEN},
};

/// Plaintext bytes in every chunk but the last.
pub const CHUNK_LEN: usize = 1 << CHUNK_BITS;
const SEALED_LEN: usize = CHUNK_LEN + TAG_LEN;

/// Why an envelope could not be begun.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// Too many stanzas, or none.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The sink could not be written.
    #[error("the encrypted file could not be written")]
    Io(#[from] io::Error),
}

/// Why a payload does not open.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The data key is not the one the header commits to.
    #[error("the data key does not belong to this file")]
    WrongDataKey,
    /// A chunk is changed, moved, missing, or from another file; or the file was cut.
    #[error("the file is damaged or cut short in chunk {chunk}")]
    Damaged {
        /// Number of the chunk, from 0.
        chunk: u64,
    },
    /// The source could not be read, or the sink not written.
    #[error("the file could not be read or written")]
    Io(#[from] io::Error),
}

impl From<PayloadError> for io::Error {
    fn from(error: PayloadError) -> Self {
        match error {
            PayloadError::Io(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

/// Writes an envelope: what goes in comes out encrypted at the sink.
///
/// Holds one chunk (1 MiB). Nothing is complete before [`Encryptor::finish`]; an envelope that
/// was only dropped is recognised as cut short.
#[must_use = "an envelope is complete only after finish()"]
pub struct Encryptor<W> {
    sink: W,
    chunks: Chunks,
    buffer: Zeroizing<Box<[u8]>>,
    filled: usize,
}

impl<W: Write> Encryptor<W> {
    /// Writes the header and gets ready for the plaintext.
    ///
    /// `stanzas` hold `data_key` wrapped in the context of `salt` ([`FileSalt::context`]).
    ///
    /// # Errors
    ///
    /// [`EncryptError::Header`] for no stanza or too many, [`EncryptError::Io`] from the sink.
    #[expect(clippy::needless_pass_by_value, reason = "a salt is used once")]
    pub fn new(
        mut sink: W,
        salt: FileSalt,
        data_key: &KeyMaterial,
        stanzas: Vec<Stanza>,
    ) -> Result<Self, EncryptError> {
        let header = Header::new(&salt, data_key, stanzas)?;
        sink.write_all(&header.encode())?;
        let chunks = Chunks::new(header.payload_key(data_key));
        Ok(Self { sink, chunks, buffer: buffer(SEALED_LEN), filled: 0 })
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
            self.chunks.check()?;
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
        let nonce = self.chunks.next(position)?;
        let (data, rest) = self.buffer.split_at_mut(self.filled);
        let tag = self.chunks.key.seal(&nonce, &[], data);
        rest[..TAG_LEN].copy_from_slice(&tag);
        // A failed write leaves ciphertext in the buffer: it must not be taken for plaintext.
        let sealed = self.filled + TAG_LEN;
        self.filled = 0;
        self.sink.write_all(&self.buffer[..sealed]).inspect_err(|_| self.chunks.stop())
    }
}

impl<W: Write> Write for Encryptor<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.filled == CHUNK_LEN && !data.is_empty() {
            self.seal(Position::Inner)?;
        }
        self.chunks.check()?;
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
        f.debug_struct("Encryptor").field("chunk", &self.chunks.number).finish_non_exhaustive()
    }
}

/// Reads the payload of an envelope: plaintext comes out, each chunk only once it has opened.
///
/// Holds one chunk (1 MiB). A damaged file yields the plaintext before the damage and then an
/// error, so a caller writes to a temporary file and keeps it only after the end was reached.
pub struct Decryptor<R> {
    source: R,
    chunks: Chunks,
    buffer: Zeroizing<Box<[u8]>>,
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
        if !header.is_committed_to(data_key) {
            return Err(PayloadError::WrongDataKey);
        }
        Ok(Self {
            source,
            chunks: Chunks::new(header.payload_key(data_key)),
            // One byte beyond a whole chunk shows that another follows.
            buffer: buffer(SEALED_LEN + 1),
            ahead: None,
            ready: 0..0,
            finished: false,
        })
    }

    /// Decrypts everything into `sink`, and returns how many bytes that was.
    ///
    /// # Errors
    ///
    /// [`PayloadError::Damaged`] and [`PayloadError::Io`]; what `sink` got until then is
    /// authentic, but not the whole file.
    pub fn copy_to(&mut self, sink: &mut impl Write) -> Result<u64, PayloadError> {
        let mut total = 0;
        while self.fill()? {
            sink.write_all(&self.buffer[self.ready.clone()])?;
            total += self.ready.len() as u64;
            self.ready = 0..0;
        }
        Ok(total)
    }

    /// Makes sure that plaintext is ready; `false` at the end of the file.
    fn fill(&mut self) -> Result<bool, PayloadError> {
        while self.ready.is_empty() && !self.finished {
            self.next_chunk().inspect_err(|_| self.chunks.stop())?;
        }
        Ok(!self.ready.is_empty())
    }

    fn next_chunk(&mut self) -> Result<(), PayloadError> {
        self.chunks.check()?;
        let read = self.read_chunk()?;
        let (position, sealed_len) = if read > SEALED_LEN {
            self.ahead = Some(self.buffer[SEALED_LEN]);
            (Position::Inner, SEALED_LEN)
        } else {
            (Position::Last, read)
        };

        let chunk = self.chunks.number;
        let nonce = self.chunks.next(position)?;
        let plaintext = self
            .chunks
            .key
            .open_in_place(&nonce, &[], &mut self.buffer[..sealed_len])
            .map_err(|_| PayloadError::Damaged { chunk })?
            .len();
        // Nobody but the owner of the data key can make such a chunk, yet one file has one form.
        if plaintext == 0 && chunk > 0 {
            return Err(PayloadError::Damaged { chunk });
        }
        self.ready = 0..plaintext;
        self.finished = position == Position::Last;
        Ok(())
    }

    /// Reads a chunk, its tag, and one byte more, as far as the source goes.
    fn read_chunk(&mut self) -> io::Result<usize> {
        let mut filled = 0;
        if let Some(first) = self.ahead.take() {
            self.buffer[0] = first;
            filled = 1;
        }
        while filled < self.buffer.len() {
            match read_some(&mut self.source, &mut self.buffer[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
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
        f.debug_struct("Decryptor").field("chunk", &self.chunks.number).finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    Inner,
    Last,
}

/// The payload key and the number of the next chunk: gives out each nonce once.
struct Chunks {
    key: MessageKey,
    number: u64,
    /// After the last chunk, or after an error: there is no next chunk.
    stopped: bool,
}

impl Chunks {
    fn new(key: MessageKey) -> Self {
        Self { key, number: 0, stopped: false }
    }

    /// The nonce of the next chunk: its number in 11 bytes, then 1 if it is the last.
    fn next(&mut self, position: Position) -> io::Result<[u8; IV_LEN]> {
        self.check()?;
        let mut nonce = [0; IV_LEN];
        nonce[3..11].copy_from_slice(&self.number.to_be_bytes());
        nonce[11] = u8::from(position == Position::Last);
        match self.number.checked_add(1) {
            Some(number) => self.number = number,
            None => self.stopped = true,
        }
        self.stopped |= position == Position::Last;
        Ok(nonce)
    }

    fn stop(&mut self) {
        self.stopped = true;
    }

    fn check(&self) -> io::Result<()> {
        match self.stopped {
            false => Ok(()),
            true => Err(io::Error::other("the envelope ended with an earlier error")),
        }
    }
}

fn buffer(len: usize) -> Zeroizing<Box<[u8]>> {
    Zeroizing::new(vec![0; len].into_boxed_slice())
}

/// One successful read, however often a signal comes in between.
fn read_some(source: &mut impl Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match source.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
