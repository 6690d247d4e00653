//! `meta/seal`: which seals the root key rests under. In clear, because it is read first.
//!
//! ```json
//! {"format":1,"generation":4,"root":"8c…","previous":"51…","seals":[
//!   {"kind":"shamir","set":"a1b2c3d4","generation":2,"shares":5,"threshold":3,"wrapped":"AZ…"}]}
//! ```
//!
//! `root` is a print of the root key (16 bytes of HKDF), which tells it from earlier ones and says
//! nothing about it; `previous` is the print of the one before. `filed`, where it is there, are the
//! prints of earlier ones that were kept in a file, the oldest first: one that could not be removed
//! in its time is known by them later. The first entry is the seal; a second one is a set of shares
//! that waits to be entered once. `generation` counts the changes of this record. `latest`, where it is there, is a generation of the seal's set that was cancelled: no
//! other shares are made with that number, so that one which somebody has kept is known for what it
//! is. Stores of releases before 0.2 have no record: theirs is the `file` seal.

use std::fmt;

use base64::engine::general_purpose::STANDARD;
use lastkey_crypto::{
    Entropy, KeyMaterial, SecretBytes, UnwrapError, mac,
    share::{SetId, Splitting},
    wrap,
};
use lastkey_store::{Revision, Store};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::SealError;

/// Where the record is.
pub(crate) const SEAL_PATH: &str = "meta/seal";
const FORMAT: u8 = 1;
/// The seal, and one to come.
const MAX_SEALS: usize = 2;
/// So many root keys that were kept in a file are remembered: a new one takes the file's place, and
/// is refused before that where the one before could not, so that few of them can be left.
const MAX_FILED: usize = 8;
/// Far more than two entries need.
const MAX_BYTES: usize = 16 << 10;
const PRINT_LABEL: &[u8] = b"lastkey root print 1";

/// A kind of seal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SealKind {
    /// A file beside the store.
    File,
    /// Shares with people.
    Shamir,
    /// A PKCS#11 token.
    Pkcs11,
}

impl SealKind {
    /// `file`, `shamir` or `pkcs11`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Shamir => "shamir",
            Self::Pkcs11 => "pkcs11",
        }
    }
}

impl fmt::Display for SealKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Tells one root key from another, and says nothing about either.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RootPrint([u8; 16]);

impl RootPrint {
    /// The print of this root key.
    pub fn of(root: &KeyMaterial) -> Self {
        let derived = mac::derive(root, b"", &[PRINT_LABEL], 16);
        let mut print = [0; 16];
        print.copy_from_slice(derived.expose());
        Self(print)
    }
}

impl fmt::Debug for RootPrint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl Serialize for RootPrint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(self.0))
    }
}

impl<'de> Deserialize<'de> for RootPrint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut print = [0; 16];
        hex::decode_to_slice(text, &mut print).map_err(de::Error::custom)?;
        Ok(Self(print))
    }
}

/// What one seal needs to give the root key back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum SealEntry {
    /// The file says it all.
    File {},
    /// A set of shares.
    Shamir(ShamirEntry),
    /// A key on a token.
    Pkcs11(TokenEntry),
}

impl SealEntry {
    /// Its kind.
    pub fn kind(&self) -> SealKind {
        match self {
            Self::File {} => SealKind::File,
            Self::Shamir(_) => SealKind::Shamir,
            Self::Pkcs11(_) => SealKind::Pkcs11,
        }
    }
}

/// A set of shares, and the root key wrapped under the key that they give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShamirEntry {
    /// The set's 8 hexadecimal digits.
    pub(crate) set: String,
    pub(crate) generation: u16,
    pub(crate) shares: u8,
    pub(crate) threshold: u8,
    #[serde(with = "as_base64")]
    wrapped: Vec<u8>,
}

