//! Where random bytes come from.
//!
//! Salts, IVs, keys, epochs and identifiers all draw from an [`Entropy`] value, so that a test
//! can repeat a sealing byte for byte. Outside tests the value is [`SystemEntropy`].

/// A source of random bytes that never fails.
///
/// There is nothing sensible to do without randomness, so a source that cannot deliver ends the
/// process instead of returning an error that some caller might ignore.
pub trait Entropy: Send + Sync {
    /// Fills the whole of `out`.
    fn fill(&self, out: &mut [u8]);
}

/// AWS-LC's generator, which reseeds itself from the operating system.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemEntropy;

impl SystemEntropy {
    /// Seeds the generator now.
    ///
    /// The first call in a process takes about 30 ms; call this before reporting ready, so that
    /// no request pays for it.
    pub fn warm(&self) {
        self.fill(&mut [0; 1]);
    }
}

impl Entropy for SystemEntropy {
    fn fill(&self, out: &mut [u8]) {
        if aws_lc_rs::rand::fill(out).is_err() {
            no_randomness();
        }
    }
}

#[cold]
#[expect(clippy::print_stderr, reason = "the process ends here; no log can be trusted to flush")]
fn no_randomness() -> ! {
    eprintln!(
        "lastkey: the operating system's random source failed; \
         stopping, because no key can be made safely without it"
    );
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_entropy_fills_everything() {
        let (mut a, mut b) = ([0; 64], [0; 64]);
        SystemEntropy.warm();
        SystemEntropy.fill(&mut a);
        SystemEntropy.fill(&mut b);
        assert_ne!(a, b);
        assert!(a.iter().any(|byte| *byte != 0));
    }
}
