//! Tests on a simulated disk.

mod crash;
mod damage;
mod disk;
mod faults;

use std::hash::{BuildHasher, RandomState};

use super::{committer::open_database, schema};
use crate::OpenOptions;

/// A small cache, and no more checks than redb thinks necessary.
fn options() -> OpenOptions {
    OpenOptions { cache_bytes: 1 << 20, check: false, ..OpenOptions::default() }
}

/// The bytes of an empty store that was closed cleanly.
fn formatted() -> Vec<u8> {
    let disk = disk::Disk::default();
    let database = open_database(&disk, options()).unwrap();
    schema::create(&database).unwrap();
    database.close().unwrap();
    disk.durable()
}

/// SplitMix64: small, and the same everywhere for the same seed.
struct Random(u64);

impl Random {
    /// From `LASTKEY_STORE_SEED`, to repeat a run; another one each time without it.
    fn seed() -> u64 {
        let given = std::env::var("LASTKEY_STORE_SEED").ok().and_then(|seed| seed.parse().ok());
        given.unwrap_or_else(|| RandomState::new().hash_one(0))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }
}
