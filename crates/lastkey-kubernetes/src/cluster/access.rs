//! What is registered of a cluster.

use std::{fmt, path::PathBuf, str::FromStr};

use http::Uri;
use lastkey_client::host_and_port;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// How a cluster is reached. It holds a credential, so it has no `Debug`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Access {
    /// Each apiserver by itself: a load balancer in front of them hides who is behind.
    pub servers: Vec<ServerUrl>,
    /// Who signed their certificates (PEM).
    pub ca_pem: String,
    /// The name in their certificates, where it is not that of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
    /// As whom.
    pub credential: Credential,
    /// The store under them, where it may be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdAccess>,
    /// Where the apiservers' EncryptionConfiguration lies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption_config: Option<PathBuf>,
    /// What is encrypted, as that file names it.
    #[serde(default)]
    pub resources: Vec<String>,
    /// Who writes its objects anew in a rotation.
    #[serde(default, skip_serializing_if = "Migrate::is_auto")]
    pub migrate: Migrate,
}

/// Who writes a cluster's objects anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Migrate {
    /// Lastkey where the account may update them, else the cluster, where the account may ask for that.
    #[default]
    Auto,
    /// Lastkey.
    Own,
    /// The cluster itself, by StorageVersionMigrations: no object passes through Lastkey.
    Cluster,
}

impl Migrate {
    /// Whether it is left to what the account may.
    pub fn is_auto(&self) -> bool {
        *self == Self::Auto
    }

    /// As options and reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Own => "own",
            Self::Cluster => "cluster",
        }
    }
}

/// What proves to an apiserver who calls.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Credential {
    /// A client certificate.
    Certificate {
        /// The chain, leaf first (PEM).
        certificate_pem: String,
        /// Its private key (PEM).
        key_pem: Zeroizing<String>,
    },
    /// A bearer token.
    Token {
        /// The token.
        token: Zeroizing<String>,
        /// The service account that it is of (in `kube-system`), where it may ask for its own
        /// successor.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<String>,
        /// When it ends (RFC 3339), where that is known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<String>,
    },
}

/// How a cluster's etcd is reached.
#[derive(Clone, Serialize, Deserialize)]
pub struct EtcdAccess {
    /// Its members; one that answers is enough.
    pub servers: Vec<ServerUrl>,
    /// Who signed their certificates (PEM); `None` for `http://`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_pem: Option<String>,
    /// Our certificate (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub certificate_pem: Option<String>,
    /// Its private key (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_pem: Option<Zeroizing<String>>,
    /// What all keys of Kubernetes start with (`--etcd-prefix` of the apiservers).
    pub prefix: String,
}

/// Why an access cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// An address is not one.
    #[error("{url} is not an address of the form https://HOST[:PORT]")]
    Url {
        /// As it was given.
        url: String,
    },
    /// There is no address.
    #[error("no address is given")]
    NoServer,
    /// A certificate or key is no PEM.
    #[error("{what} cannot be read as PEM")]
    Pem {
        /// What it is.
        what: &'static str,
    },
    /// The TLS library does not take certificate and key.
    #[error("{what}: {source}")]
    Tls {
        /// What they are for.
        what: &'static str,
        /// Its words.
        source: rustls::Error,
    },
    /// A token has characters that no header may have.
    #[error("the token has characters that no token has")]
    Token,
}

/// `https://HOST[:PORT][/PREFIX]`, or `http://` where nothing is encrypted (etcd on the loopback).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerUrl {
    /// Whether TLS is spoken.
    pub(super) tls: bool,
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Nothing, or a path without a slash at its end.
    pub(super) prefix: String,
}

impl ServerUrl {
    /// `HOST:PORT`, with brackets where an IPv6 address needs them.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is this machine itself.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self.host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }

    /// Whether TLS is spoken.
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The path below which everything is asked for; empty for none.
    pub fn path(&self) -> &str {
        &self.prefix
    }

    pub(super) fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme(), self.authority(), self.prefix)
    }
}

impl FromStr for ServerUrl {
    type Err = AccessError;

    fn from_str(text: &str) -> Result<Self, AccessError> {
        let wrong = || AccessError::Url { url: text.to_owned() };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        // a password in an address would be shown wherever the address is
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(AccessError::Url { url: "the address".to_owned() });
        }
        let (host, port) = host_and_port(authority.as_str()).ok_or_else(wrong)?;
        Ok(Self {
            tls,
            host: host.to_owned(),
            port: port.unwrap_or(if tls { 443 } else { 80 }),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

impl TryFrom<String> for ServerUrl {
    type Error = AccessError;
    fn try_from(text: String) -> Result<Self, AccessError> {
        text.parse()
    }
}

impl From<ServerUrl> for String {
    fn from(url: ServerUrl) -> Self {
        url.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        for (text, written) in [
            ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
            ("https://api.example.org", "https://api.example.org:443"),
            ("https://[fd00::1]:6443/", "https://[fd00::1]:6443"),
            (
                "https://rancher.example.org/k8s/clusters/c-1/",
                "https://rancher.example.org:443/k8s/clusters/c-1",
            ),
            ("http://127.0.0.1:2379", "http://127.0.0.1:2379"),
        ] {
            let url: ServerUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), written);
            assert_eq!(written.parse::<ServerUrl>().unwrap(), url);
        }
        for text in [
            "",
            "10.0.0.1:6443",
            "ftp://a",
            "https://",
            "https://u:p@host",
            "https://h?q=1",
            // no other port is taken in the place of one that is none
            "https://10.0.0.1:66443",
            "https://10.0.0.1:",
            "https://10.0.0.1:0",
            // fuzzing (kubernetes_kubeconfig): what stands around brackets
            "https://!sertif[::1]:6443/p",
            "https://[api]:6443",
        ] {
            let error = text.parse::<ServerUrl>().expect_err(text);
            assert!(!error.to_string().contains("u:p"), "{error}");
        }
    }
}
