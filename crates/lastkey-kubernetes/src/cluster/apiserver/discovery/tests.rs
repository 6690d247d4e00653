//! Discovery against an apiserver that answers what each test says.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::{cluster::fake, rotation};

/// By path, the answers one after the other; the last one for ever. What is not named is not found.
type Script = BTreeMap<&'static str, Vec<(u16, Value)>>;

struct Fake {
    api: ApiServer,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    async fn new(script: Script) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, script) = (Arc::clone(&asked), Arc::new(script));
        let access = fake::apiserver(move |_: &str, path: &str, _: &Value| {
            let before = {
                let mut seen = seen.lock();
                seen.push(path.to_owned());
                seen.iter().filter(|one| **one == path).count() - 1
            };
            let answers = script.get(path);
            let answer = answers.and_then(|all| all.get(before).or(all.last())).cloned();
            let (status, body) = answer.unwrap_or((404, json!({ "reason": "NotFound" })));
            (status, body.to_string())
        });
        Self { api: ApiServer::new(&access.await).unwrap(), asked }
    }

    async fn named(&self, names: &[&str]) -> Result<Discovery, ApiError> {
        let pauses = [Duration::from_millis(1); 3];
        self.api.discover_where(&Wanted::by(names), &pauses).await
    }

    fn times(&self, path: &str) -> usize {
        self.asked.lock().iter().filter(|asked| *asked == path).count()
    }
}

fn resources(of: &[(&str, &str, &str)]) -> Value {
    let resources = of.iter().map(|(name, kind, hash)| {
        json!({
            "name": name, "kind": kind, "namespaced": true, "verbs": ["get", "list", "update"],
            "storageVersionHash": hash,
        })
    });
    json!({ "resources": resources.collect::<Vec<_>>() })
}

fn service(group: &str, version: &str, service: &Value) -> Value {
    json!({ "spec": { "group": group, "version": version, "service": service } })
}

const WIDGETS: &str = "/apis/example.org/v1";
const METRICS: &str = "/apis/metrics.example.com/v1beta1";
/// Of `example.org/v1/Widget`.
const WIDGET_V1: &str = "UBpgYKpyMCc=";

