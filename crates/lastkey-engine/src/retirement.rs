//! The end of a key version: it decrypts no more, can be taken back for a while, and is destroyed
//! only then, and only while nothing is known to need it.
//!
//! ```text
//!            schedule                 free of everything
//!  active ─────────────▶ scheduled ─────────────────────▶ retired ──▶ destroyed
//!    ▲  └──────── retire ───────────────────────────────▶   │   window over, nothing needs it
//!    └──────────────────── reinstate ───────────────────────┘
//! ```

use serde::{Deserialize, Serialize};

use crate::{Error, Timestamp};

/// Where a version is. [`VersionState::apply`] is its whole life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VersionState {
    /// It decrypts, and encrypts while it is the primary one.
    #[default]
    Active,
    /// The same, until nothing needs it any more.
    Scheduled,
    /// It decrypts no more; its material is still there.
    Retired,
}

/// What can happen to a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionEvent {
    /// Retire it once nothing needs it.
    Schedule,
    /// Retire it.
    Retire,
    /// Take that back.
    Reinstate,
    /// Destroy its material.
    Destroy,
}

impl VersionState {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Scheduled => "scheduled",
            Self::Retired => "retired",
        }
    }

    /// The state after `event`; `None` once it is gone.
    ///
    /// # Errors
    /// [`Error::StateConflict`] where the life of a version has no such step.
    pub fn apply(self, event: VersionEvent) -> Result<Option<Self>, Error> {
        use VersionEvent::{Destroy, Reinstate, Retire, Schedule};
        match (self, event) {
            (Self::Active | Self::Scheduled, Schedule) => Ok(Some(Self::Scheduled)),
            (_, Retire) => Ok(Some(Self::Retired)),
            (_, Reinstate) => Ok(Some(Self::Active)),
            (Self::Retired, Destroy) => Ok(None),
            (Self::Retired, Schedule) | (Self::Active | Self::Scheduled, Destroy) => {
                Err(Error::StateConflict { state: self.name() })
            }
        }
    }
}

/// What is recorded of a version that is not active any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retirement {
    /// Scheduled or retired.
    pub state: VersionState,
    /// Since when.
    pub since: Timestamp,
    /// Who said so: a principal's text.
    pub by: String,
    /// For how long a retirement can be taken back, in days.
    pub window_days: u16,
    /// When its material is destroyed, unless something needs it then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destroy_at: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_and_event_has_its_place() {
        use VersionEvent::{Destroy, Reinstate, Retire, Schedule};
        use VersionState::{Active, Retired, Scheduled};
        let table = [
            (Active, Schedule, Some(Some(Scheduled))),
            (Active, Retire, Some(Some(Retired))),
            (Active, Reinstate, Some(Some(Active))),
            (Active, Destroy, None),
            (Scheduled, Schedule, Some(Some(Scheduled))),
            (Scheduled, Retire, Some(Some(Retired))),
            (Scheduled, Reinstate, Some(Some(Active))),
            (Scheduled, Destroy, None),
            (Retired, Schedule, None),
            (Retired, Retire, Some(Some(Retired))),
            (Retired, Reinstate, Some(Some(Active))),
            (Retired, Destroy, Some(None)),
        ];
        for (state, event, expected) in table {
            assert_eq!(state.apply(event).ok(), expected, "{state:?} {event:?}");
        }
    }
}
