//! Closed-loop load: so many callers, each with one call in flight. And load at a pace ([`pace`]).

mod http;
mod paced;
mod plugin;
mod request;

use std::{
    future::Future,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs as provider};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;

pub(crate) use http::Connection;
pub(crate) use paced::pace;
pub(crate) use plugin::{Call as PluginCall, Caller as PluginCaller};
pub(crate) use request::{Credentials, Template};

use crate::{
    cpu::{self, Spent},
    error::Error,
};

/// A server over TLS.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) name: ServerName<'static>,
    pub(crate) tls: TlsConnector,
}

impl Target {
    /// A server that shows a certificate of `roots`, asked for these application protocols.
    pub(crate) fn new(
        address: SocketAddr,
        name: &str,
        roots: impl IntoIterator<Item = CertificateDer<'static>>,
        protocols: &[&[u8]],
    ) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root)?;
        }
        let mut config =
            ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(store)
                .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).map_err(std::io::Error::other)?;
        Ok(Self { address, name, tls: Arc::new(config).into() })
    }
}

/// Warm-up and measurement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) warm_up: Duration,
    pub(crate) measure: Duration,
}

/// What one measurement saw.
#[derive(Debug)]
pub(crate) struct Sample {
    /// Latencies in nanoseconds, sorted.
    pub(crate) latencies: Vec<u32>,
    /// How long it really took.
    pub(crate) elapsed: Duration,
    /// What the server spent meanwhile.
    pub(crate) server: Spent,
    /// What we spent ourselves.
    pub(crate) client: Duration,
}

/// Who makes calls, one after the other.
pub(crate) trait Caller: Send + 'static {
    /// Makes one call and waits for its success.
    fn call(&mut self) -> impl Future<Output = Result<(), Error>> + Send;
}

/// Lets every caller make calls for as long as the plan says, against the server `pid`.
pub(crate) async fn drive<C: Caller>(
    callers: Vec<C>,
    plan: Plan,
    pid: u32,
) -> Result<Sample, Error> {
    let begin = Instant::now() + plan.warm_up;
    let end = begin + plan.measure;
    let tasks: Vec<_> =
        callers.into_iter().map(|caller| tokio::spawn(keep_calling(caller, begin, end))).collect();
    tokio::time::sleep_until(begin.into()).await;
    let (started, server, client) = (Instant::now(), Spent::by(pid)?, cpu::own());
    tokio::time::sleep_until(end.into()).await;
    let elapsed = started.elapsed();
    let (server, client) = (Spent::by(pid)? - server, cpu::own().saturating_sub(client));
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    latencies.sort_unstable();
    Ok(Sample { latencies, elapsed, server, client })
}

/// The latencies of the calls that ended between `begin` and `end`.
async fn keep_calling<C: Caller>(
    mut caller: C,
    begin: Instant,
    end: Instant,
) -> Result<Vec<u32>, Error> {
    let mut latencies = Vec::with_capacity(1 << 16);
    let mut before = Instant::now();
    while before < end {
        caller.call().await?;
        let after = Instant::now();
        if begin <= after && after < end {
            let nanos = after.duration_since(before).as_nanos();
            latencies.push(u32::try_from(nanos).unwrap_or(u32::MAX));
        }
        before = after;
    }
    Ok(latencies)
}
