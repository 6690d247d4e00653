//! When an apiserver reads its configuration, and what has to be done where it does not.

use std::{path::Path, time::Duration};

use crate::{
    cluster::ServerUrl,
    doctor::{Flags, flags_of_process, is_yes},
};

/// After so long without a sign, an apiserver will not load anything by itself.
pub(super) const RELOADS_WITHIN: Duration = Duration::from_secs(90);

/// When an apiserver on this machine reads its configuration, as its flags say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loads {
    /// It has none.
    Never,
    /// Once.
    AtStart,
    /// By itself, or that cannot be seen.
    Unknown,
}

impl Loads {
    /// The apiserver at this address, if that is this machine.
    pub(super) fn of(url: &ServerUrl) -> Self {
        let flags = url.is_loopback().then(|| flags_of_process(url.port())).flatten();
        flags.map_or(Self::Unknown, |flags| Self::of_flags(&flags))
    }

    fn of_flags(flags: &Flags) -> Self {
        match (
            flags.get("encryption-provider-config"),
            flags.get("encryption-provider-config-automatic-reload"),
        ) {
            (None | Some(""), _) => Self::Never,
            (Some(_), reload) if is_yes(reload) => Self::Unknown,
            (Some(_), _) => Self::AtStart,
        }
    }

    /// What is to be done with one that has not loaded the file at `path`, from a colon on; nothing
    /// unless it is known, or `late`.
    pub(super) fn if_not_loaded(self, path: &Path, late: bool) -> String {
        match (self, late) {
            (Self::Never, _) => started_without(path),
            (Self::AtStart, _) => {
                ": it reads its configuration only when it starts; restart it".to_owned()
            }
            (Self::Unknown, true) => {
                ": without --encryption-provider-config-automatic-reload=true it has to be \
                 restarted, so has a pod into which the file is mounted without its \
                 directory; on a machine of its own it needs a copy of the file"
                    .to_owned()
            }
            (Self::Unknown, false) => String::new(),
        }
    }

    /// The same of one that counts no reloads: whether it has loaded the file is not to be seen.
    pub(super) fn if_silent(self, path: &Path) -> String {
        match self {
            Self::Unknown => {
                ": this release does not tell whether it has loaded a file anew: restart it \
                              once it has the file"
                    .to_owned()
            }
            known => known.if_not_loaded(path, true),
        }
    }

    /// The same of one that may have loaded a file that nobody was seen to change.
    pub(super) fn if_not_shown(self, path: &Path, late: bool) -> String {
        match (self, late) {
            (Self::Unknown, true) => format!(
                ": nothing shows that it has loaded {} as it is now: restart it once it has that file",
                path.display()
            ),
            (known, late) => known.if_not_loaded(path, late),
        }
    }

    /// The same of one that no plugin has ever told a key id: it works by no file with a KMS provider.
    pub(super) fn if_never_told(self, path: &Path, late: bool) -> String {
        match (self, late) {
            (Self::Never, _) => started_without(path),
            (Self::AtStart, _) => {
                ": it knows no KMS provider, and reads its configuration only when it starts; restart it"
                    .to_owned()
            }
            (Self::Unknown, true) => format!(
                ": it knows no KMS provider: was it started with {}? Without the second flag it has to \
                 be restarted once the file is there; on a machine of its own it needs a copy of the file",
                flags(path)
            ),
            (Self::Unknown, false) => String::new(),
        }
    }

    /// The same of one that plugins have long told other key ids only.
    pub(super) fn if_told_others(self, path: &Path) -> String {
        let file = path.display();
        match self {
            Self::Never => started_without(path),
            Self::AtStart => format!(
                ": it was told others: if another KMS provider's, it has not loaded {file}, which it \
                 reads only when it starts: restart it; if not, see whether its plugin reaches the server"
            ),
            Self::Unknown => format!(
                ": it was told others: if another KMS provider's, it has not loaded {file}{}; if not, \
                 see whether its plugin reaches the server",
                self.if_not_loaded(path, true)
            ),
        }
    }
}

fn started_without(path: &Path) -> String {
    format!(
        ": it was started without --encryption-provider-config: start it anew with {}",
        flags(path)
    )
}

fn flags(path: &Path) -> String {
    format!(
        "--encryption-provider-config={} --encryption-provider-config-automatic-reload=true",
        path.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_flags_say() {
        let of = |words: &[&str]| {
            let flags = words.iter().map(ToString::to_string).collect();
            Loads::of_flags(&Flags { seen_in: String::new(), flags })
        };
        let (file, reload) = (
            "--encryption-provider-config=/a",
            "--encryption-provider-config-automatic-reload=true",
        );
        assert_eq!(of(&[]), Loads::Never);
        assert_eq!(of(&[file, "--encryption-provider-config="]), Loads::Never);
        assert_eq!(of(&[file]), Loads::AtStart);
        assert_eq!(of(&[file, reload]), Loads::Unknown);
    }

    /// A way out is always named, at the latest when it is late.
    #[test]
    fn what_is_to_be_done() {
        let (path, flags) =
            (Path::new("/etc/enc.yaml"), "--encryption-provider-config=/etc/enc.yaml");
        for loads in [Loads::Never, Loads::AtStart, Loads::Unknown] {
            let never = loads.if_never_told(path, true);
            let (silent, still) = (loads.if_silent(path), loads.if_not_shown(path, true));
            let others = loads.if_told_others(path);
            for said in [loads.if_not_loaded(path, true), never, others, silent, still] {
                assert!(said.contains("start"), "{loads:?}: {said}");
            }
        }
        let silent = Loads::Unknown.if_silent(path);
        assert!(
            silent.contains("does not tell") && !silent.contains("automatic-reload"),
            "{silent}"
        );
        assert!(Loads::Never.if_never_told(path, false).contains(flags));
        assert!(Loads::Unknown.if_never_told(path, true).contains(flags));
        let unknown = Path::new("FILE");
        assert!(Loads::Unknown.if_never_told(unknown, true).contains("-config=FILE "));
        assert_eq!(Loads::Unknown.if_never_told(unknown, false), "");
        for loads in [Loads::AtStart, Loads::Unknown] {
            assert!(loads.if_told_others(path).contains("not loaded /etc/enc.yaml"));
            assert!(loads.if_told_others(unknown).contains("not loaded FILE"));
        }
    }
}
