//! The server's certificate while it is sealed or held: the authority's key cannot be had then, so
//! the last certificate that it issued is left in the data directory, with its private key.
//!
//! Whoever reads these files can pass for the server, for at most the 90 days of the certificate:
//! docs/security.md says so.
//!
//! Two files cannot be replaced in one step, so the next pair is written in three, and whatever
//! interrupts them there is a pair that fits:
//! 1. the next key, beside the one that is used (`server.key.next`);
//! 2. the certificate, in place of the last: from here on the next key is the one that fits;
//! 3. the next key takes the place of the last.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_engine::Timestamp;
use lastkey_store::disk::{self, Disk, FileSystem, Readers};
use rustls::{ServerConfig, server::ResolvesServerCert, sign::CertifiedKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use super::{
    ALPN_H2, ALPN_HTTP11,
    authority::{ServerPair, to_pem},
    certificate::{CertificateError, CertificateSource, Current, certified, from_files},
};

/// Where the certificate and its key lie.
#[derive(Clone, Debug)]
pub(crate) struct Leaf {
    disk: &'static dyn Disk,
    directory: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    next_key: PathBuf,
}

impl Leaf {
    pub(crate) fn new(directory: &Path) -> Self {
        Self::on(&FileSystem, directory)
    }

    pub(super) fn on(disk: &'static dyn Disk, directory: &Path) -> Self {
        let [certificate, key, next_key] =
            ["server.pem", "server.key", "server.key.next"].map(|name| directory.join(name));
        Self { disk, directory: directory.to_owned(), certificate, key, next_key }
    }

    pub(super) fn is_where(&self, other: &Self) -> bool {
        self.directory == other.directory
    }

    /// Leaves this one in place of the last. Where that fails there is the last one, or this.
    pub(super) fn write(&self, pair: &ServerPair) -> Result<(), CertificateError> {
        if self.is_interrupted() {
            // The next key is the one that fits, and is about to be replaced.
            self.take_next_key()?;
        }
        let encoded = Zeroizing::new(STANDARD.encode(pair.key.secret_der()));
        let mut key = Zeroizing::new(String::with_capacity(encoded.len() + 128));
        key.push_str("-----BEGIN PRIVATE KEY-----\n");
        let mut rest = encoded.as_str();
        while !rest.is_empty() {
            let (line, tail) = rest.split_at(rest.len().min(64));
            key.push_str(line);
            key.push('\n');
            rest = tail;
        }
        key.push_str("-----END PRIVATE KEY-----\n");
        self.replace(&self.next_key, key.as_bytes(), Readers::Owner)?;
        let certificate = to_pem(&pair.certificate);
        self.replace(&self.certificate, certificate.as_bytes(), Readers::All)?;
        self.take_next_key()
    }

    fn replace(
        &self,
        path: &Path,
        content: &[u8],
        readers: Readers,
    ) -> Result<(), CertificateError> {
        disk::replace(self.disk, path, content, readers)
            .map_err(|source| CertificateError::Write { path: path.to_owned(), source })
    }

    /// Step 3.
    fn take_next_key(&self) -> Result<(), CertificateError> {
        self.disk
            .rename(&self.next_key, &self.key)
            .and_then(|()| self.disk.sync_directory(&self.directory))
            .map_err(|source| CertificateError::Write { path: self.key.clone(), source })
    }

    /// Whether step 3 is what is missing.
    fn is_interrupted(&self) -> bool {
        self.next_key.exists()
            && from_files(&self.certificate, &self.key).is_err()
            && from_files(&self.certificate, &self.next_key).is_ok()
    }

    /// What was left.
    fn read(&self) -> Result<Current, CertificateError> {
        from_files(&self.certificate, &self.key).or_else(|error| {
            // The first error is the one that people can do something about.
            from_files(&self.certificate, &self.next_key).map_err(|_| error)
        })
    }
}

/// How connections are welcomed while the server is sealed. Clients are not asked for
/// certificates, and no session is resumed later.
pub(crate) fn sealed_config(
    source: &CertificateSource,
    leaf: Option<&Leaf>,
    now: Timestamp,
) -> Result<ServerConfig, CertificateError> {
    let key = match source {
        CertificateSource::Files { certificate, key, .. } => from_files(certificate, key)?.key,
        CertificateSource::Authority { names } => match leaf.and_then(|leaf| left(leaf, now)) {
            Some(key) => key,
            None => nobody(names)?,
        },
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(super::provider()))
        .with_safe_default_protocol_versions()
        .map_err(CertificateError::Unusable)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(One(key)));
    config.alpn_protocols = vec![ALPN_H2.to_vec(), ALPN_HTTP11.to_vec()];
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// The certificate that was left, if it can still be used.
fn left(leaf: &Leaf, now: Timestamp) -> Option<Arc<CertifiedKey>> {
    let advice = "clients do not recognise this server while it is sealed: enter shares on the \
                  admin socket (a server that is unsealed leaves another certificate)";
    match leaf.read() {
        Ok(current) if current.not_after > now => Some(current.key),
        Ok(Current { not_after, .. }) => {
            tracing::warn!(%not_after, "the certificate that was left has ended; {advice}");
            None
        }
        Err(error) => {
            // Before the first unsealing there is none.
            if leaf.certificate.exists() || leaf.key.exists() {
                tracing::warn!(%error, "the certificate that was left cannot be used; {advice}");
            }
            None
        }
    }
}

/// A certificate that proves nothing, for probes that do not look.
fn nobody(names: &[String]) -> Result<Arc<CertifiedKey>, CertificateError> {
    let issue = |error| CertificateError::Authority(super::AuthorityError::Issue(error));
    let pair = rcgen::generate_simple_self_signed(names).map_err(issue)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.signing_key.serialize_der()));
    certified(vec![pair.cert.der().clone()], key)
}

