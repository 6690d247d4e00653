//! What was answered from memory is gathered here, made durable within a second, and brought to
//! the server's audit log.
//!
//! 1. [`Spool::keep`] notes an answer before it is given, as far as there is room on the disk that
//!    was taken ahead. While notes cannot be made durable, it refuses, and nothing is answered from
//!    memory; while they take long, it waits.
//! 2. The writer takes what was noted every fifth of a second, as one batch for each key version,
//!    and syncs it to the file.
//! 3. The courier delivers what is in the file while the server is there. The server counts a
//!    batch once, by its number.

mod file;
mod format;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use lastkey_client::{
    Client, Error as ClientError,
    native::{CachedAnswers, PluginRecords},
};
use lastkey_crypto::{ClusterId, KeyVersionId, SpoolId};
use parking_lot::Mutex;
use tokio::{sync::Notify, task::spawn_blocking, time::sleep};

use self::file::{LEAST_AHEAD, SpoolError, SpoolFile};
use super::Api;

/// How long notes are gathered before they are written.
const GATHER: Duration = Duration::from_millis(200);
/// Notes older than this must be durable before another answer is given.
const DURABLE_WITHIN: Duration = Duration::from_secs(1);
/// The pause after a failure of the disk.
const RETRY: Duration = Duration::from_secs(1);
/// For so long another process may have the records without anything being said: at an upgrade in
/// place, and at a quick restart, the one before keeps them until it ends.
const LETS_GO: Duration = Duration::from_secs(20);
/// The most uids in a batch; the server takes no more.
const MAX_UIDS: usize = 64;
/// The most characters of a uid.
const MAX_UID: usize = 64;
/// So many uids of a key version are kept at once, and so many more each second that follows; further
/// answers are only counted. Each batch is a durable change of the server's: what thousands of calls a
/// second do there must not cost more than the calls.
const MAX_NAMED: usize = 1024;
const NAMED_A_SECOND: usize = 256;
/// More bytes than a batch's line has without its uids.
const LINE: u64 = 320;
/// More than any note takes, whatever characters its uid has.
const NOTE: u64 = LINE + 8 * MAX_UID as u64;
const _: () = assert!(NOTE < LEAST_AHEAD, "a note fits where there is room at all");

/// Why an answer cannot be recorded, and so is not given from memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("what is answered from memory cannot be recorded: {0}")]
pub(super) struct Unkept(Arc<str>);

/// One answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Note<'a> {
    pub(super) api: Api,
    pub(super) key_version: KeyVersionId,
    pub(super) uid: &'a str,
}

/// Gathers, writes and delivers.
pub(super) struct Spool {
    directory: PathBuf,
    notes: Mutex<Notes>,
    /// Something was noted.
    noted: Notify,
    /// The writer has written, or failed to.
    written: Notify,
    file: Arc<Mutex<Option<SpoolFile>>>,
}

struct Notes {
    gathered: HashMap<(Api, KeyVersionId), Gathered>,
    /// When the oldest of these was made.
    oldest: Option<Instant>,
    /// When the oldest was made of those that are being written.
    writing: Option<Instant>,
    /// Bytes that all this takes at most: what is gathered, and what is being written.
    bytes: (u64, u64),
    /// Bytes of room there were in the file before any of it.
    room: u64,
    broken: Option<Unkept>,
    /// Since when another process has the records.
    taken: Option<Instant>,
    waiting: usize,
    id: Option<SpoolId>,
}

/// What was noted of one protocol and key version.
#[derive(Debug, Default)]
struct Gathered {
    batches: Vec<CachedAnswers>,
    /// How many uids were kept lately, less [`NAMED_A_SECOND`] since this moment.
    named: Option<(Instant, usize)>,
}

impl Spool {
    /// A spool in that directory, which is opened by [`write`](Self::write).
    pub(super) fn new(directory: PathBuf) -> Self {
        let opening = Unkept("the spool is not open yet".into());
        let notes = Notes {
            gathered: HashMap::new(),
            oldest: None,
            writing: None,
            bytes: (0, 0),
            room: 0,
            broken: Some(opening),
            taken: None,
            waiting: 0,
            id: None,
        };
        Self {
            directory,
            notes: Mutex::new(notes),
            noted: Notify::new(),
            written: Notify::new(),
            file: Arc::default(),
        }
    }

