//! The second person: an override that somebody else has to confirm.
//!
//! Records (behind the barrier, JSON): `guard/second-person` is the setting, and
//! `guard/request/<id>` what waits for a confirmation.
//!
//! Who is one person: the account root, by whatever access key (whoever has one of its keys is the
//! account); and each local user of the admin socket, by the uid.

use std::time::Duration;

use lastkey_crypto::{ClusterId, KeyId, KeyVersionId};
use serde::{Deserialize, Serialize};

use crate::{Label, Timestamp, caller::Principal};

/// Where the setting is kept.
pub(crate) const SETTING: &str = "guard/second-person";
/// Where requests are kept.
pub(crate) const REQUESTS: &str = "guard/request/";
/// For how long a request can be confirmed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// So many requests wait at most.
pub(crate) const MAX_REQUESTS: usize = 100;

/// Whether an override needs a second person.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecondPerson {
    /// It does.
    pub on: bool,
    /// Since when it is as it is; `None` where it never was otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Who said so.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
}

/// What somebody wants done although something needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Proposed {
    /// Disable a key.
    DisableKey {
        /// Which.
        key: KeyId,
    },
    /// Begin the deletion window of a key.
    ScheduleKeyDeletion {
        /// Which.
        key: KeyId,
        /// Its length in days.
        window_days: u16,
    },
    /// Retire a version.
    RetireKeyVersion {
        /// Of which key.
        key: KeyId,
        /// Which.
        version: KeyVersionId,
        /// For how long that can be taken back, in days.
        window_days: u16,
    },
    /// Forget something that needs a key.
    RemoveDependant {
        /// The key.
        key: KeyId,
        /// What it is.
        kind: Label,
        /// Which.
        id: Label,
    },
    /// Forget a cluster.
    ForgetCluster {
        /// Which.
        cluster: ClusterId,
    },
    /// Need no second person any more.
    SecondPersonOff,
}

/// Something that waits for a second person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverrideRequest {
    /// Its id.
    pub id: Label,
    /// What shall be done.
    pub proposed: Proposed,
    /// Why.
    pub reason: String,
    /// Which person wants it.
    pub person: String,
    /// By which credential.
    pub by: String,
    /// When it was asked for.
    pub at: Timestamp,
    /// Until when it can be confirmed.
    pub until: Timestamp,
}

/// Which person a principal is; `None` for those that are none.
pub(crate) fn person(principal: &Principal) -> Option<String> {
    match principal {
        Principal::Root { .. } => Some("root".to_owned()),
        Principal::Local { uid } => Some(format!("local/{uid}")),
        Principal::Plugin { .. } | Principal::Kubelet { .. } | Principal::System => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_one_person() {
        let root = |id: &str| person(&Principal::Root { access_key_id: id.into() });
        assert_eq!(root("LK1"), root("LK2"), "two keys of one account are one person");
        let local = |uid| person(&Principal::Local { uid });
        assert_ne!(local(0), local(1000));
        assert_ne!(local(0), root("LK1"));
        assert_eq!(person(&Principal::System), None);
    }

    /// What is stored is read again by later releases.
    #[test]
    fn requests_as_they_are_stored() {
        let text = r#"{"id":"r-1","proposed":{"action":"schedule_key_deletion","key":"01010101-0101-0101-0101-010101010101","window_days":7},"reason":"gone","person":"root","by":"root/LK","at":"2026-01-31T12:00:00.000Z","until":"2026-02-01T12:00:00.000Z"}"#;
        let read: OverrideRequest = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let key = KeyId::from_bytes([1; 16]);
        assert_eq!(read.proposed, Proposed::ScheduleKeyDeletion { key, window_days: 7 });
    }
}
