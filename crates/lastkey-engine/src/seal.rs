//! What protects the root key at rest.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use lastkey_crypto::{Entropy, KeyMaterial};
use zeroize::Zeroize;

/// The length of a root key in bytes.
pub const ROOT_KEY_BYTES: usize = 32;

/// Why a seal did not open or close.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// There is a store but no root key for it.
    #[error(
        "{path} is missing: it holds the root key, and without it this store cannot be opened; \
         put it back from your backup"
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The root key file can be read by others.
    #[error("{path} can be read by others (mode {mode:03o}); run: chmod 600 {path}")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The root key file belongs to somebody else.
    #[error("{path} belongs to user {owner}, not to the user this process runs as")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// The file is not a root key.
    #[error("{path} is not a root key file; put the right one back from your backup")]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Keeps the root key.
#[async_trait]
pub trait Seal: Send + Sync + 'static {
    /// `file`, `shamir`, `pkcs11`, …: the kind as status shows it.
    fn kind(&self) -> &'static str;

    /// Makes and keeps a new root key, for a new store.
    ///
    /// # Errors
    /// [`SealError`]; nothing was kept then.
    async fn initialise(&self, entropy: &dyn Entropy) -> Result<KeyMaterial, SealError>;

    /// The root key that is kept.
    ///
    /// # Errors
    /// [`SealError`].
    async fn unseal(&self) -> Result<KeyMaterial, SealError>;
}

/// The root key in a file of mode 0600, as hexadecimal text after a version mark.
///
/// ```text
/// lastkey-root-key-1 <64 hex digits>\n
/// ```
///
/// Whoever can read the file can read every key: fit for a first look and for machines whose
/// disk is protected otherwise.
#[derive(Debug)]
pub struct FileSeal {
    path: PathBuf,
}

impl FileSeal {
    const MARK: &'static str = "lastkey-root-key-1 ";

    /// A seal in the file `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn io(&self, source: io::Error) -> SealError {
        SealError::Io { path: self.path.clone(), source }
    }

    fn write_new(&self, root: &KeyMaterial) -> io::Result<()> {
        let mut text = String::with_capacity(Self::MARK.len() + 2 * ROOT_KEY_BYTES + 1);
        text.push_str(Self::MARK);
        for byte in root.expose() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        text.push('\n');
        let written =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path).and_then(
                |mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()),
            );
        text.zeroize();
        written?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        File::open(directory)?.sync_all()
    }

    fn check_permissions(&self, metadata: &fs::Metadata) -> Result<(), SealError> {
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SealError::Exposed { path: self.path.clone(), mode });
        }
        let owner = metadata.uid();
        if owner != rustix::process::geteuid().as_raw() && owner != 0 {
            return Err(SealError::Foreign { path: self.path.clone(), owner });
        }
        Ok(())
    }

    fn parse(&self, text: &str) -> Result<KeyMaterial, SealError> {
        let malformed = || SealError::Malformed { path: self.path.clone() };
        let digits = text
            .strip_prefix(Self::MARK)
            .map(|rest| rest.strip_suffix('\n').unwrap_or(rest))
            .filter(|digits| digits.len() == 2 * ROOT_KEY_BYTES)
            .ok_or_else(malformed)?;
        let mut bytes = [0u8; ROOT_KEY_BYTES];
        let decoded = hex::decode_to_slice(digits, &mut bytes);
        let root = KeyMaterial::from_slice(&bytes);
        bytes.zeroize();
        decoded.map_err(|_| malformed())?;
        Ok(root)
    }
}

#[async_trait]
impl Seal for FileSeal {
    fn kind(&self) -> &'static str {
        "file"
    }

    async fn initialise(&self, entropy: &dyn Entropy) -> Result<KeyMaterial, SealError> {
        match self.unseal().await {
            // A first start that was interrupted before the store knew the key.
            Ok(root) => return Ok(root),
            Err(SealError::Missing { .. }) => {}
            Err(other) => return Err(other),
        }
        let root = KeyMaterial::generate(ROOT_KEY_BYTES, entropy);
        self.write_new(&root).map_err(|e| {
            // A file that holds half a key helps nobody and would block the next start.
            let _ = fs::remove_file(&self.path);
            self.io(e)
        })?;
        Ok(root)
    }

    async fn unseal(&self) -> Result<KeyMaterial, SealError> {
        let file = File::open(&self.path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => SealError::Missing { path: self.path.clone() },
            _ => self.io(e),
        })?;
        self.check_permissions(&file.metadata().map_err(|e| self.io(e))?)?;
        let mut text = String::with_capacity(128);
        let read = file.take(128).read_to_string(&mut text).map_err(|e| self.io(e));
        let root = read.and_then(|_| self.parse(&text));
        text.zeroize();
        root
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use lastkey_crypto::SystemEntropy;

    use super::*;

    #[tokio::test]
    async fn what_was_kept_comes_back_and_exposure_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let seal = FileSeal::new(directory.path().join("root.key"));
        assert!(matches!(seal.unseal().await, Err(SealError::Missing { .. })));
        let made = seal.initialise(&SystemEntropy).await.unwrap();
        assert_eq!(seal.unseal().await.unwrap().expose(), made.expose());
        assert_eq!(seal.initialise(&SystemEntropy).await.unwrap().expose(), made.expose());

        fs::set_permissions(seal.path(), fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(seal.unseal().await, Err(SealError::Exposed { mode: 0o640, .. })));
        fs::set_permissions(seal.path(), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(seal.path(), "lastkey-root-key-1 00\n").unwrap();
        assert!(matches!(seal.unseal().await, Err(SealError::Malformed { .. })));
    }
}
