//! What is said to a command line that asks for help, or that cannot be understood.

use std::{ffi::OsString, process::ExitCode};

use clap::error::ErrorKind;

use crate::output::{Exit, Failure, Format, Output, WRONG_USAGE};

/// Prints it, to people or to scripts, whichever was asked for.
pub(crate) fn tell(error: &clap::Error) -> ExitCode {
    // Help and version are what was asked for; anything else is wrong usage.
    let asked = !error.use_stderr();
    if !asked && wants_json(std::env::args_os().skip(1)) {
        return Output::new(Format::Json).fail(&Failure::new(Exit::Usage, sentence(error)));
    }
    let _ = error.print();
    if asked { ExitCode::SUCCESS } else { ExitCode::from(WRONG_USAGE) }
}

/// Whether these arguments ask for JSON; the whole of them could not be read.
fn wants_json(arguments: impl Iterator<Item = OsString>) -> bool {
    let mut before = OsString::new();
    for argument in arguments.take_while(|argument| argument != "--") {
        if argument == "--output=json" || before == "--output" && argument == "json" {
            return true;
        }
        before = argument;
    }
    false
}

/// Its paragraphs in one line.
fn sentence(error: &clap::Error) -> String {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "there is more to say; --help shows what".to_owned();
    }
    let text = error.to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
    let paragraphs = text.trim_end_matches('.').split("\n\n").map(|paragraph| {
        let words: Vec<_> = paragraph.split_whitespace().collect();
        let line = words.join(" ");
        line.replacen("Usage: ", "usage: ", 1).replacen("For more", "for more", 1)
    });
    paragraphs.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn json_is_asked_for_by_an_option_alone() {
        let wants = |line: &str| wants_json(line.split(' ').map(OsString::from));
        for line in ["key tag K x --output json", "--output=json key", "--output json"] {
            assert!(wants(line), "{line}");
        }
        for line in ["key tag K x", "--output table", "json --output", "key -- --output json"] {
            assert!(!wants(line), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_one_line() {
        let said = |line: &str| sentence(&Cli::try_parse_from(line.split(' ')).unwrap_err());
        let tag = "invalid value 'novalue' for '<NAME=VALUE>...': ";
        assert!(said("lastkey key tag K novalue").starts_with(tag));
        assert_eq!(
            said("lastkey encrypt plan.txt"),
            "the following required arguments were not provided: --key <KEY>; usage: lastkey \
             encrypt --key <KEY> <FILE>...; for more information, try '--help'"
        );
        assert!(said("lastkey key").contains("--help"));
    }
}
