//! An answer's bytes on their way out, and what they hold until they have gone.
//!
//! Over HTTP/2 the library keeps an answer for as long as its peer does not take it, long after the
//! request was worked on. Only the bytes themselves know when they have gone.

use bytes::{Buf, Bytes};

use super::pulse::Owed;
use crate::room::Begun;

/// The bytes of an answer.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Bytes,
    hold: Option<Hold>,
}

/// What an answer holds until it was taken.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) owed: Owed,
    /// Its place among all that were not taken.
    pub(crate) _begun: Begun,
}

impl Piece {
    pub(crate) fn new(bytes: Bytes, hold: Option<Hold>) -> Self {
        Self { bytes, hold }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if self.bytes.is_empty() {
            // Now, for the library may keep what is empty until it has something else to send.
            *self = Self::new(Bytes::new(), None);
        } else if let Some(hold) = &mut self.hold {
            hold.owed.took(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        limits::Limits,
        listener::pulse::{Phase, Pulse},
        room::Admission,
    };

    #[test]
    fn what_has_gone_holds_nothing() {
        let pulse = Arc::new(Pulse::new(Phase::Open));
        let admission = Admission::new(&Limits::default());
        let hold = Hold { owed: pulse.owe(100), _begun: admission.begin(0).unwrap() };
        let mut piece = Piece::new(Bytes::from_static(b"an answer"), Some(hold));
        piece.advance(8);
        assert_eq!((piece.chunk(), pulse.owed(), admission.under_way()), (&b"r"[..], 1, 1));
        piece.advance(1);
        assert_eq!((piece.remaining(), pulse.owed(), admission.under_way()), (0, 0, 0));
    }
}
