//! Where go-yaml v2, which an apiserver reads with, differs from YAML 1.2 and our parser: encodings,
//! ends of lines, directives, names of anchors, comments, and tabs.

use std::ops::RangeInclusive;

use granit_parser::{ErrorKind, Event, Parser, Scanner, Span, StrInput, StructureStyle, TokenType};
use zeroize::Zeroizing;

use super::{Finding, Text, decode::shown};

/// A file's bytes as text. What is no UTF-8 is refused in YAML and patched up in JSON, as Go does;
/// UTF-16 with a byte order mark is taken.
pub(super) fn text(bytes: &[u8]) -> Result<Text, Finding> {
    let wide = |unit: fn([u8; 2]) -> u16| {
        let pairs = bytes[2..].chunks(2);
        let units = pairs.map(|pair| unit([pair[0], pair.get(1).copied().unwrap_or_default()]));
        let units: Zeroizing<Vec<u16>> = Zeroizing::new(units.collect());
        String::from_utf16(&units).map(Zeroizing::new).map_err(|_| refused("it is no UTF-16", None))
    };
    match bytes {
        [0xff, 0xfe, ..] => return wide(u16::from_le_bytes),
        [0xfe, 0xff, ..] => return wide(u16::from_be_bytes),
        _ => {}
    }
    let lossy = || Zeroizing::new(String::from_utf8_lossy(bytes).into_owned());
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Zeroizing::new(text.to_owned())),
        Err(_) if bytes.trim_ascii_start().starts_with(b"{") => Ok(lossy()),
        Err(error) => {
            let before = &bytes[..error.valid_up_to()];
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            Err(refused("it has bytes that are no UTF-8", Some(line)))
        }
    }
}

fn refused(what: &str, line: Option<usize>) -> Finding {
    Finding::error("syntax", format!("the file cannot be read: {what}"))
        .fix("save it as UTF-8")
        .at(line)
}

/// A character at which go-yaml ends a line, even a comment, as YAML 1.1 has it (§4.2). To our
/// parser and to editors it is one among others, so that what follows it would be read otherwise.
pub(super) fn hidden_break(text: &str) -> Option<Finding> {
    let (at, found) =
        text.char_indices().find(|(_, c)| matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}'))?;
    let message = format!(
        "the file cannot be read: it has the character U+{:04X}, at which an apiserver ends the line, \
         even a comment, and an editor does not",
        u32::from(found)
    );
    let fix = "remove this character; where a line is to end, end it as the others";
    Some(Finding::error("syntax", message).fix(fix).at(Some(lines(&text[..at]).count())))
}

/// Lines as YAML counts them: after LF, CR, or both.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.find(['\r', '\n']) else {
            rest = None;
            return Some(text);
        };
        let after = &text[end..];
        rest = after.strip_prefix("\r\n").or_else(|| after.get(1..));
        Some(&text[..end])
    })
}

/// `%YAML` with another version than 1.1, or another directive, before the first document.
pub(super) fn directive(text: &str) -> Option<Finding> {
    for (number, line) in lines(text).enumerate() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            None => continue,
            Some(word) if word.starts_with('#') => continue,
            Some("%YAML") if line.starts_with('%') && words.next() == Some("1.1") => continue,
            Some("%TAG") if line.starts_with('%') => continue,
            Some(_) if line.starts_with('%') => {
                let message =
                    "the file cannot be read: of directives, an apiserver takes %YAML 1.1 and %TAG";
                let finding = Finding::error("syntax", message).fix("remove this line");
                return Some(finding.at(Some(number + 1)));
            }
            Some(_) => return None,
        }
    }
    None
}

/// An anchor or alias whose name go-yaml does not take (`yaml_parser_scan_anchor`), in the first
/// document: it knows ASCII letters, digits, `-` and `_`, and no bracket right behind them.
pub(super) fn anchor(text: &str) -> Option<Finding> {
    if !text.contains(['&', '*']) {
        return None;
    }
    let mut began = false;
    // what cannot be scanned is told by the parser
    for token in Scanner::new(StrInput::new(text)).map_while(Result::ok) {
        let (span, token) = token.into_parts();
        let name = match &token {
            TokenType::Anchor(name) | TokenType::Alias(name) => name,
            TokenType::DocumentEnd => return None,
            TokenType::DocumentStart if began => return None,
            other => {
                began |= !matches!(
                    other,
                    TokenType::StreamStart
                        | TokenType::VersionDirective(..)
                        | TokenType::TagDirective(..)
                );
                continue;
            }
        };
        began = true;
        let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let behind = span.end.byte_offset().and_then(|end| text.get(end..));
        let bracket = behind.is_some_and(|behind| behind.starts_with(['[', '{']));
        if bracket || !name.chars().all(known) {
            let message = format!(
                "the file cannot be read: the anchor {} is named in a way that an apiserver does not \
                 take",
                shown(name)
            );
            let fix = "name it with letters, digits, - and _ alone, and write a blank behind it";
            let finding = Finding::error("syntax", message).fix(fix);
            return Some(finding.at(Some(span.start.line())));
        }
    }
    None
}

