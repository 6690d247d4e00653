//! Reading query strings and forms: the only parser between the network and the Alibaba wire.
//!
//! Everything here is input from strangers. It promises bounded work (number, length), no
//! guessing (duplicate names, broken escapes and text that is not UTF-8 are refused, so that two
//! readers of one request can never see two different requests), and it borrows where nothing is
//! escaped.

use std::borrow::Cow;

/// Most parameters of one request: 50 resource ids, 20 tags of two and the common ones fit.
pub const MAX_PARAMS: usize = 256;
/// Longest parameter name in bytes.
pub const MAX_NAME: usize = 128;
/// Longest parameter value in bytes, unescaped.
pub const MAX_VALUE: usize = 64 * 1024;

/// Where a parameter stood in the request; some signatures cover only one of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the request's address.
    Query,
    /// In a form body.
    Form,
}

/// One parameter, unescaped.
#[derive(Debug)]
pub struct Param<'a> {
    /// Its name; only letters, digits, `.`, `_` and `-`.
    pub name: &'a str,
    /// Its value.
    pub value: Cow<'a, str>,
    /// Where it stood.
    pub place: Place,
}

/// Why a query string or form was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// More than [`MAX_PARAMS`].
    #[error("there are more than {MAX_PARAMS} parameters")]
    TooMany,
    /// A name is empty, too long, or has a character that no parameter of ours has.
    #[error(
        "a parameter name is not of at most {MAX_NAME} letters, digits, dots, hyphens and \
         underscores"
    )]
    Name,
    /// A value is longer than [`MAX_VALUE`].
    #[error("a parameter value is longer than {MAX_VALUE} bytes")]
    TooLong,
    /// A percent sign without two hexadecimal digits after it.
    #[error("a percent escape is not complete")]
    Escape,
    /// Not UTF-8.
    #[error("a parameter is not UTF-8 text")]
    NotUtf8,
    /// A name occurs twice.
    #[error("a parameter occurs twice")]
    Duplicate,
}

/// All parameters of one request, sorted bytewise by name, no name twice.
#[derive(Debug, Default)]
pub struct Params<'a> {
    sorted: Vec<Param<'a>>,
}

impl<'a> Params<'a> {
    /// Reads the query string and, where the body is a form, the form.
    ///
    /// # Errors
    /// [`ParamsError`] as described in the module's text.
    pub fn parse(query: &'a str, form: &'a [u8]) -> Result<Self, ParamsError> {
        // What SDKs send fits, and so does the buffer into the allocator's fast path.
        let mut sorted = Vec::with_capacity(16);
        read(query.as_bytes(), Place::Query, &mut sorted)?;
        read(form, Place::Form, &mut sorted)?;
        sorted.sort_unstable_by(|a, b| a.name.cmp(b.name));
        if sorted.windows(2).any(|pair| pair[0].name == pair[1].name) {
            return Err(ParamsError::Duplicate);
        }
        Ok(Self { sorted })
    }

    /// The value of a parameter; an empty one counts as given.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.sorted.binary_search_by(|param| param.name.cmp(name)).ok()?;
        Some(&self.sorted[at].value)
    }

    /// The value of a parameter, none if it is absent or empty: SDKs send empty ones for "unset".
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    /// All parameters in bytewise order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Param<'a>> {
        self.sorted.iter()
    }

    /// The parameters whose names begin with `prefix`, in bytewise order.
    pub fn with_prefix(&self, prefix: &str) -> impl Iterator<Item = &Param<'a>> {
        let start = self.sorted.partition_point(|param| param.name < prefix);
        self.sorted[start..].iter().take_while(move |param| param.name.starts_with(prefix))
    }
}

fn read<'a>(text: &'a [u8], place: Place, into: &mut Vec<Param<'a>>) -> Result<(), ParamsError> {
    for pair in text.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()) {
        if into.len() == MAX_PARAMS {
            return Err(ParamsError::TooMany);
        }
        let (name, value) = match pair.iter().position(|byte| *byte == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        };
        into.push(Param { name: parse_name(name)?, value: unescape(value)?, place });
    }
    Ok(())
}

/// Names are taken as they stand: every SDK leaves these characters unescaped, and an escaped
/// name would only be a second spelling of the same parameter.
fn parse_name(name: &[u8]) -> Result<&str, ParamsError> {
    let fits = !name.is_empty()
        && name.len() <= MAX_NAME
        && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if !fits {
        return Err(ParamsError::Name);
    }
    std::str::from_utf8(name).map_err(|_| ParamsError::NotUtf8)
}

