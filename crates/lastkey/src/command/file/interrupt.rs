//! Temporary files that go away however the process ends, short of a `kill -9`.
//!
//! Only where a file system knows no files without a name: everywhere else nothing needs to be
//! cleaned up, and a signal does what it always does.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Mutex, Once, PoisonError},
    thread,
};

use tokio::signal::unix::{SignalKind, signal};

static FILES: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
static WATCH: Once = Once::new();

/// A file that is removed when this is dropped, or when a signal ends the process.
#[derive(Debug)]
pub(super) struct Temporary(PathBuf);

impl Temporary {
    /// Of a file that was just made.
    pub(super) fn new(path: PathBuf) -> Self {
        WATCH.call_once(|| {
            // Without the watch a signal would leave the file, nothing worse.
            let _ = thread::Builder::new().name("signals".to_owned()).spawn(watch);
        });
        files(|files| files.push(path.clone()));
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    /// After a rename there is nothing left to remove.
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
        files(|files| files.retain(|file| *file != self.0));
    }
}

fn files(change: impl FnOnce(&mut Vec<PathBuf>)) {
    change(&mut FILES.lock().unwrap_or_else(PoisonError::into_inner));
}

/// Waits for a signal, removes the files, and ends the process as a shell expects it.
fn watch() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let number = runtime.block_on(async {
        let mut hangup = signal(SignalKind::hangup())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        Ok::<i32, io::Error>(tokio::select! {
            _ = hangup.recv() => 1,
            _ = interrupt.recv() => 2,
            _ = terminate.recv() => 15,
        })
    })?;
    files(|files| files.iter().for_each(|file| drop(fs::remove_file(file))));
    std::process::exit(128 + number);
}