    /// Notes an answer that is about to be given.
    ///
    /// # Errors
    /// It cannot be recorded, and must not be given.
    pub(super) async fn keep(&self, note: Note<'_>) -> Result<(), Unkept> {
        loop {
            if let Some(kept) = self.note(note) {
                return kept;
            }
            let written = self.written.notified();
            tokio::pin!(written);
            written.as_mut().enable();
            // it may have been written before we listened
            if let Some(kept) = self.note(note) {
                return kept;
            }
            written.await;
        }
    }

    /// Notes an answer, unless what was noted before takes too long to become durable, or takes all
    /// the room until then. Never waits.
    pub(super) fn note(&self, note: Note<'_>) -> Option<Result<(), Unkept>> {
        let mut notes = self.notes.lock();
        if let Some(broken) = &notes.broken {
            return Some(Err(broken.clone()));
        }
        let (now, oldest) = (Instant::now(), notes.writing.or(notes.oldest));
        let is_slow = oldest.is_some_and(|oldest| now.duration_since(oldest) >= DURABLE_WITHIN);
        if is_slow || notes.room_left() < NOTE {
            return None;
        }
        let first = notes.oldest.is_none();
        notes.add(note, now);
        drop(notes);
        // the writer takes all at once
        if first {
            self.noted.notify_one();
        }
        Some(Ok(()))
    }

    /// As if the disk were slow: what was noted before is not durable yet, until the next flush.
    #[cfg(test)]
    pub(super) fn stall(&self) {
        self.notes.lock().oldest = Instant::now().checked_sub(DURABLE_WITHIN);
    }

    /// Why answers cannot be recorded at present.
    pub(super) fn broken(&self) -> Option<Unkept> {
        self.notes.lock().broken.clone()
    }

    /// Batches that no server has taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.notes.lock().waiting
    }

    /// Names this plugin's numbering, once the file is open.
    pub(super) fn id(&self) -> Option<SpoolId> {
        self.notes.lock().id
    }

    /// Writes until it is dropped.
    pub(super) async fn write(&self) {
        loop {
            if self.flush().await.is_ok() {
                self.noted.notified().await;
                sleep(GATHER).await;
            } else {
                sleep(RETRY).await;
            }
        }
    }

    /// Makes everything durable that was noted so far, opening the file if need be.
    pub(super) async fn flush(&self) -> Result<(), Unkept> {
        let mut batches = self.notes.lock().take(Instant::now());
        let (file, directory) = (Arc::clone(&self.file), self.directory.clone());
        let work = move || {
            let mut file = file.lock();
            let spool = match &mut *file {
                Some(spool) => spool,
                none => none.insert(SpoolFile::open(&directory).map_err(|e| (e, Vec::new()))?),
            };
            let appended = match batches.is_empty() {
                true => Ok(()),
                false => spool.append(&mut batches),
            };
            match appended {
                Ok(()) => {
                    let reserved = spool.reserve();
                    Ok((spool.id(), spool.waiting(), reserved.map(|()| spool.room())))
                }
                Err(error) => Err((error, batches)),
            }
        };
        let outcome = spawn_blocking(work).await;
        let outcome = match outcome {
            Ok(outcome) => outcome,
            // the runtime ends
            Err(_) => return Err(Unkept("the plugin stops".into())),
        };
        let mut notes = self.notes.lock();
        let result = match outcome {
            Ok((id, waiting, room)) => {
                (notes.id, notes.waiting) = (Some(id), waiting);
                notes.written(room)
            }
            Err((error, batches)) => Err(notes.failed(&error, batches)),
        };
        drop(notes);
        self.written.notify_waiters();
        result
    }

    /// Delivers the oldest batches. Answers how many, none if there were none.
    pub(super) async fn deliver(
        &self,
        client: &Client,
        cluster: ClusterId,
    ) -> Result<usize, DeliveryError> {
        let file = Arc::clone(&self.file);
        let take = move || file.lock().as_ref().map_or(Ok(None), SpoolFile::parcel);
        let taken = spawn_blocking(take).await;
        let Some(parcel) = taken.unwrap_or(Ok(None))? else { return Ok(0) };
        let batches = &parcel.batches;
        if !batches.is_empty() {
            let records = PluginRecords { cluster, spool: parcel.spool, batches };
            let delivered = client.plugin_records(records).await?;
            if batches.last().is_some_and(|last| last.sequence > delivered) {
                return Err(DeliveryError::Short);
            }
        }
        let count = batches.len();
        let file = Arc::clone(&self.file);
        let done = move || {
            file.lock()
                .as_mut()
                .map_or(Ok(0), |file| file.delivered(&parcel).map(|()| file.waiting()))
        };
        if let Ok(waiting) = spawn_blocking(done).await {
            self.notes.lock().waiting = waiting?;
        }
        Ok(count)
    }
}

