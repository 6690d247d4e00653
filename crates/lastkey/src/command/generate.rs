//! Completions and manual pages, generated from the command line's own definition.

use std::{fs, io, path::Path};

use clap::CommandFactory;

use crate::{cli::Cli, output::Failure};

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    clap_complete::generate(shell, &mut Cli::command(), "lastkey", &mut io::stdout());
    Ok(())
}

/// The main page on standard output, or every command's page in a directory.
pub(crate) fn man_pages(out: Option<&Path>) -> Result<(), Failure> {
    match out {
        None => {
            clap_mangen::Man::new(Cli::command()).render(&mut io::stdout()).map_err(Failure::failed)
        }
        Some(directory) => {
            fs::create_dir_all(directory).map_err(|error| Failure::file(directory, &error))?;
            clap_mangen::generate_to(Cli::command(), directory)
                .map_err(|error| Failure::file(directory, &error))
        }
    }
}
