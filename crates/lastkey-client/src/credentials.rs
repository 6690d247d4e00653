//! Who the client says it is, and where that is written.

use std::{
    fmt, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use lastkey_crypto::memory::SecretBytes;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::{Endpoint, EndpointError};

/// How a request proves who sends it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Identity {
    /// A certificate of the installation's CA, shown in the TLS handshake.
    Certificate(ClientCertificate),
    /// Each request is signed.
    AccessKey(AccessKey),
    /// The admin socket's peer credential speaks for us.
    Peer,
}

/// The files of a TLS client identity. They are read anew for every client, not kept.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    /// PEM certificate chain, leaf first.
    pub certificate: PathBuf,
    /// PEM private key.
    pub key: PathBuf,
}

/// An access key; its secret never shows.
pub struct AccessKey {
    /// Names the user; not secret.
    pub id: String,
    /// What signs.
    pub secret: SecretBytes,
}

impl fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The content of `credentials.json`.
#[derive(Debug)]
pub struct Credentials {
    /// The server that issued them.
    pub endpoint: Endpoint,
    /// The CA that signed the server's certificate.
    pub ca_file: PathBuf,
    /// Who we are.
    pub access_key: AccessKey,
}

/// Why a credentials file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// It cannot be read.
    #[error("cannot read the credentials in {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not the JSON object it should be. The parser's own words could hold the secret.
    #[error(
        "{} is not a credentials file: expected a JSON object with url, ca_file, access_key_id \
         and access_key_secret (line {line})",
        path.display()
    )]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where the parser stopped.
        line: usize,
    },
    /// The address in it is wrong.
    #[error("{}: {source}", path.display())]
    Endpoint {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        source: EndpointError,
    },
}

#[derive(Deserialize)]
struct CredentialsJson {
    url: String,
    ca_file: PathBuf,
    access_key_id: String,
    access_key_secret: Zeroizing<String>,
}

impl Credentials {
    /// Reads a credentials file; a relative `ca_file` is taken from beside it.
    pub fn read(path: &Path) -> Result<Self, CredentialsError> {
        let read = |source| CredentialsError::Read { path: path.to_owned(), source };
        let text = Zeroizing::new(fs::read(path).map_err(read)?);
        warn_if_readable_by_others(path);
        Self::parse(path, &text)
    }

    /// Reads the content of the file at `path`.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self, CredentialsError> {
        let json: CredentialsJson = serde_json::from_slice(text).map_err(|error| {
            CredentialsError::Malformed { path: path.to_owned(), line: error.line() }
        })?;
        let endpoint = json
            .url
            .parse()
            .map_err(|source| CredentialsError::Endpoint { path: path.to_owned(), source })?;
        let ca_file = path.parent().unwrap_or(Path::new(".")).join(json.ca_file);
        let secret = SecretBytes::new(json.access_key_secret.as_bytes().to_vec());
        Ok(Self { endpoint, ca_file, access_key: AccessKey { id: json.access_key_id, secret } })
    }
}

/// Only a warning: a mounted Secret is group-readable by default, and refusing it helps nobody.
fn warn_if_readable_by_others(path: &Path) {
    let others = fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o007 != 0);
    if others {
        tracing::warn!(path = %path.display(), "the credentials can be read by every local user");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Credentials, CredentialsError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials.json");
        fs::write(&path, text).unwrap();
        Credentials::read(&path)
    }

    const GOOD: &str = r#"{"url":"https://127.0.0.1:7343","ca_file":"/d/ca.pem",
        "access_key_id":"AK","access_key_secret":"hush"}"#;

    #[test]
    fn reads_what_up_writes() {
        let credentials = read(GOOD).unwrap();
        assert_eq!(credentials.endpoint.to_string(), "https://127.0.0.1:7343");
        assert_eq!(credentials.ca_file, Path::new("/d/ca.pem"));
        assert_eq!(credentials.access_key.id, "AK");
        assert_eq!(credentials.access_key.secret.expose(), b"hush");
    }

    #[test]
    fn the_secret_shows_nowhere() {
        assert!(!format!("{:?}", read(GOOD).unwrap()).contains("hush"));
        let wrong = read(&GOOD.replace("\"hush\"", "{\"hush\":1}")).unwrap_err();
        assert!(!format!("{wrong} {wrong:?}").contains("hush"));
    }

    #[test]
    fn a_bad_address_is_named() {
        let error = read(&GOOD.replace("https", "http")).unwrap_err();
        assert!(matches!(error, CredentialsError::Endpoint { .. }));
    }
}
