//! What a snapshot holds: every key of etcd's below the apiserver's prefix, what it rests under,
//! and which object of the API it is.

use std::collections::HashMap;

use lastkey_crypto::{ClusterId, KeyVersionId, Lineage, plugin_blob::PluginBlob};
use lastkey_kubernetes::{
    cluster::{Discovery, Resource},
    coverage::{Stored, parse, place_in_etcd},
};

/// What values rest under; each different one once.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Origin {
    /// In clear.
    Clear,
    /// A key in the apiserver's configuration.
    Local { provider: String, key: String },
    /// Our plugin.
    Ours {
        api: &'static str,
        provider: String,
        cluster: ClusterId,
        version: KeyVersionId,
        lineage: Lineage,
    },
    /// Another plugin.
    Foreign { api: &'static str, provider: String },
    /// Encrypted in no way that is known.
    Unknown,
}

impl Origin {
    fn of(value: &[u8]) -> Self {
        match parse(value) {
            Stored::Clear => Self::Clear,
            Stored::Local { provider, key } => {
                Self::Local { provider: provider.to_owned(), key: key.to_owned() }
            }
            Stored::Kms { api, provider, wrapped, .. } => match PluginBlob::parse(wrapped) {
                Ok(blob) => {
                    let key = blob.key();
                    Self::Ours {
                        api,
                        provider: provider.to_owned(),
                        cluster: key.cluster,
                        version: key.key_version,
                        lineage: key.lineage,
                    }
                }
                Err(_) => Self::Foreign { api, provider: provider.to_owned() },
            },
            Stored::Unknown => Self::Unknown,
        }
    }

    /// As coverage names it: `clear`, `aescbc`, `kms v2 lastkey`.
    pub(crate) fn provider(&self) -> String {
        match self {
            Self::Clear => "clear".to_owned(),
            Self::Local { provider, .. } => provider.clone(),
            Self::Ours { api, provider, .. } | Self::Foreign { api, provider } => {
                format!("kms {api} {provider}")
            }
            Self::Unknown => "unknown".to_owned(),
        }
    }
}

/// One key of etcd's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Behind the prefix: `secrets/default/a`.
    pub(crate) key: String,
    /// Which of the origins.
    pub(crate) origin: usize,
}

/// Everything a snapshot holds.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) items: Vec<Item>,
    pub(crate) origins: Vec<Origin>,
    known: HashMap<Origin, usize>,
}

impl Contents {
    /// Takes note of one value; `prefix` ends with a slash.
    pub(crate) fn note(&mut self, prefix: &str, key: &[u8], value: &[u8]) {
        let key = String::from_utf8_lossy(key);
        let key = key.strip_prefix(prefix).unwrap_or(&key).to_owned();
        let origin = Origin::of(value);
        let next = self.origins.len();
        let index = *self.known.entry(origin).or_insert_with_key(|origin| {
            self.origins.push(origin.clone());
            next
        });
        self.items.push(Item { key, origin: index });
    }
}

/// Which object of the API a key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    /// Which of the map's resources.
    pub(crate) resource: usize,
    /// Empty for what belongs to none.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Where each resource that is served rests.
#[derive(Debug)]
pub(crate) struct Map {
    pub(crate) resources: Vec<Resource>,
    places: HashMap<String, usize>,
}

impl Map {
    pub(crate) fn new(discovery: &Discovery) -> Self {
        let mut places = HashMap::new();
        for (index, resource) in discovery.resources.iter().enumerate() {
            let place = place_in_etcd("", resource);
            places.insert(place.trim_start_matches('/').to_owned(), index);
        }
        // groups of Kubernetes' own keep their objects under the plain name, newer ones too
        for (index, resource) in discovery.resources.iter().enumerate() {
            if resource.group.ends_with(".k8s.io") {
                places.entry(format!("{}/", resource.name)).or_insert(index);
            }
        }
        Self { resources: discovery.resources.clone(), places }
    }

