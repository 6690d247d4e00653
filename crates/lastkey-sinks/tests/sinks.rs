//! Sinks over real sockets: what arrives, and what a slow or dead one costs the log.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use lastkey_crypto::{KeyMaterial, signing::SigningKey};
use lastkey_engine::{
    ManualClock, Timestamp,
    audit::{AuditLog, AuditOptions, AuditSink, Checkpointing, Follower, Retention},
};
use lastkey_sinks::{SinkAddress, SinkMetrics, SinkStatus, Sinks, SinksConfig};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, UnixDatagram},
};

struct World {
    place: tempfile::TempDir,
    log: AuditLog,
}

impl World {
    fn new() -> Self {
        Self::with(AuditOptions::default())
    }

    fn with(options: AuditOptions) -> Self {
        let place = tempfile::tempdir().unwrap();
        let log = open(place.path(), options);
        Self { place, log }
    }

    fn config(&self, addresses: &[&str]) -> SinksConfig {
        SinksConfig {
            audit: self.place.path().join("audit"),
            places: self.place.path().join("audit-sinks"),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ca: None,
            token: None,
        }
    }

    /// The same place with another log, as if somebody had moved the first one away.
    fn moved_away(self) -> Self {
        let Self { place, log } = self;
        log.close();
        drop(log);
        for name in ["audit", "journal"] {
            std::fs::remove_dir_all(place.path().join(name)).unwrap();
        }
        let log = open(place.path(), AuditOptions::default());
        Self { place, log }
    }

    /// The file that remembers how far this one sink has come.
    fn place_file(&self) -> PathBuf {
        let files = std::fs::read_dir(self.place.path().join("audit-sinks")).unwrap();
        let is_whole = |path: &PathBuf| path.extension().unwrap() == "json";
        let files: Vec<PathBuf> =
            files.map(|entry| entry.unwrap().path()).filter(is_whole).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files.into_iter().next().unwrap()
    }

    async fn write(&self, count: usize) {
        let tickets: Vec<_> = (0..count)
            .map(|n| {
                let body = format!(
                    r#""time":"2026-01-01T00:00:00.000Z","action":"Encrypt","n":{n},"outcome":"ok""#
                );
                self.log.append(body.into_bytes())
            })
            .collect();
        for ticket in tickets {
            ticket.await.unwrap();
        }
    }
}

fn open(place: &Path, options: AuditOptions) -> AuditLog {
    let key = KeyMaterial::from_slice(&[5; 32]);
    AuditLog::open_with(&place.join("audit"), &place.join("journal"), key, options).unwrap()
}

fn seq(line: &str) -> u64 {
    serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"].as_u64().unwrap()
}

async fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..1500 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("waited in vain: {what}");
}

fn start(config: &SinksConfig) -> Sinks {
    let mut sinks = Sinks::prepare(config).unwrap();
    sinks.log_is_open();
    sinks.start();
    sinks
}

/// Carries everything to a sink that begins, and ends it.
async fn carry(config: &SinksConfig, world: &World, records: usize) {
    let sinks = start(config);
    world.write(records).await;
    until("it arrived", || status(&sinks, 0).seq == records as u64).await;
    sinks.stop(Duration::from_secs(5)).await;
}

fn status(sinks: &Sinks, index: usize) -> SinkStatus {
    sinks.carriers()[index].status()
}

type Received = Arc<Mutex<Vec<String>>>;

