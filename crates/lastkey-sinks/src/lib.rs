//! Carries audit records to other places: syslog, an HTTP webhook, standard output.
//!
//! The log in its files is the first sink, and the only one that an answer waits for. Each further
//! one has a reader of its own that follows those files from a place it remembers
//! ([`lastkey_engine::audit::Follower`]). So a sink that is slow or dead costs the log nothing: no
//! queue fills up, no lock is held, and what it did not take yet is still in the files when it
//! comes back, or after a restart. Only retention can outrun it, and then what it missed is counted
//! and said.
//!
//! Delivery is at least once: a lot of lines whose arrival is not certain comes again. Each line
//! carries its number, so that a receiver can tell. Checkpoints travel with the records, so that
//! they leave the machine too.
//!
//! This crate trusts the receiver of a webhook as far as its certificate goes, and holds nothing
//! secret but the webhook's token.

mod address;
mod carrier;
#[doc(hidden)]
pub mod fuzzing;
mod metrics;
mod place;
mod stdout;
mod syslog;
mod target;
mod tls;
mod webhook;

pub use address::{AddressError, SinkAddress};
pub use carrier::{Carrier, SinkStatus, Sinks, SinksConfig, StartError};
pub use metrics::SinkMetrics;
pub use syslog::{Transport, message};
