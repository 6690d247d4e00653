//! The CA by which the servers are known: read again when its file has changed.

use std::{fs, path::PathBuf};

use lastkey_crypto::mac::sha256;

use crate::output::Failure;

/// The CA file, and what it held when it was taken up last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Roots {
    /// None where nobody looks at it.
    file: Option<PathBuf>,
    print: Option<[u8; 32]>,
}

impl Roots {
    /// One that has not been read.
    pub(super) fn of(file: PathBuf) -> Self {
        Self { file: Some(file), print: None }
    }

    /// The same with what the file holds now.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn read(&self) -> Result<Self, Failure> {
        let Some(file) = &self.file else { return Ok(self.clone()) };
        let pem = fs::read(file).map_err(|error| Failure::file(file, &error))?;
        Ok(Self { file: self.file.clone(), print: Some(sha256(&[&pem])) })
    }
}
