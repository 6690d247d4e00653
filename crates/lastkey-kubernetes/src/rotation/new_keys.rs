//! Whether a local key may be made: only in a file that is written here and that nobody but its
//! owner can read, so that nobody else ever sees it. And whether a file may be shown that has keys: only
//! to who has asked for it.

use super::RotateError;
use crate::{
    encryption_config::{Draft, EncryptionConfiguration, Item, KeyShape, ProviderKind, examine},
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

    /// Refuses a goal for which the file, which is `text` now, would have to be printed, keys and all,
    /// without having been asked for; for before anything is begun. What the last step takes out is not
    /// known yet: that one may still refuse.
    ///
    /// # Errors
    /// [`RotateError::ShowsKeys`], or that there is no way to the goal.
    pub fn check_shown_keys(
        &self,
        config: &EncryptionConfiguration,
        text: &str,
        goal: &Goal,
    ) -> Result<(), RotateError> {
        let Some(why) = self.place.locked() else { return Ok(()) };
        let readable = next(config, goal, Stage::Readable, &|_, _| true)?;
        let changes = !readable.is_same_as(config)
            || !next(config, goal, Stage::Writing, &|_, _| true)?.is_same_as(config);
        match changes {
            true => self.may_show(text, &why),
            false => Ok(()),
        }
    }

    /// The same of a file that cannot be put in place here.
    pub(super) fn may_show(&self, text: &str, why: &str) -> Result<(), RotateError> {
        match !self.by_hand && holds_keys(text) {
            true => Err(RotateError::ShowsKeys { why: why.to_owned() }),
            false => Ok(()),
        }
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

/// Whether a file holds keys of its own, or what may be one in a comment: the text is printed whole.
pub(super) fn holds_keys(text: &str) -> bool {
    let config = examine(text).config;
    let kinds = config.rules.iter().flat_map(|rule| &rule.providers).flat_map(|one| &one.kinds);
    let mut keys = kinds.flat_map(|kind| match kind {
        ProviderKind::AesCbc(keys) | ProviderKind::AesGcm(keys) | ProviderKind::Secretbox(keys) => {
            keys.as_slice()
        }
        ProviderKind::Kms(_) | ProviderKind::Identity => &[],
    });
    keys.any(|key| key.secret != KeyShape::Missing) || names_secret(text)
}

/// Whether there is a field `secret` anywhere, in whatever quotes. Too often costs one `--by-hand`.
fn names_secret(text: &str) -> bool {
    let mut after = text.split("secret").skip(1);
    after.any(|rest| rest.trim_start_matches(['"', '\'', ' ', '\t']).starts_with(':'))
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

    fn hands(path: &Path, by_hand: bool) -> Hands {
        Hands {
            place: Place { path: path.to_owned() },
            by_hand,
            accept: false,
            copy: None,
            etcd: None,
            registered: Vec::new(),
            printed: Default::default(),
        }
    }

    fn goal(target: Target) -> Goal {
        Goal { resources: vec!["secrets".to_owned()], target }
    }

    fn checked(path: &Path, to: Target, by_hand: bool) -> Result<(), RotateError> {
        let config = readable(Some(&fs::read_to_string(path).unwrap())).unwrap();
        hands(path, by_hand).check_new_keys(&config, &goal(to))
    }

    /// What is printed ends up in logs.
    #[test]
    fn keys_are_shown_only_to_who_asks_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        let secret = "qJf8Zz0uT3kV5x1mWb7yRc9dLh2nEo4sGpXaKiUvM6Q=";
        for kind in ["aescbc", "aesgcm", "secretbox", "kms"] {
            let own = format!("  - {kind}: {{keys: [{{name: k1, secret: {secret}}}]}}\n");
            let own = if kind == "kms" { "" } else { &own };
            let text = CONFIG.replace("  - identity", &format!("{own}  - identity"));
            let config = readable(Some(&text)).unwrap();
            let _ = fs::remove_file(&path);
            fs::write(&path, &text).unwrap();
            let shown =
                |by_hand, to| hands(&path, by_hand).check_shown_keys(&config, &text, &goal(to));
            shown(false, Target::Identity).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
            shown(true, Target::Identity).unwrap();
            let Err(refused) = shown(false, Target::Identity) else {
                assert_eq!(kind, "kms");
                continue;
            };
            let refused = refused.to_string();
            assert!(refused.contains("read-only") && refused.contains("--by-hand"), "{refused}");
            assert!(kind != "kms" && !refused.contains(secret), "{refused}");
            // as it is already, nothing has to be put in place
            let endpoint = "unix:///run/lastkey/kms.sock".to_owned();
            shown(false, Target::Kms { name: "lastkey".to_owned(), endpoint }).unwrap();
        }
    }

    #[test]
    fn a_key_in_a_comment_is_one() {
        for line in [
            "# - aescbc: {keys: [{name: k1, secret: qJf8}]}",
            "  #   secret:  qJf8",
            "# \"secret\": \"qJf8\"",
            "# 'secret' : qJf8",
        ] {
            assert!(holds_keys(&format!("{CONFIG}{line}\n")), "{line}");
        }
        assert!(!holds_keys(&format!("{CONFIG}# for secrets: see the secret store\n")));
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
