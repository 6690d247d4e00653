//! For the fuzz targets: what somebody else's files and programs say, read in every way that it is.

use lastkey_kubernetes::{
    cluster::{Discovery, Resource},
    encryption_config::{ProviderKind, Severity, examine},
};

use crate::{
    LocalProviders,
    etcd::parse_status,
    objects::{Contents, Map, kind_of, names_in},
    restore::reading::served_versions,
};

/// One key of a snapshot's and its value; what etcdutl says; a definition of resources.
pub fn snapshot(key: &[u8], value: &[u8]) {
    let mut contents = Contents::default();
    contents.note("/registry/", key, value);
    contents.note("/registry/", key, value);
    assert_eq!((contents.items.len(), contents.origins.len()), (2, 1));
    assert!(contents.items[0] == contents.items[1] && !contents.origins[0].provider().is_empty());
    let key = &contents.items[0].key;
    assert!(key.starts_with(kind_of(key)));
    let (namespace, name) = names_in(key);
    assert!(key.ends_with(name) && key.contains(namespace));
    if let Some(found) = map().find(key) {
        assert!(!found.name.is_empty() && !found.name.contains('/'));
        assert!(key.ends_with(&found.name) && !found.namespace.contains('/'));
    }
    if let Ok(text) = std::str::from_utf8(value)
        && let Some(status) = parse_status(text)
    {
        assert!(status.hash.len() == 8 && status.version.len() <= 128);
    }
    assert!(served_versions(value).iter().all(|version| !version.is_empty()));
}

/// Resources of each kind of place.
fn map() -> Map {
    let resource = |group: &str, name: &str, namespaced| Resource {
        group: group.to_owned(),
        version: "v1".to_owned(),
        name: name.to_owned(),
        kind: String::new(),
        namespaced,
        updatable: true,
    };
    let resources = vec![
        resource("", "secrets", true),
        resource("", "services", true),
        resource("", "nodes", false),
        resource("example.org", "widgets", true),
        resource("x.k8s.io", "things", false),
    ];
    Map::new(&Discovery { resources, ..Discovery::default() })
}

/// An EncryptionConfiguration whose keys are taken out: where nothing is wrong with it, every key
/// that it names is there.
pub fn local_keys(text: &str) {
    let taken = LocalProviders::parse(text);
    let examined = examine(text);
    if examined.findings.iter().any(|finding| finding.severity == Severity::Error) {
        return;
    }
    let taken = taken.unwrap_or_else(|why| panic!("an apiserver takes it, and we do not: {why}"));
    for provider in examined.config.rules.iter().flat_map(|rule| &rule.providers) {
        for kind in &provider.kinds {
            let (ProviderKind::AesCbc(keys)
            | ProviderKind::AesGcm(keys)
            | ProviderKind::Secretbox(keys)) = kind
            else {
                continue;
            };
            for key in keys {
                assert!(taken.has(kind.name(), &key.name), "{}", key.name);
            }
        }
    }
}
