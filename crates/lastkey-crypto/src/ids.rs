//! Identifiers: parsed once at the edge, then types of their own.
//!
//! [`KeyId`], [`KeyVersionId`] and [`ClusterId`] are UUIDs whose text is exactly 36 lower-case
//! ASCII characters; the ciphertext blob carries that text, because existing clients cut it off
//! the front. [`Lineage`] and [`Epoch`] are 16 random bytes, written as 32 hexadecimal digits.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

use crate::Entropy;

/// Length of a UUID's text.
pub const ID_TEXT_LEN: usize = 36;

/// A text is not an identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not 36 characters of hyphenated UUID.
    #[error("expected an id of 36 characters such as 1d1c6a34-5f0e-4c3b-9a58-6a8f5a0e7c21")]
    NotUuid,
    /// Not 32 hexadecimal digits.
    #[error("expected 32 hexadecimal digits")]
    NotHex,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes over a UUID of any version.
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The identifier with these 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }

            /// Draws a random identifier (RFC 9562 version 4).
            pub fn random(entropy: &dyn Entropy) -> Self {
                Self(uuid::Builder::from_random_bytes(random_16(entropy)).into_uuid())
            }

            /// The 16 bytes behind the text.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The UUID.
            pub const fn as_uuid(&self) -> &Uuid {
                &self.0
            }

            /// The 36 lower-case ASCII characters, without allocating.
            pub fn text(&self) -> [u8; ID_TEXT_LEN] {
                let mut text = [0; ID_TEXT_LEN];
                self.0.hyphenated().encode_lower(&mut text);
                text
            }

            /// Parses the one canonical (lower-case) spelling.
            ///
            /// Formats use this, so that no byte of theirs can change without being noticed.
            pub fn from_canonical(text: &[u8]) -> Result<Self, IdError> {
                let uuid = Uuid::try_parse_ascii(text).map_err(|_| IdError::NotUuid)?;
                let id = Self(uuid);
                if id.text() == text { Ok(id) } else { Err(IdError::NotUuid) }
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            /// Accepts the hyphenated form in either case, and nothing else.
            fn from_str(text: &str) -> Result<Self, IdError> {
                // Of the spellings the uuid crate takes, only the hyphenated one has this length.
                if text.len() != ID_TEXT_LEN {
                    return Err(IdError::NotUuid);
                }
                Uuid::try_parse(text).map(Self).map_err(|_| IdError::NotUuid)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.0.hyphenated().encode_lower(&mut [0; ID_TEXT_LEN]))
            }
        }

        impl Serialize for $name {
            /// As the text of `Display`, without the detour over a formatter.
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.0.hyphenated().encode_lower(&mut [0; ID_TEXT_LEN]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        text_serde!($name);
    };
}

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name([u8; 16]);

        impl $name {
            /// The identifier with these 16 bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Draws a fresh one.
            pub fn random(entropy: &dyn Entropy) -> Self {
                Self(random_16(entropy))
            }

            /// The 16 bytes behind the text.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            /// Accepts 32 hexadecimal digits in either case.
            fn from_str(text: &str) -> Result<Self, IdError> {
                let mut bytes = [0; 16];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| IdError::NotHex)?;
                Ok(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(hex_digits(&self.0, &mut [0; 32]))
            }
        }

        impl Serialize for $name {
            /// As the text of `Display`, without the detour over a formatter.
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(hex_digits(&self.0, &mut [0; 32]))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        text_serde!($name);
    };
}

/// Reads what `FromStr` accepts.
macro_rules! text_serde {
    ($name:ident) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

uuid_id! {
    /// A key, over all its versions.
    KeyId
}
uuid_id! {
    /// One version of a key; leads every ciphertext blob made with it.
    KeyVersionId
}
uuid_id! {
    /// A Kubernetes cluster as Lastkey knows it: random, never a CA, a host name or a UID.
    ClusterId
}
hex_id! {
    /// What stays the same over all versions of one key, wherever its store is restored.
    Lineage
}
hex_id! {
    /// Names the file in which a plugin numbers what it answered from memory.
    SpoolId
}
hex_id! {
    /// Drawn with every change of the primary version and after every restore (decision 4).
    Epoch
}

fn hex_digits<'a>(bytes: &[u8; 16], digits: &'a mut [u8; 32]) -> &'a str {
    // 16 bytes are 32 ASCII digits.
    let _ = hex::encode_to_slice(bytes, digits);
    std::str::from_utf8(digits).unwrap_or_default()
}

fn random_16(entropy: &dyn Entropy) -> [u8; 16] {
    let mut bytes = [0; 16];
    entropy.fill(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SystemEntropy;

    const TEXT: &str = "1d1c6a34-5f0e-4c3b-9a58-6a8f5a0e7c21";

    #[test]
    fn either_case_reads_as_the_same_id() {
        let id: KeyId = TEXT.parse().unwrap();
        assert_eq!(TEXT.to_uppercase().parse::<KeyId>().unwrap(), id);
        assert_eq!(id.to_string(), TEXT);
        assert_eq!(&id.text()[..], TEXT.as_bytes());
        assert_eq!(format!("{id:?}"), format!("KeyId({TEXT})"));
    }

    #[test]
    fn formats_take_only_the_canonical_spelling() {
        assert!(KeyVersionId::from_canonical(TEXT.as_bytes()).is_ok());
        assert!(KeyVersionId::from_canonical(TEXT.to_uppercase().as_bytes()).is_err());
        assert!(KeyVersionId::from_canonical(TEXT.replace('-', "").as_bytes()).is_err());
    }

    #[test]
    fn other_spellings_are_refused() {
        let simple = TEXT.replace('-', "");
        for wrong in
            ["", "1d1c6a34", &simple, &format!("{{{TEXT}}}"), &format!("urn:uuid:{TEXT}"), "é"]
        {
            assert_eq!(wrong.parse::<KeyId>(), Err(IdError::NotUuid), "{wrong}");
        }
        assert_eq!("00".parse::<Epoch>(), Err(IdError::NotHex));
        assert_eq!("zz".repeat(16).parse::<Lineage>(), Err(IdError::NotHex));
    }

    #[test]
    fn a_fresh_id_is_what_the_entropy_gave() {
        struct Sevens;
        impl Entropy for Sevens {
            fn fill(&self, out: &mut [u8]) {
                out.fill(7);
            }
        }
        assert_eq!(Epoch::random(&Sevens).to_string(), "07".repeat(16));
        assert_eq!(ClusterId::random(&Sevens).to_string(), "07070707-0707-4707-8707-070707070707");
        assert_ne!(KeyId::random(&SystemEntropy), KeyId::random(&SystemEntropy));
    }

    #[test]
    fn serde_is_the_text() {
        let id: ClusterId = TEXT.parse().unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{TEXT}\""));
        assert_eq!(serde_json::from_str::<ClusterId>(&json).unwrap(), id);

        let epoch = Epoch::random(&SystemEntropy);
        let json = serde_json::to_string(&epoch).unwrap();
        assert_eq!(json.len(), 34);
        assert_eq!(serde_json::from_str::<Epoch>(&json).unwrap(), epoch);
        assert_eq!(epoch.to_string().parse::<Epoch>().unwrap(), epoch);
    }

    #[test]
    fn random_ids_are_version_4() {
        assert_eq!(KeyId::random(&SystemEntropy).as_uuid().get_version_num(), 4);
    }
}
