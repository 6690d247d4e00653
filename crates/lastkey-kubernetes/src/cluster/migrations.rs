//! The cluster's own way of writing objects anew: StorageVersionMigration
//! (`storagemigration.k8s.io/v1`, served by default from Kubernetes 1.37), which
//! kube-controller-manager carries out. And the question what an account may do.
//!
//! Of a migration only names and conditions are read. A condition's message can quote an admission
//! webhook, and with it an object: only counts and names are taken out of it.

use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;

use super::{ApiError, ApiServer, Resource, error::Answer};

/// As an EncryptionConfiguration would name them.
pub const MIGRATIONS: &str = "storageversionmigrations.storagemigration.k8s.io";
/// What has to be allowed to have a cluster migrate.
pub const MIGRATION_VERBS: [&str; 5] = ["create", "delete", "get", "list", "watch"];
const PATH: &str = "/apis/storagemigration.k8s.io/v1/storageversionmigrations";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
/// Says of which cluster of ours a migration is.
const LABEL: &str = "lastkey-cluster";

/// Where a migration is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationState {
    /// Nobody has taken it up, or another one of the same resource comes first.
    Waiting,
    /// kube-controller-manager has taken it up.
    Running,
    /// It has gone through all objects.
    Succeeded,
    /// It has stopped at an object, or could not begin.
    Failed,
}

/// A StorageVersionMigration.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Migration {
    /// Its name.
    pub name: String,
    /// What it is of: `secrets`, `widgets.example.org`.
    pub resource: String,
    /// Where it is.
    pub state: MigrationState,
    /// What its conditions say, as far as that quotes nothing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub said: String,
    /// The cluster's id, if it is one of ours.
    #[serde(skip)]
    pub cluster: Option<String>,
}

/// One thing that somebody may do or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Right<'a> {
    /// `get`, `list`, `update`, …
    pub verb: &'a str,
    /// The API group; empty for the core group.
    pub group: &'a str,
    /// The resource's name in paths.
    pub resource: &'a str,
    /// In this namespace; `None` for all.
    pub namespace: Option<&'a str>,
}

