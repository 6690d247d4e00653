//! Who gets a plugin's identity by a kubelet's certificate, who loses it, and what the log says.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::time::Duration;

use lastkey_crypto::ClusterId;
use lastkey_engine::{
    Approval, Caller, Clock as _, Cluster, ClusterName, Engine, Error, Fingerprint, Key, NODE_LIFE,
    NodeName, NodeRoot, NodeState, PLUGIN_LIFE, Principal, Source, audit::Query, command::*,
};
use support::{World, by_id, create_key, root, secret};

const DAY: Duration = Duration::from_secs(86_400);

fn print(of: &str) -> Fingerprint {
    Fingerprint::of(of.as_bytes())
}

fn ca(of: &str) -> NodeRoot {
    NodeRoot { certificate: "AA==".to_owned(), fingerprint: print(of), key: print(of) }
}

fn node(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

/// A kubelet of that name, with this key.
fn kubelet(engine: &Engine, cluster: ClusterId, (name, key): (&str, &str)) -> Caller {
    let principal = Principal::Kubelet {
        cluster,
        node: node(name),
        certificate: print(&format!("certificate of {key}")),
        key: print(key),
    };
    Caller::new(principal, Source::Internal, engine.new_request_id())
}

/// The plugin of that node, by an identity with this fingerprint.
fn plugin(engine: &Engine, cluster: ClusterId, (name, fingerprint): (&str, &str)) -> Caller {
    let name = node(name).plugin().as_str().into();
    let principal = Principal::Plugin { cluster, name, fingerprint: fingerprint.into() };
    Caller::new(principal, Source::Internal, engine.new_request_id())
}

async fn add_cluster(engine: &Engine, name: &str, key: &Key, root_of: &str) -> ClusterId {
    let name = Some(ClusterName::parse(name).unwrap());
    let add = AddCluster { name, keys: vec![by_id(key)], plugin: None };
    let cluster = engine.execute(&root(engine), add).await.unwrap().cluster.id;
    let roots = Some(vec![ca(root_of)]);
    engine
        .execute(&root(engine), TrustNodes { cluster, terms: NodeTerms { roots, life: None } })
        .await
        .unwrap();
    cluster
}

async fn approve(
    engine: &Engine,
    cluster: ClusterId,
    (name, fingerprint): (Option<&str>, Option<&str>),
) -> Result<Approved, Error> {
    let (node, fingerprint) = (name.map(node), fingerprint.map(print));
    let approve = ApproveNode { cluster, node, fingerprint, within: DAY };
    engine.execute(&root(engine), approve).await
}

async fn enrol(
    engine: &Engine,
    cluster: ClusterId,
    who: (&str, &str),
    plugin: &str,
) -> Result<Enrolment, Error> {
    let ask = EnrolNode { cluster, plugin: plugin.to_owned() };
    engine.execute(&kubelet(engine, cluster, who), ask).await
}

async fn encrypts(engine: &Engine, caller: &Caller, cluster: ClusterId, key: &Key) -> bool {
    let plaintext = secret("seed");
    let encrypt = PluginEncrypt { cluster, key: by_id(key), pin: None, plaintext };
    match engine.execute(caller, encrypt).await {
        Ok(_) => true,
        Err(Error::Denied) => false,
        Err(other) => panic!("{other}"),
    }
}

async fn cluster_of(engine: &Engine, cluster: ClusterId) -> Cluster {
    let list = ListNodes { cluster: Some(cluster) };
    engine.execute(&root(engine), list).await.unwrap().remove(0)
}

fn is_waiting(answer: &Enrolment) -> bool {
    matches!(answer, Enrolment::Waiting { .. })
}

#[tokio::test]
async fn a_node_waits_is_approved_works_and_is_turned_out() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key, "ca").await;
    let who = ("cp-1", "kubelet key");

    // 1. It waits; asking again changes nothing.
    assert!(is_waiting(&enrol(&engine, cluster, who, "p1").await.unwrap()));
    let before = cluster_of(&engine, cluster).await;
    assert!(is_waiting(&enrol(&engine, cluster, who, "p1").await.unwrap()));
    assert_eq!(cluster_of(&engine, cluster).await, before);
    assert_eq!(before.nodes[0].state, NodeState::Waiting);
    assert!(!encrypts(&engine, &plugin(&engine, cluster, ("cp-1", "p1")), cluster, &key).await);

    // 2. Approved by its name, it is the key that waits which is approved, and no other.
    let approved = approve(&engine, cluster, (Some("cp-1"), None)).await.unwrap();
    assert!(approved.waits);
    assert_eq!(approved.approval.fingerprint, Some(print("kubelet key")));
    assert!(is_waiting(&enrol(&engine, cluster, ("cp-1", "another"), "x").await.unwrap()));

    // 3. It is let in, and works by that identity alone.
    let let_in = enrol(&engine, cluster, who, "p1").await.unwrap();
    let Enrolment::LetIn { name, not_after } = let_in else { panic!("{let_in:?}") };
    assert_eq!(name, "node/cp-1");
    assert_eq!(not_after, world.clock.now().after(NODE_LIFE));
    assert!(encrypts(&engine, &plugin(&engine, cluster, ("cp-1", "p1")), cluster, &key).await);
    assert!(!encrypts(&engine, &plugin(&engine, cluster, ("cp-1", "p2")), cluster, &key).await);
    assert!(!encrypts(&engine, &kubelet(&engine, cluster, who), cluster, &key).await);
    assert!(cluster_of(&engine, cluster).await.approvals.is_empty(), "good for one time");

    // 4. With the same key it may come again; the identity before it ends.
    enrol(&engine, cluster, who, "p2").await.unwrap();
    assert!(!encrypts(&engine, &plugin(&engine, cluster, ("cp-1", "p1")), cluster, &key).await);
    assert!(encrypts(&engine, &plugin(&engine, cluster, ("cp-1", "p2")), cluster, &key).await);
    // With another one it waits, and what it has goes on.
    assert!(is_waiting(&enrol(&engine, cluster, ("cp-1", "rotated"), "p3").await.unwrap()));
    assert!(encrypts(&engine, &plugin(&engine, cluster, ("cp-1", "p2")), cluster, &key).await);

    // 5. Turned out: at once, for good, and after a restart too.
    let which = Revocation::Node(node("cp-1"));
    let revoke = RevokeNode { cluster, which: which.clone() };
    engine.execute(&root(&engine), revoke.clone()).await.unwrap();
    assert!(!encrypts(&engine, &plugin(&engine, cluster, ("cp-1", "p2")), cluster, &key).await);
    assert_eq!(enrol(&engine, cluster, who, "p4").await, Err(Error::NodeRevoked));
    engine.shutdown().await;
    let engine = world.start().await;
    assert_eq!(enrol(&engine, cluster, who, "p4").await, Err(Error::NodeRevoked));
    approve(&engine, cluster, (None, Some("kubelet key"))).await.unwrap();
    assert_eq!(enrol(&engine, cluster, who, "p4").await, Err(Error::NodeRevoked));
    approve(&engine, cluster, (Some("cp-1"), None)).await.unwrap();
    enrol(&engine, cluster, who, "p4").await.unwrap();
    assert!(encrypts(&engine, &plugin(&engine, cluster, ("cp-1", "p4")), cluster, &key).await);
    let stranger = RevokeNode { cluster, which: Revocation::Node(node("nobody")) };
    assert_eq!(engine.execute(&root(&engine), stranger).await, Err(Error::NotFound("node")));
}

