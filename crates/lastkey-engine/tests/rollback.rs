//! Whoever can write to the disk puts old things back: every start notices, and refuses.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod support;

use std::{collections::BTreeMap, sync::Arc};

use lastkey_engine::{
    AliasName, Engine, Error, Key, MemoryAnchor, StartError, audit::Query, command::*,
};
use lastkey_store::{Entry, Store, Transaction};
use support::{World, by_id, context, create_key, parts, root, secret};

/// A world with an anchor, and what an attacker can do to it.
struct Prey {
    world: World,
    anchor: Arc<MemoryAnchor>,
}

impl Prey {
    fn new() -> Self {
        Self { world: World::new(), anchor: Arc::new(MemoryAnchor::default()) }
    }

    fn parts(&self) -> lastkey_engine::Parts {
        let store: Arc<dyn Store> = self.world.store.clone();
        let clock = self.world.clock.clone();
        parts(store, clock, self.world.directory.path(), "here", self.anchor.clone())
    }

    async fn try_start(&self) -> Result<Engine, StartError> {
        Engine::start(self.parts()).await
    }

    async fn start(&self) -> Engine {
        self.try_start().await.unwrap()
    }

    async fn accept(&self, reason: &str) -> Engine {
        Engine::start_accepting(self.parts(), reason).await.unwrap()
    }

    /// Why a start is held.
    async fn held(&self) -> String {
        match self.try_start().await.map(|_| ()) {
            Err(StartError::Held { reason }) => reason,
            other => panic!("not held: {other:?}"),
        }
    }

    async fn entries(&self) -> Vec<Entry> {
        self.world.store.list("", None, usize::MAX).await.unwrap()
    }

    async fn parcels(&self) -> Vec<Entry> {
        self.world.store.list("outbox/", None, usize::MAX).await.unwrap()
    }

    /// Makes changes until parcels of theirs are seen before a sweep takes them.
    async fn before_a_sweep(&self, engine: &Engine) -> Vec<Entry> {
        loop {
            create_key(engine).await;
            let parcels = self.parcels().await;
            if !parcels.is_empty() {
                return parcels;
            }
        }
    }

    async fn entry(&self, path: &str) -> Option<Entry> {
        self.world.store.get(path).await.unwrap()
    }

    /// Makes the store hold exactly this.
    async fn put_back(&self, entries: &[Entry]) {
        for present in self.entries().await {
            if entries.iter().all(|entry| entry.path != present.path) {
                self.remove(&present.path).await;
            }
        }
        entries.iter().for_each(|entry| self.world.store.tamper(entry.clone()));
    }

    async fn remove(&self, path: &str) {
        self.world.store.commit(Transaction::new().delete(path)).await.unwrap();
    }
}

fn shard_of(path: &str) -> u8 {
    lastkey_crypto::mac::sha256(&[path.as_bytes()])[0]
}

async fn describe(engine: &Engine, key: &Key, text: &str) {
    let change = UpdateKeyDescription { key: by_id(key), description: text.into() };
    engine.execute(&root(engine), change).await.unwrap();
}

fn key_path(key: &Key) -> String {
    format!("key/{}", key.id)
}

