//! Looks for a key in this process's memory: found while the key can be used, gone once it is
//! destroyed. One test, for it looks at the whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{fs, fs::File, os::unix::fs::FileExt as _, time::Duration};

use lastkey_crypto::{EncryptionContext, KeyMaterial, SecretBytes, record::SealedRecord, wrap};
use lastkey_engine::{
    Engine, Error, KeyRef,
    command::{CreateKey, Decrypt, Encrypt, ScheduleKeyDeletion},
};
use lastkey_store::Store as _;
use support::{World, root};

/// As in the binary: what is freed is zeroed.
#[global_allocator]
static ALLOCATOR: lastkey_crypto::memory::GuardedHeap = lastkey_crypto::memory::GUARDED_HEAP;

const DAY: Duration = Duration::from_secs(86_400);
/// What a needle is kept under, so that looking for it does not find the needle itself.
const MASK: u8 = 0xa5;

#[tokio::test]
async fn a_destroyed_key_is_nowhere_in_memory() {
    let world = World::new();
    let engine = world.start().await;
    let (key, blob) = used_key(&engine).await;
    let needle = material(&world).await;
    forget_stack();
    assert!(count(&needle) > 0, "the key is nowhere: this test looks in the wrong way");

    let caller = root(&engine);
    let window = 7;
    let schedule =
        ScheduleKeyDeletion { key: KeyRef::Id(key), window_days: window, overriding: None };
    engine.execute(&caller, schedule).await.unwrap();
    for _ in 0..=window {
        world.clock.advance(DAY);
        engine.run_due_work().await.unwrap();
    }
    let decrypt = Decrypt { blob, context: EncryptionContext::empty() };
    assert_ne!(engine.execute(&root(&engine), decrypt).await.err(), None::<Error>);
    assert_eq!(world.store.list("version/", None, 10).await.unwrap().len(), 0);
    forget_stack();
    assert_eq!(count(&needle), 0, "a destroyed key is still in memory");
    engine.shutdown().await;
}

/// A key that was used in both directions, so that it is in every cache.
async fn used_key(engine: &Engine) -> (lastkey_crypto::KeyId, Vec<u8>) {
    let caller = root(engine);
    let key = engine.execute(&caller, CreateKey::default()).await.unwrap().id;
    let encrypt = Encrypt {
        key: KeyRef::Id(key),
        plaintext: SecretBytes::new(b"plain".to_vec()),
        context: EncryptionContext::empty(),
    };
    let blob = engine.execute(&caller, encrypt).await.unwrap().blob;
    let decrypt = Decrypt { blob: blob.clone(), context: EncryptionContext::empty() };
    engine.execute(&caller, decrypt).await.unwrap();
    (key, blob)
}

/// The one key version's material, masked.
async fn material(world: &World) -> Vec<u8> {
    let text = fs::read_to_string(world.directory.path().join("root.key")).unwrap();
    let digits = text.trim_end().rsplit(' ').next().unwrap();
    let root = KeyMaterial::build(32, |out| hex::decode_to_slice(digits, out).unwrap());
    let wrapped = world.store.get("meta/keyring").await.unwrap().unwrap().value;
    let keyring = wrap::unwrap(&root, "keyring", &wrapped).unwrap();
    let versions = world.store.list("version/", None, 10).await.unwrap();
    let [version] = versions.as_slice() else { panic!("{} versions", versions.len()) };
    let sealed = SealedRecord::parse(&version.value).unwrap();
    // Whichever 32 bytes of the keyring open it, whatever the keyring's format.
    let plain = keyring
        .expose()
        .windows(32)
        .find_map(|key| sealed.open(&KeyMaterial::from_slice(key), &version.path).ok())
        .unwrap();
    let plain = plain.expose();
    plain[plain.len() - 32..].iter().map(|byte| byte ^ MASK).collect()
}

/// Overwrites what calls before this one may have left below us.
#[inline(never)]
fn forget_stack() {
    let mut waste = [0u8; 256 << 10];
    std::hint::black_box(&mut waste);
}

/// How often the needle is anywhere in this process.
fn count(masked: &[u8]) -> usize {
    let memory = File::open("/proc/self/mem").unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let mut found = 0;
    // Memory that looking itself takes is freed, and zeroed, before the next region.
    for line in maps.lines() {
        let (range, rest) = line.split_once(' ').unwrap();
        let (from, to) = range.split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let to = u64::from_str_radix(to, 16).unwrap();
        if !rest.starts_with('r') {
            continue;
        }
        let mut bytes = vec![0u8; usize::try_from(to - from).unwrap()];
        if memory.read_exact_at(&mut bytes, from).is_err() {
            continue;
        }
        bytes.iter_mut().for_each(|byte| *byte ^= MASK);
        found += memchr::memmem::find_iter(&bytes, masked).count();
    }
    found
}
