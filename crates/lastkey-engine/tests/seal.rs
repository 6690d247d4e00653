//! The life of an installation: sealed and unsealed, its shares made anew, its seal changed, and
//! stopped at every point of that.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "seal/doubt.rs"]
mod doubt;
mod support;
#[path = "seal/token.rs"]
mod token;

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use lastkey_crypto::{EncryptionContext, Entropy, KeyMaterial, SecretBytes, share::Share};
use lastkey_engine::{
    Attendant, Caller, Engine, Error, FileSeal, GIVEN_UP, Instance, KeyRef, Life, NewShares,
    NoAnchor, OperatorError, Order, Outcome, Parts, RootPrint, Seal, SealEntry, SealError,
    SealKind, SealRecord, Seals, ShareRefused, With,
    audit::Query,
    command::{CreateKey, Decrypt, Encrypt, QueryAudit},
};
use lastkey_store::Store;
use support::{World, root};

const PLAIN: &[u8] = b"what has to be readable afterwards";
const TO_SHARES: Order = Order::Migrate { to: SealKind::Shamir, splitting: Some((2, 2)) };
const REKEY: Order = Order::Rekey { splitting: Some((2, 2)) };

fn parts(world: &World, seal: Arc<dyn Seal>) -> Parts {
    let store: Arc<dyn Store> = world.store.clone();
    let anchor = Arc::new(NoAnchor);
    let parts = support::parts(store, world.clock.clone(), world.directory.path(), "here", anchor);
    Parts { seal, ..parts }
}

fn seals(world: &World, first: SealKind) -> Seals {
    Seals::new(FileSeal::new(world.directory.path().join("root.key")), None, first)
}

async fn started(world: &World, first: SealKind) -> Instance {
    let instance = Instance::new(parts(world, Arc::new(seals(world, first))));
    instance.start().await.unwrap();
    instance
}

fn texts(new: &NewShares) -> Vec<String> {
    new.shares.iter().map(|share| share.to_text().to_string()).collect()
}

fn parse(text: &str) -> Option<Share> {
    Some(Share::parse(text).unwrap())
}

async fn unseal(instance: &Instance, shares: &[String]) {
    for share in shares {
        instance.unseal(parse(share)).await.unwrap();
    }
    assert_eq!(instance.life(), Life::Unsealed);
}

fn caller(instance: &Instance) -> Caller {
    root(&instance.engine().unwrap())
}

async fn order(
    instance: &Instance,
    order: Order,
    share: Option<&str>,
) -> Result<Outcome, OperatorError> {
    let share = share.map(|text| Share::parse(text).unwrap());
    instance.order(&caller(instance), order, With { share, token: None }).await
}

/// Gives shares for an order until it is done.
async fn ordered(instance: &Instance, what: Order, shares: &[String]) -> Option<NewShares> {
    let mut last = None;
    for share in shares {
        last = Some(order(instance, what, Some(share)).await.unwrap());
    }
    match last {
        Some(Outcome::Shares(new)) => Some(new),
        _ => None,
    }
}

/// A ciphertext of a new key.
async fn encrypted(engine: &Engine) -> Vec<u8> {
    let caller = root(engine);
    let key = engine.execute(&caller, CreateKey::default()).await.unwrap();
    let encrypt = Encrypt {
        key: KeyRef::Id(key.id),
        plaintext: SecretBytes::new(PLAIN.to_vec()),
        context: EncryptionContext::empty(),
    };
    engine.execute(&caller, encrypt).await.unwrap().blob
}

async fn assert_readable(instance: &Instance, blob: &[u8]) {
    let engine = instance.engine().unwrap();
    let decrypt = Decrypt { blob: blob.to_vec(), context: EncryptionContext::empty() };
    let plain = engine.execute(&root(&engine), decrypt).await.unwrap();
    assert_eq!(plain.plaintext.expose(), PLAIN);
}

