//! Processes of this machine, as `/proc` shows them.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// A process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub id: u32,
    /// Whose it is.
    pub user: u32,
    /// What it was started as.
    pub command: Vec<String>,
}

impl Process {
    /// A process by its id; none if it is gone.
    pub fn find(id: u32) -> Option<Self> {
        let place = PathBuf::from(format!("/proc/{id}"));
        let line = fs::read(place.join("cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        let mut command: Vec<String> = words.map(std::borrow::Cow::into_owned).collect();
        // each word ends with a zero
        command.pop();
        let user = fs::metadata(&place).ok()?.uid();
        (!command.is_empty()).then_some(Self { id, user, command })
    }

    /// The name of its program.
    pub fn name(&self) -> &str {
        let first = self.command.first().map_or("", String::as_str);
        Path::new(first).file_name().and_then(|name| name.to_str()).unwrap_or(first)
    }

    /// A path as the process sees it, for us: it may be in a container.
    pub fn sees(&self, path: &Path) -> PathBuf {
        let Ok(inside) = path.strip_prefix("/") else {
            return PathBuf::from(format!("/proc/{}/cwd", self.id)).join(path);
        };
        let seen = PathBuf::from(format!("/proc/{}/root", self.id)).join(inside);
        if fs::symlink_metadata(&seen).is_ok() { seen } else { path.to_owned() }
    }
}

/// All processes that can be seen.
pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|it| Process::find(it.file_name().to_str()?.parse().ok()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_among_them() {
        let us = Process::find(std::process::id()).unwrap();
        assert!(processes().contains(&us));
        assert!(us.name().starts_with("lastkey_kubernetes"), "{us:?}");
        assert_eq!(us.command.len(), std::env::args().count());
        let directory = tempfile::tempdir().unwrap();
        assert!(us.sees(directory.path()).is_dir());
        assert!(us.sees(Path::new("Cargo.toml")).is_file());
    }
}
