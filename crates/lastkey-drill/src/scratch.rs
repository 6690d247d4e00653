//! The directory in which a drill happens, and what is to be had on the loopback.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    net::TcpListener,
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use lastkey_crypto::{Entropy as _, SystemEntropy};
use rustix::fs::{FlockOperation, flock, statvfs};

use crate::{DrillError, child::LOOK_EVERY};

const PREFIX: &str = "lastkey-drill-";
const LOCK: &str = "lock";
/// A socket's path has at most 107 bytes, and the longest below is that of a cluster's plugin.
const MAX_PATH: usize = 107 - "/0123456789ab.sock".len();
/// Larger files hold no key of ours; they are removed as they are.
const OVERWRITTEN: u64 = 16 << 20;

/// After a kill, what the drill has started may be on its way out for so long.
const ON_THEIR_WAY_OUT: Duration = Duration::from_secs(30);
/// The hidden command of our binary that [`sweep`] is behind.
const COMMAND: &str = "drill-sweep";

/// A directory of our own, mode 0700. It goes when this is dropped, what may be a key overwritten
/// first; after `kill -9` a process removes it that waits for our end ([`sweep`]). One that is left
/// behind all the same, by a power cut say, is removed by the next drill.
#[derive(Debug)]
pub struct Scratch {
    root: PathBuf,
    _lock: File,
    sweeper: Option<std::process::Child>,
}

impl Scratch {
    /// Makes one below `place`.
    ///
    /// # Errors
    /// When it cannot be made there.
    pub fn new(place: &Path) -> Result<Self, DrillError> {
        let place = fs::canonicalize(place).map_err(DrillError::file(place))?;
        clear_up(&place);
        let mut random = [0; 6];
        SystemEntropy.fill(&mut random);
        let name = format!("{PREFIX}{}", hex::encode(random));
        let root = place.join(&name);
        let length = root.as_os_str().len();
        if length > MAX_PATH {
            let most = MAX_PATH - (length - place.as_os_str().len());
            return Err(DrillError::LongPath { directory: place, most });
        }
        // it has its name once it is locked: another drill's clearing up may come at any moment
        let unlocked = place.join(format!(".{name}"));
        let mut made = Self::lock(&unlocked, true).map_err(DrillError::file(&root))?;
        fs::rename(&unlocked, &root).map_err(DrillError::file(&root))?;
        made.root = root;
        Ok(made)
    }

    fn lock(root: &Path, new: bool) -> io::Result<Self> {
        if new {
            DirBuilder::new().mode(0o700).create(root)?;
        }
        let lock = root.join(LOCK);
        let lock = OpenOptions::new().write(true).create(new).mode(0o600).open(lock)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Self { root: root.to_owned(), _lock: lock, sweeper: None })
    }

    /// Has a process of its own wait for our end, however that comes; `lastkey` is our binary.
    pub(crate) fn swept_by(mut self, lastkey: &Path) -> Result<Self, DrillError> {
        let mut command = Command::new(lastkey);
        // the end of its standard input is our end; Ctrl-C is for us
        command.arg(COMMAND).arg(&self.root).current_dir("/").process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let start = |source| DrillError::Start { program: COMMAND.to_owned(), source };
        self.sweeper = Some(command.spawn().map_err(start)?);
        Ok(self)
    }

    /// Its path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A directory inside.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, DrillError> {
        let path = self.root.join(name);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(DrillError::file(&path)).map(|()| path)
    }

    /// Fails unless so many bytes can be written.
    pub(crate) fn needs(&self, bytes: u64) -> Result<(), DrillError> {
        let Ok(there) = statvfs(&self.root) else { return Ok(()) };
        let there = there.f_bavail.saturating_mul(there.f_frsize);
        let directory = self.root.parent().unwrap_or(&self.root).to_owned();
        match there < bytes {
            true => Err(DrillError::NoRoom {
                directory,
                needed: bytes.div_ceil(1 << 20),
                there: there >> 20,
            }),
            false => Ok(()),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        overwrite(&self.root);
        if let Err(error) = fs::remove_dir_all(&self.root)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::error!(path = %self.root.display(), %error, "remove this yourself");
        }
        if let Some(mut sweeper) = self.sweeper.take() {
            drop(sweeper.stdin.take());
            sweeper.wait().ok();
        }
    }
}

