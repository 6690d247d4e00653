//! A private copy of a backup of our state. What was given is only read.
//!
//! A backup is a copy of a data directory. A directory that a server is writing to at this moment
//! is taken as well, if it holds still for as long as the copy takes: what is copied then is what a
//! crash would have left, and every start puts that right.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use zeroize::Zeroizing;

use crate::{DrillError, scratch::Scratch};

/// What every data directory of ours has.
const STORE: &str = "store.redb";
const ROOT_KEY: &str = "root.key";
/// The largest file that is believed to be a root key.
const MAX_ROOT_KEY: u64 = 64 << 10;
/// Deeper than anything of ours, and a limit for links that go in circles.
const DEPTH: usize = 8;
const CHUNK: usize = 1 << 20;
/// How often a directory that changes is tried.
const ATTEMPTS: usize = 20;
/// The clock behind the times of files may stand still for some milliseconds.
const TICK: Duration = Duration::from_millis(25);

/// A file and what changes when it is written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    /// Relative to the directory.
    path: PathBuf,
    length: u64,
    mode: u32,
    inode: u64,
    changed: (i64, i64),
}

/// What was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Copied {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
}

/// Copies the data directory `from` into `<scratch>/state`, with the root key from elsewhere if it
/// is kept apart.
pub(crate) async fn state(
    from: &Path,
    root_key: Option<&Path>,
    scratch: &Scratch,
) -> Result<(PathBuf, Copied), DrillError> {
    let from = usable(from)?;
    let to = scratch.folder("state")?;
    let mut copied = None;
    for _ in 0..ATTEMPTS {
        let before = list(&from)?;
        tokio::time::sleep(TICK).await;
        if list(&from)? != before {
            continue;
        }
        scratch.needs(before.iter().map(|seen| seen.length).sum::<u64>() + (8 << 20))?;
        copy_all(&from, &to, &before).await?;
        if list(&from)? == before {
            let bytes = before.iter().map(|seen| seen.length).sum();
            copied = Some(Copied { files: before.len() as u64, bytes });
            break;
        }
        fs::remove_dir_all(&to).map_err(DrillError::file(&to))?;
        scratch.folder("state")?;
    }
    let Some(copied) = copied else {
        let reason = "it changes all the time: a server is writing to it. Give a copy that was made \
                      while the server was stopped, or a file system's snapshot";
        return Err(refused(&from, reason));
    };
    if let Some(root_key) = root_key {
        put_root_key(root_key, &to)?;
    }
    Ok((to, copied))
}

/// The directory, if there is a store of ours in it.
fn usable(from: &Path) -> Result<PathBuf, DrillError> {
    let broken = |error: std::io::Error| refused(from, &error.to_string());
    let directory = fs::canonicalize(from).map_err(broken)?;
    if !directory.is_dir() {
        let reason = "it is no directory: give a copy of the data directory of `up` or `server`";
        return Err(refused(from, reason));
    }
    match fs::metadata(directory.join(STORE)) {
        Ok(store) if store.is_file() && store.len() > 0 => Ok(directory),
        Ok(_) => Err(refused(from, "its store.redb is empty")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let reason = "there is no store.redb in it: give a copy of the whole data directory of \
                          `up` or `server`";
            Err(refused(from, reason))
        }
        Err(error) => Err(broken(error)),
    }
}

fn refused(directory: &Path, reason: &str) -> DrillError {
    DrillError::State { directory: directory.to_owned(), reason: reason.to_owned() }
}

/// All regular files below a directory, links followed; sockets and the like are nothing to keep.
fn list(directory: &Path) -> Result<Vec<Seen>, DrillError> {
    let mut found = Vec::new();
    walk(directory, Path::new(""), 0, &mut found)?;
    found.sort_unstable();
    Ok(found)
}

