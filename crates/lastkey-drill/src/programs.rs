//! Finds the programs that a drill starts: as given, else in `PATH`, else beside us or where they
//! usually are.

use std::{
    env,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use crate::DrillError;

/// What was given on the command line.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// `--kube-apiserver`.
    pub kube_apiserver: Option<PathBuf>,
    /// `--etcd`.
    pub etcd: Option<PathBuf>,
    /// `--etcdutl`.
    pub etcdutl: Option<PathBuf>,
}

/// All the programs of a drill, as absolute paths.
#[derive(Debug, Clone)]
pub struct Programs {
    /// Ourselves: server, plugin, and what starts the others.
    pub lastkey: PathBuf,
    /// The apiserver.
    pub kube_apiserver: PathBuf,
    /// The store under it.
    pub etcd: PathBuf,
    /// Restores snapshots; `None` where none is restored.
    pub etcdutl: Option<PathBuf>,
}

/// Where they often are, although not in `PATH`: installed by hand, by the container Linuxes, by
/// kubebuilder's envtest.
const USUAL: [&str; 4] = ["/usr/local/bin", "/opt/bin", "/opt/etcd", "/usr/local/kubebuilder/bin"];

const RELEASES: &str = "https://github.com/etcd-io/etcd/releases";

impl Programs {
    /// Finds all of them.
    ///
    /// # Errors
    /// [`DrillError::Missing`] for all that are nowhere, with how to get them.
    pub fn find(given: &Given, restores: bool) -> Result<Self, DrillError> {
        let lastkey = env::current_exe()
            .map_err(|source| DrillError::Start { program: "lastkey".to_owned(), source })?;
        let all = [&given.kube_apiserver, &given.etcd, &given.etcdutl];
        let beside: Vec<PathBuf> = std::iter::once(&lastkey)
            .chain(all.into_iter().flatten())
            .filter_map(|path| Some(path.parent()?.to_owned()))
            .chain(USUAL.map(PathBuf::from))
            .collect();
        let find = |program, given: &Option<PathBuf>, advice: &dyn Fn() -> String| {
            let missing =
                |looked| format!("{program} was not found (looked for {looked}); {}", advice());
            look_for(program, given.as_deref(), &beside).map_err(missing)
        };
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let apiserver = || {
            format!(
                "take the release of your cluster, for example with: curl -LO \
                 https://dl.k8s.io/release/v1.37.0/bin/linux/{arch}/kube-apiserver && chmod +x \
                 kube-apiserver, and name it with --kube-apiserver PATH"
            )
        };
        let etcd = || format!("it is in the archive of {RELEASES}; name it with --etcd PATH");
        let etcdutl = || {
            format!("it is beside etcd in the archive of {RELEASES}; name it with --etcdutl PATH")
        };
        let kube_apiserver = find("kube-apiserver", &given.kube_apiserver, &apiserver);
        let etcd = find("etcd", &given.etcd, &etcd);
        let etcdutl = match restores {
            true => find("etcdutl", &given.etcdutl, &etcdutl).map(Some),
            false => Ok(None),
        };
        match (kube_apiserver, etcd, etcdutl) {
            (Ok(kube_apiserver), Ok(etcd), Ok(etcdutl)) => {
                Ok(Self { lastkey, kube_apiserver, etcd, etcdutl })
            }
            // all at once: nobody wants to be told one after the other
            (one, two, three) => {
                let missing = [one.err(), two.err(), three.err()];
                Err(DrillError::Missing(missing.into_iter().flatten().collect()))
            }
        }
    }
}

/// The program, or where it was looked for.
fn look_for(program: &str, given: Option<&Path>, beside: &[PathBuf]) -> Result<PathBuf, String> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    if let Some(given) = given {
        let given = absolute(given);
        return match is_program(&given) {
            true => Ok(given),
            false => Err(format!("{}, which is no program", given.display())),
        };
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = env::split_paths(&path).filter(|dir| dir.is_absolute()).collect();
    let places = path.iter().chain(beside).map(|directory| directory.join(program));
    places.map(|place| absolute(&place)).find(|place| is_program(place)).ok_or_else(|| {
        let beside: Vec<String> = beside.iter().map(|dir| dir.display().to_string()).collect();
        format!("it in PATH and in {}", beside.join(", "))
    })
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_given_counts_and_nothing_else_then() {
        let place = tempfile::tempdir().unwrap();
        let (there, plain) = (place.path().join("etcd"), place.path().join("plain"));
        fs::write(&there, "").unwrap();
        fs::write(&plain, "").unwrap();
        fs::set_permissions(&there, fs::Permissions::from_mode(0o755)).unwrap();
        let beside = [place.path().to_owned()];
        assert_eq!(look_for("etcd", Some(&there), &[]), Ok(there.clone()));
        assert!(look_for("etcd", Some(&plain), &beside).unwrap_err().contains("no program"));
        assert!(look_for("etcd", Some(Path::new("/nowhere/etcd")), &beside).is_err());
        let name = "a-program-that-nobody-has-in-their-path";
        assert!(look_for(name, None, &beside).is_err());
        fs::rename(&there, place.path().join(name)).unwrap();
        assert_eq!(look_for(name, None, &beside), Ok(place.path().join(name)));
        // everything that is missing is said at once
        let nowhere = Some(PathBuf::from("/nowhere/program"));
        let given =
            Given { kube_apiserver: nowhere.clone(), etcd: nowhere.clone(), etcdutl: nowhere };
        let said = |restores| Programs::find(&given, restores).unwrap_err().to_string();
        assert_eq!(said(true).lines().count(), 3, "{}", said(true));
        assert!(said(false).contains("--etcd PATH") && !said(false).contains("etcdutl"));
    }
}
