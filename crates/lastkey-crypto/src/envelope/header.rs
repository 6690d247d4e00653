//! The header: everything before the payload, and the keys that come from it.

use std::io::{self, Read};

use crate::{
    Algorithm, EncryptionContext, Entropy, KeyId, KeyMaterial,
    cipher::MessageKey,
    context::FILE_SALT_NAME,
    ids::ID_TEXT_LEN,
    mac::{self, sha256},
};

/// Most stanzas a header may carry.
pub const MAX_STANZAS: usize = 64;
/// Longest wrapped data key, in bytes.
pub const MAX_WRAPPED_LEN: usize = 4096;

const MAGIC: [u8; 8] = *b"LASTKEY\0";
const VERSION: u8 = 1;
/// HKDF-SHA256, AES-256-GCM, STREAM.
const SUITE: u8 = 1;
pub(super) const CHUNK_BITS: u8 = 20;
const SALT_LEN: usize = 32;
const COMMITMENT_LEN: usize = 32;
const FIXED_LEN: usize = 12 + SALT_LEN;

/// The salt of a file about to be encrypted.
///
/// It is used up by [`super::Encryptor::new`] and cannot be copied: two files under one salt and
/// one data key would share their nonces.
#[derive(Debug)]
pub struct FileSalt([u8; SALT_LEN]);

impl FileSalt {
    /// Draws a fresh salt.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut salt = [0; SALT_LEN];
        entropy.fill(&mut salt);
        Self(salt)
    }

    /// The encryption context to have the file's data key made in.
    pub fn context(&self) -> EncryptionContext {
        salt_context(&self.0)
    }
}

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

/// A file is no envelope, or none this release can read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Does not begin with the magic.
    #[error("this is not a file that Lastkey encrypted")]
    NotAnEnvelope,
    /// A format this release does not know.
    #[error("the file has envelope version {0}; this release knows version 1")]
    UnknownVersion(u8),
    /// A suite, chunk size or flag this release does not know.
    #[error("the file uses an envelope suite that this release does not know")]
    UnknownSuite,
    /// Ends inside the header.
    #[error("the file ends inside its header")]
    Truncated,
    /// No stanza, or more than [`MAX_STANZAS`].
    #[error("the file's header must name between 1 and 64 keys")]
    StanzaCount,
    /// A wrapped data key of no bytes, or of more than [`MAX_WRAPPED_LEN`].
    #[error("a wrapped data key in the file's header has an impossible length")]
    StanzaLength,
    /// A stanza does not begin with a key id.
    #[error("the file's header names a key that is no key id")]
    NoKeyId,
    /// The source could not be read.
    #[error("the file could not be read")]
    Io(#[source] io::Error),
}

/// Everything before the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    fixed: [u8; FIXED_LEN],
    commitment: [u8; COMMITMENT_LEN],
    stanzas: Vec<Stanza>,
}

impl Header {
    /// A header for a new file.
    pub(super) fn new(
        salt: &FileSalt,
        data_key: &KeyMaterial,
        stanzas: Vec<Stanza>,
    ) -> Result<Self, HeaderError> {
        let mut fixed = [0; FIXED_LEN];
        fixed[..8].copy_from_slice(&MAGIC);
        fixed[8..12].copy_from_slice(&[VERSION, SUITE, CHUNK_BITS, 0]);
        fixed[12..].copy_from_slice(&salt.0);
        let commitment = commitment(data_key, &fixed);
        Self { fixed, commitment, stanzas: Vec::new() }.with_stanzas(stanzas)
    }

    /// Reads a header from the beginning of a file, and nothing beyond it.
    ///
    /// # Errors
    ///
    /// Every [`HeaderError`]. At most `MAX_STANZAS` · `MAX_WRAPPED_LEN` bytes are held, whatever
    /// the file claims.
    pub fn read(source: &mut impl Read) -> Result<Self, HeaderError> {
        let fixed = read_fixed(source)?;
        let commitment = read_array(source)?;
        let [count] = read_array(source)?;
        if !(1..=MAX_STANZAS).contains(&usize::from(count)) {
            return Err(HeaderError::StanzaCount);
        }
        let stanzas = (0..count).map(|_| read_stanza(source)).collect::<Result<_, _>>()?;
        Ok(Self { fixed, commitment, stanzas })
    }

