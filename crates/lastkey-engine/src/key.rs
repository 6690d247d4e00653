//! Keys: what is recorded about one, and the life it may lead.

use std::{collections::BTreeMap, time::Duration};

use lastkey_crypto::{Algorithm, Epoch, KeyId, KeyVersionId, Lineage};
use serde::{Deserialize, Serialize};

use crate::{
    Error, LastUse, Timestamp,
    retirement::{Retirement, VersionState},
};

/// What kind of material a key has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum KeySpec {
    /// AES with 256-bit keys.
    #[serde(rename = "Aliyun_AES_256")]
    Aes256,
    /// AES with 192-bit keys.
    #[serde(rename = "Aliyun_AES_192")]
    Aes192,
    /// AES with 128-bit keys.
    #[serde(rename = "Aliyun_AES_128")]
    Aes128,
}

impl KeySpec {
    /// The spec of that wire name; `None` when it is unknown or not offered.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Aes256, Self::Aes192, Self::Aes128].into_iter().find(|spec| spec.name() == text)
    }

    /// The wire's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256 => "Aliyun_AES_256",
            Self::Aes192 => "Aliyun_AES_192",
            Self::Aes128 => "Aliyun_AES_128",
        }
    }

    /// The algorithm its versions encrypt with.
    pub fn algorithm(self) -> Algorithm {
        match self {
            Self::Aes256 => Algorithm::Aes256,
            Self::Aes192 => Algorithm::Aes192,
            Self::Aes128 => Algorithm::Aes128,
        }
    }

    /// Whether the key may rotate by itself.
    pub fn rotates(self) -> bool {
        match self {
            Self::Aes256 | Self::Aes192 | Self::Aes128 => true,
        }
    }
}

/// What a key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum KeyUsage {
    /// Encrypt and decrypt.
    #[serde(rename = "ENCRYPT/DECRYPT")]
    EncryptDecrypt,
}

impl KeyUsage {
    /// The wire's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::EncryptDecrypt => "ENCRYPT/DECRYPT",
        }
    }
}

/// Who made the key material.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Origin {
    /// This service.
    #[serde(rename = "Aliyun_KMS")]
    Service,
}

impl Origin {
    /// The wire's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Aliyun_KMS",
        }
    }
}

/// Where the key material lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ProtectionLevel {
    /// In the sealed store and locked memory.
    #[serde(rename = "SOFTWARE")]
    Software,
}

impl ProtectionLevel {
    /// The wire's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Software => "SOFTWARE",
        }
    }
}

/// The state of a key. [`KeyState::apply`] is its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum KeyState {
    /// In use.
    Enabled,
    /// Not to be used until it is enabled again.
    Disabled,
    /// Not to be used, and destroyed when its window ends.
    PendingDeletion,
}

/// What can happen to a key's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyEvent {
    /// Allow its use again.
    Enable,
    /// Stop its use.
    Disable,
    /// Begin the deletion window.
    ScheduleDeletion,
    /// End the deletion window without deletion.
    CancelDeletion,
}

impl KeyState {
    /// The wire's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enabled => "Enabled",
            Self::Disabled => "Disabled",
            Self::PendingDeletion => "PendingDeletion",
        }
    }

    /// The state after `event`.
    ///
    /// # Errors
    /// [`Error::StateConflict`] where the life of a key has no such step.
    pub fn apply(self, event: KeyEvent) -> Result<Self, Error> {
        use KeyEvent::{CancelDeletion, Disable, Enable, ScheduleDeletion};
        match (self, event) {
            (Self::Enabled | Self::Disabled, Enable) => Ok(Self::Enabled),
            (Self::Enabled | Self::Disabled, Disable) => Ok(Self::Disabled),
            (Self::Enabled | Self::Disabled, ScheduleDeletion) => Ok(Self::PendingDeletion),
            (Self::PendingDeletion, CancelDeletion) => Ok(Self::Enabled),
            (Self::PendingDeletion, Enable | Disable | ScheduleDeletion)
            | (Self::Enabled | Self::Disabled, CancelDeletion) => {
                Err(Error::StateConflict { state: self.name() })
            }
        }
    }

    /// Allows cryptographic use.
    ///
    /// # Errors
    /// The reason why the key must not be used.
    pub fn usable(self) -> Result<(), Error> {
        match self {
            Self::Enabled => Ok(()),
            Self::Disabled => Err(Error::KeyDisabled),
            Self::PendingDeletion => Err(Error::KeyPendingDeletion),
        }
    }
}

/// When a key gets a new version by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationPolicy {
    /// Whether it does at all.
    pub enabled: bool,
    /// How long a version stays primary, in seconds.
    pub interval_seconds: u64,
}