impl ShamirEntry {
    /// Wraps `root` under what this splitting's shares give.
    pub(crate) fn wrap(
        splitting: Splitting,
        unseal_key: &KeyMaterial,
        root: &KeyMaterial,
        entropy: &dyn Entropy,
    ) -> Self {
        let Splitting { set, generation, shares, threshold } = splitting;
        let set = set.to_string();
        let mut entry = Self { set, generation, shares, threshold, wrapped: Vec::new() };
        entry.wrapped = wrap::wrap(unseal_key, &entry.purpose(), root.expose(), entropy);
        entry
    }

    /// The same shares, another root key.
    pub(crate) fn rewrap(
        &self,
        unseal_key: &KeyMaterial,
        root: &KeyMaterial,
        entropy: &dyn Entropy,
    ) -> Self {
        let wrapped = wrap::wrap(unseal_key, &self.purpose(), root.expose(), entropy);
        Self { wrapped, ..self.clone() }
    }

    /// The root key, if this is the key that the shares give.
    pub(crate) fn unwrap(&self, unseal_key: &KeyMaterial) -> Result<KeyMaterial, UnwrapError> {
        let root: SecretBytes = wrap::unwrap(unseal_key, &self.purpose(), &self.wrapped)?;
        Ok(KeyMaterial::from_slice(root.expose()))
    }

    pub(crate) fn is_of(&self, set: SetId) -> bool {
        self.set == set.to_string()
    }

    /// Everything that is in clear is bound.
    fn purpose(&self) -> String {
        let Self { set, generation, shares, threshold, .. } = self;
        format!("root key, shamir set {set} generation {generation}, {threshold} of {shares}")
    }
}

/// The root key, encrypted by a key that never leaves its token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// The token's label.
    pub(crate) token: String,
    /// Its serial number.
    pub(crate) serial: String,
    /// The key's label.
    pub(crate) key: String,
    /// How it encrypts.
    #[serde(default, skip_serializing_if = "TokenMechanism::is_default")]
    pub(crate) mechanism: TokenMechanism,
    /// With AES-GCM: IV, ciphertext and tag. With AES key wrap: what that gives.
    #[serde(with = "as_base64")]
    pub(crate) wrapped: Vec<u8>,
}

/// How a token encrypts the root key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum TokenMechanism {
    /// `CKM_AES_GCM`.
    #[default]
    AesGcm,
    /// `CKM_AES_KEY_WRAP` (RFC 3394), on tokens without AES-GCM.
    AesKeyWrap,
}

impl TokenMechanism {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealRecord {
    format: u8,
    /// Counts the changes of this record.
    pub generation: u64,
    /// Which root key is under the seals; `None` for a store that has no record.
    pub root: Option<RootPrint>,
    /// Which one was before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<RootPrint>,
    /// Which ones were kept in a file before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    filed: Vec<RootPrint>,
    /// The highest generation of its shares that was made, where those are not here any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    latest: Option<u16>,
    /// The seal, and one to come.
    pub seals: Vec<SealEntry>,
}

impl SealRecord {
    /// The record of a new store.
    pub(crate) fn first(root: RootPrint, entry: SealEntry) -> Self {
        Self { generation: 1, root: Some(root), ..Self::of(entry) }
    }

    /// What a store without a record means.
    fn legacy() -> Self {
        Self::of(SealEntry::File {})
    }

    fn of(entry: SealEntry) -> Self {
        let (filed, seals) = (Vec::new(), vec![entry]);
        let (root, previous, latest) = (None, None, None);
        Self { format: FORMAT, generation: 0, root, previous, filed, latest, seals }
    }

    /// The next record: these seals, over this root key.
    pub(crate) fn next(&self, root: RootPrint, seals: Vec<SealEntry>) -> Self {
        let changed = self.root.is_some_and(|old| old != root);
        let mut next = Self {
            format: FORMAT,
            generation: self.generation + 1,
            root: Some(root),
            previous: if changed { self.root } else { self.previous },
            filed: if changed { self.filed_so_far() } else { self.filed.clone() },
            latest: None,
            seals,
        };
        next.latest = match next.seal() {
            Some(SealEntry::Shamir(entry)) => {
                Some(self.latest_of(&entry.set)).filter(|made| *made > next.latest_of(&entry.set))
            }
            _ => None,
        };
        next
    }

