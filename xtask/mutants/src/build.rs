//! Building the copy, and taking out of it what does not compile.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{
    Error, file_error,
    list::Mutant,
    outcomes::Outcome,
    parts::Work,
    place,
    weave::{self, HOOK, Numbered, Place},
};

/// Each takes out what the compiler complained of; it stops at the first phase with errors.
const ROUNDS: usize = 20;

/// A built test binary.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    /// As cargo calls the target.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Weaves and builds until it compiles; what does not compile is noted in `outcomes`.
pub(crate) fn build(work: &Work<'_>) -> Result<Vec<Binary>, Error> {
    for _ in 0..ROUNDS {
        let places = weave_all(work)?;
        let complaints = complaints(work)?;
        if complaints.is_empty() {
            let not = |why| Error::Refused(format!("the tests do not compile: {why}"));
            return binaries(work)?.map_err(not);
        }
        take_out(work, &complaints, &places)?;
    }
    Err(Error::Refused(format!("it still does not compile after {ROUNDS} rounds")))
}

/// Builds with this mutant and no other; why not, if it does not compile.
pub(crate) fn build_alone(
    work: &Work<'_>,
    mutant: &Mutant,
) -> Result<Result<Vec<Binary>, String>, Error> {
    let path = place::root().join(&mutant.file);
    let source = fs::read_to_string(&path).map_err(file_error("read", &path))?;
    work.copy.sync(&HashMap::from([(mutant.file.clone(), weave::alone(&source, mutant))]))?;
    match complaints(work)?.first() {
        Some(Complaint { code, text, .. }) => Ok(Err(format!("{code} {text}"))),
        None => binaries(work),
    }
}

/// Writes the copy with every mutant that may compile. Where they are, by file.
fn weave_all(work: &Work<'_>) -> Result<HashMap<String, Vec<Place>>, Error> {
    let Work { part, all, copy, outcomes, .. } = *work;
    let mut files: BTreeMap<&str, Vec<Numbered<'_>>> = BTreeMap::new();
    for (number, mutant) in (1..).zip(all) {
        let unbuildable = outcomes.get(&mutant.name) == Some(Outcome::Unbuildable);
        if !unbuildable && !outcomes.is_alone(&mutant.name) {
            files.entry(&mutant.file).or_default().push(Numbered { number, mutant });
        }
    }
    let (mut texts, mut places) = (HashMap::new(), HashMap::new());
    for (file, mutants) in files {
        let path = place::root().join(file);
        let source = fs::read_to_string(&path).map_err(file_error("read", &path))?;
        let woven = weave::weave(&source, &mutants).map_err(weave::syntax(file))?;
        let there: HashSet<u32> = woven.numbers.iter().copied().collect();
        for out in mutants.iter().filter(|m| !there.contains(&m.number)) {
            let (outcome, why) = match woven.refused.contains(&out.number) {
                true => (Outcome::Unbuildable, "`||` in a chain of `let`"),
                false => (Outcome::Unwoven, "no place for it"),
            };
            outcomes.put(&out.mutant.name, outcome, why)?;
        }
        texts.insert(file.to_owned(), woven.text);
        places.insert(file.to_owned(), woven.places);
    }
    let lib = format!("crates/{}/src/lib.rs", part.package);
    let path = place::root().join(&lib);
    let text = match texts.remove(&lib) {
        Some(text) => text,
        None => fs::read_to_string(&path).map_err(file_error("read", &path))?,
    };
    texts.insert(lib, text + HOOK);
    copy.sync(&texts)?;
    Ok(places)
}

/// An error of the compiler.
struct Complaint {
    code: String,
    text: String,
    spans: Vec<Span>,
}

#[derive(serde::Deserialize)]
struct Span {
    file_name: String,
    line_start: usize,
    line_end: usize,
    is_primary: bool,
}

fn command(work: &Work<'_>, arguments: &[&str]) -> Command {
    let mut command = Command::new(place::cargo());
    command
        .current_dir(work.copy.tree())
        .args(arguments)
        .args(["--message-format=json", "--quiet", "--profile", "mutants"])
        .args(["--package", work.part.package])
        .env("CARGO_TARGET_DIR", work.copy.target())
        .stdin(Stdio::null());
    command
}

