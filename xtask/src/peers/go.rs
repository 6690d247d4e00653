//! Building Go programs from the module registry.

use crate::shell::{Error, Step, file_error};
use std::fs;
use std::path::{Path, PathBuf};

/// The toolchain that the newest peer wants.
const TOOLCHAIN: &str = "go1.26.8";

/// One program of a pinned module.
pub(super) struct Build<'a> {
    pub(super) package: &'a str,
    pub(super) ldflags: &'a str,
    pub(super) dir: &'a Path,
    pub(super) log: &'a Path,
    /// The build cache, which all programs share.
    pub(super) cache: &'a Path,
}

impl Build<'_> {
    /// Builds it and puts it at `target`, whole or not at all.
    pub(super) fn install(&self, target: &Path) -> Result<(), Error> {
        let unfinished = target.with_extension("unfinished");
        go()?
            .env("GOCACHE", self.cache)
            .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags"])
            .args([format!("-s -w {}", self.ldflags).trim()])
            .arg_output(&unfinished)
            .args([self.package])
            .dir(self.dir)
            .run_logged(&format!("building {}", self.package), self.log)?;
        fs::rename(&unfinished, target).map_err(file_error("rename", &unfinished))
    }
}

impl Step {
    fn arg_output(self, file: &Path) -> Self {
        self.args([Path::new("-o"), file])
    }
}

/// A `go` that can build all peers.
///
/// One that is new enough is used as it is; one since 1.21 fetches the pinned toolchain by itself;
/// an older one (Debian 12 has 1.19) is made to fetch it as the module that it is published as.
fn go() -> Result<Step, Error> {
    let version = Step::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local").output();
    let version = version
        .ok_or_else(|| Error::Refused("`go` is missing and could not be installed".to_owned()))?;
    let (have, want) = (numbers(&version), numbers(TOOLCHAIN));
    if have[..2] >= want[..2] {
        return Ok(Step::new("go").env("GOTOOLCHAIN", "local"));
    }
    if have >= vec![1, 21, 0] {
        return Ok(Step::new("go").env("GOTOOLCHAIN", TOOLCHAIN));
    }
    Ok(Step::new(toolchain_module()?).env("GOTOOLCHAIN", "local").without_env("GOROOT"))
}

/// `go1.26.8` as numbers; what is missing counts as 0, and so does a pre-release's suffix.
fn numbers(version: &str) -> Vec<u32> {
    let mut numbers: Vec<u32> = version
        .trim_start_matches("go")
        .split('.')
        .map(|part| part.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default())
        .map(|digits| digits.parse().unwrap_or_default())
        .collect();
    numbers.resize(3, 0);
    numbers
}

fn toolchain_module() -> Result<PathBuf, Error> {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let module = format!("golang.org/toolchain@v0.0.1-{TOOLCHAIN}.linux-{arch}");
    println!("peers: the system's go is too old; fetching {TOOLCHAIN} as a module");
    let refused = || Error::Refused(format!("cannot fetch {module}; install Go 1.26 yourself"));
    let temp = std::env::temp_dir();
    let fetched = Step::new("go").args(["mod", "download", &module]).dir(&temp).succeeds();
    let cache = Step::new("go").args(["env", "GOMODCACHE"]).output();
    let root =
        cache.filter(|_| fetched).map(|c| Path::new(&c).join(&module)).ok_or_else(refused)?;
    // A module archive has no executable bits.
    Step::new("chmod")
        .args(["-R", "a+x"])
        .args([root.join("bin"), root.join("pkg/tool")])
        .run("making the Go toolchain executable")?;
    Ok(root.join("bin/go"))
}

#[cfg(test)]
mod tests {
    use super::numbers;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(numbers("go1.26.8") > numbers("go1.26"));
        assert!(numbers("go1.9") < numbers("go1.21.0"));
        assert_eq!(numbers("go1.27rc1"), [1, 27, 0]);
    }
}
