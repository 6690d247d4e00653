//! Options of the commands that work on files.

use std::path::PathBuf;

use clap::Args;

/// Options of `encrypt`.
#[derive(Debug, Args)]
pub(crate) struct EncryptOptions {
    /// The key: its id, or alias/NAME. Given several times, each of them opens the file.
    #[arg(long = "key", value_name = "KEY", required = true)]
    pub(crate) keys: Vec<String>,
    #[command(flatten)]
    pub(crate) files: Files,
    /// Use one data key for several files, for at most so many minutes: with it, encrypting goes on
    /// while the server is away [default: a data key of its own for each file].
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub(crate) hold: Option<u64>,
}

/// Options of `decrypt`.
#[derive(Debug, Args)]
pub(crate) struct DecryptOptions {
    #[command(flatten)]
    pub(crate) files: Files,
    /// Keep each data key for so many minutes: other files of the same data key then open while
    /// the server is away [default: only as long as it is used].
    #[arg(long, value_name = "MINUTES", value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub(crate) hold: Option<u64>,
}

/// What to read and what to write.
#[derive(Debug, Args)]
pub(crate) struct Files {
    /// The files. `encrypt` writes FILE.lastkey, `decrypt` writes FILE without `.lastkey`; both
    /// keep FILE.
    #[arg(value_name = "FILE", conflicts_with_all = ["input", "files_from"])]
    pub(crate) files: Vec<PathBuf>,
    /// The one file to read, or `-` [default: standard input].
    #[arg(short, long, value_name = "FILE", conflicts_with = "files_from")]
    pub(crate) input: Option<PathBuf>,
    /// The one file to write, or `-` for standard output [default: FILE's counterpart, or standard
    /// output where no FILE is given].
    // `--output` is the global choice of a format, so the long name is another.
    #[arg(short = 'o', long = "out", value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Take the FILEs from this file, or from standard input (`-`), a line each, as they come.
    #[arg(long, value_name = "LIST", conflicts_with = "out")]
    pub(crate) files_from: Option<PathBuf>,
    /// The names in LIST end with a zero byte instead of a newline.
    #[arg(short = '0', long, requires = "files_from")]
    pub(crate) null: bool,
    /// Replace files that exist.
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// Options of `rewrap`.
#[derive(Debug, Args)]
pub(crate) struct RewrapOptions {
    /// The encrypted files; they are changed in place.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// The keys that open the file from now on, and no others: ids, or alias/NAME [default: the
    /// keys that open it already, in their newest versions].
    #[arg(long = "key", value_name = "KEY", conflicts_with_all = ["add_keys", "remove_keys"])]
    pub(crate) keys: Vec<String>,
    /// A further key that opens the file.
    #[arg(long = "add-key", value_name = "KEY")]
    pub(crate) add_keys: Vec<String>,
    /// A key that opens it no more.
    #[arg(long = "remove-key", value_name = "KEY")]
    pub(crate) remove_keys: Vec<String>,
}
