//! The file as a tree, by the rules of the libraries that an apiserver reads it with.
//!
//! A file that starts with `{` is JSON, and nothing else. Any other is YAML 1.1 as go-yaml v2 reads
//! it: `yes` and `on` are booleans, only the first document counts. A field that comes twice is
//! refused in both.

use std::{collections::HashMap, fmt, rc::Rc};

use base64::Engine as _;
use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, Tag};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use zeroize::Zeroizing;

use super::{
    Finding, Text,
    local_keys::GO_BASE64,
    strict::{Tabs, anchor, directive, hidden_break, spaced},
};

/// Deeper nesting is refused: what a configuration needs is six levels.
const MAX_DEPTH: usize = 64;
/// What `!!` stands for.
const YAML_TAGS: &str = "tag:yaml.org,2002:";
/// The name of a field that takes over those of another map.
const MERGE: &str = "<<";

/// One value, and where it starts.
pub(super) struct Node {
    /// Counted from 1; JSON has none.
    pub(super) line: Option<usize>,
    pub(super) value: Value,
    depth: usize,
}

pub(super) enum Value {
    Null,
    Bool,
    /// A whole number, if it is one that fits.
    Number(Option<i64>),
    Text(Text),
    List(Vec<Rc<Node>>),
    Map(Vec<Field>),
}

/// One field of a map; `line` is its name's.
pub(super) struct Field {
    pub(super) name: Text,
    pub(super) line: Option<usize>,
    pub(super) value: Rc<Node>,
}

impl Value {
    /// In words.
    pub(super) fn what(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Map(_) => "a map",
        }
    }

    fn depth(&self) -> usize {
        let inside: &mut dyn Iterator<Item = &Rc<Node>> = match self {
            Self::List(items) => &mut items.iter(),
            Self::Map(fields) => &mut fields.iter().map(|field| &field.value),
            _ => return 0,
        };
        1 + inside.map(|node| node.depth).max().unwrap_or_default()
    }
}

/// Reads a file's content; `None` after an error that ends reading.
pub(super) fn read(text: &str, findings: &mut Vec<Finding>) -> Option<Rc<Node>> {
    if text.is_empty() {
        findings.push(Finding::error("empty", "the file is empty").fix("write a configuration"));
        return None;
    }
    // as Kubernetes tells them apart: after white space, without a byte order mark
    let read = match text.trim_start().starts_with('{') {
        true => read_json(text),
        false => read_yaml(text, findings),
    };
    match read {
        Ok(root) => {
            report_twice(&root, findings);
            Some(root)
        }
        Err(finding) => {
            findings.push(finding);
            None
        }
    }
}

fn syntax(message: impl fmt::Display, line: Option<usize>) -> Finding {
    Finding::error("syntax", format!("the file cannot be read: {message}"))
        .fix("mend the syntax at this place")
        .at(line)
}

// JSON

fn read_json(text: &str) -> Result<Rc<Node>, Finding> {
    let Json(root) = serde_json::from_str(text).map_err(|error| {
        // the library's words hold no values: only what it expected, and where
        let message = "a file that starts with { must be JSON, and this is none";
        let line = (error.line() > 0).then(|| error.line());
        Finding::error("syntax", message)
            .fix("mend the JSON at this place, or write it as YAML")
            .at(line)
    })?;
    Ok(root)
}

struct Json(Rc<Node>);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor).map(|value| Self(node(value, None)))
    }
}

fn node(value: Value, line: Option<usize>) -> Rc<Node> {
    Rc::new(Node { line, depth: value.depth(), value })
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Value, E> {
        Ok(Value::Bool)
    }
    fn visit_i64<E>(self, number: i64) -> Result<Value, E> {
        Ok(Value::Number(Some(number)))
    }
    fn visit_u64<E>(self, number: u64) -> Result<Value, E> {
        Ok(Value::Number(i64::try_from(number).ok()))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Value, E> {
        Ok(Value::Number(None))
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(Zeroizing::new(text.to_owned())))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Json(item)) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut fields = Vec::new();
        while let Some((name, Json(value))) = map.next_entry::<String, _>()? {
            fields.push(Field { name: Zeroizing::new(name), line: None, value });
        }
        Ok(Value::Map(fields))
    }
}

// YAML

fn read_yaml(text: &str, findings: &mut Vec<Finding>) -> Result<Rc<Node>, Finding> {
    let options = granit_parser::options! { emit_comments: false };
    let mut builder = Builder::default();
    // a byte order mark is no part of the text
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.starts_with('\u{feff}') {
        return Err(syntax("it begins with two byte order marks", Some(1)));
    }
    if let Some(finding) = hidden_break(text).or_else(|| directive(text)) {
        return Err(finding);
    }
    let spaced = spaced(text);
    let text = spaced.as_ref().map_or(text, |text| text.as_str());
    if let Some(finding) = anchor(text) {
        return Err(finding);
    }
    let mut tabs = Tabs::default();
    let mut events = Parser::new_from_str_with_options(text, options);
    for next in &mut events {
        let (event, span) = next.map_err(|error| unread(&error))?;
        tabs.take(&event, &span);
        if matches!(event, Event::DocumentEnd) {
            break;
        }
        builder.take(event, Some(span.start.line()))?;
    }
    if let Some(finding) = tabs.finding(text) {
        return Err(finding);
    }
    if let Some(line) = second_document(events) {
        let message = "there is a second document: an apiserver reads the first one only";
        let fix = "put all rules under one `resources:` list and remove the `---`";
        findings.push(Finding::error("second-document", message).fix(fix).at(Some(line)));
    }
    Ok(builder.root.unwrap_or_else(|| node(Value::Null, None)))
}