impl RotationPolicy {
    /// The shortest interval: 7 days.
    pub const MIN: Duration = Duration::from_secs(7 * 86_400);
    /// The longest interval: 730 days.
    pub const MAX: Duration = Duration::from_secs(730 * 86_400);
    /// The interval of a key that does not name one: 365 days.
    pub const DEFAULT: Duration = Duration::from_secs(365 * 86_400);

    /// A policy with this interval.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] outside of 7–730 days.
    pub fn new(enabled: bool, interval: Option<Duration>) -> Result<Self, Error> {
        let interval = interval.unwrap_or(Self::DEFAULT);
        if !(Self::MIN..=Self::MAX).contains(&interval) {
            return Err(Error::invalid("RotationInterval", "give 7d to 730d"));
        }
        Ok(Self { enabled, interval_seconds: interval.as_secs() })
    }

    /// The interval.
    pub fn interval(self) -> Duration {
        Duration::from_secs(self.interval_seconds)
    }
}

/// A version that is or was the primary one, as plugins pin it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Primary {
    /// The version.
    pub version: KeyVersionId,
    /// Drawn anew with every change of the primary version.
    pub epoch: Epoch,
    /// When it became primary.
    pub since: Timestamp,
}

/// All that is recorded about a key, but for its versions' material.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Stays the same over all versions and restores.
    pub lineage: Lineage,
    /// What kind of key it is.
    pub spec: KeySpec,
    /// What it is used for.
    pub usage: KeyUsage,
    /// Who made it.
    pub origin: Origin,
    /// Where its material lives.
    pub protection: ProtectionLevel,
    /// Its state.
    pub state: KeyState,
    /// Free text.
    pub description: String,
    /// Labels.
    pub tags: BTreeMap<String, String>,
    /// When it was made.
    pub created: Timestamp,
    /// Who made it: a principal's text.
    pub creator: String,
    /// Whether a deletion is refused.
    pub deletion_protection: bool,
    /// Why.
    pub deletion_protection_description: String,
    /// When it will be destroyed, while pending deletion.
    pub deletion_at: Option<Timestamp>,
    /// How long the deletion window was asked to be, in days.
    pub deletion_window_days: Option<u16>,
    /// Whether it is destroyed although something may need it then: somebody said so twice.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deletion_overrides: bool,
    /// Its destruction has begun and cannot be cancelled any more.
    pub destroying: bool,
    /// Automatic rotation.
    pub rotation: RotationPolicy,
    /// When it was rotated last; the creation, at first.
    pub rotated: Timestamp,
    /// The version that encrypts.
    pub primary: Primary,
    /// The version that encrypted before, and until when.
    pub superseded: Option<(Primary, Timestamp)>,
    /// All versions, oldest first.
    pub versions: Vec<KeyVersionId>,
    /// Those of them that are retired, or will be.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub retirements: BTreeMap<KeyVersionId, Retirement>,
}

impl Key {
    /// No clock of ours differs by as much from another, unless it is wrong.
    const AHEAD: Duration = Duration::from_secs(86_400);

    /// When the next automatic rotation is due; `None` while it is off or the key cannot be used.
    pub fn next_rotation(&self) -> Option<Timestamp> {
        (self.rotation.enabled && self.state == KeyState::Enabled)
            .then(|| self.rotated.after(self.rotation.interval()))
    }

    /// Whether it has to be rotated by itself: its interval has ended, or a clock that was far ahead
    /// says that it was rotated on a day to come, which would put the next one off for as long.
    pub(crate) fn rotation_due(&self, now: Timestamp) -> bool {
        let ahead = self.rotated > now.after(Self::AHEAD);
        self.next_rotation().is_some_and(|due| ahead || due <= now)
    }

    /// `Enabled`, `Disabled` or, while the key's state forbids it, `Suspended`.
    pub fn rotation_state(&self) -> &'static str {
        match (self.rotation.enabled, self.state) {
            (false, _) => "Disabled",
            (true, KeyState::Enabled) => "Enabled",
            (true, _) => "Suspended",
        }
    }

    /// Where a version is.
    pub fn version_state(&self, version: KeyVersionId) -> VersionState {
        self.retirements.get(&version).map_or(VersionState::Active, |retired| retired.state)
    }

    /// Allows the use of a version.
    ///
    /// # Errors
    /// [`Error::KeyVersionRetired`].
    pub fn version_usable(&self, version: KeyVersionId) -> Result<(), Error> {
        match self.version_state(version) {
            VersionState::Active | VersionState::Scheduled => Ok(()),
            VersionState::Retired => Err(Error::KeyVersionRetired),
        }
    }

    /// Makes `version` the primary one.
    pub(crate) fn promote(&mut self, version: KeyVersionId, epoch: Epoch, now: Timestamp) {
        self.superseded = Some((self.primary, now));
        self.primary = Primary { version, epoch, since: now };
        self.rotated = now;
        self.versions.push(version);
    }
}

