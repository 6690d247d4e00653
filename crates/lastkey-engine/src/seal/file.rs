//! The root key in a file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use lastkey_crypto::{Entropy, KeyMaterial};
use zeroize::Zeroizing;

use super::{ROOT_KEY_BYTES, RootPrint, Seal, SealEntry, SealError, SealKind, SealRecord};

/// The root key in a file of mode 0600, as hexadecimal text after a version mark.
///
/// ```text
/// lastkey-root-key-1 <64 hex digits>\n
/// ```
///
/// Whoever can read the file can read every key: fit for a first look and for machines whose
/// disk is protected otherwise.
///
/// A new root key lies in `root.key.next` until the store knows it, and takes the old one's place
/// then; a start finds it in either.
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

    /// Where a new root key waits until the store knows it.
    fn next(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".next");
        name.into()
    }

    fn write_new(path: &Path, root: &KeyMaterial) -> Result<(), SealError> {
        let mut text =
            Zeroizing::new(String::with_capacity(Self::MARK.len() + 2 * ROOT_KEY_BYTES + 1));
        text.push_str(Self::MARK);
        for byte in root.expose() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        text.push('\n');
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            sync_directory_of(path)
        };
        write().map_err(|error| {
            if error.kind() != io::ErrorKind::AlreadyExists {
                // A file that holds half a key helps nobody and would block the next start.
                let _ = fs::remove_file(path);
            }
            io_error(path, error)
        })
    }

    fn read(path: &Path) -> Result<KeyMaterial, SealError> {
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SealError::Missing { path: path.to_owned() },
            _ => io_error(path, error),
        })?;
        check_permissions(path, &file.metadata().map_err(|error| io_error(path, error))?)?;
        let mut text = Zeroizing::new(String::with_capacity(128));
        file.take(128).read_to_string(&mut text).map_err(|error| io_error(path, error))?;
        Self::parse_text(&text).ok_or_else(|| SealError::Malformed { path: path.to_owned() })
    }

    pub(crate) fn parse_text(text: &str) -> Option<KeyMaterial> {
        let digits = text
            .strip_prefix(Self::MARK)
            .map(|rest| rest.strip_suffix('\n').unwrap_or(rest))
            .filter(|digits| digits.len() == 2 * ROOT_KEY_BYTES)?;
        let mut decoded = Ok(());
        let root = KeyMaterial::build(ROOT_KEY_BYTES, |out| {
            decoded = hex::decode_to_slice(digits, out);
        });
        decoded.is_ok().then_some(root)
    }

    /// Whether the file holds the root key with that print.
    fn holds(path: &Path, print: Option<RootPrint>) -> bool {
        print.is_some_and(|print| Self::read(path).is_ok_and(|root| RootPrint::of(&root) == print))
    }

    /// Brings the file's last word in line with the store's record.
    fn settle_now(&self, record: &SealRecord) -> io::Result<()> {
        let next = self.next();
        if record.seals.iter().any(|entry| entry.kind() == SealKind::File) {
            if Self::holds(&next, record.root) {
                fs::rename(&next, &self.path)?;
                sync_directory_of(&self.path)?;
            }
            return Ok(());
        }
        for stale in [&self.path, &next] {
            // Another store's root key is not ours to remove.
            if Self::holds(stale, record.previous) || Self::holds(stale, record.root) {
                fs::remove_file(stale)?;
                sync_directory_of(stale)?;
            }
        }
        Ok(())
    }
}

fn io_error(path: &Path, source: io::Error) -> SealError {
    SealError::Io { path: path.to_owned(), source }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn check_permissions(path: &Path, metadata: &fs::Metadata) -> Result<(), SealError> {
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SealError::Exposed { path: path.to_owned(), mode });
    }
    let owner = metadata.uid();
    if owner != rustix::process::geteuid().as_raw() && owner != 0 {
        return Err(SealError::Foreign { path: path.to_owned(), owner });
    }
    Ok(())
}

#[async_trait]
impl Seal for FileSeal {
    fn kind(&self) -> SealKind {
        SealKind::File
    }

    async fn begin(&self, entropy: &dyn Entropy) -> Result<(KeyMaterial, SealEntry), SealError> {
        let root = match Self::read(&self.path) {
            // A first start that was interrupted before the store knew the key.
            Ok(root) => root,
            Err(SealError::Missing { .. }) => {
                let root = KeyMaterial::generate(ROOT_KEY_BYTES, entropy);
                Self::write_new(&self.path, &root)?;
                root
            }
            Err(other) => return Err(other),
        };
        Ok((root, SealEntry::File {}))
    }

