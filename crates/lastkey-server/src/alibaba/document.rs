//! Answers in JSON or XML, written by one set of calls.
//!
//! An answer is an object of texts, numbers, truth values, objects and lists. A list on this wire
//! has two names: `{"Keys":{"Key":[…]}}`, `<Keys><Key>…</Key><Key>…</Key></Keys>`. The writer goes
//! straight into the buffer that is sent; there is no tree in between.

use std::fmt::{self, Write as _};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// The encoding that a client asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// The default.
    #[default]
    Json,
    /// `Format=XML`.
    Xml,
}

impl Format {
    /// The format of that name in any case; JSON for a name we do not know.
    pub fn parse(name: Option<&str>) -> Self {
        match name {
            Some(name) if name.eq_ignore_ascii_case("xml") => Self::Xml,
            _ => Self::Json,
        }
    }

    /// What the answer's `content-type` says. The SDKs look for `text/xml`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json;charset=utf-8",
            Self::Xml => "text/xml;charset=utf-8",
        }
    }
}

const XML_HEAD: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>";

/// An answer that is being written.
#[derive(Debug)]
pub struct Document {
    text: String,
    format: Format,
    root: &'static str,
    /// Whether nothing stands in the current JSON object yet.
    empty: bool,
}

impl Document {
    /// Begins an answer; `root` is the outermost element in XML.
    pub fn begin(format: Format, root: &'static str) -> Self {
        let mut text = String::with_capacity(512);
        match format {
            Format::Json => text.push('{'),
            Format::Xml => {
                let _ = write!(text, "{XML_HEAD}<{root}>");
            }
        }
        Self { text, format, root, empty: true }
    }

    /// Ends the answer.
    pub fn finish(mut self) -> String {
        match self.format {
            Format::Json => self.text.push('}'),
            Format::Xml => self.close(self.root),
        }
        self.text
    }

    /// Writes a text.
    pub fn text(&mut self, name: &'static str, value: &str) {
        self.field(name, |text, format| match format {
            Format::Json => {
                text.push('"');
                escape_json(value, text);
                text.push('"');
            }
            Format::Xml => escape_xml(value, text),
        });
    }

    /// Writes what `value` displays, which must need no escaping: ids, times, base64, codes.
    pub fn plain(&mut self, name: &'static str, value: impl fmt::Display) {
        self.field(name, |text, format| {
            let quote = if format == Format::Json { "\"" } else { "" };
            let _ = write!(text, "{quote}{value}{quote}");
        });
    }

    /// Writes bytes in base64.
    pub fn base64(&mut self, name: &'static str, bytes: &[u8]) {
        self.field(name, |text, format| {
            let quote = if format == Format::Json { "\"" } else { "" };
            text.push_str(quote);
            STANDARD.encode_string(bytes, text);
            text.push_str(quote);
        });
    }

    /// Writes a number.
    pub fn number(&mut self, name: &'static str, value: usize) {
        self.count(name, value as u64);
    }

    /// Writes how often something was done.
    pub fn count(&mut self, name: &'static str, value: u64) {
        self.field(name, |text, _| {
            let _ = write!(text, "{value}");
        });
    }

    /// Writes a truth value.
    pub fn boolean(&mut self, name: &'static str, value: bool) {
        self.field(name, |text, _| text.push_str(if value { "true" } else { "false" }));
    }

    /// Writes an object.
    pub fn object(&mut self, name: &'static str, fill: impl FnOnce(&mut Self)) {
        self.open(name);
        self.braced(fill);
        self.close_element(name);
    }

    /// Writes a list of objects, `outer` around elements named `item`.
    pub fn list<T>(
        &mut self,
        (outer, item): (&'static str, &'static str),
        items: impl IntoIterator<Item = T>,
        mut fill: impl FnMut(&mut Self, T),
    ) {
        self.object(outer, |this| match this.format {
            Format::Json => {
                this.open(item);
                this.text.push('[');
                for (index, value) in items.into_iter().enumerate() {
                    if index > 0 {
                        this.text.push(',');
                    }
                    this.braced(|this| fill(this, value));
                }
                this.text.push(']');
                this.empty = false;
            }
            Format::Xml => {
                for value in items {
                    this.object(item, |this| fill(this, value));
                }
            }
        });
    }

    fn field(&mut self, name: &'static str, write: impl FnOnce(&mut String, Format)) {
        self.open(name);
        write(&mut self.text, self.format);
        self.close_element(name);
    }

    /// An object's inside: braces in JSON, nothing in XML.
    fn braced(&mut self, fill: impl FnOnce(&mut Self)) {
        let json = self.format == Format::Json;
        if json {
            self.text.push('{');
        }
        self.empty = true;
        fill(self);
        self.empty = false;
        if json {
            self.text.push('}');
        }
    }