/// Why a batch was not delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeliveryError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error(transparent)]
    Server(#[from] ClientError),
    #[error("the server acknowledged fewer records than it was sent")]
    Short,
}

impl Gathered {
    /// How many uids count as kept by now.
    fn named(&self, now: Instant) -> (Instant, usize) {
        let Some((since, named)) = self.named else { return (now, 0) };
        let seconds = now.duration_since(since).as_secs();
        let allowed = usize::try_from(seconds).unwrap_or(usize::MAX).saturating_mul(NAMED_A_SECOND);
        match named.saturating_sub(allowed) {
            0 if allowed > 0 => (now, 0),
            left => (since + Duration::from_secs(seconds), left),
        }
    }

    /// Whether one more uid may be kept.
    fn may_name(&mut self, now: Instant) -> bool {
        let (since, named) = self.named(now);
        let may = named < MAX_NAMED;
        self.named = Some((since, named + usize::from(may)));
        may
    }

    /// The batch that this note goes into.
    fn batch(&mut self, note: &Note<'_>, (now, names): (i64, bool)) -> Option<&mut CachedAnswers> {
        let is_full = |last: &CachedAnswers| names && last.uids.len() >= MAX_UIDS;
        if self.batches.last().is_none_or(is_full) {
            self.batches.push(CachedAnswers {
                sequence: 0,
                api: note.api.text().to_owned(),
                key_version: note.key_version,
                count: 0,
                first_ms: now,
                last_ms: now,
                uids: Vec::new(),
            });
        }
        self.batches.last_mut()
    }
}

impl Notes {
    fn add(&mut self, note: Note<'_>, noted: Instant) {
        self.oldest.get_or_insert(noted);
        let now = milliseconds();
        let gathered = self.gathered.entry((note.api, note.key_version)).or_default();
        let names = !note.uid.is_empty() && gathered.may_name(noted);
        let Some(last) = gathered.batch(&note, (now, names)) else { return };
        self.bytes.0 += if last.count == 0 { LINE } else { 0 };
        last.count += 1;
        // a clock that was set back must not end before it begins
        last.last_ms = last.last_ms.max(now);
        if names {
            let uid = beginning(note.uid).to_owned();
            self.bytes.0 += written_out(&uid);
            last.uids.push(uid);
        }
    }

    /// Bytes of room that nothing noted needs.
    fn room_left(&self) -> u64 {
        self.room.saturating_sub(self.bytes.0 + self.bytes.1)
    }

    /// Everything to be written.
    fn take(&mut self, now: Instant) -> Vec<CachedAnswers> {
        self.writing = self.oldest.take();
        self.bytes = (0, self.bytes.0 + self.bytes.1);
        let batches = self.gathered.values_mut().flat_map(|it| it.batches.drain(..)).collect();
        // what is left says how many uids were kept lately
        self.gathered.retain(|_, it| it.named(now).1 > 0);
        batches
    }

    /// What was being written is durable, and there is so much room behind it.
    fn written(&mut self, room: Result<u64, SpoolError>) -> Result<(), Unkept> {
        (self.writing, self.taken, self.bytes.1) = (None, None, 0);
        // what was gathered meanwhile has its room in any case: there was so much before
        self.room = match room {
            Ok(room) => room,
            Err(error) => return Err(self.failed(&error, Vec::new())),
        };
        if self.broken.take().is_some() {
            tracing::info!("what is answered from memory can be recorded");
        }
        Ok(())
    }

    /// Whether a failure is still to be expected, and nothing that anybody should see to.
    fn is_passing(&mut self, error: &SpoolError, now: Instant) -> bool {
        let SpoolError::Taken(_) = error else { return false };
        now.duration_since(*self.taken.get_or_insert(now)) < LETS_GO
    }