impl ApiServer {
    /// Whether the account that calls has a right, as far as an apiserver can tell beforehand.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`] where it may not even ask, which every account may by default.
    pub async fn may(&self, right: &Right<'_>) -> Result<bool, ApiError> {
        #[derive(Deserialize)]
        struct Review {
            status: Status,
        }
        #[derive(Deserialize)]
        struct Status {
            allowed: bool,
        }
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": { "resourceAttributes": {
                "verb": right.verb, "group": right.group, "resource": right.resource,
                "namespace": right.namespace.unwrap_or_default(),
            }},
        });
        let reply = self.write(Method::POST, REVIEWS, &review).await?;
        let review: Option<Review> = serde_json::from_slice(&reply.body).ok();
        let review = review.ok_or_else(|| self.no_migrations("something that is not a review"))?;
        Ok(review.status.allowed)
    }

    /// All migrations there are, of whomever.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn migrations(&self) -> Result<Vec<Migration>, ApiError> {
        let reply = self.read(PATH).await?;
        parse(&reply.body).ok_or_else(|| self.no_migrations("something that is not a list"))
    }

    /// Has the cluster migrate a resource. One of that name that is there already is as good.
    ///
    /// # Errors
    /// When it is not made.
    pub async fn migrate(
        &self,
        name: &str,
        (of, cluster): (&Resource, &str),
    ) -> Result<(), ApiError> {
        let migration = json!({
            "apiVersion": "storagemigration.k8s.io/v1", "kind": "StorageVersionMigration",
            "metadata": {
                "name": name,
                "labels": { "app.kubernetes.io/managed-by": "lastkey", LABEL: cluster },
            },
            "spec": { "resource": { "group": of.group, "resource": of.name } },
        });
        match self.write(Method::POST, PATH, &migration).await {
            Err(ApiError::Failed { status: 409, .. }) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes a migration. One that is not there any more is as good.
    ///
    /// # Errors
    /// When it is not deleted.
    pub async fn delete_migration(&self, name: &str) -> Result<(), ApiError> {
        let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions" });
        match self.write(Method::DELETE, &format!("{PATH}/{name}"), &options).await {
            Err(ApiError::NotFound) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn no_migrations(&self, what: &'static str) -> ApiError {
        let server = self.urls().next().map(ToString::to_string).unwrap_or_default();
        ApiError::Garbage { server, what }
    }
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Metadata,
    #[serde(default)]
    spec: Spec,
    #[serde(default)]
    status: Status,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    resource: GroupResource,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct GroupResource {
    group: String,
    resource: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Status {
    conditions: Vec<Condition>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    message: String,
}

/// Reads a list of migrations.
pub(super) fn parse(body: &[u8]) -> Option<Vec<Migration>> {
    let list: List = serde_json::from_slice(body).ok()?;
    Some(list.items.into_iter().map(Migration::from).collect())
}

impl From<Item> for Migration {
    fn from(mut item: Item) -> Self {
        let holds = |kind: &str| {
            let mut conditions = item.status.conditions.iter();
            conditions.find(|one| one.kind == kind && one.status == "True")
        };
        let states = [
            ("Failed", MigrationState::Failed),
            ("Succeeded", MigrationState::Succeeded),
            ("Running", MigrationState::Running),
        ];
        let known = states.iter().find_map(|(kind, state)| Some((*state, holds(kind)?)));
        let (state, said) = match known {
            Some((state, condition)) => (state, said(&condition.message)),
            None => (MigrationState::Waiting, String::new()),
        };
        let GroupResource { group, resource } = item.spec.resource;
        let resource = if group.is_empty() { resource } else { format!("{resource}.{group}") };
        let cluster = item.metadata.labels.remove(LABEL);
        Self { name: item.metadata.name, resource, state, said, cluster }
    }
}

/// What a condition's message says: how many objects are left, and who refuses or cannot be asked.
fn said(message: &str) -> String {
    let body = json!({ "message": message }).to_string();
    let answer = Answer { method: &Method::PATCH, path: "", body: body.as_bytes() };
    let reason = match ApiError::from_answer(StatusCode::FORBIDDEN, None, &answer) {
        error @ (ApiError::Refused { .. } | ApiError::WebhookDown { .. }) => error.to_string(),
        _ => String::new(),
    };
    let parts = [left_in(message).unwrap_or_default(), reason];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(", ")
}

/// `12/40 not yet migrated` and `12/40 objects not yet migrated`, as 1.37 writes them.
fn left_in(message: &str) -> Option<String> {
    let before = message.split_once(" not yet migrated")?.0;
    let before = before.strip_suffix(" objects").unwrap_or(before);
    let (left, all) = before.rsplit(' ').next()?.split_once('/')?;
    let (left, all): (u64, u64) = (left.parse().ok()?, all.parse().ok()?);
    Some(format!("{left} of {all} objects are left"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(conditions: &serde_json::Value) -> Migration {
        let list = json!({ "items": [{
            "metadata": { "name": "m", "labels": { LABEL: "c-1" } },
            "spec": { "resource": { "group": "example.org", "resource": "widgets" } },
            "status": { "conditions": conditions, "resourceVersion": "7" },
        }]});
        parse(list.to_string().as_bytes()).unwrap().remove(0)
    }

    fn condition(kind: &str, status: &str, message: &str) -> serde_json::Value {
        json!({ "type": kind, "status": status, "reason": "r", "message": message })
    }

    #[test]
    fn conditions_say_where_it_is() {
        let fresh = one(&json!([]));
        assert_eq!(fresh.state, MigrationState::Waiting);
        assert_eq!(
            (fresh.resource.as_str(), fresh.cluster.as_deref()),
            ("widgets.example.org", Some("c-1"))
        );
        let running = condition("Running", "True", "The migration is running");
        let running = one(&json!([running]));
        assert_eq!((running.state, running.said.as_str()), (MigrationState::Running, ""));
        let over = [condition("Running", "False", ""), condition("Succeeded", "True", "")];
        assert_eq!(one(&json!(over)).state, MigrationState::Succeeded);
        let never = parse(br#"{"items":[{"metadata":{"name":"m"}}]}"#).unwrap().remove(0);
        assert_eq!((never.state, never.cluster), (MigrationState::Waiting, None));
        assert!(parse(b"[]").is_none() || parse(b"[]").unwrap().is_empty());
        assert!(parse(b"{").is_none());
    }

    #[test]
    fn messages_are_not_passed_on() {
        let webhook = "3/40 not yet migrated. migration encountered unhandled error: admission \
                       webhook \"no.example.org\" denied the request: s3cret";
        let policy = "1/2 not yet migrated. migration encountered unhandled error: secrets \"a\" is \
                      forbidden: ValidatingAdmissionPolicy 'frozen' with binding 'b' denied request: s3cret";
        let down = "The migration is running, 2/9 objects not yet migrated; transient error: Internal \
                    error occurred: failed calling webhook \"w.example.org\": Post s3cret";
        for (message, shown) in [
            (webhook, "3 of 40 objects are left, refused by the admission webhook no.example.org"),
            (policy, "1 of 2 objects are left, refused by the ValidatingAdmissionPolicy frozen"),
            (down, "2 of 9 objects are left, the admission webhook w.example.org cannot be asked"),
            ("migration encountered unhandled error: s3cret", ""),
            ("The migration is running", ""),
        ] {
            assert_eq!(said(message), shown);
            assert_eq!(one(&json!([condition("Failed", "True", message)])).said, shown);
        }
    }
}
