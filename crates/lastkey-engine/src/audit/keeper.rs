//! What becomes of closed segments: a thread of low priority compresses and indexes them.
//!
//! 1. The lines are cut into blocks, and each becomes a frame in a temporary file.
//! 2. That file is made durable, then renamed; then the directory is made durable.
//! 3. The index is written the same way.
//! 4. The plain file is removed.
//!
//! After a crash between 2 and 4 both forms are there, and the plain one counts. At the next
//! start it goes, if the compressed one gives back exactly its bytes; otherwise somebody changed
//! one of them, and both stay, as evidence.
//!
//! Retention may delete a segment while it is in step 1. Steps 2 to 4 and a deletion keep each other
//! out ([`Shelf::names`]), and what was deleted meanwhile is not brought back.

use std::{
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use lastkey_crypto::KeyMaterial;
use lastkey_store::disk::{Access, Disk, DiskFile, read_full};
use parking_lot::{Condvar, Mutex};

use super::{
    files::{self, At, Line, SegmentFile, compressed_name},
    index::{self, Builder, Index},
    segment,
};

/// Blocks have about this many bytes of lines.
const BLOCK: usize = 1 << 20;
/// The fastest that compresses well: records are much alike, and level 3 takes twice as long to make
/// them larger (5.5 times smaller, where this one makes them 6.0 times so).
const LEVEL: i32 = 1;
/// What failed is tried again after this long.
const RETRY: Duration = Duration::from_secs(60);
/// The largest index that is read.
const MAX_INDEX: u64 = 64 << 20;
const TEMPORARY: &str = ".new";
/// How much nicer than the rest of the process.
const NICER: i32 = 10;

/// Where the files are, and what their indexes' codes are made with.
pub(super) struct Shelf {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    pub(super) key: KeyMaterial,
    /// Held by whoever gives closed segments their names or takes them away.
    pub(super) names: Mutex<()>,
}

#[derive(Default)]
struct Wishes {
    look: bool,
    close: bool,
}

/// The thread's handle.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    wishes: Mutex<Wishes>,
    wished: Condvar,
}

/// What the committer tells the keeper with.
#[derive(Clone)]
pub(super) struct Bell(Arc<Shared>);

impl Bell {
    /// A segment was closed.
    pub(super) fn ring(&self) {
        self.0.wishes.lock().look = true;
        self.0.wished.notify_one();
    }
}

