//! A keep-alive connection written by hand, so that the client costs as little as it can.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::client::TlsStream;

use super::{Caller, Target, Template};
use crate::error::Error;

const OK: &[u8] = b"HTTP/1.1 200 ";
const LENGTH: &[u8] = b"content-length: ";

/// One connection, one request in flight.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    template: Template,
    side: &'static str,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(
        target: &Target,
        template: Template,
        side: &'static str,
    ) -> Result<Self, Error> {
        let tcp = TcpStream::connect(target.address).await?;
        tcp.set_nodelay(true)?;
        let stream = target.tls.connect(target.name.clone(), tcp).await?;
        Ok(Self { stream, template, side, request: Vec::new(), answer: Vec::new() })
    }

    /// Whether the server's /readyz answers 200.
    pub(crate) async fn is_ready(target: &Target) -> Result<bool, Error> {
        let tcp = TcpStream::connect(target.address).await?;
        let mut stream = target.tls.connect(target.name.clone(), tcp).await?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n").await?;
        stream.flush().await?;
        let mut answer = [0; OK.len()];
        stream.read_exact(&mut answer).await?;
        Ok(answer == OK)
    }

    /// Sends other requests from now on.
    pub(crate) fn turn_to(&mut self, template: Template) {
        self.template = template;
    }

    /// Signs and sends one request; gives the answer's body.
    pub(crate) async fn exchange(&mut self) -> Result<&[u8], Error> {
        self.request.clear();
        self.template.sign(&mut self.request);
        self.stream.write_all(&self.request).await?;
        self.stream.flush().await?;
        self.answer.clear();
        let body = loop {
            if self.stream.read_buf(&mut self.answer).await? == 0 {
                return Err(self.refusal());
            }
            if let Some(end) = find(&self.answer, b"\r\n\r\n") {
                let body = end + 4;
                let length = content_length(&self.answer[..end]).ok_or_else(|| self.refusal())?;
                if self.answer.len() >= body + length {
                    break body;
                }
            }
        };
        if !self.answer.starts_with(OK) {
            return Err(self.refusal());
        }
        Ok(&self.answer[body..])
    }

    fn refusal(&self) -> Error {
        let what = String::from_utf8_lossy(&self.answer).into_owned();
        Error::Answer { side: self.side, what }
    }
}

impl Caller for Connection {
    async fn call(&mut self) -> Result<(), Error> {
        self.exchange().await.map(|_| ())
    }
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

fn content_length(head: &[u8]) -> Option<usize> {
    let digits = &head[find(head, LENGTH)? + LENGTH.len()..];
    let end = digits.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(digits.len());
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths() {
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\ncontent-length: 42\r\nx: 1"), Some(42));
        assert_eq!(content_length(b"content-length: 7"), Some(7));
        assert_eq!(content_length(b"x: 1"), None);
    }
}
