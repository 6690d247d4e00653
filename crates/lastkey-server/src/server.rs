//! Opening the doors, and keeping them open until the end.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lastkey_engine::{Engine, Instance};
use prometheus_client::collector::Collector;
use rustix::net::sockopt;
use tokio::net::{TcpListener, TcpSocket};

use crate::{
    alibaba::Place,
    limits::Limits,
    listener::{
        admin::{AdminSocket, AdminSocketError},
        tcp,
    },
    pki::Pki,
    reach::Reach,
    sealing::Sealing,
    service::Service,
    stopping::{Stop, stop},
    tls::{Brought, CertificateError, CertificateSource},
};

/// Connections that wait to be accepted; more than a burst of clients that all come back at once.
const BACKLOG: u32 = 4096;
/// A peer that is silent for so long is asked whether it is still there, again after each of the
/// second, and given up after the third: one that vanished without a word frees its place.
const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(15);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(5);
const GIVE_UP_AFTER: Duration = Duration::from_secs(30);

/// How the server is to be reached and what it calls itself.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `host:port`; port 0 takes a free one.
    pub listen: String,
    /// Where the TLS certificate comes from. Names that our authority always certifies:
    /// `localhost`, `127.0.0.1`, `::1` and the host of `listen`.
    pub certificate: CertificateSource,
    /// Where the admin socket is; `None` for none.
    pub admin_socket: Option<PathBuf>,
    /// The region's id in ARNs. Requests may name any.
    pub region: String,
    /// The account's id in ARNs.
    pub account: String,
    /// Where the server's certificate and key lie for a start that is sealed or held: `server.pem`
    /// and `server.key` in this directory.
    pub certificate_dir: Option<PathBuf>,
    /// Bounds of everything.
    pub limits: Limits,
}

/// What an opening brings.
pub struct Opening {
    /// The engine that runs. Whoever keeps it keeps the server's keys in memory.
    pub engine: Engine,
    /// The certificates.
    pub pki: Arc<Pki>,
}

/// What is to be prepared when the server is unsealed, before requests are answered.
pub type OnOpen = Arc<dyn Fn(Opening) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// How the audit log's sinks do, as status shows it.
pub type SinkStatus = Arc<dyn Fn() -> serde_json::Value + Send + Sync>;

/// A future of any kind.
pub type BoxFuture<'a, T> = std::pin::Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl ServerConfig {
    /// A server on `listen` with our own authority's certificate and without admin socket.
    pub fn on(listen: impl Into<String>) -> Self {
        Self {
            listen: listen.into(),
            certificate: CertificateSource::Authority { names: Vec::new() },
            admin_socket: None,
            certificate_dir: None,
            region: "local".to_owned(),
            account: "lastkey".to_owned(),
            limits: Limits::default(),
        }
    }

    /// Looks for what is wrong with it in itself, before anything is opened or made.
    ///
    /// # Errors
    /// [`BindError::Address`] and [`BindError::Certificate`]: it will never be served by.
    pub fn check(&self) -> Result<(), BindError> {
        let host = host_of(&self.listen)?;
        Ok(with_own_names(self.certificate.clone(), &host).check()?)
    }
}

