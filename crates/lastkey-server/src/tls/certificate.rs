//! The server's own certificate: issued by our authority or read from files, and renewed while
//! the server runs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lastkey_engine::Timestamp;
use lastkey_store::disk;
use parking_lot::{Mutex, RwLock};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::authority::{
    Authority, AuthorityError, BACKDATE, LEAF_LIFE, ServerPair, Terms, check_name,
};
pub(crate) use super::leaf::{Leaf, sealed_config};

/// A certificate of ours is renewed when less than this is left of it.
const RENEW_BEFORE: Duration = Duration::from_secs(LEAF_LIFE.as_secs() / 3);

/// Where the server's certificate comes from.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// Our own authority; the names are those that clients use for this server.
    Authority {
        /// DNS names and addresses.
        names: Vec<String>,
    },
    /// PEM files of somebody else's authority, read again when they change.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The leaf's private key.
        key: PathBuf,
        /// The authority that signed it; clients are told to trust it beside our own, which goes
        /// on signing plugins' certificates.
        ca: Option<PathBuf>,
    },
}

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// Our authority did not issue one.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A file cannot be read.
    #[error("the TLS file {} cannot be read: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not PEM of the expected kind.
    #[error("the TLS file {} holds no {what} in PEM", path.display())]
    Pem {
        /// Which.
        path: PathBuf,
        /// What it should hold.
        what: &'static str,
    },
    /// The certificate cannot be left for a sealed start.
    #[error("the server's certificate cannot be written to {}: {source}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Key and certificate do not belong together, or are of a kind we cannot use.
    #[error("the TLS certificate and key cannot be used together: {0}")]
    Unusable(rustls::Error),
}

/// The certificate that handshakes are answered with.
#[derive(Debug)]
pub(crate) struct ServerCertificate {
    source: CertificateSource,
    current: RwLock<Current>,
    /// Held while a certificate is made and written, one at a time: a full or slow disk may take
    /// long, so that no request waits for it.
    keep: Mutex<Option<Keep>>,
    /// Why the last one is not left, where one is to be; read without the lock.
    unkept: RwLock<Option<String>>,
}

/// Where the current certificate is left for a sealed start.
#[derive(Debug)]
struct Keep {
    leaf: Leaf,
    /// Why it is not there, if it is not; it is tried again then.
    unkept: Option<String>,
}

/// What stands in the way of a certificate that was not tried yet.
const NOT_YET: &str = "it is about to be written";

#[derive(Debug)]
pub(super) struct Current {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) not_after: Timestamp,
    /// When we issued it, unless it comes from files.
    issued: Option<Timestamp>,
    /// When the files changed last, for those that come from files.
    modified: Option<Modified>,
}

type Modified = (std::time::SystemTime, std::time::SystemTime);

impl ServerCertificate {
    /// Gets the first certificate.
    pub(crate) fn load(
        source: CertificateSource,
        authority: &Authority,
        terms: Terms<'_>,
    ) -> Result<Self, CertificateError> {
        let current = obtain(&source, authority, terms, None)?;
        let (current, unkept) = (RwLock::new(current), RwLock::default());
        Ok(Self { source, current, keep: Mutex::new(None), unkept })
    }

    /// Where each certificate of ours is left from now on; answers whether it is there already.
    pub(crate) fn keep_in(&self, leaf: Option<Leaf>) -> bool {
        if matches!(self.source, CertificateSource::Files { .. }) {
            return true;
        }
        let mut keep = self.keep.lock();
        let unkept = match (&*keep, &leaf) {
            (_, None) => None,
            (Some(Keep { leaf: last, unkept }), Some(leaf)) if last.is_where(leaf) => {
                unkept.clone()
            }
            (_, Some(_)) => Some(NOT_YET.to_owned()),
        };
        let is_there = unkept.is_none();
        self.unkept.write().clone_from(&unkept);
        *keep = leaf.map(|leaf| Keep { leaf, unkept });
        is_there
    }

    /// Why a sealed start will have no certificate that clients know, where it needs one of ours.
    pub(crate) fn unkept(&self) -> Option<String> {
        self.unkept.read().clone()
    }

    /// When the current certificate ends.
    pub(crate) fn not_after(&self) -> Timestamp {
        self.current.read().not_after
    }

    /// Whether it comes from files that somebody else writes.
    pub(crate) fn is_brought(&self) -> bool {
        matches!(self.source, CertificateSource::Files { .. })
    }

    /// Gets a new certificate now; the old one stays if there is none to be had.
    pub(crate) fn renew(
        &self,
        authority: &Authority,
        terms: Terms<'_>,
    ) -> Result<(), CertificateError> {
        let mut keep = self.keep.lock();
        let next = self.next(authority, terms, keep.as_mut())?;
        *self.current.write() = next;
        Ok(())
    }

