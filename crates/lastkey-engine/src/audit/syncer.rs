//! Makes segments durable in the background.

use std::{
    io,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use lastkey_store::disk::DiskFile;

/// A generation of the journal, and the segment that holds the same.
type Job = (u64, Arc<dyn DiskFile>);

/// Synchronises segments in the background, so that no caller waits for it.
pub(super) struct Syncer {
    jobs: Option<mpsc::SyncSender<Job>>,
    done: mpsc::Receiver<Result<u64, io::Error>>,
    pub(super) completed: u64,
    /// A synchronisation that failed may have lost data for good; only a restart, which reads the
    /// journal again, is safe.
    failed: Option<String>,
    /// The newest generation that was given to the thread, or that needed none.
    begun: u64,
    thread: Option<JoinHandle<()>>,
}

impl Syncer {
    /// Starts with what the segments hold durably already: opening the log has put back and
    /// synchronised all that the journal held, so that no generation before the present one is
    /// waited for.
    pub(super) fn start(completed: u64) -> io::Result<Self> {
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
        Ok(Self {
            jobs: Some(jobs),
            done,
            completed,
            failed: None,
            begun: completed,
            thread: Some(thread),
        })
    }

    /// Waits until all that was begun is durable.
    pub(super) fn wait_for_all(&mut self) -> io::Result<()> {
        self.wait_for(self.begun)
    }

    /// Notes that records may be missing from a segment until a restart reads the journal again.
    pub(super) fn fail(&mut self, error: &io::Error) {
        self.failed.get_or_insert_with(|| error.to_string());
    }

    /// Whether records may be missing from a segment.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.is_some()
    }

    /// Begins to make durable what the journal's `generation` holds.
    pub(super) fn begin(&mut self, generation: u64, file: Arc<dyn DiskFile>) -> io::Result<()> {
        let gone = || io::Error::other("the audit synchroniser is gone");
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send((generation, file)).map_err(|_| gone())?;
        self.begun = generation;
        Ok(())
    }

    /// Waits until that generation's records are durable in the segments.
    pub(super) fn wait_for(&mut self, generation: u64) -> io::Result<()> {
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
