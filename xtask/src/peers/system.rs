//! System tools that installing peers needs, through apt where they are missing.

use super::{Peer, Recipe};
use crate::shell::{Error, Step};

/// A tool: how its presence shows, and the Debian packages that bring it.
struct Tool {
    name: &'static str,
    probe: &'static [&'static str],
    packages: &'static [&'static str],
}

const GO: Tool = Tool { name: "go", probe: &["go", "version"], packages: &["golang-go"] };
const GCC: Tool =
    Tool { name: "gcc", probe: &["gcc", "--version"], packages: &["gcc", "libc6-dev"] };
const VENV: Tool = Tool {
    name: "python3 with venv",
    probe: &["python3", "-c", "import venv, ensurepip"],
    packages: &["python3", "python3-venv"],
};
const NODE: Tool = Tool { name: "node", probe: &["node", "--version"], packages: &["nodejs"] };
const SOFTHSM: Tool =
    Tool { name: "softhsm2-util", probe: &["softhsm2-util", "--version"], packages: &["softhsm2"] };
const NPM: Tool = Tool { name: "npm", probe: &["npm", "--version"], packages: &["npm"] };

/// Makes sure that the tools for these peers are there.
pub(super) fn prepare(peers: &[&Peer]) -> Result<(), Error> {
    let needed = peers.iter().flat_map(|peer| match peer.recipe {
        Recipe::Go { .. } => vec![GO, GCC],
        Recipe::Python => vec![VENV, GCC],
        Recipe::Node => vec![NODE, NPM],
        Recipe::Apt { .. } => vec![SOFTHSM],
        Recipe::Deb { .. } | Recipe::Old => vec![],
    });
    let missing: Vec<Tool> = needed.filter(|tool| !tool.is_there()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().flat_map(|t| t.packages.iter().copied()).collect();
    packages.sort_unstable();
    packages.dedup();
    println!("peers: installing {} with apt", packages.join(" "));
    let apt = || Step::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(["-qq"]);
    let installed = apt().args(["update"]).run("apt-get update").and_then(|()| {
        let install = apt().args(["install", "-y", "--no-install-recommends"]);
        install.args(&packages).run("apt-get install")
    });
    let still: Vec<&str> = missing.iter().filter(|t| !t.is_there()).map(|t| t.name).collect();
    if still.is_empty() {
        return Ok(());
    }
    let cause = installed.err().map(|e| format!(" ({e})")).unwrap_or_default();
    Err(Error::Refused(format!(
        "missing: {}{cause}. As root: apt-get install {}",
        still.join(", "),
        packages.join(" ")
    )))
}

impl Tool {
    fn is_there(&self) -> bool {
        let [program, args @ ..] = self.probe else { return false };
        Step::new(program).args(args).succeeds()
    }
}