/// One version of a key, as it is described to callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVersion {
    /// Its key.
    pub key_id: KeyId,
    /// Its id.
    pub id: KeyVersionId,
    /// When it was made.
    pub created: Timestamp,
    /// How often it has encrypted, at least as often as it did: after a crash, more.
    pub uses: u64,
    /// When it was used last, as far as that is known.
    pub last_use: Option<LastUse>,
    /// Whether callers have encrypted under it by themselves, or may have: nobody can say what
    /// there is of that.
    pub direct: bool,
    /// What is recorded of its end.
    pub retirement: Option<Retirement>,
}

impl KeyVersion {
    /// Where it is.
    pub fn state(&self) -> VersionState {
        self.retirement.as_ref().map_or(VersionState::Active, |retired| retired.state)
    }

    /// Whether nobody has ever used it.
    pub fn never_used(&self) -> bool {
        self.uses == 0 && self.last_use.is_none()
    }
}

/// The name of an alias: `alias/` and 1–249 letters, digits, `-`, `_`, `/`, `.` or `:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AliasName(String);

impl AliasName {
    const PREFIX: &'static str = "alias/";

    /// Reads an alias.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] with what is allowed.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let refuse = |reason: &str| Err(Error::invalid("AliasName", reason));
        let Some(rest) = text.strip_prefix(Self::PREFIX) else {
            return refuse("it must begin with alias/");
        };
        if rest.is_empty() || text.len() > 255 {
            return refuse("give 1 to 249 characters after alias/");
        }
        if text.starts_with("alias/acs") {
            return refuse("alias/acs… is reserved");
        }
        if !rest.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_/.:".contains(&b)) {
            return refuse("use letters, digits and - _ / . : only");
        }
        Ok(Self(text.to_owned()))
    }

    /// A bound that no alias comes before.
    pub(crate) const fn least() -> Self {
        Self(String::new())
    }

    /// The whole name with its prefix.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AliasName {
    type Error = Error;
    fn try_from(text: String) -> Result<Self, Error> {
        Self::parse(&text)
    }
}

impl From<AliasName> for String {
    fn from(alias: AliasName) -> Self {
        alias.0
    }
}

impl std::fmt::Display for AliasName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a caller names a key: by id, by alias, or by an ARN of either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyRef {
    /// By its id.
    Id(KeyId),
    /// By an alias.
    Alias(AliasName),
}

impl KeyRef {
    /// Reads a key id, an alias, or `acs:kms:<region>:<account>:key/<id>` (or `:alias/…`).
    ///
    /// # Errors
    /// [`Error::MissingParameter`] for an empty text, [`Error::KeyNotFound`] for a text that
    /// cannot be the name of a key here.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error::MissingParameter("KeyId"));
        }
        let resource = match text.strip_prefix("acs:kms:") {
            Some(rest) => rest.splitn(3, ':').nth(2).ok_or(Error::KeyNotFound)?,
            None => text,
        };
        if resource.starts_with(AliasName::PREFIX) {
            return AliasName::parse(resource).map(Self::Alias).map_err(|_| Error::AliasNotFound);
        }
        let id = resource.strip_prefix("key/").unwrap_or(resource);
        id.parse().map(Self::Id).map_err(|_| Error::KeyNotFound)
    }
}

/// A validated page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Counts from 1.
    pub number: usize,
    /// 1–100 entries.
    pub size: usize,
}

impl Page {
    /// Page `number` of pages of `size` entries.
    ///
    /// # Errors
    /// [`Error::InvalidParameter`] outside of the bounds.
    pub fn new(number: Option<usize>, size: Option<usize>) -> Result<Self, Error> {
        let (number, size) = (number.unwrap_or(1), size.unwrap_or(10));
        if number == 0 {
            return Err(Error::invalid("PageNumber", "pages count from 1"));
        }
        if !(1..=100).contains(&size) {
            return Err(Error::invalid("PageSize", "give 1 to 100"));
        }
        Ok(Self { number, size })
    }

    pub(crate) fn skip(self) -> usize {
        (self.number - 1).saturating_mul(self.size)
    }
}

/// One page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing<T> {
    /// The entries of this page.
    pub items: Vec<T>,
    /// The page that was asked for.
    pub page: Page,
    /// How many entries all pages have together.
    pub total: usize,
}

