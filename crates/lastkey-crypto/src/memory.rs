//! Memory that holds secrets.
//!
//! Two types carry every secret of the process:
//!
//! - [`KeyMaterial`], for what lives long: key versions, the keyring, the root key. It sits in
//!   slots of locked pages that are never swapped, never part of a core dump, never inherited by
//!   a forked child, and zeroed when the slot is given back.
//! - [`SecretBytes`], for what passes through: a plaintext between AES-GCM and the answer. It
//!   sits on the heap and is zeroed when dropped.
//!
//! Neither is `Clone` or `Serialize`, and neither prints its content. [`GuardedHeap`] zeroes all
//! other freed memory, [`harden_process`] forbids core dumps and debuggers.
//!
//! # When memory cannot be locked
//!
//! `RLIMIT_MEMLOCK` may be too small, or `mlock` forbidden. The pages are then used unlocked,
//! still zeroed when freed, and [`stats`] says so, for health to show. Refusing to run would not
//! protect the key better than running with a warning does.
//!
//! # What this does not promise
//!
//! A message key lives inside AWS-LC's cipher context for the length of one call, on the heap;
//! TLS and codec buffers hold plaintext in transit. They are zeroed when freed, not locked.

#[allow(unsafe_code, reason = "locked pages come from mmap, and slots are cut from them by hand")]
mod arena;

use std::{alloc::System, fmt};

use zeroize::Zeroize;
use zeroizing_alloc::ZeroAlloc;

use crate::{Entropy, mac};
pub use arena::{Stats, stats};

/// Longest material that fits a locked slot, in bytes. Longer material works, on the plain heap.
pub const MAX_LOCKED_LEN: usize = arena::MAX_LEN;

/// A global allocator that zeroes memory when it is freed (decision 13).
///
/// ```no_run
/// use lastkey_crypto::memory::{GUARDED_HEAP, GuardedHeap};
///
/// #[global_allocator]
/// static HEAP: GuardedHeap = GUARDED_HEAP;
/// ```
pub type GuardedHeap = ZeroAlloc<System>;

/// The one value of [`GuardedHeap`].
pub const GUARDED_HEAP: GuardedHeap = ZeroAlloc(System);

/// A long-lived key, in locked memory.
///
/// ```compile_fail
/// fn cloneable<T: Clone>() {}
/// cloneable::<lastkey_crypto::KeyMaterial>();
/// ```
pub struct KeyMaterial(Home);

enum Home {
    Locked(arena::Slot),
    /// Longer than a slot, or no page could be mapped.
    Heap(Box<[u8]>),
}

impl KeyMaterial {
    /// Draws a fresh key of `len` bytes.
    pub fn generate(len: usize, entropy: &dyn Entropy) -> Self {
        Self::build(len, |bytes| entropy.fill(bytes))
    }

    /// Copies `bytes`; the caller's copy stays the caller's to zero.
    pub fn from_slice(bytes: &[u8]) -> Self {
        Self::build(bytes.len(), |own| own.copy_from_slice(bytes))
    }

    /// Lets `fill` write `len` bytes of key, which begin as zeros.
    pub fn build(len: usize, fill: impl FnOnce(&mut [u8])) -> Self {
        let mut material = Self(match arena::Slot::take(len) {
            Some(slot) => Home::Locked(slot),
            None => {
                arena::count_heap_key(1);
                Home::Heap(vec![0; len].into_boxed_slice())
            }
        });
        fill(match &mut material.0 {
            Home::Locked(slot) => slot.bytes_mut(),
            Home::Heap(bytes) => bytes,
        });
        material
    }

    /// The key itself. Named so that every use stands out.
    pub fn expose(&self) -> &[u8] {
        match &self.0 {
            Home::Locked(slot) => slot.bytes(),
            Home::Heap(bytes) => bytes,
        }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.expose().len()
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether both are the same key, in constant time.
    pub fn equals(&self, other: &Self) -> bool {
        mac::equal(self.expose(), other.expose())
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // A slot zeroes itself as it goes back to its page.
        if let Self::Heap(bytes) = self {
            bytes.zeroize();
            arena::count_heap_key(-1);
        }
    }
}

impl fmt::Debug for KeyMaterial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyMaterial(..)")
    }
}