/// A cluster with Secrets, widgets and an aggregated apiserver, with these answers of another kind.
fn script(other: &[(&'static str, &[(u16, Value)])]) -> Script {
    let groups = json!({ "groups": [
        { "name": "example.org", "versions": [{ "version": "v1" }] },
        { "name": "metrics.example.com", "versions": [{ "version": "v1beta1" }] },
    ]});
    let mut script = Script::from([
        ("/apis", vec![(200, groups)]),
        ("/api/v1", vec![(200, resources(&[("secrets", "Secret", "S6u1pOWzb84=")]))]),
        (WIDGETS, vec![(200, resources(&[("widgets", "Widget", WIDGET_V1)]))]),
        (METRICS, vec![(200, resources(&[]))]),
        (API_SERVICES, vec![(403, json!({ "reason": "Forbidden" }))]),
    ]);
    script.extend(other.iter().map(|(path, answers)| (*path, answers.to_vec())));
    script
}

fn names(discovery: &Discovery) -> Vec<String> {
    discovery.resources.iter().map(crate::cluster::Resource::full_name).collect()
}

#[tokio::test]
async fn without_the_core_group_or_a_named_one_nothing_is_known() {
    for status in [429, 500, 503, 504] {
        let away = [(status, json!({}))];
        for (path, wanted) in [
            ("/api/v1", &["secrets"][..]),
            ("/api/v1", &["*.*"]),
            (WIDGETS, &["secrets", "widgets.example.org"]),
            (WIDGETS, &["*.example.org"]),
            (WIDGETS, &["*.*", "widgets.example.org"]),
        ] {
            let fake = Fake::new(script(&[(path, &away)])).await;
            let error = fake.named(wanted).await.unwrap_err();
            assert!(error.is_transient(), "{status} {path}: {error}");
            assert_eq!(fake.times(path), 1, "whoever asks decides whether to ask again");
        }
    }
    let fake = Fake::new(script(&[(WIDGETS, &[(503, json!({}))])])).await;
    let error = fake.named(&["widgets.example.org"]).await.unwrap_err().to_string();
    assert!(error.contains("example.org/v1 with the status 503"), "{error}");
    let fake = Fake::new(script(&[("/api/v1", &[(503, json!({}))])])).await;
    let error = fake.api.discover().await.unwrap_err();
    assert_eq!(error, ApiError::Undiscovered { group_version: "v1".to_owned(), status: 503 });
}

#[tokio::test]
async fn a_group_that_nobody_named_is_not_asked() {
    let fake = Fake::new(script(&[(METRICS, &[(503, json!({}))])])).await;
    let found = fake.named(&["secrets", "widgets.example.org"]).await.unwrap();
    assert_eq!(names(&found), ["secrets", "widgets.example.org"]);
    assert!(found.left_out(&["secrets".to_owned()]).is_empty());
    assert_eq!((fake.times(METRICS), fake.times(API_SERVICES)), (0, 0));
}

#[tokio::test]
async fn a_named_group_that_comes_back_is_waited_for() {
    let widgets = resources(&[("widgets", "Widget", WIDGET_V1)]);
    let answers = [(503, json!({})), (200, widgets)];
    let fake = Fake::new(script(&[(WIDGETS, &answers)])).await;
    let found = rotation::discover(&fake.api, &["widgets.example.org".to_owned()]).await.unwrap();
    assert_eq!(names(&found), ["widgets.example.org"]);
}

#[tokio::test]
async fn what_only_a_wildcard_covers_is_asked_again_and_then_left_out() {
    let all = ["*.*".to_owned()];
    let widgets = resources(&[("widgets", "Widget", WIDGET_V1)]);
    let back = [(503, json!({})), (429, json!({})), (200, widgets)];
    let fake = Fake::new(script(&[(WIDGETS, &back)])).await;
    let found = fake.named(&["*.*"]).await.unwrap();
    assert_eq!(names(&found), ["secrets", "widgets.example.org"]);
    assert!(found.unavailable.is_empty() && found.left_out(&all).is_empty());
    assert_eq!((fake.times(WIDGETS), fake.times("/api/v1")), (3, 1));

    let fake = Fake::new(script(&[(METRICS, &[(503, json!({}))])])).await;
    let found = fake.named(&["*.*"]).await.unwrap();
    assert_eq!(fake.times(METRICS), 4);
    assert_eq!(fake.times(API_SERVICES), 1);
    assert_eq!(found.unavailable, ["metrics.example.com/v1beta1"]);
    let left = found.left_out(&all);
    assert!(left.len() == 1 && left[0].contains("metrics.example.com/v1beta1"), "{left:?}");
    // Names of other groups do not need it.
    assert!(found.left_out(&["secrets".to_owned(), "*.example.org".to_owned()]).is_empty());
}

#[tokio::test]
async fn what_another_server_has_is_not_missing() {
    let own = service("example.org", "v1", &Value::Null);
    let other = service("metrics.example.com", "v1beta1", &json!({ "name": "m" }));
    let services = [(200, json!({ "items": [own, other] }))];
    let away = [(503, json!({}))];
    let fake = Fake::new(script(&[(METRICS, &away), (API_SERVICES, &services)])).await;
    let found = fake.named(&["*.*"]).await.unwrap();
    assert_eq!(found.unavailable, ["metrics.example.com/v1beta1"]);
    assert!(found.left_out(&["*.*".to_owned()]).is_empty());
    assert_eq!(fake.times(METRICS), 1, "it is not waited for");

    let fake = Fake::new(script(&[(WIDGETS, &away), (API_SERVICES, &services)])).await;
    let found = fake.named(&["*.*"]).await.unwrap();
    assert_eq!(found.left_out(&["*.*".to_owned()]).len(), 1, "{found:?}");
}

#[tokio::test]
async fn whoever_only_looks_is_told_what_is_away() {
    let fake = Fake::new(script(&[(METRICS, &[(503, json!({}))])])).await;
    let found = fake.api.discover().await.unwrap();
    assert_eq!(found.unavailable, ["metrics.example.com/v1beta1"]);
    assert_eq!(fake.times(METRICS), 1);
}

#[tokio::test]
async fn what_another_server_stores_is_written_as_before() {
    let unknown = resources(&[("widgets", "Widget", "")]);
    let other = service("example.org", "v1", &json!({ "name": "w" }));
    for (services, updatable) in [(json!({ "items": [other] }), true), (json!({}), false)] {
        let answers = [(200, services)];
        let custom = [(200, unknown.clone())];
        let fake = Fake::new(script(&[(WIDGETS, &custom), (API_SERVICES, &answers)])).await;
        let found = fake.named(&["*.example.org"]).await.unwrap();
        assert_eq!(found.resources[0].updatable, updatable);
        assert_eq!(found.lossy.is_empty(), updatable);
    }
}