    fn open(&mut self, name: &str) {
        match self.format {
            Format::Json => {
                if !std::mem::take(&mut self.empty) {
                    self.text.push(',');
                }
                self.text.push('"');
                self.text.push_str(name);
                self.text.push_str("\":");
            }
            Format::Xml => {
                self.text.push('<');
                self.text.push_str(name);
                self.text.push('>');
            }
        }
    }

    fn close_element(&mut self, name: &str) {
        if self.format == Format::Xml {
            self.close(name);
        }
    }

    fn close(&mut self, name: &str) {
        self.text.push_str("</");
        self.text.push_str(name);
        self.text.push('>');
    }
}

/// RFC 8259 §7. `<` too, so that an answer shown by a careless page stays text.
fn escape_json(value: &str, into: &mut String) {
    let mut clean = 0;
    for (at, byte) in value.bytes().enumerate() {
        let escaped = match byte {
            b'"' => "\\\"",
            b'\\' => "\\\\",
            b'\n' => "\\n",
            b'\r' => "\\r",
            b'\t' => "\\t",
            b'<' => "\\u003c",
            0..=0x1f => "",
            _ => continue,
        };
        into.push_str(&value[clean..at]);
        into.push_str(escaped);
        if escaped.is_empty() {
            let _ = write!(into, "\\u{byte:04x}");
        }
        clean = at + 1;
    }
    into.push_str(&value[clean..]);
}

/// XML 1.0 §2.4; what XML cannot hold at all becomes U+FFFD (ask [`fits_xml`] where that matters).
fn escape_xml(value: &str, into: &mut String) {
    for c in value.chars() {
        match c {
            '&' => into.push_str("&amp;"),
            '<' => into.push_str("&lt;"),
            '>' => into.push_str("&gt;"),
            '"' => into.push_str("&quot;"),
            '\'' => into.push_str("&#39;"),
            // A parser would turn these into spaces or line feeds.
            '\r' => into.push_str("&#13;"),
            '\t' => into.push_str("&#9;"),
            '\n' => into.push_str("&#10;"),
            c if is_xml(c) => into.push(c),
            _ => into.push('\u{fffd}'),
        }
    }
}

/// Whether XML can hold this text unchanged.
pub fn fits_xml(value: &str) -> bool {
    value.chars().all(is_xml)
}

/// XML 1.0 §2.2.
fn is_xml(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample(format: Format) -> String {
        let mut document = Document::begin(format, "KMS");
        document.plain("RequestId", "4C46");
        document.object("KeyMetadata", |key| {
            key.text("Description", "a \"<&>' \n");
            key.boolean("On", true);
        });
        document.list(("Keys", "Key"), ["a", "b"], |entry, id| {
            entry.plain("KeyId", id);
            entry.number("N", 1);
        });
        document.list(("Tags", "Tag"), [""; 0], |_, _| {});
        document.number("TotalCount", 2);
        document.finish()
    }

    #[test]
    fn json() {
        assert_eq!(
            sample(Format::Json),
            "{\"RequestId\":\"4C46\",\"KeyMetadata\":{\"Description\":\"a \\\"\\u003c&>' \\n\",\
             \"On\":true},\"Keys\":{\"Key\":[{\"KeyId\":\"a\",\"N\":1},{\"KeyId\":\"b\",\"N\":1}]},\
             \"Tags\":{\"Tag\":[]},\"TotalCount\":2}"
        );
    }

    #[test]
    fn xml() {
        assert_eq!(
            sample(Format::Xml),
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><KMS><RequestId>4C46</RequestId>\
             <KeyMetadata><Description>a &quot;&lt;&amp;&gt;&#39; &#10;</Description><On>true</On>\
             </KeyMetadata><Keys><Key><KeyId>a</KeyId><N>1</N></Key><Key><KeyId>b</KeyId><N>1</N>\
             </Key></Keys><Tags></Tags><TotalCount>2</TotalCount></KMS>"
        );
    }

    #[test]
    fn formats() {
        assert_eq!(Format::parse(None), Format::Json);
        assert_eq!(Format::parse(Some("json")), Format::Json);
        assert_eq!(Format::parse(Some("XML")), Format::Xml);
        assert_eq!(Format::parse(Some("yaml")), Format::Json);
    }

    proptest! {
        #[test]
        fn any_text_is_one_json_string(value in ".*") {
            let mut document = Document::begin(Format::Json, "KMS");
            document.text("T", &value);
            let parsed: serde_json::Value = serde_json::from_str(&document.finish()).unwrap();
            prop_assert_eq!(parsed["T"].as_str().unwrap(), value);
        }

        #[test]
        fn any_text_is_one_xml_element(value in ".*") {
            let mut document = Document::begin(Format::Xml, "KMS");
            document.text("T", &value);
            let text = document.finish();
            prop_assert!(text.chars().all(is_xml));
            prop_assert_eq!(text.matches('<').count(), 5);
        }
    }
}
