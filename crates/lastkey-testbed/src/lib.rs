//! Real peers as processes: etcd, kube-apiserver and the `lastkey` binary, for tests and the demo.
//!
//! Nothing here is part of the product. Every process that is started here dies with the value that
//! stands for it, and (through `setpriv --pdeathsig`) with the thread that started it, so that an
//! aborted run leaves nothing behind: start processes from a thread that outlives them.
//!
//! The peers themselves come from `cargo xtask peers`.

mod apiserver;
mod controllers;
mod error;
mod etcd;
mod http;
mod judge;
mod lastkey;
mod message;
mod peers;
mod pki;
mod process;
mod proxy;
mod session;
mod stored;

pub use apiserver::{Apiserver, ApiserverOptions, Identity};
pub use controllers::ControllerManager;
pub use error::Error;
pub use etcd::{Etcd, Value};
pub use http::{Client, Response};
pub use judge::{Judge, Verdict};
pub use lastkey::{Lastkey, Outcome, Ready, Running};
pub use message::{Answer, Request};
pub use peers::{Peers, announce_skip};
pub use pki::{Authority, Pair};
pub use process::{Daemon, eventually, free_port};
pub use proxy::{Act, Proxy};
pub use session::{Session, Unanswered};
pub use stored::{Encrypted, StoredError};
