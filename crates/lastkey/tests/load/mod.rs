//! A load generator: many connections that speak HTTP/1.1 to a real server, over TLS or the admin
//! socket, and count what they are told.

use std::{
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lastkey_testbed::Running;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Nothing may take longer than this; what does is counted as a failure.
const HANG: Duration = Duration::from_secs(20);
/// After a refusal, a client comes back sooner than it was told, as bad ones do.
const IMPATIENCE: Duration = Duration::from_millis(50);

/// Asks the server to encrypt, as a plugin or as the local administrator.
pub(crate) const ENCRYPT: &str = r#"{"key":"alias/kubernetes","plaintext":"c2VlZA=="}"#;

/// A server under load, and how it is reached.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) admin: PathBuf,
    pub(crate) plugin_socket: PathBuf,
    pub(crate) pid: u32,
    anybody: Arc<ClientConfig>,
    plugin: Arc<ClientConfig>,
}

/// Anything to read from and write to.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// The plugin that `up` made.
    Plugin,
    /// The local administrator.
    Local,
    /// Nobody, over TLS.
    Nobody,
}

impl Target {
    pub(crate) fn of(up: &Running) -> Self {
        let ready = &up.ready;
        let read = |path: &PathBuf| fs::read(path).unwrap();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&read(&ready.ca_file)) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let roots = Arc::new(roots);
        let builder = || {
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(Arc::clone(&roots))
        };
        let certificate = read(&ready.plugin_cert_file);
        let chain = CertificateDer::pem_slice_iter(&certificate).map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_slice(&read(&ready.plugin_key_file)).unwrap();
        Self {
            address: ready.address().parse().unwrap(),
            admin: ready.admin_socket.clone(),
            plugin_socket: ready.plugin_socket.clone(),
            pid: up.process.pid(),
            anybody: Arc::new(builder().with_no_client_auth()),
            plugin: Arc::new(builder().with_client_auth_cert(chain, key).unwrap()),
        }
    }

    pub(crate) async fn tls(&self, who: Who) -> io::Result<TlsStream<TcpStream>> {
        let config = if who == Who::Plugin { &self.plugin } else { &self.anybody };
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::clone(config)).connect(name, stream).await
    }

    pub(crate) async fn open(&self, who: Who) -> io::Result<Http> {
        let stream: Box<dyn Stream> = match who {
            Who::Local => Box::new(UnixStream::connect(&self.admin).await?),
            _ => Box::new(self.tls(who).await?),
        };
        Ok(Http { stream, read: Vec::new() })
    }

    /// One request on a connection of its own.
    pub(crate) async fn once(&self, who: Who, request: &[u8]) -> io::Result<Answer> {
        let ask = async { self.open(who).await?.ask(request).await };
        tokio::time::timeout(HANG, ask).await.map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// The value of a metric.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let answer = self.once(Who::Local, &get("/metrics")).await.unwrap();
        let value = answer.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }

    pub(crate) async fn shed(&self, reason: &str) -> u64 {
        self.metric(&format!("lastkey_shed_total{{reason=\"{reason}\"}}")).await
    }

    /// Resident memory of the server, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Open descriptors of the server.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid)).unwrap().count()
    }

    /// Processor time that the server has used, in clock ticks of 10 ms.
    pub(crate) fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap();
        let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Health is asked for over and over, each time on a new connection, until `stop`; gives how
    /// often it was answered, and the longest time that took.
    pub(crate) async fn watch_health(self, stop: Arc<AtomicBool>) -> (u64, Duration) {
        let (mut count, mut longest) = (0, Duration::ZERO);
        while !stop.load(Ordering::SeqCst) {
            let asked = Instant::now();
            for path in ["/healthz", "/readyz", "/metrics"] {
                let answer = self.once(Who::Nobody, &get(path)).await.unwrap();
                assert_eq!(answer.status, 200, "{path}: {}", answer.body);
            }
            longest = longest.max(asked.elapsed());
            count += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (count, longest)
    }

    /// Calls a second that a few good callers get done, measured for a second.
    pub(crate) async fn speed(&self) -> f64 {
        let load = Load::start(self, Who::Plugin, 8, encrypt()).await;
        let began = Instant::now();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let elapsed = began.elapsed();
        let tally = load.stop().await;
        assert_eq!((tally.busy, tally.failed, tally.other), (0, 0, 0), "{tally:?}");
        tally.ok as f64 / elapsed.as_secs_f64()
    }
}

pub(crate) fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

