//! An enabling or a disabling that is given up, in each of its phases: what the record says then,
//! that nothing becomes free by it, and that either can be begun and finished afterwards.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lastkey_crypto::{ClusterId, KeyVersionId};
use lastkey_engine::{
    CLUSTER_KIND, Clock as _, ClusterName, Course, Dependant, Engine, Error, Key, Label, Phase,
    Rotation, VersionState, Way, command::*,
};
use serde_json::json;
use support::{START, World, by_id, create_key, root, signing};

const MINUTE: Duration = Duration::from_secs(60);

/// The phases that a worker goes through, after the first.
fn way_through(way: Way) -> &'static [Phase] {
    use Phase::{Converging, Removing, Rewriting, Switching, Verifying};
    match way {
        Way::Enable => &[Switching, Converging, Rewriting, Verifying, Removing],
        Way::Disable => &[Switching, Rewriting, Verifying, Removing],
    }
}

/// A cluster with three objects under the newest version of its key, and two under the one before.
struct Prod {
    world: World,
    engine: Engine,
    cluster: ClusterId,
    key: Arc<Key>,
    old: KeyVersionId,
    new: KeyVersionId,
}

impl Prod {
    async fn new() -> Self {
        let world = World::new();
        let engine = signing(&world).await;
        let key = create_key(&engine).await;
        let old = key.primary.version;
        let version = CreateKeyVersion { key: by_id(&key) };
        let new = engine.execute(&root(&engine), version).await.unwrap().id;
        let name = Some(ClusterName::parse("prod").unwrap());
        let add = AddCluster { name, keys: vec![by_id(&key)], plugin: None };
        let cluster = engine.execute(&root(&engine), add).await.unwrap().cluster.id;
        let dependant = Dependant {
            kind: Label::parse(CLUSTER_KIND).unwrap(),
            id: Label::parse(&cluster.to_string()).unwrap(),
            name: "prod".to_owned(),
            versions: BTreeMap::from([(old, 2), (new, 3)]),
            until: None,
            seen_at: Some(START),
            used: BTreeMap::new(),
        };
        let put = PutDependant { key: by_id(&key), dependant, in_use: None };
        engine.execute(&root(&engine), put).await.unwrap();
        // It is retired as soon as nothing needs it.
        let (version, overriding) = (old, None);
        let retire = RetireKeyVersion {
            key: by_id(&key),
            version,
            window_days: 7,
            when_free: true,
            overriding,
        };
        let waiting = engine.execute(&root(&engine), retire).await.unwrap();
        assert_eq!(waiting.state, VersionState::Scheduled);
        world.clock.advance(MINUTE);
        Self { world, engine, cluster, key, old, new }
    }

    async fn begin(&self, way: Way) -> Result<Rotation, Error> {
        let start = StartRotation {
            cluster: self.cluster,
            key: None,
            keep_version: true,
            namespace: None,
            course: Some(Course { way, goal: json!({ "resources": ["secrets"] }) }),
            retire: false,
            automatic: false,
        };
        Ok(self.engine.execute(&root(&self.engine), start).await?.rotation)
    }

    fn which(&self, of: &Rotation) -> Which {
        Which { cluster: self.cluster, id: of.id.clone() }
    }

    async fn claim(&self, of: &Rotation) -> Result<u64, Error> {
        let claim = ClaimRotation { which: self.which(of), holder: "worker".to_owned() };
        Ok(self.engine.execute(&root(&self.engine), claim).await?.rotation.fence)
    }

    async fn save(&self, of: &Rotation, (fence, phase): (u64, Phase)) -> Result<(), Error> {
        let save = SaveRotation {
            which: self.which(of),
            fence,
            phase,
            state: json!({ "change": { "base": "sha256:00" } }),
            release: false,
            progress: None,
            problem: None,
        };
        self.engine.execute(&root(&self.engine), save).await.map(drop)
    }

    async fn finish(&self, of: &Rotation, fence: u64) -> Result<Rotation, Error> {
        let found = Found {
            began: self.world.clock.now(),
            versions: match of.leaves() {
                true => BTreeMap::new(),
                false => BTreeMap::from([(self.new, 5)]),
            },
        };
        let (which, content) = (self.which(of), json!({ "objects": 5 }));
        let finish = FinishRotation { which, fence, content, found: Some(found) };
        Ok(self.engine.execute(&root(&self.engine), finish).await?.rotation)
    }

    async fn cancel(&self, of: &Rotation) -> Result<Rotation, Error> {
        let cancel = CancelRotation { which: self.which(of) };
        Ok(self.engine.execute(&root(&self.engine), cancel).await?.rotation)
    }

    async fn known(&self) -> Vec<Rotation> {
        let list = ListRotations { cluster: self.cluster };
        self.engine.execute(&root(&self.engine), list).await.unwrap()
    }

    async fn needing(&self) -> Vec<Dependant> {
        let list = ListDependants { key: by_id(&self.key) };
        self.engine.execute(&root(&self.engine), list).await.unwrap()
    }

    async fn state_of_old(&self) -> VersionState {
        let describe = DescribeKeyVersion { key: by_id(&self.key), version: self.old };
        self.engine.execute(&root(&self.engine), describe).await.unwrap().state()
    }

