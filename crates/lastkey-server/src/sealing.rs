//! What requests work with while the server is unsealed, and what the doors do while it is not.
//!
//! A request takes the engine and the certificates together, with one look. When the server is
//! sealed they are taken away, and whoever waits in a request is told to end. New connections are
//! welcomed with the certificate that clients know as long as there is one: of files, or the one
//! that an unsealed server left in the data directory for this; otherwise with one that proves
//! nothing, for probes that do not look.

mod shares;

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Instant};

use async_trait::async_trait;
use lastkey_crypto::share::Share;
use lastkey_engine::{Attendant, Clock as _, Engine, Instance, SystemClock};
use parking_lot::{Mutex, RwLock};
use rustls_pki_types::CertificateDer;
use tokio_rustls::TlsAcceptor;

use self::shares::ShareLimit;
use crate::{
    metrics::Metrics,
    pki::Pki,
    server::{OnOpen, Opening},
    stopping::{Stop, Stopping, stop},
    tls::{CertificateError, CertificateSource, Leaf, Shown, sealed_config},
};

/// What a request works with.
pub(crate) struct Open {
    pub(crate) engine: Engine,
    pub(crate) pki: Arc<Pki>,
    /// Turns true when the server stops or is sealed.
    pub(crate) stopping: Stopping,
    stop: Stop,
}

/// The installation as the doors see it.
pub(crate) struct Sealing {
    pub(crate) instance: Instance,
    open: RwLock<Option<Arc<Open>>>,
    door: RwLock<Door>,
    source: CertificateSource,
    /// Where the certificate lies for a start that is sealed.
    leaf: Option<Leaf>,
    on_open: RwLock<Option<OnOpen>>,
    stopped: Mutex<bool>,
    shares: ShareLimit,
}

/// How new connections are welcomed, until something changes.
struct Door {
    acceptor: TlsAcceptor,
    /// Which state of the clusters' roots it asks for.
    trust: u64,
    stop: Stop,
    stopping: Stopping,
}

impl Door {
    fn new(config: rustls::ServerConfig, trust: u64) -> Self {
        let (stop, stopping) = stop();
        Self { acceptor: TlsAcceptor::from(Arc::new(config)), trust, stop, stopping }
    }
}

impl Sealing {
    pub(crate) async fn new(
        instance: Instance,
        source: CertificateSource,
        leaf: Option<PathBuf>,
    ) -> Result<Arc<Self>, CertificateError> {
        let leaf = leaf.as_deref().map(Leaf::new);
        let now = SystemClock.now();
        let door = RwLock::new(Door::new(sealed_config(&source, leaf.as_ref(), now)?, 0));
        let sealing = Arc::new(Self {
            instance,
            open: RwLock::new(None),
            door,
            source,
            leaf,
            on_open: RwLock::new(None),
            stopped: Mutex::new(false),
            shares: ShareLimit::new(Instant::now()),
        });
        // First this: what opens from here on is not missed.
        let attendant: Arc<dyn Attendant> = Arc::<Self>::clone(&sealing);
        sealing.instance.attend(&attendant);
        if let Ok(engine) = sealing.instance.engine() {
            let open = sealing.prepare(&engine).await?;
            sealing.go(open)?;
        }
        Ok(sealing)
    }

    /// What requests work with; `None` while the server is sealed.
    pub(crate) fn open(&self) -> Option<Arc<Open>> {
        self.open.read().clone()
    }

    /// What a TLS connection is welcomed with, and when it has to end: one that began while the
    /// server was sealed ends as it is unsealed, for its client was not asked for a certificate.
    pub(crate) fn welcome(&self) -> (TlsAcceptor, Stopping) {
        self.follow_trust();
        let door = self.door.read();
        (door.acceptor.clone(), door.stopping.clone())
    }

    /// Asks new connections for certificates of the roots that clusters have pinned by now.
    fn follow_trust(&self) {
        let Some(open) = self.open() else { return };
        let trust = open.engine.trust();
        if self.door.read().trust == trust {
            return;
        }
        match open.pki.server_config(&open.engine.node_roots(None)) {
            Ok(config) => {
                let mut door = self.door.write();
                door.acceptor = TlsAcceptor::from(Arc::new(config));
                door.trust = trust;
            }
            Err(error) => tracing::error!(%error, "the clusters' roots cannot be asked for"),
        }
    }

