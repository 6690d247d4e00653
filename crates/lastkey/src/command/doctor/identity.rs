//! The files by which a plugin is known, and knows its server: certificate, key and CA; and where
//! its node enrols it, the kubelet's certificate.
//!
//! Whatever is wrong with them is mended with files of the same cluster: by another one's, the plugin
//! opens nothing of what lies in etcd.

use std::{
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use lastkey_crypto::{ClusterId, mac::sha256};
use lastkey_kubernetes::{encryption_config::Finding, socket::shell};
use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _};
use zeroize::Zeroizing;

use crate::daemon::{IdentityFiles, plugin_of};

/// Certificates are renewed with a third of their life left; with this part of it, that has failed.
const LATE: u32 = 4;
/// What a kubelet's common name begins with.
const NODE: &str = "system:node:";

/// What can be done with the files that are there.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The server can be asked with them.
    Good,
    /// It can be, and knows why not: the certificate has ended by this clock.
    Ended,
    /// There is no identity yet, or it has ended, and the node asks for one.
    Enrols,
    /// Nobody can be asked with them.
    Unusable,
}

/// Where they lie.
pub(super) struct Identity<'a> {
    pub(super) files: IdentityFiles,
    pub(super) ca: Option<&'a Path>,
    /// Whether the node gets them by its kubelet's certificate.
    pub(super) enrols: bool,
}

impl Identity<'_> {
    /// Looks at all of them, and says what is wrong with each.
    pub(super) fn examine(&self, findings: &mut Vec<Finding>) -> State {
        let trusts = self.ca.map(ca_of).transpose();
        let is_trusting = trusts.is_ok();
        findings.extend(trusts.err());
        let state = match self.certificate(findings) {
            state if is_trusting => state,
            _ => State::Unusable,
        };
        findings.extend(key_is_open(&self.files.key));
        state
    }

    fn certificate(&self, findings: &mut Vec<Finding>) -> State {
        let path = &self.files.certificate;
        let certificate = match read(path) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.enrols => {
                return State::Enrols;
            }
            Err(error) => {
                findings.push(unreadable(
                    "certificate-unreadable",
                    path,
                    &error,
                    self.another(None),
                ));
                return State::Unusable;
            }
        };
        let Some(certificate) = Certificate::read(&certificate) else {
            let message = format!("{} holds no certificate in PEM", path.display());
            findings
                .push(Finding::error("certificate-unreadable", message).fix(self.another(None)));
            return State::Unusable;
        };
        if let Err(finding) = self.key(&certificate) {
            findings.push(finding);
            return State::Unusable;
        }
        let another = || match self.enrols {
            true => {
                "the plugin enrols again by itself, unless what is said beside this keeps it".into()
            }
            false => self.another(certificate.plugin.as_ref()),
        };
        findings.push(ends(path, certificate.life, another));
        match (certificate.has_ended(), self.enrols) {
            (false, _) => State::Good,
            (true, false) => State::Ended,
            (true, true) => State::Enrols,
        }
    }

    /// Whether the key is there, and the certificate's.
    fn key(&self, certificate: &Certificate) -> Result<(), Finding> {
        const CODE: &str = "private-key-unusable";
        let (path, fix) = (&self.files.key, || self.another(certificate.plugin.as_ref()));
        let pem = read(path).map_err(|error| unreadable(CODE, path, &error, fix()))?;
        let pair = std::str::from_utf8(&pem).ok().and_then(|pem| KeyPair::from_pem(pem).ok());
        let shown = path.display();
        let message = match pair {
            None => format!("{shown} holds no private key in PEM"),
            Some(pair) if pair.subject_public_key_info() != certificate.public_key => {
                let certificate = self.files.certificate.display();
                format!("{shown} is not the key of the certificate in {certificate}")
            }
            Some(_) => return Ok(()),
        };
        Err(Finding::error(CODE, message).fix(fix()))
    }

    /// How these files get others in their place; the certificate names the cluster and its plugin.
    fn another(&self, named: Option<&(ClusterId, String)>) -> String {
        let named =
            named.and_then(|(cluster, name)| Some((cluster, name.strip_prefix("plugin/")?)));
        match (self.enrols, named) {
            (true, _) => {
                let path = &self.files.certificate;
                let aside = PathBuf::from(format!("{}.bad", path.display()));
                format!(
                    "mv {} {}; restart the plugin: it enrols again, and the server's side approves it \
                     (`lastkey cluster node approve`)",
                    shell(path),
                    shell(&aside)
                )
            }
            (false, Some((cluster, name))) => format!(
                "`lastkey cluster certificate {cluster} --plugin {name} --out DIR` on the server's \
                 machine makes another; {TAKEN_UP}"
            ),
            (false, None) => format!(
                "`lastkey cluster certificate CLUSTER --out DIR` on the server's machine makes \
                 another (CLUSTER as in `lastkey cluster list`, and none but this node's); {TAKEN_UP}"
            ),
        }
    }
}