    async fn wrap(
        &self,
        kind: SealKind,
        root: &KeyMaterial,
        _: &dyn Entropy,
    ) -> Result<SealEntry, SealError> {
        debug_assert_eq!(kind, SealKind::File);
        let next = self.next();
        match fs::remove_file(&next) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(&next, error));
            }
            // What was there is of a change that never came to be.
            _ => Self::write_new(&next, root)?,
        }
        Ok(SealEntry::File {})
    }

    async fn unwrap(
        &self,
        entry: &SealEntry,
        print: Option<RootPrint>,
    ) -> Result<KeyMaterial, SealError> {
        match entry {
            SealEntry::File {} => {}
            SealEntry::Shamir(_) => return Err(SealError::NeedsShares),
            SealEntry::Pkcs11(_) => return Err(super::choice::no_token()),
        }
        if !Self::holds(&self.path, print) && Self::holds(&self.next(), print) {
            return Self::read(&self.next());
        }
        Self::read(&self.path)
    }

    async fn settle(&self, record: &SealRecord) {
        if let Err(error) = self.settle_now(record) {
            tracing::error!(
                path = %self.path.display(), %error,
                "the root key's file could not be brought up to date; the next start tries again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use lastkey_crypto::SystemEntropy;

    use super::*;

    const FILE: SealEntry = SealEntry::File {};

    #[tokio::test]
    async fn what_was_kept_comes_back_and_exposure_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let seal = FileSeal::new(directory.path().join("root.key"));
        assert!(matches!(seal.unwrap(&FILE, None).await, Err(SealError::Missing { .. })));
        let (made, entry) = seal.begin(&SystemEntropy).await.unwrap();
        assert!(seal.unwrap(&entry, None).await.unwrap().equals(&made));
        assert!(seal.begin(&SystemEntropy).await.unwrap().0.equals(&made));

        fs::set_permissions(seal.path(), fs::Permissions::from_mode(0o640)).unwrap();
        let exposed = seal.unwrap(&FILE, None).await;
        assert!(matches!(exposed, Err(SealError::Exposed { mode: 0o640, .. })));
        fs::set_permissions(seal.path(), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(seal.path(), "lastkey-root-key-1 00\n").unwrap();
        assert!(matches!(seal.unwrap(&FILE, None).await, Err(SealError::Malformed { .. })));
    }

    #[tokio::test]
    async fn a_new_root_key_waits_beside_the_old_one_until_the_store_knows_it() {
        let directory = tempfile::tempdir().unwrap();
        let seal = FileSeal::new(directory.path().join("root.key"));
        let (old, _) = seal.begin(&SystemEntropy).await.unwrap();
        let before = SealRecord::first(RootPrint::of(&old), FILE);
        let new = KeyMaterial::generate(ROOT_KEY_BYTES, &SystemEntropy);
        seal.wrap(SealKind::File, &new, &SystemEntropy).await.unwrap();
        // Killed before the store's transaction: the old one counts.
        seal.settle(&before).await;
        assert!(seal.unwrap(&FILE, before.root).await.unwrap().equals(&old));
        // Killed behind it: the new one counts, wherever it is.
        let after = before.next(RootPrint::of(&new), vec![FILE]);
        assert!(seal.unwrap(&FILE, after.root).await.unwrap().equals(&new));
        seal.settle(&after).await;
        assert!(!seal.next().exists());
        assert!(seal.unwrap(&FILE, after.root).await.unwrap().equals(&new));
        assert!(FileSeal::read(seal.path()).unwrap().equals(&new));
    }

    #[tokio::test]
    async fn a_file_goes_once_its_root_key_is_under_another_seal_and_no_other_does() {
        let directory = tempfile::tempdir().unwrap();
        let seal = FileSeal::new(directory.path().join("root.key"));
        let (old, _) = seal.begin(&SystemEntropy).await.unwrap();
        let token = SealEntry::Pkcs11(crate::seal::TokenEntry {
            mechanism: crate::seal::TokenMechanism::default(),
            token: "t".into(),
            serial: "1".into(),
            key: "k".into(),
            wrapped: Vec::new(),
        });
        let new = KeyMaterial::generate(ROOT_KEY_BYTES, &SystemEntropy);
        let foreign = KeyMaterial::generate(ROOT_KEY_BYTES, &SystemEntropy);
        let of_others = SealRecord::first(RootPrint::of(&foreign), token.clone());
        seal.settle(&of_others).await;
        assert!(seal.path().exists());
        let record = SealRecord::first(RootPrint::of(&old), FILE);
        seal.settle(&record.next(RootPrint::of(&new), vec![token])).await;
        assert!(!seal.path().exists());
    }
}
