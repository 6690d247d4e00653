//! Which generations of the key were left for another one.
//!
//! An epoch is drawn at random with every change of what encrypts, so a server never names one again
//! that it has left. Whoever does has another memory than who named the one after it: a data directory
//! that was copied and is served twice, or that was put back to an earlier state unnoticed. To follow
//! it would write under versions that one of the two does not know.

use std::collections::VecDeque;

use lastkey_crypto::plugin_blob::PluginKey;

/// So many are remembered: years of rotations, and the oldest goes first.
const REMEMBERED: usize = 64;

/// The generations that were left, oldest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Left(VecDeque<PluginKey>);

impl Left {
    /// With one more.
    pub(super) fn and(&self, key: PluginKey) -> Self {
        let newest = self.0.iter().skip((self.0.len() + 1).saturating_sub(REMEMBERED));
        Self(newest.copied().chain([key]).collect())
    }

    /// Whether it was left.
    pub(super) fn has(&self, key: &PluginKey) -> bool {
        self.0.contains(key)
    }
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::{ClusterId, Epoch, KeyVersionId, Lineage};

    use super::*;

    fn key(epoch: u8) -> PluginKey {
        PluginKey {
            lineage: Lineage::from_bytes([1; 16]),
            cluster: ClusterId::from_bytes([2; 16]),
            key_version: KeyVersionId::from_bytes([3; 16]),
            epoch: Epoch::from_bytes([epoch; 16]),
        }
    }

    #[test]
    fn the_newest_are_remembered() {
        let none = Left::default();
        assert!(!none.has(&key(0)));
        let all = (0..=64).fold(none, |left, epoch| left.and(key(epoch)));
        assert!(!all.has(&key(0)) && !all.has(&key(65)));
        assert!((1..=64).all(|epoch| all.has(&key(epoch))));
        assert_eq!(all.0.len(), REMEMBERED);
    }
}