#[tokio::test]
async fn from_no_root_key_to_unsealed_and_back() {
    let world = World::new();
    let instance = started(&world, SealKind::Shamir).await;
    assert_eq!(instance.life(), Life::Uninitialised);
    assert_eq!(instance.engine().err(), Some(Error::Sealed(Life::Uninitialised)));
    assert!(matches!(instance.unseal(None).await, Err(OperatorError::Uninitialised)));
    for (shares, threshold) in [(1, 1), (3, 4), (3, 1), (0, 0)] {
        let refused = instance.init(shares, threshold).await;
        assert!(matches!(refused, Err(OperatorError::Splitting)));
        assert_eq!(instance.life(), Life::Uninitialised);
    }
    let shares = texts(&instance.init(5, 3).await.unwrap());
    assert_eq!(instance.life(), Life::Sealed);
    // Where nobody has got these, nothing is lost with them yet.
    let again = instance.init(5, 3).await.unwrap_err();
    assert!(matches!(again, OperatorError::NeverUnsealed), "{again}");
    assert!(again.to_string().contains("data directory"), "{again}");

    // Fewer than three do nothing, the same one twice does not count.
    instance.unseal(parse(&shares[3])).await.unwrap();
    let twice = instance.unseal(parse(&shares[3])).await.unwrap_err();
    assert_eq!(twice.code(), "InvalidShare.Duplicate");
    let status = instance.unseal(parse(&shares[0])).await.unwrap();
    let progress = status.progress.unwrap();
    assert_eq!((progress.entered, progress.threshold, status.order), (2, 3, Some("unseal")));
    assert_eq!(instance.engine().err(), Some(Error::Sealed(Life::Sealed)));
    instance.reset().await;
    assert_eq!(instance.status().progress.unwrap().entered, 0);
    unseal(&instance, &shares[2..]).await;
    let blob = encrypted(&instance.engine().unwrap()).await;

    let status = instance.seal(&caller(&instance)).await.unwrap();
    assert_eq!((status.state, status.sealed), (Life::Sealed, true));
    assert_eq!(instance.engine().err(), Some(Error::Sealed(Life::Sealed)));
    assert!(matches!(instance.init(5, 3).await, Err(OperatorError::Initialised)));
    unseal(&instance, &shares[..3]).await;
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;

    // Another process.
    let instance = started(&world, SealKind::File).await;
    assert_eq!(instance.life(), Life::Sealed);
    unseal(&instance, &shares[1..4]).await;
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
}

#[tokio::test]
async fn a_commands_engine_ends_with_the_seal() {
    let world = World::new();
    let instance = started(&world, SealKind::File).await;
    let engine = instance.engine().unwrap();
    // Somebody keeps an engine over the seal: it is of no use.
    let sealing = tokio::spawn({
        let (instance, caller) = (instance.clone(), root(&engine));
        async move { instance.seal(&caller).await.unwrap() }
    });
    while instance.life() == Life::Unsealed {
        tokio::task::yield_now().await;
    }
    sealing.await.unwrap();
    let refused = engine.execute(&root(&engine), CreateKey::default()).await;
    assert!(refused.is_err());
    drop(engine);
    // A file opens by itself, at the operator's word.
    assert_eq!(instance.unseal(None).await.unwrap().state, Life::Unsealed);
    instance.shutdown().await;
}

