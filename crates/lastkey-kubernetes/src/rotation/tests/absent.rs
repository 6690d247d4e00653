//! What is believed to be gone, and what is not.

use super::*;

/// Two kinds, with a write of one of them that is answered with this, and what is told of it then.
fn world(write: u16, get: Told) -> World {
    let mut world = World::with(&[("", "secrets", 2), ("apps", "a", 1)]);
    (world.kind("a").write, world.kind("a").get) = (Some(write), get);
    world
}

/// A namespace that was taken away by force leaves its objects behind: they are listed, and up to 1.31
/// or so nobody can write them. The version that they are under is needed.
#[tokio::test]
async fn what_is_left_of_a_namespace_is_not_gone() {
    let lab = Lab::new(world(404, Told::Here)).await;
    lab.rotate(&["secrets", "*.apps"]).await;
    let world = lab.world.lock();
    let report = world.report();
    assert_eq!((&report["gone"], &report["refused"]), (&json!(0), &json!(1)), "{report}");
    let reason = report["refusals"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("namespace") && reason.contains("Delete it"), "{reason}");
    let found = &world.finished.as_ref().unwrap()["found"]["versions"];
    assert_eq!(found[version(1).to_string()], 1, "{found}");
}

/// Nor does the provider go that it is under.
#[tokio::test]
async fn the_provider_of_what_is_left_of_a_namespace_stays() {
    for (get, stays) in [(Told::Here, true), (Told::Unserved, true), (Told::Gone, false)] {
        let (lab, worker, path) = disable(world(404, get)).await;
        lab.run(&worker).await.unwrap();
        let world = lab.world.lock();
        assert_eq!(has_kms(&path), stays, "{get:?}: {}", world.report());
        assert_eq!(world.is_free(), !stays, "{get:?}: {}", world.report());
    }
}

/// Whether it was deleted before its write, or after somebody else's.
#[tokio::test]
async fn only_what_is_said_to_be_gone_is() {
    for write in [404, 409] {
        for get in [Told::Gone, Told::Another] {
            let lab = Lab::new(world(write, get)).await;
            lab.rotate(&["secrets", "*.apps"]).await;
            let world = lab.world.lock();
            let report = world.report();
            assert_eq!((&report["gone"], &report["refused"]), (&json!(2), &json!(0)), "{report}");
            assert!(world.is_free(), "{report}");
        }
        // A path that nobody serves tells nothing of what lies behind it.
        let lab = Lab::new(world(write, Told::Unserved)).await;
        lab.rotate(&["secrets", "*.apps"]).await;
        {
            let world = lab.world.lock();
            let left = texts(&world.report()["left_out"]).join(" ");
            assert!(left.contains("a.apps cannot be listed (not found)"), "{left}");
            assert!(world.report()["gone"] == 0 && !world.is_free(), "{}", world.report());
        }
        let lab = Lab::new(world(write, Told::Unserved)).await;
        let error = lab.run(&lab.worker(&["secrets", "a.apps"])).await.unwrap_err();
        assert!(matches!(error, RotateError::Unlisted { .. }), "{error}");
        // Nor does one that cannot say.
        let lab = Lab::new(world(write, Told::Failed)).await;
        let error = lab.run(&lab.worker(&["secrets", "*.apps"])).await.unwrap_err();
        assert!(matches!(error, RotateError::Api(ApiError::Failed { .. })), "{error}");
        assert!(lab.world.lock().finished.is_none());
    }
}

/// Who is always too late writes after somebody else, whose write is under the new key id; but only if
/// there was somebody.
#[tokio::test]
async fn a_conflict_with_nobody_is_a_refusal() {
    for (get, refused) in [(Told::Changed, 0), (Told::Here, 1)] {
        let lab = Lab::new(world(409, get)).await;
        lab.rotate(&["secrets", "*.apps"]).await;
        let world = lab.world.lock();
        let report = world.report();
        assert_eq!(report["refused"], refused, "{get:?}: {report}");
        let found = &world.finished.as_ref().unwrap()["found"]["versions"];
        assert_eq!(found[version(1).to_string()].as_u64(), Some(1).filter(|_| refused > 0));
    }
}
