//! Where the real peers are, and what to do in their absence.

use crate::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The folder that `cargo xtask peers` fills.
#[derive(Debug, Clone)]
pub struct Peers {
    root: PathBuf,
}

impl Peers {
    /// All of the named peers: programs by their name in `bin/`, `python`, `node` and `grafana`.
    ///
    /// # Errors
    /// [`Error::MissingPeer`] for the first one that is not installed.
    pub fn find(names: &[&str]) -> Result<Self, Error> {
        let peers = Self { root: root() };
        for name in names {
            let path = peers.path(name);
            if !path.exists() {
                return Err(Error::MissingPeer { name: (*name).to_owned(), path });
            }
        }
        Ok(peers)
    }

    /// For a test: the named peers, or `None` after saying loudly that the test is skipped.
    ///
    /// # Panics
    /// In CI, where every peer is required.
    #[must_use]
    pub fn or_skip(test: &str, names: &[&str]) -> Option<Self> {
        match Self::find(names) {
            Ok(peers) => Some(peers),
            Err(error) => {
                announce_skip(test, &error);
                None
            }
        }
    }

    /// Where a peer is: a program, the Python interpreter or a folder of npm packages.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        match name {
            "python" => self.root.join("python/bin/python"),
            "node" | "grafana" => self.root.join(name).join("node_modules"),
            _ => self.root.join("bin").join(name),
        }
    }

    /// The folder of all peers.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}

/// Says on the terminal itself that a test is skipped (the test runner swallows `eprintln!`).
///
/// # Panics
/// In CI, where nothing may be skipped.
pub fn announce_skip(test: &str, why: &Error) {
    let ci = std::env::var("CI").is_ok_and(|v| !v.is_empty() && v != "0" && v != "false");
    assert!(!ci, "CI requires every peer, and {test} cannot run: {why}");
    let text = format!("\n!!!!  SKIPPED {test}: {why}\n");
    std::io::stderr().write_all(text.as_bytes()).ok();
}

fn root() -> PathBuf {
    let named = std::env::var_os("LASTKEY_PEERS").filter(|root| !root.is_empty());
    named.map_or_else(
        || std::env::home_dir().unwrap_or_default().join(".cache/lastkey-peers"),
        PathBuf::from,
    )
}
