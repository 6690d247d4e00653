//! Shares that were entered and wait for more.

use lastkey_crypto::{
    KeyMaterial,
    share::{Share, ShareError, combine},
};
use serde::Serialize;

use super::{RootPrint, ShamirEntry};

/// Why a share was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no share, or mistyped.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// It belongs to another installation, or to a set that was replaced.
    // Ours is not named: who knows it could make shares that fit.
    #[error(
        "this is a share of set {found}, which is not this server's: it belongs to another \
         installation, or to a set that was replaced"
    )]
    OtherSet {
        /// The share's.
        found: String,
    },
    /// It is of another generation.
    #[error(
        "this is a share of generation {found}, but this server takes generation {expected}: the \
         shares were made anew since"
    )]
    OtherGeneration {
        /// The share's.
        found: u16,
        /// Ours.
        expected: String,
    },
    /// Its fields are not those of the set.
    #[error("this share does not fit its set; it was not made by this server")]
    Unfit,
    /// It was entered before.
    #[error("share {index} was entered already; another one is needed")]
    Duplicate {
        /// Which.
        index: u8,
    },
    /// Enough shares, but what they give opens nothing.
    #[error(
        "the shares do not give the key: at least one of them is not genuine; all were dropped, \
         begin again"
    )]
    DoNotCombine,
}

/// How far a gathering is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Threshold {
    /// Shares entered.
    pub entered: u8,
    /// Shares it takes.
    pub threshold: u8,
}

/// What enough shares give.
pub(crate) struct Given {
    /// What the shares give; wraps the root key.
    pub(crate) unseal_key: KeyMaterial,
    pub(crate) root: KeyMaterial,
    /// Which set it was.
    pub(crate) entry: ShamirEntry,
}

/// Shares in locked memory. They are dropped with this, and as soon as they gave their key.
#[derive(Default)]
pub(crate) struct Gathering {
    shares: Vec<Share>,
}

impl Gathering {
    /// Takes one more share for one of these sets; `Some` once it was enough.
    ///
    /// # Errors
    /// [`Refused`]. All shares are dropped with [`Refused::DoNotCombine`], and with no other.
    pub(crate) fn enter(
        &mut self,
        share: Share,
        (sets, print): (&[ShamirEntry], Option<RootPrint>),
    ) -> Result<Option<Given>, Refused> {
        let head = share.head();
        let entry = set_of(&share, sets)?;
        let of_set = |other: &Share| {
            other.head().set == head.set && other.head().generation == head.generation
        };
        if self.shares.iter().any(|known| of_set(known) && known.head().index == head.index) {
            return Err(Refused::Duplicate { index: head.index });
        }
        self.shares.push(share);
        let together = self.shares.iter().filter(|share| of_set(share)).count();
        if together < usize::from(entry.threshold) {
            return Ok(None);
        }
        // Whatever comes of it, no share outlives this.
        let mut shares = std::mem::take(&mut self.shares);
        shares.retain(of_set);
        let unseal_key = combine(&shares).ok_or(Refused::DoNotCombine)?;
        drop(shares);
        let root = entry.unwrap(&unseal_key).map_err(|_| Refused::DoNotCombine)?;
        if print.is_some_and(|print| print != RootPrint::of(&root)) {
            return Err(Refused::DoNotCombine);
        }
        Ok(Some(Given { unseal_key, root, entry: entry.clone() }))
    }

    /// How many shares wait here.
    pub(crate) fn held(&self) -> usize {
        self.shares.len()
    }

    /// How far it is, for the set that is furthest.
    pub(crate) fn progress(&self, sets: &[ShamirEntry]) -> Threshold {
        let count = |entry: &ShamirEntry| {
            let of = |share: &&Share| {
                entry.is_of(share.head().set) && entry.generation == share.head().generation
            };
            let entered = self.shares.iter().filter(of).count();
            let entered = u8::try_from(entered).unwrap_or(u8::MAX);
            Threshold { entered, threshold: entry.threshold }
        };
        sets.iter()
            .map(count)
            // The one that lacks fewest; the first, if they are alike.
            .reduce(|a, b| if missing(b) < missing(a) && b.entered > 0 { b } else { a })
            .unwrap_or(Threshold { entered: 0, threshold: 0 })
    }
}

fn missing(progress: Threshold) -> u8 {
    progress.threshold.saturating_sub(progress.entered)
}

