//! One key, as its answers made it.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use lastkey_crypto::KeyVersionId;
use lastkey_engine::{Key, KeyState, RotationPolicy, Timestamp};

use crate::op::Mutation;

const DAY: Duration = Duration::from_secs(86_400);

/// A part of a key that changes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Register {
    /// Enabled, disabled, pending deletion.
    State,
    /// The free text.
    Description,
    /// The labels.
    Tags,
    /// Deletion protection.
    Protection,
    /// The rotation policy.
    Policy,
    /// The versions.
    Versions,
}

impl Register {
    /// The one that a change is about.
    pub fn of(by: &Mutation) -> Self {
        match by {
            Mutation::Rotate => Self::Versions,
            Mutation::Enable | Mutation::Disable | Mutation::Schedule(_) | Mutation::Cancel => {
                Self::State
            }
            Mutation::Describe(_) => Self::Description,
            Mutation::Tag(_) | Mutation::Untag(_) => Self::Tags,
            Mutation::Protect(_) => Self::Protection,
            Mutation::Policy(_) => Self::Policy,
        }
    }
}

/// The registers but for the versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snap {
    /// Its state.
    pub state: KeyState,
    /// Its text.
    pub description: String,
    /// Its labels.
    pub tags: BTreeMap<String, String>,
    /// Its deletion protection.
    pub protection: bool,
    /// Its rotation policy.
    pub rotation: RotationPolicy,
    /// The days of its deletion window.
    pub window: Option<u16>,
    /// It is destroyed at the earliest then.
    pub due: Option<Timestamp>,
}

/// A key.
#[derive(Clone, Debug)]
pub struct KeyModel {
    /// What is certain.
    pub snap: Snap,
    /// The versions that acknowledged answers named.
    pub versions: BTreeSet<KeyVersionId>,
    /// The command that may have changed each register, or may still.
    pub open: BTreeMap<Register, usize>,
}

impl Snap {
    /// As the engine shows it.
    pub fn of(key: &Key) -> Self {
        Self {
            state: key.state,
            description: key.description.clone(),
            tags: key.tags.clone(),
            protection: key.deletion_protection,
            rotation: key.rotation,
            window: key.deletion_window_days,
            due: key.deletion_at,
        }
    }

    /// Whether it may be used.
    pub fn usable(&self) -> Result<(), &'static str> {
        match self.state {
            KeyState::Enabled => Ok(()),
            KeyState::Disabled => Err("Rejected.Disabled"),
            KeyState::PendingDeletion => Err("Rejected.PendingDeletion"),
        }
    }

    /// Whether it may have an alias.
    pub fn named(&self) -> Result<(), &'static str> {
        match self.state {
            KeyState::PendingDeletion => Err("Rejected.PendingDeletion"),
            KeyState::Enabled | KeyState::Disabled => Ok(()),
        }
    }

    /// What the change must be answered with.
    pub fn judge(&self, by: &Mutation) -> Result<(), &'static str> {
        let pending = self.state == KeyState::PendingDeletion;
        let wrong_state = Err("Rejected.StateModifiedFailed");
        match by {
            Mutation::Rotate | Mutation::Policy(_) => self.usable(),
            Mutation::Enable | Mutation::Disable if pending => wrong_state,
            Mutation::Schedule(_) if self.protection => Err("Rejected.DeletionProtected"),
            Mutation::Schedule(_) if pending => wrong_state,
            Mutation::Cancel if !pending => wrong_state,
            Mutation::Describe(_) | Mutation::Tag(_) | Mutation::Protect(_) => self.named(),
            _ => Ok(()),
        }
    }

    /// The registers after the change, begun at `at`.
    pub fn after(&self, by: &Mutation, at: Timestamp) -> Self {
        let mut new = self.clone();
        match by {
            Mutation::Rotate => {}
            Mutation::Enable => new.state = KeyState::Enabled,
            Mutation::Disable => new.state = KeyState::Disabled,
            Mutation::Describe(text) => new.description.clone_from(text),
            Mutation::Tag(tags) => new.tags.extend(tags.clone()),
            Mutation::Untag(names) => new.tags.retain(|name, _| !names.contains(name)),
            Mutation::Schedule(days) => {
                new.state = KeyState::PendingDeletion;
                new.window = Some(*days);
                new.due = Some(at.after(DAY * u32::from(*days)));
            }
            Mutation::Cancel => {
                new.state = KeyState::Enabled;
                (new.window, new.due) = (None, None);
            }
            Mutation::Protect(on) => new.protection = *on,
            Mutation::Policy(policy) => new.rotation = *policy,
        }
        new
    }

    /// Whether both have the same in that register.
    pub fn agrees(&self, other: &Self, register: Register) -> bool {
        match register {
            Register::State => self.state == other.state && self.window == other.window,
            Register::Description => self.description == other.description,
            Register::Tags => self.tags == other.tags,
            Register::Protection => self.protection == other.protection,
            Register::Policy => self.rotation == other.rotation,
            Register::Versions => true,
        }
    }
}

/// All registers that [`Snap`] has.
pub(super) const REGISTERS: [Register; 5] = [
    Register::State,
    Register::Description,
    Register::Tags,
    Register::Protection,
    Register::Policy,
];