#[tokio::test]
async fn what_is_done_with_the_seal_is_in_the_audit_log() {
    let world = World::new();
    let instance = started(&world, SealKind::Shamir).await;
    let shares = texts(&instance.init(3, 2).await.unwrap());
    instance.unseal(parse(&shares[0])).await.unwrap();
    assert!(instance.unseal(parse(&shares[0])).await.is_err());
    unseal(&instance, &shares[1..2]).await;
    ordered(&instance, Order::RotateRoot, &shares[..2]).await;
    instance.seal(&caller(&instance)).await.unwrap();
    unseal(&instance, &shares[..2]).await;
    let query = QueryAudit { query: Query { limit: 1000, ..Query::default() } };
    let engine = instance.engine().unwrap();
    let page = engine.execute(&root(&engine), query).await.unwrap();
    let mut seen = BTreeMap::new();
    for record in &page.records {
        *seen.entry(record["action"].as_str().unwrap().to_owned()).or_insert(0) += 1;
        if record["action"] == "UnsealServer" {
            assert_eq!(record["seal"], "shamir", "{record}");
        }
        let text = record.to_string();
        assert!(!shares.iter().any(|share| text.contains(&share[20..40])), "{text}");
    }
    for (action, times) in
        [("UnsealServer", 2), ("ManageSeal", 2), ("RotateRootKey", 1), ("SealServer", 1)]
    {
        assert_eq!(seen.get(action), Some(&times), "{action}: {seen:?}");
    }
    let first = page.records.iter().find(|r| r["action"] == "UnsealServer").unwrap();
    assert_eq!(first["shares_refused"], 1);
    drop(engine);
    instance.shutdown().await;
}

/// Until the one who looks after shares that wait has seen what the clock says.
async fn until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}");
}

#[tokio::test]
async fn shares_that_nobody_goes_on_with_are_forgotten() {
    let world = World::new();
    let instance = started(&world, SealKind::Shamir).await;
    let shares = texts(&instance.init(4, 3).await.unwrap());
    let almost = GIVEN_UP - Duration::from_secs(1);
    let entered = || instance.status().progress.unwrap().entered;
    instance.unseal(parse(&shares[0])).await.unwrap();
    world.clock.advance(almost);
    // One more gives both their time anew; one that is refused gives none.
    instance.unseal(parse(&shares[1])).await.unwrap();
    world.clock.advance(almost);
    assert!(instance.unseal(parse(&shares[1])).await.is_err());
    assert_eq!(entered(), 2);
    // By itself, with nobody asking.
    world.clock.advance(Duration::from_secs(2));
    until("two shares are forgotten", || entered() == 0).await;
    // And at once, for who comes too late.
    instance.unseal(parse(&shares[0])).await.unwrap();
    world.clock.advance(GIVEN_UP);
    let status = instance.unseal(parse(&shares[1])).await.unwrap();
    assert_eq!(status.progress.unwrap().entered, 1);
    unseal(&instance, &[shares[2].clone(), shares[3].clone()]).await;

    // A change of the seal that nobody goes on with stands in nobody's way.
    let rekey = Order::Rekey { splitting: Some((3, 2)) };
    order(&instance, rekey, Some(&shares[0])).await.unwrap();
    let other = order(&instance, Order::RotateRoot, Some(&shares[0])).await.unwrap_err();
    assert_eq!(other.code(), "Rejected.OtherOrder");
    world.clock.advance(GIVEN_UP);
    until("the order is forgotten", || instance.status().order.is_none()).await;
    order(&instance, Order::RotateRoot, Some(&shares[0])).await.unwrap();
    order(&instance, Order::Cancel, None).await.unwrap();

    let query = QueryAudit { query: Query { limit: 1000, ..Query::default() } };
    let engine = instance.engine().unwrap();
    let page = engine.execute(&root(&engine), query).await.unwrap();
    let of = |action: &str| page.records.iter().find(|r| r["action"] == action).unwrap();
    assert_eq!(of("UnsealServer")["shares_forgotten"], 3);
    assert_eq!(of("ForgetShares")["shares_forgotten"], 1);
    assert_eq!(of("ForgetShares")["target"], "rekey");
    drop(engine);
    instance.shutdown().await;
}

