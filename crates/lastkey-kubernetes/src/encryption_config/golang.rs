//! Go's readings of durations and URLs, as far as a configuration has them.

use std::time::Duration;

/// Go's `time.ParseDuration`: `3s`, `1m30s`, `500ms`, `1.5s`, with a sign. `None` when it is none;
/// `Some(Err(()))` when it is negative.
pub(super) fn parse_duration(text: &str) -> Option<Result<Duration, ()>> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Ok(Duration::ZERO));
    }
    if rest.is_empty() {
        return None;
    }
    let mut nanoseconds = 0.0_f64;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(end);
        if number.is_empty() || number == "." || number.matches('.').count() > 1 {
            return None;
        }
        let (scale, unit) = UNITS
            .iter()
            .find_map(|(unit, scale)| after.starts_with(unit).then_some((scale, unit.len())))?;
        nanoseconds += number.parse::<f64>().ok()? * scale;
        rest = &after[unit..];
    }
    // 2^63 nanoseconds
    if nanoseconds > 9.2e18 {
        return None;
    }
    let zero = nanoseconds == 0.0;
    match negative && !zero {
        true => Some(Err(())),
        false => Some(Ok(Duration::from_secs_f64(nanoseconds / 1e9))),
    }
}

/// Longer names first, so that `ms` is not taken for `m`.
const UNITS: [(&str, f64); 8] = [
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 60e9),
    ("h", 3600e9),
];

/// The parts of a URL that matter for a socket.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GoUrl {
    /// In lower case.
    pub(super) scheme: String,
    /// Between `//` and the next slash.
    pub(super) host: String,
    /// Unescaped; empty for `unix:relative`.
    pub(super) path: String,
    /// Whether something follows `?` or `#`, which is not part of the path.
    pub(super) cut: bool,
}

impl GoUrl {
    /// What is dialled.
    pub(super) fn socket(&self) -> String {
        match self.path.strip_prefix("/@") {
            Some(name) => format!("@{name}"),
            None => self.path.clone(),
        }
    }
}

/// Why gRPC does not take what is dialled for a target, which it parses as a URL once more: with
/// `passthrough:///` before it, if need be, so that only what no URL may have is refused.
pub(super) fn check_target(socket: &str) -> Result<(), &'static str> {
    let (text, fragment) = socket.split_once('#').unwrap_or((socket, ""));
    let path = text.split('?').next().unwrap_or_default();
    if text.bytes().any(is_control) {
        return Err("its path has an escaped control character");
    }
    match unescape(path).and(unescape(fragment)) {
        Some(_) => Ok(()),
        None => Err("its path has an escaped % that starts no escape"),
    }
}

fn is_control(byte: u8) -> bool {
    byte < 0x20 || byte == 0x7f
}

/// Go's `url.Parse`; the error is why not.
pub(super) fn parse_url(text: &str) -> Result<GoUrl, &'static str> {
    let (text, fragment) = match text.split_once('#') {
        Some((text, fragment)) => (text, Some(fragment)),
        None => (text, None),
    };
    if text.bytes().any(is_control) {
        return Err("it has control characters");
    }
    if let Some(fragment) = fragment {
        unescape(fragment).ok_or("it has a % that starts no escape")?;
    }
    let (scheme, rest) = split_scheme(text)?;
    let (rest, query) = match rest.split_once('?') {
        Some((rest, _)) => (rest, true),
        None => (rest, false),
    };
    let cut = query || fragment.is_some();
    let scheme = scheme.to_ascii_lowercase();
    if !rest.starts_with('/') {
        if scheme.is_empty() && rest.split('/').next().is_some_and(|first| first.contains(':')) {
            return Err("its first part has a colon");
        }
        let path = match scheme.is_empty() {
            true => unescape(rest).ok_or("it has a % that starts no escape")?,
            // opaque, as `mailto:someone`
            false => String::new(),
        };
        return Ok(GoUrl { scheme, host: String::new(), path, cut });
    }
    let (host, path) = match rest.strip_prefix("//") {
        Some(rest) if !scheme.is_empty() || !rest.starts_with('/') => match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        },
        _ => ("", rest),
    };
    check_host(host)?;
    let path = unescape(path).ok_or("it has a % that starts no escape")?;
    Ok(GoUrl { scheme, host: host.to_owned(), path, cut })
}

fn split_scheme(text: &str) -> Result<(&str, &str), &'static str> {
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' => {}
            b'0'..=b'9' | b'+' | b'-' | b'.' if index > 0 => {}
            b':' if index == 0 => return Err("its scheme is missing"),
            b':' => return Ok((&text[..index], &text[index + 1..])),
            _ => break,
        }
    }
    Ok(("", text))
}