    async fn disable_key(&self) -> Result<(), Error> {
        let disable = DisableKey { key: by_id(&self.key), overriding: None };
        self.engine.execute(&root(&self.engine), disable).await
    }

    /// Neither the key nor its older version is free, whatever is tried and however long one waits.
    async fn assert_nothing_free(&self) {
        self.world.clock.advance(MINUTE);
        self.engine.run_due_work().await.unwrap();
        assert_eq!(self.state_of_old().await, VersionState::Scheduled);
        let refused = self.disable_key().await;
        assert!(matches!(refused, Err(Error::Depended(_))), "{refused:?}");
        let schedule =
            ScheduleKeyDeletion { key: by_id(&self.key), window_days: 7, overriding: None };
        let refused = self.engine.execute(&root(&self.engine), schedule).await;
        assert!(matches!(refused, Err(Error::Depended(_))), "{refused:?}");
    }

    /// The record says that it was given up, and nobody goes on with it.
    async fn assert_given_up(&self, before: &Rotation, fence: u64) {
        let known = self.known().await;
        let over = known.iter().find(|one| one.id == before.id).unwrap();
        assert_eq!((over.phase, &over.lease, &over.report), (Phase::Cancelled, &None, &None));
        assert_eq!((&over.course, &over.state), (&before.course, &before.state), "it is kept");
        let conflict = || Error::StateConflict { state: "cancelled" };
        assert_eq!(self.claim(over).await.err(), Some(conflict()));
        for phase in way_through(Way::Enable) {
            assert_eq!(self.save(over, (fence, *phase)).await, Err(conflict()));
        }
        assert_eq!(self.finish(over, fence).await.err(), Some(conflict()));
        assert_eq!(self.cancel(over).await.err(), Some(conflict()));
        let pause = PauseRotation { which: self.which(over), paused: true };
        let refused = self.engine.execute(&root(&self.engine), pause).await.err();
        assert_eq!(refused, Some(conflict()));
    }

    /// From its beginning to its end.
    async fn whole(&self, way: Way) {
        let begun = self.begin(way).await.unwrap();
        assert_eq!((begun.phase, &begun.state, begun.fence), (Phase::Preparing, &json!(null), 0));
        let fence = self.claim(&begun).await.unwrap();
        for phase in way_through(way) {
            self.save(&begun, (fence, *phase)).await.unwrap();
        }
        self.world.clock.advance(MINUTE);
        let over = self.finish(&begun, fence).await.unwrap();
        assert!(over.phase == Phase::Finished && over.report.is_some());
        self.world.clock.advance(MINUTE);
        self.engine.run_due_work().await.unwrap();
        assert_eq!(self.state_of_old().await, VersionState::Retired, "free at last");
        match way {
            Way::Disable => self.disable_key().await.unwrap(),
            Way::Enable => {
                let refused = self.disable_key().await;
                assert!(matches!(refused, Err(Error::Depended(_))), "{refused:?}");
            }
        }
    }

    /// The same after a restart.
    async fn restarted(self) -> Self {
        self.engine.shutdown().await;
        let engine = signing(&self.world).await;
        Self { engine, ..self }
    }
}

/// Given up after so many steps; with none, before anybody has claimed it.
async fn given_up(way: Way, again: Way, steps: usize) {
    let prod = Prod::new().await;
    let begun = prod.begin(way).await.unwrap();
    let mut fence = 0;
    if steps > 0 {
        fence = prod.claim(&begun).await.unwrap();
        for phase in [Phase::Preparing].iter().chain(way_through(way)).take(steps) {
            prod.save(&begun, (fence, *phase)).await.unwrap();
        }
    }
    let before = prod.known().await.pop().unwrap();
    let needing = prod.needing().await;
    prod.assert_nothing_free().await;
    let over = prod.cancel(&begun).await.unwrap();
    assert_eq!(over.phase, Phase::Cancelled);
    assert_eq!(prod.needing().await, needing, "in {:?}", before.phase);
    prod.assert_given_up(&before, fence).await;
    prod.assert_nothing_free().await;
    let prod = prod.restarted().await;
    prod.assert_given_up(&before, fence).await;
    assert_eq!(prod.needing().await, needing, "in {:?}", before.phase);
    prod.whole(again).await;
    // What was given up stays so.
    prod.assert_given_up(&before, fence).await;
}

#[tokio::test]
async fn in_each_phase_and_begun_again_either_way() {
    for way in [Way::Enable, Way::Disable] {
        for steps in 0..=way_through(way).len() + 1 {
            for again in [Way::Enable, Way::Disable] {
                given_up(way, again, steps).await;
            }
        }
    }
}

/// What is finished cannot be given up any more.
#[tokio::test]
async fn not_once_it_is_finished() {
    let prod = Prod::new().await;
    prod.whole(Way::Disable).await;
    let over = prod.known().await.pop().unwrap();
    let refused = prod.cancel(&over).await.err();
    assert_eq!(refused, Some(Error::StateConflict { state: "finished" }));
    assert_eq!(prod.known().await, [over]);
}
