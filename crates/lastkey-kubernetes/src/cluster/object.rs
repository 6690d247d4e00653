//! Objects as the bytes that an apiserver sent, and the few fields of them that are looked at.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::packed;

/// What tells one object, and one state of it, from others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Meta {
    /// Empty for what belongs to no namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Never given to another object.
    pub uid: String,
    /// Changes with each write.
    pub resource_version: String,
}

/// What an object's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Json,
    /// Without the envelope that a body has.
    Protobuf,
}

/// One object, exactly as it was sent: written back, it changes nothing.
///
/// The bytes are a part of the page they came with, whose memory is zeroed when the last object of
/// it is dropped. They may be a Secret, so there is no `Debug`.
#[derive(Clone)]
pub struct Object {
    meta: Meta,
    raw: Bytes,
    form: Form,
}

impl Object {
    pub(super) fn new(meta: Meta, raw: Bytes, form: Form) -> Self {
        Self { meta, raw, form }
    }

    /// Reads one object out of a body.
    pub(super) fn parse(body: Bytes) -> Option<Self> {
        match packed::is_packed(&body) {
            true => packed::object(&body),
            false => Self::parse_json(body),
        }
    }

    fn parse_json(raw: Bytes) -> Option<Self> {
        #[derive(Deserialize)]
        struct Partial {
            metadata: Meta,
        }
        let Partial { metadata } = serde_json::from_slice(&raw).ok()?;
        Some(Self::new(metadata, raw, Form::Json))
    }

    /// Which object, in which state.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// Its JSON, or its protobuf if it was listed so.
    pub fn raw(&self) -> Bytes {
        self.raw.clone()
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }
}

/// One page of a list.
pub struct Page {
    /// In the order of their keys in etcd.
    pub objects: Vec<Object>,
    /// Where the next page starts; `None` on the last one.
    pub next: Option<String>,
    /// How many follow, where the apiserver says so (it does not with selectors).
    pub remaining: Option<u64>,
    /// The state of the store that the list shows.
    pub resource_version: String,
}

impl Page {
    /// Reads a list; its objects share the body's memory.
    pub(super) fn parse(body: &Bytes) -> Option<Self> {
        match packed::is_packed(body) {
            true => packed::list(body),
            false => Self::parse_json(body),
        }
    }

    fn parse_json(body: &Bytes) -> Option<Self> {
        #[derive(Deserialize)]
        struct List<'a> {
            #[serde(default)]
            metadata: ListMeta,
            #[serde(borrow)]
            items: Option<Vec<&'a RawValue>>,
        }
        #[derive(Default, Deserialize)]
        #[serde(default, rename_all = "camelCase")]
        struct ListMeta {
            resource_version: String,
            r#continue: String,
            remaining_item_count: Option<u64>,
        }
        let list: List<'_> = serde_json::from_slice(body).ok()?;
        let objects = list.items.unwrap_or_default().into_iter();
        let objects = objects.map(|raw| Object::parse_json(body.slice_ref(raw.get().as_bytes())));
        Some(Self {
            objects: objects.collect::<Option<_>>()?,
            next: Some(list.metadata.r#continue).filter(|token| !token.is_empty()),
            remaining: list.metadata.remaining_item_count,
            resource_version: list.metadata.resource_version,
        })
    }
}

/// A body in memory that is zeroed once nobody refers to any part of it.
pub(super) fn zeroed_when_dropped(body: Zeroizing<Vec<u8>>) -> Bytes {
    struct Owner(Zeroizing<Vec<u8>>);
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Owner(body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_keep_their_bytes() {
        let item = r#"{"metadata":{"name":"a","namespace":"n","uid":"u","resourceVersion":"7"}, "data":{"x":"eQ=="}, "unknown": 1.50 }"#;
        let body = format!(
            r#"{{"kind":"SecretList","metadata":{{"resourceVersion":"9","continue":"t","remainingItemCount":4}},"items":[{item},{item}]}}"#
        );
        let body = zeroed_when_dropped(Zeroizing::new(body.into_bytes()));
        let page = Page::parse(&body).unwrap();
        assert_eq!((page.objects.len(), page.next.as_deref()), (2, Some("t")));
        assert_eq!((page.remaining, page.resource_version.as_str()), (Some(4), "9"));
        assert_eq!(&page.objects[1].raw()[..], item.as_bytes());
        assert_eq!(page.objects[1].meta().resource_version, "7");
        // no copy was made
        assert!(body.as_ptr_range().contains(&page.objects[1].raw().as_ptr()));
        let empty = Page::parse(&Bytes::from_static(br#"{"metadata":{},"items":null}"#)).unwrap();
        assert!(empty.objects.is_empty() && empty.next.is_none());
        assert!(Page::parse(&Bytes::from_static(b"[]")).is_none());
    }
}
