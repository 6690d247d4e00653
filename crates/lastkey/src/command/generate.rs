//! Completions and manual pages, generated from the command line's own definition.

use std::{fs, path::Path};

use clap::CommandFactory;

use crate::{
    cli::Cli,
    output::{Failure, line},
};

pub(crate) fn completions(shell: clap_complete::Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "lastkey", &mut script);
    print(&script);
}

/// The main page on standard output, or every command's page in a directory.
pub(crate) fn man_pages(out: Option<&Path>) -> Result<(), Failure> {
    let Some(directory) = out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page).map_err(Failure::failed)?;
        print(&page);
        return Ok(());
    };
    fs::create_dir_all(directory).map_err(|error| Failure::file(directory, &error))?;
    clap_mangen::generate_to(Cli::command(), directory)
        .map_err(|error| Failure::file(directory, &error))
}

/// Prints what was generated; a reader that went away is no failure of ours.
fn print(generated: &[u8]) {
    line(String::from_utf8_lossy(generated).trim_end());
}