#[tokio::test]
async fn approvals_by_name_end() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key, "ca").await;
    approve(&engine, cluster, (Some("by-name"), None)).await.unwrap();
    approve(&engine, cluster, (None, Some("by-key"))).await.unwrap();
    world.clock.advance(2 * DAY);
    assert!(is_waiting(&enrol(&engine, cluster, ("by-name", "a"), "a").await.unwrap()));
    let came = enrol(&engine, cluster, ("whoever", "by-key"), "b").await.unwrap();
    assert!(!is_waiting(&came), "one that names a key does not end");
    assert!(is_waiting(&enrol(&engine, cluster, ("another", "by-key"), "c").await.unwrap()));
    assert_eq!(approve(&engine, cluster, (None, None)).await, Err(Error::MissingParameter("Node")));
}

/// Two clusters whose nodes one CA vouches for: it cannot tell them apart, so a name is not enough.
#[tokio::test]
async fn where_two_clusters_trust_one_ca_a_name_alone_lets_nobody_in() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let one = add_cluster(&engine, "one", &key, "ca").await;
    approve(&engine, one, (Some("cp-1"), None)).await.unwrap();
    let two = add_cluster(&engine, "two", &key, "ca").await;
    for cluster in [one, two] {
        let answer = enrol(&engine, cluster, ("cp-1", "key"), "p").await.unwrap();
        assert!(is_waiting(&answer), "{answer:?}");
    }
    approve(&engine, two, (Some("cp-1"), Some("key"))).await.unwrap();
    assert!(!is_waiting(&enrol(&engine, two, ("cp-1", "key"), "p").await.unwrap()));
    assert!(is_waiting(&enrol(&engine, one, ("cp-1", "key"), "p").await.unwrap()));
}

