//! Where a plugin's identity lies: certificate and key in one file, or in two.
//!
//! It is replaced whole. One file is renamed over the other. Of two, the new key is written beside
//! the old one first (`.next`), then the certificate is replaced, then the key; a crash in between
//! leaves a certificate that fits the key beside, which the next start puts in place.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use lastkey_crypto::{ClusterId, mac::sha256};
use lastkey_engine::Timestamp;
use rcgen::{KeyPair, PublicKeyData as _};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _};
use zeroize::Zeroizing;

use crate::{
    daemon::{
        data_dir::replace,
        identity::{new_key_pair, signing_request},
    },
    output::Failure,
};

/// How the name of a plugin's certificate begins.
const SCHEME: &str = "lastkey://cluster/";

/// More than certificate and key have, in bytes.
const TRIAL: usize = 8 << 10;

/// Whose turn it is to replace the files, where several processes go by them.
#[derive(Debug)]
pub(super) enum Turn {
    /// This process's, until this is dropped.
    Ours(#[allow(dead_code, reason = "dropping it ends the turn")] Option<fs::File>),
    /// Another one's.
    Theirs,
}

/// The files of one identity.
#[derive(Clone, Debug)]
pub(crate) struct IdentityFiles {
    /// The certificate, and the key as well if it is the same path.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// What lies there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// SHA-256 of the certificate.
    pub(crate) print: [u8; 32],
    /// Whose plugin it names.
    pub(crate) cluster: Option<ClusterId>,
}

impl Held {
    /// Whether a plugin that goes by `shown` may go by this from now on. What a node was let into
    /// that asks for one cluster (`asked_for`) is its, whatever it had before.
    ///
    /// # Errors
    /// It is another cluster's: what the plugin has written would be unreadable for it, and what it
    /// will write, for the others of its own.
    pub(super) fn fits(&self, shown: &Self, asked_for: Option<ClusterId>) -> Result<(), Failure> {
        match (self.cluster, shown.cluster) {
            (Some(new), _) if asked_for == Some(new) => Ok(()),
            (Some(new), Some(old)) if new != old => Err(Failure::failed(format_args!(
                "it is a certificate of the cluster {new}, and this plugin works for the cluster {old}: \
                 `lastkey cluster certificate {old} --out DIR` on the server's machine makes one of \
                 that; restart the plugin if it shall work for {new}, for which everything that was \
                 written for {old} is unreadable"
            ))),
            _ => Ok(()),
        }
    }
}

impl IdentityFiles {
    /// Certificate and key in one file of the state directory.
    pub(crate) fn in_directory(directory: &Path) -> Self {
        let both = directory.join("identity.pem");
        Self { certificate: both.clone(), key: both }
    }

    fn is_one(&self) -> bool {
        self.certificate == self.key
    }

    fn beside(&self) -> PathBuf {
        let mut name = self.key.clone().into_os_string();
        name.push(".next");
        name.into()
    }