/// An HTTP receiver that answers with `status`, and keeps what it got. Every third request it
/// keeps, too, but hangs up instead of answering.
async fn receiver(
    answer: impl Fn(usize) -> Option<u16> + Send + Sync + 'static,
) -> (String, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/in", listener.local_addr().unwrap());
    let received = Received::default();
    let kept = Arc::clone(&received);
    let answer = Arc::new(answer);
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (kept, answer, count) =
                (Arc::clone(&kept), Arc::clone(&answer), Arc::clone(&count));
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                while let Some((head, body)) = request(&mut stream).await {
                    assert!(head.starts_with("POST /in HTTP/1.1"), "{head}");
                    assert!(head.contains("application/x-ndjson"), "{head}");
                    kept.lock().extend(body.lines().map(str::to_owned));
                    let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(status) = answer(n) else { return };
                    let reply = format!(
                        "HTTP/1.1 {status} X\r\ncontent-length: 0\r\nretry-after: 0\r\n\r\n"
                    );
                    stream.write_all(reply.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (url, received)
}

async fn request(stream: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> Option<(String, String)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let length = head
        .lines()
        .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok())?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, String::from_utf8(body).unwrap()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_gets_every_record_in_order_and_goes_on_after_a_restart() {
    let world = World::new();
    world.write(3).await;
    // An answer may be a moment ahead of its segment.
    let config = world.config(&[]);
    until("they are in the file", || Follower::end(&config.audit).unwrap().seq == 3).await;
    let (url, received) = receiver(|_| Some(204)).await;
    let config = world.config(&[&url]);
    let sinks = start(&config);
    world.write(2500).await;
    until("all records", || received.lock().len() >= 2500).await;
    until("no lag", || status(&sinks, 0).lag == 0 && status(&sinks, 0).seq == 2503).await;
    sinks.stop(Duration::from_secs(5)).await;
    // While no sink runs, the log goes on.
    world.write(10).await;
    let sinks = start(&config);
    until("those meanwhile", || received.lock().len() >= 2510).await;
    sinks.stop(Duration::from_secs(5)).await;
    let numbers: Vec<u64> = received.lock().iter().map(|line| seq(line)).collect();
    let all: Vec<u64> = (4..=2513).collect();
    assert!(numbers == all, "begins with what is new, once each: {:?}…", &numbers[..9]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_answered_comes_again() {
    let world = World::new();
    // Refused, hung up on, refused, then taken.
    let answers = [Some(503), None, Some(400), Some(200)];
    let (url, received) = receiver(move |n| answers[n.min(3)]).await;
    let sinks = start(&world.config(&[&url]));
    world.write(5).await;
    until("it arrived", || status(&sinks, 0).seq == 5 && status(&sinks, 0).ok).await;
    assert!(status(&sinks, 0).failures >= 3, "{:?}", status(&sinks, 0));
    let numbers: std::collections::BTreeSet<u64> =
        received.lock().iter().map(|line| seq(line)).collect();
    assert_eq!(numbers, (1..=5).collect());
    // A first parcel may not have had all five; this record was in each.
    let first = received.lock().iter().filter(|line| seq(line) == 1).count();
    assert!(first >= 4, "it came {first} times");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_takes_no_large_lots_gets_small_ones() {
    let world = World::new();
    // As a proxy with a limit of 20 kB: some forty records.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/in", listener.local_addr().unwrap());
    let received = Received::default();
    let kept = Arc::clone(&received);
    tokio::spawn(async move {
        loop {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            while let Some((_, body)) = request(&mut stream).await {
                let status = if body.len() > 20_000 { 413 } else { 204 };
                if status == 204 {
                    kept.lock().extend(body.lines().map(str::to_owned));
                }
                let reply =
                    format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nretry-after: 0\r\n\r\n");
                stream.write_all(reply.as_bytes()).await.unwrap();
            }
        }
    });
    let sinks = start(&world.config(&[&url]));
    world.write(2000).await;
    until("all of them", || status(&sinks, 0).seq == 2000 && status(&sinks, 0).ok).await;
    let numbers: Vec<u64> = received.lock().iter().map(|line| seq(line)).collect();
    assert!(numbers == (1..=2000).collect::<Vec<_>>(), "once each, in order");
}

/// A server that starts sealed has a log whose last segment the journal has yet to mend.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_carried_before_the_log_is_whole() {
    let world = World::new();
    let (url, received) = receiver(|_| Some(200)).await;
    let config = world.config(&[&url]);
    start(&config).stop(Duration::from_secs(1)).await;
    world.write(3).await;
    until("they are in the file", || Follower::end(&config.audit).unwrap().seq == 3).await;
    // A block that a power cut took: the second record of three.
    let segment = std::fs::read_dir(&config.audit)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.file_name().unwrap().to_string_lossy().starts_with("segment-"))
        .unwrap();
    let whole = std::fs::read(&segment).unwrap();
    let line = whole.split(|byte| *byte == b'\n').next().unwrap().len() + 1;
    let mut holed = whole.clone();
    holed[line..2 * line - 1].fill(0);
    std::fs::write(&segment, holed).unwrap();
    let mut sinks = Sinks::prepare(&config).unwrap();
    sinks.start();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((received.lock().len(), status(&sinks, 0).lag), (0, 3), "they wait");
    std::fs::write(&segment, whole).unwrap();
    sinks.log_is_open();
    until("all", || status(&sinks, 0).seq == 3).await;
    assert_eq!((received.lock().len(), status(&sinks, 0).missed), (3, 0));
}

/// One sink accepts and never reads, one is not there at all, one refuses: the log and a fourth
/// sink go on as if they were not.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_or_slow_sink_blocks_nobody() {
    const RECORDS: usize = 20_000;
    let alone = World::new();
    let started = Instant::now();
    alone.write(RECORDS / 2).await;
    alone.write(RECORDS / 2).await;
    let bare = started.elapsed();

    let world = World::new();
    let never_reads = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let slow = format!("syslog+tcp://{}", never_reads.local_addr().unwrap());
    let slow_hook = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hook = format!("http://{}/in", slow_hook.local_addr().unwrap());
    let held = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            tokio::select! {
                one = never_reads.accept() => held.push(one.unwrap()),
                one = slow_hook.accept() => held.push(one.unwrap()),
            }
        }
    });
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = format!("http://{}/in", gone.local_addr().unwrap());
    drop(gone);
    let (url, received) = receiver(|_| Some(200)).await;
    let sinks = start(&world.config(&[&slow, &hook, &dead, &url]));
    let started = Instant::now();
    world.write(RECORDS / 2).await;
    world.write(RECORDS / 2).await;
    let took = started.elapsed();
    assert!(took < bare * 10 + Duration::from_secs(2), "{took:?} beside {bare:?}");
    until("the sink that works has all", || received.lock().len() >= RECORDS).await;
    // What waits is counted while nothing moves, too.
    until("the slow one, which keeps its first lot, is as far behind as the log is ahead", || {
        status(&sinks, 1).lag >= RECORDS as u64
    })
    .await;
    until("the dead one says so", || {
        let dead = status(&sinks, 2);
        !dead.ok && dead.lag >= RECORDS as u64 && dead.error.is_some()
    })
    .await;
    assert_eq!(status(&sinks, 1).seq, 0);
    assert!(status(&sinks, 0).lag > 0);
    let mut text = String::new();
    let mut registry = prometheus_client::registry::Registry::default();
    registry.register_collector(Box::new(SinkMetrics::new(sinks.carriers())));
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    assert!(text.contains("lastkey_audit_sink_up{sink=\"http://"), "{text}");
    assert!(text.contains("lastkey_audit_sink_failures_total{"), "{text}");
    // The end does not wait for them either.
    let started = Instant::now();
    sinks.stop(Duration::from_millis(300)).await;
    assert!(started.elapsed() < Duration::from_secs(20));
    held.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn syslog_over_a_local_socket_and_over_tcp() {
    let world = World::new();
    let socket: PathBuf = world.place.path().join("log.sock");
    let local = UnixDatagram::bind(&socket).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addresses = [
        format!("syslog://{}", socket.display()),
        format!("syslog+tcp://{}", tcp.local_addr().unwrap()),
    ];
    let sinks = start(&world.config(&[&addresses[0], &addresses[1]]));
    world.write(50).await;
    let mut buffer = vec![0; 4096];
    for expected in 1..=50 {
        let n = local.recv(&mut buffer).await.unwrap();
        let text = std::str::from_utf8(&buffer[..n]).unwrap();
        assert!(text.starts_with("<110>1 2026-01-01T00:00:00.000Z "), "{text}");
        assert_eq!(seq(&text[text.find('{').unwrap()..]), expected);
    }
    let (stream, _) = tcp.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    for expected in 1..=50 {
        let mut length = Vec::new();
        stream.read_until(b' ', &mut length).await.unwrap();
        let length: usize = std::str::from_utf8(&length).unwrap().trim().parse().unwrap();
        let mut message = vec![0; length];
        stream.read_exact(&mut message).await.unwrap();
        let text = String::from_utf8(message).unwrap();
        assert_eq!(seq(&text[text.find('{').unwrap()..]), expected);
    }
    drop(sinks);
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_leave_with_the_records_and_closed_segments_are_read_on() {
    let seed = KeyMaterial::from_slice(&[9; 32]);
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_767_225_600_000)));
    let by = Checkpointing::new(SigningKey::from_seed(seed).unwrap(), clock);
    let world = World::with(AuditOptions {
        segment_bytes: 20_000,
        compress: true,
        checkpoints: Some(by),
        ..AuditOptions::default()
    });
    let (url, received) = receiver(|_| Some(200)).await;
    let config = world.config(&[&url]);
    let sinks = start(&config);
    for _ in 0..20 {
        world.write(50).await;
    }
    sinks.stop(Duration::ZERO).await;
    for _ in 0..20 {
        world.write(50).await;
    }
    let sinks = start(&config);
    world.log.close();
    let records = |received: &Received| {
        received.lock().iter().filter(|line| !line.starts_with("{\"checkpoint\"")).count()
    };
    until("all records", || records(&received) >= 2000).await;
    until("the last checkpoint", || {
        received.lock().last().is_some_and(|line| line.contains(r#""kind":"close","seq":2000"#))
    })
    .await;
    sinks.stop(Duration::from_secs(5)).await;
    let lines = received.lock().clone();
    let mut numbers: Vec<u64> =
        lines.iter().filter(|line| !line.starts_with("{\"checkpoint\"")).map(|l| seq(l)).collect();
    numbers.dedup();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers, (1..=2000).collect::<Vec<_>>());
    let signed = lines.iter().filter(|line| line.contains(r#""kind":"rotation""#)).count();
    assert!(signed > 5, "{signed} of rotations");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_took_away_is_counted() {
    let seed = KeyMaterial::from_slice(&[9; 32]);
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_767_225_600_000)));
    let by = Checkpointing::new(SigningKey::from_seed(seed).unwrap(), clock);
    let world = World::with(AuditOptions {
        segment_bytes: 10_000,
        retention: Retention { bytes: Some(20_000), age: None },
        checkpoints: Some(by),
        ..AuditOptions::default()
    });
    let (url, received) = receiver(|_| Some(200)).await;
    let config = world.config(&[&url]);
    start(&config).stop(Duration::from_secs(1)).await;
    for _ in 0..10 {
        world.write(50).await;
    }
    let deletion = world.log.to_delete(None).unwrap().unwrap();
    world.log.delete(&deletion).unwrap();
    let sinks = start(&config);
    until("the rest", || status(&sinks, 0).seq == 500).await;
    assert_eq!(status(&sinks, 0).missed, deletion.through.seq);
    let first = received.lock().iter().find(|line| line.starts_with("{\"seq\"")).cloned();
    assert_eq!(seq(&first.unwrap()), deletion.through.seq + 1);
}