    /// Gets another certificate, and leaves it where that is wanted.
    fn next(
        &self,
        authority: &Authority,
        terms: Terms<'_>,
        mut keep: Option<&mut Keep>,
    ) -> Result<Current, CertificateError> {
        let next = obtain(&self.source, authority, terms, keep.as_deref_mut());
        *self.unkept.write() = keep.and_then(|keep| keep.unkept.clone());
        next
    }

    /// Leaves a certificate that could not be left before; says whether it is left now.
    /// It is another one: the key of the current one is nowhere but in memory.
    fn keep_again(
        &self,
        authority: &Authority,
        terms: Terms<'_>,
    ) -> Result<bool, CertificateError> {
        let mut keep = self.keep.lock();
        let Some(keep) = keep.as_mut().filter(|keep| keep.unkept.is_some()) else {
            return Ok(false);
        };
        let next = self.next(authority, terms, Some(&mut *keep))?;
        let is_there = keep.unkept.is_none();
        if is_there {
            *self.current.write() = next;
        }
        Ok(is_there)
    }

    /// Renews if it is time to, if the files have changed, or if what a sealed start needs can be
    /// written now; says whether it did.
    pub(crate) fn renew_if_due(
        &self,
        authority: &Authority,
        terms: Terms<'_>,
    ) -> Result<bool, CertificateError> {
        let due = match &self.source {
            CertificateSource::Authority { .. } => self.is_due(terms.now),
            CertificateSource::Files { certificate, key, .. } => {
                modified(certificate, key) != self.current.read().modified
            }
        };
        if due {
            self.renew(authority, terms)?;
            return Ok(true);
        }
        self.keep_again(authority, terms)
    }

    /// Whether one of ours is about to end, or was issued by a clock that was set back since:
    /// whoever has the right time would take it for one that has not begun.
    fn is_due(&self, now: Timestamp) -> bool {
        let current = self.current.read();
        now.after(RENEW_BEFORE) >= current.not_after
            || current.issued.is_some_and(|issued| now.after(BACKDATE / 2) < issued)
    }
}

impl Keep {
    /// Leaves this one. Where it cannot be written, a sealed server shows the one before, or one
    /// that proves nothing: no reason not to serve. That is said once for each cause.
    fn leave(&mut self, pair: &ServerPair) -> Result<(), CertificateError> {
        let (path, source) = match self.leaf.write(pair) {
            Err(CertificateError::Write { path, source }) => (path, source),
            written => {
                self.unkept = written.as_ref().err().map(ToString::to_string);
                return written;
            }
        };
        let advice = match disk::is_full(&source) {
            true => "make room on the disk",
            false => "put that right",
        };
        let why = Some(format!("{}: {source}; {advice}", path.display()));
        if let Some(why) = why.as_ref().filter(|_| self.unkept != why) {
            tracing::warn!(
                "the server's certificate is not kept: after a restart, clients may not recognise \
                 the server while it is sealed; {why}, it is tried again each minute"
            );
        }
        self.unkept = why;
        Ok(())
    }
}

impl CertificateSource {
    /// Looks whether a certificate can be had of it, as far as that shows without an authority.
    pub(crate) fn check(&self) -> Result<(), CertificateError> {
        match self {
            Self::Authority { names } => Ok(names.iter().try_for_each(|name| check_name(name))?),
            Self::Files { certificate, key, .. } => {
                from_files(certificate, key)?;
                self.foreign_ca().map(drop)
            }
        }
    }

    /// What clients must trust beside our own authority, PEM.
    pub(crate) fn foreign_ca(&self) -> Result<String, CertificateError> {
        let Self::Files { ca: Some(path), .. } = self else { return Ok(String::new()) };
        let pem = read(path)?;
        let wrong = || CertificateError::Pem { path: path.clone(), what: "CA certificate" };
        let count = CertificateDer::pem_slice_iter(&pem).filter(Result::is_ok).count();
        if count == 0 { Err(wrong()) } else { String::from_utf8(pem).map_err(|_| wrong()) }
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().key))
    }
}

fn obtain(
    source: &CertificateSource,
    authority: &Authority,
    terms: Terms<'_>,
    keep: Option<&mut Keep>,
) -> Result<Current, CertificateError> {
    match source {
        CertificateSource::Authority { names } => {
            let pair = authority.issue_server(names, terms)?;
            if let Some(keep) = keep {
                keep.leave(&pair)?;
            }
            let key = certified(vec![pair.certificate], pair.key)?;
            Ok(Current { key, not_after: pair.not_after, issued: Some(terms.now), modified: None })
        }
        CertificateSource::Files { certificate, key, .. } => from_files(certificate, key),
    }
}