    /// The root keys that a file may hold once there is another.
    fn filed_so_far(&self) -> Vec<RootPrint> {
        let mut filed = self.filed.clone();
        if filed.is_empty() {
            // Whether that one was kept in a file, earlier records do not say.
            filed.extend(self.previous);
        }
        if self.is_in_file() {
            filed.extend(self.root);
        }
        let forgotten = filed.len().saturating_sub(MAX_FILED);
        filed.split_off(forgotten)
    }

    /// Whether the file is one of what gives the root key back.
    pub(crate) fn is_in_file(&self) -> bool {
        self.seals.iter().any(|entry| entry.kind() == SealKind::File)
    }

    /// Whether a file that holds the root key with this print is of this store, and not needed where
    /// the file is no seal of it.
    pub(crate) fn has_kept(&self, print: RootPrint) -> bool {
        let known = [self.root, self.previous].into_iter().flatten();
        known.chain(self.filed.iter().copied()).any(|one| one == print)
    }

    /// The highest generation of this set that was ever made; 0 if it is none of the record's.
    pub(crate) fn latest_of(&self, set: &str) -> u16 {
        let here = self.shamir().filter(|entry| entry.set == set).map(|entry| entry.generation);
        let of_the_seal = matches!(self.seal(), Some(SealEntry::Shamir(entry)) if entry.set == set);
        here.chain(self.latest.filter(|_| of_the_seal)).max().unwrap_or(0)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The seal.
    pub fn seal(&self) -> Option<&SealEntry> {
        self.seals.first()
    }

    /// The kind of the seal.
    pub fn kind(&self) -> SealKind {
        self.seal().map_or(SealKind::File, SealEntry::kind)
    }

    /// The set of shares that waits to be entered once.
    pub fn pending(&self) -> Option<&SealEntry> {
        self.seals.get(1)
    }

    /// The entries that shares open.
    pub(crate) fn shamir(&self) -> impl Iterator<Item = &ShamirEntry> {
        self.seals.iter().filter_map(|entry| match entry {
            SealEntry::Shamir(entry) => Some(entry),
            _ => None,
        })
    }

    /// Whether there are shares that open.
    pub(crate) fn takes_shares(&self) -> bool {
        self.shamir().next().is_some()
    }

    /// What may be told to everybody.
    pub fn summary(&self) -> Option<SealSummary> {
        self.seal().map(SealSummary::of)
    }
}

/// Reads the bytes of a record.
pub(crate) fn parse(bytes: &[u8]) -> Result<SealRecord, SealError> {
    if bytes.len() > MAX_BYTES {
        return Err(SealError::Record);
    }
    let record: SealRecord = serde_json::from_slice(bytes).map_err(|_| SealError::Record)?;
    let sound = record.format == FORMAT
        && (1..=MAX_SEALS).contains(&record.seals.len())
        && record.root.is_some()
        && record.filed.len() <= MAX_FILED
        && record.shamir().all(|entry| {
            SetId::parse(&entry.set).is_some_and(|set| set.to_string() == entry.set)
                && (lastkey_crypto::share::MIN_THRESHOLD..=entry.shares).contains(&entry.threshold)
        });
    if sound { Ok(record) } else { Err(SealError::Record) }
}

/// The record as the store keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) record: SealRecord,
    /// The store's revision of its last change; `None` while the store has none.
    pub(crate) revision: Option<Revision>,
}

impl Kept {
    pub(crate) async fn load(store: &dyn Store) -> Result<Self, crate::StartError> {
        let entry = store.get(SEAL_PATH).await.map_err(crate::barrier::BarrierError::from)?;
        Ok(match entry {
            None => Self { record: SealRecord::legacy(), revision: None },
            Some(entry) => Self { record: parse(&entry.value)?, revision: Some(entry.revision) },
        })
    }
}

/// A seal as status shows it. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SealSummary {
    /// The kind.
    pub kind: SealKind,
    /// Which set of shares.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// Its generation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u16>,
    /// How many shares there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<u8>,
    /// How many it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<u8>,
    /// The token's label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The key's label on it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

impl SealSummary {
    pub(crate) fn of(entry: &SealEntry) -> Self {
        let empty = Self {
            kind: entry.kind(),
            set: None,
            generation: None,
            shares: None,
            threshold: None,
            token: None,
            key: None,
        };
        match entry {
            SealEntry::File {} => empty,
            SealEntry::Shamir(entry) => Self {
                set: Some(entry.set.clone()),
                generation: Some(entry.generation),
                shares: Some(entry.shares),
                threshold: Some(entry.threshold),
                ..empty
            },
            SealEntry::Pkcs11(entry) => {
                Self { token: Some(entry.token.clone()), key: Some(entry.key.clone()), ..empty }
            }
        }
    }
}

mod as_base64 {
    use base64::Engine as _;

