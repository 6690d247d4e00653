//! HTTP/1.1 messages on a stream that is kept: framed by their length or by chunks.

use std::io::{self, BufRead, Write};

/// Longer heads are none of ours.
const MAX_LINES: usize = 200;

/// A request as it was sent.
#[derive(Debug, Clone)]
pub struct Request {
    /// `GET`, `PUT` …
    pub method: String,
    /// Path and query, encoded.
    pub target: String,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    /// Empty where there is none.
    pub body: Vec<u8>,
}

/// An answer with the headers that say something of it.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Names in small letters.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    /// The next request; `None` when the other end has hung up before one.
    pub(crate) fn read(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let Some((first, headers)) = read_head(stream)? else { return Ok(None) };
        let mut words = first.split(' ').map(str::to_owned);
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Err(broken("no request line"));
        };
        let body = read_body(stream, &headers)?;
        Ok(Some(Self { method, target, headers, body }))
    }

    pub(crate) fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let first = format!("{} {} HTTP/1.1", self.method, self.target);
        write_message(stream, &first, (&self.headers, &self.body))
    }
}

impl Answer {
    pub(crate) fn read(stream: &mut impl BufRead) -> io::Result<Self> {
        let hung_up = || io::Error::new(io::ErrorKind::UnexpectedEof, "no answer");
        let (first, headers) = read_head(stream)?.ok_or_else(hung_up)?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| broken("no status line"))?;
        let body = read_body(stream, &headers)?;
        Ok(Self { status, headers, body })
    }

    pub(crate) fn write(&self, stream: &mut impl Write) -> io::Result<()> {
        let first = format!("HTTP/1.1 {} said", self.status);
        write_message(stream, &first, (&self.headers, &self.body))
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

fn header<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

type Head = (String, Vec<(String, String)>);

fn read_head(stream: &mut impl BufRead) -> io::Result<Option<Head>> {
    let first = read_line(stream)?;
    if first.is_empty() {
        return Ok(None);
    }
    let mut headers = Vec::new();
    for _ in 0..MAX_LINES {
        let line = read_line(stream)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(Some((first.trim_end().to_owned(), headers)));
        }
        let (name, value) = line.split_once(':').ok_or_else(|| broken("a header"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Err(broken("a head without an end"))
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    Ok(line)
}

fn read_body(stream: &mut impl BufRead, headers: &[(String, String)]) -> io::Result<Vec<u8>> {
    if header(headers, "transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        return read_chunks(stream);
    }
    let length = header(headers, "content-length").map_or(Ok(0), str::parse);
    let mut body = vec![0; length.map_err(|_| broken("a length"))?];
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn read_chunks(stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = read_line(stream)?;
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
        let size = size.map_err(|_| broken("the size of a chunk"))?;
        let from = body.len();
        body.resize(from + size, 0);
        stream.read_exact(&mut body[from..])?;
        // its end of line; behind the last one there may be trailers
        while !read_line(stream)?.trim_end().is_empty() {}
        if size == 0 {
            return Ok(body);
        }
    }
}

/// Framed by its length, however it came.
fn write_message(
    stream: &mut impl Write,
    first: &str,
    (headers, body): (&[(String, String)], &[u8]),
) -> io::Result<()> {
    let mut bytes = format!("{first}\r\n").into_bytes();
    for (name, value) in headers {
        if !matches!(name.as_str(), "transfer-encoding" | "content-length" | "connection") {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
    }
    bytes.extend_from_slice(format!("content-length: {}\r\n\r\n", body.len()).as_bytes());
    bytes.extend_from_slice(body);
    stream.write_all(&bytes)?;
    stream.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_framed_one_after_the_other() {
        let raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n\
            HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\nRetry-After: 3\r\n\r\nx";
        let mut stream = &raw[..];
        let first = Answer::read(&mut stream).unwrap();
        assert_eq!((first.status, &first.body[..]), (200, &b"abcde"[..]));
        let second = Answer::read(&mut stream).unwrap();
        assert_eq!((second.status, second.header("retry-after")), (404, Some("3")));
        assert!(Answer::read(&mut stream).is_err());
        let mut cut = &raw[..raw.len() - 1];
        Answer::read(&mut cut).unwrap();
        assert!(Answer::read(&mut cut).is_err());
        let mut sent = Vec::new();
        first.write(&mut sent).unwrap();
        assert_eq!(Answer::read(&mut &sent[..]).unwrap().body, b"abcde");
        let request = b"PUT /a?b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
        let read = Request::read(&mut &request[..]).unwrap().unwrap();
        assert_eq!((read.target.as_str(), &read.body[..]), ("/a?b", &b"hi"[..]));
        assert!(Request::read(&mut &b""[..]).unwrap().is_none());
    }
}
