//! Options that say how much a server takes on; every other bound is fixed (docs/limits.md).

use clap::Args;
use lastkey_server::Limits;

/// How much a server takes on.
#[derive(Clone, Debug, Args)]
pub(crate) struct LimitOptions {
    /// Requests of proven callers that are worked on at one time, shared fairly among them; eight
    /// times as many wait for their turn [default: 512].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    max_requests: Option<u16>,

    /// Connections from the network that are open at one time; when all are taken, those that
    /// have been idle for longest give way [default: 4096].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65_536))]
    max_connections: Option<u32>,
}

impl LimitOptions {
    /// All the bounds, with these in place of their defaults.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        if let Some(requests) = self.max_requests {
            limits.requests = requests.into();
            limits.queue = limits.requests * 8;
        }
        if let Some(connections) = self.max_connections.and_then(|n| usize::try_from(n).ok()) {
            limits.connections = connections;
            // One address may have half of them, as without this option.
            limits.connections_per_address = connections.div_ceil(2);
        }
        limits
    }
}