fn check_host(authority: &str) -> Result<(), &'static str> {
    let (user, host) = match authority.rsplit_once('@') {
        Some((user, host)) => (user, host),
        None => ("", authority),
    };
    let in_user = |b: u8| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b);
    if !user.bytes().all(in_user) {
        return Err("its user has characters that none may have");
    }
    let in_host =
        |b: u8| b >= 0x80 || b.is_ascii_alphanumeric() || b"!$&'()*+,;=:[]<>\"-_.~%".contains(&b);
    if !host.bytes().all(in_host) {
        return Err("its host has characters that none may have");
    }
    if host.contains('%') && !host.starts_with('[') {
        // only %25 and bytes above 0x7f may be escaped in a host
        let decoded = unescape(host).ok_or("it has a % that starts no escape")?;
        if decoded.is_ascii() && !decoded.contains('%') {
            return Err("its host has an escape that none may have");
        }
    }
    let port = if host.starts_with('[') { None } else { host.rsplit_once(':') };
    if port.is_some_and(|(_, port)| !port.bytes().all(|b| b.is_ascii_digit())) {
        return Err("its port is not a number");
    }
    match host.starts_with('[') && !host.contains(']') {
        true => Err("its host lacks a ]"),
        false => Ok(()),
    }
}

fn unescape(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while let Some(&byte) = bytes.get(index) {
        if byte == b'%' {
            let digits = bytes.get(index + 1..index + 3)?;
            let digits = std::str::from_utf8(digits).ok()?;
            if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            out.push(u8::from_str_radix(digits, 16).ok()?);
            index += 3;
        } else {
            out.push(byte);
            index += 1;
        }
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        let ms = |text: &str| parse_duration(text).map(|d| d.map(|d| d.as_millis()));
        assert_eq!(ms("3s"), Some(Ok(3_000)));
        assert_eq!(ms("1m30s"), Some(Ok(90_000)));
        assert_eq!(ms("1.5s"), Some(Ok(1_500)));
        assert_eq!(ms("500ms"), Some(Ok(500)));
        assert_eq!(ms(".5s"), Some(Ok(500)));
        assert_eq!(ms("5.s"), Some(Ok(5_000)));
        assert_eq!(ms("0"), Some(Ok(0)));
        assert_eq!(ms("0s"), Some(Ok(0)));
        assert_eq!(ms("-3s"), Some(Err(())));
        for bad in ["", "3", "s", "3 s", "3sec", "1d", "3s ", "--3s", ".s", "1e3s", "3S"] {
            assert_eq!(ms(bad), None, "{bad}");
        }
    }

    #[test]
    fn urls_are_gos() {
        let socket = |text: &str| {
            parse_url(text).map(|url| (url.scheme.clone(), url.host.clone(), url.socket()))
        };
        let is = |s: &str, h: &str, p: &str| Ok((s.to_owned(), h.to_owned(), p.to_owned()));
        assert_eq!(socket("unix:///run/a.sock"), is("unix", "", "/run/a.sock"));
        assert_eq!(socket("unix:/run/a.sock"), is("unix", "", "/run/a.sock"));
        assert_eq!(socket("UNIX:///run/a%20b"), is("unix", "", "/run/a b"));
        assert_eq!(socket("unix:///@name"), is("unix", "", "@name"));
        assert_eq!(socket("unix://run/a.sock"), is("unix", "run", "/a.sock"));
        assert_eq!(socket("unix://@name"), is("unix", "@name", ""));
        assert_eq!(socket("unix:run/a.sock"), is("unix", "", ""));
        assert_eq!(socket("/run/a.sock"), is("", "", "/run/a.sock"));
        assert_eq!(socket("run/a.sock"), is("", "", "run/a.sock"));
        assert_eq!(socket("tcp://localhost:80"), is("tcp", "localhost:80", ""));
        assert!(parse_url("unix:///run/a#b").unwrap().cut);
        let target = |text: &str| check_target(&parse_url(text).unwrap().socket());
        for good in [
            "unix:///run/a%20b",
            "unix:///a%25",
            "unix:///a%2525",
            "unix:///@a",
            "unix:///a%3f%25z",
        ] {
            assert_eq!(target(good).is_ok(), good != "unix:///a%25", "{good}");
        }
        for bad in ["%00", "%0a", "%1f", "%7f", "%25zz", "%25", "%251", "%23%25zz", "b%0D"] {
            assert!(target(&format!("unix:///a{bad}")).is_err(), "{bad}");
            assert!(target(&format!("unix:///@a{bad}")).is_err(), "{bad}");
        }
        for bad in [
            ":///a",
            "unix:///run/%zz",
            "unix:///run/\n",
            "unix://a b/c",
            "unix://a:b/c",
            "a:b:c/ d",
        ] {
            assert!(parse_url(bad).is_err() || bad.starts_with("a:b"), "{bad}");
        }
    }
}