/// Whether an apiserver takes a `#` behind this for a comment without a blank between: what ends there
/// needs none behind it, a bracket, a comma, quotes, or a block scalar's head.
fn ends_by_itself(before: &str) -> bool {
    let head = before.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-'));
    let head = head.strip_suffix(['|', '>']).is_some_and(|rest| rest.ends_with([' ', '\t']));
    head || before.ends_with(['[', ']', '{', '}', ',', '"', '\''])
}

/// So much text is gone through anew, at most, for comments that have no blank before them.
const MOST_WORK: usize = 4 << 20;

/// The text with a blank before each comment that has none where go-yaml needs none and our parser
/// one; `None` where there is no such comment. Lines stay as they are.
pub(super) fn spaced(text: &str) -> Option<Text> {
    let places = text.match_indices('#').filter(|(at, _)| ends_by_itself(&text[..*at])).count();
    let most = places.min(MOST_WORK / text.len().max(1));
    let mut found: Option<Text> = None;
    for _ in 0..most {
        let now = found.as_ref().map_or(text, |found| found.as_str());
        let Some(at) = unspaced(now) else { break };
        let (before, after) = now.split_at_checked(at)?;
        let mut next = Zeroizing::new(String::with_capacity(now.len() + 1));
        next.push_str(before);
        next.push(' ');
        next.push_str(after);
        found = Some(next);
    }
    found
}

/// Where the first such comment begins, if it is what ends reading the first document.
fn unspaced(text: &str) -> Option<usize> {
    let mut error = None;
    for next in Parser::new_from_str(text) {
        match next {
            Ok((Event::DocumentEnd, _)) => return None,
            Ok(_) => {}
            Err(found) => {
                error = Some(found);
                break;
            }
        }
    }
    let error = error?;
    let (before, after) = text.split_at_checked(error.marker().byte_offset()?)?;
    let is_comment = *error.kind() == ErrorKind::CommentNotSeparated && after.starts_with('#');
    (is_comment && ends_by_itself(before)).then_some(before.len())
}

/// Tabs outside brackets, quotes and block scalars: none may begin a line or follow a dash.
#[derive(Default)]
pub(super) struct Tabs {
    /// Lines that begin inside of something.
    inside: Vec<RangeInclusive<usize>>,
    /// Where each collection that is open began, and whether it has brackets.
    open: Vec<(usize, bool)>,
    /// Where nodes begin that are in no brackets: line, and column in characters.
    nodes: Vec<(usize, usize)>,
    /// Where the document ended.
    end: Option<usize>,
}

impl Tabs {
    pub(super) fn take(&mut self, event: &Event<'_>, span: &Span) {
        let line = span.start.line();
        let in_brackets = self.open.last().is_some_and(|(_, flow)| *flow);
        if event.is_node() && !in_brackets {
            self.nodes.push((line, span.start.col()));
        }
        match event {
            Event::SequenceStart(style, ..) | Event::MappingStart(style, ..) => {
                self.open.push((line, *style == StructureStyle::Flow));
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some((start, true)) = self.open.pop() {
                    self.inside.push(start + 1..=span.end.line());
                }
            }
            Event::Scalar(..) if span.end.line() > line => {
                // the next line's beginning is where a block scalar ends
                let last = span.end.line() - usize::from(span.end.col() == 0);
                self.inside.push(line + 1..=last);
            }
            Event::DocumentEnd => self.end = Some(line),
            _ => {}
        }
    }

    /// The first one.
    pub(super) fn finding(&self, text: &str) -> Option<Finding> {
        if !text.contains('\t') {
            return None;
        }
        let lines: Vec<&str> = lines(text).collect();
        let after_dash = self.nodes.iter().filter(|(line, column)| {
            let before = lines.get(line.wrapping_sub(1)).map(|line| line.chars().take(*column));
            let mut before = before.into_iter().flatten().peekable();
            let mut tab = false;
            before.all(|c| {
                tab |= c == '\t';
                matches!(c, ' ' | '\t' | '-' | '?')
            }) && tab
        });
        let after_dash = after_dash.map(|(line, _)| *line);
        let end = self.end.unwrap_or(lines.len()).min(lines.len());
        let begins = (1..=end).filter(|line| {
            lines[line - 1].starts_with('\t') && !self.inside.iter().any(|all| all.contains(line))
        });
        let line = after_dash.chain(begins).min()?;
        let message = "the file cannot be read: a tab stands where only spaces may";
        Some(Finding::error("syntax", message).fix("write spaces in its place").at(Some(line)))
    }
}