impl Keeper {
    /// Starts to keep what lies before the segment that `open` names.
    pub(super) fn start(
        shelf: Arc<Shelf>,
        open: impl Fn() -> u64 + Send + 'static,
    ) -> io::Result<Self> {
        let wishes = Mutex::new(Wishes { look: true, close: false });
        let shared = Arc::new(Shared { wishes, wished: Condvar::new() });
        let work = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("audit-keep".into()).spawn(move || {
            // On Linux this is about the calling thread alone.
            let _ = rustix::process::nice(NICER);
            work.run(&shelf, &open);
        })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    pub(super) fn bell(&self) -> Bell {
        Bell(Arc::clone(&self.shared))
    }

    /// Ends the thread, after the block that it is at.
    pub(super) fn close(&self) {
        self.shared.wishes.lock().close = true;
        self.shared.wished.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn run(&self, shelf: &Shelf, open: &dyn Fn() -> u64) {
        let mut failed = false;
        loop {
            {
                let mut wishes = self.wishes.lock();
                while !wishes.look && !wishes.close {
                    if failed {
                        self.wished.wait_for(&mut wishes, RETRY);
                        break;
                    }
                    self.wished.wait(&mut wishes);
                }
                if wishes.close {
                    return;
                }
                wishes.look = false;
            }
            let tended = shelf.tend(open(), &|| self.wishes.lock().close);
            if let Err(error) = &tended
                && !failed
                && error.kind() != ErrorKind::Interrupted
            {
                tracing::warn!(%error, "closed audit segments wait to be compressed");
            }
            failed = tended.is_err();
        }
    }
}

impl Shelf {
    /// Compresses and indexes every segment before `open`.
    fn tend(&self, open: u64, stop: &dyn Fn() -> bool) -> io::Result<()> {
        for file in files::list(&*self.disk, &self.directory)? {
            if file.first >= open {
                continue;
            }
            let tended = match (file.plain, file.compressed) {
                (true, false) => self.compress(&file, stop),
                (true, true) => self.settle(&file, stop),
                _ if self.index(&file).is_none() => self.index_again(&file, stop),
                _ => Ok(()),
            };
            match tended {
                // Deleted meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// A segment's index, if there is one that is ours and about the file as it is.
    pub(super) fn index(&self, file: &SegmentFile) -> Option<Index> {
        let path = self.directory.join(index::name(file.first));
        let found = self.disk.open(&path, Access::Read).ok()?;
        let length = found.length().ok().filter(|length| *length <= MAX_INDEX)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        let filled = read_full(&*found, &mut bytes, 0).ok()?;
        let index = Index::decode(file.first, &self.key, bytes.get(..filled)?)?;
        let segment =
            self.disk.open(&self.directory.join(compressed_name(file.first)), Access::Read);
        (segment.ok()?.length().ok()? == index.file).then_some(index)
    }

    /// Steps 1 to 4.
    fn compress(&self, file: &SegmentFile, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let plain =
            self.disk.open(&self.directory.join(segment::name(file.first)), Access::Read)?;
        if plain.length()? == 0 {
            // Begun and never used, by a process that a crash or a full disk has stopped.
            return self.remove_plain(file.first);
        }
        let compressed = self.directory.join(compressed_name(file.first));
        let temporary = with_suffix(&compressed);
        let index = self.write_frames(plain, &temporary, stop).inspect_err(|_| {
            let _ = self.disk.remove(&temporary);
        })?;
        let _names = self.names.lock();
        if !self.is_there(&segment::name(file.first))? {
            return self.disk.remove(&temporary);
        }
        self.disk.rename(&temporary, &compressed)?;
        self.disk.sync_directory(&self.directory)?;
        self.write_index(file.first, &index)?;
        self.remove_plain(file.first)
    }

    /// Whether retention has left it.
    fn is_there(&self, name: &str) -> io::Result<bool> {
        match self.disk.open(&self.directory.join(name), Access::Read) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            opened => opened.map(|_| true),
        }
    }

    fn remove_plain(&self, first: u64) -> io::Result<()> {
        self.disk.remove(&self.directory.join(segment::name(first)))?;
        self.disk.sync_directory(&self.directory)
    }

    fn write_frames(
        &self,
        plain: Arc<dyn DiskFile>,
        to: &Path,
        stop: &dyn Fn() -> bool,
    ) -> io::Result<Index> {
        let out = self.disk.open(to, Access::Create)?;
        out.set_length(0)?;
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        let mut builder = Builder::new();
        let mut offset = 0;
        each_block(At::new(plain, 0), &mut |block| {
            if stop() {
                return Err(ErrorKind::Interrupted.into());
            }
            each_line(block, |line| builder.line(line));
            let frame = compressor.compress(block)?;
            out.write_at(&frame, offset)?;
            offset += frame.len() as u64;
            builder.block(block.len(), frame.len());
            Ok(())
        })?;
        out.sync()?;
        Ok(builder.finish())
    }

    fn write_index(&self, first: u64, index: &Index) -> io::Result<()> {
        let path = self.directory.join(index::name(first));
        let temporary = with_suffix(&path);
        let out = self.disk.open(&temporary, Access::Create)?;
        out.set_length(0)?;
        out.write_at(&index.encode(first, &self.key), 0)?;
        out.sync()?;
        self.disk.rename(&temporary, &path)?;
        self.disk.sync_directory(&self.directory)
    }

    /// Both forms are there: the plain one goes, if it is what the compressed one gives back.
    fn settle(&self, file: &SegmentFile, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let open = |name| self.disk.open(&self.directory.join(name), Access::Read);
        let mut plain = At::new(open(segment::name(file.first))?, 0);
        let compressed = At::new(open(compressed_name(file.first))?, 0);
        let same = same_bytes(&mut plain, compressed, stop);
        match same {
            Ok(true) => {
                if self.index(file).is_none() {
                    self.index_again(file, stop)?;
                }
                self.remove_plain(file.first)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            _ => {
                tracing::error!(
                    segment = segment::name(file.first),
                    "the plain and the compressed form of an audit segment differ; run `lastkey \
                     audit verify`"
                );
                Ok(())
            }
        }
    }

    /// Makes the index of a compressed segment anew. One whose frames are not ours, because it
    /// was changed or packed by somebody else, gets none, and is searched whole.
    fn index_again(&self, file: &SegmentFile, stop: &dyn Fn() -> bool) -> io::Result<()> {
        let path = self.directory.join(compressed_name(file.first));
        let segment = self.disk.open(&path, Access::Read)?;
        let length = segment.length()?;
        let mut builder = Builder::new();
        let mut offset = 0;
        while offset < length {
            if stop() {
                return Err(ErrorKind::Interrupted.into());
            }
            let Some((frame, lines)) = read_frame(&*segment, offset)? else { return Ok(()) };
            each_line(&lines, |line| builder.line(line));
            builder.block(lines.len(), frame);
            offset += frame as u64;
        }
        let _names = self.names.lock();
        if !self.is_there(&compressed_name(file.first))? {
            return Ok(());
        }
        self.write_index(file.first, &builder.finish())
    }
}

/// Reads the frame at `offset`: its length, and what it holds.
fn read_frame(segment: &dyn DiskFile, offset: u64) -> io::Result<Option<(usize, Vec<u8>)>> {
    let mut bytes = vec![0; 2 * index::MAX_BLOCK];
    let filled = read_full(segment, &mut bytes, offset)?;
    let Ok(length) = zstd::zstd_safe::find_frame_compressed_size(&bytes[..filled]) else {
        return Ok(None);
    };
    Ok(unpack(&bytes[..length], index::MAX_BLOCK).map(|lines| (length, lines)))
}

/// What one frame holds, if that is at most `limit` bytes.
pub(super) fn unpack(frame: &[u8], limit: usize) -> Option<Vec<u8>> {
    let length = zstd::zstd_safe::get_frame_content_size(frame).ok()??;
    let length = usize::try_from(length).ok().filter(|length| *length <= limit)?;
    zstd::bulk::decompress(frame, length).ok()
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(TEMPORARY);
    PathBuf::from(name)
}

/// Gives each line, and what stands behind the last line's end.
fn each_line(lines: &[u8], mut take: impl FnMut(&[u8])) {
    let mut start = 0;
    for end in memchr::memchr_iter(b'\n', lines) {
        take(&lines[start..end]);
        start = end + 1;
    }
    take(&lines[start..]);
}

/// Cuts what is read into blocks of whole lines. A line that is longer than a block is cut.
fn each_block(
    source: impl Read + Send + 'static,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut lines = files::Lines::new(Box::new(source));
    let mut block = Vec::with_capacity(BLOCK + (BLOCK >> 1));
    loop {
        match lines.next()? {
            None => break,
            Some(Line::Whole(line)) => {
                block.extend_from_slice(line);
                block.push(b'\n');
            }
            Some(Line::Torn(piece)) => block.extend_from_slice(piece),
        }
        if block.len() >= BLOCK {
            take(&block)?;
            block.clear();
        }
    }
    if block.is_empty() { Ok(()) } else { take(&block) }
}

/// Whether a compressed file gives back exactly what a plain one holds.
fn same_bytes(plain: &mut At, compressed: At, stop: &dyn Fn() -> bool) -> io::Result<bool> {
    let mut unpacked = zstd::stream::read::Decoder::new(compressed)?;
    let (mut one, mut other) = (vec![0; BLOCK], vec![0; BLOCK]);
    loop {
        if stop() {
            return Err(ErrorKind::Interrupted.into());
        }
        let n = fill(&mut unpacked, &mut one)?;
        let m = fill(plain, &mut other)?;
        if one[..n] != other[..m] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

fn fill(source: &mut dyn Read, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match source.read(&mut out[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
