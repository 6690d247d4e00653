//! A real kube-controller-manager, with nothing but what migrates stored objects.

use crate::process::Daemon;
use crate::{Apiserver, Error, Peers};
use std::path::Path;
use std::process::Command;

/// A kube-controller-manager; stopped when dropped.
pub struct ControllerManager {
    process: Daemon,
}

impl ControllerManager {
    /// Starts one of the release `version` as an administrator of the apiserver's cluster, with its
    /// log in `dir`. It works a moment later.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        peers: &Peers,
        (apiserver, dir): (&Apiserver, &Path),
        version: &str,
    ) -> Result<Self, Error> {
        let name = format!("kube-controller-manager-{version}");
        let mut command = Command::new(peers.path(&name));
        command
            .arg(format!("--kubeconfig={}", apiserver.kubeconfig().display()))
            // The migrator takes its list of objects from the garbage collector's.
            .arg("--controllers=garbage-collector-controller,storage-version-migrator-controller")
            .args(["--leader-elect=false", "--use-service-account-credentials=false"])
            .args(["--secure-port=0", "--v=4"]);
        Ok(Self { process: Daemon::start("kube-controller-manager", &command, dir)? })
    }

    /// Fails with the end of its log once it is no longer running.
    ///
    /// # Errors
    /// [`Error::Ended`] when it ended.
    pub fn check(&mut self) -> Result<(), Error> {
        self.process.check()
    }

    /// Everything it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }
}
