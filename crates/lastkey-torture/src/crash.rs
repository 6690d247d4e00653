//! What a crash leaves.
//!
//! A killed process leaves the page cache as it is. A power cut leaves what was synced, and any
//! part of what was not: each file and each directory by itself, so that a later write to one may
//! survive an earlier one to another.

use std::collections::BTreeMap;

use crate::{
    Random,
    disk::{Change, Directory, Inode, NameChange, SimDisk},
    image::{Image, PAGE, SECTOR},
};

/// How the machine stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// `kill -9`: all that was written stays, and is still not durable.
    Kill,
    /// Power cut.
    PowerCut(Loss),
}

/// What becomes of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is lost.
    All,
    /// Nothing is.
    Nothing,
    /// Each file has its own fate: any of the others.
    Mixed,
    /// What was written first survives, up to some point.
    Prefix,
    /// Each write survives or does not.
    Subset,
    /// The same, in parts: sectors, pages, or a beginning.
    Torn,
}

impl Crash {
    /// Any of them.
    pub fn any(random: &mut Random) -> Self {
        match random.below(10) {
            0 | 1 => Self::Kill,
            2 => Self::PowerCut(Loss::All),
            3 => Self::PowerCut(Loss::Nothing),
            4 => Self::PowerCut(Loss::Prefix),
            5 => Self::PowerCut(Loss::Subset),
            6 => Self::PowerCut(Loss::Torn),
            _ => Self::PowerCut(Loss::Mixed),
        }
    }

    /// Leaves on the disk what survives.
    pub fn strike(self, disk: &SimDisk, random: &mut Random) {
        disk.with(|state| {
            state.files.iter_mut().for_each(Inode::unlock);
            let Self::PowerCut(loss) = self else { return };
            for inode in &mut state.files {
                let loss = loss.of_one(random);
                inode.survive(|image, pending| loss.of_file(image, pending, random));
            }
            for directory in state.directories.values_mut() {
                let loss = loss.of_one(random);
                directory.survive(|names, pending| loss.of_names(names, pending, random));
            }
        });
    }
}

impl Loss {
    fn of_one(self, random: &mut Random) -> Self {
        match (self, random.below(5)) {
            (Self::Mixed, 0) => Self::All,
            (Self::Mixed, 1) => Self::Nothing,
            (Self::Mixed, 2) => Self::Prefix,
            (Self::Mixed, 3) => Self::Subset,
            (Self::Mixed, _) => Self::Torn,
            (other, _) => other,
        }
    }

    fn of_file(self, image: &mut Image, pending: &[Change], random: &mut Random) {
        let prefix = random.below(pending.len() + 1);
        for (number, change) in pending.iter().enumerate() {
            match self {
                Self::All => {}
                Self::Nothing | Self::Mixed => change.apply(image),
                Self::Prefix if number < prefix => change.apply(image),
                // The one at the edge.
                Self::Prefix if number == prefix && random.percent(50) => {
                    tear(change, image, random)
                }
                Self::Prefix => {}
                Self::Subset if random.percent(50) => change.apply(image),
                Self::Subset => {}
                Self::Torn => match random.below(3) {
                    0 => {}
                    1 => change.apply(image),
                    _ => tear(change, image, random),
                },
            }
        }
    }

    fn of_names(
        self,
        names: &mut BTreeMap<std::ffi::OsString, usize>,
        pending: &[NameChange],
        random: &mut Random,
    ) {
        let prefix = match self {
            Self::All => 0,
            Self::Nothing | Self::Mixed => pending.len(),
            Self::Prefix | Self::Subset | Self::Torn => random.below(pending.len() + 1),
        };
        // File systems keep the order of these, mostly; not all, and not always.
        let any = matches!(self, Self::Subset | Self::Torn) && random.percent(50);
        for (number, change) in pending.iter().enumerate() {
            if if any { random.percent(50) } else { number < prefix } {
                change.apply(names);
            }
        }
    }
}

/// A part of a write.
fn tear(change: &Change, image: &mut Image, random: &mut Random) {
    let Change::Write { at, bytes } = change else { return change.apply(image) };
    let unit = match random.below(4) {
        // The length arrived, the bytes did not.
        0 => {
            let end = at + random.below(bytes.len() + 1);
            return image.set_len(image.len().max(end));
        }
        1 => return image.write(&bytes[..random.below(bytes.len() + 1)], *at),
        2 => SECTOR,
        _ => PAGE,
    };
    // Units of the disk, not of the write.
    let mut start = 0;
    while start < bytes.len() {
        let end = ((at + start) / unit + 1) * unit - at;
        let end = end.min(bytes.len());
        if random.percent(50) {
            image.write(&bytes[start..end], at + start);
        }
        start = end;
    }
}

impl Inode {
    fn survive(&mut self, lose: impl FnOnce(&mut Image, &[Change])) {
        let pending = std::mem::take(&mut self.pending);
        lose(&mut self.durable, &pending);
        self.content = self.durable.clone();
    }
}

impl Directory {
    fn survive(
        &mut self,
        lose: impl FnOnce(&mut BTreeMap<std::ffi::OsString, usize>, &[NameChange]),
    ) {
        let pending = std::mem::take(&mut self.pending);
        lose(&mut self.durable, &pending);
        self.names = self.durable.clone();
    }
}
