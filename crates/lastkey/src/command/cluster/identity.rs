//! The files of a plugin's new identity, which are kept, or are not there.
//!
//! 1. They are made, with room for what will be in them.
//! 2. The plugin's key is made and written: it is kept before anybody relies on it.
//! 3. The server registers it, and signs for it.
//! 4. The certificate and the CA are written.
//!
//! What was made is taken away again where it is certain that the server has done nothing. Where
//! that is not certain the key stays: it may be registered.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Seek as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use lastkey_client::Error;

use crate::{
    daemon::{new_key_pair, signing_request},
    output::Failure,
};

/// More than one of the files takes: a certificate, or a few CAs.
const ROOM: usize = 32 << 10;

/// A key that was made and written, and room for what is issued for it.
pub(super) struct NewIdentity {
    pub(super) files: Files,
    /// The signing request (PEM) by its key.
    pub(super) csr_pem: String,
    certificate: Reserved,
    ca: Reserved,
}

impl NewIdentity {
    /// Makes the files and the key.
    pub(super) fn make(out: &Path) -> Result<Self, Failure> {
        let files = Files::in_directory(out)?;
        let certificate = Reserved::make(&files.certificate)?;
        let ca = Reserved::make(&files.ca)?;
        let key = Reserved::make(&files.key)?;
        let (pair, key_pem) = new_key_pair()?;
        let csr_pem = signing_request(&pair)?;
        key.keep(key_pem.as_bytes())?;
        Ok(Self { files, csr_pem, certificate, ca })
    }

    /// Its certificate was not issued. Where it may have been, `else_` says what to do, after where
    /// the key is.
    pub(super) fn not_issued(self, error: Error, else_: impl std::fmt::Display) -> Failure {
        let key = &self.files.key;
        if did_nothing(&error) {
            let _ = fs::remove_file(key);
            return error.into();
        }
        Failure::from(error)
            .and(format_args!("the new private key stays in {}, for {else_}", key.display()))
    }

    /// Writes what was issued. Where that fails, `else_` says what to do.
    pub(super) fn keep(
        self,
        certificate_pem: Option<&str>,
        ca_pem: &str,
        else_: impl std::fmt::Display,
    ) -> Result<Files, Failure> {
        let pem = certificate_pem.filter(|pem| !pem.is_empty());
        let pem = pem.ok_or_else(|| Failure::failed("the server's answer has no certificate"));
        let written = pem.and_then(|pem| self.certificate.keep(pem.as_bytes()));
        written.and_then(|_| self.ca.keep(ca_pem.as_bytes())).map_err(|why| why.and(else_))?;
        Ok(self.files)
    }
}

/// Whether it is certain that the server has made nothing: it was not reached, or refused.
pub(super) fn did_nothing(error: &Error) -> bool {
    match error {
        Error::Unreachable { .. } | Error::Tls { .. } => true,
        // 503 says that nothing was done, and any other 5xx says nothing.
        Error::Api(refusal) => refusal.status.is_client_error() || refusal.status.as_u16() == 503,
        _ => false,
    }
}

/// The files of a plugin's identity.
pub(super) struct Files {
    pub(super) directory: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
    pub(super) ca: PathBuf,
}

impl Files {
    /// Makes the directory, and refuses one that has such files already.
    pub(super) fn in_directory(out: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::file(out, &error);
        DirBuilder::new().recursive(true).mode(0o700).create(out).map_err(failed)?;
        let directory = fs::canonicalize(out).map_err(failed)?;
        let files = Self {
            certificate: directory.join("plugin.pem"),
            key: directory.join("plugin.key"),
            ca: directory.join("ca.pem"),
            directory,
        };
        for path in [&files.certificate, &files.key, &files.ca] {
            if path.exists() {
                return Err(Failure::failed(format_args!(
                    "{} exists already and is left as it is; give another directory with --out",
                    path.display()
                )));
            }
        }
        Ok(files)
    }
}

/// A new file with room for what will be in it. It is taken away again unless it is kept.
pub(super) struct Reserved {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl Reserved {
    pub(super) fn make(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::file(path, &error);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(failed)?;
        let mut reserved = Self { path: path.to_owned(), file, is_kept: false };
        let filled = reserved.file.write_all(&[0; ROOM]);
        filled.and_then(|()| reserved.file.sync_all()).map_err(failed)?;
        Ok(reserved)
    }

    /// Writes it, so that it is there after a loss of power, too.
    pub(super) fn keep(mut self, content: &[u8]) -> Result<PathBuf, Failure> {
        self.write(content).map_err(|error| Failure::file(&self.path, &error))?;
        self.is_kept = true;
        Ok(self.path.clone())
    }

    fn write(&mut self, content: &[u8]) -> io::Result<()> {
        self.file.rewind()?;
        self.file.write_all(content)?;
        self.file.set_len(content.len() as u64)?;
        self.file.sync_all()?;
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        File::open(directory)?.sync_all()
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_nothing_else_in_it() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        drop(Reserved::make(&path).unwrap());
        assert!(!path.exists(), "it was not kept");
        Reserved::make(&path).unwrap().keep(b"content").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"content");
        assert!(Reserved::make(&path).is_err(), "another one's file is left alone");
        assert_eq!(fs::read(&path).unwrap(), b"content");
    }
}
