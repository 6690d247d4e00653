//! What was opened, in locked memory: bounded, least recently used first out, zeroed on its way
//! out.
//!
//! Keyed by a hash of the whole request, so that an answer is only ever given to the question it
//! was the answer to. It knows no time and asks nobody: whether an entry may be used at all is
//! decided by whoever looks ([`super::Memory`]).

use std::collections::{BTreeMap, HashMap};

use lastkey_crypto::{KeyMaterial, Lineage, SecretBytes, memory::MAX_LOCKED_LEN};

/// SHA-256 of a request.
pub(super) type Digest = [u8; 32];

/// The most bytes of locked memory: an apiserver's seeds take 64 each.
const MAX_BYTES: usize = 4 << 20;
/// What one entry takes of it, by its length: locked memory is dealt out in slots of two sizes.
const SMALL_SLOT: usize = 64;

/// Names the present state of trust; what was asked for in an earlier one is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::plugin) struct Ticket(u64);

/// What was opened.
pub(super) struct Cache {
    entries: HashMap<Digest, Entry>,
    /// The digests in the order of their last use.
    order: BTreeMap<u64, Digest>,
    uses: u64,
    bytes: usize,
    max_entries: usize,
    trust: u64,
}

struct Entry {
    lineage: Lineage,
    plaintext: KeyMaterial,
    used: u64,
}

impl Cache {
    pub(super) fn new(max_entries: usize) -> Self {
        let (entries, order) = (HashMap::new(), BTreeMap::new());
        Self { entries, order, uses: 0, bytes: 0, max_entries, trust: 0 }
    }

    /// To be taken before the server is asked, and shown to [`put`](Self::put).
    pub(super) fn ticket(&self) -> Ticket {
        Ticket(self.trust)
    }

    /// What the request was answered with before.
    pub(super) fn get(&mut self, digest: &Digest) -> Option<SecretBytes> {
        let entry = self.entries.get_mut(digest)?;
        self.order.remove(&entry.used);
        self.uses += 1;
        entry.used = self.uses;
        self.order.insert(self.uses, *digest);
        Some(SecretBytes::new(entry.plaintext.expose().to_vec()))
    }

    /// Keeps what the server answered, unless trust was lost since the ticket was taken, or it is
    /// too long to be locked.
    pub(super) fn put(&mut self, ticket: Ticket, digest: Digest, opened: (Lineage, &[u8])) {
        let (lineage, plaintext) = opened;
        let fits = plaintext.len() <= MAX_LOCKED_LEN && self.max_entries > 0;
        if ticket != self.ticket() || !fits {
            return;
        }
        self.drop_one(&digest);
        let needed = slot(plaintext.len());
        while self.entries.len() >= self.max_entries || self.bytes + needed > MAX_BYTES {
            let Some((_, oldest)) = self.order.first_key_value() else { break };
            let oldest = *oldest;
            self.drop_one(&oldest);
        }
        self.uses += 1;
        self.bytes += needed;
        self.order.insert(self.uses, digest);
        let plaintext = KeyMaterial::from_slice(plaintext);
        self.entries.insert(digest, Entry { lineage, plaintext, used: self.uses });
    }

    /// Drops everything of keys that `keep` does not name, and whatever is under way. Answers how
    /// many entries went.
    pub(super) fn retain(&mut self, keep: impl Fn(&Lineage) -> bool) -> usize {
        self.trust += 1;
        let gone = |(digest, entry): (&Digest, &Entry)| (!keep(&entry.lineage)).then_some(*digest);
        let gone: Vec<Digest> = self.entries.iter().filter_map(gone).collect();
        gone.iter().for_each(|digest| self.drop_one(digest));
        gone.len()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    fn drop_one(&mut self, digest: &Digest) {
        if let Some(entry) = self.entries.remove(digest) {
            self.order.remove(&entry.used);
            self.bytes -= slot(entry.plaintext.len());
        }
    }
}

fn slot(len: usize) -> usize {
    if len <= SMALL_SLOT { SMALL_SLOT } else { MAX_LOCKED_LEN }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Lineage = Lineage::from_bytes([1; 16]);
    const TWO: Lineage = Lineage::from_bytes([2; 16]);

    fn digest(number: usize) -> Digest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        digest
    }

    fn put(cache: &mut Cache, number: usize, lineage: Lineage, plaintext: &[u8]) {
        cache.put(cache.ticket(), digest(number), (lineage, plaintext));
    }

    fn get(cache: &mut Cache, number: usize) -> Option<Vec<u8>> {
        cache.get(&digest(number)).map(|opened| opened.expose().to_vec())
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut cache = Cache::new(3);
        for number in 0..3 {
            put(&mut cache, number, ONE, &[number as u8; 32]);
        }
        assert_eq!(get(&mut cache, 0), Some(vec![0; 32]));
        put(&mut cache, 3, ONE, &[3; 32]);
        assert_eq!((get(&mut cache, 1), cache.len()), (None, 3));
        for number in [0, 2, 3] {
            assert_eq!(get(&mut cache, number), Some(vec![number as u8; 32]), "{number}");
        }
    }

    #[test]
    fn bytes_are_bounded_too() {
        let mut cache = Cache::new(usize::MAX);
        let room = MAX_BYTES / MAX_LOCKED_LEN;
        for number in 0..room + 10 {
            put(&mut cache, number, ONE, &[7; 65]);
        }
        assert_eq!((cache.len(), cache.bytes), (room, MAX_BYTES));
        assert_eq!(get(&mut cache, 9), None);
        assert!(get(&mut cache, 10).is_some());
        cache.retain(|_| false);
        assert_eq!((cache.len(), cache.bytes, cache.order.len()), (0, 0, 0));
    }

    #[test]
    fn what_cannot_be_locked_is_not_kept() {
        let mut cache = Cache::new(3);
        put(&mut cache, 0, ONE, &[1; MAX_LOCKED_LEN + 1]);
        assert_eq!(cache.len(), 0);
        put(&mut cache, 0, ONE, &[1; MAX_LOCKED_LEN]);
        assert_eq!(cache.len(), 1);
        assert_eq!(Cache::new(0).len(), 0);
    }

    #[test]
    fn an_answer_to_an_earlier_question_is_not_kept_once_trust_is_lost() {
        let mut cache = Cache::new(3);
        let before = cache.ticket();
        cache.retain(|_| false);
        cache.put(before, digest(1), (ONE, &[1]));
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn a_key_goes_with_all_that_was_its() {
        let mut cache = Cache::new(10);
        put(&mut cache, 1, ONE, &[1]);
        put(&mut cache, 2, TWO, &[2]);
        put(&mut cache, 3, ONE, &[3]);
        assert_eq!(cache.retain(|lineage| *lineage == TWO), 2);
        assert_eq!((get(&mut cache, 1), get(&mut cache, 2)), (None, Some(vec![2])));
        put(&mut cache, 2, TWO, &[4]);
        assert_eq!((get(&mut cache, 2), cache.len()), (Some(vec![4]), 1));
    }
}