#[tokio::test]
async fn after_a_rekey_both_generations_work_until_the_new_one_was_entered() {
    let world = World::new();
    let instance = started(&world, SealKind::Shamir).await;
    let old = texts(&instance.init(3, 2).await.unwrap());
    unseal(&instance, &old[..2]).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    let rekey = Order::Rekey { splitting: Some((5, 3)) };
    assert!(matches!(
        order(&instance, Order::Rekey { splitting: None }, Some(&old[0])).await,
        Err(OperatorError::Splitting)
    ));
    assert!(matches!(
        order(&instance, Order::Confirm, None).await,
        Err(OperatorError::NothingPending)
    ));
    order(&instance, rekey, Some(&old[0])).await.unwrap();
    // Another order cannot take what was given for this one.
    assert!(matches!(
        order(&instance, Order::RotateRoot, Some(&old[1])).await,
        Err(OperatorError::OtherOrder(begun)) if begun == "rekey to 3 of 5 shares"
    ));
    let new = ordered(&instance, Order::Rekey { splitting: None }, &old[2..]).await.unwrap();
    let new = texts(&new);
    assert_eq!(new.len(), 5);
    assert!(matches!(order(&instance, Order::RotateRoot, None).await, Err(OperatorError::Pending)));

    // Old shares still unseal, and end nothing.
    instance.seal(&caller(&instance)).await.unwrap();
    unseal(&instance, &old[1..]).await;
    assert!(instance.status().pending.is_some());
    // New shares unseal, and end the old ones.
    instance.seal(&caller(&instance)).await.unwrap();
    unseal(&instance, &new[..3]).await;
    assert!(instance.status().pending.is_none());
    instance.seal(&caller(&instance)).await.unwrap();
    let refused = instance.unseal(parse(&old[0])).await.unwrap_err();
    assert_eq!(refused.code(), "InvalidShare.OtherSet");
    assert!(refused.to_string().contains("generation 1"), "{refused}");
    unseal(&instance, &new[2..]).await;
    assert_readable(&instance, &blob).await;

    // Confirmed without sealing; and cancelled.
    let newer = ordered(&instance, Order::Rekey { splitting: Some((2, 2)) }, &new[..3]).await;
    let newer = texts(&newer.unwrap());
    ordered(&instance, Order::Confirm, &newer).await;
    assert_eq!(instance.status().seal.unwrap().generation, Some(3));
    let lost = ordered(&instance, Order::Rekey { splitting: Some((2, 2)) }, &newer).await;
    assert!(lost.is_some() && instance.status().pending.is_some());
    order(&instance, Order::Cancel, None).await.unwrap();
    assert!(instance.status().pending.is_none());
    instance.seal(&caller(&instance)).await.unwrap();
    unseal(&instance, &newer).await;
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
}

#[tokio::test]
async fn forged_shares_unseal_nothing_and_lose_only_what_was_entered() {
    let (world, other) = (World::new(), World::new());
    let instance = started(&world, SealKind::Shamir).await;
    let stranger = started(&other, SealKind::Shamir).await;
    let shares = texts(&instance.init(3, 2).await.unwrap());
    let strange = texts(&stranger.init(3, 2).await.unwrap());
    let refused = instance.unseal(parse(&strange[0])).await.unwrap_err();
    assert!(matches!(refused, OperatorError::Share(ShareRefused::OtherSet { .. })));
    unseal(&instance, &shares[..2]).await;
    instance.shutdown().await;
}

