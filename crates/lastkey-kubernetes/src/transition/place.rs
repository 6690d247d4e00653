//! The file that the apiservers' EncryptionConfiguration lies in.
//!
//! It is replaced as a whole: the new content is written beside it with the same owner and mode,
//! forced to disk and renamed into place, so that an apiserver reads the one or the other. What was
//! there before stays beside it, under a name with the time: a copy that only its owner may read,
//! since it may hold keys that the file has no more.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use lastkey_crypto::mac::sha256;
use zeroize::Zeroizing;

use crate::encryption_config::MAX_FILE;

/// What of a mode lets others than the owner read a file; an access list shows in it, too.
const READ_BY_OTHERS: u32 = 0o044;
/// How files are made.
const PRIVATE: u32 = 0o600;

/// Why a file could not be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// It cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It cannot be a configuration.
    #[error("{}: larger than 1 MiB, or no text", .0.display())]
    NoText(PathBuf),
}

/// A file, here or elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where it lies.
    pub path: PathBuf,
}

impl Place {
    /// Its content; `None` when there is no such file.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(&self) -> Result<Option<Zeroizing<String>>, PlaceError> {
        let failed = |source| PlaceError::Read { path: self.path.clone(), source };
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE + 2));
        file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
        let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= MAX_FILE);
        let text = text.ok_or_else(|| PlaceError::NoText(self.path.clone()))?;
        Ok(Some(Zeroizing::new(text.to_owned())))
    }

    /// Whether its directory is on this machine.
    pub fn is_here(&self) -> bool {
        self.path.parent().is_some_and(Path::is_dir)
    }

    /// Why it cannot be replaced here; `None` if it can, as far as that is known before.
    pub fn locked(&self) -> Option<String> {
        let Ok(path) = self.real() else {
            return Some(format!("{} is not on this machine", self.path.display()));
        };
        let directory = path.parent()?;
        let about = match fs::metadata(directory) {
            Ok(about) => about,
            Err(error) => return Some(format!("{}: {error}", directory.display())),
        };
        // Root may write what nobody may; somebody has meant it, though.
        if about.mode() & 0o222 == 0 {
            return Some(format!("{} is read-only", directory.display()));
        }
        if let Err(error) = rustix::fs::access(directory, rustix::fs::Access::WRITE_OK) {
            return Some(format!("{}: {error}", directory.display()));
        }
        let about = fs::metadata(&path).ok()?;
        if about.mode() & 0o222 == 0 {
            return Some(format!("{} is read-only", path.display()));
        }
        rustix::fs::access(&path, rustix::fs::Access::WRITE_OK)
            .err()
            .map(|error| format!("{}: {error}", path.display()))
    }

    /// Its mode, if others than its owner may read it.
    ///
    /// # Errors
    /// When it is there and cannot be looked at.
    pub fn open_to_others(&self) -> io::Result<Option<u32>> {
        match fs::metadata(&self.path) {
            Ok(about) => Ok(Some(about.mode() & 0o7777).filter(|mode| mode & READ_BY_OTHERS != 0)),
            // A new file is its owner's alone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Since when it is as it is, in seconds since 1970: when its content, its name or what links to it
    /// was changed last. `None` if it does not lie here.
    pub fn unchanged_since(&self) -> Option<f64> {
        let link = fs::symlink_metadata(&self.path).ok()?;
        let file = fs::metadata(&self.path).ok()?;
        let times = [&link, &file].map(|about| {
            let (changed, written) =
                ((about.ctime(), about.ctime_nsec()), (about.mtime(), about.mtime_nsec()));
            changed.max(written)
        });
        // times fit into 53 bits
        times.into_iter().max().map(|(seconds, nanos)| seconds as f64 + nanos as f64 / 1e9)
    }

    /// Where it is kept once it is replaced: a name that nothing has yet. `None` if there is no
    /// such file.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn predecessor(&self, time: &str) -> io::Result<Option<PathBuf>> {
        let path = self.real()?;
        if !path.try_exists()? {
            return Ok(None);
        }
        let (directory, name) = parts(&path)?;
        let stamp: String = time.chars().filter(char::is_ascii_alphanumeric).collect();
        for number in 1..1000 {
            let suffix = if number > 1 { format!("-{number}") } else { String::new() };
            let kept = directory.join(format!("{name}.lastkey-{stamp}{suffix}"));
            if fs::symlink_metadata(&kept).is_err_and(|e| e.kind() == io::ErrorKind::NotFound) {
                return Ok(Some(kept));
            }
        }
        Err(io::Error::from(io::ErrorKind::AlreadyExists))
    }

    /// Replaces it, and keeps what was there as `kept`, which [`Self::predecessor`] has named.
    ///
    /// # Errors
    /// When the file system refuses; then the file is as it was.
    pub fn replace(&self, text: &str, kept: Option<&Path>) -> io::Result<()> {
        let path = self.real()?;
        let (directory, name) = parts(&path)?;
        let new = directory.join(format!(".{name}.lastkey-new"));
        clear(&new)?;
        let old = match fs::metadata(&path) {
            Ok(about) => Some(about),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let like = old.as_ref().map(|old| (old, old.mode() & 0o7777));
        let written = write(&new, text.as_bytes(), like).and_then(|()| {
            kept.map_or(Ok(()), |kept| keep(&path, kept))?;
            fs::rename(&new, &path)?;
            File::open(directory)?.sync_all()
        });
        if written.is_err() {
            let _ = fs::remove_file(&new);
        }
        written
    }

    /// The file itself, if this is a link to it.
    fn real(&self) -> io::Result<PathBuf> {
        match fs::canonicalize(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let parent = self.path.parent().ok_or(error)?;
                let name = self.path.file_name();
                Ok(fs::canonicalize(parent)?.join(name.unwrap_or_default()))
            }
            found => found,
        }
    }
}