    /// Makes the directory where that is wanted, and refuses one in which others could replace the
    /// key. Finishes what a crash has interrupted.
    pub(crate) fn prepare(&self, make: bool) -> Result<(), Failure> {
        if let Some(directory) = self.key.parent().filter(|_| make) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|error| Failure::file(directory, &error))?;
            safe(directory)?;
        }
        let beside = self.beside();
        let _turn = match self.turn() {
            // It finishes what it has begun.
            Turn::Theirs => return Ok(()),
            ours => ours,
        };
        if !self.is_one() && beside.exists() && self.load().is_err() {
            let there = Self { certificate: self.certificate.clone(), key: beside.clone() };
            if let Ok(Some(_)) = there.load() {
                fs::rename(&beside, &self.key).map_err(|error| Failure::file(&self.key, &error))?;
            }
        }
        Ok(())
    }

    /// What lies there; `None` if nothing does.
    ///
    /// # Errors
    /// The files cannot be read, or do not belong together.
    pub(super) fn load(&self) -> Result<Option<Held>, Failure> {
        let read = |path: &Path| match fs::read(path) {
            Ok(bytes) => Ok(Some(Zeroizing::new(bytes))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::file(path, &error)),
        };
        let (Some(certificate), Some(key)) = (read(&self.certificate)?, read(&self.key)?) else {
            return Ok(None);
        };
        let wrong = |path: &Path, what| {
            Failure::failed(format_args!("{} holds no {what} in PEM", path.display()))
        };
        let der = CertificateDer::from_pem_slice(&certificate)
            .map_err(|_| wrong(&self.certificate, "certificate"))?;
        let (_, parsed) = X509Certificate::from_der(&der)
            .map_err(|_| wrong(&self.certificate, "X.509 certificate"))?;
        let key = std::str::from_utf8(&key).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
        let key = key.ok_or_else(|| wrong(&self.key, "private key"))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(Failure::failed(format_args!(
                "{} is not the key of the certificate in {}",
                self.key.display(),
                self.certificate.display()
            )));
        }
        let at = |seconds: i64| Timestamp::from_millis(seconds.saturating_mul(1000));
        Ok(Some(Held {
            not_before: at(parsed.validity().not_before.timestamp()),
            not_after: at(parsed.validity().not_after.timestamp()),
            print: sha256(&[&der]),
            cluster: cluster_of(&parsed),
        }))
    }

    /// Whether this process may replace the files now. It may until that is dropped.
    pub(super) fn turn(&self) -> Turn {
        let Ok(key) = fs::File::open(&self.key) else { return Turn::Ours(None) };
        // Not the directory, which the plugin's records may hold.
        match flock(&key, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Turn::Theirs,
            // A file system without locks: whoever replaces files replaces them whole.
            Err(_) => return Turn::Ours(None),
        }
        let is_same = |now: &fs::Metadata, held: &fs::Metadata| {
            (now.dev(), now.ino()) == (held.dev(), held.ino())
        };
        match (fs::metadata(&self.key), key.metadata()) {
            (Ok(now), Ok(held)) if is_same(&now, &held) => Turn::Ours(Some(key)),
            // It was replaced meanwhile; another look has the new one.
            _ => Turn::Theirs,
        }
    }

    /// Whether another identity could be put in place of the one that is there.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn can_be_replaced(&self) -> Result<(), Failure> {
        for path in [&self.certificate, &self.key] {
            let mut name = path.clone().into_os_string();
            name.push(".try");
            let trial = PathBuf::from(name);
            // A full disk takes an empty file.
            let written = fs::write(&trial, [b'\n'; TRIAL]);
            let _ = fs::remove_file(&trial);
            written.map_err(|error| {
                Failure::file(&trial, &error).and("its directory has to be writable for the plugin")
            })?;
        }
        Ok(())
    }

    /// Puts another identity in place of the one that is there.
    pub(super) fn store(&self, certificate_pem: &str, key_pem: &str) -> Result<(), Failure> {
        if self.is_one() {
            let both = Zeroizing::new(format!("{key_pem}{certificate_pem}"));
            return replace(&self.key, both.as_bytes(), 0o600);
        }
        let beside = self.beside();
        replace(&beside, key_pem.as_bytes(), 0o600)?;
        replace(&self.certificate, certificate_pem.as_bytes(), 0o600)
            .inspect_err(|_| drop(fs::remove_file(&beside)))?;
        let moved = fs::rename(&beside, &self.key);
        let directory = self.key.parent().unwrap_or(Path::new("."));
        moved
            .and_then(|()| fs::File::open(directory)?.sync_all())
            .map_err(|error| Failure::file(&self.key, &error))
    }

    fn waiting_key(&self) -> PathBuf {
        self.key.with_extension("key")
    }

    /// The key with which this plugin asks to enrol, made if there is none: it outlives a restart,
    /// so that what was approved stays what asks. Answers a signing request as well.
    pub(super) fn asking(&self) -> Result<(String, Zeroizing<String>), Failure> {
        let path = self.waiting_key();
        let kept = fs::read_to_string(&path).map(Zeroizing::new).ok();
        let kept = kept.and_then(|pem| Some((KeyPair::from_pem(&pem).ok()?, pem)));
        let (pair, pem) = match kept {
            Some(kept) => kept,
            None => {
                let (pair, pem) = new_key_pair()?;
                replace(&path, pem.as_bytes(), 0o600)?;
                (pair, pem)
            }
        };
        Ok((signing_request(&pair)?, pem))
    }

    /// Keeps what was issued for the key that asked, which is of no more use alone.
    pub(super) fn let_in(&self, certificate_pem: &str, key_pem: &str) -> Result<(), Failure> {
        self.store(certificate_pem, key_pem)?;
        let _ = fs::remove_file(self.waiting_key());
        Ok(())
    }
}

/// The cluster that a plugin's certificate names (`lastkey://cluster/<id>/…`).
fn cluster_of(certificate: &X509Certificate<'_>) -> Option<ClusterId> {
    let (id, _) = plugin_of(certificate)?;
    Some(id)
}

/// The cluster and the plugin that a certificate names, the latter as `plugin/NAME` or `node/NAME`.
pub(crate) fn plugin_of<'a>(certificate: &X509Certificate<'a>) -> Option<(ClusterId, &'a str)> {
    let names = certificate.subject_alternative_name().ok()??;
    let uri = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix(SCHEME),
        _ => None,
    })?;
    let (id, name) = uri.split_once('/')?;
    Some((id.parse().ok()?, name))
}

