//! `cargo xtask peers`: the real programs that tests run against, from the package registries.
//!
//! Each peer has a pinned manifest in `xtask/peers/`. It is installed below `~/.cache/lastkey-peers`
//! (`LASTKEY_PEERS` overrides) and leaves a stamp there: its whole recipe. A peer whose stamp equals
//! the recipe is left alone; what was interrupted is taken up again, with the compilers' own caches.
//! Go's build cache lies there too, and is removed once everything is built: it has several GiB.

mod debian;
mod go;
mod old;
mod system;

use crate::shell::{self, Error, Step, file_error};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Only these peers; when none is named, all but kube-apiserver-1.27.8 and kube-apiserver-1.20.2
    names: Vec<String>,
    /// Say what is there, install nothing
    #[arg(long)]
    list: bool,
}

/// How a peer is made.
enum Recipe {
    /// A Go program: the package to build and its linker flags.
    Go { package: &'static str, ldflags: &'static str },
    /// A Python environment from requirements.txt.
    Python,
    /// npm packages from package-lock.json.
    Node,
    /// A Debian package, and the file of it that is linked to where the peer is expected.
    Apt { file: &'static str },
    /// One program out of a Debian package that is not installed, because it would start a service.
    Deb { package: &'static str, file: &'static str },
    /// kube-apiserver 1.20.2 from Debian's sources.
    Old,
}

/// The peers of the lane `old`, which is run on request; they are installed only where they are asked for.
pub(crate) const OLD: [&str; 2] = ["kube-apiserver-1.27.8", "kube-apiserver-1.20.2"];

/// Go's build cache, below the peers' folder, while they are built.
const GO_CACHE: &str = "go-build";

struct Peer {
    name: &'static str,
    /// The folder in `xtask/peers/` that pins it.
    manifest: &'static str,
    /// The file whose presence says that it is there, below the peers' folder.
    makes: &'static str,
    recipe: Recipe,
}

impl Peer {
    const fn go(name: &'static str, manifest: &'static str, made: [&'static str; 3]) -> Self {
        let [makes, package, ldflags] = made;
        Self { name, manifest, makes, recipe: Recipe::Go { package, ldflags } }
    }
}

const KUBE_137: &str = "-X k8s.io/component-base/version.gitVersion=v1.37.0 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37";
const KUBE_127: &str = "-X k8s.io/component-base/version.gitVersion=v1.27.8 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=27";
const KUBE_128: &str = "-X k8s.io/component-base/version.gitVersion=v1.28.0 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=28";
const KUBE_131: &str = "-X k8s.io/component-base/version.gitVersion=v1.31.0 \
    -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=31";

/// All peers, quickest first, so that a broken set-up shows early.
const PEERS: [Peer; 16] = [
    Peer {
        name: "softhsm2",
        manifest: "softhsm2",
        makes: "bin/softhsm2-util",
        recipe: Recipe::Apt { file: "/usr/bin/softhsm2-util" },
    },
    Peer {
        name: "promtool",
        manifest: "promtool",
        makes: "bin/promtool",
        recipe: Recipe::Deb { package: "prometheus", file: "usr/bin/promtool" },
    },
    Peer { name: "python", manifest: "python", makes: "python/bin/python", recipe: Recipe::Python },
    Peer { name: "node", manifest: "node", makes: "node/node_modules", recipe: Recipe::Node },
    Peer {
        name: "grafana",
        manifest: "grafana",
        makes: "grafana/node_modules",
        recipe: Recipe::Node,
    },
    Peer::go("etcd", "etcd-3.6.7", ["bin/etcd", "go.etcd.io/etcd/server/v3", ""]),
    Peer::go("etcdctl", "etcd-3.6.7", ["bin/etcdctl", "go.etcd.io/etcd/etcdctl/v3", ""]),
    Peer::go("etcdutl", "etcd-3.6.7", ["bin/etcdutl", "go.etcd.io/etcd/etcdutl/v3", ""]),
    Peer::go("helm", "helm-3.22.0", ["bin/helm", "helm.sh/helm/v3/cmd/helm", ""]),
    Peer::go(
        "kube-apiserver-1.37.0",
        "kube-1.37.0",
        ["bin/kube-apiserver-1.37.0", "k8s.io/kubernetes/cmd/kube-apiserver", KUBE_137],
    ),
    // What carries out StorageVersionMigrations.
    Peer::go(
        "kube-controller-manager-1.37.0",
        "kube-1.37.0",
        [
            "bin/kube-controller-manager-1.37.0",
            "k8s.io/kubernetes/cmd/kube-controller-manager",
            KUBE_137,
        ],
    ),
    Peer::go("kubectl", "kube-1.37.0", ["bin/kubectl", "k8s.io/kubernetes/cmd/kubectl", KUBE_137]),
    Peer::go(
        "kube-apiserver-1.31.0",
        "kube-1.31.0",
        ["bin/kube-apiserver-1.31.0", "k8s.io/kubernetes/cmd/kube-apiserver", KUBE_131],
    ),
    Peer::go(
        "kube-apiserver-1.28.0",
        "kube-1.28.0",
        ["bin/kube-apiserver-1.28.0", "k8s.io/kubernetes/cmd/kube-apiserver", KUBE_128],
    ),
    Peer::go(
        OLD[0],
        "kube-1.27.8",
        ["bin/kube-apiserver-1.27.8", "k8s.io/kubernetes/cmd/kube-apiserver", KUBE_127],
    ),
    Peer { name: OLD[1], manifest: "", makes: "bin/kube-apiserver-1.20.2", recipe: Recipe::Old },
];

/// Installs the named peers, or all, or says what is there.
pub(crate) fn run(options: &Options) -> Result<(), Error> {
    let names: Vec<&str> = options.names.iter().map(String::as_str).collect();
    if let Some(unknown) = names.iter().find(|n| PEERS.iter().all(|p| p.name != **n)) {
        let known: Vec<&str> = PEERS.iter().map(|p| p.name).collect();
        let known = known.join(", ");
        return Err(Error::Refused(format!("no peer {unknown}; there are: {known}")));
    }
    if options.list {
        let place = folder()?;
        for peer in &PEERS {
            let state = match peer.is_current(&place)? {
                true => "there",
                false if peer.is_on_request() => "on request",
                false => "missing",
            };
            println!("{:11} {}", state, peer.name);
        }
        return Ok(());
    }
    install(&names)
}

/// The names of the peers that are not installed as their recipe wants them, and always should be.
pub(crate) fn missing() -> Result<Vec<&'static str>, Error> {
    let place = folder()?;
    let mut missing = Vec::new();
    for peer in &PEERS {
        if !peer.is_on_request() && !peer.is_current(&place)? {
            missing.push(peer.name);
        }
    }
    Ok(missing)
}

/// Installs the named peers (when there is no name, all that are not on request) as far as they are
/// not there yet. One that fails does not keep the others from being installed.
pub(crate) fn install(names: &[&str]) -> Result<(), Error> {
    let place = folder()?;
    for part in ["bin", "stamps", "logs"] {
        let part = place.join(part);
        fs::create_dir_all(&part).map_err(file_error("create", &part))?;
    }
    // Two runs at once would build everything twice.
    let lock = place.join("lock");
    let file = fs::File::create(&lock).map_err(file_error("create", &lock))?;
    if file.try_lock().is_err() {
        println!("peers: another run is installing them; waiting for it");
        file.lock().map_err(file_error("lock", &lock))?;
    }
    let wanted = PEERS.iter().filter(|p| match names.is_empty() {
        true => !p.is_on_request(),
        false => names.contains(&p.name),
    });
    let mut todo = Vec::new();
    for peer in wanted {
        if !peer.is_current(&place)? {
            todo.push(peer);
        }
    }
    if todo.is_empty() {
        return Ok(());
    }
    system::prepare(&todo)?;
    let mut failed = Vec::new();
    for (number, peer) in todo.iter().enumerate() {
        println!("peers: {}/{} {} …", number + 1, todo.len(), peer.name);
        let start = Instant::now();
        match peer.install(&place) {
            Ok(()) => println!("peers: {} done in {} s", peer.name, start.elapsed().as_secs()),
            Err(error) => {
                eprintln!("peers: {error}");
                failed.push(peer.name);
            }
        }
    }
    if failed.is_empty() {
        let cache = place.join(GO_CACHE);
        return match fs::remove_dir_all(&cache) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(file_error("remove", &cache)(error))
            }
            _ => Ok(()),
        };
    }
    Err(Error::Refused(format!("these peers could not be installed: {}", failed.join(", "))))
}

