//! kube-apiserver 1.20.2 from Debian's source package, by Debian's own Go 1.19: its modules are not
//! all in the registry, and newer toolchains build it wrongly.
//!
//! Everything is fetched and built in one folder below the peers', which is removed afterwards;
//! nothing of the system changes.

use crate::shell::{Error, Step, file_error};
use std::fs;
use std::path::{Path, PathBuf};

/// Debian 12's version of the package, as its files are named.
const SOURCE: &str = "kubernetes=1.20.5+really1.20.2-1.1+deb12u1";
const GO: [&str; 2] = ["golang-1.19-go", "golang-1.19-src"];
/// Whatever of Debian runs here, the sources are those of 12.
const SOURCES: &str = "\
deb-src http://deb.debian.org/debian bookworm main
deb-src http://deb.debian.org/debian-security bookworm-security main
deb http://deb.debian.org/debian bookworm main
";
const LDFLAGS: &str = "-s -w \
    -X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitVersion=v1.20.2 \
    -X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/kubernetes/vendor/k8s.io/component-base/version.gitMinor=20";
/// The one generated file that the package leaves out.
const GENERATE: &str = "\
dirs=$(grep -rl --include=*.go '+k8s:openapi-gen=' pkg cmd plugin staging/src/k8s.io \
  | grep -v -E 'zz_generated|staging/src/k8s.io/(code-generator|sample-apiserver)/|_test\\.go$' \
  | xargs -n1 dirname | LC_ALL=C sort -u \
  | sed -e 's#^staging/src/#vendor/#' -e 's#^#k8s.io/kubernetes/#' | paste -sd,)
exec \"$1\" --logtostderr -i \"$dirs\" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
  -h vendor/k8s.io/code-generator/hack/boilerplate.go.txt -r \"$1.report\"
";

/// Everything that decides what is built.
pub(super) fn recipe() -> String {
    [SOURCE, GO[0], SOURCES, LDFLAGS, GENERATE].join("\n")
}

/// Where it is built.
struct Yard<'a> {
    dir: PathBuf,
    log: &'a Path,
}

/// Builds it and puts it at `target`, whole or not at all.
pub(super) fn install(target: &Path, log: &Path) -> Result<(), Error> {
    let yard = Yard { dir: target.with_extension("building"), log };
    let _ = fs::remove_dir_all(&yard.dir);
    yard.fetch()?;
    let made = yard.build()?;
    fs::rename(&made, target).map_err(file_error("rename", &made))?;
    fs::remove_dir_all(&yard.dir).map_err(file_error("remove", &yard.dir))
}

impl Yard<'_> {
    fn folder(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.dir.join(name);
        fs::create_dir_all(&path).map_err(file_error("create", &path))?;
        Ok(path)
    }

    fn sources(&self) -> PathBuf {
        self.dir.join("gopath/src/k8s.io/kubernetes")
    }

    /// Sources and toolchain, checked by apt's signatures, with lists of its own.
    fn fetch(&self) -> Result<(), Error> {
        for part in ["lists/partial", "cache/archives/partial"] {
            self.folder(part)?;
        }
        let list = self.dir.join("sources.list");
        fs::write(&list, SOURCES).map_err(file_error("write", &list))?;
        let apt = |what: &str, args: &[&str]| {
            Step::new("apt-get")
                .args([
                    "-qq",
                    "-o",
                    "APT::Sandbox::User=root",
                    "-o",
                    "Dir::Etc::sourceparts=/dev/null",
                ])
                .args(["-o".into(), format!("Dir::Etc::sourcelist={}", list.display())])
                .args([
                    "-o".into(),
                    format!("Dir::State::lists={}", self.dir.join("lists").display()),
                ])
                .args(["-o".into(), format!("Dir::Cache={}", self.dir.join("cache").display())])
                .args(args)
                .dir(&self.dir)
                .run_logged(what, self.log)
        };
        apt("listing Debian's packages", &["update"])?;
        apt("fetching Kubernetes 1.20.2", &["source", "--download-only", SOURCE])?;
        apt("fetching Go 1.19", &["download", GO[0], GO[1]])?;
        let sources = self.sources();
        fs::create_dir_all(&sources).map_err(file_error("create", &sources))?;
        let archive = self.one("kubernetes_", ".orig.tar.gz")?;
        Step::new("tar")
            .args(["--extract", "--strip-components=1", "--file"])
            .args([&archive])
            .args(["--directory"])
            .args([&sources])
            .run_logged("unpacking Kubernetes 1.20.2", self.log)?;
        for package in GO {
            let package = self.one(package, ".deb")?;
            Step::new("dpkg-deb")
                .args(["--extract"])
                .args([&package, &self.dir.join("go")])
                .run_logged("unpacking Go 1.19", self.log)?;
        }
        Ok(())
    }

    /// The file in the folder with such a name.
    fn one(&self, start: &str, end: &str) -> Result<PathBuf, Error> {
        let entries = fs::read_dir(&self.dir).map_err(file_error("read", &self.dir))?;
        let is = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with(start) && name.ends_with(end)
        };
        let found = entries.filter_map(Result::ok).map(|entry| entry.path()).find(is);
        found.ok_or_else(|| Error::Refused(format!("apt-get left no {start}…{end}")))
    }

    fn go(&self) -> Step {
        let root = self.dir.join("go/usr/lib/go-1.19");
        Step::new(root.join("bin/go"))
            .env("GOROOT", &root)
            .env("GOPATH", self.dir.join("gopath"))
            .env("GOCACHE", self.dir.join("gocache"))
            .env("GO111MODULE", "off")
            .env("GOTOOLCHAIN", "local")
            .env("GOFLAGS", "")
            .env("CGO_ENABLED", "0")
            .dir(&self.sources())
    }

    fn build(&self) -> Result<PathBuf, Error> {
        let generator = self.dir.join("openapi-gen");
        self.go()
            .args(["build", "-o"])
            .args([&generator])
            .args(["./vendor/k8s.io/kube-openapi/cmd/openapi-gen"])
            .run_logged("building openapi-gen", self.log)?;
        Step::new("sh")
            .args(["-c", GENERATE, "sh"])
            .args([&generator])
            .env("GOROOT", self.dir.join("go/usr/lib/go-1.19"))
            .env("GOPATH", self.dir.join("gopath"))
            .env("GO111MODULE", "off")
            .dir(&self.sources())
            .run_logged("generating the OpenAPI description", self.log)?;
        let made = self.dir.join("kube-apiserver");
        self.go()
            .args(["build", "-trimpath", "-ldflags", LDFLAGS, "-o"])
            .args([&made])
            .args(["./cmd/kube-apiserver"])
            .run_logged("building kube-apiserver 1.20.2", self.log)?;
        Ok(made)
    }
}
