//! Group commit and nothing else: one thread, one `fdatasync` for all that wait.

use std::{
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, Condvar, Mutex, PoisonError},
};

use tokio::sync::oneshot;

use crate::error::Error;

/// What is written for each request.
pub(super) const RECORD: usize = 256;
/// The file is written over again from its beginning.
const FILE: usize = 8 << 20;

type Waiting = Vec<([u8; RECORD], oneshot::Sender<()>)>;

#[derive(Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
}

/// The committer's entrance.
pub(super) struct Committer(Arc<Shared>);

impl Committer {
    /// Fills the file with zeros, so that no commit allocates anything, and starts the thread.
    pub(super) fn start(path: &Path) -> io::Result<Self> {
        let mut file = File::create(path)?;
        let zeros = vec![0; 1 << 20];
        for _ in 0..FILE / zeros.len() {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        let shared = Arc::new(Shared::default());
        let work = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("floor-commit".into())
            .spawn(move || commit(&work, &file))?;
        Ok(Self(shared))
    }

    /// Resolves once the record is durable.
    pub(super) async fn append(&self, record: [u8; RECORD]) -> Result<(), Error> {
        let (done, durable) = oneshot::channel();
        if self.0.queue(record, done) {
            self.0.arrived.notify_one();
        }
        durable.await.map_err(|_| Error::Committer)
    }
}

impl Shared {
    /// Queues a record; whether it is the first to wait.
    fn queue(&self, record: [u8; RECORD], done: oneshot::Sender<()>) -> bool {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.push((record, done));
        waiting.len() == 1
    }
}

fn commit(shared: &Shared, file: &File) {
    let (mut batch, mut bytes, mut offset) = (Waiting::new(), Vec::new(), 0);
    loop {
        take(shared, &mut batch);
        bytes.clear();
        batch.iter().for_each(|(record, _)| bytes.extend_from_slice(record));
        if offset + bytes.len() > FILE {
            offset = 0;
        }
        // Whoever waits learns of a failure from the sender that is dropped.
        let written = file.write_all_at(&bytes, offset as u64).and_then(|()| file.sync_data());
        offset += bytes.len();
        for (_, done) in batch.drain(..) {
            if written.is_ok() {
                let _ = done.send(());
            }
        }
    }
}

fn take(shared: &Shared, batch: &mut Waiting) {
    let mut waiting = shared.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    while waiting.is_empty() {
        waiting = shared.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner);
    }
    std::mem::swap(&mut *waiting, batch);
}
