//! Something changes each object at each write, so that no pass is without one.

use super::*;

async fn lab(webhook: Webhook) -> Lab {
    let mut world = World::with(&[("", "secrets", 3), ("apps", "a", 2)]);
    world.webhook = webhook;
    Lab::new(world).await
}

/// The apiservers have counted under which key id they have written.
#[tokio::test]
async fn what_is_changed_at_each_write_is_shown_by_the_writes() {
    let lab = lab(Webhook::Changes).await;
    lab.rotate(&["secrets", "*.apps"]).await;
    let world = lab.world.lock();
    let report = world.report();
    assert_eq!((&report["passes"], &report["rewritten"]), (&json!(3), &json!(15)), "{report}");
    assert_eq!(report["verified"]["by"], "writes", "{report}");
    // What is under the present version needs it.
    let found = &world.finished.as_ref().unwrap()["found"]["versions"];
    assert_eq!(found, &json!({ version(2).to_string(): 5 }), "{report}");
}

/// Where they do not show it, it ends with what to do; once that is done, the same command goes on.
#[tokio::test]
async fn without_an_end_it_says_what_to_do() {
    let lab = lab(Webhook::ChangesAndOthers).await;
    for passes in [MAX_PASSES, MAX_PASSES + 1] {
        let error = lab.run(&lab.worker(&["secrets", "*.apps"])).await.unwrap_err().to_string();
        for said in ["webhook", "kube-system/lastkey", "register etcd", "--cancel"] {
            assert!(error.contains(said), "{said}: {error}");
        }
        let mut world = lab.world.lock();
        assert!(world.finished.is_none());
        assert_eq!(world.writes, 5 * passes as usize, "a whole pass for each command");
        world.rotation["lease"] = Value::Null;
    }
    lab.world.lock().webhook = Webhook::Nothing;
    lab.rotate(&["secrets", "*.apps"]).await;
    let world = lab.world.lock();
    assert!(world.is_free(), "{}", world.report());
    assert_eq!(world.report()["verified"]["by"], "pass", "{}", world.report());
}

/// The provider that they came from goes only after a pass that writes nothing.
#[tokio::test]
async fn a_change_of_provider_is_not_shown_by_writes() {
    let mut world = World::with(&[("apps", "a", 2)]);
    world.webhook = Webhook::Changes;
    let (lab, worker, path) = disable(world).await;
    let error = lab.run(&worker).await.unwrap_err().to_string();
    assert!(error.contains("kube-system/lastkey") && !error.contains("etcd"), "{error}");
    assert!(has_kms(&path) && lab.world.lock().finished.is_none());
}
