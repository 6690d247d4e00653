//! The key that signs checkpoints, in a file beside the log: made once, read at each opening.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use lastkey_crypto::{Entropy, signing::SigningKey};
use lastkey_store::disk::{self, Access, Disk, FileSystem};
use zeroize::Zeroizing;

/// A key file is shorter.
const MAX_BYTES: usize = 4096;

/// A private key in PEM (PKCS #8), for its owner alone.
#[derive(Clone, Debug)]
pub struct KeyFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl KeyFile {
    /// The file `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::on(Arc::new(FileSystem), path)
    }

    /// The same on any disk.
    pub fn on(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Self {
        Self { disk, path: path.into() }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key, made if there is none; and whether it was.
    ///
    /// # Errors
    /// As [`read`](Self::read), or the file cannot be made.
    pub fn read_or_make(&self, entropy: &dyn Entropy) -> io::Result<(SigningKey, bool)> {
        match self.read() {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            key => return key.map(|key| (key, false)),
        }
        let key = SigningKey::generate(entropy);
        disk::write_new(&*self.disk, &self.path, key.to_pem().expose())?;
        Ok((key, true))
    }

    /// The key.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`]; others than the owner can read the file; it holds no key; or the
    /// disk cannot read it.
    pub fn read(&self) -> io::Result<SigningKey> {
        let file = self.disk.open(&self.path, Access::Read)?;
        let mode = file.rights()?.mode;
        if mode & 0o077 != 0 {
            return Err(io::Error::new(
                ErrorKind::PermissionDenied,
                format!("others can read the key (mode {mode:o}); run chmod 600 on it"),
            ));
        }
        let mut text = Zeroizing::new([0; MAX_BYTES]);
        let filled = disk::read_full(&*file, &mut text[..], 0)?;
        let invalid = |error| io::Error::new(ErrorKind::InvalidData, error);
        let text = str::from_utf8(&text[..filled]).map_err(|error| invalid(error.to_string()))?;
        SigningKey::from_pem(text).map_err(|error| invalid(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    };

    use lastkey_crypto::SystemEntropy;

    use super::*;

    #[test]
    fn a_key_is_made_once_for_its_owner_alone() {
        let place = tempfile::tempdir().unwrap();
        let file = KeyFile::new(place.path().join("checkpoint.key"));
        assert_eq!(file.read().unwrap_err().kind(), ErrorKind::NotFound);
        let (made, new) = file.read_or_make(&SystemEntropy).unwrap();
        assert!(new);
        assert_eq!(fs::metadata(file.path()).unwrap().mode() & 0o777, 0o600);
        let (read, new) = file.read_or_make(&SystemEntropy).unwrap();
        assert!(!new);
        assert_eq!(read.public(), made.public());
        let set = |mode| fs::set_permissions(file.path(), fs::Permissions::from_mode(mode));
        set(0o640).unwrap();
        assert!(file.read().unwrap_err().to_string().contains("chmod 600"));
        assert!(file.read_or_make(&SystemEntropy).is_err());
        set(0o600).unwrap();
        fs::write(file.path(), "nonsense").unwrap();
        assert_eq!(file.read_or_make(&SystemEntropy).unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
