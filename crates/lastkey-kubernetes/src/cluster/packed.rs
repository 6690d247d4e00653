//! Kubernetes' own protobuf (`application/vnd.kubernetes.protobuf`): lists, objects and refusals.
//!
//! ```text
//! 6b 38 73 00            k8s\0
//! runtime.Unknown        1 typeMeta {1 apiVersion, 2 kind}  2 raw  3 contentEncoding  4 contentType
//!   raw of a list        1 metadata {2 resourceVersion, 3 continue, 4 remainingItemCount}  2 items
//!   raw of an object     1 metadata {1 name, 3 namespace, 5 uid, 6 resourceVersion}  …
//!   raw of a Status      1 metadata  3 message  4 reason  5 details {1 name, 4 causes {3 field}}
//! ```
//!
//! (`generated.proto` of k8s.io/apimachinery 0.28 to 0.37; the first two fields are the same in every
//! list of k8s.io/api.) An item of a list is what an object alone has for its `raw`, so it goes back
//! as the very bytes it came as: what this does not know of survives, and no value is looked at.

use bytes::Bytes;

use super::{Meta, Object, Page, Resource, error::Told, object::Form};
use crate::protobuf::{Value, put_head, read};

const MAGIC: &[u8] = b"k8s\0";

/// Whether a body is of this kind at all.
pub(super) fn is_packed(body: &[u8]) -> bool {
    body.starts_with(MAGIC)
}

/// Kind and content of a body.
fn open(body: &[u8]) -> Option<(&str, &[u8])> {
    let (mut kind, mut raw) = (None, None);
    read(body.strip_prefix(MAGIC)?, |number, value| match number {
        1 => read(value.bytes()?, |number, value| match number {
            2 => once(&mut kind, value.text()?),
            _ => Some(()),
        }),
        2 => once(&mut raw, value.bytes()?),
        // compressed, or something else than protobuf
        3 | 4 => value.bytes()?.is_empty().then_some(()),
        _ => Some(()),
    })?;
    // protobuf leaves out what is empty
    Some((kind.unwrap_or_default(), raw.unwrap_or_default()))
}

/// What stands before an object's own bytes to make a body of them.
pub(super) fn head(of: &Resource, length: usize) -> Bytes {
    let version = match of.group.is_empty() {
        true => of.version.clone(),
        false => format!("{}/{}", of.group, of.version),
    };
    let mut meta = Vec::with_capacity(8 + version.len() + of.kind.len());
    for (number, text) in [(1, &version), (2, &of.kind)] {
        put_head(&mut meta, number, text.len());
        meta.extend_from_slice(text.as_bytes());
    }
    let mut head = Vec::with_capacity(MAGIC.len() + meta.len() + 16);
    head.extend_from_slice(MAGIC);
    put_head(&mut head, 1, meta.len());
    head.extend_from_slice(&meta);
    put_head(&mut head, 2, length);
    head.into()
}

/// Reads a list; its objects share the body's memory.
pub(super) fn list(body: &Bytes) -> Option<Page> {
    let (kind, raw) = open(body)?;
    if !kind.ends_with("List") {
        return None;
    }
    let (mut head, mut objects) = (None, Vec::new());
    read(raw, |number, value| match number {
        1 => once(&mut head, list_meta(value.bytes()?)?),
        2 => {
            objects.push(item(body, value.bytes()?)?);
            Some(())
        }
        _ => Some(()),
    })?;
    let ListMeta { resource_version, next, remaining } = head.unwrap_or_default();
    let next = Some(next.to_owned()).filter(|next| !next.is_empty());
    Some(Page { objects, next, remaining, resource_version: resource_version.to_owned() })
}

/// Reads an object, or what is left of one whose metadata alone was asked for.
pub(super) fn object(body: &Bytes) -> Option<Object> {
    let (_, raw) = open(body)?;
    item(body, raw)
}

fn item(body: &Bytes, bytes: &[u8]) -> Option<Object> {
    let mut meta = None;
    read(bytes, |number, value| match number {
        1 => once(&mut meta, object_meta(value.bytes()?)?),
        _ => Some(()),
    })?;
    Some(Object::new(meta?, body.slice_ref(bytes), Form::Protobuf))
}

fn object_meta(bytes: &[u8]) -> Option<Meta> {
    let mut meta = Meta::default();
    read(bytes, |number, value| {
        let field = match number {
            1 => &mut meta.name,
            3 => &mut meta.namespace,
            5 => &mut meta.uid,
            6 => &mut meta.resource_version,
            _ => return Some(()),
        };
        // the last one counts, as everywhere in protobuf
        value.text()?.clone_into(field);
        Some(())
    })?;
    Some(meta)
}

#[derive(Default)]
struct ListMeta<'a> {
    resource_version: &'a str,
    next: &'a str,
    remaining: Option<u64>,
}

fn list_meta(bytes: &[u8]) -> Option<ListMeta<'_>> {
    let mut meta = ListMeta::default();
    read(bytes, |number, value| {
        match (number, value) {
            (2, value) => meta.resource_version = value.text()?,
            (3, value) => meta.next = value.text()?,
            // an int64; a negative one says nothing
            (4, Value::Number(count)) => {
                meta.remaining = Some(count).filter(|count| i64::try_from(*count).is_ok());
            }
            (4, _) => return None,
            _ => {}
        }
        Some(())
    })?;
    Some(meta)
}

/// Reads why something was refused.
pub(super) fn status(body: &[u8]) -> Option<Told> {
    let (kind, raw) = open(body)?;
    if kind != "Status" {
        return None;
    }
    let mut told = Told::default();
    read(raw, |number, value| {
        match number {
            1 => list_meta(value.bytes()?)?.next.clone_into(&mut told.next),
            3 => value.text()?.clone_into(&mut told.message),
            4 => value.text()?.clone_into(&mut told.reason),
            5 => details(value.bytes()?, &mut told)?,
            _ => {}
        }
        Some(())
    })?;
    Some(told)
}

fn details(details: &[u8], told: &mut Told) -> Option<()> {
    read(details, |number, value| {
        match number {
            1 => value.text()?.clone_into(&mut told.about),
            4 => {
                let mut field = "";
                read(value.bytes()?, |number, value| {
                    if number == 3 {
                        field = value.text()?;
                    }
                    Some(())
                })?;
                told.fields.push(field.to_owned());
            }
            _ => {}
        }
        Some(())
    })
}

/// What an apiserver writes once. Twice would be one message merged out of two: none was sent so.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
}

#[cfg(test)]
#[path = "packed_tests.rs"]
mod tests;