/// Waits until whoever has started this process is gone, and removes its scratch directory if it
/// did not.
pub fn sweep(directory: &Path) {
    io::copy(&mut io::stdin().lock(), &mut io::sink()).ok();
    let start = Instant::now();
    let mut left = None;
    while start.elapsed() < ON_THEIR_WAY_OUT && is_ours(directory) {
        // the kernel may let go of the lock after it has closed our standard input
        if left.is_none() {
            left = Scratch::lock(directory, false).ok();
        }
        if left.is_some() {
            overwrite(directory);
            fs::remove_dir_all(directory).ok();
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Whether a directory is a drill's, and the same user's.
fn is_ours(directory: &Path) -> bool {
    let us = rustix::process::geteuid().as_raw();
    directory.file_name().and_then(|name| name.to_str()).is_some_and(|it| it.starts_with(PREFIX))
        && fs::symlink_metadata(directory).is_ok_and(|it| it.is_dir() && it.uid() == us)
}

/// Removes what drills left that were killed: nobody holds their lock.
fn clear_up(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    for entry in entries.flatten() {
        if is_ours(&entry.path())
            && let Ok(left) = Scratch::lock(&entry.path(), false)
        {
            drop(left);
        }
    }
}

fn overwrite(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() {
            overwrite(&entry.path());
        } else if kind.is_file() && entry.metadata().is_ok_and(|it| it.len() <= OVERWRITTEN) {
            let zeros = |path: &Path| {
                let mut file = OpenOptions::new().write(true).open(path)?;
                let length = file.metadata()?.len();
                io::copy(&mut io::Read::take(io::repeat(0), length), &mut file)?;
                file.flush()
            };
            zeros(&entry.path()).ok();
        }
    }
}

/// Writes a file that only we can read.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), DrillError> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content)).map_err(DrillError::file(path))
}

/// A port of the loopback that nobody listens on.
pub(crate) fn free_port() -> Result<u16, DrillError> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).map(|it| it.port());
    port.map_err(|source| DrillError::Start { program: "a listener on 127.0.0.1".into(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_goes_with_its_value_and_what_was_left_goes_with_the_next() {
        let place = tempfile::tempdir().unwrap();
        let first = Scratch::new(place.path()).unwrap();
        let mode = fs::metadata(first.root()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        fs::write(first.folder("inside").unwrap().join("key"), "secret").unwrap();
        let second = Scratch::new(place.path()).unwrap();
        assert!(first.root().exists(), "a drill that runs is left alone");
        let gone = first.root().to_owned();
        drop(first);
        assert!(!gone.exists());
        drop(second);
        // killed: nobody holds the lock
        fs::create_dir(place.path().join("lastkey-drill-0")).unwrap();
        fs::write(place.path().join("lastkey-drill-0/lock"), "").unwrap();
        fs::create_dir(place.path().join("lastkey-drill-of-somebody-else")).unwrap();
        let third = Scratch::new(place.path()).unwrap();
        assert!(!place.path().join("lastkey-drill-0").exists());
        assert!(place.path().join("lastkey-drill-of-somebody-else").exists());
        assert!(matches!(third.needs(u64::MAX), Err(DrillError::NoRoom { .. })));
        third.needs(1).unwrap();
        let long = place.path().join("x".repeat(90));
        fs::create_dir(&long).unwrap();
        let said = Scratch::new(&long).unwrap_err().to_string();
        assert!(said.contains("(62 bytes at most)") && said.contains("--scratch-dir"), "{said}");
        assert_eq!(fs::read_dir(&long).unwrap().count(), 0);
    }
}
