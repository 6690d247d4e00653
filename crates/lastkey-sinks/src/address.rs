//! Where a sink is, as the command line names it.

use std::{fmt, net::Ipv6Addr, path::PathBuf, str::FromStr};

use http::Uri;

use crate::syslog::Transport;

/// Where the local syslog listens.
const LOCAL: &str = "/dev/log";
/// RFC 5426 §3.3.
const UDP_PORT: u16 = 514;
/// RFC 6587 names none; this one is registered for syslog over TCP.
const TCP_PORT: u16 = 601;

/// A sink's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkAddress {
    /// Standard output.
    Stdout,
    /// A syslog.
    Syslog(Transport),
    /// An HTTP receiver.
    Webhook(Uri),
}

/// Why a text names no sink.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// None of the forms.
    #[error(
        "give stdout, syslog, syslog:///PATH, syslog+udp://HOST[:PORT], syslog+tcp://HOST[:PORT] \
         or https://HOST/PATH"
    )]
    Form,
    /// Records would cross the network readable.
    #[error("http:// goes to this machine only (127.0.0.1, [::1], localhost); use https://")]
    Plain,
    /// A credential would stand in the process list and in logs.
    #[error("no user and password in the address; use --audit-sink-token-file FILE")]
    Credential,
}

impl FromStr for SinkAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let host = |rest: &str, port| host_and_port(rest, port).ok_or(AddressError::Form);
        if text == "stdout" {
            return Ok(Self::Stdout);
        }
        if text == "syslog" {
            return Ok(Self::Syslog(Transport::Unix(PathBuf::from(LOCAL))));
        }
        if let Some(path) = text.strip_prefix("syslog://") {
            let absolute = path.starts_with('/') && path.len() > 1;
            let path = absolute.then(|| PathBuf::from(path)).ok_or(AddressError::Form)?;
            return Ok(Self::Syslog(Transport::Unix(path)));
        }
        if let Some(rest) = text.strip_prefix("syslog+udp://") {
            return Ok(Self::Syslog(Transport::Udp(host(rest, UDP_PORT)?)));
        }
        if let Some(rest) = text.strip_prefix("syslog+tcp://") {
            return Ok(Self::Syslog(Transport::Tcp(host(rest, TCP_PORT)?)));
        }
        webhook(text).map(Self::Webhook)
    }
}

fn webhook(text: &str) -> Result<Uri, AddressError> {
    let uri: Uri = text.parse().map_err(|_| AddressError::Form)?;
    let authority = uri.authority().ok_or(AddressError::Form)?;
    if authority.as_str().contains('@') {
        return Err(AddressError::Credential);
    }
    match uri.scheme_str() {
        _ if split(authority.as_str()).is_none() => Err(AddressError::Form),
        Some("https") => Ok(uri),
        Some("http") if is_this_machine(authority.host()) => Ok(uri),
        Some("http") => Err(AddressError::Plain),
        _ => Err(AddressError::Form),
    }
}

fn is_this_machine(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`, always with a port in the end.
fn host_and_port(text: &str, port: u16) -> Option<String> {
    let authority: http::uri::Authority = text.parse().ok()?;
    let (host, given) = split(authority.as_str())?;
    Some(format!("{host}:{}", given.unwrap_or(port)))
}

/// Host and port of an authority. An IPv6 address stands in brackets, and nothing else does.
fn split(authority: &str) -> Option<(&str, Option<u16>)> {
    let end = match authority.strip_prefix('[') {
        Some(bracketed) => {
            let end = bracketed.find(']')?;
            bracketed[..end].parse::<Ipv6Addr>().ok()?;
            end + 2
        }
        None if authority.contains(['[', ']', '@']) => return None,
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(end);
    if host.is_empty() {
        return None;
    }
    match rest.strip_prefix(':') {
        Some(port) => port.parse().ok().map(|port| (host, Some(port))),
        None => rest.is_empty().then_some((host, None)),
    }
}

impl fmt::Display for SinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Syslog(Transport::Unix(path)) => write!(f, "syslog://{}", path.display()),
            Self::Syslog(Transport::Udp(host)) => write!(f, "syslog+udp://{host}"),
            Self::Syslog(Transport::Tcp(host)) => write!(f, "syslog+tcp://{host}"),
            // A query may hold a token.
            Self::Webhook(uri) => {
                let (scheme, authority) = (uri.scheme_str(), uri.authority());
                write!(
                    f,
                    "{}://{}{}",
                    scheme.unwrap_or_default(),
                    authority.map_or("", http::uri::Authority::as_str),
                    uri.path()
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form() {
        for (text, shown) in [
            ("stdout", "stdout"),
            ("syslog", "syslog:///dev/log"),
            ("syslog:///run/log.sock", "syslog:///run/log.sock"),
            ("syslog+udp://log.example", "syslog+udp://log.example:514"),
            ("syslog+udp://[::1]", "syslog+udp://[::1]:514"),
            ("syslog+tcp://log.example:1514", "syslog+tcp://log.example:1514"),
            ("syslog+tcp://[::1]:1514", "syslog+tcp://[::1]:1514"),
            ("https://siem.example/in?token=1", "https://siem.example/in"),
            ("http://127.0.0.1:8080/in", "http://127.0.0.1:8080/in"),
            ("http://[::1]:8080/", "http://[::1]:8080/"),
        ] {
            assert_eq!(text.parse::<SinkAddress>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_none() {
        for text in [
            "",
            "stderr",
            "syslog://",
            "syslog://host",
            "syslog+tcp://",
            "ftp://a/b",
            "a b",
            "syslog+tcp://h:port",
            "syslog+udp://a/b",
            "https://",
            "/dev/log",
            // fuzzing (sinks_address): brackets around something else than an address
            "syslog+tcp://1[:::]1",
            "syslog+udp://[]",
            "syslog+udp://[::1]x",
            "https://[]x/",
            "https://h:port/",
        ] {
            assert_eq!(text.parse::<SinkAddress>(), Err(AddressError::Form), "{text}");
        }
        assert_eq!("http://siem.example/".parse::<SinkAddress>(), Err(AddressError::Plain));
        assert_eq!("https://u:p@h/".parse::<SinkAddress>(), Err(AddressError::Credential));
    }
}