/// A kubelet is a kubelet: of its cluster, for one command.
#[tokio::test]
async fn a_kubelet_may_ask_and_nothing_else() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let (one, two) = (
        add_cluster(&engine, "one", &key, "ca one").await,
        add_cluster(&engine, "two", &key, "ca two").await,
    );
    let caller = kubelet(&engine, one, ("cp-1", "key"));
    let denied = |error: Error| assert_eq!(error, Error::Denied);
    let elsewhere = EnrolNode { cluster: two, plugin: "p".to_owned() };
    denied(engine.execute(&caller, elsewhere.clone()).await.unwrap_err());
    denied(engine.execute(&caller, ListClusters).await.unwrap_err());
    denied(engine.execute(&caller, ListNodes { cluster: Some(one) }).await.unwrap_err());
    let itself =
        ApproveNode { cluster: one, node: Some(node("cp-1")), fingerprint: None, within: DAY };
    denied(engine.execute(&caller, itself).await.unwrap_err());
    let trust = TrustNodes { cluster: one, terms: NodeTerms { roots: Some(vec![]), life: None } };
    denied(engine.execute(&caller, trust.clone()).await.unwrap_err());
    denied(engine.execute(&caller, DescribeKey { key: by_id(&key) }).await.unwrap_err());
    let renew = RenewPlugin { caller: caller.principal.clone(), fingerprint: "x".to_owned() };
    denied(engine.execute(&caller, renew).await.unwrap_err());
    // Nor is anybody else a kubelet, whatever they may otherwise do.
    denied(engine.execute(&root(&engine), elsewhere).await.unwrap_err());
    // Without a CA nobody is.
    engine.execute(&root(&engine), trust).await.unwrap();
    assert!(engine.node_roots(Some(one)).is_empty() && !engine.node_roots(None).is_empty());
}

/// Both identities are good until the plugin says which one it goes by.
#[tokio::test]
async fn an_identity_is_renewed_in_two_steps() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key, "ca").await;
    approve(&engine, cluster, (Some("cp-1"), None)).await.unwrap();
    enrol(&engine, cluster, ("cp-1", "key"), "first").await.unwrap();
    let by = |print| plugin(&engine, cluster, ("cp-1", print));
    let works = async |print| encrypts(&engine, &by(print), cluster, &key).await;
    let renew = async |print, next: &str| {
        let (caller, fingerprint) = (by(print).principal, next.to_owned());
        engine.execute(&by(print), RenewPlugin { caller, fingerprint }).await
    };
    let confirm = async |print| {
        engine.execute(&by(print), ConfirmPlugin { caller: by(print).principal }).await
    };
    world.clock.advance(20 * DAY);
    assert_eq!(renew("first", "second").await, Ok(world.clock.now().after(NODE_LIFE)));
    assert!(works("first").await && works("second").await);
    // A plugin that crashed and has kept the first renews again.
    renew("first", "third").await.unwrap();
    assert!(works("first").await && works("second").await && works("third").await);
    // By the first there is nothing to confirm.
    assert_eq!(confirm("first").await, Ok(false));
    assert_eq!(confirm("third").await, Ok(true));
    assert!(!works("first").await && !works("second").await && works("third").await);
    assert_eq!(confirm("first").await, Err(Error::Denied));
    assert_eq!(renew("first", "x").await, Err(Error::Denied));
    assert_eq!(confirm("third").await, Ok(false), "once is enough");
    // One that never confirmed, and renews by the new one, has confirmed by that.
    renew("third", "fourth").await.unwrap();
    renew("fourth", "fifth").await.unwrap();
    assert!(!works("third").await && works("fourth").await && works("fifth").await);
    // Turned out, all of them end.
    let which = Revocation::Node(node("cp-1"));
    engine.execute(&root(&engine), RevokeNode { cluster, which }).await.unwrap();
    assert!(!works("fourth").await && !works("fifth").await);
    assert_eq!(renew("fifth", "x").await, Err(Error::Denied));
}

