//! Lane: rotations of live clusters' keys, on real kube-apiservers and a real etcd.
//!
//! What was acknowledged to whom is kept in a model and compared at the end with what the
//! apiservers answer and with what rests in etcd. `LASTKEY_TEST_SECRETS` sets how many Secrets all of
//! the large ones have, `LASTKEY_TEST_SEED` replays a run's choices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "what was measured, and the seed of a run")]

#[path = "rotation/automatic.rs"]
mod automatic;
#[path = "rotation/between.rs"]
mod between;
#[path = "rotation/big.rs"]
mod big;
#[path = "rotation/killed.rs"]
mod killed;
#[path = "rotation/memory.rs"]
mod memory;
#[path = "rotation/migration.rs"]
mod migration;
#[path = "rotation/mixed.rs"]
mod mixed;
#[path = "rotation/model.rs"]
mod model;
#[path = "rotation/parts.rs"]
mod parts;
#[path = "rotation/policy.rs"]
mod policy;
#[path = "rotation/proof.rs"]
mod proof;
#[path = "rotation/shared.rs"]
mod shared;
#[path = "rotation/standstill.rs"]
mod standstill;
mod support;
#[path = "rotation/wildcards.rs"]
mod wildcards;

use lastkey_testbed::Peers;

const VERSION: &str = "1.37.0";

fn peers(test: &str) -> Option<Peers> {
    Peers::or_skip(test, &["etcd", "kube-apiserver-1.37.0"])
}

/// A number from the environment, else what fits into CI.
fn size(variable: &str, usual: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}
