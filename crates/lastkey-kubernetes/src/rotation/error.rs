//! Why a rotation, or a change of provider, stops.

use crate::{
    cluster::{ApiError, EtcdError},
    encryption_config::EditError,
    transition::{PlaceError, PlanError},
};

/// Why a rotation stopped. It can be gone on with, unless it was cancelled.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// Lastkey's server.
    #[error(transparent)]
    Server(#[from] lastkey_client::Error),
    /// An apiserver.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// An apiserver, asked for a list.
    #[error("{resource} cannot be listed: {error}")]
    List {
        /// Of what.
        resource: String,
        /// What it said.
        error: ApiError,
    },
    /// Everything else was gone through.
    #[error(
        "all else was gone through, but {kinds}: mend that (a conversion webhook that cannot be \
         asked, or an object that cannot be decrypted, fails every list; `kubectl get` of it says \
         more), and the same command goes on. Nothing has become free"
    )]
    Unlisted {
        /// What cannot be listed, and what the apiserver says of each.
        kinds: String,
    },
    /// The resource is not served.
    #[error("the cluster serves no {0}")]
    NoSuchResource(String),
    /// The resource cannot be written back, or nobody knows whether there is one.
    #[error("{0}")]
    LeftOut(String),
    /// What is stored is not ours.
    #[error("the stored state of the rotation cannot be read: it is of another release")]
    State,
    /// Writes go elsewhere.
    #[error(
        "{objects} objects were written, but none under the new key id: is the provider the first \
         one of its rule in the EncryptionConfiguration?"
    )]
    OtherProvider {
        /// How many.
        objects: u64,
    },
    /// It does not come to an end.
    #[error(
        "after {passes} passes an apiserver still writes objects anew: something changes them at each \
         write (a mutating webhook or policy?). Exempt the account kube-system/lastkey from it{}; then \
         the same command goes on. --cancel gives it up. Nothing has become free",
        if *.etcd {
            ", or register etcd, which is the proof then (`lastkey cluster add NAME --kubeconfig FILE \
             --etcd URL`)"
        } else {
            ""
        }
    )]
    NoEnd {
        /// So many.
        passes: u32,
        /// Whether etcd would be the proof, if it were registered.
        etcd: bool,
    },
    /// There is no way to the goal.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The configuration cannot be changed.
    #[error(transparent)]
    Edit(#[from] EditError),
    /// The configuration cannot be read.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// Somebody else has changed the configuration since the last step.
    #[error(
        "{} was changed by somebody else since the last step: put it back as it was, or have it \
         taken as it is now with --accept-changes", path.display()
    )]
    Changed {
        /// Where it lies.
        path: std::path::PathBuf,
    },
    /// An apiserver works by another file than it should.
    #[error(
        "{why}. Nothing is taken out of the configuration, and nothing has become free. It needs {} as \
         it is now: restart it, or bring the file to its machine; the same command goes on and writes \
         everything anew",
        path.display()
    )]
    OtherFile {
        /// Which one, and what shows it.
        why: String,
        /// Where the file lies.
        path: std::path::PathBuf,
    },
    /// The configuration is on another machine.
    #[error(
        "{} is not on this machine: run this on the control-plane node, or give a copy of the file \
         as it is now with --encryption-config", path.display()
    )]
    NotHere {
        /// Where it lies, there.
        path: std::path::PathBuf,
    },
    /// A key would have to be made, and shown.
    #[error(
        "the configuration has no {target}, and a new key is only made in a file that can be \
         written here: add one with a key of your own behind the present provider"
    )]
    NoKeys {
        /// What is missing.
        target: String,
    },
    /// Keys would be shown that nobody has asked for.
    #[error(
        "{why}, and the configuration holds keys (or a `secret` in a comment), so it is not printed: \
         make it writable here, with room for another copy (or run this where it lies), and the same \
         command goes on; or give --by-hand, which prints the whole file, keys and all, for somebody to \
         put in place"
    )]
    ShowsKeys {
        /// Why it cannot be put in place here.
        why: String,
    },
    /// Others could read the key that would be made.
    #[error(
        "{} can be read by others than its owner (mode {mode:04o}), and a new {target} key is to be \
         written into it: `chmod 600 {}` first; its owner has to be whom the apiserver runs as",
        path.display(), path.display()
    )]
    OpenToOthers {
        /// Which file.
        path: std::path::PathBuf,
        /// As it is.
        mode: u32,
        /// What would be made.
        target: String,
    },
    /// The plugin does not answer as it should.
    #[error("the plugin at {socket} cannot be used: {reason}")]
    Plugin {
        /// Where it listens.
        socket: String,
        /// What is wrong.
        reason: String,
    },
    /// A worker of mere rotations was given a change of provider.
    #[error(
        "this change needs the cluster's configuration file: `lastkey cluster enable` or `disable` goes on with it"
    )]
    NoHands,
    /// The store under the apiservers.
    #[error(transparent)]
    Etcd(EtcdError),
    /// The account may not write the objects back, and the cluster's own way is not to be had.
    #[error(
        "the registered account may not {missing}; the cluster's own migration is not used instead, \
         because {instead}. With `lastkey cluster add NAME --kubeconfig FILE` it may read and update \
         what is encrypted"
    )]
    MayNot {
        /// The first right that is missing.
        missing: String,
        /// Why not the other way.
        instead: String,
    },
    /// The cluster's own way was asked for.
    #[error("the cluster's own migration cannot be used: {why}")]
    NotByCluster {
        /// What is missing, and what gives it.
        why: String,
    },
    /// An option that only Lastkey's own way knows.
    #[error(
        "{option} does not go with the cluster's own migration, which knows no rate, no number of \
         workers and no namespace: leave it out, or let the account update what is encrypted \
         (`lastkey cluster add NAME --kubeconfig FILE --migration own`) and give --migration own"
    )]
    OnlyOwn {
        /// Which one.
        option: &'static str,
    },
    /// What was registered is not what is under the apiservers.
    #[error(
        "the registered etcd is not the one under these apiservers ({why}): it proves nothing about \
         this cluster. Is it theirs, with their --etcd-prefix? `lastkey cluster add NAME --kubeconfig FILE \
         --migration cluster --etcd URL` registers another one"
    )]
    OtherEtcd {
        /// What shows it.
        why: String,
    },
    /// Nobody carries a migration out.
    #[error(
        "nobody has taken up {names} within {seconds} s: kube-controller-manager has to run (1.37 or \
         later) with its controllers garbage-collector-controller and \
         storage-version-migrator-controller. Nothing has become free; the same command goes on, and \
         --migration own does without where the account may update what is encrypted"
    )]
    NotCarriedOut {
        /// The migrations.
        names: String,
        /// How long it was waited.
        seconds: u64,
    },
    /// A migration stands still.
    #[error(
        "{names} has stood still for {seconds} s: does kube-controller-manager run, and can what it has \
         to ask be asked? It tries again after longer and longer pauses, up to 17 minutes, and at \
         once when it is restarted. Nothing has become free; the same command goes on"
    )]
    Stuck {
        /// The migrations, with what they say.
        names: String,
        /// For how long.
        seconds: u64,
    },
    /// A migration has failed.
    #[error(
        "the cluster's own migration has failed: {failed}; it stops at the first object that is \
         refused. {left} objects are left under older versions, and none of those has become free. \
         The same command tries again"
    )]
    Failed {
        /// Of what, and what the conditions say.
        failed: String,
        /// How many objects.
        left: u64,
    },
    /// Migrations succeeded, and something is left.
    #[error(
        "after {rounds} more migrations there are objects under older versions: {left}. Events are \
         never migrated and end by themselves, within an hour by default. Nothing has become free; \
         the same command looks again"
    )]
    Left {
        /// So often it was tried.
        rounds: u32,
        /// How many of what.
        left: String,
    },
    /// The one who started this process wants it to stop.
    #[error("interrupted; the same command goes on from here")]
    Interrupted,
    /// Somebody has cancelled it.
    #[error("the rotation was cancelled")]
    Cancelled,
}