/// `~/.cache/lastkey-peers`, or what `LASTKEY_PEERS` says.
pub(crate) fn folder() -> Result<PathBuf, Error> {
    if let Some(folder) = std::env::var_os("LASTKEY_PEERS").filter(|f| !f.is_empty()) {
        return Ok(PathBuf::from(folder));
    }
    let home = std::env::home_dir()
        .ok_or_else(|| Error::Refused("no home directory; set LASTKEY_PEERS to a folder".into()))?;
    Ok(home.join(".cache/lastkey-peers"))
}

impl Peer {
    /// Whether it is installed by its name only.
    fn is_on_request(&self) -> bool {
        OLD.contains(&self.name)
    }

    fn manifest_dir(&self) -> PathBuf {
        shell::root().join("xtask/peers").join(self.manifest)
    }

    /// Everything that decides what is built; a change anywhere in it builds anew.
    fn stamp(&self) -> Result<String, Error> {
        let dir = self.manifest_dir();
        let (files, mut stamp) = match self.recipe {
            Recipe::Go { package, ldflags } => {
                (["go.mod", "go.sum"].as_slice(), format!("{package} {ldflags}\n"))
            }
            Recipe::Python => (["requirements.txt"].as_slice(), String::new()),
            Recipe::Node => (["package.json", "package-lock.json"].as_slice(), String::new()),
            Recipe::Apt { file } => ([].as_slice(), format!("{file}\n")),
            Recipe::Deb { package, file } => ([].as_slice(), format!("{package} {file}\n")),
            Recipe::Old => ([].as_slice(), old::recipe()),
        };
        for file in files {
            let path = dir.join(file);
            stamp += &fs::read_to_string(&path).map_err(file_error("read", &path))?;
        }
        Ok(stamp)
    }

