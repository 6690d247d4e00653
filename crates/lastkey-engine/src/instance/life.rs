//! The states of an installation, and what leads from one to another.

use std::fmt;

use serde::Serialize;

/// How an installation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Life {
    /// There is no root key yet.
    Uninitialised,
    /// There is one, but this process does not have it.
    Sealed,
    /// It was opened, but waits for the operator's decision whether to go on with an older store.
    Held,
    /// It answers requests.
    Unsealed,
}

/// What happens to an installation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LifeEvent {
    /// A root key and its shares were made.
    Initialise,
    /// The root key was given, and the engine runs.
    Open,
    /// The root key was given, but the store is older than it should be.
    Hold,
    /// The operator, or the end of the process, took the root key away.
    Seal,
}

impl Life {
    /// Every state.
    pub const ALL: [Self; 4] = [Self::Uninitialised, Self::Sealed, Self::Held, Self::Unsealed];

    /// The state after `event`; `None` where it cannot happen.
    pub const fn after(self, event: LifeEvent) -> Option<Self> {
        match (self, event) {
            (Self::Uninitialised, LifeEvent::Initialise)
            | (Self::Held | Self::Unsealed, LifeEvent::Seal) => Some(Self::Sealed),
            // A seal that opens by itself makes the root key and opens in one go.
            (Self::Uninitialised | Self::Sealed | Self::Held, LifeEvent::Open) => {
                Some(Self::Unsealed)
            }
            (Self::Uninitialised | Self::Sealed | Self::Held, LifeEvent::Hold) => Some(Self::Held),
            _ => None,
        }
    }

    /// `uninitialised`, `sealed`, `held` or `unsealed`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uninitialised => "uninitialised",
            Self::Sealed => "sealed",
            Self::Held => "held",
            Self::Unsealed => "unsealed",
        }
    }
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_of_state_and_event() {
        use Life::{Held, Sealed, Uninitialised, Unsealed};
        use LifeEvent::{Hold, Initialise, Open, Seal};
        let table = [
            (
                Uninitialised,
                [
                    (Initialise, Some(Sealed)),
                    (Open, Some(Unsealed)),
                    (Hold, Some(Held)),
                    (Seal, None),
                ],
            ),
            (
                Sealed,
                [(Initialise, None), (Open, Some(Unsealed)), (Hold, Some(Held)), (Seal, None)],
            ),
            (
                Held,
                [
                    (Initialise, None),
                    (Open, Some(Unsealed)),
                    (Hold, Some(Held)),
                    (Seal, Some(Sealed)),
                ],
            ),
            (Unsealed, [(Initialise, None), (Open, None), (Hold, None), (Seal, Some(Sealed))]),
        ];
        assert_eq!(table.map(|(state, _)| state), Life::ALL);
        for (state, events) in table {
            for (event, next) in events {
                assert_eq!(state.after(event), next, "{state} {event:?}");
            }
        }
    }
}
