//! The account that Lastkey uses in a cluster: a service account that may read and write back what
//! is encrypted, see how the apiservers are, and ask for its own next token. Nothing else. Where the
//! cluster is to write its objects anew by itself, it may not even read them: it may have
//! migrations made, and nothing more ([`Migrate::Cluster`]).
//!
//! 1. An administrator's credential is used once, to make it ([`Role::establish`]).
//! 2. Its token is what is registered. It ends after 30 days, and asks for its successor whenever
//!    it is used for more than a day ([`Role::renew`]).

use http::Method;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{ApiError, ApiServer, Credential, MIGRATION_VERBS, Migrate};

/// Where the account lives.
pub const NAMESPACE: &str = "kube-system";
/// How long a token lasts, in seconds. Apiservers may shorten it.
const TOKEN_LIFE: u64 = 30 * 24 * 3600;
/// Whose fields these are, for server-side apply.
const OWNER: &str = "fieldManager=lastkey&force=true";

/// The account of one cluster, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// The account's name, and that of its roles.
    pub name: String,
    /// As an EncryptionConfiguration names them.
    pub resources: Vec<String>,
    /// Who writes them anew.
    pub migrate: Migrate,
}

impl Role {
    /// The account `lastkey`, for these resources.
    pub fn new(resources: &[String], migrate: Migrate) -> Self {
        Self { name: "lastkey".to_owned(), resources: resources.to_vec(), migrate }
    }

    /// Everything that has to exist, in the order of its making.
    pub fn objects(&self) -> Vec<Value> {
        let name = &self.name;
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": { "name": name, "namespace": NAMESPACE },
        });
        let kinds =
            [("ClusterRole", "ClusterRoleBinding", None), ("Role", "RoleBinding", Some(NAMESPACE))];
        let mut objects = vec![account];
        for (role, binding, namespace) in kinds {
            let mut metadata = json!({ "name": name });
            if let Some(namespace) = namespace {
                metadata["namespace"] = json!(namespace);
            }
            let rules = match namespace {
                None => self.cluster_rules(),
                Some(_) => self.own_rules(),
            };
            objects.push(json!({
                "apiVersion": RBAC, "kind": role, "metadata": metadata, "rules": rules,
            }));
            objects.push(json!({
                "apiVersion": RBAC, "kind": binding, "metadata": metadata,
                "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": role, "name": name },
                "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": NAMESPACE }],
            }));
        }
        objects
    }

    /// The same as YAML, for `kubectl apply -f -`.
    pub fn yaml(&self) -> String {
        let documents = self.objects();
        let documents = documents.iter().map(|object| {
            let mut text = String::new();
            write_map(object, 0, &mut text);
            text
        });
        documents.collect::<Vec<_>>().join("---\n")
    }

    fn cluster_rules(&self) -> Vec<Value> {
        let to_write = |named: &String| {
            let (resource, group) = named.split_once('.').unwrap_or((named, ""));
            json!({
                "apiGroups": [group], "resources": [resource],
                "verbs": ["get", "list", "update"],
            })
        };
        let mut rules: Vec<Value> = match self.migrate {
            Migrate::Auto | Migrate::Own => self.resources.iter().map(to_write).collect(),
            Migrate::Cluster => vec![json!({
                "apiGroups": ["storagemigration.k8s.io"],
                "resources": ["storageversionmigrations"], "verbs": MIGRATION_VERBS,
            })],
        };
        let everything = self.resources.iter().any(|name| name == "*.*");
        if everything && self.migrate != Migrate::Cluster {
            // Which groups are of other apiservers, that keep their objects elsewhere.
            rules.push(json!({
                "apiGroups": ["apiregistration.k8s.io"], "resources": ["apiservices"],
                "verbs": ["list"],
            }));
        }
        if self.migrate != Migrate::Cluster {
            // Whether the namespace is there that a rotation is to be for.
            rules.push(json!({
                "apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"],
            }));
        }
        rules.push(json!({
            "nonResourceURLs": ["/metrics", "/readyz", "/readyz/*", "/version"], "verbs": ["get"],
        }));
        rules
    }

    fn own_rules(&self) -> Vec<Value> {
        vec![json!({
            "apiGroups": [""], "resources": ["serviceaccounts/token"],
            "resourceNames": [self.name], "verbs": ["create"],
        })]
    }

    /// Makes the account or brings it up to date, and gets a token for it.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`] when the credential of `admin` may not.
    pub async fn establish(&self, admin: &ApiServer) -> Result<Credential, ApiError> {
        for object in self.objects() {
            let target = format!("{}?{OWNER}", path_of(&object));
            admin.write(Method::PATCH, &target, &object).await?;
        }
        self.renew(admin).await
    }

    /// A new token for the account, asked for by an administrator or by itself.
    ///
    /// # Errors
    /// When the apiserver does not give one.
    pub async fn renew(&self, api: &ApiServer) -> Result<Credential, ApiError> {
        let name = &self.name;
        let target = format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{name}/token");
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": { "expirationSeconds": TOKEN_LIFE },
        });
        let reply = api.write(Method::POST, &target, &request).await?;
        let given: TokenRequest = serde_json::from_slice(&reply.body).map_err(|_| {
            let server = api.urls().next().map(ToString::to_string).unwrap_or_default();
            ApiError::Garbage { server, what: "something that is not a token" }
        })?;
        Ok(Credential::Token {
            token: given.status.token,
            account: Some(name.clone()),
            until: Some(given.status.expiration_timestamp),
        })
    }
}

