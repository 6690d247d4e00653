//! The root key in a file.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use lastkey_crypto::{Entropy, KeyMaterial};
use lastkey_store::disk::{self, Access, Disk, DiskFile, FileSystem};
use zeroize::Zeroizing;

use super::{ROOT_KEY_BYTES, RootPrint, Seal, SealEntry, SealError, SealKind, SealRecord};

/// A file with more in it is none of ours.
const MAX_TEXT: usize = 128;

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
/// then; a start finds it in either. What cannot be looked at may be the root key of the store, and
/// stays.
#[derive(Debug)]
pub struct FileSeal {
    disk: Arc<dyn Disk>,
    path: PathBuf,
}

impl FileSeal {
    const MARK: &'static str = "lastkey-root-key-1 ";

    /// A seal in the file `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self::on(Arc::new(FileSystem), path)
    }

    /// The same on any disk.
    pub fn on(disk: Arc<dyn Disk>, path: impl Into<PathBuf>) -> Self {
        Self { disk, path: path.into() }
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

    /// Whole or not at all: half a key would help nobody, and block the next start.
    fn write_new(&self, path: &Path, root: &KeyMaterial) -> Result<(), SealError> {
        let mut text =
            Zeroizing::new(String::with_capacity(Self::MARK.len() + 2 * ROOT_KEY_BYTES + 1));
        text.push_str(Self::MARK);
        for byte in root.expose() {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from_digit(u32::from(nibble), 16).unwrap_or('0'));
            }
        }
        text.push('\n');
        disk::write_new(&*self.disk, path, text.as_bytes()).map_err(|error| io_error(path, error))
    }

    fn read(&self, path: &Path) -> Result<KeyMaterial, SealError> {
        let file = self.disk.open(path, Access::Read).map_err(|error| match error.kind() {
            ErrorKind::NotFound => SealError::Missing { path: path.to_owned() },
            _ => io_error(path, error),
        })?;
        check_permissions(path, &*file)?;
        let mut text = Zeroizing::new([0; MAX_TEXT]);
        let filled = disk::read_full(&*file, &mut text[..], 0);
        let filled = filled.map_err(|error| io_error(path, error))?;
        let root = str::from_utf8(&text[..filled]).ok().and_then(Self::parse_text);
        root.ok_or_else(|| SealError::Malformed { path: path.to_owned() })
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
    ///
    /// # Errors
    /// The file is there, and cannot be looked at: it may.
    fn holds(&self, path: &Path, print: Option<RootPrint>) -> Result<bool, SealError> {
        let Some(print) = print else { return Ok(false) };
        match self.read(path) {
            Ok(root) => Ok(RootPrint::of(&root) == print),
            Err(SealError::Missing { .. } | SealError::Malformed { .. }) => Ok(false),
            Err(unknown) => Err(unknown),
        }
    }

    /// Brings the files in line with the store's record.
    fn settle_now(&self, record: &SealRecord) -> Result<(), SealError> {
        if record.is_in_file() {
            return self.put_in_place(record.root);
        }
        let path = self.remove_stale(&self.path, record);
        let next = self.remove_stale(&self.next(), record);
        path.and(next)
    }

    /// Gives the root key with that print its place, if it still waits beside it.
    fn put_in_place(&self, print: Option<RootPrint>) -> Result<(), SealError> {
        let next = self.next();
        if self.holds(&next, print)? {
            let renamed = self.disk.rename(&next, &self.path);
            renamed.map_err(|error| io_error(&next, error))?;
            self.sync_directory()?;
        }
        Ok(())
    }

    /// Removes a file whose root key is under another seal now, or opens nothing any more.
    fn remove_stale(&self, path: &Path, record: &SealRecord) -> Result<(), SealError> {
        let print = match self.read(path) {
            Ok(root) => RootPrint::of(&root),
            Err(SealError::Missing { .. } | SealError::Malformed { .. }) => return Ok(()),
            // It may be one.
            Err(unknown) => return Err(unknown),
        };
        if !record.has_kept(print) {
            // Another store's root key is not ours to remove.
            if path == self.next() {
                tracing::warn!(
                    path = %path.display(),
                    "a root key lies here that a change of the seal was to bring, and the store does \
                     not know it: if that change was not made it opens nothing, and can be destroyed"
                );
                return Ok(());
            }
            tracing::warn!(
                path = %path.display(),
                "a root key lies here that is not known to this store, whose seal is no file: if it \
                 is an earlier one of this store, copies of the store from that time open with it; \
                 move it to a safe place, or destroy it"
            );
            return Ok(());
        }
        self.disk.remove(path).map_err(|error| io_error(path, error))?;
        self.sync_directory()
    }

    /// Removes what waits of a change that never came to be. The root key that the store's record
    /// names is none of that, whatever kept it from its place so far.
    fn make_room(&self, kept: &SealRecord) -> Result<(), SealError> {
        if kept.is_in_file() {
            self.put_in_place(kept.root)?;
        }
        let next = self.next();
        match self.disk.remove(&next) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error(&next, error)),
            _ => Ok(()),
        }
    }

    fn sync_directory(&self) -> Result<(), SealError> {
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let synced = self.disk.sync_directory(directory.unwrap_or(Path::new(".")));
        synced.map_err(|error| io_error(&self.path, error))
    }
}

