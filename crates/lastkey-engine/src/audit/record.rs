//! The JSON of one record, written by hand because every request waits for it.

use std::{fmt::Write as _, net::SocketAddr, time::Duration};

use lastkey_crypto::KeyId;

use crate::{
    Timestamp,
    caller::{Caller, Principal, Source},
};

/// What most records fit into with the buffer they begin with.
const CAPACITY: usize = 640;

/// What one command did, gathered while it runs.
///
/// ```text
/// {"seq":7,"prev":"9f…","time":"2026-01-31T12:00:00.000Z","id":"B3…","action":"Encrypt",
///  "principal":"root/LK…","source":"127.0.0.1:51324","key":"0193…","key_version":"0193…",
///  "target":"alias/kubernetes","context":["tenant"],"outcome":"ok","latency_us":41,"nonce":"…"}
/// ```
/// (one line in the file). Never plaintext, ciphertext, or an encryption context's values.
#[derive(Clone, Debug)]
pub struct Record {
    body: String,
    context_open: bool,
}

impl Record {
    /// Begins the record of `action` by `caller`.
    pub fn begin(action: &str, caller: &Caller, now: Timestamp) -> Self {
        let mut body = String::with_capacity(CAPACITY);
        body.push_str(r#""time":""#);
        now.with_text(|text| body.push_str(text));
        body.push_str(r#"","id":""#);
        caller.request_id.with_text(|text| body.push_str(text));
        body.push_str(r#"","action":""#);
        body.push_str(action);
        body.push_str(r#"","principal":"#);
        write_principal(&mut body, &caller.principal);
        body.push_str(r#","source":""#);
        write_source(&mut body, caller.source);
        body.push('"');
        if caller.dry_run {
            body.push_str(r#","dry_run":true"#);
        }
        if let Some((print, signed)) = caller.nonce {
            body.push_str(r#","nonce":""#);
            write_hex(&mut body, print.0);
            let _ = write!(body, r#"","signed":{}"#, signed.as_seconds());
        }
        Self { body, context_open: false }
    }

    /// Adds a field whose value is text.
    pub fn field(&mut self, name: &str, value: impl std::fmt::Display) {
        self.body.push_str(",\"");
        self.body.push_str(name);
        self.body.push_str("\":");
        write_display(&mut self.body, &value);
    }

    /// Adds a field whose value is a number.
    pub fn number(&mut self, name: &str, value: u64) {
        let _ = write!(self.body, r#","{name}":{value}"#);
    }

    /// Adds the names, never the values, of an encryption context.
    pub fn context<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        if self.context_open {
            return;
        }
        let mut first = true;
        for name in names {
            self.body.push_str(if first { r#","context":["# } else { "," });
            first = false;
            write_text(&mut self.body, name);
        }
        if !first {
            self.body.push(']');
            self.context_open = true;
        }
    }

    /// Adds the ids of several keys that one command changes, or was refused to.
    pub(crate) fn changed_keys(&mut self, ids: impl Iterator<Item = KeyId>) {
        self.body.push_str(r#","changed_keys":["#);
        for (n, id) in ids.enumerate() {
            if n > 0 {
                self.body.push(',');
            }
            write_display(&mut self.body, &id);
        }
        self.body.push(']');
    }

    /// Where the record is now, to come [`back_to`](Self::back_to).
    pub(crate) fn mark(&self) -> Mark {
        Mark { length: self.body.len(), context_open: self.context_open }
    }

    /// Forgets what was added since `mark`.
    pub(crate) fn back_to(&mut self, mark: Mark) {
        self.body.truncate(mark.length);
        self.context_open = mark.context_open;
    }

    /// Ends the record: `outcome` is `ok` or an error's code.
    pub fn finish(mut self, outcome: &str, latency: Duration) -> Vec<u8> {
        self.body.push_str(r#","outcome":""#);
        self.body.push_str(outcome);
        self.body.push_str(r#"","latency_us":"#);
        write_number(&mut self.body, u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        self.body.into_bytes()
    }
}

/// A place in a record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    length: usize,
    context_open: bool,
}

/// [`Principal`]'s text as JSON; the one that signs requests, without the formatter's detours.
fn write_principal(out: &mut String, principal: &Principal) {
    match principal {
        Principal::Root { access_key_id } => {
            out.push_str("\"root/");
            escape(out, access_key_id);
            out.push('"');
        }
        other => write_display(out, other),
    }
}

/// [`Source`]'s text; IPv4 without the formatter's detours.
fn write_source(out: &mut String, source: Source) {
    match source {
        Source::Network(SocketAddr::V4(address)) => {
            for (at, part) in address.ip().octets().into_iter().enumerate() {
                if at > 0 {
                    out.push('.');
                }
                write_number(out, part.into());
            }
            out.push(':');
            write_number(out, address.port().into());
        }
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

/// 16 lower-case digits.
fn write_hex(out: &mut String, number: u64) {
    let mut digits = [0; 16];
    let _ = hex::encode_to_slice(number.to_be_bytes(), &mut digits);
    out.push_str(std::str::from_utf8(&digits).unwrap_or_default());
}

fn write_number(out: &mut String, mut number: u64) {
    // 2⁶⁴ has 20 digits.
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.push_str(std::str::from_utf8(&digits[at..]).unwrap_or_default());
}

/// Writes a value as JSON text.
fn write_display(out: &mut String, value: &dyn std::fmt::Display) {
    struct Escaping<'a>(&'a mut String);
    impl std::fmt::Write for Escaping<'_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            escape(self.0, text);
            Ok(())
        }
    }
    out.push('"');
    let _ = write!(Escaping(out), "{value}");
    out.push('"');
}

/// A text as it stands in a record, between the quotes.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    escape(&mut out, text);
    out
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    escape(out, text);
    out.push('"');
}

/// RFC 8259 §7: the quote, the backslash and control characters. DEL and the line separators
/// U+2028 and U+2029 too, so that no viewer breaks a line where the file does not.
fn escape(out: &mut String, text: &str) {
    // Nearly all that is recorded: ids, names, addresses.
    let is_plain = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\';
    if text.bytes().all(is_plain) {
        out.push_str(text);
        return;
    }
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::caller::{Principal, RequestId, Source};

    fn render(target: &str, names: &[&str]) -> String {
        let caller = Caller::new(
            Principal::Root { access_key_id: "LK\"1".into() },
            Source::Internal,
            RequestId::from_bytes([7; 16]),
        );
        let mut record = Record::begin("Encrypt", &caller, Timestamp::from_millis(0));
        record.field("target", target);
        record.context(names.iter().copied());
        let body = record.finish("ok", Duration::from_micros(5));
        format!("{{{}}}", String::from_utf8(body).unwrap())
    }

    #[test]
    fn a_record_goes_back_to_its_mark() {
        let caller =
            Caller::new(Principal::System, Source::Internal, RequestId::from_bytes([7; 16]));
        let mut record = Record::begin("Encrypt", &caller, Timestamp::from_millis(0));
        record.field("target", "alias/a");
        let mark = record.mark();
        let expected = record.clone().finish("ok", Duration::ZERO);
        record.context(["tenant"].into_iter());
        record.number("n", 1);
        record.back_to(mark);
        assert_eq!(record.clone().finish("ok", Duration::ZERO), expected);
        record.context(["tenant"].into_iter());
        assert!(String::from_utf8(record.finish("ok", Duration::ZERO)).unwrap().contains("tenant"));
    }

    #[test]
    fn where_a_request_came_from_is_told_as_addresses_are_written() {
        let told = |source: Source| {
            let mut out = String::new();
            write_source(&mut out, source);
            out
        };
        for text in ["127.0.0.1:51324", "10.0.255.9:1", "0.0.0.0:65535", "[::1]:443"] {
            assert_eq!(told(Source::Network(text.parse().unwrap())), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_stays_one_line_of_json(target in ".*", name in ".+") {
            let line = render(&target, &[&name]);
            prop_assert!(!line.contains('\n'));
            let value: serde_json::Value = serde_json::from_str(&line).unwrap();
            prop_assert_eq!(value["target"].as_str().unwrap(), target);
            prop_assert_eq!(value["context"][0].as_str().unwrap(), name);
            prop_assert_eq!(value["principal"].as_str().unwrap(), "root/LK\"1");
        }
    }
}