fn walk(root: &Path, inside: &Path, depth: usize, found: &mut Vec<Seen>) -> Result<(), DrillError> {
    let directory = root.join(inside);
    if depth > DEPTH {
        return Err(refused(&directory, "it is too deep to be a data directory"));
    }
    for entry in fs::read_dir(&directory).map_err(DrillError::file(&directory))? {
        let entry = entry.map_err(DrillError::file(&directory))?;
        let path = inside.join(entry.file_name());
        let full = root.join(&path);
        let meta = match fs::metadata(&full) {
            Ok(meta) => meta,
            // replaced or removed meanwhile, or a link to nothing
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(DrillError::file(&full)(error)),
        };
        if meta.is_dir() {
            walk(root, &path, depth + 1, found)?;
        } else if meta.is_file() {
            found.push(Seen {
                path,
                length: meta.len(),
                mode: meta.mode() & 0o777,
                inode: meta.ino(),
                changed: (meta.ctime(), meta.ctime_nsec()),
            });
        }
    }
    Ok(())
}

async fn copy_all(from: &Path, to: &Path, files: &[Seen]) -> Result<(), DrillError> {
    let mut buffer = Zeroizing::new(vec![0; CHUNK]);
    for file in files {
        let (source, target) = (from.join(&file.path), to.join(&file.path));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(DrillError::file(parent))?;
        }
        let mut read = match File::open(&source) {
            Ok(read) => read,
            // it is seen afterwards that the directory has changed
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(DrillError::file(&source)(error)),
        };
        let mut options = OpenOptions::new();
        // the owner has to be able to write, also where the backup is read-only
        let options = options.write(true).create(true).truncate(true).mode(file.mode | 0o600);
        let mut write = options.open(&target).map_err(DrillError::file(&target))?;
        loop {
            let length = read.read(&mut buffer).map_err(DrillError::file(&source))?;
            if length == 0 {
                break;
            }
            write.write_all(&buffer[..length]).map_err(DrillError::file(&target))?;
            // Ctrl-C is noticed between two pieces
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

fn put_root_key(from: &Path, state: &Path) -> Result<(), DrillError> {
    let length = fs::metadata(from).map_err(DrillError::file(from))?.len();
    if length > MAX_ROOT_KEY {
        return Err(refused(from, "a root key is a small file"));
    }
    let key = Zeroizing::new(fs::read(from).map_err(DrillError::file(from))?);
    crate::scratch::write_private(&state.join(ROOT_KEY), &key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn copy(from: &Path) -> Result<(Scratch, PathBuf, Copied), DrillError> {
        let place = tempfile::tempdir().unwrap();
        let scratch = Scratch::new(place.path())?;
        // it goes with the scratch directory inside
        let _ = place.keep();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (to, copied) = runtime.block_on(state(from, None, &scratch))?;
        Ok((scratch, to, copied))
    }

    #[test]
    fn files_are_copied_and_nothing_else() {
        let from = tempfile::tempdir().unwrap();
        let path = |name: &str| from.path().join(name);
        fs::write(path("store.redb"), "store").unwrap();
        fs::create_dir(path("audit")).unwrap();
        fs::write(path("audit/one"), "record").unwrap();
        fs::write(path("root.key"), "key").unwrap();
        fs::set_permissions(path("root.key"), fs::Permissions::from_mode(0o400)).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("admin.sock")).unwrap();
        symlink("/nowhere", path("dangling")).unwrap();
        let (scratch, to, copied) = copy(from.path()).unwrap();
        assert_eq!(copied, Copied { files: 3, bytes: 14 });
        assert_eq!(fs::read(to.join("audit/one")).unwrap(), b"record");
        assert!(!to.join("admin.sock").exists());
        let mode = fs::metadata(to.join("root.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let root = scratch.root().to_owned();
        drop(scratch);
        assert!(!root.exists());
        fs::remove_dir(root.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_is_no_backup_is_said_to_be_none() {
        let from = tempfile::tempdir().unwrap();
        let why = |from: &Path| usable(from).unwrap_err().to_string();
        assert!(why(from.path()).contains("there is no store.redb in it"));
        fs::write(from.path().join("store.redb"), "").unwrap();
        assert!(why(from.path()).contains("empty"));
        assert!(why(&from.path().join("store.redb")).contains("no directory"));
        assert!(why(&from.path().join("nowhere")).contains("No such file"));
        symlink(".", from.path().join("circle")).unwrap();
        fs::write(from.path().join("store.redb"), "x").unwrap();
        assert!(copy(from.path()).is_err());
    }
}
