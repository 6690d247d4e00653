//! Stanzas: the ways to a file's data key, alone and in lists.

use std::io::Read;

use super::header::{HeaderError, read_array, read_exact};
use crate::{KeyId, ids::ID_TEXT_LEN};

/// Most stanzas a header may carry.
pub const MAX_STANZAS: usize = 64;
/// Longest wrapped data key, in bytes.
pub const MAX_WRAPPED_LEN: usize = 4096;

/// One way to the data key: wrapped under one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stanza {
    key_id: KeyId,
    wrapped: Vec<u8>,
}

impl Stanza {
    /// A data key that the KMS wrapped under `key_id`, as bytes (not base64).
    ///
    /// # Errors
    ///
    /// [`HeaderError::StanzaLength`] if it is empty or over [`MAX_WRAPPED_LEN`].
    pub fn new(key_id: KeyId, wrapped: Vec<u8>) -> Result<Self, HeaderError> {
        match wrapped.len() {
            1..=MAX_WRAPPED_LEN => Ok(Self { key_id, wrapped }),
            _ => Err(HeaderError::StanzaLength),
        }
    }

    /// The key that wrapped the data key.
    pub fn key_id(&self) -> KeyId {
        self.key_id
    }

    /// The wrapped data key.
    pub fn wrapped(&self) -> &[u8] {
        &self.wrapped
    }
}

/// Between 1 and [`MAX_STANZAS`] stanzas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stanzas(Vec<Stanza>);

impl Stanzas {
    pub(super) fn new(stanzas: Vec<Stanza>) -> Result<Self, HeaderError> {
        match stanzas.len() {
            1..=MAX_STANZAS => Ok(Self(stanzas)),
            _ => Err(HeaderError::StanzaCount),
        }
    }

    /// Reads a list and nothing beyond it; holds at most [`MAX_STANZAS`] · [`MAX_WRAPPED_LEN`]
    /// bytes, whatever it claims.
    pub(super) fn read(source: &mut impl Read) -> Result<Self, HeaderError> {
        let [count] = read_array(source)?;
        if !(1..=MAX_STANZAS).contains(&usize::from(count)) {
            return Err(HeaderError::StanzaCount);
        }
        (0..count).map(|_| read_stanza(source)).collect::<Result<_, _>>().map(Self)
    }

    /// A count of one byte, then each stanza.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(u8::try_from(self.0.len()).expect("at most MAX_STANZAS"));
        for stanza in &self.0 {
            let len = u16::try_from(stanza.wrapped.len()).expect("at most MAX_WRAPPED_LEN");
            out.extend_from_slice(&stanza.key_id.text());
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&stanza.wrapped);
        }
    }

    /// How many bytes [`Stanzas::encode`] makes.
    pub(super) fn encoded_len(&self) -> usize {
        1 + self.0.iter().map(|stanza| ID_TEXT_LEN + 2 + stanza.wrapped.len()).sum::<usize>()
    }

    pub(super) fn as_slice(&self) -> &[Stanza] {
        &self.0
    }
}

fn read_stanza(source: &mut impl Read) -> Result<Stanza, HeaderError> {
    let key_id: [u8; ID_TEXT_LEN] = read_array(source)?;
    let key_id = KeyId::from_canonical(&key_id).map_err(|_| HeaderError::NoKeyId)?;
    let len = u16::from_be_bytes(read_array(source)?);
    if !(1..=MAX_WRAPPED_LEN).contains(&usize::from(len)) {
        return Err(HeaderError::StanzaLength);
    }
    let mut wrapped = vec![0; usize::from(len)];
    read_exact(source, &mut wrapped)?;
    Stanza::new(key_id, wrapped)
}
