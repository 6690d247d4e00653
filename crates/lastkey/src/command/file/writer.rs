//! Writes to a file, and has the system store what was written while more is.
//!
//! Whatever is not stored when the file is complete is waited for by the last sync, with nothing
//! else to do. And to begin storing takes time of the thread that asks for it, for it finds the
//! blocks and hands them to the disk: so a thread of its own asks, and the writer goes on.

use std::{
    fs::File,
    io::{self, Write},
    num::NonZero,
    sync::mpsc::{Sender, channel},
    thread::{self, JoinHandle},
};

use rustix::fs::Advice;

/// Data is sent to the disk after each so many bytes.
const SEND_EVERY: u64 = 8 << 20;

/// Writes to a file or a stream.
pub(super) struct Writer<'a> {
    file: &'a File,
    /// Whether what is written is to be stored; of a stream it is gone.
    stored: bool,
    background: Option<Background>,
    written: u64,
    /// Up to where the system was told.
    sent: u64,
}

impl<'a> Writer<'a> {
    /// Into a file that is to be synced in the end.
    pub(super) fn file(file: &'a File) -> Self {
        Self { file, stored: true, background: None, written: 0, sent: 0 }
    }

    /// Into something that keeps nothing.
    pub(super) fn stream(file: &'a File) -> Self {
        Self { stored: false, ..Self::file(file) }
    }

    /// Has the system begin to store what it was not told of yet. Where that is not possible the
    /// last sync takes longer, nothing else.
    fn send(&mut self) {
        let Some(len) = NonZero::new(self.written - self.sent) else { return };
        if self.background.is_none() {
            self.background = Background::start(self.file).ok();
        }
        if let Some(background) = &self.background {
            background.send(self.sent, len);
        }
        self.sent = self.written;
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = self.file.write(data)?;
        self.written += taken as u64;
        if self.stored && self.written - self.sent >= SEND_EVERY {
            self.send();
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A thread that asks the system to store pieces of a file; ended when dropped.
struct Background {
    pieces: Option<Sender<(u64, NonZero<u64>)>>,
    thread: Option<JoinHandle<()>>,
}

impl Background {
    fn start(file: &File) -> io::Result<Self> {
        let file = file.try_clone()?;
        let (pieces, sent) = channel();
        let thread = thread::Builder::new().name("store".to_owned()).spawn(move || {
            for (from, len) in sent {
                // Pages that are not stored yet cannot be dropped: this begins to store them.
                let _ = rustix::fs::fadvise(&file, from, Some(len), Advice::DontNeed);
            }
        })?;
        Ok(Self { pieces: Some(pieces), thread: Some(thread) })
    }

    fn send(&self, from: u64, len: NonZero<u64>) {
        if let Some(pieces) = &self.pieces {
            let _ = pieces.send((from, len));
        }
    }
}

impl Drop for Background {
    /// No descriptor of the file is left in another thread when its writer is gone.
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_large_file_is_sent_piece_by_piece_and_a_small_one_or_a_stream_never() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("x")).unwrap();
        let data = vec![7; 3 << 20];
        let mut writer = Writer::file(&file);
        for count in 1..=7 {
            writer.write_all(&data).unwrap();
            let written = count * data.len() as u64;
            // Never more than one piece and one write behind.
            assert!(writer.written == written && written - writer.sent < SEND_EVERY);
            assert_eq!(writer.background.is_some(), written >= SEND_EVERY);
        }
        drop(writer);
        assert_eq!(file.metadata().unwrap().len(), 21 << 20);
        assert!(fs::read(dir.path().join("x")).unwrap().iter().all(|byte| *byte == 7));

        let mut stream = Writer::stream(&file);
        for _ in 0..4 {
            stream.write_all(&data).unwrap();
        }
        assert!(stream.background.is_none());
    }
}