fn unescape(value: &[u8]) -> Result<Cow<'_, str>, ParamsError> {
    if !value.iter().any(|byte| matches!(byte, b'%' | b'+')) {
        if value.len() > MAX_VALUE {
            return Err(ParamsError::TooLong);
        }
        return std::str::from_utf8(value).map(Cow::Borrowed).map_err(|_| ParamsError::NotUtf8);
    }
    if value.len() > 3 * MAX_VALUE {
        return Err(ParamsError::TooLong);
    }
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let [high, low, tail @ ..] = rest else { return Err(ParamsError::Escape) };
                out.push(digit(*high)? << 4 | digit(*low)?);
                rest = tail;
            }
            other => out.push(*other),
        }
    }
    if out.len() > MAX_VALUE {
        return Err(ParamsError::TooLong);
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| ParamsError::NotUtf8)
}

fn digit(byte: u8) -> Result<u8, ParamsError> {
    match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        b'A'..=b'F' => Ok(byte - b'A' + 10),
        _ => Err(ParamsError::Escape),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_query_and_form_sorted() {
        let params = Params::parse("b=2&a=1%2B%20x+y&&empty=&bare", b"c=%C3%BC").unwrap();
        let all: Vec<_> = params.iter().map(|p| (p.name, &*p.value, p.place)).collect();
        assert_eq!(
            all,
            [
                ("a", "1+ x y", Place::Query),
                ("b", "2", Place::Query),
                ("bare", "", Place::Query),
                ("c", "ü", Place::Form),
                ("empty", "", Place::Query),
            ]
        );
        assert_eq!(params.get("empty"), Some(""));
        assert_eq!(params.non_empty("empty"), None);
    }

    #[test]
    fn finds_flattened_lists() {
        let params = Params::parse("Tag.1.Key=a&TagX=no&Tag.1.Value=b&Sag=z", b"").unwrap();
        let names: Vec<_> = params.with_prefix("Tag.").map(|p| p.name).collect();
        assert_eq!(names, ["Tag.1.Key", "Tag.1.Value"]);
    }

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        let refused = |query: &str| Params::parse(query, b"").unwrap_err();
        assert_eq!(refused("a=1&a=1"), ParamsError::Duplicate);
        assert_eq!(refused("a=%"), ParamsError::Escape);
        assert_eq!(refused("a=%4"), ParamsError::Escape);
        assert_eq!(refused("a=%zz"), ParamsError::Escape);
        assert_eq!(refused("a=%ff"), ParamsError::NotUtf8);
        assert_eq!(refused("%41=1"), ParamsError::Name);
        assert_eq!(refused("=1"), ParamsError::Name);
        assert_eq!(Params::parse("a=1", b"a=2").unwrap_err(), ParamsError::Duplicate);
        assert_eq!(Params::parse("", b"a=\xff").unwrap_err(), ParamsError::NotUtf8);
    }

    #[test]
    fn refuses_too_much() {
        let many: String = (0..=MAX_PARAMS).map(|i| format!("p{i}=&")).collect();
        assert_eq!(Params::parse(&many, b"").unwrap_err(), ParamsError::TooMany);
        let long = format!("a={}", "x".repeat(MAX_VALUE + 1));
        assert_eq!(Params::parse(&long, b"").unwrap_err(), ParamsError::TooLong);
        let long = format!("a={}", "%41".repeat(MAX_VALUE + 1));
        assert_eq!(Params::parse(&long, b"").unwrap_err(), ParamsError::TooLong);
        let name = format!("{}=", "n".repeat(MAX_NAME + 1));
        assert_eq!(Params::parse(&name, b"").unwrap_err(), ParamsError::Name);
    }

    proptest! {
        #[test]
        fn escaped_values_come_back(value in "\\PC{0,64}") {
            let mut escaped = Vec::new();
            crate::alibaba::signature::canonical::escape(value.as_bytes(), &mut escaped);
            let query = format!("v={}", String::from_utf8(escaped).unwrap());
            let params = Params::parse(&query, b"").unwrap();
            prop_assert_eq!(params.get("v"), Some(value.as_str()));
        }

        #[test]
        fn never_panics(query in "\\PC{0,200}", form in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Params::parse(&query, &form);
        }
    }
}