    fn failed(&mut self, error: &SpoolError, batches: Vec<CachedAnswers>) -> Unkept {
        self.oldest = self.writing.take().or(self.oldest);
        self.bytes = (self.bytes.0 + self.bytes.1, 0);
        // nothing is added while it is broken, so this stays as bounded as it was
        for batch in batches {
            let api = if batch.api == Api::V2.text() { Api::V2 } else { Api::V1 };
            let gathered = self.gathered.entry((api, batch.key_version)).or_default();
            gathered.batches.insert(0, batch);
        }
        let cause = Unkept(error.to_string().into());
        // said once: what it was broken by before is what was said last
        if !self.is_passing(error, Instant::now()) && self.broken.as_ref() != Some(&cause) {
            tracing::error!(%cause, "nothing is answered from memory");
            self.broken = Some(cause.clone());
        }
        cause
    }
}

/// Bytes of a uid in its batch's line, at most: with quotes and comma, and control characters as
/// JSON has them.
fn written_out(uid: &str) -> u64 {
    let bytes =
        uid.bytes().map(|byte| if byte < b' ' || b"\"\\\x7f".contains(&byte) { 6 } else { 1 });
    3 + bytes.sum::<u64>()
}

/// As much of a uid as is kept; an apiserver's has 36 characters.
fn beginning(uid: &str) -> &str {
    uid.char_indices().nth(MAX_UID).map_or(uid, |(end, _)| &uid[..end])
}

/// For the fuzz target: what is whole lies where it is said to, and reads the same in pieces.
pub(super) fn read(bytes: &[u8]) -> Option<usize> {
    let parsed = format::parse(bytes).ok()?;
    assert!(parsed.start <= parsed.end && parsed.end <= bytes.len());
    let (mut at, mut batches) = (parsed.start, 0);
    while at < parsed.end {
        let found = format::batches(&bytes[at..parsed.end], 3);
        at += found.length;
        batches += found.batches.len();
    }
    assert_eq!(batches, parsed.batches);
    Some(batches)
}

