//! `operator`, and the options of `up` and `server` that choose a seal.

use std::path::PathBuf;

use clap::{Args, Subcommand};

/// What keeps the root key of a new installation, and how a token is reached.
#[derive(Debug, Args)]
#[command(next_help_heading = "Seal")]
pub(crate) struct SealOptions {
    /// What keeps the root key of a new installation (a file, unless told otherwise); one that
    /// exists keeps its own.
    #[arg(long, value_enum, value_name = "KIND")]
    pub(crate) seal: Option<SealChoice>,

    #[command(flatten)]
    pub(crate) token: TokenOptions,
}

/// How a PKCS#11 token is reached.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Seal")]
pub(crate) struct TokenOptions {
    /// The PKCS#11 module of the token: a shared library.
    #[arg(long, value_name = "FILE", requires_all = ["pkcs11_token", "pkcs11_pin_file"])]
    pub(crate) pkcs11_module: Option<PathBuf>,

    /// The token's label, or its serial number.
    #[arg(long, value_name = "TOKEN", requires = "pkcs11_module")]
    pub(crate) pkcs11_token: Option<String>,

    /// The label of the key on the token; one is made where there is none.
    #[arg(long, value_name = "LABEL", default_value = "lastkey")]
    pub(crate) pkcs11_key: String,

    /// The file, readable by its owner alone, that holds the token's PIN.
    #[arg(long, value_name = "FILE", requires = "pkcs11_module")]
    pub(crate) pkcs11_pin_file: Option<PathBuf>,
}

/// A kind of seal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum SealChoice {
    /// A file in the data directory: whoever can read it can read every key.
    #[default]
    File,
    /// Shares that people keep, some of which unseal the server after each start.
    Shamir,
    /// A key on a PKCS#11 token.
    Pkcs11,
}

/// What to do with the seal.
#[derive(Debug, Subcommand)]
pub(crate) enum OperatorAction {
    /// Make the root key of a server that was started with `--seal shamir`, and print its shares,
    /// this once.
    Init(Splitting),
    /// Enter one share: asked for on a terminal, else read from standard input.
    Unseal {
        /// Drop the shares that were entered, and begin again.
        #[arg(long)]
        reset: bool,
    },
    /// Take every key out of the server's memory.
    Seal,
    /// Show whether the server is sealed, and by what.
    Status,
    /// Show whether an override needs a second person, and set it.
    Guard(super::GuardOptions),
    /// Make new shares in place of the old ones; enter one of the old ones, as many times as it
    /// takes.
    Rekey(MaybeSplitting),
    /// Enter one of the new shares that `rekey` or `migrate` made; once enough were, they alone
    /// unseal.
    Confirm,
    /// Drop the shares that were entered for a change; where none were, the new ones that wait to be
    /// confirmed.
    Cancel,
    /// Put the root key under another seal.
    Migrate {
        /// Which one.
        #[arg(long, value_enum, value_name = "KIND")]
        to: SealChoice,
        #[command(flatten)]
        splitting: MaybeSplitting,
        #[command(flatten)]
        token: TokenOptions,
    },
    /// Replace the root key, or the keys that the store is encrypted with.
    Rotate {
        /// What to replace.
        #[arg(value_enum)]
        what: RotateWhat,
    },
    /// Go on with a store that is older than this server last knew it.
    AcceptRestore {
        /// Why; it goes into the audit log.
        #[arg(long)]
        reason: String,
    },
}

/// How many shares, and how many it takes.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Splitting {
    /// How many shares there are to be.
    #[arg(long, value_name = "N")]
    pub(crate) shares: u8,
    /// How many of them it takes.
    #[arg(long, value_name = "K")]
    pub(crate) threshold: u8,
}

/// How many shares, and how many it takes, where there are to be any.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct MaybeSplitting {
    /// How many shares there are to be.
    #[arg(long, value_name = "N", requires = "threshold")]
    pub(crate) shares: Option<u8>,
    /// How many of them it takes.
    #[arg(long, value_name = "K", requires = "shares")]
    pub(crate) threshold: Option<u8>,
}

/// What to replace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RotateWhat {
    /// The root key.
    Root,
    /// The keys that the store is encrypted with.
    Keyring,
}
