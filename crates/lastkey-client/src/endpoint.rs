//! Where a server listens.

use std::{fmt, path::PathBuf, str::FromStr};

use http::{Uri, uri::Scheme};

/// The address of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Endpoint {
    /// TLS on a host and port; the host's name or address must stand in the server's certificate.
    Tls {
        /// A DNS name, or an IP address without brackets.
        host: String,
        /// The TCP port.
        port: u16,
    },
    /// The admin socket of a server on this machine.
    Admin(PathBuf),
}

/// Why an address is no address.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// Plain HTTP is never spoken.
    #[error("{0} is not an https address; the server speaks TLS only")]
    NotTls(String),
    /// It cannot be parsed, or carries more than host and port.
    #[error("{0} is not an address such as https://kms.example.org:7343")]
    Malformed(String),
}

/// Where a server listens unless told otherwise.
const DEFAULT_PORT: u16 = 7343;

impl FromStr for Endpoint {
    type Err = EndpointError;

    /// Takes `https://host[:port]` or `unix:///path/of/admin.sock`.
    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let malformed = || EndpointError::Malformed(text.to_owned());
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self::Admin(path.into())),
                false => Err(malformed()),
            };
        }
        let uri: Uri = text.parse().map_err(|_| malformed())?;
        if uri.scheme() != Some(&Scheme::HTTPS) {
            return Err(EndpointError::NotTls(text.to_owned()));
        }
        let authority = uri.authority().ok_or_else(malformed)?;
        let plain = matches!(uri.path(), "" | "/") && uri.query().is_none();
        if !plain || authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(malformed());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        // authority.port() hides a port that does not parse
        let port = match authority
            .as_str()
            .rsplit_once(']')
            .map_or(authority.as_str(), |it| it.1)
            .split_once(':')
        {
            None => DEFAULT_PORT,
            Some((_, port)) => match port.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(malformed()),
            },
        };
        Ok(Self::Tls { host, port })
    }
}

impl Endpoint {
    /// What stands in the `Host` header and is signed.
    pub(crate) fn authority(&self) -> String {
        match self {
            Self::Tls { host, port } if host.contains(':') => format!("[{host}]:{port}"),
            Self::Tls { host, port } => format!("{host}:{port}"),
            Self::Admin(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls { .. } => write!(f, "https://{}", self.authority()),
            Self::Admin(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_round_trip() {
        for (text, shown) in [
            ("https://127.0.0.1:7343", "https://127.0.0.1:7343"),
            ("https://kms.example.org/", "https://kms.example.org:7343"),
            ("https://[::1]:9", "https://[::1]:9"),
            ("unix:///run/lastkey/admin.sock", "unix:///run/lastkey/admin.sock"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "http://127.0.0.1:1",
            "127.0.0.1:7343",
            "https://",
            "https://u@host",
            "https://host/path",
            "https://host?x=1",
            "https://host:99999",
            "https://host:0",
            "unix://relative",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
