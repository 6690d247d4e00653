//! One thread at a time, in an order drawn from the seed.
//!
//! Store, log and runtime have threads of their own, and what a crash leaves depends on how their
//! accesses to the disk interleave. So that a seed repeats a run, each access (and each turn of
//! the runtime) waits here until the scheduler lets it go on, and the scheduler chooses among
//! those who wait only once everybody waits: here, or asleep. Who sleeps is what `/proc` says.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::Random;

/// What somebody waits to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// The runtime has nothing more to do until somebody else goes on.
    Turn,
    /// Something that leaves the disk as it is, such as a look whether it has room again.
    Look,
    /// A change of the disk, or a sync.
    Change,
}

/// How a wait at the gate ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Do it.
    Go,
    /// Do it, but nobody will hear of it: the crash comes before the answer.
    LastBreath,
    /// The crash came before it.
    Dead,
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// All threads ended by themselves.
    Finished,
    /// The crash came.
    Crashed,
    /// Somebody waits for what does not come. Names who sleeps.
    Hung(String),
}

/// How often whom.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The weight of a turn of the runtime: high for a slow disk, low for a fast one.
    pub turn: usize,
    /// The weight of a change.
    pub change: usize,
}

#[derive(Debug)]
struct Waiting {
    step: Step,
    detail: u64,
    verdict: Option<Verdict>,
    bell: Arc<Condvar>,
}

#[derive(Debug, Default)]
struct State {
    /// By the thread's name and id: the order in which the scheduler counts them.
    waiting: BTreeMap<(String, i32), Waiting>,
    arrivals: u64,
    /// Somebody was let go and has not noticed yet.
    leaving: bool,
    /// The crash came; nobody waits any more.
    dead: bool,
    /// There is a scheduler.
    ruled: bool,
}

/// Where everybody waits.
#[derive(Debug, Default)]
pub struct Gate {
    state: Mutex<State>,
}

impl Gate {
    /// Waits for leave. `detail` is what the step is about, for the trace. Without a scheduler
    /// nobody waits.
    pub fn pass(&self, step: Step, detail: impl Hash) -> Verdict {
        let mut state = self.state.lock();
        if state.dead {
            return Verdict::Dead;
        }
        if !state.ruled {
            return Verdict::Go;
        }
        let mut hasher = DefaultHasher::new();
        detail.hash(&mut hasher);
        let thread = std::thread::current();
        // Nameless helpers share work as it comes; they are known by what they do.
        let name = thread.name().map_or_else(|| format!("? {:x}", hasher.finish()), str::to_owned);
        let key = (name, gettid());
        let bell = Arc::new(Condvar::new());
        let waiting =
            Waiting { step, detail: hasher.finish(), verdict: None, bell: Arc::clone(&bell) };
        state.arrivals += 1;
        state.waiting.insert(key.clone(), waiting);
        loop {
            if let Some(verdict) = state.waiting.get(&key).and_then(|waiting| waiting.verdict) {
                state.waiting.remove(&key);
                state.leaving = false;
                return verdict;
            }
            bell.wait(&mut state);
        }
    }

    /// Whether the crash came.
    pub fn is_dead(&self) -> bool {
        self.state.lock().dead
    }

    /// Begins a run.
    pub fn open(&self) {
        let mut state = self.state.lock();
        (state.dead, state.ruled) = (false, true);
    }

    /// Ends it: from here on nobody waits, and nothing fails.
    pub fn close(&self) {
        let mut state = self.state.lock();
        (state.dead, state.ruled) = (false, false);
    }

    /// Lets one after the other go on until all threads but `outsiders` have ended, or until the
    /// crash: before the change that `crash_after` changes precede.
    pub fn rule(&self, outsiders: &Threads, plan: &mut Plan<'_>) -> End {
        let mut threads = Watched::default();
        let mut patience: Option<Instant> = None;
        loop {
            let Some(mut state) = self.settle(&mut threads, outsiders) else {
                return End::Finished;
            };
            let Some(key) = plan.choose(&state) else {
                // Nobody is at the gate, but somebody lives: it may be about to end.
                drop(state);
                let since = *patience.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_secs(10) {
                    return End::Hung(threads.describe());
                }
                std::thread::sleep(Duration::from_micros(200));
                continue;
            };
            patience = None;
            let Some(chosen) = state.waiting.get_mut(&key) else { continue };
            plan.note(&key.0, chosen);
            if chosen.step == Step::Change {
                if plan.crash_after == Some(plan.changes) {
                    let last =
                        if plan.random.percent(50) { Verdict::LastBreath } else { Verdict::Dead };
                    chosen.verdict = Some(last);
                    state.kill();
                    return End::Crashed;
                }
                plan.changes += 1;
            }
            chosen.verdict = Some(Verdict::Go);
            let bell = Arc::clone(&chosen.bell);
            state.leaving = true;
            // Notified while nobody else runs, so that nobody else takes the lock first.
            drop(state);
            bell.notify_one();
        }
    }

    /// Crashes now.
    pub fn kill(&self) {
        self.state.lock().kill();
    }

