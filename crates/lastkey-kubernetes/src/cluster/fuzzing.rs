//! For the fuzz targets: reads what an apiserver answers, in every way that it is read.

use bytes::Bytes;
use http::{Method, StatusCode};

use super::{
    ApiError, Discovery, Object, Page, Resource,
    error::Answer,
    migrations, packed,
    resource::{aggregated, group_versions},
};

/// An answer's body.
pub fn answer(data: &[u8]) {
    let body = Bytes::copy_from_slice(data);
    if let Some(page) = Page::parse(&body) {
        for object in page.objects {
            assert!(body.len() >= object.raw().len());
        }
    }
    let _ = Object::parse(body);
    let _ = group_versions(data);
    let _ = aggregated(data);
    for migration in migrations::parse(data).into_iter().flatten() {
        // of a message only a number or two and a name are passed on
        assert!(migration.said.len() <= 400, "{}", migration.said);
    }
    let mut discovery = Discovery::default();
    if discovery.add("example.org", "v1", data).is_some() {
        // no API has a dot in a resource's name
        for resource in discovery.resources.iter().filter(|known| !known.name.contains('.')) {
            assert!(discovery.matching(&resource.full_name()).count() > 0);
            assert!(resource.object_path("a", "b").starts_with("/apis/"));
        }
    }
    for status in [400, 401, 403, 404, 409, 410, 413, 422, 429, 500, 503] {
        let answer = Answer { method: &Method::PUT, path: "/x", body: data };
        let status = StatusCode::from_u16(status).unwrap_or_default();
        let error = ApiError::from_answer(status, None, &answer);
        assert!(!error.to_string().is_empty());
    }
}

/// A body in Kubernetes' protobuf, or what stands behind its beginning.
pub fn packed(data: &[u8]) {
    for body in [Bytes::copy_from_slice(data), [b"k8s\0", data].concat().into()] {
        let page = packed::list(&body);
        let objects = page.into_iter().flat_map(|page| page.objects);
        for object in objects.chain(packed::object(&body)) {
            let raw = object.raw();
            assert!(raw.len() < body.len());
            // What is sent back is the same object.
            let sent = [&packed::head(&secrets(), raw.len())[..], &raw[..]].concat();
            let again = packed::object(&sent.into());
            assert!(again.is_some_and(|again| again.meta() == object.meta() && again.raw() == raw));
        }
        if let Some(told) = packed::status(&body) {
            assert!(told.message.len() + told.reason.len() + told.next.len() <= body.len());
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Kubeconfig;
    use proptest::prelude::*;
    use std::path::Path;

    const LIST: &str = r#"{"kind":"SecretList","metadata":{"resourceVersion":"9","continue":"t","remainingItemCount":4},"items":[{"metadata":{"name":"a","namespace":"n","uid":"u","resourceVersion":"7"},"data":{"x":"eQ=="}}],"resources":[{"name":"secrets","kind":"Secret","verbs":["list"]}],"reason":"Expired","details":{"causes":[{"field":"a"}]}}"#;

    proptest! {
        #[test]
        fn any_packed_answer_is_read(at in 0_usize..700, cut in 0_usize..40, put in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut bytes = include_bytes!("../../tests/vectors/secret-list.pb").to_vec();
            let at = at.min(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, put);
            packed(&bytes);
        }

        #[test]
        fn any_answer_is_read(at in 0_usize..400, cut in 0_usize..40, put in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut bytes = LIST.as_bytes().to_vec();
            let at = at.min(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, put);
            answer(&bytes);
            let _ = crate::coverage::parse(&bytes).under();
            let _ = Kubeconfig::parse(&String::from_utf8_lossy(&bytes), Path::new("/nonexistent/dir"));
        }
    }
}
