//! What is under a KMS outside of the configured resources: a rule that was taken out, or a resource that
//! was, leaves its objects as they are, and they need their key version all the same.

use std::collections::BTreeMap;

use super::{Stored, Under, parse};
use crate::cluster::{Etcd, EtcdError};

/// More different ones than these of a resource are counted with the first of their provider.
const MAX_DIFFERENT: usize = 1_000;

/// By resource, how many objects are under what.
pub(crate) type Elsewhere = BTreeMap<String, BTreeMap<Under, u64>>;

/// Reads all that lies below `prefix` and in none of `places`. `None` where etcd does not let it be
/// read.
///
/// # Errors
/// When etcd cannot be read to the end.
pub(crate) async fn elsewhere(
    etcd: &mut Etcd,
    (prefix, places): (&str, &[String]),
) -> Result<Option<Elsewhere>, EtcdError> {
    let root = format!("{}/", prefix.trim_end_matches('/'));
    let mut found = Elsewhere::new();
    let scan = etcd.scan(&root, |key, value| {
        if !places.iter().any(|place| key.starts_with(place.as_bytes())) {
            add(&mut found, &key[root.len().min(key.len())..], value);
        }
    });
    match scan.await {
        Ok(_) => Ok(Some(found)),
        Err(EtcdError::Refused { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn add(found: &mut Elsewhere, path: &[u8], value: &[u8]) {
    let stored = parse(value);
    if !matches!(stored, Stored::Kms { .. }) {
        return;
    }
    let counts = found.entry(resource_at(path)).or_default();
    let mut under = stored.under();
    if counts.len() >= MAX_DIFFERENT && !counts.contains_key(&under) {
        under.key = None;
    }
    *counts.entry(under).or_default() += 1;
}

/// `secrets/default/a` is one of `secrets`, `example.org/widgets/default/a` of `widgets.example.org`.
fn resource_at(path: &[u8]) -> String {
    let path = String::from_utf8_lossy(path);
    let mut parts = path.split('/');
    let first = parts.next().unwrap_or_default();
    match (first.contains('.'), parts.next()) {
        (true, Some(name)) => format!("{name}.{first}"),
        _ => first.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_a_kms_is_found_by_its_resource() {
        let mut found = Elsewhere::new();
        let kms = b"k8s:enc:kms:v2:other:\x0a\x01x\x12\x02id\x1a\x01w";
        for (path, value) in [
            (&b"configmaps/default/a"[..], &kms[..]),
            (b"configmaps/default/b", kms),
            (b"example.org/widgets/default/a", kms),
            (b"pods/default/a", b"k8s\0"),
            (b"secrets/default/a", b"k8s:enc:aescbc:v1:k1:x"),
        ] {
            add(&mut found, path, value);
        }
        let counted = |name: &str| found[name].values().sum::<u64>();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!((counted("configmaps"), counted("widgets.example.org")), (2, 1));
    }
}