fn tls_server(place: &Path) -> (Arc<rustls::ServerConfig>, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let file = place.join("ca.pem");
    std::fs::write(&file, made.cert.pem()).unwrap();
    let key = rustls_pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (Arc::new(config), file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_over_tls_is_trusted_by_its_ca_alone_and_shown_the_token() {
    let world = World::new();
    let (server, ca) = tls_server(world.place.path());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/in", listener.local_addr().unwrap().port());
    let heads = Received::default();
    let kept = Arc::clone(&heads);
    tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(server);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(stream) = acceptor.accept(stream).await else { continue };
            let kept = Arc::clone(&kept);
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                while let Some((head, _)) = request(&mut stream).await {
                    kept.lock().push(head);
                    let reply = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                    stream.write_all(reply).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    let token = world.place.path().join("token");
    std::fs::write(&token, "s3cret-token\n").unwrap();
    let config = SinksConfig { ca: Some(ca), token: Some(token), ..world.config(&[&url]) };
    let sinks = start(&config);
    world.write(2).await;
    until("it arrived", || status(&sinks, 0).seq == 2).await;
    let head = heads.lock().last().unwrap().to_lowercase();
    assert!(head.contains("authorization: bearer s3cret-token"), "{head}");
    assert!(head.contains("lastkey-last-seq: 2"), "{head}");
    sinks.stop(Duration::from_secs(1)).await;

    // Another CA.
    let (_, other) = tls_server(world.place.path());
    let sinks = start(&SinksConfig { ca: Some(other), ..config });
    world.write(1).await;
    until("it is refused", || !status(&sinks, 0).ok).await;
    assert_eq!(status(&sinks, 0).seq, 2);
}

#[test]
fn a_sink_is_named_once() {
    let world = World::new();
    let refused = Sinks::prepare(&world.config(&["stdout", "stdout"])).err().unwrap();
    assert!(refused.to_string().contains("twice"), "{refused}");
    // A query is not shown, and so tells nothing apart: not their places, not their metrics.
    let queries = ["https://siem/in?token=s3cret", "https://siem/in?token=other"];
    let refused = Sinks::prepare(&world.config(&queries)).err().unwrap().to_string();
    assert!(refused.contains("different paths") && !refused.contains("s3cret"), "{refused}");
    assert!("syslog".parse::<SinkAddress>().is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_a_power_cut_emptied_costs_no_record_and_no_start() {
    let world = World::new();
    let (url, received) = receiver(|_| Some(200)).await;
    let config = world.config(&[&url]);
    carry(&config, &world, 5).await;
    world.write(3).await;
    for content in ["", "\0\0\0\0"] {
        std::fs::write(world.place_file(), content).unwrap();
        received.lock().clear();
        let sinks = start(&config);
        until("all from the oldest", || received.lock().len() == 8).await;
        let remark = status(&sinks, 0).remark.unwrap();
        assert!(remark.contains("began again"), "{remark}");
        sinks.stop(Duration::from_secs(5)).await;
        assert_eq!(
            received.lock().iter().map(|line| seq(line)).collect::<Vec<_>>(),
            [1, 2, 3, 4, 5, 6, 7, 8]
        );
    }
    // It is whole again.
    received.lock().clear();
    let sinks = start(&config);
    world.write(1).await;
    until("what is new", || status(&sinks, 0).seq == 9).await;
    assert_eq!((received.lock().len(), status(&sinks, 0).remark), (1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_cannot_be_written_keeps_no_sink_from_starting() {
    let world = World::new();
    world.write(2).await;
    let config = world.config(&[]);
    until("they are in the file", || Follower::end(&config.audit).unwrap().seq == 2).await;
    let (url, received) = receiver(|_| Some(200)).await;
    let config = world.config(&[&url]);
    // Where the file is to be written, there is something that does not go away.
    let name = hex::encode(&lastkey_crypto::mac::sha256(&[url.as_bytes()])[..8]);
    let file = config.places.join(format!("{name}.json"));
    let in_the_way = config.places.join(format!("{name}.json.new"));
    std::fs::create_dir_all(in_the_way.join("inside")).unwrap();
    let sinks = start(&config);
    world.write(3).await;
    until("it arrived", || status(&sinks, 0).seq == 5).await;
    assert_eq!(received.lock().iter().map(|line| seq(line)).collect::<Vec<_>>(), [3, 4, 5]);
    assert!(!file.exists());
    // Once there is room, it is made up for, without another record.
    std::fs::remove_dir_all(in_the_way).unwrap();
    until("it is remembered", || file.exists()).await;
    sinks.stop(Duration::from_secs(5)).await;

    // No directory can be made at all.
    let config = SinksConfig { places: file.join("below a file"), ..config };
    let sinks = start(&config);
    until("it goes on", || status(&sinks, 0).ok && status(&sinks, 0).seq == 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_written_while_records_arrive_and_at_the_end() {
    let world = World::new();
    let (url, _received) = receiver(|_| Some(200)).await;
    let config = world.config(&[&url]);
    let sinks = start(&config);
    let kept = || -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(world.place_file()).unwrap()).unwrap()
    };
    assert_eq!(kept()["seq"], 0);
    world.write(7).await;
    until("it is remembered", || kept()["seq"] == 7).await;
    world.write(1).await;
    until("it arrived", || status(&sinks, 0).seq == 8).await;
    sinks.stop(Duration::from_secs(5)).await;
    let text = std::fs::read_to_string(
        world.place.path().join("audit").join("segment-00000000000000000001.jsonl"),
    );
    let last = lastkey_crypto::mac::sha256(&[text.unwrap().lines().last().unwrap().as_bytes()]);
    assert_eq!((&kept()["seq"], &kept()["hash"]), (&8.into(), &hex::encode(last).into()));
}

/// docs/quickstart.md: move `audit/` away to begin a new log.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_log_is_carried_from_its_beginning() {
    // Shorter than what was carried of the first one, as long, and longer.
    for (records, is_of_an_older_release) in [(4, false), (4, true), (30, false), (40, false)] {
        let world = World::new();
        let (url, received) = receiver(|_| Some(200)).await;
        let config = world.config(&[&url]);
        carry(&config, &world, 30).await;
        if is_of_an_older_release {
            let text = std::fs::read_to_string(world.place_file()).unwrap();
            let mut kept: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(kept.as_object_mut().unwrap().remove("hash").is_some());
            std::fs::write(world.place_file(), kept.to_string()).unwrap();
        }
        let world = world.moved_away();
        // Not the same records again.
        world.log.append(br#""action":"Another""#.to_vec()).await.unwrap();
        world.write(records - 1).await;
        received.lock().clear();
        let mut sinks = Sinks::prepare(&config).unwrap();
        sinks.start();
        if records < 30 {
            // A crash may have kept the log's end from its segments, until it is opened.
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert_eq!((status(&sinks, 0).seq, received.lock().len()), (30, 0));
            assert_eq!(status(&sinks, 0).remark, None);
        }
        sinks.log_is_open();
        until("all of the new log", || {
            received.lock().len() >= records && status(&sinks, 0).seq == records as u64
        })
        .await;
        let numbers: Vec<u64> = received.lock().iter().map(|line| seq(line)).collect();
        assert_eq!(numbers, (1..=records as u64).collect::<Vec<_>>());
        let remark = status(&sinks, 0).remark.unwrap();
        assert!(remark.contains("record 30"), "{remark}");
        sinks.stop(Duration::from_secs(5)).await;
        // From then on it is the sink's log.
        let sinks = start(&config);
        world.write(1).await;
        until("what is new", || status(&sinks, 0).seq == records as u64 + 1).await;
        assert_eq!((received.lock().len(), status(&sinks, 0).remark), (records + 1, None));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_deleted_is_no_other_log() {
    let seed = KeyMaterial::from_slice(&[9; 32]);
    let clock = Arc::new(ManualClock::at(Timestamp::from_millis(1_767_225_600_000)));
    let by = Checkpointing::new(SigningKey::from_seed(seed).unwrap(), clock);
    let world = World::with(AuditOptions {
        segment_bytes: 10_000,
        retention: Retention { bytes: Some(1), age: None },
        checkpoints: Some(by),
        ..AuditOptions::default()
    });
    let (url, received) = receiver(|_| Some(200)).await;
    let config = world.config(&[&url]);
    carry(&config, &world, 100).await;
    for _ in 0..10 {
        world.write(30).await;
    }
    // What was carried last is gone, and then what was carried last is what the oldest is behind.
    for more in [0, 1] {
        let deletion = world.log.to_delete(None).unwrap().unwrap();
        world.log.delete(&deletion).unwrap();
        received.lock().clear();
        let sinks = start(&config);
        let end = Follower::end(&config.audit).unwrap().seq;
        until("the rest", || status(&sinks, 0).seq == end).await;
        assert_eq!(status(&sinks, 0).remark, None, "{more}");
        sinks.stop(Duration::from_secs(5)).await;
        for _ in 0..10 {
            world.write(30).await;
        }
    }
}

/// A receiver that would be asked again at once is given time all the same.
#[tokio::test(flavor = "multi_thread")]
async fn no_receiver_is_asked_without_a_pause() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let mut stream = BufReader::new(listener.accept().await.unwrap().0);
            while request(&mut stream).await.is_some() {
                count.fetch_add(1, Ordering::Relaxed);
                let busy = "HTTP/1.1 429 X\r\ncontent-length: 0\r\nretry-after: 0\r\n\r\n";
                stream.write_all(busy.as_bytes()).await.unwrap();
            }
        }
    });
    let sinks = start(&world.config(&[&url]));
    world.write(1).await;
    until("it was asked again", || asked.load(Ordering::Relaxed) > 1).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let times = asked.load(Ordering::Relaxed);
    assert!((3..8).contains(&times), "{times} times");
    assert!(!status(&sinks, 0).ok);
    sinks.stop(Duration::from_millis(100)).await;
}