pub(super) fn from_files(certificate: &Path, key: &Path) -> Result<Current, CertificateError> {
    // Taken first: a change while we read shows as a difference at the next look.
    let modified = modified(certificate, key);
    let chain = read_chain(certificate)?;
    let private = zeroize::Zeroizing::new(read(key)?);
    let private = PrivateKeyDer::from_pem_slice(&private)
        .map_err(|_| CertificateError::Pem { path: key.to_owned(), what: "private key" })?;
    let not_after = X509Certificate::from_der(&chain[0])
        .map(|(_, leaf)| leaf.validity().not_after.timestamp())
        .map_err(|_| CertificateError::Pem {
            path: certificate.to_owned(),
            what: "X.509 certificate",
        })?;
    Ok(Current {
        key: certified(chain, private)?,
        not_after: Timestamp::from_millis(not_after.saturating_mul(1000)),
        issued: None,
        modified,
    })
}

/// The certificates in a PEM file, one at least.
pub(super) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .ok()
        .filter(|chain| !chain.is_empty())
        .ok_or_else(|| CertificateError::Pem { path: path.to_owned(), what: "certificate chain" })
}

pub(super) fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<CertifiedKey>, CertificateError> {
    CertifiedKey::from_der(chain, key, &super::provider())
        .map(Arc::new)
        .map_err(CertificateError::Unusable)
}

fn read(path: &Path) -> Result<Vec<u8>, CertificateError> {
    fs::read(path).map_err(|source| CertificateError::Read { path: path.to_owned(), source })
}