/// Whether nobody but us and root can put files into a directory.
fn safe(directory: &Path) -> Result<(), Failure> {
    let found = fs::metadata(directory).map_err(|error| Failure::file(directory, &error))?;
    let us = rustix::process::geteuid().as_raw();
    if found.uid() != us && found.uid() != 0 {
        return Err(Failure::failed(format_args!(
            "{path} belongs to another user, who could replace the plugin's key; run: chown {us} \
             {path}",
            path = directory.display()
        )));
    }
    if found.permissions().mode() & 0o022 != 0 {
        return Err(Failure::failed(format_args!(
            "others can write to {path} and replace the plugin's key; run: chmod go-w {path}",
            path = directory.display()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rcgen::CertificateParams;

    use super::*;

    fn made() -> (String, Zeroizing<String>) {
        let (pair, key) = new_key_pair().unwrap();
        (CertificateParams::default().self_signed(&pair).unwrap().pem(), key)
    }

    fn two(place: &Path) -> IdentityFiles {
        IdentityFiles { certificate: place.join("plugin.pem"), key: place.join("plugin.key") }
    }

    #[test]
    fn an_identity_is_replaced_whole() {
        let place = tempfile::tempdir().unwrap();
        for files in [two(place.path()), IdentityFiles::in_directory(place.path())] {
            files.prepare(true).unwrap();
            assert_eq!(files.load().unwrap(), None);
            let mut seen = Vec::new();
            for _ in 0..2 {
                let (certificate, key) = made();
                files.store(&certificate, &key).unwrap();
                seen.push(files.load().unwrap().unwrap().print);
            }
            assert_ne!(seen[0], seen[1]);
            let mode = fs::metadata(&files.key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            assert!(!files.beside().exists());
        }
    }

    /// A crash at each step leaves one identity or the other, never a mixture.
    #[test]
    fn a_crash_between_certificate_and_key_is_put_right() {
        let place = tempfile::tempdir().unwrap();
        let files = two(place.path());
        let ((old, old_key), (new, new_key)) = (made(), made());
        files.store(&old, &old_key).unwrap();
        let before = files.load().unwrap();
        replace(&files.beside(), new_key.as_bytes(), 0o600).unwrap();
        files.prepare(false).unwrap();
        assert_eq!(files.load().unwrap(), before, "the certificate was not replaced yet");
        replace(&files.certificate, new.as_bytes(), 0o600).unwrap();
        assert!(files.load().is_err(), "they do not fit");
        files.prepare(false).unwrap();
        let after = files.load().unwrap();
        assert!(after.is_some() && after != before);
        // What fits nothing is left alone, and said.
        replace(&files.key, old_key.as_bytes(), 0o600).unwrap();
        files.prepare(false).unwrap();
        assert!(files.load().unwrap_err().to_string().contains("plugin.key"));
    }

    #[test]
    fn who_replaces_the_files_is_alone_with_it() {
        let place = tempfile::tempdir().unwrap();
        let (ours, theirs) = (two(place.path()), two(place.path()));
        let renew = |files: &IdentityFiles| {
            let (certificate, key) = made();
            files.store(&certificate, &key).unwrap();
        };
        renew(&ours);
        let turn = ours.turn();
        assert!(matches!(turn, Turn::Ours(Some(_))));
        assert!(matches!(theirs.turn(), Turn::Theirs));
        renew(&ours);
        drop(turn);
        assert!(matches!(theirs.turn(), Turn::Ours(Some(_))));
    }

    #[test]
    fn what_could_not_be_kept_is_noticed_before() {
        let place = tempfile::tempdir().unwrap();
        two(place.path()).can_be_replaced().unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        // Root may write anywhere, but not below a file.
        fs::write(place.path().join("file"), "").unwrap();
        let wrong = two(&place.path().join("file")).can_be_replaced().unwrap_err().to_string();
        assert!(wrong.contains("writable") && wrong.contains("plugin.pem"), "{wrong}");
    }

    #[test]
    fn the_key_that_asks_outlives_a_restart_and_goes_when_it_is_let_in() {
        let place = tempfile::tempdir().unwrap();
        let files = IdentityFiles::in_directory(place.path());
        let (_, key) = files.asking().unwrap();
        assert_eq!(*files.asking().unwrap().1, *key);
        let mode = fs::metadata(files.waiting_key()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let pair = KeyPair::from_pem(&key).unwrap();
        let certificate = CertificateParams::default().self_signed(&pair).unwrap().pem();
        files.let_in(&certificate, &key).unwrap();
        assert!(files.load().unwrap().is_some() && !files.waiting_key().exists());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_with_the_way_out() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("state");
        let files = IdentityFiles::in_directory(&directory);
        files.prepare(true).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o777)).unwrap();
        assert!(files.prepare(true).unwrap_err().to_string().contains("chmod go-w"));
    }
}