pub(crate) fn post(path: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

pub(crate) fn encrypt() -> Vec<u8> {
    post("/v1/plugin/encrypt", ENCRYPT)
}

/// An HTTP/1.1 connection.
pub(crate) struct Http {
    pub(crate) stream: Box<dyn Stream>,
    read: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

impl Http {
    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        self.answer().await
    }

    pub(crate) async fn answer(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        let status = status.ok_or(io::ErrorKind::InvalidData)?;
        let mut answer = Answer { status, head, body: String::new() };
        let length: usize =
            answer.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        while self.read.len() < end + 4 + length {
            self.more().await?;
        }
        answer.body = String::from_utf8_lossy(&self.read[end + 4..end + 4 + length]).into_owned();
        self.read.drain(..end + 4 + length);
        Ok(answer)
    }

    async fn more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// What callers were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) ok: u64,
    /// `429` with a `Retry-After`.
    pub(crate) busy: u64,
    /// `400`, `403`, `404`.
    pub(crate) refused: u64,
    /// Anything else.
    pub(crate) other: u64,
    /// No answer: the connection broke, or nothing came for long.
    pub(crate) failed: u64,
    /// The longest time for an answer, in milliseconds.
    pub(crate) longest: u64,
}

#[derive(Default)]
struct Counts {
    ok: AtomicU64,
    busy: AtomicU64,
    refused: AtomicU64,
    other: AtomicU64,
    failed: AtomicU64,
    longest: AtomicU64,
}

/// Connections that ask as fast as they are answered.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
    tasks: JoinSet<Option<Http>>,
}

impl Load {
    /// Opens so many connections, and starts when all are open.
    pub(crate) async fn start(
        target: &Target,
        who: Who,
        connections: usize,
        request: Vec<u8>,
    ) -> Self {
        let mut opening = JoinSet::new();
        for _ in 0..connections {
            let target = target.clone();
            opening.spawn(async move { target.open(who).await.unwrap() });
        }
        let opened = tokio::time::timeout(2 * HANG, opening.join_all());
        Self::on(opened.await.expect("connections are not accepted"), request)
    }

    /// Starts on open connections.
    pub(crate) fn on(connections: Vec<Http>, request: Vec<u8>) -> Self {
        let (stop, counts) = (Arc::new(AtomicBool::new(false)), Arc::new(Counts::default()));
        let request: Arc<[u8]> = request.into();
        let mut tasks = JoinSet::new();
        for http in connections {
            let (stop, counts) = (Arc::clone(&stop), Arc::clone(&counts));
            tasks.spawn(ask_on(http, Arc::clone(&request), stop, counts));
        }
        Self { stop, counts, tasks }
    }

    /// Lets every caller have its last answer, and adds them up.
    pub(crate) async fn stop(self) -> Tally {
        self.finish().await.0
    }

    /// As [`Self::stop`], with the connections that are still open.
    async fn finish(self) -> (Tally, Vec<Http>) {
        self.stop.store(true, Ordering::SeqCst);
        let open = self.tasks.join_all().await.into_iter().flatten().collect();
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        let counts = &self.counts;
        let tally = Tally {
            ok: read(&counts.ok),
            busy: read(&counts.busy),
            refused: read(&counts.refused),
            other: read(&counts.other),
            failed: read(&counts.failed),
            longest: read(&counts.longest),
        };
        (tally, open)
    }
}

async fn ask_on(
    mut http: Http,
    request: Arc<[u8]>,
    stop: Arc<AtomicBool>,
    counts: Arc<Counts>,
) -> Option<Http> {
    while !stop.load(Ordering::SeqCst) {
        let asked = Instant::now();
        let answer = tokio::time::timeout(HANG, http.ask(&request)).await;
        let millis = u64::try_from(asked.elapsed().as_millis()).unwrap();
        counts.longest.fetch_max(millis, Ordering::SeqCst);
        let Ok(Ok(answer)) = answer else {
            counts.failed.fetch_add(1, Ordering::SeqCst);
            return None;
        };
        let is_busy = answer.status == 429 && answer.header("retry-after").is_some();
        let count = match answer.status {
            200 => &counts.ok,
            429 if is_busy => &counts.busy,
            400 | 403 | 404 => &counts.refused,
            _ => &counts.other,
        };
        count.fetch_add(1, Ordering::SeqCst);
        if is_busy {
            tokio::time::sleep(IMPATIENCE).await;
        }
        if answer.header("connection") == Some("close") {
            return None;
        }
    }
    Some(http)
}

/// How fast eight good callers are served by one server, beside how fast by the other: in turns of
/// a twentieth of a second, so that whatever else the machine does slows both; of these the middle
/// one, so that what it does in one of them counts for nothing.
pub(crate) async fn beside(one: &Target, other: &Target) -> f64 {
    const CALLERS: usize = 8;
    let mut sides = Vec::new();
    for target in [one, other] {
        let mut open = Vec::new();
        for _ in 0..CALLERS {
            open.push(target.open(Who::Plugin).await.unwrap());
        }
        sides.push((open, 0_u64));
    }
    let mut ratios = Vec::new();
    for turn in 0..20 {
        // Each of them goes first as often as the other.
        for side in [turn % 2, 1 - turn % 2] {
            let (open, served) = &mut sides[side];
            let load = Load::on(std::mem::take(open), encrypt());
            tokio::time::sleep(Duration::from_millis(50)).await;
            let (tally, still_open) = load.finish().await;
            assert_eq!((tally.busy, tally.failed, tally.other), (0, 0, 0), "{tally:?}");
            assert_eq!(still_open.len(), CALLERS);
            *served = tally.ok;
            *open = still_open;
        }
        ratios.push(sides[0].1 as f64 / sides[1].1.max(1) as f64);
    }
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}
