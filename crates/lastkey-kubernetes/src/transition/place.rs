//! The file that the apiservers' EncryptionConfiguration lies in.
//!
//! It is replaced as a whole: the new content is written beside it with the same owner and mode,
//! forced to disk and renamed into place, so that an apiserver reads the one or the other. What was
//! there before stays beside it, under a name with the time.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown},
    path::{Path, PathBuf},
};

use lastkey_crypto::mac::sha256;
use zeroize::Zeroizing;

use crate::encryption_config::MAX_FILE;

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
        // left behind by one that was killed
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let old = match fs::metadata(&path) {
            Ok(about) => Some(about),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let written = write(&new, text, old.as_ref()).and_then(|()| {
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

fn write(path: &Path, text: &str, like: Option<&fs::Metadata>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(like) = like {
        let now = file.metadata()?;
        if (now.uid(), now.gid()) != (like.uid(), like.gid()) {
            fchown(&file, Some(like.uid()), Some(like.gid()))?;
        }
        file.set_permissions(Permissions::from_mode(like.mode() & 0o7777))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn parts(path: &Path) -> io::Result<(&Path, std::borrow::Cow<'_, str>)> {
    let parts = path.parent().zip(path.file_name());
    let (directory, name) = parts.ok_or(io::ErrorKind::InvalidInput)?;
    Ok((directory, name.to_string_lossy()))
}

/// Gives the file a second name, which it keeps. One that was killed may have done so already.
fn keep(path: &Path, kept: &Path) -> io::Result<()> {
    match fs::hard_link(path, kept) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let (own, other) = (fs::metadata(path)?, fs::symlink_metadata(kept)?);
            let same = (own.dev(), own.ino()) == (other.dev(), other.ino());
            if same { Ok(()) } else { Err(error) }
        }
        done => done,
    }
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
                // One that was killed has kept it already.
                fs::hard_link(&path, &kept).unwrap();
            }
            place.replace(text, Some(&kept)).unwrap();
            assert_eq!(fs::read_to_string(&kept).unwrap(), before);
            assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o7777, 0o640);
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
