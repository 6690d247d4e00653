//! What a kube-apiserver with KMS v2 leaves in etcd.
//!
//! ```text
//! k8s:enc:kms:v2:<provider>:  then protobuf EncryptedObject
//!   1 encryptedData  2 keyID  3 encryptedDEKSource  4 annotations  5 encryptedDEKSourceType
//! ```

/// Why a stored value is not one of KMS v2.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// The prefix is another one.
    #[error("not under KMS v2: it starts with {start:?}")]
    Prefix {
        /// Its first bytes.
        start: String,
    },
    /// The protobuf message is broken.
    #[error("the encrypted object is malformed")]
    Malformed,
}

/// One encrypted object, as far as tests look into it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Encrypted {
    /// The provider's name from the prefix.
    pub provider: String,
    /// The key_id that the plugin answered with.
    pub key_id: String,
    /// The seed as the plugin encrypted it.
    pub seed: Vec<u8>,
    /// The object's own ciphertext.
    pub data: Vec<u8>,
}

impl Encrypted {
    /// Reads a value from etcd.
    ///
    /// # Errors
    /// When it is anything but an object under KMS v2.
    pub fn parse(value: &[u8]) -> Result<Self, StoredError> {
        let start = || String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
        let rest = value.strip_prefix(b"k8s:enc:kms:v2:");
        let rest = rest.ok_or_else(|| StoredError::Prefix { start: start() })?;
        let colon = rest.iter().position(|b| *b == b':');
        let colon = colon.ok_or_else(|| StoredError::Prefix { start: start() })?;
        let provider = String::from_utf8_lossy(&rest[..colon]).into_owned();
        let mut object = Self { provider, ..Self::default() };
        object.read_fields(&rest[colon + 1..]).ok_or(StoredError::Malformed)?;
        Ok(object)
    }

    fn read_fields(&mut self, mut rest: &[u8]) -> Option<()> {
        while !rest.is_empty() {
            let tag = varint(&mut rest)?;
            match (tag >> 3, tag & 7) {
                (_, 0) => {
                    varint(&mut rest)?;
                }
                (field, 2) => {
                    let length = usize::try_from(varint(&mut rest)?).ok()?;
                    let (bytes, after) = rest.split_at_checked(length)?;
                    rest = after;
                    match field {
                        1 => self.data = bytes.to_vec(),
                        2 => self.key_id = String::from_utf8(bytes.to_vec()).ok()?,
                        3 => self.seed = bytes.to_vec(),
                        _ => {}
                    }
                }
                _ => return None,
            }
        }
        Some(())
    }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_an_object() {
        let raw = b"k8s:enc:kms:v2:lastkey:\x0a\x02hi\x12\x03kid\x1a\x01s\x28\x01";
        let object = Encrypted::parse(raw).unwrap();
        assert_eq!((object.provider.as_str(), object.key_id.as_str()), ("lastkey", "kid"));
        assert_eq!(
            (object.data.as_slice(), object.seed.as_slice()),
            (b"hi".as_slice(), b"s".as_slice())
        );
        assert!(Encrypted::parse(&raw[..raw.len() - 3]).is_err());
        assert!(Encrypted::parse(b"k8s:enc:identity:").is_err());
    }
}
