//! One life of the process: start, look whether all is as it must be, work, stop. The crash may
//! come at any change of the disk in between.

use std::{future::Future, path::Path, pin::Pin, task::Poll, time::Duration};

use lastkey_crypto::KeyId;
use lastkey_engine::{Caller, Clock, Error, Key, NonceRefusal, Principal, SKEW, Source};

use crate::{
    Random, World,
    gate::{Step, Verdict},
    log::Log,
    model::{Model, Observed},
    op::{Answer, Op, PLUGIN},
    workload::Workload,
    world::{KEPT, Running},
};

mod trouble;

pub use trouble::Trouble;

/// How often other tasks get their turn before the disk gets its own.
const YIELDS: usize = 24;
/// So many turns without an answer are a hang.
const PATIENCE: usize = 20_000;
/// The access key of those who sign.
const ACCESS_KEY: &str = "LKtorture";
/// So many old ciphertexts are opened at each look.
const OPENED: usize = 8;

/// Why a life ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The machine stopped.
    Crashed,
    /// Something is not as it must be.
    Wrong(String),
}

impl From<String> for Stop {
    fn from(what: String) -> Self {
        Self::Wrong(what)
    }
}

/// How the life goes, unless the crash comes.
#[derive(Clone, Debug)]
pub struct Course {
    /// How many commands.
    pub commands: usize,
    /// How many at once, at most.
    pub callers: usize,
    /// What fails meanwhile.
    pub trouble: Option<Trouble>,
    /// Whether records are long.
    pub fat: bool,
}

/// One life.
pub struct Phase {
    /// The machine.
    pub world: World,
    /// What must be true.
    pub model: Model,
    /// What the log was found to hold.
    pub log: Log,
    /// How it goes.
    pub course: Course,
    /// What is left to chance.
    pub random: Random,
    /// How often the engine had to be started anew because it asked for it.
    pub restarts: usize,
    /// Something fails on purpose, or did a moment ago.
    pub troubled: bool,
}

type Asking = Pin<Box<dyn Future<Output = Result<Answer, Error>>>>;

/// Commands under way.
#[derive(Default)]
struct Flight(Vec<(usize, Asking)>);

/// Looks whether it is done, without waiting.
async fn poll_once<F: Future + ?Sized>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await
}

