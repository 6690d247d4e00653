//! Where a server listens.

use std::{fmt, net::Ipv6Addr, path::PathBuf, str::FromStr};

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
        match host_and_port(authority.as_str()) {
            Some((host, port)) if plain => {
                Ok(Self::Tls { host: host.to_owned(), port: port.unwrap_or(DEFAULT_PORT) })
            }
            _ => Err(malformed()),
        }
    }
}

/// The host, without brackets, and the port of a URI's authority; `None` where it is anything else.
///
/// An IPv6 address stands in brackets, and nothing else does. The `http` crate's own parts of an
/// authority hide a port that does not parse, and what stands around brackets.
pub fn host_and_port(authority: &str) -> Option<(&str, Option<u16>)> {
    let (host, rest) = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let (host, rest) = bracketed.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, rest)
        }
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    if host.is_empty() || host.contains(['[', ']', '@']) {
        return None;
    }
    match rest.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port != 0).map(|port| (host, Some(port))),
        None => rest.is_empty().then_some((host, None)),
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
            // fuzzing (client_endpoint): a host in brackets that is no address, or not all of it
            "https://[]",
            "https://[]s",
            "https://[host]:1",
            "https://[::1]s",
            "https://1[::1]",
            "https://[::1]:0",
            "unix://relative",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }
}