/// A plugin's files that were copied to other nodes, of which each renews what it has.
struct Copies {
    world: World,
    engine: Engine,
    key: std::sync::Arc<Key>,
    cluster: ClusterId,
}

impl Copies {
    async fn start() -> Self {
        let world = World::new();
        let engine = world.start().await;
        let key = create_key(&engine).await;
        let cluster = add_cluster(&engine, "prod", &key, "ca").await;
        approve(&engine, cluster, (Some("cp-1"), None)).await.unwrap();
        enrol(&engine, cluster, ("cp-1", "key"), "first").await.unwrap();
        world.clock.advance(20 * DAY);
        Self { world, engine, key, cluster }
    }

    fn by(&self, print: &str) -> Caller {
        plugin(&self.engine, self.cluster, ("cp-1", print))
    }

    /// The copy of that number asks for its key's state, over this identity.
    async fn ask(&self, copy: u8, print: &str) {
        let (key, cluster) = (by_id(&self.key), self.cluster);
        let instance = Some(lastkey_crypto::SpoolId::from_bytes([copy; 16]));
        let wait = Duration::ZERO;
        let ask = PluginStatus { cluster, key, known: String::new(), wait, instance };
        let caller = self.by(print);
        self.engine.heard_from(&caller, &ask);
        self.engine.execute(&caller, ask).await.unwrap();
    }

    async fn renew(&self, print: &str, next: &str) -> Result<(), Error> {
        let (caller, fingerprint) = (self.by(print).principal, next.to_owned());
        self.engine.execute(&self.by(print), RenewPlugin { caller, fingerprint }).await.map(drop)
    }

    async fn confirm(&self, print: &str) -> bool {
        let caller = self.by(print).principal;
        self.engine.execute(&self.by(print), ConfirmPlugin { caller }).await.unwrap()
    }

    async fn works(&self, print: &str) -> bool {
        encrypts(&self.engine, &self.by(print), self.cluster, &self.key).await
    }
}

/// Whoever renews first or last, and says so or not: no copy is cut off.
#[tokio::test]
async fn copies_of_one_identity_renew_side_by_side() {
    let copies = Copies::start().await;
    for copy in 1..=3 {
        copies.ask(copy, "first").await;
    }
    copies.renew("first", "b").await.unwrap();
    copies.renew("first", "c").await.unwrap();
    copies.ask(2, "b").await;
    assert!(!copies.confirm("b").await, "others go by the first one still");
    copies.ask(3, "c").await;
    assert!(!copies.confirm("c").await);
    for print in ["first", "b", "c"] {
        assert!(copies.works(print).await, "{print}");
    }
    // The last one renews over what it has had all the while.
    copies.renew("first", "a").await.unwrap();
    copies.ask(1, "a").await;
    assert!(!copies.confirm("a").await);
    // Each goes on from its own.
    copies.renew("c", "d").await.unwrap();
    copies.ask(3, "d").await;
    copies.confirm("d").await;
    for print in ["a", "b", "d"] {
        assert!(copies.works(print).await, "{print}");
    }
    // Turned out, all of them end.
    let (cluster, which) = (copies.cluster, Revocation::Node(node("cp-1")));
    copies.engine.execute(&root(&copies.engine), RevokeNode { cluster, which }).await.unwrap();
    for print in ["first", "a", "b", "c", "d"] {
        assert!(!copies.works(print).await, "{print}");
    }
}