/// Tasks of this thread's runtime that have not ended.
fn alive_tasks() -> usize {
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

impl Phase {
    /// Lives. Runs on a thread of its own, which is the one the scheduler knows as the runtime.
    ///
    /// # Errors
    /// [`Stop`].
    pub fn live(&mut self) -> Result<(), Stop> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .max_blocking_threads(1)
            .thread_name("blocking")
            .build()
            .map_err(|error| Stop::Wrong(error.to_string()))?;
        runtime.block_on(self.run())
    }

    async fn run(&mut self) -> Result<(), Stop> {
        let mut engine = self.start().await?;
        self.look(&engine).await?;
        let resident = alive_tasks();
        let mut workload = Workload::new(Random::new(self.random.next()));
        workload.fat = self.course.fat;
        let mut flight = Flight::default();
        for number in 0..self.course.commands {
            let trouble = self.course.trouble.clone();
            if let Some(trouble) = &trouble {
                if trouble.begins == number {
                    trouble.begin(&self.world.disk, &mut self.random);
                    self.troubled = true;
                }
                if trouble.ends == number {
                    engine = self.recover(engine, &mut flight, resident).await?;
                }
            }
            while flight.0.len() >= self.course.callers {
                self.pump(&mut flight).await?;
            }
            let op = workload.next(&self.model);
            let asking = self.issue(&engine, op)?;
            flight.0.push(asking);
            if self.random.percent(60) {
                self.pump(&mut flight).await?;
            }
            if self.random.percent(1) {
                self.hang_up(&mut flight);
            }
            self.let_time_pass().await;
        }
        if self.troubled {
            engine = self.recover(engine, &mut flight, resident).await?;
        }
        self.land(&mut flight).await?;
        self.outlive_the_left(resident).await?;
        self.look(&engine).await?;
        self.drive(engine.shutdown()).await
    }

    /// Starts the engine; while something fails on purpose, it may refuse.
    async fn start(&mut self) -> Result<Running, Stop> {
        let world = self.world.clone();
        self.check_files()?;
        // No machine is there again within the second.
        world.clock.advance(Duration::from_secs(1));
        for _ in 0..2 {
            let started = self.drive(world.start()).await?;
            match started {
                Ok(engine) => {
                    self.keep_files(&engine)?;
                    return Ok(engine);
                }
                Err(_) if self.world.disk.gate().is_dead() => return Err(Stop::Crashed),
                Err(error) if !self.troubled => return Err(Stop::Wrong(error.to_string())),
                Err(error) => {
                    tracing::debug!(%error, "refused to start, while something fails");
                    Trouble::end(&self.world.disk);
                    self.troubled = false;
                }
            }
        }
        Err(Stop::Wrong("it does not start".into()))
    }

    /// Whether the small files are what they were when a start was answered for.
    fn check_files(&self) -> Result<(), Stop> {
        for (path, known) in &self.model.files {
            if self.content(path).as_ref() != Some(known) {
                return Err(Stop::Wrong(format!("{path} is not what it was")));
            }
        }
        Ok(())
    }

    /// A start was answered for: its small files are there, and stay.
    fn keep_files(&mut self, engine: &Running) -> Result<(), Stop> {
        for path in KEPT {
            let content = self.content(path);
            let content = content.ok_or_else(|| Stop::Wrong(format!("{path} was not made")))?;
            self.model.files.insert(path, content);
        }
        match self.world.credentials_fit(engine) {
            true => Ok(()),
            false => Err(Stop::Wrong("the credentials in the file are not the engine's".into())),
        }
    }

    fn content(&self, path: &str) -> Option<Vec<u8>> {
        self.world.disk.content(Path::new(path)).map(|image| image.bytes())
    }

    /// Ends what fails on purpose. The engine must come back by itself, or say that it wants to
    /// be started anew.
    async fn recover(
        &mut self,
        engine: Running,
        flight: &mut Flight,
        resident: usize,
    ) -> Result<Running, Stop> {
        self.land(flight).await?;
        Trouble::end(&self.world.disk);
        for _ in 0..200 {
            self.pass(Duration::from_millis(500)).await;
            for _ in 0..4 {
                self.drive(tokio::task::yield_now()).await?;
                self.turn()?;
            }
            if engine.readiness().is_ok() {
                break;
            }
        }
        // What is owed to the log is brought there within two seconds.
        for _ in 0..40 {
            self.pass(Duration::from_millis(100)).await;
            self.drive(tokio::task::yield_now()).await?;
            self.turn()?;
        }
        let mut engine = engine;
        if let Err(error) = engine.readiness() {
            let asks = error.to_string();
            let hardware = self.course.trouble.as_ref().is_some_and(|trouble| !trouble.is_full());
            if !hardware || !asks.contains("restart") {
                return Err(Stop::Wrong(format!("it does not recover: {asks}")));
            }
            self.restarts += 1;
            self.drive(engine.shutdown()).await?;
            drop(engine);
            engine = self.start().await?;
        }
        self.troubled = false;
        self.outlive_the_left(resident).await?;
        self.look(&engine).await?;
        Ok(engine)
    }

    /// Makes a caller of it and gives it to the engine.
    fn issue(&mut self, engine: &Running, op: Op) -> Result<(usize, Asking), Stop> {
        let principal = match (&op, &self.model.cluster) {
            (
                Op::PluginStatus { .. } | Op::PluginEncrypt { .. } | Op::PluginDecrypt { .. },
                Some(cluster),
            ) => Principal::Plugin {
                cluster: cluster.id,
                name: PLUGIN.into(),
                fingerprint: cluster.fingerprint.as_str().into(),
            },
            _ => Principal::Root { access_key_id: ACCESS_KEY.into() },
        };
        let mut caller = Caller::new(principal, Source::Internal, engine.new_request_id());
        let now = self.world.clock.now();
        let mut nonce = None;
        if self.random.percent(15) {
            let text = format!("{:x}", self.random.next());
            let admitted = engine.admit_nonce(ACCESS_KEY, &text, now);
            let refused = |error: NonceRefusal| format!("a fresh request was refused: {error}");
            caller.nonce = Some(admitted.map_err(refused)?);
            nonce = Some(text);
        }
        let number = self.model.issue(op.clone(), caller.request_id.to_string(), now, nonce);
        tracing::debug!(number, request = %caller.request_id, ?op, "asked");
        Ok((number, Box::pin(op.run(engine.clone(), caller))))
    }

    /// Lets everybody go on a little, and notes what was answered.
    async fn pump(&mut self, flight: &mut Flight) -> Result<(), Stop> {
        for _ in 0..YIELDS {
            let mut index = 0;
            while index < flight.0.len() {
                let (number, asking) = &mut flight.0[index];
                let number = *number;
                match poll_once(asking.as_mut()).await {
                    Poll::Pending => index += 1,
                    Poll::Ready(answer) => {
                        drop(flight.0.remove(index));
                        self.alive()?;
                        tracing::debug!(number, ?answer, "answered");
                        self.model.answer(number, answer, self.troubled)?;
                    }
                }
            }
            tokio::task::yield_now().await;
        }
        self.turn()
    }

    /// Waits for all answers.
    async fn land(&mut self, flight: &mut Flight) -> Result<(), Stop> {
        for turn in 0..PATIENCE {
            if flight.0.is_empty() {
                return Ok(());
            }
            self.pump(flight).await?;
            if turn % 1000 == 999 {
                self.pass(Duration::from_secs(1)).await;
            }
        }
        let number = flight.0.first().map_or(0, |(number, _)| *number);
        Err(Stop::Wrong(format!("no answer to {:?}", self.model.issued[number].op)))
    }

    /// Waits until what callers have begun and left is done: until then it may be seen in the log
    /// although it was not yet seen in the store.
    async fn outlive_the_left(&mut self, resident: usize) -> Result<(), Stop> {
        for _ in 0..PATIENCE {
            if alive_tasks() <= resident {
                break;
            }
            self.drive(tokio::task::yield_now()).await?;
            self.turn()?;
        }
        Ok(())
    }

    /// A caller goes away.
    fn hang_up(&mut self, flight: &mut Flight) {
        if let Some((number, _)) = flight.0.pop() {
            tracing::debug!(number, "hung up");
            self.model.hang_up(number);
        }
    }

    /// Until the future is done, or the crash comes.
    async fn drive<F: Future>(&self, future: F) -> Result<F::Output, Stop> {
        let mut future = std::pin::pin!(future);
        loop {
            for _ in 0..YIELDS {
                if let Poll::Ready(done) = poll_once(future.as_mut()).await {
                    return self.alive().map(|()| done);
                }
                tokio::task::yield_now().await;
            }
            self.turn()?;
        }
    }

    /// What comes of a machine that is off is nobody's answer.
    fn alive(&self) -> Result<(), Stop> {
        if self.world.disk.gate().is_dead() { Err(Stop::Crashed) } else { Ok(()) }
    }

    /// Lets somebody else go on.
    fn turn(&self) -> Result<(), Stop> {
        match self.world.disk.gate().pass(Step::Turn, ()) {
            Verdict::Go => Ok(()),
            Verdict::LastBreath | Verdict::Dead => Err(Stop::Crashed),
        }
    }

    async fn pass(&self, time: Duration) {
        self.world.clock.advance(time);
        tokio::time::advance(time).await;
    }

    async fn let_time_pass(&mut self) {
        let milliseconds = match self.random.below(1000) {
            0..100 => 1 + self.random.below(400),
            100..150 => 1_000 + self.random.below(70_000),
            150..153 => 3_600_000 + self.random.below(36_000_000),
            153 => 8 * 86_400_000,
            _ => return,
        };
        self.pass(Duration::from_millis(milliseconds as u64)).await;
    }

    /// Asks for all of these at once, and waits for the answers.
    async fn ask(&mut self, engine: &Running, ops: Vec<Op>) -> Result<Vec<usize>, Stop> {
        let mut flight = Flight::default();
        for op in ops {
            flight.0.push(self.issue(engine, op)?);
        }
        let numbers = flight.0.iter().map(|(number, _)| *number).collect();
        self.land(&mut flight).await?;
        Ok(numbers)
    }

    /// One that has to be answered.
    async fn answer(&mut self, engine: &Running, op: Op) -> Result<Answer, Stop> {
        let (number, asking) = self.issue(engine, op)?;
        let answer = self.drive(asking).await?;
        let kept = match &answer {
            Ok(Answer::Key(key)) => Ok(Answer::Key(key.clone())),
            Ok(Answer::Keys(page)) => Ok(Answer::Keys(page.clone())),
            Ok(Answer::Aliases(page)) => Ok(Answer::Aliases(page.clone())),
            Ok(Answer::Clusters(ids)) => Ok(Answer::Clusters(ids.clone())),
            Ok(_) => Ok(Answer::Done),
            Err(error) => Err(Stop::Wrong(format!("a look was refused: {error}"))),
        };
        self.model.answer(number, answer, self.troubled)?;
        kept
    }

    /// Whether all is as it must be.
    async fn look(&mut self, engine: &Running) -> Result<(), Stop> {
        self.answer(engine, Op::Verify).await?;
        // Rotations and deletions that fell due may come between the parts of a look.
        for attempt in 0.. {
            let observed = self.observe(engine).await?;
            self.log.follow(&self.world.disk)?;
            let now = self.world.clock.now();
            self.check_files()?;
            let settled = self.model.versions_agree(&observed, &self.log);
            if settled.is_ok() || attempt == 4 {
                settled?;
                self.model.reconcile(&observed, &self.log, now)?;
                break;
            }
            for _ in 0..50 {
                self.drive(tokio::task::yield_now()).await?;
                self.turn()?;
            }
        }
        self.open_old_ciphertexts(engine).await?;
        self.replay_requests(engine)
    }

    async fn observe(&mut self, engine: &Running) -> Result<Observed, Stop> {
        let mut observed = Observed::default();
        if let Answer::Keys(page) = self.answer(engine, Op::Keys { page: 1 }).await? {
            for key in page.items {
                if let Some(found) = self.describe(engine, key).await? {
                    observed.keys.insert(key, found);
                }
            }
        }
        if let Answer::Aliases(page) = self.answer(engine, Op::Aliases { page: 1 }).await? {
            observed.aliases.extend(page.items.into_iter().map(|entry| (entry.name, entry.key_id)));
        }
        if let Answer::Clusters(ids) = self.answer(engine, Op::Clusters).await? {
            observed.clusters.extend(ids);
        }
        Ok(observed)
    }

    async fn describe(&mut self, engine: &Running, key: KeyId) -> Result<Option<Key>, Stop> {
        let (number, asking) = self.issue(engine, Op::Describe { key })?;
        let answer = self.drive(asking).await?;
        let found = match &answer {
            Ok(Answer::Key(key)) => Some((**key).clone()),
            Ok(_) | Err(Error::KeyNotFound) => None,
            Err(error) => return Err(Stop::Wrong(format!("key {key} cannot be read: {error}"))),
        };
        self.model.answer(number, answer, self.troubled)?;
        Ok(found)
    }

    async fn open_old_ciphertexts(&mut self, engine: &Running) -> Result<(), Stop> {
        let count = self.model.ciphertexts.len();
        let mut ops = Vec::new();
        for number in (count.saturating_sub(OPENED)..count)
            .chain((0..OPENED).map(|_| self.random.below(count)))
        {
            if let Some(known) = self.model.ciphertexts.get(number) {
                let (blob, context) = (known.blob.clone(), known.context.clone());
                ops.push(Op::Decrypt { number, blob, context });
            }
        }
        self.ask(engine, ops).await?;
        Ok(())
    }

    /// What was admitted and answered is not admitted again.
    fn replay_requests(&self, engine: &Running) -> Result<(), Stop> {
        let now = self.world.clock.now();
        for (nonce, signed) in self.model.nonces.iter().rev().take(50) {
            if now.since(*signed) < SKEW && engine.admit_nonce(ACCESS_KEY, nonce, *signed).is_ok() {
                return Err(Stop::Wrong(format!(
                    "a request signed at {signed} was admitted twice"
                )));
            }
        }
        Ok(())
    }
}