/// The fields of a map, a line each; lists of maps as items, other lists in brackets.
fn write_map(map: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    for (name, value) in map.as_object().into_iter().flatten() {
        match value {
            Value::Object(_) => {
                *out += &format!("{pad}{name}:\n");
                write_map(value, indent + 2, out);
            }
            Value::Array(items) if items.iter().any(Value::is_object) => {
                *out += &format!("{pad}{name}:\n");
                for item in items {
                    let mut text = String::new();
                    write_map(item, indent + 2, &mut text);
                    text.replace_range(indent..indent + 2, "- ");
                    *out += &text;
                }
            }
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(scalar).collect();
                *out += &format!("{pad}{name}: [{}]\n", items.join(", "));
            }
            value => *out += &format!("{pad}{name}: {}\n", scalar(value)),
        }
    }
}

/// A string in quotes, unless nothing could mistake it.
fn scalar(value: &Value) -> String {
    let plain = |text: &str| {
        text.len() > 3
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"./-".contains(&b))
            && !matches!(text, "true" | "false" | "null")
    };
    match value {
        Value::String(text) if plain(text) => text.clone(),
        value => value.to_string(),
    }
}

const RBAC: &str = "rbac.authorization.k8s.io/v1";

fn path_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (name, namespace) =
        (text(&object["metadata"]["name"]), text(&object["metadata"]["namespace"]));
    let root = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
    let place = match namespace.is_empty() {
        true => String::new(),
        false => format!("/namespaces/{namespace}"),
    };
    format!("{root}{place}/{}s/{name}", kind.to_lowercase())
}

#[derive(Deserialize)]
struct TokenRequest {
    status: TokenStatus,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenStatus {
    token: Zeroizing<String>,
    expiration_timestamp: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_is_narrow() {
        let role = Role::new(&["secrets".to_owned(), "*.example.org".to_owned()], Migrate::Auto);
        let objects = role.objects();
        let paths: Vec<String> = objects.iter().map(path_of).collect();
        assert_eq!(
            paths,
            [
                "/api/v1/namespaces/kube-system/serviceaccounts/lastkey",
                "/apis/rbac.authorization.k8s.io/v1/clusterroles/lastkey",
                "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/lastkey",
                "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/lastkey",
                "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings/lastkey",
            ]
        );
        let rules = objects[1]["rules"].as_array().unwrap();
        assert_eq!(rules[1]["apiGroups"], json!(["example.org"]));
        // nothing but one's own token can be made, and nothing of a cluster deleted or watched
        for rule in rules.iter().take(2) {
            assert_eq!(rule["verbs"], json!(["get", "list", "update"]));
        }
        let named = json!({ "apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"] });
        assert_eq!((rules.len(), &rules[2]), (4, &named));
        assert_eq!(objects[3]["rules"][0]["resourceNames"], json!(["lastkey"]));
        let yaml = role.yaml();
        let documents: Vec<Value> =
            yaml.split("---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect();
        assert_eq!(documents, objects, "{yaml}");
    }

    #[test]
    fn where_the_cluster_migrates_nothing_encrypted_can_be_read() {
        let role = Role::new(&["secrets".to_owned(), "*.*".to_owned()], Migrate::Cluster);
        let objects = role.objects();
        let rules = objects[1]["rules"].as_array().unwrap();
        let [migrations, urls] = &rules[..] else { panic!("{rules:?}") };
        assert_eq!(migrations["apiGroups"], json!(["storagemigration.k8s.io"]));
        assert_eq!(migrations["resources"], json!(["storageversionmigrations"]));
        assert_eq!(urls["verbs"], json!(["get"]));
        assert!(!role.yaml().contains("secrets"));
        assert_eq!(objects.len(), Role::new(&[], Migrate::Own).objects().len());
    }
}