#[expect(
    clippy::disallowed_methods,
    reason = "people compare it with the apiserver's log; nothing is decided by it"
)]
fn milliseconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many answers, in how many batches, with how many uids.
    fn sums(batches: &[CachedAnswers]) -> (u64, usize, usize) {
        let count = batches.iter().map(|batch| batch.count).sum();
        (count, batches.len(), batches.iter().map(|batch| batch.uids.len()).sum())
    }

    /// At an upgrade the process before has the records for a moment, which is no error.
    #[test]
    fn another_process_may_have_the_records_for_a_moment() {
        let spool = Spool::new(PathBuf::new());
        let mut notes = spool.notes.lock();
        let taken = SpoolError::Taken(PathBuf::new());
        let begin = Instant::now();
        assert!(notes.is_passing(&taken, begin));
        assert!(notes.is_passing(&taken, begin + LETS_GO / 2));
        assert!(!notes.is_passing(&taken, begin + LETS_GO));
        // once they were ours, the next one has a moment again
        notes.written(Ok(0)).unwrap();
        assert!(notes.is_passing(&taken, begin + LETS_GO));
        assert!(!notes.is_passing(&SpoolError::Writable(PathBuf::new()), begin));
    }

    /// What many calls a second cost the server is bounded; not one of them goes uncounted.
    #[test]
    fn uids_are_kept_up_to_a_number_and_every_answer_is_counted() {
        let spool = Spool::new(PathBuf::new());
        let mut notes = spool.notes.lock();
        let (api, begin) = (Api::V2, Instant::now());
        let version = |number| KeyVersionId::from_bytes([number; 16]);
        let mut answer = |times: usize, number, at| {
            for _ in 0..times {
                notes.add(Note { api, key_version: version(number), uid: &"u".repeat(100) }, at);
            }
            notes.take(at)
        };
        let batches = answer(3000, 1, begin);
        assert_eq!(sums(&batches), (3000, MAX_NAMED / MAX_UIDS, MAX_NAMED));
        assert!(batches.iter().all(|batch| batch.uids.iter().all(|uid| uid.len() == MAX_UID)));
        // the same second goes on, and another version has its own
        let later = begin + Duration::from_millis(900);
        assert_eq!(sums(&answer(500, 1, later)), (500, 1, 0));
        assert_eq!(sums(&answer(65, 2, later)), (65, 2, 65));
        // some are kept again in each second that follows, and after a pause as many as at first
        for seconds in 1..=3 {
            let batches = answer(500, 1, begin + Duration::from_secs(seconds));
            assert_eq!(sums(&batches), (500, NAMED_A_SECOND / MAX_UIDS, NAMED_A_SECOND));
        }
        let rested = begin + Duration::from_secs(60);
        assert_eq!(sums(&answer(3000, 1, rested)).2, MAX_NAMED);
        // without a name there is nothing to keep
        notes.add(Note { api, key_version: version(3), uid: "" }, rested);
        notes.take(rested + Duration::from_secs(60));
        assert!(notes.gathered.is_empty(), "it remembers no version for longer than that");
    }

    /// What room is looked for before a note is taken is never less than what it needs.
    #[test]
    fn notes_take_no_more_room_than_was_counted() {
        let spool = Spool::new(PathBuf::new());
        let mut notes = spool.notes.lock();
        let now = Instant::now();
        for uid in
            ["", "u", "\u{0}\u{1f}\u{7f}", "\"\\/", "ü漢🔑", &"\u{1}".repeat(99), &"🔑".repeat(99)]
        {
            for number in 0..200_u8 {
                let key_version = KeyVersionId::from_bytes([number % 3; 16]);
                let before = notes.bytes.0;
                notes.add(Note { api: Api::V1, key_version, uid }, now);
                assert!(notes.bytes.0 - before <= NOTE);
            }
        }
        let counted = notes.bytes.0;
        let mut batches = notes.take(now);
        assert_eq!(notes.bytes, (0, counted));
        for batch in &mut batches {
            // the longest there are
            (batch.sequence, batch.count) = (u64::MAX, u64::MAX);
            (batch.first_ms, batch.last_ms) = (i64::MIN, i64::MIN);
        }
        let written: usize = batches.iter().map(|batch| format::line(batch).len()).sum();
        assert!(written as u64 <= counted, "{written} of {counted}");
    }

    /// A disk filled up during an outage, and what was answered from memory since was recorded nowhere
    /// once the plugin ended.
    #[tokio::test]
    async fn what_was_noted_is_written_to_a_disk_that_filled_up_since() {
        let directory = tempfile::tempdir().unwrap();
        let Some(disk) = SmallDisk::mount(directory.path()) else { return };
        let spool = Spool::new(disk.0.join("state"));
        spool.flush().await.unwrap();
        let ballast = disk.fill();
        let note = |number: u64| {
            let uid = format!("{number:036}");
            let key_version = KeyVersionId::from_bytes([3; 16]);
            spool.note(Note { api: Api::V2, key_version, uid: &uid })
        };
        let mut given = 0;
        let refused = loop {
            match note(given) {
                Some(Ok(())) => given += 1,
                Some(Err(refused)) => break refused,
                None => drop(spool.flush().await),
            }
            if given.is_multiple_of(50) {
                let _ = spool.flush().await;
            }
            assert!(given < 100_000, "it is refused at last");
        };
        let _ = spool.flush().await;
        assert_eq!(recorded(&spool), given, "{refused}");
        assert!(given >= 100 && refused.to_string().contains("no room"), "{given}: {refused}");
        // it heals by itself
        std::fs::remove_file(ballast).unwrap();
        spool.flush().await.unwrap();
        assert_eq!(note(given), Some(Ok(())));
        spool.flush().await.unwrap();
        assert_eq!(recorded(&spool), given + 1);
    }

    /// Answers in the file of a spool, as the next process finds it.
    fn recorded(spool: &Spool) -> u64 {
        let bytes = std::fs::read(spool.directory.join("answers.spool")).unwrap();
        let found = format::parse(&bytes).unwrap();
        assert_eq!((found.damaged, found.end), (0, bytes.len()));
        let batches = format::batches(&bytes[found.start..], usize::MAX).batches;
        batches.iter().map(|batch| batch.count).sum()
    }

    struct SmallDisk(PathBuf);

    impl SmallDisk {
        /// `None` after a loud skip where mounting is not allowed.
        fn mount(path: &std::path::Path) -> Option<Self> {
            let mount = ["-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs"];
            let done = std::process::Command::new("mount").args(mount).arg(path).output();
            if done.as_ref().is_ok_and(|output| output.status.success()) {
                return Some(Self(path.to_owned()));
            }
            let text = "\n!!!!  SKIPPED what_was_noted_is_written_…: a tmpfs cannot be mounted\n";
            std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes()).ok();
            None
        }

        /// Writes until nothing fits any more.
        fn fill(&self) -> PathBuf {
            let path = self.0.join("ballast");
            let mut file = std::fs::File::create(&path).unwrap();
            while std::io::Write::write_all(&mut file, &[0; 512]).is_ok() {}
            path
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let lazily = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
            lazily.ok();
        }
    }
}