fn messages(mut command: Command) -> Result<(Vec<serde_json::Value>, String), Error> {
    let output =
        command.output().map_err(|source| Error::Start { program: "cargo".into(), source })?;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    let all: Result<Vec<serde_json::Value>, _> =
        lines.lines().filter(|line| line.starts_with('{')).map(serde_json::from_str).collect();
    Ok((all?, String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn complaints(work: &Work<'_>) -> Result<Vec<Complaint>, Error> {
    let (messages, stderr) = messages(command(work, &["build", "--lib"]))?;
    let mut complaints = Vec::new();
    for message in messages.iter().map(|m| &m["message"]) {
        if message["level"] != "error" {
            continue;
        }
        let text = message["message"].as_str().unwrap_or_default().to_owned();
        let code = message["code"]["code"].as_str().unwrap_or_default().to_owned();
        let spans: Vec<Span> = serde_json::from_value(message["spans"].clone())?;
        if !spans.is_empty() {
            complaints.push(Complaint { code, text, spans });
        }
    }
    if complaints.is_empty() && !stderr.trim().is_empty() && stderr.contains("error") {
        return Err(Error::Refused(format!("cargo build failed: {stderr}")));
    }
    Ok(complaints)
}

fn take_out(
    work: &Work<'_>,
    complaints: &[Complaint],
    places: &HashMap<String, Vec<Place>>,
) -> Result<(), Error> {
    let mut out = HashMap::new();
    for complaint in complaints {
        let Some(place) = blamed(complaint, places) else {
            let Complaint { code, text, spans } = complaint;
            let at: Vec<String> =
                spans.iter().map(|s| format!("{}:{}", s.file_name, s.line_start)).collect();
            return Err(Error::Refused(format!("{code} {text} ({}): no mutant", at.join(", "))));
        };
        // What the borrow checker says may be due to the weaving, as may what is around a mutant.
        let typed = place.own && !is_borrowing(&complaint.code);
        let outcome = if typed { Outcome::Unbuildable } else { Outcome::Unwoven };
        for number in &place.numbers {
            out.insert(*number, (outcome, format!("{} {}", complaint.code, complaint.text)));
        }
    }
    for (number, (outcome, why)) in out {
        work.outcomes.put(&work.all[number as usize - 1].name, outcome, &why)?;
    }
    Ok(())
}

/// The borrow checker's codes, and those of what is not known to be set.
const BORROWING: [&str; 21] = [
    "E0373", "E0381", "E0382", "E0384", "E0499", "E0502", "E0503", "E0505", "E0506", "E0507",
    "E0509", "E0510", "E0515", "E0521", "E0594", "E0596", "E0597", "E0700", "E0712", "E0713",
    "E0716",
];

fn is_borrowing(code: &str) -> bool {
    BORROWING.contains(&code)
}

/// The smallest place that the complaint is about: a mutant's own if there is one.
fn blamed<'a>(complaint: &Complaint, places: &'a HashMap<String, Vec<Place>>) -> Option<&'a Place> {
    let around = |primary: bool, own: bool| {
        let spans = complaint.spans.iter().filter(move |span| span.is_primary == primary);
        let found = spans.flat_map(move |span| {
            let there = places.get(&span.file_name).into_iter().flatten();
            there.filter(move |place| {
                place.own == own
                    && place.lines.contains(&span.line_start)
                    && place.lines.contains(&span.line_end)
            })
        });
        found.min_by_key(|place| place.lines.len())
    };
    around(true, true)
        .or_else(|| around(false, true))
        .or_else(|| around(true, false))
        .or_else(|| around(false, false))
}

/// Builds the test binaries, the package's unit tests and the targets asked for; or why not.
fn binaries(work: &Work<'_>) -> Result<Result<Vec<Binary>, String>, Error> {
    let mut command = command(work, &["test", "--no-run"]);
    match work.targets {
        [] => command.arg("--tests"),
        names => command.arg("--lib").args(names.iter().flat_map(|name| ["--test", name])),
    };
    let (messages, stderr) = messages(command)?;
    let mut found = Vec::new();
    for message in messages {
        if message["reason"] == "compiler-artifact"
            && let (Some(path), Some(name)) =
                (message["executable"].as_str(), message["target"]["name"].as_str())
        {
            found.push(Binary { name: name.to_owned(), path: path.into() });
        }
        if message["message"]["level"] == "error" {
            let text = message["message"]["rendered"].as_str().unwrap_or_default();
            return Ok(Err(text.to_owned()));
        }
    }
    if found.is_empty() {
        return Err(Error::Refused(format!("no tests were built: {stderr}")));
    }
    Ok(Ok(found))
}
