//! The encryption context: names and values that a ciphertext is bound to but does not contain.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};

use crate::{KeyVersionId, ids::ID_TEXT_LEN, mac::push_prefixed};

/// Longest JSON text of a context, in characters; also the most that names and values may have
/// together.
pub const MAX_CHARS: usize = 8192;

/// Names with this prefix are bound by Lastkey itself.
pub const RESERVED_PREFIX: &str = "lastkey:";

/// The one name under [`RESERVED_PREFIX`] that callers set: the file envelope's salt.
pub const FILE_SALT_NAME: &str = "lastkey:file-salt";

/// An encryption context: a set of names, each with one value.
///
/// Order does not matter, nothing is normalised, and an empty context equals an absent one
/// (decision 2). `Debug` prints the names alone, because audit records names and never values.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct EncryptionContext {
    /// Sorted bytewise by name, each name once.
    pairs: Vec<(String, String)>,
}

/// An encryption context was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContextError {
    /// Over [`MAX_CHARS`].
    #[error("the encryption context is longer than 8192 characters")]
    TooLong,
    /// Not one JSON object.
    #[error("the encryption context is not a JSON object of strings")]
    NotAnObject,
    /// The same name twice.
    #[error("the encryption context names {name:?} twice")]
    Duplicate {
        /// The name.
        name: String,
    },
    /// A number, a list, an object, `true`, `false` or `null` where a string belongs.
    #[error("the value of {name:?} in the encryption context is not a string")]
    NotAString {
        /// The name of the value.
        name: String,
    },
}

impl EncryptionContext {
    /// The empty context.
    pub const fn empty() -> Self {
        Self { pairs: Vec::new() }
    }

    /// Builds a context from pairs in any order.
    ///
    /// # Errors
    ///
    /// [`ContextError::Duplicate`] and [`ContextError::TooLong`].
    pub fn from_pairs(
        pairs: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ContextError> {
        let mut pairs: Vec<(String, String)> = pairs.into_iter().collect();
        let chars: usize = pairs.iter().map(|(n, v)| n.chars().count() + v.chars().count()).sum();
        if chars > MAX_CHARS {
            return Err(ContextError::TooLong);
        }
        // `str` orders by its UTF-8 bytes.
        pairs.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        match pairs.windows(2).find(|two| two[0].0 == two[1].0) {
            Some(two) => Err(ContextError::Duplicate { name: two[0].0.clone() }),
            None => Ok(Self { pairs }),
        }
    }

    /// Reads a JSON object of strings, as it came over the wire.
    ///
    /// # Errors
    ///
    /// Every [`ContextError`]; none of them repeats a value.
    pub fn parse_json(text: &str) -> Result<Self, ContextError> {
        if text.chars().nth(MAX_CHARS).is_some() {
            return Err(ContextError::TooLong);
        }
        let JsonPairs(pairs) = serde_json::from_str(text).map_err(|_| ContextError::NotAnObject)?;
        let mut strings = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            match value {
                JsonValue::Text(value) => strings.push((name, value)),
                JsonValue::Other => return Err(ContextError::NotAString { name }),
            }
        }
        Self::from_pairs(strings)
    }

    /// The names, sorted bytewise.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.pairs.iter().map(|(name, _)| name.as_str())
    }

    /// Names and values, sorted bytewise by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let at = self.pairs.binary_search_by(|(own, _)| own.as_str().cmp(name)).ok()?;
        Some(&self.pairs[at].1)
    }

    /// How many pairs.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// A name that only Lastkey itself may bind, if this context uses one.
    ///
    /// The server binds a cluster under such names; a front end that takes contexts from callers
    /// refuses them, or one caller could speak for another's cluster.
    pub fn reserved_name(&self) -> Option<&str> {
        self.names().find(|name| name.starts_with(RESERVED_PREFIX) && *name != FILE_SALT_NAME)
    }

    /// What AES-GCM authenticates beside the ciphertext (decision 2).
    ///
    /// ```text
    /// offset  bytes                      meaning, for label "L" and the context {"a":"bc"}
    /// 0000    00 00 00 01 4c             length of the label, label
    /// 0005    00 00 00 24 31 64 31 63 …  36, key-version id (ASCII, lower case)
    /// 002d    00 00 00 01                how many pairs
    /// 0031    00 00 00 01 61             length of the name, name
    /// 0036    00 00 00 02 62 63          length of the value, value
    /// ```
    ///
    /// All numbers are 32 bits, big-endian; pairs are sorted bytewise by name; UTF-8 as sent.
    pub fn associated_data(&self, label: &[u8], key_version: &KeyVersionId) -> Vec<u8> {
        let pairs: usize = self.pairs.iter().map(|(n, v)| 8 + n.len() + v.len()).sum();
        let mut out = Vec::with_capacity(4 + label.len() + 4 + ID_TEXT_LEN + 4 + pairs);
        push_prefixed(&mut out, label);
        push_prefixed(&mut out, &key_version.text());
        let count = u32::try_from(self.pairs.len()).expect("bounded by MAX_CHARS");
        out.extend_from_slice(&count.to_be_bytes());
        for (name, value) in &self.pairs {
            push_prefixed(&mut out, name.as_bytes());
            push_prefixed(&mut out, value.as_bytes());
        }
        out
    }
}

impl fmt::Debug for EncryptionContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncryptionContext")?;
        f.debug_set().entries(self.names()).finish()
    }
}

/// The object as it stands in the text: every entry, duplicates too.
struct JsonPairs(Vec<(String, JsonValue)>);

impl<'de> Deserialize<'de> for JsonPairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = JsonPairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonPairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(JsonPairs(pairs))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

enum JsonValue {
    Text(String),
    Other,
}

impl<'de> Deserialize<'de> for JsonValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = JsonValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<JsonValue, E> {
                Ok(JsonValue::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<JsonValue, E> {
                Ok(JsonValue::Text(text))
            }

            fn visit_bool<E: de::Error>(self, _: bool) -> Result<JsonValue, E> {
                Ok(JsonValue::Other)
            }

            fn visit_i64<E: de::Error>(self, _: i64) -> Result<JsonValue, E> {
                Ok(JsonValue::Other)
            }

            fn visit_u64<E: de::Error>(self, _: u64) -> Result<JsonValue, E> {
                Ok(JsonValue::Other)
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<JsonValue, E> {
                Ok(JsonValue::Other)
            }

            fn visit_unit<E: de::Error>(self) -> Result<JsonValue, E> {
                Ok(JsonValue::Other)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut seq: A) -> Result<JsonValue, A::Error> {
                while seq.next_element::<de::IgnoredAny>()?.is_some() {}
                Ok(JsonValue::Other)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonValue, A::Error> {
                while map.next_entry::<de::IgnoredAny, de::IgnoredAny>()?.is_some() {}
                Ok(JsonValue::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}
