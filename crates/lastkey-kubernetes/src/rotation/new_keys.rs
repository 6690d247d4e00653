//! Whether a local key may be made: only in a file that is written here and that nobody but its
//! owner can read, so that nobody else ever sees it.

use super::RotateError;
use crate::{
    encryption_config::{Draft, EncryptionConfiguration, Item},
    transition::{Goal, Hands, PlaceError, Stage, next},
};

impl Hands {
    /// Refuses a goal that would have a key made where it cannot be; for before anything is begun.
    ///
    /// # Errors
    /// [`RotateError::NoKeys`], [`RotateError::OpenToOthers`], or that the file cannot be looked at.
    pub fn check_new_keys(
        &self,
        config: &EncryptionConfiguration,
        goal: &Goal,
    ) -> Result<(), RotateError> {
        let draft = next(config, goal, Stage::Readable, &|_, _| true)?;
        self.may_make_keys(&draft, goal)
    }

    /// The same of what a step is about to write.
    pub(super) fn may_make_keys(&self, draft: &Draft, goal: &Goal) -> Result<(), RotateError> {
        let makes_key = |item: &Item| matches!(item, Item::Local { .. });
        if !draft.rules.iter().flat_map(|rule| &rule.providers).any(makes_key) {
            return Ok(());
        }
        let (path, target) = (self.place.path.clone(), goal.target.shown());
        if self.by_hand || self.place.locked().is_some() {
            return Err(RotateError::NoKeys { target });
        }
        match self.place.open_to_others() {
            Ok(None) => Ok(()),
            Ok(Some(mode)) => Err(RotateError::OpenToOthers { path, mode, target }),
            Err(source) => Err(PlaceError::Read { path, source }.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use super::*;
    use crate::{
        encryption_config::readable,
        transition::{Place, Target},
    };

    const CONFIG: &str = "apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [secrets]
  providers:
  - kms: {apiVersion: v2, name: lastkey, endpoint: unix:///run/lastkey/kms.sock}
  - identity: {}
";

    fn checked(path: &Path, to: Target, by_hand: bool) -> Result<(), RotateError> {
        let hands = Hands {
            place: Place { path: path.to_owned() },
            by_hand,
            accept: false,
            copy: None,
            etcd: None,
            registered: Vec::new(),
            printed: Default::default(),
        };
        let config = readable(Some(&fs::read_to_string(path).unwrap())).unwrap();
        let goal = Goal { resources: vec!["secrets".to_owned()], target: to };
        hands.check_new_keys(&config, &goal)
    }

    #[test]
    fn a_key_is_made_only_where_nobody_else_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        fs::write(&path, CONFIG).unwrap();
        let chmod = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let local = |kind: &str| Target::Local { kind: kind.to_owned() };
        for kind in ["secretbox", "aescbc", "aesgcm"] {
            for mode in [0o644, 0o640, 0o604] {
                chmod(mode);
                let refused = checked(&path, local(kind), false).unwrap_err().to_string();
                let mends = format!("`chmod 600 {}`", path.display());
                assert!(refused.contains(&mends) && refused.contains(kind), "{refused}");
            }
            chmod(0o600);
            checked(&path, local(kind), false).unwrap();
            let refused = checked(&path, local(kind), true);
            assert!(matches!(refused, Err(RotateError::NoKeys { .. })), "{refused:?}");
        }
        // Where no key is made, the mode is the operator's affair.
        chmod(0o644);
        checked(&path, Target::Identity, false).unwrap();
        let secret = "qJf8Zz0uT3kV5x1mWb7yRc9dLh2nEo4sGpXaKiUvM6Q=";
        let own = format!("  - secretbox: {{keys: [{{name: k1, secret: {secret}}}]}}\n");
        fs::write(&path, CONFIG.replace("  - identity", &format!("{own}  - identity"))).unwrap();
        checked(&path, local("secretbox"), false).unwrap();
    }
}