/// Why the server did not open.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Not `host:port`.
    #[error(
        "--listen {listen} is not HOST:PORT of this machine, such as 127.0.0.1:7343 or [::]:7343"
    )]
    Address {
        /// What was given.
        listen: String,
    },
    /// Somebody listens there.
    #[error(
        "port {} of {} is in use; stop what listens there, or choose another with --listen \
         HOST:PORT", address.port(), address.ip()
    )]
    PortInUse {
        /// Where.
        address: SocketAddr,
    },
    /// The port needs privileges.
    #[error(
        "port {} needs privileges this process does not have; choose one above 1023 with --listen \
         HOST:PORT", address.port()
    )]
    PortDenied {
        /// Where.
        address: SocketAddr,
    },
    /// No interface has that address.
    #[error("{} is not an address of this machine; choose one with --listen HOST:PORT", address.ip())]
    NotOurs {
        /// Where.
        address: SocketAddr,
    },
    /// The system refused otherwise.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The admin socket.
    #[error(transparent)]
    AdminSocket(#[from] AdminSocketError),
    /// There is no certificate to serve with.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// TLS cannot be configured.
    #[error("TLS cannot be configured: {0}")]
    Tls(#[from] rustls::Error),
}

/// The front end of an engine.
#[derive(Debug)]
pub struct Server;

/// A server whose doors are open; nothing is answered before [`Bound::run`].
pub struct Bound {
    service: Arc<Service>,
    stop: Stop,
    listener: TcpListener,
    admin: Option<AdminSocket>,
    reach: Reach,
    address: SocketAddr,
}

impl Server {
    /// Opens the doors.
    ///
    /// # Errors
    /// [`BindError`], as a sentence that says what to do; nothing is left open then.
    pub async fn bind(
        config: ServerConfig,
        instance: impl Into<Instance>,
    ) -> Result<Bound, BindError> {
        let instance = instance.into();
        let host = host_of(&config.listen)?;
        let (listener, address) = listen(&config.listen)?;
        let admin = config.admin_socket.as_deref().map(AdminSocket::open).transpose()?;
        let source = with_own_names(config.certificate, &host);
        let reach = Reach::of(&host, address, Brought::read(&source)?).await;
        let sealing = Sealing::new(instance, source, config.certificate_dir).await?;
        let place = Place { region: config.region, account: config.account };
        let (stop, stopping) = stop();
        let limits = config.limits.within_descriptors();
        let service = Arc::new(Service::new(sealing, (place, limits), stopping));
        Ok(Bound { service, stop, listener, admin, reach, address })
    }
}

impl Bound {
    /// The URL that clients on this machine use: the host as it was given, where it names one
    /// machine and the certificate is good for it.
    pub fn url(&self) -> String {
        self.reach.url()
    }

    /// That URL, and whether it will do.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The address that is listened on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificates, while the server is unsealed.
    pub fn pki(&self) -> Option<Arc<Pki>> {
        self.service.sealing.open().map(|open| Arc::clone(&open.pki))
    }

    /// Lets `on_open` prepare what the process needs: now, if the server is unsealed, and whenever
    /// it is unsealed again.
    ///
    /// # Errors
    /// What `on_open` says.
    pub async fn on_open(&self, on_open: OnOpen) -> Result<(), String> {
        self.service.sealing.on_open(on_open).await
    }

    /// Shows how the audit log's sinks do, in metrics and in status.
    pub fn show_sinks(&self, collector: Box<dyn Collector>, status: SinkStatus) {
        self.service.show_sinks(collector, status);
    }

    /// Where the admin socket is.
    pub fn admin_socket(&self) -> Option<&Path> {
        self.admin.as_ref().map(AdminSocket::path)
    }

    /// Answers requests until `shutdown` resolves; then lets those under way end, for at most
    /// [`Limits::drain`]. The engine keeps running.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let Self { service, stop, listener, admin, .. } = self;
        let network = tcp::run(Arc::clone(&service), listener);
        let local = async {
            if let Some(admin) = admin {
                admin.run(Arc::clone(&service)).await;
            }
        };
        let doors = async { tokio::join!(network, local) };
        let end = async {
            shutdown.await;
            stop.now();
            service.sealing.stop();
        };
        let fresh = service.sealing.keep_fresh(&service.metrics);
        tokio::select! {
            _ = async { tokio::join!(doors, end) } => {}
            () = fresh => {}
        }
    }
}

/// The host part of `listen`, without brackets.
fn host_of(listen: &str) -> Result<String, BindError> {
    let wrong = || BindError::Address { listen: listen.to_owned() };
    let (host, _) = listen.rsplit_once(':').ok_or_else(wrong)?;
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    if host.is_empty() { Err(wrong()) } else { Ok(host.to_owned()) }
}

fn listen(listen: &str) -> Result<(TcpListener, SocketAddr), BindError> {
    let address = listen
        .to_socket_addrs()
        .ok()
        .and_then(|mut addresses| addresses.next())
        .ok_or_else(|| BindError::Address { listen: listen.to_owned() })?;
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::PortInUse { address },
        io::ErrorKind::PermissionDenied => BindError::PortDenied { address },
        io::ErrorKind::AddrNotAvailable => BindError::NotOurs { address },
        _ => BindError::Listen { address, source },
    };
    let open = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart must not wait for connections of the last run to be forgotten.
        socket.set_reuseaddr(true)?;
        keep_alive(&socket)?;
        socket.bind(address)?;
        let listener = socket.listen(BACKLOG)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    open().map_err(refused)
}

/// Peers that vanished are noticed; accepted connections inherit this from their listener.
fn keep_alive(socket: &TcpSocket) -> io::Result<()> {
    socket.set_keepalive(true)?;
    sockopt::set_tcp_keepidle(socket, KEEP_ALIVE_AFTER)?;
    sockopt::set_tcp_keepintvl(socket, KEEP_ALIVE_EVERY)?;
    let millis = u32::try_from(GIVE_UP_AFTER.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(socket, millis)?;
    Ok(())
}

/// Adds the names that every server has.
fn with_own_names(source: CertificateSource, host: &str) -> CertificateSource {
    let CertificateSource::Authority { mut names } = source else { return source };
    let unspecified = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    let own = ["localhost", "127.0.0.1", "::1"].into_iter().chain((!unspecified).then_some(host));
    for name in own {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    CertificateSource::Authority { names }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        assert_eq!(host_of("127.0.0.1:7343").unwrap(), "127.0.0.1");
        assert_eq!(host_of("[::1]:7343").unwrap(), "::1");
        assert_eq!(host_of("kms.example:1").unwrap(), "kms.example");
        assert!(host_of("7343").is_err());
        assert!(host_of(":7343").is_err());
    }

    #[test]
    fn own_names_are_added_once() {
        let given = CertificateSource::Authority { names: vec!["localhost".to_owned()] };
        let CertificateSource::Authority { names } = with_own_names(given, "kms.example") else {
            panic!("the source changed its kind");
        };
        assert_eq!(names, ["localhost", "127.0.0.1", "::1", "kms.example"]);
    }
}
