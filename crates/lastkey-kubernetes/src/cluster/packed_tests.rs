//! Tests of Kubernetes' protobuf.

use http::{Method, StatusCode};
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::*;
use crate::cluster::{ApiError, error::Answer, object::zeroed_when_dropped};

/// A Secret as kube-apiserver 1.37 answers with it.
const SECRET: &[u8] = include_bytes!("../../tests/vectors/secret.pb");
/// A list of two.
const LIST: &[u8] = include_bytes!("../../tests/vectors/secret-list.pb");
/// What it answers to a write, of which the metadata alone was asked for.
const WRITTEN: &[u8] = include_bytes!("../../tests/vectors/written.pb");
/// The list has expired.
const EXPIRED: &[u8] = include_bytes!("../../tests/vectors/expired.pb");
/// Two fields are not valid.
const INVALID: &[u8] = include_bytes!("../../tests/vectors/invalid.pb");

fn secrets() -> Resource {
    Resource {
        group: String::new(),
        version: "v1".to_owned(),
        name: "secrets".to_owned(),
        kind: "Secret".to_owned(),
        namespaced: true,
        updatable: true,
    }
}

fn field(number: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_head(&mut bytes, number, value.len());
    bytes.extend_from_slice(value);
    bytes
}

fn body(kind: &str, raw: &[u8]) -> Bytes {
    let meta = [field(1, b"v1"), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat().into()
}

#[test]
fn an_object_as_an_apiserver_sends_it() {
    let body = Bytes::from_static(SECRET);
    let secret = object(&body).unwrap();
    let meta = secret.meta();
    assert_eq!((meta.name.as_str(), meta.namespace.as_str()), ("one", "default"));
    assert_eq!((meta.uid.len(), meta.resource_version.is_empty()), (36, false));
    assert!(body.ends_with(b"\x1a\0\"\0") && is_packed(&body));
    // What is sent back is what came, but for the two empty fields behind it.
    let sent = [&head(&secrets(), secret.raw().len())[..], &secret.raw()[..]].concat();
    assert_eq!(&sent[..], &body[..body.len() - 4]);
    let written = object(&Bytes::from_static(WRITTEN)).unwrap();
    assert_eq!(written.meta(), meta);
}

#[test]
fn a_list_as_an_apiserver_sends_it() {
    let body = zeroed_when_dropped(Zeroizing::new(LIST.to_vec()));
    let page = list(&body).unwrap();
    let names: Vec<&str> = page.objects.iter().map(|one| one.meta().name.as_str()).collect();
    assert_eq!(names, ["one", "three"]);
    assert_eq!((page.remaining, page.next.is_some()), (Some(1), true));
    assert!(!page.resource_version.is_empty());
    assert_eq!(page.objects[0].raw(), object(&Bytes::from_static(SECRET)).unwrap().raw());
    // no copy was made
    assert!(body.as_ptr_range().contains(&page.objects[1].raw().as_ptr()));
    assert!(list(&Bytes::from_static(SECRET)).is_none());
    let empty = list(&self::body("SecretList", &field(1, &field(2, b"9")))).unwrap();
    assert!(empty.objects.is_empty() && empty.next.is_none() && empty.remaining.is_none());
}

#[test]
fn refusals_as_an_apiserver_sends_them() {
    let error = |status: u16, body: &[u8]| {
        let answer = Answer { method: &Method::PUT, path: "/x", body };
        ApiError::from_answer(StatusCode::from_u16(status).unwrap(), None, &answer)
    };
    let ApiError::Expired { next: Some(next) } = error(410, EXPIRED) else { panic!("expired") };
    assert!(next.len() > 20);
    let fields = vec!["metadata.labels".to_owned(), "data[a b]".to_owned()];
    assert_eq!(error(422, INVALID), ApiError::Invalid { fields });
    let told = status(INVALID).unwrap();
    assert_eq!((told.reason.as_str(), told.about.as_str()), ("Invalid", "bad"));
    let denied = body("Status", &field(3, b"admission webhook \"no.example.org\" denied: s3cret"));
    assert_eq!(error(403, &denied).to_string(), "refused by the admission webhook no.example.org");
    assert_eq!(status(SECRET), None);
    assert_eq!(error(404, SECRET), ApiError::NotFound);
}

#[test]
fn what_no_apiserver_sends_is_refused() {
    let meta = field(1, b"a");
    for wrong in [
        Vec::new(),
        field(1, b"\x0a"),
        [field(1, &meta), field(1, &meta)].concat(),
        field(1, &field(1, b"\xff")),
        b"\x08\x01".to_vec(),
        field(2, &meta),
    ] {
        assert!(object(&body("Secret", &wrong)).is_none(), "{wrong:?}");
        assert!(list(&body("SecretList", &field(2, &wrong))).is_none(), "{wrong:?}");
    }
    let whole = body("Secret", &field(1, &meta));
    assert!(object(&whole).is_some());
    for (number, what) in [(3, &b"gzip"[..]), (4, b"application/json"), (2, b"")] {
        let wrong = Bytes::from([&whole[..], &field(number, what)].concat());
        assert!(object(&wrong).is_none(), "{number}");
    }
    let negative = [&b"\x20"[..], &[0xff; 9], b"\x01"].concat();
    assert_eq!(list(&body("SecretList", &field(1, &negative))).unwrap().remaining, None);
    assert!(list(&body("SecretList", &field(1, &field(4, b"1")))).is_none());
}

fn item_of(name: &str, rest: &[u8]) -> Vec<u8> {
    let meta = [field(1, name.as_bytes()), field(5, b"u"), field(6, b"7")].concat();
    [field(1, &meta), field(2, rest)].concat()
}

proptest! {
    /// Whatever else an object has goes back as it came.
    #[test]
    fn items_keep_their_bytes(items in prop::collection::vec(("[a-z]{1,60}", prop::collection::vec(any::<u8>(), 0..400)), 0..8)) {
        let made: Vec<_> = items.iter().map(|(name, rest)| item_of(name, rest)).collect();
        let all: Vec<u8> = made.iter().flat_map(|item| field(2, item)).collect();
        let page = list(&body("SecretList", &all)).unwrap();
        prop_assert_eq!(page.objects.len(), made.len());
        for ((object, item), (name, _)) in page.objects.iter().zip(&made).zip(&items) {
            prop_assert_eq!(&object.raw()[..], &item[..]);
            prop_assert_eq!(&object.meta().name, name);
            let sent = [&head(&secrets(), item.len())[..], item].concat();
            let again = super::object(&Bytes::from(sent)).unwrap();
            prop_assert_eq!(again.meta(), object.meta());
            prop_assert_eq!(again.raw(), object.raw());
        }
    }

    /// A list that lost its end, or any byte of which is another, is none or one whose objects lie in it.
    #[test]
    fn broken_lists_do_no_harm(at in 0..LIST.len(), byte in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = LIST.to_vec();
        match cut {
            true => bytes.truncate(at),
            false => bytes[at] = byte,
        }
        let body = Bytes::from(bytes);
        if let Some(page) = list(&body) {
            let inside: usize = page.objects.iter().map(|object| object.raw().len()).sum();
            prop_assert!(inside < body.len());
        }
        let _ = (object(&body), status(&body));
    }
}