#[tokio::test]
async fn from_a_file_to_shares_and_back_with_a_new_root_key_each_time() {
    let world = World::new();
    let instance = started(&world, SealKind::File).await;
    let file = world.directory.path().join("root.key");
    let blob = encrypted(&instance.engine().unwrap()).await;
    let before = fs::read_to_string(&file).unwrap();

    let to_file = Order::Migrate { to: SealKind::File, splitting: None };
    assert!(matches!(order(&instance, to_file, None).await, Err(OperatorError::SameSeal(_))));
    let to_shares = Order::Migrate { to: SealKind::Shamir, splitting: Some((3, 2)) };
    let Outcome::Shares(new) = order(&instance, to_shares, None).await.unwrap() else {
        panic!("no shares");
    };
    let shares = texts(&new);
    // Until they were entered the file is what opens.
    instance.shutdown().await;
    let instance = started(&world, SealKind::File).await;
    assert_eq!(instance.life(), Life::Unsealed);
    ordered(&instance, Order::Confirm, &shares[1..]).await;
    assert!(!file.exists());
    assert_eq!(instance.status().seal.unwrap().kind, SealKind::Shamir);
    instance.shutdown().await;
    let instance = started(&world, SealKind::File).await;
    assert_eq!(instance.life(), Life::Sealed);
    unseal(&instance, &shares[..2]).await;
    assert_readable(&instance, &blob).await;
    // The old file opens nothing any more.
    fs::write(&file, &before).unwrap();

    assert!(order(&instance, to_file, None).await.is_ok());
    assert_eq!(instance.status().progress.unwrap().threshold, 2);
    ordered(&instance, to_file, &shares[..2]).await;
    assert_eq!(instance.status().seal.unwrap().kind, SealKind::File);
    let after = fs::read_to_string(&file).unwrap();
    assert_ne!(after, before);
    instance.shutdown().await;
    let instance = started(&world, SealKind::Shamir).await;
    assert_eq!(instance.life(), Life::Unsealed);
    assert_readable(&instance, &blob).await;
    // A new root key under the same seal.
    order(&instance, Order::RotateRoot, None).await.unwrap();
    assert_ne!(fs::read_to_string(&file).unwrap(), after);
    assert_readable(&instance, &blob).await;
    instance.shutdown().await;
    fs::write(&file, &after).unwrap();
    let old = Instance::new(parts(&world, Arc::new(seals(&world, SealKind::File))));
    assert!(old.start().await.is_err(), "an old root key opened the store");
}

#[tokio::test]
async fn a_root_key_file_that_fails_is_named_while_new_shares_wait_to_be_entered() {
    let world = World::new();
    let instance = started(&world, SealKind::File).await;
    let blob = encrypted(&instance.engine().unwrap()).await;
    order(&instance, TO_SHARES, None).await.unwrap();
    let mut instance = Some(instance);
    let file = world.directory.path().join("root.key");
    let key = fs::read(&file).unwrap();
    let mode = |mode| fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
    let wrongs: [(&str, &dyn Fn()); 3] = [
        ("is missing", &|| fs::remove_file(&file).unwrap()),
        ("chmod 600", &|| mode(0o644)),
        ("not a root key file", &|| fs::write(&file, "what").unwrap()),
    ];
    for (named, wrong) in wrongs {
        instance.take().unwrap().shutdown().await;
        wrong();
        let sealed = started(&world, SealKind::File).await;
        assert_eq!(sealed.life(), Life::Sealed);
        let waiting = sealed.status().waiting.unwrap_or_default();
        assert!(waiting.contains(named) && waiting.contains("new shares"), "{waiting}");
        let refused = sealed.unseal(None).await.unwrap_err();
        assert!(refused.to_string().contains(named), "{refused}");
        fs::write(&file, &key).unwrap();
        mode(0o600);
        assert_eq!(sealed.unseal(None).await.unwrap().waiting, None);
        assert_readable(&sealed, &blob).await;
        instance = Some(sealed);
    }
    instance.unwrap().shutdown().await;
}

#[tokio::test]
async fn whoever_may_not_changes_nothing() {
    let world = World::new();
    let instance = started(&world, SealKind::File).await;
    let engine = instance.engine().unwrap();
    let mut plugin = root(&engine);
    plugin.principal = lastkey_engine::Principal::Plugin {
        cluster: lastkey_crypto::ClusterId::random(&lastkey_crypto::SystemEntropy),
        name: "node".into(),
        fingerprint: "00".into(),
    };
    drop(engine);
    assert!(instance.seal(&plugin).await.is_err());
    assert_eq!(instance.life(), Life::Unsealed);
    let refused = instance.order(&plugin, Order::RotateRoot, With::default()).await.unwrap_err();
    assert_eq!(refused.code(), "Forbidden.NoPermission");
    instance.shutdown().await;
}