/// One certificate for everybody.
#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::{
        ffi::OsString,
        io::{self, ErrorKind},
        sync::atomic::{AtomicUsize, Ordering},
    };

    use lastkey_crypto::SystemEntropy;
    use lastkey_store::disk::{Access, DiskFile};

    use super::*;
    use crate::tls::authority::{Authority, Terms};

    /// The machine's file system, on which so many names can still be given.
    #[derive(Debug)]
    pub(in crate::tls) struct Filling(AtomicUsize);

    impl Filling {
        pub(in crate::tls) fn leaked() -> &'static Self {
            Box::leak(Box::new(Self(AtomicUsize::new(usize::MAX))))
        }

        pub(in crate::tls) fn holds(&self, more: usize) {
            self.0.store(more, Ordering::SeqCst);
        }
    }

    impl Disk for Filling {
        fn create_directory(&self, path: &Path) -> io::Result<()> {
            FileSystem.create_directory(path)
        }

        fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
            FileSystem.list(directory)
        }

        fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn DiskFile>> {
            FileSystem.open(path, access)
        }

        fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
            let left = self.0.load(Ordering::SeqCst);
            if left == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.holds(left - 1);
            FileSystem.rename(from, to)
        }

        fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
            FileSystem.rename_new(from, to)
        }

        fn remove(&self, path: &Path) -> io::Result<()> {
            FileSystem.remove(path)
        }

        fn sync_directory(&self, directory: &Path) -> io::Result<()> {
            FileSystem.sync_directory(directory)
        }
    }

    const NOW: Timestamp = Timestamp::from_millis(1_767_225_600_000);

    /// Whose certificate a sealed server would show.
    fn shown(leaf: &Leaf) -> Option<Vec<u8>> {
        left(leaf, NOW).map(|key| key.cert[0].to_vec())
    }

    #[test]
    fn whatever_interrupts_the_writing_a_pair_is_left_that_fits() {
        let authority = Authority::create(NOW, &SystemEntropy).unwrap();
        let issue = || {
            let terms = Terms { now: NOW, entropy: &SystemEntropy };
            authority.issue_server(&["localhost".to_owned()], terms).unwrap()
        };
        // Stopped at each name in turn, and stopped again while the next one is written.
        for (first, second) in (0..4).flat_map(|one| (0..4).map(move |two| (one, two))) {
            let directory = tempfile::tempdir().unwrap();
            let disk = Filling::leaked();
            let leaf = Leaf::on(disk, directory.path());
            let (old, new, newer) = (issue(), issue(), issue());
            leaf.write(&old).unwrap();
            let mut could = vec![old.certificate.to_vec()];
            for (names, pair) in [(first, &new), (second, &newer)] {
                disk.holds(names);
                let written = leaf.write(pair);
                could.push(pair.certificate.to_vec());
                let shown = shown(&leaf).expect("no pair that fits");
                assert!(could.contains(&shown), "{first}, {second}");
                assert!(written.is_err() || shown == pair.certificate.to_vec());
            }
            disk.holds(usize::MAX);
            leaf.write(&old).unwrap();
            assert_eq!(shown(&leaf), Some(old.certificate.to_vec()));
            assert!(!directory.path().join("server.key.next").exists());
        }
    }
}