    fn stamp_file(&self, place: &Path) -> PathBuf {
        place.join("stamps").join(self.name)
    }

    fn is_current(&self, place: &Path) -> Result<bool, Error> {
        let stamp = fs::read_to_string(self.stamp_file(place)).unwrap_or_default();
        Ok(place.join(self.makes).exists() && stamp == self.stamp()?)
    }

    fn install(&self, place: &Path) -> Result<(), Error> {
        let log = place.join("logs").join(format!("{}.log", self.name));
        match self.recipe {
            Recipe::Go { package, ldflags } => {
                let (dir, cache) = (self.manifest_dir(), place.join(GO_CACHE));
                let build = go::Build { package, ldflags, dir: &dir, log: &log, cache: &cache };
                build.install(&place.join(self.makes))?;
            }
            Recipe::Python => self.install_python(place, &log)?,
            Recipe::Node => self.install_node(place, &log)?,
            Recipe::Apt { file } => {
                // `system::prepare` has installed the package.
                let link = place.join(self.makes);
                let _ = fs::remove_file(&link);
                std::os::unix::fs::symlink(file, &link).map_err(file_error("link", &link))?;
            }
            Recipe::Deb { package, file } => {
                let program = debian::Program { package, file, log: &log };
                program.install(&place.join(self.makes))?;
            }
            Recipe::Old => old::install(&place.join(self.makes), &log)?,
        }
        let stamp = self.stamp_file(place);
        fs::write(&stamp, self.stamp()?).map_err(file_error("write", &stamp))
    }

    fn install_python(&self, place: &Path, log: &Path) -> Result<(), Error> {
        let venv = place.join("python");
        Step::new("python3")
            .args(["-m", "venv", "--clear"])
            .args([&venv])
            .run_logged("making the Python environment", log)?;
        Step::new(venv.join("bin/pip"))
            .args(["install", "--require-hashes", "--disable-pip-version-check", "-r"])
            .args([self.manifest_dir().join("requirements.txt")])
            .run_logged("installing the Python SDKs", log)
    }

    fn install_node(&self, place: &Path, log: &Path) -> Result<(), Error> {
        let dir = place.join(self.manifest);
        fs::create_dir_all(&dir).map_err(file_error("create", &dir))?;
        for file in ["package.json", "package-lock.json"] {
            let from = self.manifest_dir().join(file);
            fs::copy(&from, dir.join(file)).map_err(file_error("copy", &from))?;
        }
        Step::new("npm")
            .args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
            .dir(&dir)
            .run_logged("installing npm packages", log)
    }
}
