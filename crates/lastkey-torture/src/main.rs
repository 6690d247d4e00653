//! `lastkey-torture`: crashes store and audit log until it is told to stop, or finds something.
//!
//! Each history runs in a process of its own kind (the scheduler watches all threads of its
//! process), several of them side by side.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a tool that talks to a terminal")]

use std::{
    hash::{BuildHasher, RandomState},
    io::{self, BufRead, BufReader},
    process::{Child, Command, ExitCode, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    time::{Duration, Instant},
};

use clap::Parser;
use lastkey_torture::{
    disk::Lie,
    history::{CRASHES, History, Report},
};
use serde_json::{Value, json};

/// How often progress is shown.
const SHOW_EVERY: Duration = Duration::from_secs(5);

/// Crashes the embedded store and the audit log at chosen moments, and holds what is left against
/// what was acknowledged.
#[derive(Parser)]
struct Options {
    /// The seed of the first history; the next ones count up. Drawn and printed if it is not given
    #[arg(long)]
    seed: Option<u64>,
    /// Stop after so many crashes (histories are run to their end); 1000 unless --minutes is given
    #[arg(long)]
    crashes: Option<usize>,
    /// Stop after so many minutes
    #[arg(long)]
    minutes: Option<f64>,
    /// Processes side by side; as many as there are processors if it is not given
    #[arg(long)]
    workers: Option<usize>,
    /// Let the simulated disk lie: it says it synced files whose name begins so, and did not. The
    /// crash tester must notice (`journal`, `store`)
    #[arg(long)]
    lie: Option<String>,
    /// Run single histories and print their reports, as the processes side by side do
    #[arg(long, hide = true)]
    worker: Option<u64>,
}

fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| "off".into()))
        .with_writer(io::stderr)
        .init();
    let options = Options::parse();
    let outcome = match (options.worker, options.seed) {
        (Some(stride), Some(seed)) => work(seed, stride, &options),
        _ => lead(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("lastkey-torture: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs history after history, and prints a line about each, until nobody reads them any more.
fn work(mut seed: u64, stride: u64, options: &Options) -> io::Result<bool> {
    use io::Write as _;
    stay_on_one_processor(seed);
    loop {
        let lie = options.lie.clone().map(|file| Lie { file });
        let report = History::new(seed, lie).run(CRASHES);
        writeln!(io::stdout(), "{}", to_json(&report))?;
        seed = seed.wrapping_add(stride);
    }
}

/// Whoever shares work among as many helpers as there are processors does it alone then, and in the
/// same order each time.
fn stay_on_one_processor(number: u64) {
    let Ok(mine) = rustix::thread::sched_getaffinity(None) else { return };
    let mine: Vec<usize> =
        (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| mine.is_set(*cpu)).collect();
    let chosen = usize::try_from(number).unwrap_or(0).checked_rem(mine.len());
    if let Some(cpu) = chosen.and_then(|index| mine.get(index)) {
        let mut only = rustix::thread::CpuSet::new();
        only.set(*cpu);
        let _ = rustix::thread::sched_setaffinity(None, &only);
    }
}

fn to_json(report: &Report) -> Value {
    json!({
        "seed": report.seed,
        "crashes": report.crashes,
        "sudden": report.sudden,
        "commands": report.commands,
        "changes": report.changes,
        "troubles": report.troubles,
        "restarts": report.restarts,
        "deleted": report.deleted,
        "trace": format!("{:016x}", report.trace),
        "failure": report.failure,
    })
}

/// What a worker said, or that the person has had enough.
enum News {
    Report(Value),
    Gone,
    Interrupted,
}

/// Starts the workers, and adds up what they say.
fn lead(options: &Options) -> io::Result<bool> {
    let seed = options.seed.unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = options.workers.unwrap_or(processors).max(1);
    println!("seed {seed}, {workers} at a time");
    let (sender, news) = mpsc::channel();
    let mut running = Vec::new();
    for number in 0..workers as u64 {
        running.push(start(seed.wrapping_add(number), workers, options, sender.clone())?);
    }
    watch_for_interrupts(sender);
    let total = gather(options, &news);
    for worker in &mut running {
        // It may have ended by itself.
        let _ = worker.kill();
        let _ = worker.wait();
    }
    println!("{total}");
    match &total.failure {
        None => Ok(true),
        Some((seed, what)) => {
            println!("\nFAILED: {what}\n");
            println!("again: cargo xtask torture --seed {seed} --crashes 1 --workers 1");
            println!("more:  RUST_LOG=lastkey_torture=debug,lastkey_engine=info, the same\n");
            Ok(false)
        }
    }
}

fn start(seed: u64, stride: usize, options: &Options, news: Sender<News>) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--seed", &seed.to_string(), "--worker", &stride.to_string()]);
    if let Some(lie) = &options.lie {
        command.args(["--lie", lie]);
    }
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let lines = child.stdout.take().map(BufReader::new);
    std::thread::spawn(move || {
        for line in lines.into_iter().flat_map(BufRead::lines).map_while(Result::ok) {
            let Ok(report) = serde_json::from_str(&line) else { break };
            if news.send(News::Report(report)).is_err() {
                return;
            }
        }
        let _ = news.send(News::Gone);
    });
    Ok(child)
}

fn watch_for_interrupts(news: Sender<News>) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        if runtime.is_ok_and(|runtime| runtime.block_on(tokio::signal::ctrl_c()).is_ok()) {
            let _ = news.send(News::Interrupted);
        }
    });
}

