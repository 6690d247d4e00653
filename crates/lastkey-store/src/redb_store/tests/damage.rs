//! Bytes that rot while the store is closed: never a panic, never other content.

use std::path::Path;

use super::{
    super::{OpenError, OpenOptions, RedbStore},
    Random,
    disk::Disk,
    formatted, options,
};
use crate::{Entry, Store, Transaction};

fn open(image: Vec<u8>) -> Result<RedbStore, OpenError> {
    let checked = OpenOptions { check: true, ..options() };
    RedbStore::on(Disk::of(image), Path::new("simulated"), checked)
}

fn filled() -> (Vec<u8>, Vec<Entry>) {
    let disk = Disk::of(formatted());
    let store = RedbStore::on(disk.clone(), Path::new("simulated"), options()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let entries = runtime.block_on(async {
        for i in 0..200u32 {
            let change =
                Transaction::new().put(format!("p/{i:03}"), vec![u8::try_from(i).unwrap(); 700]);
            store.commit(change).await.unwrap();
        }
        store.list("", None, usize::MAX).await.unwrap()
    });
    drop(store);
    (disk.durable(), entries)
}

#[test]
fn damage_is_found_when_the_store_is_opened() {
    let seed = Random::seed();
    println!("LASTKEY_STORE_SEED={seed}");
    let mut random = Random(seed);
    let (sound, entries) = filled();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut found = 0;
    for _ in 0..300 {
        let mut image = sound.clone();
        let at = random.below(image.len());
        image[at] ^= 1 << random.below(8);
        match open(image) {
            // The byte belongs to nothing, or to a copy that redb keeps of something.
            Ok(store) => {
                let listed = runtime.block_on(store.list("", None, usize::MAX)).unwrap();
                assert_eq!(listed, entries, "seed {seed}, byte {at}");
            }
            Err(OpenError::Corrupt { .. }) => found += 1,
            Err(other) => panic!("seed {seed}, byte {at}: {other}"),
        }
    }
    println!("{found} of 300 damages were in use and found");
    assert!(found > 0);
}

/// A file that is too large to be checked may have rotted: whoever reads it finds that out without
/// a panic, or reads something else, which is for the sealed heads above to notice.
#[test]
fn damage_in_an_unchecked_file_panics_nobody() {
    let seed = Random::seed();
    println!("LASTKEY_STORE_SEED={seed}");
    let mut random = Random(seed);
    let (sound, entries) = filled();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (mut found, mut other) = (0, 0);
    for _ in 0..300 {
        let mut image = sound.clone();
        let at = random.below(image.len());
        image[at] ^= 1 << random.below(8);
        let unchecked = OpenOptions { check: true, check_at_most: 0, ..options() };
        let opened = RedbStore::on(Disk::of(image), Path::new("simulated"), unchecked);
        let Ok(store) = opened else {
            found += 1;
            continue;
        };
        runtime.block_on(async {
            match store.list("", None, usize::MAX).await {
                Ok(listed) => other += usize::from(listed != entries),
                Err(_) => found += 1,
            }
            for entry in &entries {
                let _ = store.get(&entry.path).await;
            }
        });
    }
    println!("{found} of 300 damages were found, {other} changed what was read");
}
