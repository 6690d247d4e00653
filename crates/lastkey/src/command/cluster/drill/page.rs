//! The report as a file: what cannot be written is found out before anything is started, not after
//! half an hour.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::output::Failure;

/// A page that can be written, as far as that can be known.
#[derive(Debug)]
pub(super) struct Page {
    path: PathBuf,
    /// What is there and is no ordinary file is written into, never replaced.
    into: Option<File>,
}

impl Page {
    pub(super) fn at(path: &Path) -> Result<Self, Failure> {
        let failed = |error: &io::Error| Failure::file(path, error);
        let into = match path.metadata() {
            Ok(there) if there.is_dir() => {
                return Err(failed(&io::ErrorKind::IsADirectory.into()));
            }
            Ok(there) if !there.is_file() => {
                Some(OpenOptions::new().write(true).open(path).map_err(|error| failed(&error))?)
            }
            _ => {
                // gone at once: nothing is to be seen before the report is
                Beside::create(path).map_err(|error| failed(&error))?;
                None
            }
        };
        Ok(Self { path: path.to_owned(), into })
    }

    /// Writes it whole, or leaves what was there.
    pub(super) fn write(self, content: &str) -> Result<(), Failure> {
        let failed = |error: &io::Error| Failure::file(&self.path, error);
        if let Some(mut file) = self.into {
            return file.write_all(content.as_bytes()).map_err(|error| failed(&error));
        }
        let replace = || {
            let mut beside = Beside::create(&self.path)?;
            beside.file.write_all(content.as_bytes())?;
            std::fs::rename(&beside.path, &self.path)
        };
        replace().map_err(|error| failed(&error))
    }
}

/// A file beside another one; removed when dropped, unless it was given the other's name.
struct Beside {
    file: File,
    path: PathBuf,
}

impl Beside {
    fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let path = path.with_file_name(hidden);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_beforehand_whether_it_can_be_written() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("report.html");
        let page = Page::at(&path).unwrap();
        assert!(!path.exists(), "nothing is there before the report is");
        page.write("one").unwrap();
        Page::at(&path).unwrap().write("two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left beside");
        assert!(Page::at(place.path()).unwrap_err().to_string().contains("directory"));
        let nowhere = place.path().join("nowhere/report.html");
        assert!(Page::at(&nowhere).unwrap_err().to_string().contains("nowhere/report.html"));
        // a device stays what it is
        Page::at(Path::new("/dev/null")).unwrap().write("three").unwrap();
        assert!(!Path::new("/dev/null").metadata().unwrap().is_file());
    }
}