    /// The same file for other readers: the payload that follows stays as it is.
    ///
    /// # Errors
    ///
    /// [`HeaderError::StanzaCount`].
    pub fn with_stanzas(self, stanzas: Vec<Stanza>) -> Result<Self, HeaderError> {
        match stanzas.len() {
            1..=MAX_STANZAS => Ok(Self { stanzas, ..self }),
            _ => Err(HeaderError::StanzaCount),
        }
    }

    /// The bytes of the header.
    pub fn encode(&self) -> Vec<u8> {
        let stanzas: usize =
            self.stanzas.iter().map(|stanza| ID_TEXT_LEN + 2 + stanza.wrapped.len()).sum();
        let mut out = Vec::with_capacity(FIXED_LEN + COMMITMENT_LEN + 1 + stanzas);
        out.extend_from_slice(&self.fixed);
        out.extend_from_slice(&self.commitment);
        out.push(u8::try_from(self.stanzas.len()).expect("at most MAX_STANZAS"));
        for stanza in &self.stanzas {
            let len = u16::try_from(stanza.wrapped.len()).expect("at most MAX_WRAPPED_LEN");
            out.extend_from_slice(&stanza.key_id.text());
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&stanza.wrapped);
        }
        out
    }

    /// The ways to the data key, in the order of the file.
    pub fn stanzas(&self) -> &[Stanza] {
        &self.stanzas
    }

    /// The encryption context that each wrapped data key opens in.
    pub fn context(&self) -> EncryptionContext {
        salt_context(self.salt())
    }

    /// Whether `data_key` is the one this file was made with, in constant time.
    pub(super) fn is_committed_to(&self, data_key: &KeyMaterial) -> bool {
        mac::equal(&commitment(data_key, &self.fixed), &self.commitment)
    }

    /// The key of the payload's chunks.
    pub(super) fn payload_key(&self, data_key: &KeyMaterial) -> MessageKey {
        let info = [b"lastkey file 1 payload AES-256-GCM", &sha256(&[&self.fixed])[..]].concat();
        MessageKey::derive(Algorithm::Aes256, data_key.expose(), self.salt(), &info)
    }

    fn salt(&self) -> &[u8] {
        &self.fixed[12..]
    }
}

fn commitment(data_key: &KeyMaterial, fixed: &[u8; FIXED_LEN]) -> [u8; COMMITMENT_LEN] {
    let info = [b"lastkey file 1 commitment", &sha256(&[fixed])[..]].concat();
    let mut commitment = [0; COMMITMENT_LEN];
    mac::hkdf_sha256(data_key.expose(), &fixed[12..], &info, &mut commitment);
    commitment
}

fn salt_context(salt: &[u8]) -> EncryptionContext {
    EncryptionContext::from_pairs([(FILE_SALT_NAME.to_owned(), hex::encode(salt))])
        .expect("one short pair")
}

fn read_fixed(source: &mut impl Read) -> Result<[u8; FIXED_LEN], HeaderError> {
    // The magic first: a short file of another kind is no truncated envelope.
    let magic: [u8; 8] = match read_array(source) {
        Err(HeaderError::Truncated) => return Err(HeaderError::NotAnEnvelope),
        magic => magic?,
    };
    if magic != MAGIC {
        return Err(HeaderError::NotAnEnvelope);
    }
    let choices: [u8; 4] = read_array(source)?;
    match choices {
        [VERSION, SUITE, CHUNK_BITS, 0] => {}
        [VERSION, ..] => return Err(HeaderError::UnknownSuite),
        [other, ..] => return Err(HeaderError::UnknownVersion(other)),
    }
    let salt: [u8; SALT_LEN] = read_array(source)?;
    let mut fixed = [0; FIXED_LEN];
    fixed[..8].copy_from_slice(&magic);
    fixed[8..12].copy_from_slice(&choices);
    fixed[12..].copy_from_slice(&salt);
    Ok(fixed)
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

fn read_array<const N: usize>(source: &mut impl Read) -> Result<[u8; N], HeaderError> {
    let mut bytes = [0; N];
    read_exact(source, &mut bytes)?;
    Ok(bytes)
}

fn read_exact(source: &mut impl Read, bytes: &mut [u8]) -> Result<(), HeaderError> {
    source.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => HeaderError::Truncated,
        _ => HeaderError::Io(error),
    })
}