/// What becomes of the files that a command has made.
const TAKEN_UP: &str = "put its plugin.pem and plugin.key in place of these; a plugin that runs takes \
                        them up by itself";

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    std::fs::read(path).map(Zeroizing::new)
}

fn unreadable(code: &'static str, path: &Path, error: &io::Error, fix: String) -> Finding {
    let fix = match error.kind() {
        io::ErrorKind::PermissionDenied => "run lastkey doctor as root".to_owned(),
        _ => fix,
    };
    Finding::error(code, format!("{}: {error}", path.display())).fix(fix)
}

/// Whether the CA file holds certificates.
fn ca_of(path: &Path) -> Result<(), Finding> {
    const CODE: &str = "ca-unreadable";
    let fix = || {
        format!(
            "put there what `lastkey ca print` prints on the server's machine: ssh SERVER lastkey ca \
             print > {}",
            shell(path)
        )
    };
    let pem = read(path).map_err(|error| unreadable(CODE, path, &error, fix()))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(()),
        _ => {
            let message = format!("{} holds no certificate in PEM", path.display());
            Err(Finding::error(CODE, message).fix(fix()))
        }
    }
}

/// What matters of the first certificate of a PEM file.
pub(super) struct Certificate {
    life: (SystemTime, SystemTime),
    public_key: Vec<u8>,
    /// The cluster, and the plugin or node in it: `plugin/NAME`.
    plugin: Option<(ClusterId, String)>,
    node: Option<String>,
}

impl Certificate {
    pub(super) fn read(pem: &[u8]) -> Option<Self> {
        let der = CertificateDer::from_pem_slice(pem).ok()?;
        let (_, parsed) = X509Certificate::from_der(&der).ok()?;
        let time = |seconds: i64| {
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
        };
        let validity = parsed.validity();
        let plugin = plugin_of(&parsed).map(|(cluster, name)| (cluster, name.to_owned()));
        let name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        Some(Self {
            life: (time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?),
            public_key: parsed.public_key().raw.to_owned(),
            plugin,
            node: name.and_then(|name| name.strip_prefix(NODE)).map(str::to_owned),
        })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.life.1 < SystemTime::from(jiff::Timestamp::now())
    }

    pub(super) fn ends_at(&self) -> String {
        shown(self.life.1)
    }

    /// The node whose kubelet it is.
    pub(super) fn node(&self) -> Option<&str> {
        self.node.as_deref()
    }

    /// As a server shows the key that waits for approval.
    pub(super) fn fingerprint(&self) -> String {
        hex::encode(sha256(&[&self.public_key]))
    }
}

fn shown(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map(|time| time.to_string()).unwrap_or_default()
}

