//! What came out, mutant by mutant: a file to which is written as it goes.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use crate::{Error, file_error};

/// What became of a mutant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outcome {
    /// A test failed.
    Caught,
    /// A test did not end.
    Forever,
    /// It does not compile.
    Unbuildable,
    /// No test failed.
    Survived,
    /// No test even comes by.
    Unreached,
    /// It cannot be woven in, and was not yet built on its own.
    Unwoven,
}

impl Outcome {
    pub(crate) const ALL: [Self; 6] = [
        Self::Caught,
        Self::Forever,
        Self::Unbuildable,
        Self::Survived,
        Self::Unreached,
        Self::Unwoven,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Caught => "caught",
            Self::Forever => "forever",
            Self::Unbuildable => "unbuildable",
            Self::Survived => "survived",
            Self::Unreached => "unreached",
            Self::Unwoven => "unwoven",
        }
    }

    /// Whether no test noticed it.
    pub(crate) fn lives(self) -> bool {
        matches!(self, Self::Survived | Self::Unreached)
    }
}

struct State {
    file: File,
    known: HashMap<String, Known>,
}

#[derive(Clone, Copy)]
struct Known {
    outcome: Outcome,
    alone: bool,
}

/// What begins the detail of an outcome that comes from a build of its own.
const ALONE: &str = "alone";

/// The outcomes of one part.
pub(crate) struct Outcomes {
    path: PathBuf,
    state: Mutex<State>,
}

impl Outcomes {
    /// Reads what earlier runs wrote; `fresh` forgets it.
    pub(crate) fn open(directory: &Path, fresh: bool) -> Result<Self, Error> {
        fs::create_dir_all(directory).map_err(file_error("create", directory))?;
        let path = directory.join("outcomes.txt");
        if fresh && path.exists() {
            fs::remove_file(&path).map_err(file_error("remove", &path))?;
        }
        let text = fs::read_to_string(&path).unwrap_or_default();
        let known = text.lines().filter_map(parse).collect();
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(file_error("open", &path))?;
        Ok(Self { path, state: Mutex::new(State { file, known }) })
    }

    pub(crate) fn get(&self, name: &str) -> Option<Outcome> {
        self.known(name).map(|known| known.outcome)
    }

    /// Whether this one has to be built on its own.
    pub(crate) fn is_alone(&self, name: &str) -> bool {
        self.known(name).is_some_and(|known| known.alone || known.outcome == Outcome::Unwoven)
    }

    fn known(&self, name: &str) -> Option<Known> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).known.get(name).copied()
    }

    /// The same of one that was built on its own.
    pub(crate) fn put_alone(
        &self,
        name: &str,
        outcome: Outcome,
        detail: &str,
    ) -> Result<(), Error> {
        self.put(name, outcome, &format!("{ALONE}: {detail}"))
    }

    /// Notes what became of the mutant `name`; `detail` says which test noticed it, or why not.
    pub(crate) fn put(&self, name: &str, outcome: Outcome, detail: &str) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = Known { outcome, alone: detail.starts_with(ALONE) };
        state.known.insert(name.to_owned(), known);
        let line = format!("{}\t{name}\t{}\n", outcome.name(), detail.replace(['\t', '\n'], " "));
        state.file.write_all(line.as_bytes()).map_err(file_error("write", &self.path))
    }
}

fn parse(line: &str) -> Option<(String, Known)> {
    let mut fields = line.split('\t');
    let (outcome, name, detail) = (fields.next()?, fields.next()?, fields.next()?);
    let outcome = Outcome::ALL.into_iter().find(|known| known.name() == outcome)?;
    Some((name.to_owned(), Known { outcome, alone: detail.starts_with(ALONE) }))
}
