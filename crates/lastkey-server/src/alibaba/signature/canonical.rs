//! The texts that the three signature protocols sign, built the way the official SDKs build them.
//!
//! RPC v1: `METHOD&%2F&escape(sorted name=escape(value), joined by &)`, query and form together,
//! without `Signature`. ACS3 and ACS4: method, path, sorted query, signed headers, their names
//! and the payload's hash on lines of their own. The form is covered by that hash alone.

use crate::params::{Params, Place};

/// Room for most texts; the C library's allocator is quick up to here.
const TEXT: usize = 960;
const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// RFC 3986 §2.3: what is never escaped.
const fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Appends `text` percent-escaped as RFC 3986 has it, upper-case digits.
pub fn escape(text: &[u8], into: &mut Vec<u8>) {
    for &byte in text {
        if unreserved(byte) {
            into.push(byte);
        } else {
            into.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// [`escape`] twice in one pass: the percent sign of the first becomes `%25`.
fn escape_twice(text: &[u8], into: &mut Vec<u8>) {
    for &byte in text {
        if unreserved(byte) {
            into.push(byte);
        } else {
            into.extend_from_slice(b"%25");
            into.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
}

/// The string to sign of RPC v1.
pub(super) fn rpc(method: &str, params: &Params<'_>) -> Vec<u8> {
    let mut text = Vec::with_capacity(TEXT);
    text.extend_from_slice(method.as_bytes());
    text.extend_from_slice(b"&%2F&");
    let covered = params.iter().filter(|param| param.name != "Signature");
    for (index, param) in covered.enumerate() {
        if index > 0 {
            text.extend_from_slice(b"%26");
        }
        escape_twice(param.name.as_bytes(), &mut text);
        text.extend_from_slice(b"%3D");
        escape_twice(param.value.as_bytes(), &mut text);
    }
    text
}

/// One header that a signature covers: lower-case name and trimmed value.
#[derive(Clone, Copy, Debug)]
pub(super) struct SignedHeader<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a str,
}

/// What ACS3 and ACS4 cover.
pub(super) struct Canonical<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) params: &'a Params<'a>,
    pub(super) headers: &'a [SignedHeader<'a>],
    pub(super) signed_headers: &'a str,
    pub(super) payload_hash: &'a str,
}

impl Canonical<'_> {
    /// The canonical request.
    pub(super) fn text(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(TEXT);
        text.extend_from_slice(self.method.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(self.path.as_bytes());
        text.push(b'\n');
        self.query(&mut text);
        text.push(b'\n');
        for header in self.headers {
            text.extend_from_slice(header.name.as_bytes());
            text.push(b':');
            text.extend_from_slice(header.value.as_bytes());
            text.push(b'\n');
        }
        text.push(b'\n');
        text.extend_from_slice(self.signed_headers.as_bytes());
        text.push(b'\n');
        text.extend_from_slice(self.payload_hash.as_bytes());
        text
    }

    fn query(&self, text: &mut Vec<u8>) {
        let in_query = self.params.iter().filter(|param| param.place == Place::Query);
        for (index, param) in in_query.enumerate() {
            if index > 0 {
                text.push(b'&');
            }
            escape(param.name.as_bytes(), text);
            text.push(b'=');
            escape(param.value.as_bytes(), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_all_but_unreserved() {
        let mut out = Vec::new();
        escape(b"aZ09-._~ +*/%\xc3\xbc", &mut out);
        assert_eq!(out, b"aZ09-._~%20%2B%2A%2F%25%C3%BC");
    }

    #[test]
    fn escaping_twice_is_escaping_the_escaped() {
        let all: Vec<u8> = (0..=255).collect();
        let (mut once, mut twice, mut direct) = (Vec::new(), Vec::new(), Vec::new());
        escape(&all, &mut once);
        escape(&once, &mut twice);
        escape_twice(&all, &mut direct);
        assert_eq!(twice, direct);
    }
}
