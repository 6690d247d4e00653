//! A configuration written anew, from what another one says.

use zeroize::Zeroizing;

use super::{
    edit::{Draft, Item, new_lines},
    tree::{self, Node, Value},
};

const HEAD: &str =
    "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n";

/// The whole file; `None` when `old` does not have the parts that the draft is made of.
pub(super) fn whole(old: &str, draft: &Draft, fresh: &str) -> Option<Zeroizing<String>> {
    let root = match old.is_empty() {
        true => None,
        false => tree::read(old, &mut Vec::new()),
    };
    // Room for all of it, so that no copy of a key is left behind when it grows.
    let mut out = Zeroizing::new(String::with_capacity(8 * old.len() + 64 * 1024));
    out.push_str(HEAD);
    for rule in &draft.rules {
        out.push_str("- resources:\n");
        for name in &rule.resources {
            out.push_str("  - ");
            quote(name, &mut out);
            out.push('\n');
        }
        out.push_str("  providers:\n");
        for item in &rule.providers {
            out.push_str("  - ");
            match item {
                Item::Kept { rule, provider } => {
                    let rules = field(root.as_deref()?, "resources")?;
                    let providers = field(at(rules, *rule)?, "providers")?;
                    map(at(providers, *provider)?, 4, &mut out)?;
                }
                item => {
                    let lines = new_lines(item, fresh);
                    for (number, line) in lines.lines().enumerate() {
                        out.push_str(if number > 0 { "  " } else { "" });
                        out.push_str(line);
                        out.push('\n');
                    }
                }
            }
        }
    }
    Some(out)
}

fn field<'n>(node: &'n Node, name: &str) -> Option<&'n Node> {
    let Value::Map(fields) = &node.value else { return None };
    fields.iter().rfind(|field| field.name.as_str() == name).map(|field| &*field.value)
}

fn at(node: &Node, index: usize) -> Option<&Node> {
    let Value::List(items) = &node.value else { return None };
    items.get(index).map(|item| &**item)
}

/// The fields of a map, of which the first stands on a line that is begun already.
fn map(node: &Node, indent: usize, out: &mut Zeroizing<String>) -> Option<()> {
    let Value::Map(fields) = &node.value else { return None };
    // a field without a value counts as absent
    let fields = fields.iter().filter(|field| !matches!(field.value.value, Value::Null));
    for (number, field) in fields.enumerate() {
        if number > 0 {
            out.push_str(&" ".repeat(indent));
        }
        out.push_str(&field.name);
        out.push_str(": ");
        inline(&field.value, out)?;
        out.push('\n');
    }
    Some(())
}

/// A value on one line.
fn inline(node: &Node, out: &mut Zeroizing<String>) -> Option<()> {
    match &node.value {
        Value::Text(text) => quote(text, out),
        Value::Number(Some(number)) => out.push_str(&number.to_string()),
        Value::Null => out.push_str("null"),
        Value::List(items) => {
            out.push('[');
            for (number, item) in items.iter().enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                inline(item, out)?;
            }
            out.push(']');
        }
        Value::Map(fields) => {
            out.push('{');
            for (number, field) in fields.iter().enumerate() {
                out.push_str(if number > 0 { ", " } else { "" });
                out.push_str(&field.name);
                out.push_str(": ");
                inline(&field.value, out)?;
            }
            out.push('}');
        }
        // nothing in a configuration is one
        Value::Bool | Value::Number(None) => return None,
    }
    Some(())
}

/// JSON's strings are YAML's double-quoted ones.
fn quote(text: &str, out: &mut Zeroizing<String>) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}
