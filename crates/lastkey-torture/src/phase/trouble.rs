//! What fails for a while.

use std::io::ErrorKind;

use crate::{
    Random,
    disk::SimDisk,
    fault::{Fault, Kind},
};

/// What kind of failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The disk is full but for so many pages.
    Full(usize),
    /// Accesses fail.
    Failing {
        /// Of files whose name begins so.
        file: &'static str,
        /// Which.
        kind: Kind,
        /// How.
        error: ErrorKind,
        /// How many work before.
        after: usize,
        /// How many fail.
        times: usize,
    },
}

/// A failure that begins with one command and ends with another.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// What.
    pub what: What,
    /// It begins before this command.
    pub begins: usize,
    /// It ends before that one.
    pub ends: usize,
}

impl Trouble {
    /// Any, within so many commands.
    pub fn any(random: &mut Random, commands: usize) -> Self {
        let begins = random.below(commands);
        let ends = begins + 1 + random.below(40);
        let what = if random.percent(40) {
            What::Full(random.below(30))
        } else {
            let files = ["", "store", "journal", "segment"];
            let kind = if random.percent(50) { Kind::Sync } else { Kind::Write };
            let kind = if random.percent(10) { Kind::Read } else { kind };
            let full = kind != Kind::Read && random.percent(20);
            What::Failing {
                file: files[random.below(files.len())],
                kind,
                error: if full { ErrorKind::StorageFull } else { ErrorKind::Other },
                after: random.below(20),
                times: [1, 1, 2, 5, usize::MAX][random.below(5)],
            }
        };
        Self { what, begins, ends }
    }

    /// Whether it is a disk without room, and nothing worse.
    pub fn is_full(&self) -> bool {
        matches!(self.what, What::Full(_))
    }

    /// Begins it.
    pub fn begin(&self, disk: &SimDisk, random: &mut Random) {
        match &self.what {
            What::Full(pages) => disk.leave_room(Some(*pages)),
            What::Failing { file, kind, error, after, times } => {
                let fault = Fault {
                    file: (*file).to_owned(),
                    kind: *kind,
                    error: *error,
                    after: *after,
                    times: *times,
                    random: Random::new(random.next()),
                };
                disk.with(|state| state.faults.push(fault));
            }
        }
    }

    /// Ends all there is.
    pub fn end(disk: &SimDisk) {
        disk.leave_room(None);
        disk.with(|state| state.faults.clear());
    }
}