fn ends(
    certificate: &Path,
    (begin, end): (SystemTime, SystemTime),
    another: impl Fn() -> String,
) -> Finding {
    let life = end.duration_since(begin).unwrap_or_default();
    let (path, shown) = (certificate.display(), shown(end));
    match end.duration_since(jiff::Timestamp::now().into()) {
        Err(_) => Finding::error("certificate-ended", format!("{path} ended at {shown}"))
            .fix(format!("if this clock is right (timedatectl): {}", another())),
        Ok(left) if left < life / LATE => {
            let message = format!("{path} ends at {shown}, and should have been renewed by now");
            Finding::warning("certificate-ends-soon", message)
                .fix("the plugin's log says why it was not renewed")
        }
        Ok(_) => Finding::info("certificate-good", format!("{path} is good until {shown}")),
    }
}

/// A private key is its owner's alone.
fn key_is_open(key: &Path) -> Option<Finding> {
    use std::os::unix::fs::MetadataExt as _;
    let mode = std::fs::metadata(key).ok()?.mode() & 0o7777;
    (mode & 0o077 != 0).then(|| {
        let message = format!("others may use {} (mode {mode:04o})", key.display());
        Finding::error("private-key-open", message).fix(format!("chmod 0600 {}", shell(key)))
    })
}

#[cfg(test)]
mod tests {
    use lastkey_kubernetes::encryption_config::Severity;

    use super::*;

    #[test]
    fn certificates() {
        let path = Path::new("/etc/lastkey/plugin.pem");
        let days = |days: u64| Duration::from_secs(days * 86_400);
        let now = SystemTime::from(jiff::Timestamp::now());
        let another = || "another".to_owned();
        let code = |life: u64, left: u64| {
            let end = now + days(left);
            ends(path, (end - days(life), end), another).code
        };
        // each is renewed with a third left
        for (life, good, late) in [(365, 100, 90), (30, 8, 7), (20, 6, 4), (3, 1, 0)] {
            assert_eq!(code(life, good), "certificate-good", "{life}");
            let whole = ends(path, (now, now + days(life)), another);
            assert_eq!(whole.severity, Severity::Info, "{life}");
            if late > 0 {
                assert_eq!(code(life, late), "certificate-ends-soon", "{life}");
            }
        }
        assert_eq!(ends(path, (now - days(30), now - days(1)), another).code, "certificate-ended");
    }

    /// Never another cluster's, by which nothing can be opened.
    #[test]
    fn another_certificate_is_of_the_same_cluster_and_plugin() {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        let files = IdentityFiles { certificate: path("plugin.pem"), key: path("plugin.key") };
        let cluster = "83eb9abc-da3e-494e-b0e6-96b3c401cd15";
        let mut params = rcgen::CertificateParams::default();
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let uri = format!("lastkey://cluster/{cluster}/plugin/cp-1");
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().unwrap())];
        let pair = KeyPair::generate().unwrap();
        std::fs::write(&files.certificate, params.self_signed(&pair).unwrap().pem()).unwrap();
        std::fs::write(&files.key, pair.serialize_pem()).unwrap();
        let identity = Identity { files, ca: None, enrols: false };
        let mut findings = Vec::new();
        assert_eq!(identity.examine(&mut findings), State::Ended);
        let ended = findings.iter().find(|it| it.code == "certificate-ended").unwrap();
        let command = format!("lastkey cluster certificate {cluster} --plugin cp-1 --out DIR");
        assert!(ended.fix.contains(&command), "{}", ended.fix);
    }

    #[test]
    fn a_fix_is_a_command_whatever_the_path() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("it's a 'pr od'");
        std::fs::create_dir(&directory).unwrap();
        let key = directory.join("plugin.key");
        std::fs::write(&key, "").unwrap();
        let open = |key: &Path| {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o644)).unwrap();
            key_is_open(key).unwrap()
        };
        let fix = open(&key).fix;
        let done = std::process::Command::new("sh").args(["-c", &fix]).status().unwrap();
        assert!(done.success(), "{fix}");
        assert_eq!(key_is_open(&key), None);
    }
}
