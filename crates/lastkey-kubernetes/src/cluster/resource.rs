//! Which resources a cluster has, and how each is addressed.
//!
//! A custom resource is addressed in the version that its objects are stored in. Through another one
//! an apiserver gives, and takes, only the fields that this other one has, so whoever writes back
//! what was read takes all others away: a definition without a conversion webhook has nothing else.
//! Discovery says which version is stored by a hash (`storageVersionHash`), and says nothing where
//! the stored one is not served: then the resource is not to be written back at all
//! ([`Discovery::lossy`]). Kubernetes' own kinds are converted without loss between all versions
//! that are served, and are addressed in the one that the apiserver prefers.

use std::collections::BTreeSet;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use lastkey_crypto::mac;
use serde::{Deserialize, Serialize, de::IgnoredAny};

/// One kind of objects, in the version that is asked for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Resource {
    /// Its API group; empty for the core group.
    pub group: String,
    /// Its version, such as `v1`.
    pub version: String,
    /// Its name in paths, such as `secrets`.
    pub name: String,
    /// The kind of its objects, such as `Secret`.
    pub kind: String,
    /// Whether its objects belong to namespaces.
    pub namespaced: bool,
    /// Whether they may be written back: the apiserver lets them be, and nothing of them is lost.
    pub updatable: bool,
}

impl Resource {
    /// As an EncryptionConfiguration names it: `secrets`, `widgets.example.org`.
    pub fn full_name(&self) -> String {
        match self.group.is_empty() {
            true => self.name.clone(),
            false => format!("{}.{}", self.name, self.group),
        }
    }

    /// The path of its list, of one namespace or of all.
    pub fn list_path(&self, namespace: Option<&str>) -> String {
        let root = match self.group.is_empty() {
            true => format!("/api/{}", self.version),
            false => format!("/apis/{}/{}", self.group, self.version),
        };
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{root}/namespaces/{namespace}/{}", self.name),
            None => format!("{root}/{}", self.name),
        }
    }

    /// The path of one object; `namespace` is ignored where there is none.
    pub fn object_path(&self, namespace: &str, name: &str) -> String {
        // names of some kinds hold characters such as `:`, which a path may have, but never a slash
        let name = percent_encoding::utf8_percent_encode(name, percent_encoding::NON_ALPHANUMERIC);
        format!("{}/{name}", self.list_path(Some(namespace)))
    }
}

/// All resources that an apiserver serves and keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovery {
    /// Those that can be listed, each in one version.
    pub resources: Vec<Resource>,
    /// Group versions that have not said what they have: `metrics.k8s.io/v1beta1`.
    pub unavailable: Vec<String>,
    /// Those of them that other servers are known to have: they keep their objects themselves.
    pub aggregated: Vec<String>,
    /// Custom resources, by their full names, whose objects are stored in a version that is not
    /// served: they can be listed and counted, and are never [`Resource::updatable`].
    pub lossy: Vec<String>,
}

impl Discovery {
    /// What a name in an EncryptionConfiguration stands for: `secrets`, `widgets.example.org`,
    /// `*.apps`, `*.` (the core group) and `*.*`.
    pub fn matching<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Resource> {
        let (resource, group) = name.split_once('.').unwrap_or((name, ""));
        let (resource, group) = (resource.to_owned(), group.to_owned());
        let any_group = resource == "*" && group == "*";
        self.resources.iter().filter(move |known| {
            (any_group || known.group == group) && (resource == "*" || known.name == resource)
        })
    }

    /// The group versions that have not answered, that may keep something here, and that one of these
    /// names covers.
    pub fn unanswered<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a str> {
        let covers = |name: &String, group: &str| match name.split_once('.') {
            Some((_, of)) => of == group || of == "*",
            None => group.is_empty(),
        };
        let own = self.unavailable.iter().filter(|away| !self.aggregated.contains(away));
        own.map(String::as_str).filter(move |away| {
            let group = away.split('/').next().unwrap_or_default();
            names.iter().any(|name| covers(name, group))
        })
    }

    /// What these names cover, or may, and what is not written back, each with the reason in a
    /// sentence. As long as there is any, nobody knows that nothing is under an older key.
    pub fn left_out(&self, names: &[String]) -> Vec<String> {
        let away = self.unanswered(names).map(|group_version| {
            format!("{group_version} does not answer, so whether anything of it is encrypted is not known")
        });
        let lossy = self.lossy.iter().filter(|name| {
            names.iter().flat_map(|named| self.matching(named)).any(|one| one.full_name() == **name)
        });
        let lossy = lossy.map(|name| {
            format!(
                "{name} is stored in a version that is not served, and loses fields when it is written \
                 back through another one: let its definition serve the version that it stores"
            )
        });
        away.chain(lossy).collect()
    }

