//! Crashes store and audit log at chosen moments, and holds what is left against what was
//! acknowledged.
//!
//! A [`World`] is a simulated disk, a clock and a root key. On it runs the real engine with the
//! real store and the real audit log; callers drawn from a seed give it commands, and a
//! [`Model`](model::Model) knows what each of them was told. At a moment drawn from the seed the
//! machine stops: the process is killed, or the power is cut, and of what was not synced any part
//! is lost, in each file by itself. Then the engine starts on what survived, and
//!
//! 1. everything acknowledged is there, and nothing that was refused;
//! 2. what was under way happened whole or not at all, and its audit record with it;
//! 3. every acknowledged ciphertext opens;
//! 4. the audit chain is whole and has exactly one record for each acknowledged command;
//! 5. no version and no epoch comes twice, and no answered request is admitted again.
//!
//! Before that, accesses may fail (full disk, I/O errors) and work again later. A history is many
//! crashes in a row on one disk. A seed repeats its history exactly: see [`gate`].
//!
//! It trusts nothing of what it tests; it trusts its own disk to be worse than a real one.

pub mod crash;
pub mod disk;
pub mod fault;
pub mod gate;
pub mod history;
pub mod image;
pub mod log;
pub mod model;
pub mod op;
pub mod phase;
mod random;
pub mod workload;
pub mod world;

pub use random::{Random, SeededEntropy};
pub use world::World;