    /// Waits until everybody waits or sleeps; `None` if nobody is left.
    fn settle(&self, threads: &mut Watched, outsiders: &Threads) -> Option<MutexGuard<'_, State>> {
        loop {
            let arrivals = {
                let state = self.state.lock();
                if state.leaving {
                    drop(state);
                    std::thread::yield_now();
                    continue;
                }
                threads.exempt = state.waiting.keys().map(|(_, tid)| *tid).collect();
                state.arrivals
            };
            // Twice: between two looks at which all slept and none had run, all slept at once.
            let first = threads.look(outsiders);
            if first.is_none() || threads.look(outsiders) != first {
                std::thread::yield_now();
                continue;
            }
            let state = self.state.lock();
            if state.arrivals == arrivals && !state.leaving {
                if state.waiting.is_empty() && threads.known.is_empty() {
                    return None;
                }
                return Some(state);
            }
        }
    }
}

impl State {
    fn kill(&mut self) {
        self.dead = true;
        for waiting in self.waiting.values_mut() {
            waiting.verdict.get_or_insert(Verdict::Dead);
            waiting.bell.notify_one();
        }
    }
}

/// How a run is to go.
#[derive(Debug)]
pub struct Plan<'r> {
    /// Where choices come from.
    pub random: &'r mut Random,
    /// How often whom.
    pub pace: Pace,
    /// The crash comes before the change that so many precede.
    pub crash_after: Option<u64>,
    /// How many changes there were.
    pub changes: u64,
    /// What happened in which order, as a number.
    pub trace: u64,
}

impl Plan<'_> {
    fn choose(&mut self, state: &State) -> Option<(String, i32)> {
        let weight = |step: Step| match step {
            Step::Turn => self.pace.turn,
            Step::Change => self.pace.change,
            Step::Look => 2,
        };
        let total = state.waiting.values().map(|waiting| weight(waiting.step)).sum();
        let mut drawn = if total == 0 { return None } else { self.random.below(total) };
        for (key, waiting) in &state.waiting {
            match drawn.checked_sub(weight(waiting.step)) {
                Some(rest) => drawn = rest,
                None => return Some(key.clone()),
            }
        }
        None
    }

    fn note(&mut self, name: &str, chosen: &Waiting) {
        let mut hasher = DefaultHasher::new();
        (self.trace, name, chosen.step, chosen.detail).hash(&mut hasher);
        self.trace = hasher.finish();
        tracing::trace!(thread = name, step = ?chosen.step, trace = self.trace, "goes on");
    }
}

/// The threads of this process at some moment.
#[derive(Clone, Debug, Default)]
pub struct Threads(Vec<i32>);

impl Threads {
    /// Those there are now.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn now() -> io::Result<Self> {
        let mut ids = Vec::new();
        for entry in fs::read_dir("/proc/self/task")? {
            ids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
        }
        Ok(Self(ids))
    }

    /// Whether there are no others than these.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn are_all(&self) -> io::Result<bool> {
        Ok(Self::now()?.0.iter().all(|id| self.0.contains(id)))
    }
}

/// The threads whose sleep is watched.
#[derive(Default)]
struct Watched {
    known: HashMap<i32, (File, File)>,
    /// How many threads the process had when `known` was gathered.
    count: u64,
    /// At the gate: they need no watching.
    exempt: Vec<i32>,
}

impl Watched {
    /// A number that stays the same as long as all sleep; `None` if one does not.
    fn look(&mut self, outsiders: &Threads) -> Option<u64> {
        let count = fs::metadata("/proc/self/task").map_or(0, |found| found.nlink());
        if count != self.count {
            self.gather(outsiders).ok()?;
            self.count = count;
        }
        let mut hasher = DefaultHasher::new();
        let mut ids: Vec<i32> = self.known.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            if self.exempt.contains(&id) {
                continue;
            }
            let (stat, times) = self.known.get(&id)?;
            let mut bytes = [0; 128];
            let (Ok(stat), Ok(times)) = (text(stat, &mut bytes.clone()), text(times, &mut bytes))
            else {
                // It has ended.
                self.count = 0;
                return None;
            };
            let state = stat.rsplit(')').next().map(str::trim_start).unwrap_or_default();
            if !state.starts_with('S') {
                return None;
            }
            (id, times).hash(&mut hasher);
        }
        Some(hasher.finish())
    }

    fn gather(&mut self, outsiders: &Threads) -> io::Result<()> {
        let now = Threads::now()?;
        self.known.retain(|id, _| now.0.contains(id));
        for id in now.0.into_iter().filter(|id| !outsiders.0.contains(id)) {
            if let Entry::Vacant(vacant) = self.known.entry(id) {
                let open = |what| File::open(format!("/proc/self/task/{id}/{what}"));
                vacant.insert((open("stat")?, open("schedstat")?));
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let name = |id: &i32| fs::read_to_string(format!("/proc/self/task/{id}/comm"));
        let mut names: Vec<String> =
            self.known.keys().filter_map(|id| Some(name(id).ok()?.trim().to_owned())).collect();
        names.sort();
        names.join(", ")
    }
}

fn text(file: &File, bytes: &mut [u8; 128]) -> io::Result<String> {
    let n = rustix::io::pread(file.as_fd(), &mut bytes[..], 0)?;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&bytes[..n]).into_owned())
}

fn gettid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}