    /// Adds what one group version has, unless it is known in a version before that is as good.
    pub(super) fn add(&mut self, group: &str, version: &str, body: &[u8]) -> Option<()> {
        let list: ResourceList = serde_json::from_slice(body).ok()?;
        for found in list.resources {
            let stored = !found.name.contains('/') && has(&found.verbs, "list");
            // an events object of both groups is stored once, under the core group
            if stored && group != "events.k8s.io" {
                self.add_one((group, version), found);
            }
        }
        Some(())
    }

    fn add_one(&mut self, (group, version): (&str, &str), found: Found) {
        let whole = is_built_in(group)
            || found.storage_version_hash == hash_of_version(group, version, &found.kind);
        let resource = Resource {
            group: group.to_owned(),
            version: version.to_owned(),
            updatable: has(&found.verbs, "update"),
            name: found.name,
            kind: found.kind,
            namespaced: found.namespaced,
        };
        let name = resource.full_name();
        let is_same =
            |known: &&mut Resource| known.group == resource.group && known.name == resource.name;
        let Some(known) = self.resources.iter_mut().find(is_same) else {
            self.resources.push(resource);
            if !whole {
                self.lossy.push(name);
            }
            return;
        };
        if whole && self.lossy.contains(&name) {
            *known = resource;
            self.lossy.retain(|one| *one != name);
        }
    }

    /// Ends the discovery, with the group versions that other servers have, as far as they are known.
    /// How those keep their objects is their own affair.
    pub(super) fn settle(&mut self, others: &BTreeSet<String>) {
        let away = self.unavailable.iter().filter(|away| others.contains(*away));
        self.aggregated = away.cloned().collect();
        let mut lossy = std::mem::take(&mut self.lossy);
        lossy.retain(|name| {
            let known = self.resources.iter_mut().find(|known| known.full_name() == *name);
            let Some(known) = known.filter(|known| known.updatable) else { return false };
            known.updatable = others.contains(&format!("{}/{}", known.group, known.version));
            !known.updatable
        });
        self.lossy = lossy;
    }
}

fn has(verbs: &[String], verb: &str) -> bool {
    verbs.iter().any(|known| known == verb)
}

/// The groups of `/apis`, each version of which is to be asked for.
pub(super) fn group_versions(body: &[u8]) -> Option<Vec<(String, String)>> {
    #[derive(Deserialize)]
    struct Groups {
        groups: Vec<Group>,
    }
    #[derive(Deserialize)]
    struct Group {
        name: String,
        versions: Vec<Version>,
    }
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    let list: Groups = serde_json::from_slice(body).ok()?;
    let versions = list.groups.into_iter().flat_map(|group| {
        // the apiserver sorts them: the most stable and newest first
        group.versions.into_iter().map(move |v| (group.name.clone(), v.version))
    });
    Some(versions.collect())
}

/// The group versions of an APIServiceList that other servers have.
pub(super) fn aggregated(body: &[u8]) -> Option<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Services {
        items: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        spec: Spec,
    }
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        group: String,
        version: String,
        service: Option<IgnoredAny>,
    }
    let list: Services = serde_json::from_slice(body).ok()?;
    let specs = list.items.into_iter().map(|item| item.spec);
    let others = specs.filter(|spec| spec.service.is_some());
    Some(others.map(|spec| format!("{}/{}", spec.group, spec.version)).collect())
}

/// What discovery publishes of the version that a kind is stored in: the first eight bytes of the
/// SHA-256 of group, version and kind (`StorageVersionHash` of `k8s.io/apiserver`).
fn hash_of_version(group: &str, version: &str, kind: &str) -> String {
    let hash = mac::sha256(&[format!("{group}/{version}/{kind}").as_bytes()]);
    BASE64_STANDARD.encode(&hash[..8])
}

/// Whether Kubernetes itself has the group: what definitions add has a dot in its group's name, and
/// some of it ends in `.k8s.io` too (`gateway.networking.k8s.io`).
fn is_built_in(group: &str) -> bool {
    !group.contains('.')
        || BUILT_IN.contains(&group)
        || matches!(group, "apiextensions.k8s.io" | "apiregistration.k8s.io")
}

/// Groups that the apiserver itself serves (1.37), and keeps without their names.
pub(crate) const BUILT_IN: [&str; 22] = [
    "",
    "admissionregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "extensions",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

#[derive(Deserialize)]
struct ResourceList {
    resources: Vec<Found>,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "camelCase")]
