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

    /// A path as the process sees it, for us: it may be in a container. Where the same file is
    /// there for us too, it is called by its own name, which is still good when the process is gone.
    pub fn sees(&self, path: &Path) -> PathBuf {
        let link = |name| PathBuf::from(format!("/proc/{}/{name}", self.id));
        let (seen, plain) = match path.strip_prefix("/") {
            Ok(inside) => (link("root").join(inside), path.to_owned()),
            Err(_) => {
                let seen = link("cwd").join(path);
                let plain = fs::read_link(link("cwd")).map(|cwd| cwd.join(path));
                (seen.clone(), plain.unwrap_or(seen))
            }
        };
        let is_there = fs::symlink_metadata(&seen).is_ok();
        if is_there && !is_same(&seen, &plain) { seen } else { plain }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::metadata(path).map(|it| (it.dev(), it.ino())).ok();
    identity(one).is_some() && identity(one) == identity(other)
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
        // in the same place as we are, so nothing is called by the process's id
        assert_eq!(us.sees(directory.path()), directory.path());
        let relative = us.sees(Path::new("Cargo.toml"));
        assert_eq!(relative, std::env::current_dir().unwrap().join("Cargo.toml"));
    }
}
