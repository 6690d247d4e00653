//! Single programs out of Debian packages, which are unpacked and not installed.

use crate::shell::{Error, Step, file_error};
use std::fs;
use std::path::{Path, PathBuf};

/// One program of a package.
pub(super) struct Program<'a> {
    pub(super) package: &'a str,
    /// Inside the package.
    pub(super) file: &'a str,
    pub(super) log: &'a Path,
}

impl Program<'_> {
    /// Fetches the package and puts the program at `target`, whole or not at all.
    pub(super) fn install(&self, target: &Path) -> Result<(), Error> {
        let dir = target.with_extension("unpacked");
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).map_err(file_error("create", &dir))?;
        let package = self.fetch(&dir)?;
        let root = dir.join("root");
        Step::new("dpkg-deb")
            .args(["--extract"])
            .args([&package, &root])
            .run_logged(&format!("unpacking {}", self.package), self.log)?;
        let program = root.join(self.file);
        fs::rename(&program, target).map_err(file_error("rename", &program))?;
        fs::remove_dir_all(&dir).map_err(file_error("remove", &dir))
    }

    /// The package in `dir`; the lists of what there is are fetched where they are missing.
    fn fetch(&self, dir: &Path) -> Result<PathBuf, Error> {
        let download = || {
            Step::new("apt-get")
                .args(["download", "-o", "APT::Sandbox::User=root", self.package])
                .dir(dir)
                .run_logged(&format!("fetching {}", self.package), self.log)
        };
        if download().is_err() {
            Step::new("apt-get").args(["update", "-qq"]).run("apt-get update")?;
            download()?;
        }
        let entries = fs::read_dir(dir).map_err(file_error("read", dir))?;
        let mut files = entries.filter_map(Result::ok).map(|entry| entry.path());
        files.find(|path| path.extension().is_some_and(|it| it == "deb")).ok_or_else(|| {
            Error::Refused(format!("apt-get download {} left no package", self.package))
        })
    }
}