/// The set that a share is of.
fn set_of<'a>(share: &Share, sets: &'a [ShamirEntry]) -> Result<&'a ShamirEntry, Refused> {
    let head = share.head();
    let generations = || {
        let all = sets.iter().map(|entry| entry.generation.to_string());
        all.collect::<Vec<_>>().join(" or ")
    };
    if !sets.iter().any(|entry| entry.is_of(head.set)) {
        return Err(Refused::OtherSet { found: head.set.to_string() });
    }
    let found = sets
        .iter()
        .find(|entry| entry.is_of(head.set) && entry.generation == head.generation)
        .ok_or_else(|| Refused::OtherGeneration {
            found: head.generation,
            expected: generations(),
        })?;
    if head.threshold != found.threshold || head.index > found.shares {
        return Err(Refused::Unfit);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::{
        SystemEntropy,
        share::{KEY_LEN, SetId, Splitting, split},
    };

    use super::*;

    struct Set {
        entry: ShamirEntry,
        texts: Vec<String>,
        root: KeyMaterial,
    }

    fn made(set: SetId, generation: u16, (shares, threshold): (u8, u8)) -> Set {
        let splitting = Splitting { set, generation, shares, threshold };
        let key = KeyMaterial::generate(KEY_LEN, &SystemEntropy);
        let root = KeyMaterial::generate(32, &SystemEntropy);
        let texts = split(&key, splitting, &SystemEntropy).unwrap();
        let texts = texts.iter().map(|share| share.to_text().to_string()).collect();
        let entry = ShamirEntry::wrap(splitting, &key, &root, &SystemEntropy);
        Set { entry, texts, root }
    }

    fn enter(
        gathering: &mut Gathering,
        text: &str,
        sets: &[ShamirEntry],
    ) -> Result<Option<Given>, Refused> {
        gathering.enter(Share::parse(text)?, (sets, None))
    }

    #[test]
    fn enough_shares_give_the_root_key_and_none_is_kept() {
        let set = made(SetId::random(&SystemEntropy), 1, (5, 3));
        let sets = [set.entry.clone()];
        let mut gathering = Gathering::default();
        assert!(enter(&mut gathering, &set.texts[4], &sets).unwrap().is_none());
        assert!(enter(&mut gathering, &set.texts[0], &sets).unwrap().is_none());
        assert_eq!(gathering.progress(&sets), Threshold { entered: 2, threshold: 3 });
        let twice = enter(&mut gathering, &set.texts[0], &sets).err().unwrap();
        assert_eq!(twice, Refused::Duplicate { index: 1 });
        assert_eq!(gathering.progress(&sets).entered, 2);
        let given = enter(&mut gathering, &set.texts[2], &sets).unwrap().unwrap();
        assert!(given.root.equals(&set.root));
        assert!(gathering.shares.is_empty());
    }

    #[test]
    fn shares_of_others_are_named_and_lose_nothing() {
        let id = SetId::random(&SystemEntropy);
        let (set, later) = (made(id, 1, (3, 2)), made(id, 2, (3, 2)));
        let other = made(SetId::random(&SystemEntropy), 1, (3, 2));
        let sets = [set.entry.clone()];
        let mut gathering = Gathering::default();
        assert!(enter(&mut gathering, &set.texts[0], &sets).unwrap().is_none());
        let refused =
            |gathering: &mut Gathering, text: &str| enter(gathering, text, &sets).err().unwrap();
        assert!(matches!(refused(&mut gathering, &other.texts[1]), Refused::OtherSet { .. }));
        assert!(matches!(
            refused(&mut gathering, &later.texts[1]),
            Refused::OtherGeneration { found: 2, .. }
        ));
        let mistyped = set.texts[1].replace(&set.texts[1][90..], "0000");
        assert_eq!(refused(&mut gathering, &mistyped), Refused::Share(ShareError::Mistyped));
        assert_eq!(gathering.progress(&sets).entered, 1);
        assert!(enter(&mut gathering, &set.texts[1], &sets).unwrap().is_some());
    }

    #[test]
    fn forged_shares_are_found_out_and_everything_begins_again() {
        let id = SetId::random(&SystemEntropy);
        let (set, forged) = (made(id, 1, (3, 2)), made(id, 1, (3, 2)));
        let sets = [set.entry.clone()];
        let mut gathering = Gathering::default();
        assert!(enter(&mut gathering, &set.texts[0], &sets).unwrap().is_none());
        let refused = enter(&mut gathering, &forged.texts[1], &sets).err().unwrap();
        assert_eq!(refused, Refused::DoNotCombine);
        assert_eq!(gathering.progress(&sets).entered, 0);
    }

    #[test]
    fn two_generations_are_gathered_side_by_side() {
        let id = SetId::random(&SystemEntropy);
        let (old, new) = (made(id, 1, (3, 2)), made(id, 2, (4, 3)));
        let sets = [old.entry.clone(), new.entry.clone()];
        let mut gathering = Gathering::default();
        assert!(enter(&mut gathering, &new.texts[0], &sets).unwrap().is_none());
        assert!(enter(&mut gathering, &old.texts[0], &sets).unwrap().is_none());
        assert_eq!(gathering.progress(&sets), Threshold { entered: 1, threshold: 2 });
        assert!(enter(&mut gathering, &new.texts[1], &sets).unwrap().is_none());
        let given = enter(&mut gathering, &new.texts[2], &sets).unwrap().unwrap();
        assert_eq!(given.entry.generation, 2);
        assert!(given.root.equals(&new.root));
    }
}
