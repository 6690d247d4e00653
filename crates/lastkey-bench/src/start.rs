//! From exec to the first answer with many keys in the store, and how much memory that takes.
//!
//! The stores are made by the product itself, through its API, and kept in `target/bench-stores`:
//! making a million keys takes minutes.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use lastkey_testbed::{Lastkey, Ready};
use redb::{Database, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::{
    cpu::Spent,
    error::Error,
    load::{Caller as _, Connection},
    options::Options,
    report::{Reporter, StartLine, say},
    scenario::Scenario,
    sides::{Account, binary, parse},
    stats::{median, most},
};

/// Who makes keys at one time when a store is made.
const MAKERS: usize = 256;
const PAGE: u64 = 100;
/// Rounds with more keys than this are few.
const MANY: u64 = 200_000;
const FEW_ROUNDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

/// One start.
struct Start {
    ready: Duration,
    readyz: Duration,
    cpu: Duration,
    peak_mib: f64,
}

/// Measures starts with so many keys.
pub(crate) async fn measure(
    options: &Options,
    keys: u64,
    stores: &Path,
    reporter: &mut Reporter,
) -> Result<(), Error> {
    let data = stores.join(keys.to_string());
    let seeded = data.join("seeded");
    if options.fresh_stores || !seeded.is_file() || start(options, &data).await.is_err() {
        seed(options, keys, &data).await?;
        std::fs::write(&seeded, "")?;
        start(options, &data).await?;
    }
    let rounds = if keys > MANY { options.rounds.min(FEW_ROUNDS) } else { options.rounds };
    let mut starts = Vec::new();
    let mut bare = Vec::new();
    for _ in 1..rounds {
        bare.push(open_bare(&data.join("store.redb"))?.as_secs_f64());
        starts.push(start(options, &data).await?.0);
    }
    bare.push(open_bare(&data.join("store.redb"))?.as_secs_f64());
    let (last, mut server) = start(options, &data).await?;
    starts.push(last);
    let begun = Instant::now();
    let listed = list(options, &server.account).await?;
    let list_s = begun.elapsed().as_secs_f64();
    if listed < keys {
        let what = format!("{listed} keys where there are {keys}");
        return Err(Error::Answer { side: "ours", what });
    }
    let listed_mib = peak_mib(server.process.id())?;
    server.stop()?;
    let all = |of: fn(&Start) -> f64| starts.iter().map(of).collect::<Vec<_>>();
    let ready = all(|start| start.ready.as_secs_f64());
    reporter.start(StartLine {
        event: "start",
        keys,
        rounds,
        ready_s: median(ready.iter().copied()),
        ready_s_max: most(&ready),
        readyz_s: median(all(|start| start.readyz.as_secs_f64())),
        cpu_s: median(all(|start| start.cpu.as_secs_f64())),
        ready_mib: most(&all(|start| start.peak_mib)),
        listed_mib,
        list_s,
        store_mib: data.join("store.redb").metadata()?.len() as f64 / f64::from(1 << 20),
        redb_s: median(bare),
    })
}

/// A server that is ready.
struct Server {
    process: Child,
    account: Account,
}

impl Server {
    /// Asks it to stop, and waits.
    fn stop(&mut self) -> Result<(), Error> {
        if let Some(pid) = rustix::process::Pid::from_raw(self.process.id().cast_signed()) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)
                .map_err(std::io::Error::from)?;
        }
        let status = self.process.wait()?;
        if status.success() {
            return Ok(());
        }
        Err(Error::Worker { status, said: "it was asked to stop".to_owned() })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already where nothing went wrong.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the server once.
async fn start(options: &Options, data: &Path) -> Result<(Start, Server), Error> {
    let mut command = Command::new(binary(options)?);
    command.args(["server", "--listen", "127.0.0.1:0", "--output", "json", "--data-dir"]);
    command.arg(data).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let begun = Instant::now();
    let mut process = command.spawn()?;
    let mut line = String::new();
    if let Some(stdout) = process.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    let ready = begun.elapsed();
    let cpu = Spent::by(process.id())?.total();
    let said = serde_json::from_str::<Ready>(&line)
        .map_err(|source| Error::Json { path: PathBuf::from("the ready line"), source });
    let mut server = match said.and_then(|said| Account::of(options, &said)) {
        Ok(account) => Server { process, account },
        Err(error) => {
            let _ = process.kill();
            let _ = process.wait();
            return Err(error);
        }
    };
    let target = server.account.target.clone();
    while !Connection::is_ready(&target).await? {
        if begun.elapsed() > PATIENCE {
            return Err(Error::Answer { side: "ours", what: "/readyz stays red".to_owned() });
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let readyz = begun.elapsed();
    let peak_mib = peak_mib(server.process.id())?;
    if server.process.try_wait()?.is_some() {
        return Err(Error::Answer { side: "ours", what: "nothing any more".to_owned() });
    }
    Ok((Start { ready, readyz, cpu, peak_mib }, server))
}

/// `VmHWM` of proc_pid_status(5).
fn peak_mib(pid: u32) -> Result<f64, Error> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    Ok(kib.ok_or_else(|| std::io::Error::other("/proc/<pid>/status has another form"))? / 1024.0)
}

/// Lists all keys page by page; how many there were.
async fn list(options: &Options, account: &Account) -> Result<u64, Error> {
    let size = PAGE.to_string();
    let (mut listed, mut page) = (0, 1_u64);
    let number = page.to_string();
    let first =
        account.request(options, ("ListKeys", &[("PageNumber", &number), ("PageSize", &size)]));
    let mut connection = Connection::open(&account.target, first, "ours").await?;
    loop {
        let answer = parse(connection.exchange().await?)?;
        let items = answer["Keys"]["Key"].as_array().map_or(0, Vec::len) as u64;
        listed += items;
        if items < PAGE {
            return Ok(listed);
        }
        page += 1;
        let number = page.to_string();
        let parameters = [("PageNumber", number.as_str()), ("PageSize", size.as_str())];
        connection.turn_to(account.request(options, ("ListKeys", &parameters)));
    }
}

/// Makes a store with so many keys: the product's server, asked for them over HTTPS.
async fn seed(options: &Options, keys: u64, data: &Path) -> Result<(), Error> {
    say(&format!("making a store with {keys} keys in {}", data.display()));
    if data.exists() {
        std::fs::remove_dir_all(data)?;
    }
    let logs = data.parent().unwrap_or(data);
    std::fs::create_dir_all(logs)?;
    let begun = Instant::now();
    let mut running = Lastkey::new(binary(options)?, logs).server(data, "127.0.0.1:0")?;
    let account = Account::of(options, &running.ready)?;
    let left = Arc::new(AtomicU64::new(keys));
    let template = account.template(options, Scenario::CreateKeyHttps);
    let mut makers = Vec::new();
    for _ in 0..MAKERS {
        let connection = Connection::open(&account.target, template.clone(), "ours").await?;
        makers.push(tokio::spawn(make(connection, Arc::clone(&left))));
    }
    for maker in makers {
        maker.await??;
    }
    let took = begun.elapsed().as_secs_f64();
    say(&format!("{keys} keys in {took:.1} s, {:.0} a second", keys as f64 / took));
    running.stop()?;
    Ok(())
}

async fn make(mut connection: Connection, left: Arc<AtomicU64>) -> Result<(), Error> {
    let next = |left: u64| left.checked_sub(1);
    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok() {
        connection.call().await?;
    }
    Ok(())
}

/// Opens the store's file with redb alone, as strictly as lastkey does, and reads every entry.
fn open_bare(path: &Path) -> Result<Duration, Error> {
    const ENTRIES: TableDefinition<&str, &[u8]> = TableDefinition::new("entries");
    let begun = Instant::now();
    let mut builder = Database::builder();
    builder.set_cache_size(64 << 20).set_check_integrity_on_open(true);
    let read = || -> Result<usize, redb::Error> {
        let database = builder.open(path)?;
        let entries = database.begin_read()?.open_table(ENTRIES)?;
        let mut bytes = 0;
        for entry in entries.iter()? {
            bytes += entry?.1.value().len();
        }
        Ok(bytes)
    };
    std::hint::black_box(read().map_err(std::io::Error::other)?);
    Ok(begun.elapsed())
}
