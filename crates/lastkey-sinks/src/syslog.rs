//! Syslog: RFC 5424 messages over a local socket, UDP (RFC 5426), or TCP with counted octets
//! (RFC 6587 §3.4.1).
//!
//! ```text
//! <110>1 2026-01-31T12:00:00.000Z host lastkey 4711 Encrypt - {"seq":7,"prev":"9f…",…}
//! ```
//! The facility is 13, *log audit*; the severity is 6, *informational*, for what was done and 4,
//! *warning*, for what was refused. The message is the record's line as it is.
//!
//! None of the three acknowledges anything. UDP loses what the network loses; TCP loses what was
//! under way when a connection broke. Whoever needs every record takes the webhook.

use std::{io, path::PathBuf, sync::OnceLock, time::Duration};

use serde::Deserialize;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UdpSocket, UnixDatagram},
};

use crate::target::DeliveryError;

const FACILITY: u8 = 13;
const INFORMATIONAL: u8 = 6;
const WARNING: u8 = 4;
/// RFC 5424 §6.2.7.
const MAX_MESSAGE_ID: usize = 32;
/// The largest datagram that is tried; a longer record says so instead of being cut.
const MAX_DATAGRAM: usize = 60_000;
const CONNECT: Duration = Duration::from_secs(5);

/// How a syslog is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A datagram socket of this machine.
    Unix(PathBuf),
    /// `host:port`.
    Udp(String),
    /// `host:port`.
    Tcp(String),
}

/// A syslog.
pub(crate) struct Syslog {
    transport: Transport,
    open: Option<Open>,
}

enum Open {
    Unix(UnixDatagram),
    Udp(UdpSocket),
    Tcp(TcpStream),
}

impl Syslog {
    pub(crate) fn new(transport: Transport) -> Self {
        Self { transport, open: None }
    }

    pub(crate) async fn deliver(&mut self, lines: &[Vec<u8>]) -> Result<(), DeliveryError> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect().await?,
        };
        match &mut open {
            Open::Tcp(stream) => {
                let mut bytes = Vec::new();
                for line in lines {
                    let message = message(line);
                    bytes.extend_from_slice(format!("{} ", message.len()).as_bytes());
                    bytes.extend_from_slice(&message);
                }
                // A peer that is gone shows before the write, not after it.
                if has_ended(stream)? {
                    return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
                }
                stream.write_all(&bytes).await?;
                stream.flush().await?;
            }
            Open::Unix(socket) => {
                for line in lines {
                    socket.send(&datagram(line)).await?;
                }
            }
            Open::Udp(socket) => {
                for line in lines {
                    socket.send(&datagram(line)).await?;
                }
            }
        }
        self.open = Some(open);
        Ok(())
    }

    async fn connect(&self) -> Result<Open, DeliveryError> {
        let connect = async {
            Ok::<_, io::Error>(match &self.transport {
                Transport::Unix(path) => {
                    let socket = UnixDatagram::unbound()?;
                    socket.connect(path)?;
                    Open::Unix(socket)
                }
                Transport::Udp(host) => {
                    let address = tokio::net::lookup_host(host).await?.next();
                    let address = address.ok_or(io::ErrorKind::NotFound)?;
                    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
                    let socket = UdpSocket::bind(any).await?;
                    socket.connect(address).await?;
                    Open::Udp(socket)
                }
                Transport::Tcp(host) => Open::Tcp(TcpStream::connect(host).await?),
            })
        };
        Ok(tokio::time::timeout(CONNECT, connect)
            .await
            .map_err(|_| DeliveryError::NoConnection)??)
    }
}

/// Whether the peer has closed the connection.
fn has_ended(stream: &TcpStream) -> io::Result<bool> {
    let mut one = [0; 1];
    match stream.try_read(&mut one) {
        Ok(n) => Ok(n == 0),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow, default)]
    time: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    action: std::borrow::Cow<'a, str>,
    #[serde(borrow, default)]
    outcome: std::borrow::Cow<'a, str>,
    checkpoint: Option<u32>,
    #[serde(default)]
    seq: u64,
}