    /// The object that rests under a key.
    pub(crate) fn find(&self, key: &str) -> Option<Address> {
        let ends = key.match_indices('/').map(|(at, _)| at + 1).take(2);
        let ends: Vec<usize> = ends.collect();
        let (end, resource) =
            ends.into_iter().rev().find_map(|end| Some((end, *self.places.get(&key[..end])?)))?;
        let rest = &key[end..];
        let (namespace, name) = match (self.resources[resource].namespaced, rest.split_once('/')) {
            (true, Some((namespace, name))) => (namespace, name),
            (false, None) => ("", rest),
            _ => return None,
        };
        let whole = !name.is_empty() && !name.contains('/');
        whole.then(|| Address { resource, namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// What a key would be called that no resource claims: `masterleases`, `example.org/widgets`.
pub(crate) fn kind_of(key: &str) -> &str {
    let mut slashes = key.match_indices('/').map(|(at, _)| at);
    match (slashes.next(), slashes.next()) {
        (Some(first), Some(second)) if key[..first].contains('.') => &key[..second],
        (Some(first), _) => &key[..first],
        _ => key,
    }
}

/// Namespace and name of such a key, as far as it has both.
pub(crate) fn names_in(key: &str) -> (&str, &str) {
    let rest = key[kind_of(key).len()..].trim_start_matches('/');
    rest.rsplit_once('/').unwrap_or(("", rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(group: &str, name: &str, namespaced: bool) -> Resource {
        Resource {
            group: group.to_owned(),
            version: "v1".to_owned(),
            name: name.to_owned(),
            kind: String::new(),
            namespaced,
            updatable: true,
        }
    }

    #[test]
    fn keys_are_objects() {
        let resources = vec![
            resource("", "secrets", true),
            resource("", "services", true),
            resource("", "nodes", false),
            resource("example.org", "widgets", true),
            resource("storagemigration.k8s.io", "storageversionmigrations", false),
        ];
        let map = Map::new(&Discovery { resources, ..Discovery::default() });
        let find = |key: &str| {
            map.find(key).map(|it| (map.resources[it.resource].full_name(), it.namespace, it.name))
        };
        let found = |resource: &str, ns: &str, name: &str| {
            Some((resource.to_owned(), ns.to_owned(), name.to_owned()))
        };
        assert_eq!(find("secrets/default/a"), found("secrets", "default", "a"));
        assert_eq!(find("services/specs/default/a"), found("services", "default", "a"));
        assert_eq!(find("minions/one"), found("nodes", "", "one"));
        assert_eq!(find("example.org/widgets/n/a"), found("widgets.example.org", "n", "a"));
        let migrations = "storageversionmigrations.storagemigration.k8s.io";
        assert_eq!(find("storageversionmigrations/m"), found(migrations, "", "m"));
        for odd in ["secrets/a", "secrets/", "masterleases/10.0.0.1", "minions/a/b", "x", "", "/"] {
            assert_eq!(find(odd), None, "{odd}");
        }
        assert_eq!(kind_of("masterleases/10.0.0.1"), "masterleases");
        assert_eq!(kind_of("example.org/gadgets/n/a"), "example.org/gadgets");
        assert_eq!(names_in("example.org/gadgets/n/a"), ("n", "a"));
        assert_eq!(names_in("masterleases/10.0.0.1"), ("", "10.0.0.1"));
        assert_eq!((kind_of("x"), names_in("x")), ("x", ("", "")));
    }

    #[test]
    fn origins_are_kept_once() {
        let mut contents = Contents::default();
        contents.note("/registry/", b"/registry/secrets/a/b", b"k8s\0clear");
        contents.note("/registry/", b"/registry/secrets/a/c", b"k8s:enc:aescbc:v1:k1:x");
        contents.note("/registry/", b"/registry/secrets/a/d", b"k8s:enc:aescbc:v1:k1:y");
        contents.note("/registry/", b"/registry/secrets/a/e", b"k8s:enc:kms:v1:other:\0\x01xdata");
        contents.note("/registry/", b"/registry/secrets/a/f", b"k8s:enc:new:v9:");
        let names: Vec<String> = contents.origins.iter().map(Origin::provider).collect();
        assert_eq!(names, ["clear", "aescbc", "kms v1 other", "unknown"]);
        assert_eq!(contents.items[2], Item { key: "secrets/a/d".to_owned(), origin: 1 });
    }
}
