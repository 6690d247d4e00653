//! Which resources a cluster has, and how each is addressed.

use serde::{Deserialize, Serialize};

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
    /// Whether they may be written back.
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
    /// Groups that could not be asked for theirs: aggregated apiservers that are away.
    pub unavailable: Vec<String>,
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

    /// Adds what one group version has, unless it is known in a version before.
    pub(super) fn add(&mut self, group: &str, version: &str, body: &[u8]) -> Option<()> {
        let list: ResourceList = serde_json::from_slice(body).ok()?;
        for found in list.resources {
            let stored = !found.name.contains('/') && has(&found.verbs, "list");
            // an events object of both groups is stored once, under the core group
            let double = group == "events.k8s.io";
            let known = |known: &Resource| known.group == group && known.name == found.name;
            if stored && !double && !self.resources.iter().any(known) {
                self.resources.push(Resource {
                    group: group.to_owned(),
                    version: version.to_owned(),
                    updatable: has(&found.verbs, "update"),
                    name: found.name,
                    kind: found.kind,
                    namespaced: found.namespaced,
                });
            }
        }
        Some(())
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

#[derive(Deserialize)]
struct ResourceList {
    resources: Vec<Found>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Found {
    name: String,
    kind: String,
    namespaced: bool,
    verbs: Vec<String>,
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
