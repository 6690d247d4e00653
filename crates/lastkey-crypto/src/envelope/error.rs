//! Why an envelope could not be written, or does not open.

use std::io;

/// Why an envelope could not be written.
#[derive(Debug, thiserror::Error)]
pub enum EncryptError {
    /// The source could not be read.
    #[error("what is to be encrypted could not be read")]
    Read(#[source] io::Error),
    /// The sink could not be written.
    #[error("the encrypted file could not be written")]
    Write(#[source] io::Error),
}

/// Why a payload does not open.
#[derive(Debug, thiserror::Error)]
pub enum PayloadError {
    /// The data key is not the one the header commits to.
    #[error("the data key does not belong to this file")]
    WrongDataKey,
    /// A chunk is changed, moved, missing, or from another file; or the file was cut.
    #[error("the file is damaged or cut short in chunk {chunk}")]
    Damaged {
        /// Number of the chunk, from 0.
        chunk: u64,
    },
    /// The source could not be read.
    #[error("the file could not be read")]
    Read(#[source] io::Error),
    /// The sink could not be written.
    #[error("the decrypted file could not be written")]
    Write(#[source] io::Error),
}

impl From<PayloadError> for io::Error {
    fn from(error: PayloadError) -> Self {
        match error {
            PayloadError::Read(error) | PayloadError::Write(error) => error,
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}
