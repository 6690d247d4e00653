//! The tests of the built copy: which there are, how long each takes, what each reaches.

use std::{
    collections::HashMap,
    fs::{self, File},
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use crate::{Error, build::Binary, file_error, parts::Work};

/// Cases of each property: a mutant that survives so many survives more.
const PROPTEST_CASES: &str = "32";
/// A changed program may take memory, or write, without end.
const MEMORY_KB: u64 = 12 << 20;
const FILE_KB: u64 = 1 << 20;
/// A test that takes longer, unchanged, is not run.
const LONGEST: Duration = Duration::from_secs(120);

/// One test.
#[derive(Clone, Debug)]
pub(crate) struct Test {
    pub(crate) binary: Binary,
    pub(crate) name: String,
    pub(crate) took: Duration,
    /// The mutants that it reaches.
    pub(crate) reaches: Vec<u32>,
}

impl Test {
    /// The same test in a build of its own.
    pub(crate) fn in_one_of(&self, binaries: &[Binary]) -> Option<Self> {
        let binary = binaries.iter().find(|binary| binary.name == self.binary.name)?.clone();
        Some(Self { binary, ..self.clone() })
    }
}

/// How a run of tests ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Passed,
    /// Which failed, as far as that is known.
    Failed(String),
    TooLong,
    /// It computed for longer than it may, however busy the machine is.
    Endless,
}

/// What is on while tests run.
pub(crate) struct On<'a> {
    /// The mutant; 0 for none.
    pub(crate) number: u32,
    /// How long they may take.
    pub(crate) limit: Duration,
    /// Where to note what they reach.
    pub(crate) seen: Option<&'a Path>,
}

/// Where and with what a test binary runs.
pub(crate) struct Runner {
    pub(crate) package: PathBuf,
    pub(crate) scratch: PathBuf,
}

impl Runner {
    pub(crate) fn new(work: &Work<'_>, name: &str) -> Result<Self, Error> {
        Ok(Self {
            package: work.copy.tree().join("crates").join(work.part.package),
            scratch: work.copy.scratch(name)?,
        })
    }

    /// Runs `tests` of one binary.
    pub(crate) fn run(&self, tests: &[&Test], on: &On<'_>) -> Result<End, Error> {
        let Some(first) = tests.first() else { return Ok(End::Passed) };
        let output = self.scratch.join("output.txt");
        let to = File::create(&output).map_err(file_error("create", &output))?;
        let temporary = self.scratch.join("tests");
        fs::create_dir_all(&temporary).map_err(file_error("create", &temporary))?;
        let mut command = self.command(&first.binary, on.limit);
        command.args(tests.iter().map(|test| &test.name)).args(["--exact", "--test-threads", "2"]);
        command.env("TMPDIR", &temporary).env("LASTKEY_MUTANT", on.number.to_string());
        command.envs(on.seen.map(|path| ("LASTKEY_MUTANTS_SEEN", path)));
        command.stdin(Stdio::null()).stdout(to).stderr(Stdio::null());
        let end = wait(command, on.limit)?;
        fs::remove_dir_all(&temporary).ok();
        let Some(status) = end else { return Ok(End::TooLong) };
        if status.success() {
            return Ok(End::Passed);
        }
        // SIGXCPU: it computed for longer than it may.
        if status.signal() == Some(24) || status.code() == Some(128 + 24) {
            return Ok(End::Endless);
        }
        let text = fs::read_to_string(&output).unwrap_or_default();
        let failed = text.lines().find_map(|line| line.strip_suffix(" ... FAILED"));
        let failed = failed.map_or_else(|| format!("{status}"), |line| line.replace("test ", ""));
        Ok(End::Failed(format!("{}: {failed}", first.binary.name)))
    }

    fn command(&self, binary: &Binary, limit: Duration) -> Command {
        let mut command = Command::new("bash");
        let seconds = limit.as_secs().div_ceil(2).max(1);
        let limits = format!("ulimit -t {seconds} -v {MEMORY_KB} -f {FILE_KB} -c 0; exec \"$@\"");
        command.args(["-c", &limits, "bash"]).arg(&binary.path);
        command.current_dir(&self.package).env("CARGO_MANIFEST_DIR", &self.package);
        command.env("PROPTEST_CASES", PROPTEST_CASES).env("PROPTEST_MAX_SHRINK_ITERS", "0");
        command.env_remove("RUST_BACKTRACE").process_group(0);
        command
    }
}