fn io_error(path: &Path, source: io::Error) -> SealError {
    SealError::Io { path: path.to_owned(), source }
}

fn check_permissions(path: &Path, file: &dyn DiskFile) -> Result<(), SealError> {
    let disk::Rights { owner, mode } = file.rights().map_err(|error| io_error(path, error))?;
    if mode & 0o077 != 0 {
        return Err(SealError::Exposed { path: path.to_owned(), mode });
    }
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
        let root = match self.read(&self.path) {
            // A first start that was interrupted before the store knew the key.
            Ok(root) => root,
            Err(SealError::Missing { .. }) => {
                let root = KeyMaterial::generate(ROOT_KEY_BYTES, entropy);
                self.write_new(&self.path, &root)?;
                root
            }
            Err(other) => return Err(other),
        };
        Ok((root, SealEntry::File {}))
    }

    async fn wrap(
        &self,
        kind: SealKind,
        (root, kept): (&KeyMaterial, &SealRecord),
        _: &dyn Entropy,
    ) -> Result<SealEntry, SealError> {
        debug_assert_eq!(kind, SealKind::File);
        self.make_room(kept)?;
        self.write_new(&self.next(), root)?;
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
        // What is wrong with the one matters only where the other does not help.
        let in_place = matches!(self.holds(&self.path, print), Ok(true));
        if !in_place && self.holds(&self.next(), print)? {
            return self.read(&self.next());
        }
        self.read(&self.path)
    }

    async fn settle(&self, record: &SealRecord) {
        if let Err(error) = self.settle_now(record) {
            tracing::error!(
                path = %self.path.display(), %error,
                "the root key's file could not be brought up to date; the next change of the seal \
                 and the next start try again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        ffi::OsString,
        fs,
        os::unix::fs::PermissionsExt,
        sync::atomic::{AtomicBool, Ordering},
    };

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
        seal.wrap(SealKind::File, (&new, &before), &SystemEntropy).await.unwrap();
        // Killed before the store's transaction: the old one counts.
        seal.settle(&before).await;
        assert!(seal.unwrap(&FILE, before.root).await.unwrap().equals(&old));
        // Killed behind it: the new one counts, wherever it is.
        let after = before.next(RootPrint::of(&new), vec![FILE]);
        assert!(seal.unwrap(&FILE, after.root).await.unwrap().equals(&new));
        seal.settle(&after).await;
        assert!(!seal.next().exists());
        assert!(seal.unwrap(&FILE, after.root).await.unwrap().equals(&new));
        assert!(seal.read(seal.path()).unwrap().equals(&new));
    }

    /// The machine's file system, which has no file handle left, or refuses new names.
    #[derive(Debug, Default)]
    struct Ailing {
        no_open: AtomicBool,
        no_rename: AtomicBool,
        no_remove: AtomicBool,
    }

    impl Ailing {
        fn refuse(refused: &AtomicBool) -> io::Result<()> {
            match refused.load(Ordering::Relaxed) {
                true => Err(rustix::io::Errno::MFILE.into()),
                false => Ok(()),
            }
        }
    }

    impl Disk for Ailing {
        fn create_directory(&self, path: &Path) -> io::Result<()> {
            FileSystem.create_directory(path)
        }

        fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
            FileSystem.list(directory)
        }

        fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
            Self::refuse(&self.no_open)?;
            FileSystem.open(path, access)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            Self::refuse(&self.no_rename)?;
            FileSystem.rename(from, to)
        }

        fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
            FileSystem.rename_new(from, to)
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            Self::refuse(&self.no_remove)?;
            FileSystem.remove(path)
        }

        fn sync_directory(&self, directory: &Path) -> io::Result<()> {
            FileSystem.sync_directory(directory)
        }
    }

    fn drawn() -> KeyMaterial {
        KeyMaterial::generate(ROOT_KEY_BYTES, &SystemEntropy)
    }

    /// The store has the new root key, and its file is still beside its place: the next change must
    /// not take it for one of a change that never came to be.
    #[tokio::test]
    async fn the_root_key_of_the_store_is_removed_by_no_change_wherever_it_is() {
        let ailments: [fn(&Ailing) -> &AtomicBool; 2] =
            [|disk| &disk.no_rename, |disk| &disk.no_open];
        for ailment in ailments {
            let directory = tempfile::tempdir().unwrap();
            let disk = Arc::new(Ailing::default());
            let seal = FileSeal::on(disk.clone(), directory.path().join("root.key"));
            let (old, _) = seal.begin(&SystemEntropy).await.unwrap();
            let before = SealRecord::first(RootPrint::of(&old), FILE);
            let (new, newer) = (drawn(), drawn());
            seal.wrap(SealKind::File, (&new, &before), &SystemEntropy).await.unwrap();
            let after = before.next(RootPrint::of(&new), vec![FILE]);

            ailment(&disk).store(true, Ordering::Relaxed);
            seal.settle(&after).await;
            let refused = seal.wrap(SealKind::File, (&newer, &after), &SystemEntropy).await;
            assert!(matches!(refused, Err(SealError::Io { .. })), "{refused:?}");
            ailment(&disk).store(false, Ordering::Relaxed);
            assert!(seal.read(seal.path()).unwrap().equals(&old));
            assert!(seal.unwrap(&FILE, after.root).await.unwrap().equals(&new));

            seal.wrap(SealKind::File, (&newer, &after), &SystemEntropy).await.unwrap();
            assert!(seal.read(seal.path()).unwrap().equals(&new));
            assert!(seal.unwrap(&FILE, Some(RootPrint::of(&newer))).await.unwrap().equals(&newer));
            // That one never came to be, and makes room.
            let newest = drawn();
            seal.wrap(SealKind::File, (&newest, &after), &SystemEntropy).await.unwrap();
            assert!(seal.read(&seal.next()).unwrap().equals(&newest));
            assert!(seal.unwrap(&FILE, after.root).await.unwrap().equals(&new));
        }
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_looked_at_is_named_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let seal = FileSeal::new(directory.path().join("root.key"));
        let (old, _) = seal.begin(&SystemEntropy).await.unwrap();
        let before = SealRecord::first(RootPrint::of(&old), FILE);
        let new = drawn();
        seal.wrap(SealKind::File, (&new, &before), &SystemEntropy).await.unwrap();
        let after = before.next(RootPrint::of(&new), vec![FILE]);
        fs::set_permissions(seal.next(), fs::Permissions::from_mode(0o640)).unwrap();
        seal.settle(&after).await;
        let refused = seal.unwrap(&FILE, after.root).await.err();
        assert!(matches!(refused, Some(SealError::Exposed { path, .. }) if path == seal.next()));
        let refused = seal.wrap(SealKind::File, (&drawn(), &after), &SystemEntropy).await.err();
        assert!(matches!(refused, Some(SealError::Exposed { path, .. }) if path == seal.next()));
        // The old one is where it belongs, whatever is beside it.
        assert!(seal.unwrap(&FILE, before.root).await.unwrap().equals(&old));
        fs::set_permissions(seal.next(), fs::Permissions::from_mode(0o600)).unwrap();
        assert!(seal.unwrap(&FILE, after.root).await.unwrap().equals(&new));
    }

    fn token() -> SealEntry {
        SealEntry::Pkcs11(crate::seal::TokenEntry {
            mechanism: crate::seal::TokenMechanism::default(),
            token: "t".into(),
            serial: "1".into(),
            key: "k".into(),
            wrapped: Vec::new(),
        })
    }

    /// The second one never got its place; then both lay there for longer than the record's
    /// `previous` tells of them.
    #[tokio::test]
    async fn what_could_not_be_removed_goes_whenever_it_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let disk = Arc::new(Ailing::default());
        let seal = FileSeal::on(disk.clone(), directory.path().join("root.key"));
        let (first, _) = seal.begin(&SystemEntropy).await.unwrap();
        let record = SealRecord::first(RootPrint::of(&first), FILE);
        let second = drawn();
        seal.wrap(SealKind::File, (&second, &record), &SystemEntropy).await.unwrap();
        let mut record = record.next(RootPrint::of(&second), vec![FILE]);
        disk.no_rename.store(true, Ordering::Relaxed);
        seal.settle(&record).await;
        assert!(seal.read(seal.path()).unwrap().equals(&first));
        disk.no_remove.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            record = record.next(RootPrint::of(&drawn()), vec![token()]);
            seal.settle(&record).await;
            assert!(seal.path().exists() && seal.next().exists());
        }
        disk.no_remove.store(false, Ordering::Relaxed);
        seal.settle(&record).await;
        assert!(!seal.path().exists() && !seal.next().exists());
    }

    #[tokio::test]
    async fn a_file_goes_once_its_root_key_is_under_another_seal_and_no_other_does() {
        let directory = tempfile::tempdir().unwrap();
        let seal = FileSeal::new(directory.path().join("root.key"));
        let (old, _) = seal.begin(&SystemEntropy).await.unwrap();
        let new = KeyMaterial::generate(ROOT_KEY_BYTES, &SystemEntropy);
        let foreign = KeyMaterial::generate(ROOT_KEY_BYTES, &SystemEntropy);
        let of_others = SealRecord::first(RootPrint::of(&foreign), token());
        seal.settle(&of_others).await;
        assert!(seal.path().exists());
        let record = SealRecord::first(RootPrint::of(&old), FILE);
        seal.settle(&record.next(RootPrint::of(&new), vec![token()])).await;
        assert!(!seal.path().exists());
    }
}
