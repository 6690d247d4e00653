//! The mutants, as cargo-mutants lists them.

use std::process::{Command, Stdio};

use crate::{Error, Options, parts::Part, place};

/// One change of the code.
#[derive(Clone, Debug, serde::Deserialize)]
pub(crate) struct Mutant {
    /// File, line, column and what is changed: unique.
    pub(crate) name: String,
    /// Relative to the root of the work tree.
    pub(crate) file: String,
    pub(crate) genre: Genre,
    /// What stands in the place of `span`.
    pub(crate) replacement: String,
    pub(crate) span: Span,
}

/// What kind of thing is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub(crate) enum Genre {
    /// A function answers something at once.
    FnValue,
    BinaryOperator,
    UnaryOperator,
    /// An arm that is not there.
    MatchArm,
    MatchArmGuard,
    /// A field that is left to the expression's base.
    StructField,
}

#[derive(Clone, Copy, Debug, serde::Deserialize)]
pub(crate) struct Span {
    pub(crate) start: Position,
    pub(crate) end: Position,
}

/// Counted from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Position {
    pub(crate) line: usize,
    pub(crate) column: usize,
}

/// The mutants of `part` that `options` choose.
pub(crate) fn mutants(part: &Part, options: &Options) -> Result<Vec<Mutant>, Error> {
    let mut command = Command::new(place::cargo());
    command.current_dir(place::root()).args(["mutants", "--list", "--json"]);
    command.args(["--package", part.package]);
    command.args(part.files.iter().flat_map(|file| ["--file", file]));
    command.args(options.re.iter().flat_map(|re| ["--re", re]));
    command.args(options.shard.iter().flat_map(|shard| ["--shard", shard]));
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|source| Error::Start { program: "cargo mutants".into(), source })?;
    if !output.status.success() {
        return Err(Error::Refused("cargo-mutants cannot list the mutants".into()));
    }
    let mut mutants: Vec<Mutant> = serde_json::from_slice(&output.stdout)?;
    mutants.retain(|m| options.file.as_ref().is_none_or(|part| m.file.contains(part)));
    Ok(mutants)
}