/// What our parser refuses: its words name characters and anchors, never a scalar.
fn unread(error: &ScanError) -> Finding {
    let finding = syntax(error.info(), Some(error.marker().line()));
    match error.kind() {
        ErrorKind::CommentNotSeparated => finding.fix("put a blank before the #"),
        _ => finding,
    }
}

/// Where another document starts that holds anything, even if it cannot be read.
fn second_document<'t>(
    events: impl Iterator<Item = Result<(Event<'t>, granit_parser::Span), ScanError>>,
) -> Option<usize> {
    for next in events {
        match next {
            Err(error) => return Some(error.marker().line()),
            // nothing at all is told as null
            Ok((Event::Scalar(text, ScalarStyle::Plain, 0, None), _))
                if matches!(&*text, "" | "~") => {}
            Ok((event, span)) if event.is_node() => return Some(span.start.line()),
            Ok(_) => {}
        }
    }
    None
}

/// Puts the events of one document together.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    root: Option<Rc<Node>>,
}

struct Open {
    line: Option<usize>,
    anchor: usize,
    what: Collection,
}

enum Collection {
    List(Vec<Rc<Node>>),
    Map { fields: Vec<Field>, name: Option<(Text, Option<usize>, bool)> },
}

impl Builder {
    fn take(&mut self, event: Event<'_>, line: Option<usize>) -> Result<(), Finding> {
        match event {
            Event::SequenceStart(_, anchor, _) => {
                self.open.push(Open { line, anchor, what: Collection::List(Vec::new()) });
            }
            Event::MappingStart(_, anchor, _) => {
                let what = Collection::Map { fields: Vec::new(), name: None };
                self.open.push(Open { line, anchor, what });
            }
            Event::SequenceEnd | Event::MappingEnd => {
                if let Some(done) = self.open.pop() {
                    let value = match done.what {
                        Collection::List(items) => Value::List(items),
                        Collection::Map { fields, .. } => Value::Map(fields),
                    };
                    self.finish(node(value, done.line), done.anchor)?;
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                if plain && &*text == MERGE && self.awaits_name() {
                    self.name(Zeroizing::new(text.into_owned()), line, true);
                    return Ok(());
                }
                let value = scalar(&text, plain, tag.as_deref());
                let value =
                    value.ok_or_else(|| syntax("a value is not what its tag says", line))?;
                self.finish(node(value, line), anchor)?;
            }
            Event::Alias(id) => {
                let target = self.anchors.get(&id).cloned();
                let target = target.ok_or_else(|| syntax("an alias refers to itself", line))?;
                self.place(target, line)?;
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, done: Rc<Node>, anchor: usize) -> Result<(), Finding> {
        if anchor > 0 {
            self.anchors.insert(anchor, Rc::clone(&done));
        }
        let line = done.line;
        self.place(done, line)
    }

    fn awaits_name(&self) -> bool {
        matches!(self.open.last(), Some(Open { what: Collection::Map { name: None, .. }, .. }))
    }

    fn name(&mut self, text: Text, line: Option<usize>, merge: bool) {
        if let Some(Open { what: Collection::Map { name, .. }, .. }) = self.open.last_mut() {
            *name = Some((text, line, merge));
        }
    }

    /// Puts a value where the next one belongs.
    fn place(&mut self, value: Rc<Node>, line: Option<usize>) -> Result<(), Finding> {
        if value.depth + self.open.len() > MAX_DEPTH {
            return Err(syntax("it is nested too deeply", line));
        }
        match self.open.last_mut().map(|open| &mut open.what) {
            None => self.root = Some(value),
            Some(Collection::List(items)) => items.push(value),
            Some(Collection::Map { fields, name }) => match name.take() {
                None => {
                    *name = Some((
                        as_name(&value).ok_or_else(|| {
                            syntax("a list or map is used as a field's name", line)
                        })?,
                        line,
                        false,
                    ))
                }
                Some((name, line, false)) => fields.push(Field { name, line, value }),
                Some((_, line, true)) => merge(&value, fields, line)?,
            },
        }
        Ok(())
    }
}

/// `<<: *anchor`: the fields of a map, or of each in a list.
fn merge(from: &Node, into: &mut Vec<Field>, line: Option<usize>) -> Result<(), Finding> {
    match &from.value {
        Value::Map(fields) => into.extend(fields.iter().map(|field| Field {
            name: field.name.clone(),
            line: field.line,
            value: Rc::clone(&field.value),
        })),
        Value::List(items) => {
            for item in items {
                let Value::Map(_) = item.value else { return Err(syntax("<< needs maps", line)) };
                merge(item, into, line)?;
            }
        }
        _ => return Err(syntax("<< needs a map", line)),
    }
    // a few bytes can merge the same map into itself over and over
    match into.len() > 1_000 {
        true => Err(syntax("a map has more than 1000 fields", line)),
        false => Ok(()),
    }
}

fn as_name(node: &Node) -> Option<Text> {
    Some(match &node.value {
        Value::Text(text) => text.clone(),
        Value::Number(Some(number)) => Zeroizing::new(number.to_string()),
        Value::Bool => Zeroizing::new("true or false".to_owned()),
        Value::Null => Zeroizing::new("null".to_owned()),
        Value::Number(None) => Zeroizing::new("a number".to_owned()),
        Value::List(_) | Value::Map(_) => return None,
    })
}

/// What go-yaml v2 makes of a scalar (`resolve.go`); `None` where it is not what its tag says.
fn scalar(text: &str, plain: bool, tag: Option<&Tag>) -> Option<Value> {
    let string = |text: &str| Some(Value::Text(Zeroizing::new(text.to_owned())));
    let Some(tag) = tag.and_then(|tag| tag.suffix_in_namespace(YAML_TAGS)) else {
        return if plain { Some(resolved(text)) } else { string(text) };
    };
    let value = match &*tag {
        "str" => return string(text),
        "binary" => {
            let text: Text = Zeroizing::new(text.split_ascii_whitespace().collect());
            let bytes = GO_BASE64.decode(text.as_bytes()).ok().map(Zeroizing::new)?;
            return string(&String::from_utf8_lossy(&bytes));
        }
        _ => resolved(text),
    };
    let fits = match &*tag {
        "int" => matches!(value, Value::Number(Some(_))),
        "float" => matches!(value, Value::Number(_)),
        "bool" => matches!(value, Value::Bool),
        "null" => matches!(value, Value::Null),
        _ => true,
    };
    fits.then_some(value)
}

/// Of a scalar without quotes.
fn resolved(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool;
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool;
        }
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Value::Text(Zeroizing::new(text.to_owned()));
    }
    let plain_number = text.replace('_', "");
    match whole_number(&plain_number) {
        Some(number) => Value::Number(number),
        None if is_float(&plain_number) => Value::Number(None),
        None => Value::Text(Zeroizing::new(text.to_owned())),
    }
}

/// Go's `ParseInt(text, 0, 64)`, else its `ParseUint`, with their prefixes for other bases; no number
/// of ours where only the latter takes it.
fn whole_number(text: &str) -> Option<Option<i64>> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => ("-", rest),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = match lower.as_bytes() {
        [b'0', b'x', rest @ ..] if !rest.is_empty() => (16, &lower[2..]),
        [b'0', b'o', rest @ ..] if !rest.is_empty() => (8, &lower[2..]),
        [b'0', b'b', rest @ ..] if !rest.is_empty() => (2, &lower[2..]),
        [b'0', rest @ ..] if !rest.is_empty() => (8, &lower[1..]),
        _ => (10, lower.as_str()),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    if let Ok(number) = i64::from_str_radix(&format!("{sign}{digits}"), radix) {
        return Some(Some(number));
    }
    let unsigned = !text.starts_with(['+', '-']) && u64::from_str_radix(digits, radix).is_ok();
    unsigned.then_some(None)
}

/// `^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$`, if Go's `ParseFloat` finds it small
/// enough, and the names of what is no number.
fn is_float(text: &str) -> bool {
    let signed = text;
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(text, ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF") {
        return true;
    }
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let (whole, part) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let exponent_fits = exponent.is_none_or(|exponent| {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        !exponent.is_empty() && digits(exponent)
    });
    let matches = digits(whole) && digits(part) && !(whole.is_empty() && part.is_empty());
    matches && exponent_fits && signed.parse().is_ok_and(f64::is_finite)
}

/// Fields that come twice. Each map is looked at once, however often it is referred to.
fn report_twice(root: &Rc<Node>, findings: &mut Vec<Finding>) {
    let mut seen = std::collections::HashSet::new();
    let mut left = vec![Rc::clone(root)];
    while let Some(node) = left.pop() {
        if !seen.insert(Rc::as_ptr(&node)) {
            continue;
        }
        match &node.value {
            Value::List(items) => left.extend(items.iter().cloned()),
            Value::Map(fields) => {
                let mut names = std::collections::HashSet::new();
                for field in fields {
                    if !names.insert(field.name.as_str()) {
                        findings.push(twice(field));
                    }
                    left.push(Rc::clone(&field.value));
                }
            }
            _ => {}
        }
    }
}

fn twice(field: &Field) -> Finding {
    let name = super::decode::shown(&field.name);
    Finding::error("duplicate-field", format!("the field {name} comes twice in one map"))
        .fix("remove one of them; a list item starts with `- `")
        .at(field.line)
}