/// One that was seen beside another is not forgotten while it is off, nor by a restart of the server.
#[tokio::test]
async fn a_copy_that_is_off_while_another_renews_is_not_cut_off() {
    let mut copies = Copies::start().await;
    for _ in 0..5 {
        copies.ask(1, "first").await;
        copies.ask(2, "first").await;
        copies.world.clock.advance(Duration::from_secs(40));
    }
    copies.confirm("first").await;
    copies.engine.shutdown().await;
    copies.engine = copies.world.start().await;
    copies.world.clock.advance(DAY);
    copies.ask(2, "first").await;
    copies.renew("first", "second").await.unwrap();
    copies.ask(2, "second").await;
    assert!(!copies.confirm("second").await);
    assert!(copies.works("first").await && copies.works("second").await);
    // It comes back within its certificate's life, and renews its own.
    copies.renew("first", "third").await.unwrap();
    assert!(copies.works("second").await && copies.works("third").await);
}

/// One plugin that was restarted is no copy: what it had before ends once it is known to be alone.
#[tokio::test]
async fn what_a_plugin_had_before_ends_once_nobody_goes_by_it() {
    let copies = Copies::start().await;
    copies.ask(1, "first").await;
    copies.ask(2, "first").await;
    copies.renew("first", "second").await.unwrap();
    copies.ask(2, "second").await;
    assert!(!copies.confirm("second").await, "the process before was there a moment ago");
    copies.world.clock.advance(Duration::from_secs(50));
    copies.ask(2, "second").await;
    assert!(copies.confirm("second").await);
    assert!(!copies.works("first").await && copies.works("second").await);
    assert!(!copies.confirm("second").await, "once is enough");
}

/// The first identity is of a clock that was ahead: what was asked for since is newer all the same.
#[tokio::test]
async fn a_clock_that_was_set_back_cuts_no_copy_off() {
    let copies = Copies::start().await;
    copies.world.clock.jump_to(support::START);
    copies.ask(1, "first").await;
    copies.ask(2, "first").await;
    copies.renew("first", "a").await.unwrap();
    copies.renew("first", "b").await.unwrap();
    // Nobody has taken up what it got, and another process begins.
    copies.confirm("first").await;
    assert!(copies.works("a").await && copies.works("b").await);
}

/// What was kept good for a copy goes with its certificate, and with the last call that came by it.
#[tokio::test]
async fn an_identity_beside_ends_with_its_certificate() {
    let copies = Copies::start().await;
    copies.ask(1, "first").await;
    copies.ask(2, "first").await;
    copies.renew("first", "second").await.unwrap();
    copies.ask(2, "second").await;
    copies.confirm("second").await;
    let count = async || {
        copies.ask(1, "second").await;
        copies.ask(3, "elsewhere").await;
        copies.confirm("second").await;
        let cluster = cluster_of(&copies.engine, copies.cluster).await;
        cluster.plugin("node/cp-1").unwrap().fingerprints().count()
    };
    copies.renew("second", "elsewhere").await.unwrap();
    assert_eq!(count().await, 3);
    copies.world.clock.advance(10 * DAY + Duration::from_secs(1));
    assert_eq!(count().await, 3, "a call that waits is answered");
    copies.world.clock.advance(Duration::from_secs(601));
    assert_eq!(count().await, 2);
}

/// Renewals that got lost on their way do not pile up, and none that is in use gives way to them.
#[tokio::test]
async fn lost_renewals_do_not_pile_up() {
    let copies = Copies::start().await;
    copies.ask(1, "first").await;
    copies.renew("first", "kept").await.unwrap();
    copies.ask(2, "kept").await;
    for number in 0..200 {
        copies.world.clock.advance(Duration::from_secs(30));
        copies.ask(1, "first").await;
        copies.ask(2, "kept").await;
        copies.renew("first", &format!("lost {number}")).await.unwrap();
    }
    assert!(copies.works("first").await && copies.works("kept").await);
    assert!(!copies.works("lost 0").await && copies.works("lost 199").await);
    let plugin = cluster_of(&copies.engine, copies.cluster).await.plugins.remove(0);
    assert_eq!(plugin.fingerprints().count(), 128);
}