/// Waits for a group of processes, and ends it when `limit` has passed.
fn wait(mut command: Command, limit: Duration) -> Result<Option<ExitStatus>, Error> {
    let start = |source| Error::Start { program: "bash".into(), source };
    let mut child = command.spawn().map_err(start)?;
    let began = Instant::now();
    let mut pause = Duration::from_millis(2);
    loop {
        if let Some(status) = child.try_wait().map_err(start)? {
            return Ok(Some(status));
        }
        if began.elapsed() > limit {
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-KILL", "--", &group]).status().map_err(start)?;
            child.wait().map_err(start)?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Runs every test of `binaries` once; what is known from an earlier run of the same binary is
/// taken from there.
#[expect(clippy::print_stdout, reason = "a tool speaks on its terminal")]
pub(crate) fn survey(work: &Work<'_>, binaries: &[Binary]) -> Result<Vec<Test>, Error> {
    let numbers = work.all.len();
    let runner = Runner::new(work, "survey")?;
    let mut tests = Vec::new();
    for binary in binaries {
        let memory = binary.path.with_extension(format!("reach-{numbers}"));
        let built = fs::metadata(&binary.path).and_then(|m| m.modified());
        let known = fs::metadata(&memory).and_then(|m| m.modified());
        if let (Ok(built), Ok(known)) = (built, known)
            && known > built
        {
            let text = fs::read_to_string(&memory).map_err(file_error("read", &memory))?;
            tests.extend(text.lines().filter_map(|line| recall(binary, line)));
            continue;
        }
        let found = survey_binary(&runner, binary, numbers)?;
        println!("{}: {} tests", binary.name, found.len());
        let text: String = found.iter().map(memorise).collect();
        fs::write(&memory, text).map_err(file_error("write", &memory))?;
        tests.extend(found);
    }
    Ok(tests)
}

#[expect(clippy::print_stdout, reason = "a tool speaks on its terminal")]
fn survey_binary(runner: &Runner, binary: &Binary, numbers: usize) -> Result<Vec<Test>, Error> {
    let seen = runner.scratch.join("seen");
    let mut found = Vec::new();
    for name in names(runner, binary)? {
        let mut test =
            Test { binary: binary.clone(), name, took: Duration::ZERO, reaches: Vec::new() };
        fs::write(&seen, vec![0; numbers + 1]).map_err(file_error("write", &seen))?;
        let began = Instant::now();
        let end = runner.run(&[&test], &On { number: 0, limit: LONGEST, seen: Some(&seen) })?;
        test.took = began.elapsed();
        if end != End::Passed {
            println!("{}: {} is left out: unchanged, it ends with {end:?}", binary.name, test.name);
            continue;
        }
        let bytes = fs::read(&seen).map_err(file_error("read", &seen))?;
        test.reaches = (0..).zip(bytes).filter(|(_, byte)| *byte != 0).map(|(n, _)| n).collect();
        found.push(test);
    }
    Ok(found)
}

fn names(runner: &Runner, binary: &Binary) -> Result<Vec<String>, Error> {
    let mut command = runner.command(binary, LONGEST);
    let output = command
        .args(["--list", "--format", "terse"])
        .output()
        .map_err(|source| Error::Start { program: binary.name.clone(), source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}

fn memorise(test: &Test) -> String {
    let reaches: Vec<String> = test.reaches.iter().map(u32::to_string).collect();
    format!("{}\t{}\t{}\n", test.name, test.took.as_millis(), reaches.join(" "))
}

fn recall(binary: &Binary, line: &str) -> Option<Test> {
    let mut fields = line.split('\t');
    let (name, millis, reaches) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Test {
        binary: binary.clone(),
        name: name.to_owned(),
        took: Duration::from_millis(millis.parse().ok()?),
        reaches: reaches.split_whitespace().filter_map(|n| n.parse().ok()).collect(),
    })
}

/// The tests that reach each mutant, the shortest first.
pub(crate) fn by_mutant(tests: &[Test]) -> HashMap<u32, Vec<&Test>> {
    let mut by: HashMap<u32, Vec<&Test>> = HashMap::new();
    for test in tests {
        for number in &test.reaches {
            by.entry(*number).or_default().push(test);
        }
    }
    for tests in by.values_mut() {
        tests.sort_by_key(|test| test.took);
    }
    by
}
