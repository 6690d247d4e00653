//! Promise 9: overload sheds, never hangs. The real binary, real sockets, and a load generator;
//! each test is one sentence of `docs/promises/overload.md`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "what was measured is worth seeing")]

#[path = "load/grpc.rs"]
mod grpc;
mod load;
mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use grpc::Frames;
use lastkey_testbed::{Lastkey, Running};
use load::{ENCRYPT, Http, Load, Target, Who, encrypt, get, post};
use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use support::Lab;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Mutex, MutexGuard},
    task::JoinSet,
};

const MIB: u64 = 1 << 20;
const STOP: Duration = Duration::from_secs(10);

/// Two of these at a time would measure each other.
static ALONE: Mutex<()> = Mutex::const_new(());

/// A running server, and nobody else beside it but, for comparison, one that nobody attacks.
struct House {
    up: Running,
    target: Target,
    calm: Option<(Running, Target, Lab)>,
    _lab: Lab,
    _alone: MutexGuard<'static, ()>,
}

impl House {
    async fn open() -> Self {
        Self::with("", "").await
    }

    /// With another server to compare with.
    async fn open_with_another() -> Self {
        let mut house = Self::open().await;
        let lab = Lab::new();
        let up = lab.up();
        let target = Target::of(&up);
        house.calm = Some((up, target, lab));
        house
    }

    /// Starts `up` with more options, after a command of the shell.
    async fn with(before: &str, options: &str) -> Self {
        let alone = ALONE.lock().await;
        let limit = getrlimit(Resource::Nofile);
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
        let lab = Lab::new();
        let script = lab.path("lastkey.sh");
        let binary = env!("CARGO_BIN_EXE_lastkey");
        let text = format!("#!/bin/sh\n{before}\nexec {binary} \"$@\" {options}\n");
        fs::write(&script, text).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        let lastkey = Lastkey::new(script, lab.path(""));
        let up = lastkey.up(&lab.path("data"), "127.0.0.1:0").unwrap();
        let target = Target::of(&up);
        Self { up, target, calm: None, _lab: lab, _alone: alone }
    }

    /// A second after the end of what happened, it is as fast as a server to which nothing
    /// happened.
    async fn is_at_full_speed(&self, what: &str) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (_, calm, _) = self.calm.as_ref().unwrap();
        let ratio = load::beside(&self.target, calm).await;
        eprintln!("a second after {what}: {ratio:.2} of the speed of a server that had none");
        assert!(ratio > 0.6, "{what}: {ratio:.2} of full speed");
    }

    fn stops(&mut self) -> Duration {
        let began = Instant::now();
        let status = self.up.process.stop(Signal::TERM, STOP).unwrap();
        assert_eq!(status.code(), Some(0));
        began.elapsed()
    }
}