impl<T> Listing<T> {
    /// The page of `all` that was asked for.
    pub(crate) fn cut(all: impl ExactSizeIterator<Item = T>, page: Page) -> Self {
        let total = all.len();
        Self { items: all.skip(page.skip()).take(page.size).collect(), page, total }
    }
}

/// Checks a description: at most 8 192 bytes.
///
/// # Errors
/// [`Error::InvalidParameter`].
pub(crate) fn check_description(name: &'static str, text: &str) -> Result<(), Error> {
    if text.len() > 8192 {
        return Err(Error::invalid(name, "give at most 8192 bytes"));
    }
    Ok(())
}

/// At most this many tags per key.
pub(crate) const MAX_TAGS: usize = 20;

/// Checks one tag: key 1–128 characters without a reserved prefix, value at most 256 characters.
///
/// # Errors
/// [`Error::InvalidParameter`].
pub(crate) fn check_tag(key: &str, value: &str) -> Result<(), Error> {
    if key.is_empty() || key.chars().count() > 128 {
        return Err(Error::invalid("Tags", "a tag's key has 1 to 128 characters"));
    }
    if key.starts_with("aliyun") || key.starts_with("acs:") {
        return Err(Error::invalid("Tags", "a tag's key must not begin with aliyun or acs:"));
    }
    if value.chars().count() > 256 {
        return Err(Error::invalid("Tags", "a tag's value has at most 256 characters"));
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A key like any other.
    pub(crate) fn example() -> Key {
        let id = KeyVersionId::from_bytes([2; 16]);
        Key {
            id: KeyId::from_bytes([1; 16]),
            lineage: Lineage::from_bytes([3; 16]),
            spec: KeySpec::Aes256,
            usage: KeyUsage::EncryptDecrypt,
            origin: Origin::Service,
            protection: ProtectionLevel::Software,
            state: KeyState::Enabled,
            description: String::new(),
            tags: BTreeMap::new(),
            created: Timestamp::from_millis(0),
            creator: String::new(),
            deletion_protection: false,
            deletion_protection_description: String::new(),
            deletion_at: None,
            deletion_window_days: None,
            deletion_overrides: false,
            destroying: false,
            rotation: RotationPolicy {
                enabled: true,
                interval_seconds: RotationPolicy::DEFAULT.as_secs(),
            },
            rotated: Timestamp::from_millis(0),
            primary: Primary {
                version: id,
                epoch: Epoch::from_bytes([4; 16]),
                since: Timestamp::from_millis(0),
            },
            superseded: None,
            versions: vec![id],
            retirements: BTreeMap::new(),
        }
    }

    #[test]
    fn every_state_and_event_has_its_place() {
        use KeyEvent::{CancelDeletion, Disable, Enable, ScheduleDeletion};
        use KeyState::{Disabled, Enabled, PendingDeletion};
        let table = [
            (Enabled, Enable, Some(Enabled)),
            (Enabled, Disable, Some(Disabled)),
            (Enabled, ScheduleDeletion, Some(PendingDeletion)),
            (Enabled, CancelDeletion, None),
            (Disabled, Enable, Some(Enabled)),
            (Disabled, Disable, Some(Disabled)),
            (Disabled, ScheduleDeletion, Some(PendingDeletion)),
            (Disabled, CancelDeletion, None),
            (PendingDeletion, Enable, None),
            (PendingDeletion, Disable, None),
            (PendingDeletion, ScheduleDeletion, None),
            (PendingDeletion, CancelDeletion, Some(Enabled)),
        ];
        for (state, event, expected) in table {
            assert_eq!(state.apply(event).ok(), expected, "{state:?} {event:?}");
        }
    }

    #[test]
    fn key_references() {
        let id = "0193f1a2-0000-7000-8000-000000000001";
        assert!(matches!(KeyRef::parse(id), Ok(KeyRef::Id(_))));
        assert!(matches!(KeyRef::parse(&format!("acs:kms:local:1:key/{id}")), Ok(KeyRef::Id(_))));
        assert!(matches!(KeyRef::parse("alias/kubernetes"), Ok(KeyRef::Alias(_))));
        assert_eq!(KeyRef::parse(""), Err(Error::MissingParameter("KeyId")));
        assert_eq!(KeyRef::parse("nonsense"), Err(Error::KeyNotFound));
    }

    #[test]
    fn aliases_are_bounded() {
        assert!(AliasName::parse("alias/a").is_ok());
        for bad in
            ["a", "alias/", "alias/acs/x", "alias/a b", &format!("alias/{}", "x".repeat(250))]
        {
            assert!(AliasName::parse(bad).is_err(), "{bad}");
        }
    }
}