/// A line of the log as an RFC 5424 message.
pub fn message(line: &[u8]) -> Vec<u8> {
    render(line, line)
}

/// The same, with the number instead of the record where that is too long for a datagram.
fn datagram(line: &[u8]) -> Vec<u8> {
    if line.len() <= MAX_DATAGRAM {
        return message(line);
    }
    let seq = serde_json::from_slice::<Head<'_>>(line).map_or(0, |head| head.seq);
    let short = format!(r#"{{"seq":{seq},"too_long_for_syslog":{}}}"#, line.len());
    render(line, short.as_bytes())
}

fn render(line: &[u8], said: &[u8]) -> Vec<u8> {
    let head: Option<Head<'_>> = serde_json::from_slice(line).ok();
    let head = head.as_ref();
    let checkpoint = head.is_some_and(|head| head.checkpoint.is_some());
    let fine =
        checkpoint || head.is_none_or(|head| head.outcome == "ok" || head.outcome.is_empty());
    let priority = FACILITY * 8 + if fine { INFORMATIONAL } else { WARNING };
    // RFC 5424 §6.2.3: the nil value where there is none.
    let time = head.map_or("", |head| &head.time);
    let time = if is_time(time) { time } else { "-" };
    let id = if checkpoint { "checkpoint" } else { head.map_or("", |head| &head.action) };
    let mut id: String = id.chars().filter(char::is_ascii_graphic).take(MAX_MESSAGE_ID).collect();
    if id.is_empty() {
        id.push('-');
    }
    let process = std::process::id();
    let mut out =
        format!("<{priority}>1 {time} {} lastkey {process} {id} - ", host_name()).into_bytes();
    out.extend_from_slice(said);
    out
}

/// Our own form of a time, which is one of RFC 3339's.
fn is_time(text: &str) -> bool {
    text.len() == 24
        && text.ends_with('Z')
        && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'-' | b':' | b'.' | b'T' | b'Z'))
}

/// RFC 5424 §6.2.4.
fn host_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name: String = name.chars().filter(char::is_ascii_graphic).take(255).collect();
        if name.is_empty() { "-".to_owned() } else { name }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(line: &str) -> Vec<String> {
        let text = String::from_utf8(message(line.as_bytes())).unwrap();
        text.splitn(8, ' ').map(str::to_owned).collect()
    }

    #[test]
    fn a_record_is_a_message() {
        let line =
            r#"{"seq":7,"time":"2026-01-31T12:00:00.000Z","action":"Encrypt","outcome":"ok"}"#;
        let parts = parts(line);
        assert_eq!(parts[0], "<110>1");
        assert_eq!(parts[1], "2026-01-31T12:00:00.000Z");
        assert_eq!(
            (parts[3].as_str(), parts[5].as_str(), parts[6].as_str()),
            ("lastkey", "Encrypt", "-")
        );
        assert_eq!(parts[7], line);
    }

    #[test]
    fn refusals_warn_and_what_is_odd_stays_in_its_place() {
        assert_eq!(parts(r#"{"outcome":"Rejected.Disabled","action":"Decrypt"}"#)[0], "<108>1");
        let odd = parts(r#"{"time":"now then","action":"a b\u0000","outcome":"ok"}"#);
        assert_eq!((odd[1].as_str(), odd[5].as_str()), ("-", "ab"));
        assert_eq!(parts("no json")[5], "-");
        assert_eq!(parts(r#"{"checkpoint":1,"seq":3}"#)[5], "checkpoint");
        let long = "x".repeat(100);
        assert_eq!(parts(&format!(r#"{{"action":"{long}"}}"#))[5].len(), MAX_MESSAGE_ID);
    }

    #[test]
    fn a_record_too_long_for_a_datagram_says_so() {
        let line = format!(r#"{{"seq":9,"target":"{}"}}"#, "x".repeat(70_000));
        let sent = String::from_utf8(datagram(line.as_bytes())).unwrap();
        let short = format!(r#"{{"seq":9,"too_long_for_syslog":{}}}"#, line.len());
        assert!(sent.ends_with(&short), "{sent}");
        assert_eq!(message(line.as_bytes()).len(), sent.len() - short.len() + line.len());
    }
}