/// Asks for health all the while that `work` takes.
async fn beside_health<T>(target: &Target, work: impl Future<Output = T>) -> T {
    let stop = Arc::new(AtomicBool::new(false));
    let health = tokio::spawn(target.clone().watch_health(Arc::clone(&stop)));
    let done = work.await;
    stop.store(true, Ordering::SeqCst);
    let (count, longest) = health.await.unwrap();
    eprintln!("health was answered {count} times, within {longest:?}");
    assert!(count > 0 && longest < Duration::from_secs(8), "{count} times, {longest:?}");
    done
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirteen_hundred_clients_at_once_are_served() {
    let house = House::open_with_another().await;
    let target = &house.target;
    let calm = target.memory();
    let mut peaks = Vec::new();
    for _ in 0..2 {
        let load = Load::start(target, Who::Plugin, 1300, encrypt()).await;
        let peak = beside_health(target, async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            target.memory()
        });
        peaks.push(peak.await.saturating_sub(calm) / MIB);
        let tally = load.stop().await;
        eprintln!("1300 clients: {tally:?}");
        assert_eq!((tally.failed, tally.other, tally.refused), (0, 0, 0), "{tally:?}");
        assert!(tally.ok >= 1300 && tally.ok > 10 * tally.busy, "{tally:?}");
    }
    eprintln!("1300 clients took {peaks:?} MiB over {} MiB", calm / MIB);
    assert!(peaks[0] < 160, "1300 clients take {} MiB", peaks[0]);
    assert!(
        peaks[1] < peaks[0] + peaks[0] / 4 + 16,
        "memory grows from wave to wave: {peaks:?} MiB"
    );
    house.is_at_full_speed("1300 clients").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_connections_keeps_nobody_out_and_delays_no_stop() {
    flood_of_connections(b"", 64).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_that_stop_keeps_nobody_out_and_delays_no_stop() {
    flood_of_connections(b"\x16", 96).await;
}

/// Each of them says `first`, and then nothing; together they may take so many MiB.
async fn flood_of_connections(first: &'static [u8], memory: u64) {
    let mut house = House::open_with_another().await;
    let target = house.target.clone();
    let calm = target.memory();
    let stop = Arc::new(AtomicBool::new(false));
    let count = Arc::new(AtomicU64::new(0));
    let flood = {
        let (address, stop, count) = (target.address, Arc::clone(&stop), Arc::clone(&count));
        tokio::spawn(async move {
            let mut open = std::collections::VecDeque::new();
            while !stop.load(Ordering::SeqCst) {
                if let Ok(mut stream) = TcpStream::connect(address).await {
                    let _ = stream.write_all(first).await;
                    open.push_back(stream);
                    count.fetch_add(1, Ordering::SeqCst);
                }
                if open.len() > 6000 {
                    open.pop_front();
                }
            }
            open
        })
    };
    let good = Load::start(&target, Who::Plugin, 8, encrypt()).await;
    beside_health(&target, async {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(3) || count.load(Ordering::SeqCst) <= 3000 {
            assert!(began.elapsed() < Duration::from_secs(60), "too few connections are tried");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    let tally = good.stop().await;
    let (grown, descriptors) = (target.memory().saturating_sub(calm) / MIB, target.descriptors());
    stop.store(true, Ordering::SeqCst);
    let silent = flood.await.unwrap();
    eprintln!("{count:?} connections: {grown} MiB, {descriptors} descriptors, good: {tally:?}");
    assert!(target.shed("newcomers").await > 0, "nobody had to leave");
    assert_eq!((tally.failed, tally.other, tally.busy), (0, 0, 0), "{tally:?}");
    assert!(tally.ok > 100, "{tally:?}");
    assert!(descriptors < 2048 + 600, "{descriptors} descriptors");
    assert!(grown < memory, "a flood of connections takes {grown} MiB");
    house.is_at_full_speed("a flood of connections").await;
    let took = house.stops();
    eprintln!("the stop took {took:?} with {} silent connections", silent.len());
    assert!(took < Duration::from_secs(5), "it took {took:?}");
}

/// What slow and endless clients send; each of them goes on until it is stopped.
async fn slow(target: Target, kind: usize) -> u16 {
    let announced = post("/v1/plugin/encrypt", &"x".repeat(100_000));
    let head = announced.len() - 100_000;
    let mut http = target.open(Who::Plugin).await.unwrap();
    let begun = match kind {
        0 => announced[..head].to_vec(),
        1 => b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_vec(),
        _ => b"GET / HTTP/1.1\r\nhost: x\r\n".to_vec(),
    };
    http.stream.write_all(&begun).await.unwrap();
    let piece = match kind {
        // A byte a second.
        0 => b"x".to_vec(),
        // As fast as it goes, without an end.
        1 => [b"4000\r\n".as_slice(), &[b'x'; 0x4000], b"\r\n"].concat(),
        // A header now and then, or as many as it takes.
        2 => b"x-a: b\r\n".to_vec(),
        _ => format!("x-{}: {}\r\n", "y".repeat(100), "z".repeat(4000)).into_bytes(),
    };
    let pause = Duration::from_millis(if kind.is_multiple_of(2) { 1000 } else { 1 });
    loop {
        if http.stream.write_all(&piece).await.is_err() || http.stream.flush().await.is_err() {
            break;
        }
        if let Ok(answer) = tokio::time::timeout(pause, http.answer()).await {
            return answer.map_or(0, |answer| answer.status);
        }
    }
    // A server that answers and closes while we still send may be heard or not.
    http.answer().await.map_or(0, |answer| answer.status)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_slow_and_the_endless_are_let_go() {
    let house = House::open_with_another().await;
    let target = &house.target;
    let calm = target.memory();
    let mut slow_ones = JoinSet::new();
    for number in 0..400 {
        let target = target.clone();
        let kind = number % 4;
        slow_ones.spawn(async move {
            let began = Instant::now();
            (kind, slow(target, kind).await, began.elapsed())
        });
    }
    let good = Load::start(target, Who::Plugin, 8, encrypt()).await;
    let mut peak = 0;
    let all = beside_health(target, async {
        let all = slow_ones.join_all();
        tokio::pin!(all);
        loop {
            tokio::select! {
                all = &mut all => break all,
                () = tokio::time::sleep(Duration::from_millis(100)) => {
                    peak = peak.max(target.memory());
                }
            }
        }
    });
    let all =
        tokio::time::timeout(Duration::from_secs(40), all).await.expect("some are still open");
    let tally = good.stop().await;
    let grown = peak.saturating_sub(calm) / MIB;
    for kind in 0..4 {
        let told = all.iter().filter(|(k, ..)| *k == kind);
        let (answers, longest): (Vec<_>, Vec<_>) = told.map(|(_, s, took)| (*s, *took)).unzip();
        let expected = [408, 413, 0, 431][kind];
        let longest = longest.into_iter().max().unwrap();
        eprintln!("kind {kind}: within {longest:?}");
        let allowed = |status: u16| status == 0 || status == expected || status == 429;
        assert!(answers.iter().all(|&status| allowed(status)), "{kind}: {answers:?}");
        assert!(longest < Duration::from_secs(25), "{kind}: {longest:?}");
    }
    eprintln!("400 slow and endless ones: {grown} MiB, good: {tally:?}");
    assert!(grown < 160, "they took {grown} MiB");
    assert_eq!((tally.failed, tally.other, tally.busy), (0, 0, 0), "{tally:?}");
    assert!(target.shed("slow_body").await > 0);
    house.is_at_full_speed("the slow ones").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_no_answers_is_let_go() {
    let house = House::open().await;
    let target = &house.target;
    let calm = target.memory();
    let mut readers = JoinSet::new();
    for _ in 0..50 {
        let target = target.clone();
        readers.spawn(async move {
            let mut http = target.open(Who::Nobody).await.unwrap();
            let asked = get("/metrics").repeat(200);
            // The answers fill every buffer on the way, and then nobody takes our requests.
            while http.stream.write_all(&asked).await.is_ok() {}
        });
    }
    let all = beside_health(target, readers.join_all());
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("slow readers are still open");
    let grown = target.memory().saturating_sub(calm) / MIB;
    eprintln!("50 who read nothing: {grown} MiB");
    assert!(target.shed("slow_reader").await >= 50);
    assert!(grown < 64, "they took {grown} MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_principal_has_its_fair_share_and_the_rest_is_told_when_to_come_back() {
    let house = House::with("", "--max-requests 4").await;
    let target = &house.target;
    let administrator = "/?Action=Encrypt&Version=2016-01-20&KeyId=alias/kubernetes&Plaintext=seed";
    let alone = Load::start(target, Who::Local, 4, post(administrator, "")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alone = alone.stop().await;
    assert_eq!((alone.busy, alone.failed, alone.other, alone.refused), (0, 0, 0, 0), "{alone:?}");

    let greedy = Load::start(target, Who::Local, 200, post(administrator, "")).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let modest = Load::start(target, Who::Plugin, 4, encrypt()).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let (modest, greedy) = (modest.stop().await, greedy.stop().await);
    eprintln!("alone {alone:?}\ngreedy {greedy:?}\nmodest {modest:?}");
    // 200 connections of one against 4 of the other: the other is never refused.
    assert_eq!((modest.busy, modest.failed, modest.other), (0, 0, 0), "{modest:?}");
    assert!(modest.longest < 5000, "{modest:?}");
    // Two of four places would be its half; its share without any would be a fiftieth.
    assert!(modest.ok * 8 > greedy.ok, "{modest:?} beside {greedy:?}");
    assert!(greedy.busy > 0 && greedy.failed + greedy.other == 0, "{greedy:?}");
    assert!(greedy.ok > 0, "who has much is served as well");
    assert!(target.shed("queue_displaced").await + target.shed("queue_full").await > 0);
}

/// A request that claims to be root's.
fn forged() -> Vec<u8> {
    let hash = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    format!(
        "POST / HTTP/1.1\r\nhost: localhost\r\nx-acs-action: ListKeys\r\n\
         x-acs-version: 2016-01-20\r\nx-acs-date: 2026-01-01T00:00:00Z\r\n\
         x-acs-signature-nonce: 0123456789\r\nx-acs-content-sha256: {hash}\r\n\
         content-length: 0\r\nauthorization: ACS3-HMAC-SHA256 Credential=KEY,SignedHeaders=host;\
         x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version,\
         Signature={hash}\r\n\r\n"
    )
    .into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_signatures_cost_little_and_starve_nobody() {
    let house = House::open_with_another().await;
    let target = &house.target;
    let credentials = fs::read_to_string(&house.up.ready.credentials_file).unwrap();
    let credentials: serde_json::Value = serde_json::from_str(&credentials).unwrap();
    let key = credentials["access_key_id"].as_str().unwrap();
    let forged = String::from_utf8(forged()).unwrap().replace("KEY", key).into_bytes();
    let told = target.once(Who::Nobody, &forged).await.unwrap();
    assert!(told.body.contains("SignatureDoesNotMatch"), "{}", told.body);

    let before = target.speed().await;
    let (calm, records) = (target.memory(), target.metric("lastkey_audit_records").await);
    let wrong = Load::start(target, Who::Nobody, 32, forged).await;
    let good = Load::start(target, Who::Plugin, 8, encrypt()).await;
    let began = Instant::now();
    let mut memory = Vec::new();
    beside_health(target, async {
        for _ in 0..6 {
            tokio::time::sleep(Duration::from_millis(500)).await;
            memory.push(target.memory().saturating_sub(calm) / MIB);
        }
    })
    .await;
    let (good, elapsed) = (good.stop().await, began.elapsed().as_secs_f64());
    let wrong = wrong.stop().await;
    let rate = wrong.refused as f64 / elapsed;
    let recorded = target.metric("lastkey_audit_records").await - records;
    eprintln!(
        "{rate:.0} wrong signatures a second; {before:.0}/s before; memory over {} MiB, each half \
         second: {memory:?} MiB; good: {good:?}",
        calm / MIB
    );
    assert_eq!((wrong.ok, wrong.other, wrong.failed), (0, 0, 0), "{wrong:?}");
    assert_eq!((good.busy, good.failed, good.other, good.refused), (0, 0, 0, 0), "{good:?}");
    // An eighth of the connections are good ones; a twentieth of the speed is theirs at least.
    assert!(good.ok as f64 / elapsed > before / 20.0, "{good:?}, {before:.0}/s before");
    assert!(good.longest < 2500, "{good:?}");
    // To refuse is cheaper than to serve. In an optimised build there is a number for it.
    assert!(rate > before / 2.0, "{rate:.0}/s are refused, {before:.0}/s served");
    if !cfg!(debug_assertions) {
        assert!(rate > 10_000.0, "{rate:.0} wrong signatures a second");
    }
    assert!(recorded < good.ok + 200, "{recorded} records for {} good calls", good.ok);
    assert!(memory.iter().all(|grown| *grown < 64), "they took {memory:?} MiB");
    // What the first second took is all there is.
    assert!(memory[5] <= memory[1] + 24, "memory grows: {memory:?} MiB");
    house.is_at_full_speed("wrong signatures").await;
}

/// What a flood sends in each round, and whether it reads what comes back.
type Flood = (&'static str, bool, Box<dyn FnMut(u32) -> Vec<u8> + Send>);

fn floods() -> Vec<Flood> {
    use grpc::{CONTINUATION, DATA, END_HEADERS, HEADERS, PING, RST_STREAM, SETTINGS, frame};
    let stream = |round: u32| (2 * round + 1) & 0x7fff_ffff;
    let open = move |round| frame(HEADERS, END_HEADERS, stream(round), &grpc::status_head());
    let reset = move |round| [open(round), frame(RST_STREAM, 0, stream(round), &[0; 4])].concat();
    let made_you = move |round| {
        // A window update of nothing makes the server reset the stream by itself.
        [open(round), frame(8, 0, stream(round), &[0; 4])].concat()
    };
    let first = |round| if round == 0 { HEADERS } else { CONTINUATION };
    let header = [0x40, 1, b'x', 1, b'y'].repeat(200);
    let table = [0xbe; 12_000];
    let bomb = move |round| {
        // One large entry of the dynamic table, named again and again.
        let entry = [&[0x40, 1, b'x', 0x7f, 0x80, 0x1d][..], &[b'y'; 3839]].concat();
        let block = [grpc::status_head(), entry, table.to_vec()].concat();
        frame(HEADERS, END_HEADERS, stream(round), &block)
    };
    vec![
        ("rapid reset", true, Box::new(reset)),
        ("made you reset", true, Box::new(made_you)),
        ("pings", true, Box::new(|_| frame(PING, 0, 0, &[0; 8]).repeat(50))),
        ("pings unread", false, Box::new(|_| frame(PING, 0, 0, &[0; 8]).repeat(50))),
        ("settings", true, Box::new(|_| frame(SETTINGS, 0, 0, &[]).repeat(50))),
        ("empty continuations", true, Box::new(move |n| frame(first(n), 0, 1, &[]))),
        ("continuations", true, Box::new(move |n| frame(first(n), 0, 1, &header))),
        ("header table bomb", true, Box::new(bomb)),
        ("empty data", true, {
            Box::new(move |n| if n == 0 { open(0) } else { frame(DATA, 0, 1, &[]).repeat(50) })
        }),
        ("not HTTP/2", true, Box::new(|_| vec![b'x'; 4096])),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_floods_on_the_plugin_socket_end_and_status_is_answered() {
    let house = House::open().await;
    let (target, socket) = (&house.target, house.target.plugin_socket.clone());
    grpc::status(&socket).await.unwrap();
    let calm = target.memory();
    let mut attacks = JoinSet::new();
    for (name, reads, what) in floods() {
        let socket = socket.clone();
        attacks.spawn(async move {
            let frames = Frames::open(&socket).await;
            (name, frames.flood(what, (reads, Duration::from_secs(15))).await)
        });
    }
    // Streams that are opened and never finished, answers that are never read; and silence.
    let mut held = Vec::new();
    for connection in 0..40 {
        let mut frames = Frames::open(&socket).await;
        for stream in 0..(connection % 2) * 200 {
            let head = grpc::status_head();
            let open = grpc::frame(grpc::HEADERS, grpc::END_HEADERS, 2 * stream + 1, &head);
            let _ = frames.0.write_all(&open).await;
        }
        held.push(frames);
    }
    let mut longest = Duration::ZERO;
    let mut peak = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(6) {
        let asked = Instant::now();
        let status = tokio::time::timeout(Duration::from_secs(3), grpc::status(&socket));
        status.await.expect("Status is not answered within its deadline").unwrap();
        longest = longest.max(asked.elapsed());
        peak = peak.max(target.memory());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let grown = peak.saturating_sub(calm) / MIB;
    eprintln!("Status was answered within {longest:?}; {grown} MiB");
    for (name, ended) in attacks.join_all().await {
        assert_eq!(ended, Ok(()), "{name} is not stopped (bytes sent)");
    }
    assert!(grown < 96, "floods took {grown} MiB");
    drop(held);
    grpc::status(&socket).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_vanishes_during_a_long_poll_frees_his_place() {
    let house = House::open().await;
    let target = &house.target;
    let known = post("/v1/plugin/status", r#"{"key":"alias/kubernetes"}"#);
    let known = target.once(Who::Plugin, &known).await.unwrap();
    let known: serde_json::Value = serde_json::from_str(&known.body).unwrap();
    let body = serde_json::json!({
        "key": "alias/kubernetes", "known": known["token"], "wait_seconds": 60,
    });
    let poll = post("/v1/plugin/status", &body.to_string());
    let calm = target.metric("lastkey_requests_under_way").await;
    let mut polls = Vec::new();
    for _ in 0..100 {
        let mut http = target.open(Who::Plugin).await.unwrap();
        http.stream.write_all(&poll).await.unwrap();
        http.stream.flush().await.unwrap();
        polls.push(http);
    }
    let reach = async |enough: &dyn Fn(u64) -> bool| {
        let began = Instant::now();
        while !enough(target.metric("lastkey_requests_under_way").await) {
            assert!(began.elapsed() < Duration::from_secs(20), "the places do not change");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        began.elapsed()
    };
    reach(&|count| count >= calm + 100).await;
    drop(polls);
    let took = reach(&|count| count < calm + 5).await;
    eprintln!("100 who vanished were noticed within {took:?}");
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    assert_eq!(target.shed("gone").await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_without_descriptors_goes_on() {
    let house = House::with("ulimit -n 200", "").await;
    let target = &house.target;
    let mut silent = Vec::new();
    for _ in 0..600 {
        silent.push(TcpStream::connect(target.address).await.unwrap());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ticks = target.ticks();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let busy = target.ticks() - ticks;
    eprintln!("{busy} ticks of 100 a second, {} descriptors", target.descriptors());
    assert!(busy < 50, "it turns in a loop: {busy} ticks");
    // Somebody new gets in, because somebody silent has to leave.
    let began = Instant::now();
    while target.once(Who::Plugin, &encrypt()).await.map_or(0, |answer| answer.status) != 200 {
        assert!(began.elapsed() < Duration::from_secs(40), "nobody gets in");
    }
    drop(silent);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(target.once(Who::Plugin, &encrypt()).await.unwrap().status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_under_load_finishes_what_was_begun() {
    let mut house = House::open().await;
    let target = house.target.clone();
    // Requests of which half has arrived.
    let request = encrypt();
    let half = request.len() - ENCRYPT.len() / 2;
    let mut begun: Vec<Http> = Vec::new();
    for _ in 0..20 {
        let mut http = target.open(Who::Plugin).await.unwrap();
        http.stream.write_all(&request[..half]).await.unwrap();
        http.stream.flush().await.unwrap();
        begun.push(http);
    }
    // Those that wait, those that do nothing, those that ask without pause.
    let idle = TcpStream::connect(target.address).await.unwrap();
    let load = Load::start(&target, Who::Plugin, 200, encrypt()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let stopped = tokio::task::spawn_blocking(move || (house.stops(), house));
    tokio::time::sleep(Duration::from_millis(300)).await;
    for mut http in begun {
        http.stream.write_all(&request[half..]).await.unwrap();
        http.stream.flush().await.unwrap();
        let answer = http.answer().await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
        assert_eq!(answer.header("connection"), Some("close"));
        let mut rest = [0];
        assert!(matches!(http.stream.read(&mut rest).await, Ok(0) | Err(_)));
    }
    let tally = load.stop().await;
    let (took, house) = stopped.await.unwrap();
    eprintln!("the stop took {took:?}: {tally:?}");
    assert!(took < Duration::from_secs(8), "it took {took:?}");
    // What was on its way is answered, too. On a busy machine, a few clients may take half a second
    // between an answer and their next request, and find their connection closed by then.
    assert_eq!((tally.busy, tally.other), (0, 0), "{tally:?}");
    assert!(tally.failed <= 50, "{tally:?}");
    assert!(tally.ok > 200, "{tally:?}");
    drop((idle, house));
}