#[derive(Default)]
struct Total {
    histories: u64,
    crashes: u64,
    sudden: u64,
    commands: u64,
    changes: u64,
    troubles: u64,
    restarts: u64,
    deleted: u64,
    failure: Option<(u64, String)>,
}

impl std::fmt::Display for Total {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { histories, crashes, sudden, commands, changes, troubles, .. } = self;
        let Self { restarts, deleted, .. } = self;
        write!(
            f,
            "{crashes} crashes ({sudden} in the middle of something) in {histories} histories: \
             {commands} commands, {changes} changes of the disk, {troubles} lives in which it \
             failed or was full, {restarts} restarts asked for, {deleted} old segments deleted"
        )
    }
}

impl Total {
    fn add(&mut self, report: &Value) {
        let number = |name: &str| report[name].as_u64().unwrap_or(0);
        self.histories += 1;
        self.crashes += number("crashes");
        self.sudden += number("sudden");
        self.commands += number("commands");
        self.changes += number("changes");
        self.troubles += number("troubles");
        self.restarts += number("restarts");
        self.deleted += number("deleted");
        if let Some(failure) = report["failure"].as_str() {
            let what =
                format!("{failure}\n(seed {}, life {})", number("seed"), number("crashes") + 1);
            self.failure = Some((number("seed"), what));
        }
    }
}

/// Until there were enough crashes, the time is over, something is wrong, or somebody interrupts.
fn gather(options: &Options, news: &Receiver<News>) -> Total {
    let enough = options.crashes.or(options.minutes.is_none().then_some(1000));
    let enough = enough.map_or(u64::MAX, |crashes| crashes as u64);
    let began = Instant::now();
    let end = options.minutes.map(|minutes| began + Duration::from_secs_f64(minutes * 60.0));
    let (mut total, mut shown) = (Total::default(), Instant::now());
    while total.crashes < enough && total.failure.is_none() {
        if end.is_some_and(|end| Instant::now() >= end) {
            break;
        }
        match news.recv_timeout(Duration::from_millis(200)) {
            Ok(News::Report(report)) => total.add(&report),
            Ok(News::Gone) => total.failure = Some((0, "a process ended by itself".to_owned())),
            Ok(News::Interrupted) | Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if shown.elapsed() > SHOW_EVERY {
            shown = Instant::now();
            eprintln!("{:>5} s  {total}", began.elapsed().as_secs());
        }
    }
    total
}