/// What `cluster add` made is renewed and turned out as well; and what runs out is said.
#[tokio::test]
async fn what_runs_out_is_said_long_before() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let request =
        PluginRequest { name: ClusterName::parse("plugin").unwrap(), fingerprint: "p".to_owned() };
    let name = Some(ClusterName::parse("prod").unwrap());
    let add = AddCluster { name, keys: vec![by_id(&key)], plugin: Some(request) };
    let cluster = engine.execute(&root(&engine), add).await.unwrap().cluster;
    assert_eq!(cluster.plugins[0].ends(), Some(world.clock.now().after(PLUGIN_LIFE)));
    let warned = async || {
        let status = engine.execute(&root(&engine), DescribeService).await.unwrap();
        status.warnings.iter().any(|warning| warning.contains("the plugin plugin"))
    };
    assert!(!warned().await);
    world.clock.advance(270 * DAY);
    assert!(!warned().await, "a quarter of a year and more is left");
    world.clock.advance(10 * DAY);
    assert!(warned().await && engine.identities().late.len() == 1);
    let which = Revocation::Plugin(ClusterName::parse("plugin").unwrap());
    engine.execute(&root(&engine), RevokeNode { cluster: cluster.id, which }).await.unwrap();
    assert!(!warned().await);

    // The life of what is issued later is the cluster's.
    let life = Some(DAY);
    let trust = TrustNodes { cluster: cluster.id, terms: NodeTerms { roots: None, life } };
    let short = engine.execute(&root(&engine), trust).await.unwrap();
    assert_eq!(short.life_for("node/cp-1"), DAY);
    // Also for a plugin that comes with its cluster.
    let name = Some(ClusterName::parse("short").unwrap());
    let name_of_plugin = ClusterName::parse("plugin").unwrap();
    let plugin = Some(PluginRequest { name: name_of_plugin, fingerprint: "q".to_owned() });
    let add = AddCluster { name, keys: vec![by_id(&key)], plugin };
    let terms = NodeTerms { roots: Some(vec![ca("x")]), life: Some(DAY) };
    let added = engine.execute(&root(&engine), AddClusterOnTerms { add, terms }).await.unwrap();
    assert_eq!(added.cluster.plugins[0].ends(), Some(world.clock.now().after(DAY)));
    assert_eq!(engine.node_roots(Some(added.cluster.id)), [ca("x")]);
    let too_short = Some(Duration::from_secs(59));
    let terms = NodeTerms { roots: None, life: too_short };
    let trust = TrustNodes { cluster: cluster.id, terms };
    assert!(matches!(
        engine.execute(&root(&engine), trust).await,
        Err(Error::InvalidParameter { .. })
    ));
}

/// Every record of a request to enrol, after the engine was stopped and started: what it came from, its
/// outcome, and how many it stands for.
async fn asked(engine: &Engine) -> Vec<(String, String, u64)> {
    let query = Query { action: Some("EnrolNode".to_owned()), limit: 1000, ..Query::default() };
    let page = engine.execute(&root(engine), QueryAudit { query }).await.unwrap();
    let text = |record: &serde_json::Value, name: &str| record[name].as_str().unwrap().to_owned();
    let found = page.records.iter().map(|record| {
        let count = record["count"].as_u64().unwrap_or(1);
        (text(record, "principal"), text(record, "outcome"), count)
    });
    found.collect()
}

/// A kubelet is heard before anybody has let it in: what it asks in vain is summed up, and what it
/// changes is not.
#[tokio::test]
async fn who_was_not_let_in_fills_no_disk() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key, "ca").await;
    let who = ("cp-1", "key");
    let junk = async |engine: &Engine| {
        for _ in 0..1000 {
            let caller = kubelet(engine, cluster, who);
            engine.record_refusal(&caller, "EnrolNode", "InvalidParameter").await.unwrap();
        }
    };
    for _ in 0..1000 {
        assert!(is_waiting(&enrol(&engine, cluster, who, "p").await.unwrap()));
    }
    junk(&engine).await;
    approve(&engine, cluster, (Some("cp-1"), None)).await.unwrap();
    assert!(!is_waiting(&enrol(&engine, cluster, who, "p").await.unwrap()));
    let revoke = RevokeNode { cluster, which: Revocation::Node(node("cp-1")) };
    engine.execute(&root(&engine), revoke).await.unwrap();
    for _ in 0..1000 {
        assert_eq!(enrol(&engine, cluster, who, "p").await, Err(Error::NodeRevoked));
    }
    // Another node has its own first record.
    for _ in 0..2 {
        enrol(&engine, cluster, ("cp-2", "other"), "p").await.unwrap();
    }
    engine.shutdown().await;

    let engine = world.start().await;
    let all = asked(&engine).await;
    let of = |principal: &str, outcome: &str| -> Vec<u64> {
        let is_it = |one: &&(String, String, u64)| one.0 == principal && one.1 == outcome;
        all.iter().filter(is_it).map(|one| one.2).collect()
    };
    let (first, second) = (format!("kubelet/{cluster}/cp-1"), format!("kubelet/{cluster}/cp-2"));
    assert_eq!(of(&first, "ok"), [1, 1, 1], "it came, was told to wait once more, was let in");
    assert_eq!(of(&first, "InvalidParameter"), [1]);
    assert_eq!(of(&first, "Forbidden.NodeRevoked"), [1]);
    assert_eq!(of(&second, "ok"), [1, 1]);
    assert_eq!(of("system", "ok"), [998]);
    assert_eq!(of("system", "InvalidParameter"), [999]);
    assert_eq!(of("system", "Forbidden.NodeRevoked"), [999]);
    assert_eq!(all.len(), 10);
    for action in ["ApproveNode", "RevokeNode"] {
        let query = Query { action: Some(action.to_owned()), limit: 10, ..Query::default() };
        let page = engine.execute(&root(&engine), QueryAudit { query }).await.unwrap();
        assert_eq!(page.records.len(), 1, "{action}");
    }
    // After a summary each node's first has a record again.
    junk(&engine).await;
    engine.shutdown().await;
    let engine = world.start().await;
    let all = asked(&engine).await;
    assert_eq!(all.iter().filter(|one| one.0 == first && one.1 == "InvalidParameter").count(), 2);
    assert_eq!(all.len(), 12);
}

