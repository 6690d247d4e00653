//! Drills: what would happen, tried on scratch processes instead of a cluster in use.
//!
//! - [`restore`]: a snapshot of etcd and a backup of Lastkey's state are brought up together, and
//!   every object is read. What cannot be read is named, with the key version that is missing.
//! - [`outage`]: an installation of its own is made to fail in the ways that installations do, while
//!   somebody writes and reads all the time.
//!
//! Everything runs on the loopback, below one scratch directory that nobody else may enter
//! ([`Scratch`]); every process dies with us ([`Child`]), also when we are killed, and the directory
//! goes then, too ([`sweep`]). What was given is never changed: the backup is copied, the snapshot is
//! only read. Nothing outside is reached: the server on the copy knows clusters that are in use, and
//! is told to leave them alone.
//!
//! This room starts programs that somebody else wrote (`etcd`, `etcdutl`, `kube-apiserver`) and the
//! `lastkey` binary, as whoever restores a cluster would. It trusts them to do what they say, and
//! reads what they answer through [`lastkey_kubernetes::cluster`].

mod apiserver;
mod child;
mod copy;
mod error;
mod etcd;
#[doc(hidden)]
pub mod fuzzing;
pub mod html;
mod lastkey;
mod local_keys;
mod objects;
pub mod outage;
mod pki;
mod programs;
pub mod report;
pub mod restore;
mod scratch;
mod state;

pub use child::{Child, become_program};
pub use error::DrillError;
pub use local_keys::LocalProviders;
pub use programs::{Given, Programs};
pub use scratch::{Scratch, sweep};

use std::time::Duration;

use serde_json::Value;
use zeroize::Zeroizing;

/// Who watches a drill.
pub trait Operator {
    /// What it does now.
    fn tell(&mut self, event: &Event);

    /// One share of the backup's seal, asked of a person; `status` is the server's own.
    ///
    /// # Errors
    /// When there is none to be had.
    fn share(&mut self, status: &Value) -> Result<Zeroizing<String>, String>;

    /// A share was not taken; whether to ask for another one.
    fn share_refused(&mut self, why: &str) -> bool;
}

/// How far a drill is.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// It begins with something.
    Step(String),
    /// It has done so much of the step's work.
    Progress {
        /// How much.
        done: u64,
        /// Of how much.
        total: u64,
    },
    /// It is so far into something that takes its time.
    Elapsed {
        /// How long it has gone on.
        elapsed: Duration,
        /// How long it will.
        total: Duration,
    },
    /// What outages are about to be played.
    Plan {
        /// How many.
        outages: usize,
        /// How long all of it takes if it goes as expected.
        about: Duration,
        /// The longest that is waited for.
        at_most: Duration,
    },
}

/// How many objects of a report are named one by one.
pub const NAMED: usize = 10_000;