/// A seal that stops for good at one of its steps, as a killed process does.
struct Cut {
    inner: Seals,
    left: AtomicUsize,
    stopped: tokio::sync::Notify,
}

impl Cut {
    async fn step(&self) {
        if self.left.fetch_sub(1, Ordering::SeqCst) == 0 {
            self.stopped.notify_one();
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Seal for Cut {
    fn kind(&self) -> SealKind {
        self.inner.kind()
    }

    async fn begin(&self, entropy: &dyn Entropy) -> Result<(KeyMaterial, SealEntry), SealError> {
        self.step().await;
        let begun = self.inner.begin(entropy).await;
        self.step().await;
        begun
    }

    async fn wrap(
        &self,
        kind: SealKind,
        of: (&KeyMaterial, &SealRecord),
        entropy: &dyn Entropy,
    ) -> Result<SealEntry, SealError> {
        self.step().await;
        let wrapped = self.inner.wrap(kind, of, entropy).await;
        self.step().await;
        wrapped
    }

    async fn unwrap(
        &self,
        entry: &SealEntry,
        print: Option<RootPrint>,
    ) -> Result<KeyMaterial, SealError> {
        self.step().await;
        self.inner.unwrap(entry, print).await
    }

    async fn settle(&self, record: &SealRecord) {
        self.step().await;
        self.inner.settle(record).await;
        self.step().await;
    }
}

/// Runs one life of a process, which may be cut.
fn life<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let done = runtime.block_on(work);
    runtime.shutdown_timeout(Duration::from_secs(5));
    done
}

#[test]
fn a_change_that_is_stopped_at_any_point_leaves_a_store_that_opens() {
    for scenario in ["first", "rotate", "to file", "to shares"] {
        for cut in 0.. {
            let world = World::new();
            let (shares, blob) = life(async {
                let first = if scenario == "to file" { SealKind::Shamir } else { SealKind::File };
                if scenario == "first" {
                    return (Vec::new(), None);
                }
                let instance = started(&world, first).await;
                let mut shares = Vec::new();
                if first == SealKind::Shamir {
                    shares = texts(&instance.init(2, 2).await.unwrap());
                    unseal(&instance, &shares).await;
                }
                let blob = encrypted(&instance.engine().unwrap()).await;
                if scenario == "to shares" {
                    let to = Order::Migrate { to: SealKind::Shamir, splitting: Some((2, 2)) };
                    let Outcome::Shares(new) = order(&instance, to, None).await.unwrap() else {
                        panic!("no shares");
                    };
                    shares = texts(&new);
                }
                instance.shutdown().await;
                (shares, Some(blob))
            });
            let was_cut = life(async {
                let seal = Arc::new(Cut {
                    inner: seals(&world, SealKind::File),
                    left: AtomicUsize::new(cut),
                    stopped: tokio::sync::Notify::new(),
                });
                let instance = Instance::new(parts(&world, seal.clone()));
                let change = async {
                    instance.start().await.unwrap();
                    match scenario {
                        "first" => {}
                        "rotate" => drop(order(&instance, Order::RotateRoot, None).await.unwrap()),
                        "to file" => {
                            unseal(&instance, &shares).await;
                            let to = Order::Migrate { to: SealKind::File, splitting: None };
                            ordered(&instance, to, &shares).await;
                        }
                        _ => drop(ordered(&instance, Order::Confirm, &shares).await),
                    }
                };
                tokio::select! {
                    () = change => false,
                    () = seal.stopped.notified() => true,
                }
            });
            life(async {
                let instance = started(&world, SealKind::File).await;
                if instance.life() == Life::Sealed {
                    unseal(&instance, &shares).await;
                }
                assert_eq!(instance.life(), Life::Unsealed, "{scenario}, stopped at {cut}");
                if let Some(blob) = &blob {
                    assert_readable(&instance, blob).await;
                }
                instance.shutdown().await;
            });
            if !was_cut {
                assert!(cut >= 2, "{scenario} was stopped {cut} times only");
                break;
            }
        }
    }
}

#[tokio::test]
async fn a_share_of_a_cancelled_set_is_named_and_loses_nothing() {
    let world = World::new();
    let instance = started(&world, SealKind::Shamir).await;
    let shares = texts(&instance.init(2, 2).await.unwrap());
    unseal(&instance, &shares).await;
    let cancelled = texts(&ordered(&instance, REKEY, &shares).await.unwrap());
    order(&instance, Order::Cancel, None).await.unwrap();
    // What was cancelled is remembered, whatever else is done with the seal meanwhile.
    ordered(&instance, Order::RotateRoot, &shares).await;
    let again = texts(&ordered(&instance, REKEY, &shares).await.unwrap());
    order(&instance, Order::Cancel, None).await.unwrap();
    let new = texts(&ordered(&instance, REKEY, &shares).await.unwrap());
    order(&instance, Order::Confirm, Some(&new[0])).await.unwrap();
    for old in [&cancelled[1], &again[1], &shares[1]] {
        let refused = order(&instance, Order::Confirm, Some(old)).await.unwrap_err();
        assert_eq!(refused.code(), "InvalidShare.OtherSet", "{refused}");
        assert_eq!(instance.status().progress.unwrap().entered, 1);
    }
    order(&instance, Order::Confirm, Some(&new[1])).await.unwrap();
    // And while the server is sealed.
    instance.seal(&caller(&instance)).await.unwrap();
    instance.unseal(parse(&new[0])).await.unwrap();
    assert!(instance.unseal(parse(&again[1])).await.is_err());
    unseal(&instance, &new[1..]).await;
    instance.shutdown().await;
}

/// Somebody who wants another order is told to cancel what stands in its way.
#[tokio::test]
async fn new_shares_are_not_cancelled_with_what_was_entered() {
    let world = World::new();
    let instance = started(&world, SealKind::Shamir).await;
    let shares = texts(&instance.init(2, 2).await.unwrap());
    unseal(&instance, &shares).await;
    let new = texts(&ordered(&instance, REKEY, &shares).await.unwrap());
    let pending = || instance.status().pending;
    let waits = pending();
    // Whatever became of the share that began it.
    for begins in [&new[0], &shares[0]] {
        let _ = order(&instance, Order::Confirm, Some(begins)).await;
        let refused = order(&instance, REKEY, Some(&shares[0])).await.unwrap_err();
        assert_eq!(refused.code(), "Rejected.OtherOrder");
        order(&instance, Order::Cancel, None).await.unwrap();
        assert_eq!((instance.status().order, pending()), (None, waits.clone()));
    }
    ordered(&instance, Order::Confirm, &new).await;
    assert_eq!(pending(), None);
    // Where nothing was entered, it is new shares that are cancelled.
    ordered(&instance, REKEY, &new).await.unwrap();
    assert!(pending().is_some());
    order(&instance, Order::Cancel, None).await.unwrap();
    assert_eq!(pending(), None);
    instance.shutdown().await;
}

#[tokio::test]
async fn a_share_is_used_for_no_other_order_than_it_was_given_for() {
    let world = World::new();
    let instance = started(&world, SealKind::Shamir).await;
    let shares = texts(&instance.init(2, 2).await.unwrap());
    unseal(&instance, &shares).await;
    let to = |to| Order::Migrate { to, splitting: None };
    let rekey = |splitting| Order::Rekey { splitting };
    for (begun, other, named) in [
        (to(SealKind::File), to(SealKind::Pkcs11), "migrate to file"),
        (rekey(Some((2, 2))), rekey(Some((3, 3))), "rekey to 2 of 2 shares"),
        (rekey(Some((2, 2))), rekey(Some((3, 2))), "rekey to 2 of 2 shares"),
    ] {
        order(&instance, begun, Some(&shares[0])).await.unwrap();
        let refused = order(&instance, other, Some(&shares[1])).await.unwrap_err();
        assert_eq!(refused.code(), "Rejected.OtherOrder");
        assert!(refused.to_string().contains(named), "{refused}");
        let status = instance.status();
        assert_eq!((status.seal.unwrap().kind, status.pending), (SealKind::Shamir, None));
        assert_eq!(status.progress.unwrap().entered, 1);
        let target = status.target.unwrap();
        assert!(named.ends_with(&target), "{target}");
        order(&instance, Order::Cancel, None).await.unwrap();
        assert_eq!(instance.status().target, None);
    }
    assert!(!world.directory.path().join("root.key").exists());
    // Who names nothing joins, and the same may be named again.
    for other in [rekey(None), rekey(Some((3, 3)))] {
        order(&instance, rekey(Some((3, 3))), Some(&shares[0])).await.unwrap();
        let Outcome::Shares(new) = order(&instance, other, Some(&shares[1])).await.unwrap() else {
            panic!("no shares");
        };
        assert_eq!((new.seal.shares, new.seal.threshold), (Some(3), Some(3)));
        order(&instance, Order::Cancel, None).await.unwrap();
    }
    // Who gave a share for what is in the audit log.
    let query = QueryAudit { query: Query { limit: 1000, ..Query::default() } };
    let engine = instance.engine().unwrap();
    let page = engine.execute(&root(&engine), query).await.unwrap();
    let asked = |field: &str, value: serde_json::Value| {
        let given = |r: &&serde_json::Value| r["action"] == "ManageSeal" && r[field] == value;
        page.records.iter().filter(given).count()
    };
    assert_eq!((asked("seal", "file".into()), asked("seal", "pkcs11".into())), (1, 1));
    assert_eq!((asked("threshold", 3.into()), asked("shares", 2.into())), (4, 2));
    drop(engine);
    instance.shutdown().await;
}

/// Has no room for what it makes with each opening, at first.
struct Full(AtomicUsize);

#[async_trait]
impl Attendant for Full {
    async fn opened(&self, _: &Engine) -> Result<(), String> {
        match self.0.fetch_sub(1, Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err("no space left on device".to_owned()),
        }
    }

    async fn closing(&self) {}
}

#[tokio::test]
async fn shares_that_opened_nothing_are_counted_no_more() {
    let world = World::new();
    let instance = started(&world, SealKind::Shamir).await;
    let shares = texts(&instance.init(2, 2).await.unwrap());
    let full: Arc<dyn Attendant> = Arc::new(Full(AtomicUsize::new(1)));
    instance.attend(&full);
    instance.unseal(parse(&shares[0])).await.unwrap();
    let failed = instance.unseal(parse(&shares[1])).await.unwrap_err();
    assert_eq!(failed.code(), "Unavailable.Start");
    let text = failed.to_string();
    assert!(text.contains("no space") && text.contains("enter all of them again"), "{text}");
    let status = instance.status();
    assert_eq!((status.state, status.progress.unwrap().entered), (Life::Sealed, 0));
    unseal(&instance, &shares).await;
    instance.shutdown().await;
}

/// What `init` says of a server whose root key is in a file, whatever the server was started with.
#[tokio::test]
async fn a_server_without_shares_is_not_said_to_have_any() {
    let world = World::new();
    started(&world, SealKind::File).await.shutdown().await;
    let instance = started(&world, SealKind::Shamir).await;
    let refused = instance.init(3, 2).await.unwrap_err();
    assert!(matches!(refused, OperatorError::NoShares(SealKind::File)), "{refused}");
    assert!(refused.to_string().contains("migrate --to shamir"), "{refused}");
    instance.shutdown().await;
}