fn modified(certificate: &Path, key: &Path) -> Option<Modified> {
    let of = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    Some((of(certificate)?, of(key)?))
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::SystemEntropy;

    use super::{super::leaf::tests::Filling, *};

    fn terms(now: Timestamp) -> Terms<'static> {
        Terms { now, entropy: &SystemEntropy }
    }

    #[test]
    fn a_certificate_is_renewed_a_month_before_its_end() {
        let now = Timestamp::from_millis(1_767_225_600_000);
        let authority = Authority::create(now, &SystemEntropy).unwrap();
        let source = CertificateSource::Authority { names: vec!["localhost".to_owned()] };
        let certificate = ServerCertificate::load(source, &authority, terms(now)).unwrap();
        let day = Duration::from_secs(86_400);
        assert_eq!(certificate.not_after(), now.after(90 * day));
        assert!(!certificate.renew_if_due(&authority, terms(now.after(59 * day))).unwrap());
        assert!(certificate.renew_if_due(&authority, terms(now.after(61 * day))).unwrap());
        assert_eq!(certificate.not_after(), now.after(151 * day));
    }

    #[test]
    fn a_certificate_of_the_future_is_replaced_once_the_clock_is_right_again() {
        let now = Timestamp::from_millis(1_767_225_600_000);
        let authority = Authority::create(now, &SystemEntropy).unwrap();
        let source = CertificateSource::Authority { names: vec!["localhost".to_owned()] };
        let certificate = ServerCertificate::load(source, &authority, terms(now)).unwrap();
        let (minute, day) = (Duration::from_secs(60), Duration::from_secs(86_400));
        assert!(certificate.renew_if_due(&authority, terms(now.after(70 * day))).unwrap());
        assert!(certificate.renew_if_due(&authority, terms(now)).unwrap(), "it has not begun");
        assert_eq!(certificate.not_after(), now.after(90 * day));
        let begins = {
            let current = certificate.current.read();
            X509Certificate::from_der(&current.key.cert[0]).unwrap().1.validity().not_before
        };
        assert!(begins.timestamp() <= now.as_seconds());
        // A clock that was set by a little changes nothing.
        let earlier = Timestamp::from_millis(now.as_millis() - 60_000);
        assert!(!certificate.renew_if_due(&authority, terms(earlier)).unwrap());
        assert!(!certificate.renew_if_due(&authority, terms(now.after(minute))).unwrap());
    }

    #[test]
    fn a_certificate_that_could_not_be_left_is_left_once_there_is_room() {
        let now = Timestamp::from_millis(1_767_225_600_000);
        let authority = Authority::create(now, &SystemEntropy).unwrap();
        let source = CertificateSource::Authority { names: vec!["localhost".to_owned()] };
        let certificate = ServerCertificate::load(source, &authority, terms(now)).unwrap();
        let served = || certificate.current.read().key.cert[0].to_vec();
        let directory = tempfile::tempdir().unwrap();
        let files = || fs::read_dir(directory.path()).unwrap().count();
        let disk = Filling::leaked();
        let leaf = || Some(Leaf::on(disk, directory.path()));
        assert!(certificate.unkept().is_none(), "nothing is to be left yet");
        disk.holds(0);
        assert!(!certificate.keep_in(leaf()));
        // A full disk keeps nobody from the server.
        certificate.renew(&authority, terms(now)).unwrap();
        let first = served();
        assert!(!certificate.keep_in(leaf()) && files() == 0);
        assert!(certificate.unkept().is_some_and(|why| why.contains("make room on the disk")));
        // Clients see no other certificate as long as none can be left.
        assert!(!certificate.renew_if_due(&authority, terms(now)).unwrap());
        assert_eq!((served(), files()), (first.clone(), 0));
        disk.holds(usize::MAX);
        assert!(certificate.renew_if_due(&authority, terms(now)).unwrap());
        assert!(certificate.unkept().is_none() && certificate.keep_in(leaf()));
        assert_ne!(served(), first);
        let key = directory.path().join("server.key");
        let left = from_files(&directory.path().join("server.pem"), &key).unwrap();
        assert_eq!(left.key.cert[0].to_vec(), served());
        assert!(!certificate.renew_if_due(&authority, terms(now)).unwrap());
    }

    #[test]
    fn whatever_keeps_it_from_being_left_keeps_nobody_from_the_server_and_is_named() {
        let now = Timestamp::from_millis(1_767_225_600_000);
        let authority = Authority::create(now, &SystemEntropy).unwrap();
        let source = CertificateSource::Authority { names: vec!["localhost".to_owned()] };
        let certificate = ServerCertificate::load(source, &authority, terms(now)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let next_key = directory.path().join("server.key.next");
        fs::create_dir(&next_key).unwrap();
        assert!(!certificate.keep_in(Some(Leaf::new(directory.path()))));
        certificate.renew(&authority, terms(now)).unwrap();
        let why = certificate.unkept().unwrap();
        assert!(why.contains("server.key.next: ") && !why.contains("room"), "{why}");
        fs::remove_dir(next_key).unwrap();
        assert!(certificate.renew_if_due(&authority, terms(now)).unwrap());
        assert_eq!(certificate.unkept(), None);
    }

    /// The status is asked for on threads that serve requests.
    #[test]
    fn whether_it_is_left_is_told_while_another_is_being_written() {
        let now = Timestamp::from_millis(1_767_225_600_000);
        let authority = Authority::create(now, &SystemEntropy).unwrap();
        let source = CertificateSource::Authority { names: vec!["localhost".to_owned()] };
        let certificate = ServerCertificate::load(source, &authority, terms(now)).unwrap();
        let directory = tempfile::tempdir().unwrap();
        certificate.keep_in(Some(Leaf::new(directory.path())));
        certificate.renew(&authority, terms(now)).unwrap();
        let (asked, answers) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let writing = certificate.keep.lock();
            scope.spawn(|| asked.send(certificate.unkept()));
            let told = answers.recv_timeout(Duration::from_secs(10));
            drop(writing);
            assert_eq!(told, Ok(None));
        });
    }

    #[test]
    fn files_are_read_again_when_they_change() {
        let now = Timestamp::from_millis(1_767_225_600_000);
        let authority = Authority::create(now, &SystemEntropy).unwrap();
        let directory = tempfile::tempdir().unwrap();
        let (chain, key) = (directory.path().join("tls.pem"), directory.path().join("tls.key"));
        let write = || {
            let pair = rcgen::generate_simple_self_signed(["kms.example".to_owned()]).unwrap();
            fs::write(&chain, pair.cert.pem()).unwrap();
            fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
            pair.cert.der().to_vec()
        };
        let source =
            CertificateSource::Files { certificate: chain.clone(), key: key.clone(), ca: None };
        let missing = ServerCertificate::load(source.clone(), &authority, terms(now)).unwrap_err();
        assert!(missing.to_string().contains("tls.pem"), "{missing}");

        let first = write();
        let certificate = ServerCertificate::load(source, &authority, terms(now)).unwrap();
        let served = || certificate.current.read().key.cert[0].to_vec();
        assert_eq!(served(), first);
        assert!(!certificate.renew_if_due(&authority, terms(now)).unwrap());
        let second = write();
        fs::File::open(&key).and_then(|file| file.set_modified(std::time::UNIX_EPOCH)).unwrap();
        assert!(certificate.renew_if_due(&authority, terms(now)).unwrap());
        assert_eq!(served(), second);

        // A broken pair is refused, and the good one stays.
        fs::write(&key, "nonsense").unwrap();
        assert!(certificate.renew_if_due(&authority, terms(now)).is_err());
        assert_eq!(served(), second);
    }
}