#[tokio::test]
async fn what_was_stored_well_starts_again_and_again() {
    let prey = Prey::new();
    for n in 0..5 {
        let engine = prey.start().await;
        let key = create_key(&engine).await;
        describe(&engine, &key, &n.to_string()).await;
        let alias = AliasName::parse("alias/a").unwrap();
        if n % 2 == 0 {
            let create = CreateAlias { alias, key: by_id(&key) };
            engine.execute(&root(&engine), create).await.unwrap();
        } else {
            engine.execute(&root(&engine), DeleteAlias { alias }).await.unwrap();
        }
        if n == 3 {
            // No clean end: parcels and mark are as a crash leaves them.
            drop(engine);
        } else {
            engine.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_record_in_an_older_version_is_noticed() {
    let prey = Prey::new();
    let engine = prey.start().await;
    let key = create_key(&engine).await;
    let old = prey.entry(&key_path(&key)).await.unwrap();
    engine
        .execute(&root(&engine), DisableKey { key: by_id(&key), overriding: None })
        .await
        .unwrap();
    engine.shutdown().await;
    let right = prey.entry(&key_path(&key)).await.unwrap();

    prey.world.store.tamper(old);
    let reason = prey.held().await;
    assert!(reason.contains("is not its newest version"), "{reason}");
    assert!(reason.contains("accept-restore"), "{reason}");

    // The right one put back is all it takes.
    prey.world.store.tamper(right);
    let engine = prey.start().await;
    let encrypt = Encrypt { key: by_id(&key), plaintext: secret("x"), context: context(&[]) };
    let refused = engine.execute(&root(&engine), encrypt).await.err();
    assert_eq!(refused, Some(Error::KeyDisabled));
}

#[tokio::test]
async fn a_record_that_is_gone_or_came_back_is_noticed() {
    let prey = Prey::new();
    let engine = prey.start().await;
    let key = create_key(&engine).await;
    let alias = AliasName::parse("alias/a").unwrap();
    let create = CreateAlias { alias: alias.clone(), key: by_id(&key) };
    engine.execute(&root(&engine), create).await.unwrap();
    let deleted = prey.entry("alias/a").await.unwrap();
    engine.execute(&root(&engine), DeleteAlias { alias }).await.unwrap();
    engine.shutdown().await;
    let sound = prey.entries().await;

    prey.world.store.tamper(deleted);
    assert!(prey.held().await.contains("records instead of"));

    // Whatever record is taken away, head and mark and keyring included.
    for missing in &sound {
        if matches!(missing.path.as_str(), "meta/seal" | "meta/keyring") {
            continue;
        }
        prey.put_back(&sound).await;
        prey.remove(&missing.path).await;
        assert!(prey.try_start().await.is_err(), "{} was missed by nobody", missing.path);
    }
    prey.put_back(&sound).await;
    prey.start().await.shutdown().await;
}

#[tokio::test]
async fn a_record_of_another_installation_is_noticed() {
    let (prey, other) = (Prey::new(), Prey::new());
    let engine = prey.start().await;
    let key = create_key(&engine).await;
    engine.shutdown().await;
    let foreign = other.start().await;
    create_key(&foreign).await;
    foreign.shutdown().await;
    let stranger = other.entries().await.into_iter().find(|e| e.path.starts_with("key/")).unwrap();
    prey.world.store.tamper(Entry { path: key_path(&key), ..stranger });
    assert!(prey.held().await.contains("is not its newest version"));
}

/// A copy of the installation with the same keys goes its own way; what it wrote fits nothing.
#[tokio::test]
async fn a_record_of_a_copy_is_noticed() {
    let prey = Prey::new();
    let engine = prey.start().await;
    let key = create_key(&engine).await;
    engine.shutdown().await;
    let fork = prey.entries().await;
    let engine = prey.start().await;
    describe(&engine, &key, "ours").await;
    engine.shutdown().await;
    let ours = prey.entries().await;

    let copy = Prey { world: World::new(), anchor: Arc::default() };
    std::fs::copy(
        prey.world.directory.path().join("root.key"),
        copy.world.directory.path().join("root.key"),
    )
    .unwrap();
    copy.put_back(&fork).await;
    copy.anchor.tamper(None);
    let engine = copy.accept("a copy").await;
    describe(&engine, &key, "theirs").await;
    engine.shutdown().await;

    let theirs = copy.entry(&key_path(&key)).await.unwrap();
    prey.world.store.tamper(theirs.clone());
    prey.held().await;
    // Nor does it with the head that belongs to it.
    let head = format!("head/{:02x}", shard_of(&theirs.path));
    prey.put_back(&ours).await;
    prey.world.store.tamper(theirs);
    prey.world.store.tamper(copy.entry(&head).await.unwrap());
    prey.held().await;
}

#[tokio::test]
async fn a_whole_shard_put_back_is_noticed() {
    let prey = Prey::new();
    let engine = prey.start().await;
    let key = create_key(&engine).await;
    engine.shutdown().await;
    let before = prey.entries().await;
    let engine = prey.start().await;
    engine
        .execute(&root(&engine), DisableKey { key: by_id(&key), overriding: None })
        .await
        .unwrap();
    engine.shutdown().await;
    let after = prey.entries().await;

    let shard = shard_of(&key_path(&key));
    let of_shard = |entry: &&Entry| {
        entry.path == format!("head/{shard:02x}")
            || (!entry.path.starts_with("head/") && shard_of(&entry.path) == shard)
    };
    before.iter().filter(of_shard).for_each(|entry| prey.world.store.tamper(entry.clone()));
    let reason = prey.held().await;
    assert!(reason.contains(&format!("shard {shard:02x} as a whole is older")), "{reason}");

    // With the mark put back as well, the log and the anchor know better.
    let mark = before.iter().find(|entry| entry.path == "audit/head").unwrap();
    prey.world.store.tamper(mark.clone());
    prey.anchor.tamper(None);
    let reason = prey.held().await;
    assert!(reason.contains("the audit log has a change"), "{reason}");
    prey.put_back(&after).await;
    assert!(prey.held().await.contains("anchor is missing"));
}

#[tokio::test]
async fn a_whole_store_put_back_is_noticed_and_can_be_accepted() {
    let prey = Prey::new();
    let engine = prey.start().await;
    let key = create_key(&engine).await;
    engine.shutdown().await;
    let backup = prey.entries().await;
    let engine = prey.start().await;
    let lost = create_key(&engine).await;
    engine
        .execute(&root(&engine), DisableKey { key: by_id(&key), overriding: None })
        .await
        .unwrap();
    engine.shutdown().await;
    let newest = prey.entries().await;

    prey.put_back(&backup).await;
    let reason = prey.held().await;
    assert!(reason.contains("older than its anchor"), "{reason}");
    assert!(reason.contains("the audit log has a change"), "{reason}");
    // Holding has changed nothing.
    assert_eq!(prey.entries().await.len(), backup.len());

    let engine = prey.accept("the disk died").await;
    let again = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
    assert_ne!(again.primary.epoch, key.primary.epoch, "key ids must not come twice");
    let gone = engine.execute(&root(&engine), DescribeKey { key: by_id(&lost) }).await.err();
    assert_eq!(gone, Some(Error::KeyNotFound));
    let query = Query { action: Some("AcceptRestore".into()), limit: 10, ..Query::default() };
    let found = engine.execute(&root(&engine), QueryAudit { query }).await.unwrap();
    assert_eq!(found.records.len(), 1);
    assert_eq!(found.records[0]["reason"], "the disk died");
    assert!(found.records[0]["found"].as_str().unwrap().contains("anchor"));
    assert!(engine.execute(&root(&engine), VerifyAudit).await.unwrap().ok);
    engine.shutdown().await;
    prey.start().await.shutdown().await;

    // What was given up is no way back, even though it is newer.
    prey.put_back(&newest).await;
    let reason = prey.held().await;
    assert!(reason.contains("another history"), "{reason}");
}

#[tokio::test]
async fn an_older_anchor_is_no_lie_but_none_is() {
    let prey = Prey::new();
    let engine = prey.start().await;
    engine.shutdown().await;
    let older = lastkey_engine::Anchor::read(&*prey.anchor).unwrap();
    let engine = prey.start().await;
    create_key(&engine).await;
    engine.shutdown().await;
    prey.anchor.tamper(older.clone());
    prey.start().await.shutdown().await;
    for wrong in [
        None,
        Some(Vec::new()),
        Some(vec![0]),
        older.map(|mut a| {
            a[100] ^= 1;
            a
        }),
    ] {
        prey.anchor.tamper(wrong);
        prey.held().await;
    }
    prey.accept("the anchor is lost").await.shutdown().await;
    prey.start().await;
}

#[tokio::test]
async fn parcels_that_come_back_or_go_are_noticed() {
    let prey = Prey::new();
    let engine = prey.start().await;
    let parcel = prey.before_a_sweep(&engine).await.pop().unwrap();
    engine.shutdown().await;
    assert!(prey.parcels().await.is_empty());
    prey.world.store.tamper(parcel);
    assert!(prey.held().await.contains("older than the rest"));
}

#[tokio::test]
async fn a_change_without_its_record_is_noticed() {
    let prey = Prey::new();
    let engine = prey.start().await;
    // As after a crash, but for the parcel; and the log has lost its record, too.
    let snapshot = loop {
        prey.before_a_sweep(&engine).await;
        let snapshot = prey.entries().await;
        if snapshot.iter().any(|entry| entry.path.starts_with("outbox/")) {
            break snapshot;
        }
    };
    engine.shutdown().await;
    prey.put_back(&snapshot).await;
    for parcel in prey.parcels().await {
        prey.remove(&parcel.path).await;
    }
    let reason = prey.held().await;
    assert!(reason.contains("has lost its audit record"), "{reason}");
}

#[tokio::test]
async fn a_head_that_changes_under_the_running_server_stops_it() {
    let prey = Prey::new();
    let engine = prey.start().await;
    let key = create_key(&engine).await;
    let path = format!("head/{:02x}", shard_of(&key_path(&key)));
    let old = prey.entry(&path).await.unwrap();
    describe(&engine, &key, "newer").await;
    prey.world.store.tamper(old);
    let change = UpdateKeyDescription { key: by_id(&key), description: "newest".into() };
    assert!(engine.execute(&root(&engine), change).await.is_err());
    assert!(matches!(engine.readiness(), Err(Error::StoreRolledBack(_))));
    let other = create_key_refused(&engine).await;
    assert_eq!(other.code(), "Unavailable.StoreRolledBack");
}

async fn create_key_refused(engine: &Engine) -> Error {
    engine.execute(&root(engine), CreateKey::default()).await.err().unwrap()
}

/// Many writers build upon each other's heads; some lose races, some meet a full disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn racing_writers_keep_the_heads_true() {
    use lastkey_store::CommitFault;
    let prey = Prey::new();
    let engine = prey.start().await;
    let key = create_key(&engine).await;
    let tasks: Vec<_> = (0..24)
        .map(|n| {
            let (engine, key, store) = (engine.clone(), by_id(&key), prey.world.store.clone());
            tokio::spawn(async move {
                for m in 0..6 {
                    let tags = BTreeMap::from([(format!("t{n}"), m.to_string())]);
                    let tag = TagResource { key: key.clone(), tags };
                    let _ = engine.execute(&root(&engine), tag).await;
                    let _ = engine.execute(&root(&engine), CreateKey::default()).await;
                    if m == 3 {
                        store.fail_next_commit(match n % 5 {
                            0 => CommitFault::Full,
                            1 => CommitFault::Busy,
                            2 => CommitFault::UncertainMade,
                            3 => CommitFault::UncertainNotMade,
                            _ => CommitFault::Unavailable,
                        });
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // Faults that nobody met are not for the next start.
    while prey.world.store.commit(Transaction::new()).await.is_err() {}
    engine.shutdown().await;
    prey.start().await.shutdown().await;
}

/// A store as release 0.1.0 has left it: the same records, but no heads.
async fn as_of_the_first_release(prey: &Prey) {
    use lastkey_crypto::{KeyMaterial, SystemEntropy, record, record::SealedRecord, wrap};
    let root = std::fs::read_to_string(prey.world.directory.path().join("root.key")).unwrap();
    let digits = root.trim_end().rsplit(' ').next().unwrap();
    let root = KeyMaterial::from_slice(&hex::decode(digits).unwrap());
    let keyring = prey.entry("meta/keyring").await.unwrap();
    let plain = wrap::unwrap(&root, "keyring", &keyring.value).unwrap();
    // Format 2: store id, key of the codes, one key with its creation.
    let (id, key) = (&plain.expose()[49..53], &plain.expose()[61..93]);
    let old = [&[1], id, key].concat();
    let old = wrap::wrap(&root, "keyring", &old, &SystemEntropy);
    prey.world.store.tamper(Entry { value: old, ..keyring });
    let key = KeyMaterial::from_slice(key);
    let reseal = |entry: Entry, counter: u64, change: &dyn Fn(&[u8]) -> Vec<u8>| {
        let opened = SealedRecord::parse(&entry.value).unwrap().open(&key, &entry.path).unwrap();
        let changed = change(opened.expose());
        let value = record::seal(1, &key, &entry.path, counter, &changed, &SystemEntropy);
        prey.world.store.tamper(Entry { value, ..entry });
    };
    reseal(prey.entry("audit/head").await.unwrap(), 1, &|mark| mark[1..41].to_vec());
    reseal(prey.entry("meta/incarnation").await.unwrap(), 1, &|_| b"\"here\"".to_vec());
    for entry in prey.entries().await {
        let young = entry.path.starts_with("head/") || entry.path.starts_with("uses/");
        if young || matches!(entry.path.as_str(), "meta/keyring-uses" | "meta/seal") {
            prey.remove(&entry.path).await;
        }
    }
    prey.anchor.tamper(None);
}

#[tokio::test]
async fn a_store_without_heads_is_adopted_once() {
    let prey = Prey::new();
    let engine = prey.start().await;
    let key = create_key(&engine).await;
    let encrypt = Encrypt { key: by_id(&key), plaintext: secret("x"), context: context(&[]) };
    let blob = engine.execute(&root(&engine), encrypt).await.unwrap().blob;
    engine.shutdown().await;
    as_of_the_first_release(&prey).await;
    let old = prey.entries().await;

    let engine = prey.start().await;
    let same = engine.execute(&root(&engine), DescribeKey { key: by_id(&key) }).await.unwrap();
    assert_eq!(same.primary.epoch, key.primary.epoch, "an update is no restore");
    let decrypt = Decrypt { blob, context: context(&[]) };
    assert_eq!(engine.execute(&root(&engine), decrypt).await.unwrap().plaintext.expose(), b"x");
    // What the first release sealed was not counted: another keyring key seals from now on.
    assert_eq!(engine.keyring_uses().1, 2);
    describe(&engine, &key, "newer").await;
    engine.shutdown().await;

    // From now on, a missing head is an error,
    let adopted = prey.entries().await;
    prey.remove("head/00").await;
    assert!(prey.held().await.contains("the head of shard 00"));
    prey.put_back(&adopted).await;
    prey.start().await.shutdown().await;
    // and so is the store from before.
    let newest = prey.entries().await;
    prey.put_back(&old).await;
    let reason = prey.held().await;
    assert!(reason.contains("which had sealed heads"), "{reason}");
    assert!(reason.contains("the audit log has a change"), "{reason}");
    prey.put_back(&newest).await;
    prey.start().await.shutdown().await;
}

/// Wherever the first start with heads is cut off, the next one goes on.
#[tokio::test]
async fn an_adoption_that_was_cut_off_is_done_again() {
    use lastkey_store::CommitFault;
    let prey = Prey::new();
    let engine = prey.start().await;
    create_key(&engine).await;
    engine.shutdown().await;
    as_of_the_first_release(&prey).await;
    let old = prey.entries().await;
    for cut in 0..5 {
        prey.put_back(&old).await;
        prey.anchor.tamper(None);
        // The seal's own record is the first commit of such a start.
        for _ in 0..cut {
            prey.world.store.fail_next_commit(CommitFault::UncertainMade);
        }
        let _ = prey.try_start().await;
        while prey.world.store.commit(Transaction::new()).await.is_err() {}
        let again = prey.try_start().await;
        assert!(again.is_ok(), "cut off at commit {cut}: {:?}", again.err());
        again.unwrap().shutdown().await;
        prey.start().await.shutdown().await;
    }
}
