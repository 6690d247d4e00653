//! What a command says, and how it ends.
//!
//! Human output is a table or a sentence; `--output json` gives the same as data. Exit codes are
//! part of what scripts rely on.

use std::{
    io::{self, Write},
    process::ExitCode,
    sync::OnceLock,
};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use lastkey_client::Category;
use serde_json::{Value, json};

/// Exit code of a command that could not be understood.
pub(crate) const WRONG_USAGE: u8 = 2;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables and sentences.
    #[default]
    Table,
    /// One JSON object; a list is `{"items": […], "next": …}`.
    Json,
}

/// Why a command ends, as its exit code tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// It failed.
    Failed = 1,
    /// It was used in a wrong way.
    Usage = 2,
    /// What it names does not exist.
    NotFound = 3,
    /// The caller may not.
    Denied = 4,
    /// Something depends on it.
    Dependency = 5,
    /// The service cannot be reached or cannot work.
    Unavailable = 6,
}

/// A command that did not do what it was asked to.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    code: Option<String>,
    message: String,
    /// What stands in the way, a row each.
    dependants: Vec<Value>,
}

impl Failure {
    /// Ends with `exit` and this sentence.
    pub(crate) fn new(exit: Exit, message: impl std::fmt::Display) -> Self {
        Self { exit, code: None, message: message.to_string(), dependants: Vec::new() }
    }

    /// The server's code, if that is where it comes from.
    pub(crate) fn code(&self) -> Option<&str> {
        self.code.as_deref()
    }

    /// Shows what stands in the way.
    pub(crate) fn because_of(self, dependants: Vec<Value>) -> Self {
        Self { dependants, ..self }
    }

    /// Ends with [`Exit::Failed`] and this sentence.
    pub(crate) fn failed(message: impl std::fmt::Display) -> Self {
        Self::new(Exit::Failed, message)
    }

    /// Says what it is about.
    pub(crate) fn about(self, what: impl std::fmt::Display) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// Says what has to be known beside it.
    pub(crate) fn and(self, more: impl std::fmt::Display) -> Self {
        Self { message: format!("{}; {more}", self.message), ..self }
    }

    /// Ends with [`Exit::Failed`]: a file could not be used.
    pub(crate) fn file(path: &std::path::Path, error: &io::Error) -> Self {
        Self::failed(format_args!("{}: {error}", path.display()))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<lastkey_client::Error> for Failure {
    fn from(error: lastkey_client::Error) -> Self {
        let exit = match error.category() {
            Category::NotFound => Exit::NotFound,
            Category::Denied => Exit::Denied,
            Category::Dependency => Exit::Dependency,
            Category::Unavailable => Exit::Unavailable,
            Category::Failed => Exit::Failed,
        };
        let code = error.code().map(str::to_owned);
        Self { exit, code, message: chain(&error), dependants: Vec::new() }
    }
}

impl Failure {
    /// Its exit code.
    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }
}

impl From<lastkey_client::ConfigError> for Failure {
    fn from(error: lastkey_client::ConfigError) -> Self {
        Self::new(Exit::Usage, chain(&error))
    }
}

/// An error and what caused it, each said once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        source = cause.source();
    }
    text
}

/// Where a command's result goes.
#[derive(Debug)]
pub(crate) struct Output {
    format: Format,
}

impl Output {
    pub(crate) fn new(format: Format) -> Self {
        Self { format }
    }

    /// Whether scripts are listening.
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }

    /// Prints one object, or what a person reads instead.
    pub(crate) fn object(&self, value: &Value, human: impl FnOnce() -> String) {
        match self.format {
            Format::Json => line(&value.to_string()),
            Format::Table => line(&human()),
        };
    }

    /// Prints one event of a longer piece of work, or what a person reads instead, if anything;
    /// on standard error while standard output carries data.
    pub(crate) fn event(&self, value: &Value, human: Option<&str>, data_out: bool) {
        let json = self.is_json().then(|| value.to_string());
        match json.as_deref().or(human) {
            Some(text) if data_out => remark(text),
            Some(text) => {
                line(text);
            }
            None => {}
        }
    }

    /// Prints a list, or its table.
    pub(crate) fn list(&self, items: &[Value], next: &Value, columns: &[Column]) {
        match self.format {
            Format::Json => line(&json!({ "items": items, "next": next }).to_string()),
            Format::Table if items.is_empty() => line("none"),
            Format::Table => line(&table(items, columns)),
        };
    }

    /// A remark for people only.
    pub(crate) fn hint(&self, text: &str) {
        if self.format == Format::Table {
            remark(text);
        }
    }

    /// A remark while something is under way.
    pub(crate) fn note(text: &str) {
        remark(text);
    }

    /// Says why, and gives the exit code that goes with it.
    pub(crate) fn fail(&self, failure: &Failure) -> ExitCode {
        let Failure { exit, code, message, dependants } = failure;
        match self.format {
            Format::Json => {
                let mut error = json!({ "error": {
                    "exit_code": *exit as u8, "code": code, "message": message,
                } });
                if !dependants.is_empty() {
                    error["error"]["dependants"] = json!(dependants);
                }
                remark(&error.to_string());
            }
            Format::Table => {
                remark(&format!("error: {message}"));
                if !dependants.is_empty() {
                    remark(&format!("\n{}", table(dependants, &DEPENDANTS)));
                }
            }
        }
        ExitCode::from(*exit as u8)
    }
}

/// What is shown of each thing that needs a key.
pub(crate) const DEPENDANTS: [Column; 6] = [
    Column("KIND", "kind"),
    Column("NAME", "name"),
    Column("ID", "id"),
    Column("OBJECTS", "objects"),
    Column("SEEN", "seen_at"),
    Column("UNTIL", "until"),
];

/// Why something that was to be read on standard output is not there.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

/// Prints a line; a reader that went away is no failure of ours, and any other is [`unwritten`].
/// Answers whether it was written: a command that does nothing but print can end where it was not.
pub(crate) fn line(text: &str) -> bool {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => true,
        Err(error) => {
            if error.kind() != io::ErrorKind::BrokenPipe {
                UNWRITTEN.get_or_init(|| error);
            }
            false
        }
    }
}

/// The failure of a command that did its work and could not say all it had to.
pub(crate) fn unwritten() -> Option<Failure> {
    let error = UNWRITTEN.get()?;
    Some(Failure::failed(format_args!(
        "the command did its work, but its result could not be written to standard output: {error}"
    )))
}

/// Prints a line on standard error, which may be closed or on a full disk: the exit code still tells.
fn remark(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A table's column: its head, and the field it shows.
pub(crate) struct Column(pub(crate) &'static str, pub(crate) &'static str);

/// The items as a table.
pub(crate) fn table(items: &[Value], columns: &[Column]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| column.0));
    for item in items {
        table.add_row(columns.iter().map(|column| cell(&item[column.1])));
    }
    trimmed(&table)
}

/// The fields of one object, a line each.
pub(crate) fn fields(value: &Value) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    for (name, value) in value.as_object().into_iter().flatten() {
        if !cell(value).is_empty() {
            table.add_row([name.replace('_', " "), cell(value)]);
        }
    }
    trimmed(&table)
}

/// Without the padding at either end of a line.
fn trimmed(table: &Table) -> String {
    let lines = table.lines();
    let lines = lines.map(|line| line.strip_prefix(' ').unwrap_or(&line).trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// A value as a person reads it.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| format!("{name}={}", cell(value)))
            .collect::<Vec<_>>()
            .join(", "),
        other => other.to_string(),
    }
}
