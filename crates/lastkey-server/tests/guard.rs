//! The guard over both wires: what is refused, with its list; dry runs; overrides by one and two.
#![allow(clippy::unwrap_used, reason = "clippy takes helpers of tests for library code")]

mod support;

use serde_json::{Value, json};
use support::{Running, start};

/// A key, its first version, and a backup that needs that.
async fn needed(server: &Running) -> (String, String) {
    let made = server.call("CreateKey", &[]).await.ok();
    let key = made["KeyMetadata"]["KeyId"].as_str().unwrap().to_owned();
    let version = made["KeyMetadata"]["PrimaryKeyVersion"].as_str().unwrap().to_owned();
    let backup = json!({
        "kind": "backup", "id": "monday", "name": "monday", "seen_at": "2026-01-01T00:00:00Z",
        "versions": { version.as_str(): 7 },
    });
    server.native("PUT", &format!("/v1/keys/{key}/dependants"), &backup).await.ok();
    (key, version)
}

async fn state(server: &Running, key: &str) -> Value {
    server.call("DescribeKey", &[("KeyId", key)]).await.ok()["KeyMetadata"]["KeyState"].clone()
}

async fn waiting(server: &Running) -> usize {
    let guard = server.native("GET", "/v1/guard", &Value::Null).await.ok();
    guard["requests"].as_array().unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_needed_is_refused_with_its_list_on_both_wires() {
    let server = start().await;
    let (key, version) = needed(&server).await;
    let days = ("PendingWindowInDays", "7");
    let dry = ("DryRun", "true");
    for (action, more) in [("DisableKey", &[][..]), ("ScheduleKeyDeletion", &[days])] {
        let plain = [&[("KeyId", &*key)], more].concat();
        let refused = server.call(action, &plain).await;
        assert_eq!(refused.error(), (409, "Rejected.HasDependants".to_owned()), "{action}");
        assert!(refused.text.contains("monday"), "{}", refused.text);
        // A dry run says the same, in its own words.
        let refused = server.call(action, &[&plain[..], &[dry]].concat()).await;
        assert_eq!(refused.error(), (400, "ValidationError".to_owned()), "{action}");
        assert!(refused.text.contains("monday"), "{}", refused.text);
        let over = [("Override", &*key), ("OverrideReason", "it is over")];
        let would = server.call(action, &[&plain[..], &over, &[dry]].concat()).await;
        assert_eq!(would.error(), (400, "DryRunOperationError".to_owned()), "{action}");
        for wrong in [
            &[over[0]][..],
            &[("Override", "alias/other"), over[1]],
            &[over[0], ("OverrideReason", " ")],
        ] {
            let refused = server.call(action, &[&plain[..], wrong].concat()).await;
            assert_eq!(refused.status, 400, "{action} {wrong:?}: {}", refused.text);
        }
    }
    assert_eq!(state(&server, &key).await, "Enabled");
    // Natively with a list that can be read.
    server.call("CreateKeyVersion", &[("KeyId", &key)]).await.ok();
    let retire = format!("/v1/keys/{key}/versions/{version}/retire");
    let refused = server.native("POST", &retire, &json!({ "window_days": 30 })).await;
    assert_eq!(refused.error(), (409, "Rejected.HasDependants".to_owned()));
    assert_eq!(refused.json()["dependants"][0]["id"], "monday", "{}", refused.text);
    assert_eq!(refused.json()["dependants"][0]["objects"], 7, "{}", refused.text);
    let forced = json!({ "window_days": 30, "override": &key, "reason": "it is over" });
    assert_eq!(server.native("POST", &retire, &forced).await.ok()["state"], "retired");
    let over = [("KeyId", &*key), ("Override", &*key), ("OverrideReason", "it is over")];
    server.call("DisableKey", &over).await.ok();
    assert_eq!(state(&server, &key).await, "Disabled");
    let logged = server.audit_text();
    let disabled = logged.lines().rfind(|line| line.contains("\"DisableKey\"")).unwrap();
    assert!(disabled.contains("it is over") && disabled.contains("\"dependants\":1"), "{disabled}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_waits_for_a_second_person_on_both_wires() {
    let server = start().await;
    let (key, _) = needed(&server).await;
    let on = json!({ "on": true, "reason": "a rule" });
    server.native("POST", "/v1/guard/second-person", &on).await.ok();
    let over = [("KeyId", &*key), ("Override", &*key), ("OverrideReason", "it is over")];
    // A dry run leaves no request, and says that it would not be done yet.
    let dry = server.call("DisableKey", &[&over[..], &[("DryRun", "true")]].concat()).await;
    assert_eq!(dry.error(), (400, "ValidationError".to_owned()), "{}", dry.text);
    assert!(dry.text.contains("second person"), "{}", dry.text);
    assert_eq!(waiting(&server).await, 0);
    let asked = server.call("DisableKey", &over).await;
    assert_eq!(asked.error(), (409, "Rejected.AwaitsSecondPerson".to_owned()));
    // Asked again it is the same request.
    assert_eq!(server.call("DisableKey", &over).await.error().1, "Rejected.AwaitsSecondPerson");
    assert_eq!((waiting(&server).await, state(&server, &key).await), (1, json!("Enabled")));
    let guard = server.native("GET", "/v1/guard", &Value::Null).await.ok();
    let id = guard["requests"][0]["id"].as_str().unwrap();
    // The administrator of the machine is another person than the account.
    let confirm = format!("/v1/guard/requests/{id}/confirm");
    server.native("POST", &confirm, &json!({})).await.ok();
    assert_eq!((waiting(&server).await, state(&server, &key).await), (0, json!("Disabled")));
    assert_eq!(server.native("POST", &confirm, &json!({})).await.status, 404);
}