    use super::{Deserialize, Deserializer, STANDARD, Serializer, de};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(from)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::{SystemEntropy, share};

    use super::*;

    #[test]
    fn the_record_is_frozen() {
        let text = concat!(
            r#"{"format":1,"generation":4,"root":"000102030405060708090a0b0c0d0e0f","seals":["#,
            r#"{"kind":"file"},{"kind":"shamir","set":"a1b2c3d4","generation":2,"shares":5,"#,
            r#""threshold":3,"wrapped":"AQID"},"#,
        );
        let two = format!("{}]}}", text.trim_end_matches(','));
        let record = parse(two.as_bytes()).unwrap();
        assert_eq!(record.encode(), two.as_bytes());
        assert_eq!(record.kind(), SealKind::File);
        assert_eq!(record.pending().map(SealEntry::kind), Some(SealKind::Shamir));
        let three = format!("{text}{{\"kind\":\"file\"}}]}}");
        assert!(parse(three.as_bytes()).is_err());
        for (from, to) in [
            (r#""format":1"#, r#""format":2"#),
            (r#""threshold":3"#, r#""threshold":1"#),
            (r#""threshold":3"#, r#""threshold":6"#),
            ("a1b2c3d4", "A1B2C3D4"),
            (r#""root":"000102030405060708090a0b0c0d0e0f","#, ""),
            ("AQID", "A"),
        ] {
            assert!(parse(two.replace(from, to).as_bytes()).is_err(), "{to}");
        }
    }

    #[test]
    fn every_clear_field_of_a_set_is_bound() {
        let (key, root) = (
            KeyMaterial::generate(share::KEY_LEN, &SystemEntropy),
            KeyMaterial::generate(32, &SystemEntropy),
        );
        let set = SetId::random(&SystemEntropy);
        let splitting = Splitting { set, generation: 1, shares: 5, threshold: 3 };
        let entry = ShamirEntry::wrap(splitting, &key, &root, &SystemEntropy);
        assert!(entry.unwrap(&key).unwrap().equals(&root));
        for changed in [
            ShamirEntry { threshold: 2, ..entry.clone() },
            ShamirEntry { shares: 6, ..entry.clone() },
            ShamirEntry { generation: 2, ..entry.clone() },
            ShamirEntry { set: "00000000".to_owned(), ..entry.clone() },
        ] {
            assert!(changed.unwrap(&key).is_err(), "{changed:?}");
        }
        assert!(entry.unwrap(&root).is_err());
    }

    #[test]
    fn a_generation_that_was_made_is_never_made_again() {
        let (key, root) = (KeyMaterial::from_slice(&[1; 32]), KeyMaterial::from_slice(&[2; 32]));
        let print = RootPrint::of(&root);
        let made = |set: &str, generation| {
            let set = SetId::parse(set).unwrap();
            let splitting = Splitting { set, generation, shares: 3, threshold: 2 };
            SealEntry::Shamir(ShamirEntry::wrap(splitting, &key, &root, &SystemEntropy))
        };
        let (set, other) = ("a1b2c3d4", "00000001");
        let first = SealRecord::first(print, made(set, 1));
        let rekeyed = first.next(print, vec![made(set, 1), made(set, 2)]);
        assert_eq!((rekeyed.latest, rekeyed.latest_of(set)), (None, 2));
        let cancelled = rekeyed.next(print, vec![made(set, 1)]);
        assert_eq!((cancelled.latest, cancelled.latest_of(set)), (Some(2), 2));
        let text = String::from_utf8(cancelled.encode()).unwrap();
        assert!(text.contains(r#","latest":2,"seals":["#), "{text}");
        assert_eq!(parse(text.as_bytes()).unwrap(), cancelled);
        // As long as the set is the seal, and not for another one.
        let rotated = cancelled.next(print, vec![made(set, 1)]);
        assert_eq!((rotated.latest_of(set), rotated.latest_of(other)), (2, 0));
        let again = rotated.next(print, vec![made(set, 1), made(set, 3)]);
        assert_eq!((again.latest, again.latest_of(set)), (None, 3));
        let confirmed = again.next(print, vec![made(set, 3)]);
        assert_eq!(confirmed.latest, None);
        let another = rotated.next(print, vec![made(other, 1)]);
        assert_eq!((another.latest, another.latest_of(set)), (None, 0));
        assert_eq!(rotated.next(print, vec![SealEntry::File {}]).latest, None);
    }

    #[test]
    fn the_root_keys_that_were_kept_in_a_file_are_remembered() {
        let print = |byte| RootPrint([byte; 16]);
        let token = || {
            vec![SealEntry::Pkcs11(TokenEntry {
                token: "t".into(),
                serial: "1".into(),
                key: "k".into(),
                mechanism: TokenMechanism::default(),
                wrapped: Vec::new(),
            })]
        };
        let mut record = SealRecord::first(print(1), SealEntry::File {});
        assert!(!String::from_utf8(record.encode()).unwrap().contains("filed"));
        record = record.next(print(1), vec![SealEntry::File {}]);
        assert_eq!(record.filed, []);
        record = record.next(print(2), vec![SealEntry::File {}]).next(print(3), token());
        assert_eq!(record.filed, [print(1), print(2)]);
        // What was never in a file puts none of them out.
        for other in 4..40 {
            record = record.next(print(other), token());
        }
        assert_eq!(record.filed, [print(1), print(2)]);
        assert!(record.has_kept(print(1)) && record.has_kept(print(39)));
        assert!(!record.has_kept(print(20)));
        let text = String::from_utf8(record.encode()).unwrap();
        let filed = format!(r#","filed":["{}","{}"],"seals""#, "01".repeat(16), "02".repeat(16));
        assert!(text.contains(&filed), "{text}");
        assert_eq!(parse(text.as_bytes()).unwrap(), record);
        // The newest of many.
        for other in 100..110 {
            record = record.next(print(other), vec![SealEntry::File {}]);
        }
        assert_eq!(record.filed.len(), MAX_FILED);
        assert_eq!(
            (record.filed.first(), record.filed.last()),
            (Some(&print(101)), Some(&print(108)))
        );
        assert!(parse(&record.encode()).is_ok());

        // A record from before there were any may have had one.
        let before = concat!(
            r#"{"format":1,"generation":4,"root":"000102030405060708090a0b0c0d0e0f","#,
            r#""previous":"02020202020202020202020202020202","seals":[{"kind":"file"}]}"#,
        );
        let before = SealRecord { seals: token(), ..parse(before.as_bytes()).unwrap() };
        assert_eq!(before.next(print(9), token()).next(print(10), token()).filed, [print(2)]);
    }

    #[test]
    fn prints_tell_keys_apart() {
        let (a, b) = (KeyMaterial::from_slice(&[1; 32]), KeyMaterial::from_slice(&[2; 32]));
        assert_eq!(RootPrint::of(&a), RootPrint::of(&a));
        assert_ne!(RootPrint::of(&a), RootPrint::of(&b));
    }
}
