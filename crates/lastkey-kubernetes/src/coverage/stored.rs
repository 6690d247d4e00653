//! The beginning of a value in etcd: by whom it was encrypted, and under which key.
//!
//! ```text
//! k8s:enc:kms:v2:<provider>:  protobuf EncryptedObject
//!     1 encryptedData  2 keyID  3 encryptedDEKSource  4 annotations  5 encryptedDEKSourceType
//! k8s:enc:kms:v1:<provider>:  2 bytes length, the encrypted data key, the data
//! k8s:enc:<aescbc|aesgcm|secretbox>:v1:<key's name>:  the data
//! anything else               in clear: JSON, or protobuf behind `k8s\0`
//! ```
//!
//! Our plugin's ciphertext names its key version and its cluster by itself
//! ([`lastkey_crypto::plugin_blob`]). None of it is authentic: whoever writes to etcd can write it,
//! too. It is believed for counting, never for opening.

use lastkey_crypto::plugin_blob::PluginBlob;

use super::Under;
use crate::protobuf;

/// The longest id or name that is kept.
const MAX_NAME: usize = 1024;

/// What a value says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored<'a> {
    /// Not encrypted.
    Clear,
    /// By a key in the apiserver's configuration.
    Local {
        /// `aescbc`, `aesgcm` or `secretbox`.
        provider: &'a str,
        /// The key's name.
        key: &'a str,
    },
    /// By a plugin.
    Kms {
        /// `v1` or `v2`.
        api: &'static str,
        /// The provider's name.
        provider: &'a str,
        /// What the plugin called the key (v2 only).
        key_id: Option<&'a str>,
        /// What the plugin made of the data key or seed.
        wrapped: &'a [u8],
    },
    /// It starts as an encrypted value does, and goes on in no way that is known.
    Unknown,
}

/// Reads a value's beginning.
pub fn parse(value: &[u8]) -> Stored<'_> {
    let Some(rest) = value.strip_prefix(b"k8s:enc:") else { return Stored::Clear };
    encrypted(rest).unwrap_or(Stored::Unknown)
}

fn encrypted(rest: &[u8]) -> Option<Stored<'_>> {
    let (kind, rest) = field(rest)?;
    let (api, rest) = field(rest)?;
    let (name, rest) = field(rest)?;
    match (kind, api) {
        ("kms", "v2") => {
            let (key_id, wrapped) = encrypted_object(rest)?;
            Some(Stored::Kms { api: "v2", provider: name, key_id: Some(key_id), wrapped })
        }
        ("kms", "v1") => {
            let (length, rest) = rest.split_first_chunk::<2>()?;
            let wrapped = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
            Some(Stored::Kms { api: "v1", provider: name, key_id: None, wrapped })
        }
        ("aescbc" | "aesgcm" | "secretbox", "v1") => {
            Some(Stored::Local { provider: kind, key: name })
        }
        _ => None,
    }
}

/// Up to the next colon.
fn field(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let end = bytes.iter().take(MAX_NAME).position(|b| *b == b':')?;
    Some((std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 1..]))
}

/// keyID and encryptedDEKSource.
fn encrypted_object(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (mut key_id, mut wrapped) = (None, None);
    protobuf::read(bytes, |number, value| {
        match number {
            2 if value.bytes()?.len() <= MAX_NAME => key_id = value.text(),
            3 => wrapped = Some(value.bytes()?),
            _ => {}
        }
        Some(())
    })?;
    Some((key_id?, wrapped?))
}

impl Stored<'_> {
    /// What it is counted under.
    pub fn under(&self) -> Under {
        match *self {
            Self::Clear => Under::only(Under::CLEAR),
            Self::Unknown => Under::only("unknown"),
            Self::Local { provider, key } => {
                Under { key: Some(key.to_owned()), ..Under::only(provider) }
            }
            Self::Kms { api, provider, key_id, wrapped } => {
                let ours = PluginBlob::parse(wrapped).ok();
                let ours = ours.as_ref().map(PluginBlob::key);
                Under {
                    provider: format!("kms {api} {provider}"),
                    key: key_id.map(str::to_owned),
                    key_version: ours.map(|key| key.key_version),
                    cluster: ours.map(|key| key.cluster),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_told_apart() {
        assert_eq!(parse(b"k8s\0\x0a"), Stored::Clear);
        assert_eq!(parse(b""), Stored::Clear);
        assert_eq!(parse(b"{\"kind\":\"Secret\"}"), Stored::Clear);
        let local = Stored::Local { provider: "aescbc", key: "k1" };
        assert_eq!(parse(b"k8s:enc:aescbc:v1:k1:\x01\x02"), local);
        let v2 = parse(b"k8s:enc:kms:v2:a:\x0a\x02hi\x12\x03kid\x1a\x01s\x28\x01");
        let kms = |api, key_id, wrapped| Stored::Kms { api, provider: "a", key_id, wrapped };
        assert_eq!(v2, kms("v2", Some("kid"), b"s"));
        assert_eq!(parse(b"k8s:enc:kms:v1:a:\x00\x02xydata"), kms("v1", None, b"xy"));
        for odd in [
            &b"k8s:enc:"[..],
            b"k8s:enc:new:v1:a:",
            b"k8s:enc:kms:v3:a:",
            b"k8s:enc:kms:v2:a:\x0a\xff",
            b"k8s:enc:kms:v1:a:\x00\x09x",
            b"k8s:enc:kms:v2:a:\x12\x03kid",
        ] {
            assert_eq!(parse(odd), Stored::Unknown);
        }
        assert_eq!(parse(b"k8s:enc:aescbc:v1:k1:x").under().key.as_deref(), Some("k1"));
        assert!(parse(b"{}").under().is_clear());
    }
}