/// A short-lived secret on the heap, zeroed when dropped.
///
/// ```compile_fail
/// fn serialisable<T: serde::Serialize>() {}
/// serialisable::<lastkey_crypto::SecretBytes>();
/// ```
///
/// ```compile_fail
/// fn cloneable<T: Clone>() {}
/// cloneable::<lastkey_crypto::SecretBytes>();
/// ```
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes over `bytes`, and zeroes them at the end.
    pub const fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The secret itself. Named so that every use stands out.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether both are the same bytes, in constant time.
    pub fn equals(&self, other: &Self) -> bool {
        mac::equal(&self.0, &other.0)
    }
}

impl Drop for SecretBytes {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl From<Vec<u8>> for SecretBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes)
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretBytes(..)")
    }
}

/// Forbids core dumps of this process, and debuggers without privilege.
///
/// Call it first thing in `main`. As a side effect `/proc/<pid>` then belongs to root, which
/// matters to nobody but tools that look into the process.
///
/// # Errors
///
/// What the operating system says; a server may warn and go on, since locked pages are kept out
/// of core dumps by other means too.
pub fn harden_process() -> std::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};

    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemEntropy;

    #[test]
    fn material_of_any_length_keeps_its_bytes() {
        for len in [0, 1, 16, 24, 32, 64, 65, 138, 512, 513, 4096] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let material = KeyMaterial::from_slice(&bytes);
            assert_eq!(material.expose(), bytes);
            assert_eq!(material.len(), len);
            assert_eq!(material.is_empty(), len == 0);
            assert!(material.equals(&KeyMaterial::from_slice(&bytes)));
        }
    }

    #[test]
    fn many_keys_do_not_overlap() {
        let keys: Vec<KeyMaterial> =
            (0..3000_u32).map(|i| KeyMaterial::from_slice(&i.to_be_bytes().repeat(16))).collect();
        for (i, key) in (0..3000_u32).zip(&keys) {
            assert_eq!(key.expose(), i.to_be_bytes().repeat(16));
        }
        assert!(stats().keys_in_slots >= 3000);
        assert!(stats().pages_mapped > 0);
    }

    #[test]
    fn a_slot_given_back_starts_as_zeros() {
        drop((0..200).map(|_| KeyMaterial::from_slice(&[0xff; 64])).collect::<Vec<_>>());
        for _ in 0..200 {
            KeyMaterial::build(64, |fresh| assert_eq!(fresh, [0; 64]));
        }
    }

    /// Other tests have a few of their own meanwhile.
    #[test]
    fn keys_on_the_heap_are_counted_as_long_as_they_live() {
        let keys: Vec<_> = (0..1000).map(|_| KeyMaterial::from_slice(&[1; 600])).collect();
        assert!((1000..1100).contains(&stats().keys_on_heap));
        assert!(!stats().is_locked());
        drop(keys);
        assert!(stats().keys_on_heap < 100);
    }

    /// Other tests have some thousands meanwhile.
    #[test]
    fn slots_are_counted_as_long_as_their_keys_live() {
        let keys: Vec<_> = (0..20_000).map(|_| KeyMaterial::from_slice(&[1; 64])).collect();
        assert!((20_000..30_000).contains(&stats().keys_in_slots));
        drop(keys);
        assert!(stats().keys_in_slots < 10_000);
    }

    #[test]
    fn memory_is_locked_unless_a_key_lies_elsewhere() {
        let none = Stats {
            pages_mapped: 3,
            pages_unlocked: 0,
            pages_unadvised: 0,
            keys_in_slots: 7,
            keys_on_heap: 0,
        };
        assert!(none.is_locked());
        assert!(!Stats { pages_unlocked: 1, ..none }.is_locked());
        assert!(!Stats { pages_unadvised: 1, ..none }.is_locked());
        assert!(!Stats { keys_on_heap: 1, ..none }.is_locked());
    }

    #[test]
    fn keys_move_between_threads() {
        let key = KeyMaterial::generate(32, &SystemEntropy);
        let copy = KeyMaterial::from_slice(key.expose());
        let back = std::thread::spawn(move || {
            assert!(key.equals(&copy));
            key
        });
        assert_eq!(back.join().unwrap().len(), 32);
    }

    #[test]
    fn threads_do_not_share_slots() {
        let churn = |seed: u8| {
            for round in 0..500_u16 {
                let mark = [[seed; 2], round.to_be_bytes()].concat().repeat(16);
                let keys: Vec<_> = (0..8).map(|_| KeyMaterial::from_slice(&mark)).collect();
                std::thread::yield_now();
                assert!(keys.iter().all(|key| key.expose() == mark));
            }
        };
        std::thread::scope(|scope| {
            (1..=4).for_each(|seed| drop(scope.spawn(move || churn(seed))));
        });
    }

    #[test]
    fn debug_prints_nothing_secret() {
        let text = format!("{:?}", KeyMaterial::from_slice(b"secretsecretsecr"));
        assert_eq!(text, "KeyMaterial(..)");
        let text = format!("{:#?}", SecretBytes::new(b"secretsecretsecr".to_vec()));
        assert_eq!(text, "SecretBytes(..)");
    }

    #[test]
    fn secrets_compare_by_content() {
        let a = SecretBytes::new(vec![1, 2, 3]);
        assert!(a.equals(&SecretBytes::new(vec![1, 2, 3])));
        assert!(!a.equals(&SecretBytes::new(vec![1, 2, 4])));
        assert!(!a.equals(&SecretBytes::new(vec![1, 2])));
        assert!(!a.is_empty() && SecretBytes::new(Vec::new()).is_empty());
        assert_eq!(a.len(), 3);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_hardened_process_is_not_dumpable() {
        harden_process().unwrap();
        let dumpable = rustix::process::dumpable_behavior().unwrap();
        assert_eq!(dumpable, rustix::process::DumpableBehavior::NotDumpable);
        assert_eq!(rustix::process::getrlimit(rustix::process::Resource::Core).current, Some(0));
    }

    /// What runs over from elsewhere ends at a page that nobody may touch.
    #[test]
    #[cfg(target_os = "linux")]
    fn pages_with_keys_lie_between_guards() {
        const GROUP: usize = 64 << 10;
        let key = KeyMaterial::generate(32, &SystemEntropy);
        let address = key.expose().as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let parse = |line: &str| {
            let (range, rest) = line.split_once(' ')?;
            let (from, to) = range.split_once('-')?;
            let number = |text| usize::from_str_radix(text, 16).ok();
            Some((number(from)?..number(to)?, rest.get(..4)?.to_owned()))
        };
        let maps: Vec<_> = maps.lines().filter_map(parse).collect();
        let at = maps.iter().position(|(range, _)| range.contains(&address)).unwrap();
        let [(before, none), (group, open), (behind, nothing)] = &maps[at - 1..=at + 1] else {
            panic!("nothing on one side");
        };
        assert_eq!((&**none, &**open, &**nothing), ("---p", "rw-p", "---p"));
        assert_eq!((before.end, behind.start), (group.start, group.end));
        assert_eq!(group.len(), GROUP);
        assert!(before.len() >= GROUP && behind.len() >= GROUP);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn pages_with_keys_are_locked_undumpable_and_not_inherited() {
        let key = KeyMaterial::generate(32, &SystemEntropy);
        let address = key.expose().as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            if let Some((range, _)) = line.split_once(' ')
                && let Some((from, to)) = range.split_once('-')
                && let (Ok(from), Ok(to)) =
                    (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
            {
                inside = (from..to).contains(&address);
            }
            if inside && let Some(flags) = line.strip_prefix("VmFlags:") {
                let flags: Vec<&str> = flags.split_whitespace().collect();
                assert!(flags.contains(&"dd"), "dumpable: {flags:?}");
                assert!(flags.contains(&"dc"), "inherited by fork: {flags:?}");
                let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
                if limit.current.is_none_or(|bytes| bytes >= 8 << 20) {
                    assert!(flags.contains(&"lo"), "in reach of swap: {flags:?}");
                    assert_eq!(stats().pages_unlocked, 0);
                }
                assert_eq!(stats().pages_unadvised, 0);
                return;
            }
        }
        panic!("the key's page is not in smaps");
    }
}