/// A node has as many keys as it likes, and a CA as many nodes.
#[tokio::test]
async fn other_keys_and_other_names_fill_no_disk_either() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key, "ca").await;
    let waiting = async |name: &str| {
        let cluster = cluster_of(&engine, cluster).await;
        cluster.node(&node(name)).and_then(|node| node.request.as_ref().map(|one| one.key.clone()))
    };
    let ask = async |name: &str, key: &str| {
        assert!(is_waiting(&enrol(&engine, cluster, (name, key), "p").await.unwrap()));
    };
    for number in 0..100 {
        ask("cp-1", &format!("key {number}")).await;
    }
    assert_eq!(waiting("cp-1").await, Some(print("key 0")));
    world.clock.advance(Duration::from_secs(15));
    ask("cp-1", "renewed").await;
    assert_eq!(waiting("cp-1").await, Some(print("renewed")), "asks again, and is noted");
    // One that was noted while the clock was ahead is in nobody's way.
    world.clock.jump_to(support::START);
    ask("cp-1", "after the clock").await;
    assert_eq!(waiting("cp-1").await, Some(print("after the clock")));

    for number in 0..1000 {
        ask(&format!("n-{number}"), "key").await;
    }
    assert_eq!(cluster_of(&engine, cluster).await.nodes.len(), 64);
    world.clock.advance(Duration::from_secs(60));
    ask("n-999", "key").await;
    assert_eq!(waiting("n-999").await, Some(print("key")), "waits a little longer, and is noted");
    engine.shutdown().await;
    let engine = world.start().await;
    let all = asked(&engine).await;
    let counted: u64 = all.iter().map(|one| one.2).sum();
    assert_eq!(counted, 1103, "each is counted");
    // So many changes, so many first ones that were none, and their summary.
    assert_eq!(all.len(), 67 + 64 + 1);
}

/// However many ask, the record stays bounded, and the log says who did what.
#[tokio::test]
async fn a_crowd_of_nodes_stays_within_bounds() {
    let world = World::new();
    let engine = world.start().await;
    let key = create_key(&engine).await;
    let cluster = add_cluster(&engine, "prod", &key, "ca").await;
    for number in 0..260 {
        world.clock.advance(Duration::from_secs(1));
        let name = format!("n-{number}");
        assert!(is_waiting(&enrol(&engine, cluster, (&name, &name), "p").await.unwrap()));
    }
    let known = cluster_of(&engine, cluster).await;
    assert_eq!(known.nodes.len(), 256);
    assert!(known.node(&node("n-0")).is_none() && known.node(&node("n-259")).is_some());
    let approval = |approval: &Approval| approval.node == Some(node("n-259"));
    approve(&engine, cluster, (Some("n-259"), None)).await.unwrap();
    assert!(cluster_of(&engine, cluster).await.approvals.iter().any(approval));
}
