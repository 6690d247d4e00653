//! The copy of the work tree that is woven, built and tested.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, file_error};

/// What a build needs of the work tree.
const COPIED: [&str; 6] =
    ["Cargo.toml", "Cargo.lock", "clippy.toml", "rust-toolchain.toml", "crates", "xtask"];

/// The root of the work tree: this one, unless the environment names another.
pub(crate) fn root() -> PathBuf {
    if let Some(root) = std::env::var_os("LASTKEY_MUTANTS_ROOT") {
        return root.into();
    }
    // This package is two levels below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").components().collect()
}

/// The cargo that started this.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"))
}

/// A copy, with room for what is built and what tests write.
#[derive(Clone)]
pub(crate) struct Copy {
    directory: PathBuf,
}

impl Copy {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.directory.join("tree")
    }

    pub(crate) fn target(&self) -> PathBuf {
        self.directory.join("target")
    }

    /// A directory of its own for `name`, empty.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf, Error> {
        let directory = self.directory.join("tmp").join(name);
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(file_error("empty", &directory))?;
        }
        fs::create_dir_all(&directory).map_err(file_error("create", &directory))?;
        Ok(directory)
    }

    /// Makes the tree what the work tree is, but for the files of `woven` (by their paths in it).
    /// What is the same already is left alone, so that it is not built again.
    pub(crate) fn sync(&self, woven: &HashMap<String, String>) -> Result<(), Error> {
        fs::create_dir_all(self.tree()).map_err(file_error("create", &self.tree()))?;
        for name in COPIED {
            sync(&root().join(name), &self.tree().join(name), Path::new(name), woven)?;
        }
        Ok(())
    }
}

fn sync(from: &Path, to: &Path, name: &Path, woven: &HashMap<String, String>) -> Result<(), Error> {
    if !from.is_dir() {
        let bytes = match woven.get(&*name.to_string_lossy()) {
            Some(text) => text.clone().into_bytes(),
            None => fs::read(from).map_err(file_error("read", from))?,
        };
        if fs::read(to).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        return fs::write(to, bytes).map_err(file_error("write", to));
    }
    fs::create_dir_all(to).map_err(file_error("create", to))?;
    let names = |directory: &Path| -> Result<Vec<OsString>, Error> {
        let entries = fs::read_dir(directory).map_err(file_error("list", directory))?;
        Ok(entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect())
    };
    let here = names(from)?;
    for gone in names(to)?.iter().filter(|name| !here.contains(name)) {
        let path = to.join(gone);
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(file_error("remove", &path))?;
    }
    for entry in here {
        sync(&from.join(&entry), &to.join(&entry), &name.join(&entry), woven)?;
    }
    Ok(())
}