#[derive(Default)]
struct Found {
    name: String,
    kind: String,
    namespaced: bool,
    verbs: Vec<String>,
    storage_version_hash: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discovery() -> Discovery {
        let mut discovery = Discovery::default();
        let core = br#"{"resources":[
            {"name":"secrets","kind":"Secret","namespaced":true,"verbs":["get","list","update"]},
            {"name":"pods/log","kind":"Pod","namespaced":true,"verbs":["get"]},
            {"name":"bindings","kind":"Binding","namespaced":true,"verbs":["create"]},
            {"name":"nodes","kind":"Node","namespaced":false,"verbs":["list","update"]}]}"#;
        discovery.add("", "v1", core).unwrap();
        let widgets = br#"{"resources":[{"name":"widgets","kind":"Widget","namespaced":true,"verbs":["list","update"]}]}"#;
        discovery.add("example.org", "v2", widgets).unwrap();
        discovery.add("example.org", "v1", widgets).unwrap();
        discovery
    }

    #[test]
    fn names_of_a_configuration_match() {
        let discovery = discovery();
        let names = |name: &str| -> Vec<String> {
            discovery.matching(name).map(Resource::full_name).collect()
        };
        assert_eq!(names("secrets"), ["secrets"]);
        assert_eq!(names("*."), ["secrets", "nodes"]);
        assert_eq!(names("*.example.org"), ["widgets.example.org"]);
        assert_eq!(names("*.*"), ["secrets", "nodes", "widgets.example.org"]);
        assert!(names("widgets").is_empty());
        assert_eq!(discovery.resources[2].version, "v2");
    }

    fn list(name: &str, kind: &str, hash: &str) -> Vec<u8> {
        format!(
            r#"{{"resources":[{{"name":"{name}","kind":"{kind}","namespaced":true,
                "verbs":["list","update"],"storageVersionHash":"{hash}"}}]}}"#
        )
        .into_bytes()
    }

    #[test]
    fn hashes_are_those_that_apiservers_publish() {
        for (group, version, kind, hash) in [
            ("", "v1", "Secret", "S6u1pOWzb84="),
            ("", "v1", "ConfigMap", "qFsyl6wFWjQ="),
            ("example.org", "v1", "Widget", "UBpgYKpyMCc="),
        ] {
            assert_eq!(hash_of_version(group, version, kind), hash);
        }
    }

    #[test]
    fn a_custom_resource_is_written_in_the_version_that_it_is_stored_in() {
        let stored = hash_of_version("example.org", "v1", "Widget");
        // The preferred one first; the stored one may be any of them.
        for order in [["v2", "v1", "v1beta1"], ["v1", "v2", "v1beta1"], ["v2", "v1beta1", "v1"]] {
            let mut discovery = Discovery::default();
            for version in order {
                discovery.add("example.org", version, &list("widgets", "Widget", &stored)).unwrap();
            }
            discovery.settle(&BTreeSet::new());
            let [widgets] = &discovery.resources[..] else { panic!("{discovery:?}") };
            assert_eq!((widgets.version.as_str(), widgets.updatable), ("v1", true));
            assert!(discovery.lossy.is_empty() && discovery.left_out(&all()).is_empty());
        }
    }

    #[test]
    fn what_is_stored_in_a_version_that_is_not_served_is_not_written() {
        let names = ["*.example.org".to_owned()];
        for hash in [hash_of_version("example.org", "v1", "Widget"), String::new()] {
            let mut discovery = Discovery::default();
            for version in ["v3", "v2"] {
                discovery.add("example.org", version, &list("widgets", "Widget", &hash)).unwrap();
            }
            discovery.settle(&BTreeSet::new());
            // It is listed and counted all the same.
            let found: Vec<_> = discovery.matching("*.example.org").collect();
            assert_eq!(
                (found.len(), found[0].version.as_str(), found[0].updatable),
                (1, "v3", false)
            );
            assert_eq!(discovery.lossy, ["widgets.example.org"]);
            let left = discovery.left_out(&names);
            assert!(
                left.len() == 1 && left[0].starts_with("widgets.example.org is stored"),
                "{left:?}"
            );
            assert!(discovery.left_out(&["secrets".to_owned()]).is_empty());
        }
    }

    #[test]
    fn kinds_of_kubernetes_own_need_no_hash() {
        let mut discovery = Discovery::default();
        for (group, name, kind) in [
            ("apps", "deployments", "Deployment"),
            ("storagemigration.k8s.io", "storageversionmigrations", "StorageVersionMigration"),
            // By its name it could be one of them.
            ("gateway.networking.k8s.io", "httproutes", "HTTPRoute"),
        ] {
            for version in ["v1", "v1beta1"] {
                let stored = hash_of_version(group, "v1alpha1", kind);
                discovery.add(group, version, &list(name, kind, &stored)).unwrap();
            }
        }
        discovery.settle(&BTreeSet::new());
        assert_eq!(discovery.lossy, ["httproutes.gateway.networking.k8s.io"]);
        assert!(discovery.resources.iter().all(|one| one.version == "v1"));
    }

    fn all() -> [String; 1] {
        ["*.*".to_owned()]
    }

    #[test]
    fn paths_are_those_of_the_api() {
        let discovery = discovery();
        let [secrets, nodes, widgets] = &discovery.resources[..] else { panic!("three") };
        assert_eq!(secrets.list_path(None), "/api/v1/secrets");
        assert_eq!(secrets.list_path(Some("a")), "/api/v1/namespaces/a/secrets");
        assert_eq!(nodes.object_path("", "n1"), "/api/v1/nodes/n1");
        assert_eq!(
            widgets.object_path("a", "x:y"),
            "/apis/example.org/v2/namespaces/a/widgets/x%3Ay"
        );
    }
}