    /// Who the other end of a connection is, by the certificates that it has shown.
    pub(crate) fn shown(&self, chain: Option<&[CertificateDer<'_>]>) -> Shown {
        let open = self.open();
        match (chain, open) {
            (Some(chain), Some(open)) => open.pki.shown(chain, open.engine.clock().now()),
            _ => Shown::Nobody,
        }
    }

    /// Lets the daemon prepare what it needs, now and with each opening.
    pub(crate) async fn on_open(&self, on_open: OnOpen) -> Result<(), String> {
        *self.on_open.write() = Some(Arc::clone(&on_open));
        if let Some(open) = self.open() {
            on_open(Opening { engine: open.engine.clone(), pki: Arc::clone(&open.pki) }).await?;
        }
        Ok(())
    }

    /// The server stops: whoever waits answers.
    pub(crate) fn stop(&self) {
        *self.stopped.lock() = true;
        self.door.read().stop.now();
        if let Some(open) = &*self.open.read() {
            open.stop.now();
        }
    }

    /// Whether this share may come from that address now.
    pub(crate) fn admits_share(&self, share: &Share, from: IpAddr) -> bool {
        self.shares.admits((from, self.instance.expects(share)), Instant::now())
    }

    /// The seal may be of another kind now: a server that can start sealed leaves a certificate.
    pub(crate) fn seal_changed(&self) {
        let Some(open) = self.open() else { return };
        if let Err(error) = self.leave_certificate(&open.engine, &open.pki) {
            tracing::warn!(%error, "a sealed start will have no certificate that clients know");
        }
    }

    /// Under whatever seal: a start whose store is older than it should be is held, and its
    /// clients have to know it, too.
    fn leave_certificate(&self, engine: &Engine, pki: &Pki) -> Result<(), CertificateError> {
        let Some(leaf) = &self.leaf else { return Ok(()) };
        if pki.keep_in(Some(leaf.clone())) { Ok(()) } else { pki.renew(engine) }
    }

    /// Looks after the certificate whenever there is one to look after. Never ends.
    pub(crate) async fn keep_fresh(&self, metrics: &Metrics) {
        loop {
            if let Some(open) = self.open() {
                let renewing = Arc::clone(&open);
                // It waits for the disk: no thread that serves requests may.
                let renewed = tokio::task::spawn_blocking(move || {
                    renewing.pki.renew_if_due(&renewing.engine);
                });
                if let Err(error) = renewed.await {
                    tracing::error!(%error, "looking after the server's certificate failed");
                }
                open.pki.look(&open.engine, metrics);
            }
            tokio::time::sleep(crate::pki::LOOK_EVERY).await;
        }
    }

    async fn prepare(&self, engine: &Engine) -> Result<Open, CertificateError> {
        let pki = Arc::new(Pki::open(engine, self.source.clone()).await?);
        self.leave_certificate(engine, &pki)?;
        let (stop, stopping) = stop();
        Ok(Open { engine: engine.clone(), pki, stopping, stop })
    }

    /// From here on requests get what was prepared.
    fn go(&self, open: Open) -> Result<(), CertificateError> {
        // First the number: roots that change meanwhile are looked at again.
        let trust = open.engine.trust();
        let config = open.pki.server_config(&open.engine.node_roots(None));
        let door = Door::new(config.map_err(CertificateError::Unusable)?, trust);
        if *self.stopped.lock() {
            open.stop.now();
            door.stop.now();
        }
        *self.open.write() = Some(Arc::new(open));
        std::mem::replace(&mut *self.door.write(), door).stop.now();
        Ok(())
    }
}

#[async_trait]
impl Attendant for Sealing {
    async fn opened(&self, engine: &Engine) -> Result<(), String> {
        let open = self.prepare(engine).await.map_err(|error| error.to_string())?;
        let on_open = self.on_open.read().clone();
        if let Some(on_open) = on_open {
            on_open(Opening { engine: engine.clone(), pki: Arc::clone(&open.pki) }).await?;
        }
        self.go(open).map_err(|error| error.to_string())
    }

    /// The door stays as it is: it welcomes with the same certificate, and asks for clients'.
    async fn closing(&self) {
        let open = self.open.write().take();
        if let Some(open) = open {
            open.stop.now();
        }
    }
}
