//! Accesses that fail.

use std::io::{self, ErrorKind};

use crate::Random;

/// What an access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reads.
    Read,
    /// Writes, reserves, changes the length.
    Write,
    /// Makes durable.
    Sync,
}

/// Which accesses fail, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    /// In files whose name begins so; all of them if it is empty.
    pub file: String,
    /// Which kind.
    pub kind: Kind,
    /// With which error.
    pub error: ErrorKind,
    /// How many succeed before.
    pub after: usize,
    /// How many fail then.
    pub times: usize,
    /// Where chances come from.
    pub random: Random,
}

impl Fault {
    /// The error as a system gives it, with its number: that is how what reads through a decoder
    /// tells a disk that refuses from a file that was changed.
    pub fn error(&self) -> io::Error {
        match self.error {
            ErrorKind::StorageFull => rustix::io::Errno::NOSPC.into(),
            _ => rustix::io::Errno::IO.into(),
        }
    }

    /// Whether this access fails.
    pub fn strikes(&mut self, name: &str, kind: Kind) -> bool {
        if kind != self.kind || !name.starts_with(&self.file) || self.times == 0 {
            return false;
        }
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        self.times -= 1;
        self.random.next();
        true
    }

    /// How much of a write is made before it fails.
    pub fn part(&self, whole: usize) -> usize {
        let mut random = self.random.clone();
        if random.percent(50) { 0 } else { random.below(whole) }
    }

    /// What a failed sync wrote all the same.
    pub fn coins(&self) -> Random {
        self.random.clone()
    }
}