/// Removes what one that was killed has left behind.
fn clear(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes a new file with the owner of another and a mode.
fn write(path: &Path, content: &[u8], like: Option<(&fs::Metadata, u32)>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(PRIVATE).open(path)?;
    if let Some((like, mode)) = like {
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.write_all(content)?;
    file.sync_all()
}

fn parts(path: &Path) -> io::Result<(&Path, std::borrow::Cow<'_, str>)> {
    let parts = path.parent().zip(path.file_name());
    let (directory, name) = parts.ok_or(io::ErrorKind::InvalidInput)?;
    Ok((directory, name.to_string_lossy()))
}

/// Copies the file to where it is kept, for its owner alone, whoever may read the file itself. One
/// that was killed may have done so already.
fn keep(path: &Path, kept: &Path) -> io::Result<()> {
    let (content, about) = content(path)?;
    let (directory, name) = parts(kept)?;
    let new = directory.join(format!(".{name}-new"));
    clear(&new)?;
    let written = write(&new, &content, Some((&about, PRIVATE))).and_then(|()| {
        // Unlike a rename, this never takes the place of something else.
        match fs::hard_link(&new, kept) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if is_copy(kept, &content)? { Ok(()) } else { Err(error) }
            }
            done => done,
        }
    });
    clear(&new).and(written)
}

fn content(path: &Path) -> io::Result<(Zeroizing<Vec<u8>>, fs::Metadata)> {
    let mut file = File::open(path)?;
    let about = file.metadata()?;
    // With room for all of it, nothing of it is left in memory by growing.
    let room = usize::try_from(about.len()).unwrap_or(MAX_FILE).min(MAX_FILE) + 32;
    let mut content = Zeroizing::new(Vec::with_capacity(room));
    file.read_to_end(&mut content)?;
    Ok((content, about))
}

/// Whether this is what [`keep`] would have made.
fn is_copy(kept: &Path, wanted: &[u8]) -> io::Result<bool> {
    let about = fs::symlink_metadata(kept)?;
    let private = about.is_file() && about.mode() & 0o7777 == PRIVATE;
    Ok(private && content(kept)?.0.as_slice() == wanted)
}

/// The hash under which an apiserver's metrics name a configuration it has loaded.
pub fn hash(text: &str) -> String {
    format!("sha256:{}", hex::encode(sha256(&[text.as_bytes()])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_its_predecessor_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let place = Place { path: path.clone() };
        assert!(place.is_here() && place.read().unwrap().is_none());
        let time = "2026-01-01T00:00:00Z";
        assert_eq!(place.predecessor(time).unwrap(), None);
        place.replace("one\n", None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        // What one that was killed has left does not matter.
        fs::write(dir.path().join(".config.yaml.lastkey-new"), "half").unwrap();
        for (text, before) in [("two\n", "one\n"), ("three\n", "two\n")] {
            let kept = place.predecessor(time).unwrap().unwrap();
            if text == "three\n" {
                // One that was killed has kept it already, and was about to clear up.
                let mine = Permissions::from_mode(PRIVATE);
                fs::copy(&path, &kept).unwrap();
                fs::set_permissions(&kept, mine).unwrap();
                fs::write(dir.path().join(".config.yaml.lastkey-20260101T000000Z-2-new"), "")
                    .unwrap();
            }
            place.replace(text, Some(&kept)).unwrap();
            assert_eq!(fs::read_to_string(&kept).unwrap(), before);
            assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o7777, 0o600, "never for others");
            assert_eq!(place.read().unwrap().unwrap().as_str(), text);
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        }
        let names = fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        let kept = "config.yaml.lastkey-20260101T000000Z";
        assert_eq!(names, ["config.yaml", kept, &format!("{kept}-2")]);
        // What somebody else has put there is not overwritten, and nothing is replaced.
        let taken = dir.path().join(kept);
        assert!(place.replace("four\n", Some(&taken)).is_err());
        assert_eq!(fs::read_to_string(&taken).unwrap(), "one\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        // Not even if it says the same and everybody may read it.
        fs::write(&taken, "three\n").unwrap();
        fs::set_permissions(&taken, Permissions::from_mode(0o644)).unwrap();
        assert!(place.replace("four\n", Some(&taken)).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "nothing is left behind");
    }

    #[test]
    fn who_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let place = Place { path: path.clone() };
        assert_eq!(place.open_to_others().unwrap(), None);
        fs::write(&path, "one").unwrap();
        for (mode, open) in [(0o600, false), (0o700, false), (0o640, true), (0o604, true)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(place.open_to_others().unwrap(), open.then_some(mode), "{mode:o}");
        }
    }

    #[test]
    fn a_link_is_followed_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real.yaml"), dir.path().join("link.yaml"));
        fs::write(&real, "one").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        Place { path: link.clone() }.replace("two", None).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "two");
    }

    #[test]
    fn what_is_read_only_is_left_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let place = Place { path: path.clone() };
        assert_eq!(place.locked(), None);
        fs::write(&path, "one").unwrap();
        assert_eq!(place.locked(), None);
        fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
        assert!(place.locked().unwrap().contains("read-only"));
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o555)).unwrap();
        assert!(place.locked().unwrap().contains("read-only"));
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let elsewhere = Place { path: "/nonexistent/dir/config.yaml".into() };
        assert!(!elsewhere.is_here() && elsewhere.locked().is_some());
    }
}
