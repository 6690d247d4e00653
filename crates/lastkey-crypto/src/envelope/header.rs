//! The header: everything before the payload, and the keys that come from it.

use std::io::{self, Read};

pub(super) use super::slots::BLOCK_LEN;
use super::{
    PayloadError,
    held::Room,
    slots::{MAX_BLOCKS, Slots},
    stanza::{MAX_STANZAS, Stanza, Stanzas},
};
use crate::{
    Algorithm, EncryptionContext, KeyMaterial,
    cipher::MessageKey,
    context::FILE_SALT_NAME,
    mac::{self, sha256},
};

pub(super) const SALT_LEN: usize = 32;
/// Fuzzing, chunks are of 64 bytes, so that the payload of a small input has many.
#[expect(unexpected_cfgs, reason = "set by cargo-fuzz")]
pub(super) const CHUNK_BITS: u8 = if cfg!(fuzzing) { 6 } else { 20 };
const MAGIC: [u8; 8] = *b"LASTKEY\0";
/// HKDF-SHA256, AES-256-GCM, STREAM.
const SUITE: u8 = 1;
const COMMITMENT_LEN: usize = 32;
/// Magic and choices.
const START_LEN: usize = 12;
const FIXED_LEN_1: usize = START_LEN + SALT_LEN;
const FIXED_LEN_2: usize = START_LEN + 2 * SALT_LEN;

/// A file is no envelope, or none this release can read.
#[derive(Debug, thiserror::Error)]
pub enum HeaderError {
    /// Does not begin with the magic.
    #[error("this is not a file that Lastkey encrypted")]
    NotAnEnvelope,
    /// A format this release does not know.
    #[error("the file has envelope version {0}; this release knows versions 1 and 2")]
    UnknownVersion(u8),
    /// A suite, chunk size or flag this release does not know.
    #[error("the file uses an envelope suite that this release does not know")]
    UnknownSuite,
    /// Ends inside the header.
    #[error("the file ends inside its header")]
    Truncated,
    /// No stanza, or more than [`MAX_STANZAS`].
    #[error("the file's header must name between 1 and {MAX_STANZAS} keys")]
    StanzaCount,
    /// A wrapped data key of no bytes, or of more than [`super::MAX_WRAPPED_LEN`].
    #[error("a wrapped data key in the file's header has an impossible length")]
    StanzaLength,
    /// A stanza does not begin with a key id.
    #[error("the file's header names a key that is no key id")]
    NoKeyId,
    /// Bytes between the parts of the header that are not zero, or slots of an impossible size.
    #[error("the file's header is damaged")]
    Damaged,
    /// Neither slot holds a whole list of stanzas.
    #[error("the file's header is damaged: it names no key any more")]
    NoList,
    /// The source could not be read.
    #[error("the file could not be read")]
    Io(#[source] io::Error),
}

/// Everything before the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    fixed: Fixed,
    commitment: [u8; COMMITMENT_LEN],
    stanzas: Stanzas,
    /// Where the stanzas lie; nothing if they stand in line.
    slots: Option<Slots>,
}

/// Bytes to be written over a part of a header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Where in the file.
    pub offset: u64,
    /// What to write there.
    pub bytes: Vec<u8>,
}

impl Header {
    /// A header for a new file.
    pub(super) fn new(fixed: Fixed, data_key: &KeyMaterial, stanzas: Stanzas, room: Room) -> Self {
        let commitment = fixed.commitment(data_key);
        let slots = match room {
            Room::Spare => Slots::for_list(stanzas.encoded_len()),
            Room::Tight => None,
        };
        Self { fixed, commitment, stanzas, slots }
    }

    /// Reads a header from the beginning of a file, and nothing beyond it.
    ///
    /// # Errors
    ///
    /// Every [`HeaderError`]. At most some 260 KiB are held, whatever the file claims.
    pub fn read(source: &mut impl Read) -> Result<Self, HeaderError> {
        let fixed = Fixed::read(source)?;
        let commitment = read_array(source)?;
        let blocks = match fixed {
            Fixed::One(_) => 0,
            Fixed::Two(_) => {
                let [blocks] = read_array(source)?;
                blocks
            }
        };
        let (slots, stanzas) = match blocks {
            0 => (None, Stanzas::read(source)?),
            1..=MAX_BLOCKS => {
                let (slots, stanzas) = read_slots(source, blocks, &fixed)?;
                (Some(slots), stanzas)
            }
            _ => return Err(HeaderError::Damaged),
        };
        Ok(Self { fixed, commitment, stanzas, slots })
    }

    /// The bytes of the header.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.fixed.bytes().to_vec();
        out.extend_from_slice(&self.commitment);
        if matches!(self.fixed, Fixed::Two(_)) {
            out.push(self.slots.map_or(0, Slots::blocks));
        }
        match self.slots {
            None => self.stanzas.encode(&mut out),
            Some(slots) => {
                out.resize(BLOCK_LEN, 0);
                out.extend_from_slice(&slots.encode(&self.stanzas, &self.fixed.hash()));
            }
        }
        out
    }

    /// The same file for other readers, to be written in front of a copy of its payload.
    ///
    /// A file of format 1 stays one. Any other gets room for [`Header::replace`].
    ///
    /// # Errors
    ///
    /// [`HeaderError::StanzaCount`].
    pub fn with_stanzas(self, stanzas: Vec<Stanza>, room: Room) -> Result<Self, HeaderError> {
        let stanzas = Stanzas::new(stanzas)?;
        let slots = match (&self.fixed, room) {
            (Fixed::Two(_), Room::Spare) => Slots::for_list(stanzas.encoded_len()),
            _ => None,
        };
        Ok(Self { stanzas, slots, ..self })
    }

    /// The same file for other readers, in place: what to write over it, in this order and each
    /// synced before the next. Whatever interrupts that leaves a header with the old stanzas or
    /// with the new ones.
    ///
    /// Nothing comes back, and nothing changes, if the header has no room: then the file has to be
    /// copied behind [`Header::with_stanzas`].
    ///
    /// # Errors
    ///
    /// [`HeaderError::StanzaCount`].
    pub fn replace(&mut self, stanzas: Vec<Stanza>) -> Result<Option<[Patch; 2]>, HeaderError> {
        let stanzas = Stanzas::new(stanzas)?;
        let binding = self.fixed.hash();
        let patches =
            self.slots.as_mut().and_then(|slots| slots.replace(&stanzas, binding.as_slice()));
        if patches.is_some() {
            self.stanzas = stanzas;
        }
        Ok(patches)
    }

    /// The ways to the data key, in the order of the file.
    pub fn stanzas(&self) -> &[Stanza] {
        self.stanzas.as_slice()
    }

    /// The encryption context that each wrapped data key opens in.
    pub fn context(&self) -> EncryptionContext {
        salt_context(self.fixed.key_salt())
    }

    /// The version of the format, 1 or 2.
    pub fn version(&self) -> u8 {
        self.fixed.version()
    }

    /// Whether `data_key` is the one this file was made with, in constant time.
    ///
    /// # Errors
    ///
    /// [`PayloadError::WrongDataKey`] if it is not.
    pub fn check(&self, data_key: &KeyMaterial) -> Result<(), PayloadError> {
        match mac::equal(&self.fixed.commitment(data_key), &self.commitment) {
            true => Ok(()),
            false => Err(PayloadError::WrongDataKey),
        }
    }

    /// The key of the payload's chunks.
    pub(super) fn payload_key(&self, data_key: &KeyMaterial) -> MessageKey {
        let info = self.fixed.info("payload AES-256-GCM");
        MessageKey::derive(Algorithm::Aes256, data_key.expose(), self.fixed.file_salt(), &info)
    }
}

/// The part that never changes, and that the payload's key depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fixed {
    /// One salt, for the file and in its data key's context.
    One([u8; FIXED_LEN_1]),
    /// The file's salt, then the one in its data key's context, which other files may share.
    Two([u8; FIXED_LEN_2]),
}

impl Fixed {
    pub(super) fn one(salt: &[u8; SALT_LEN]) -> Self {
        let mut fixed = [0; FIXED_LEN_1];
        fixed[..START_LEN].copy_from_slice(&start(1));
        fixed[START_LEN..].copy_from_slice(salt);
        Self::One(fixed)
    }

    pub(super) fn two(file_salt: &[u8; SALT_LEN], key_salt: &[u8; SALT_LEN]) -> Self {
        let mut fixed = [0; FIXED_LEN_2];
        fixed[..START_LEN].copy_from_slice(&start(2));
        fixed[START_LEN..FIXED_LEN_1].copy_from_slice(file_salt);
        fixed[FIXED_LEN_1..].copy_from_slice(key_salt);
        Self::Two(fixed)
    }

    fn read(source: &mut impl Read) -> Result<Self, HeaderError> {
        // The magic first: a short file of another kind is no truncated envelope.
        let magic: [u8; 8] = match read_array(source) {
            Err(HeaderError::Truncated) => return Err(HeaderError::NotAnEnvelope),
            magic => magic?,
        };
        if magic != MAGIC {
            return Err(HeaderError::NotAnEnvelope);
        }
        match read_array(source)? {
            [1, SUITE, CHUNK_BITS, 0] => Ok(Self::one(&read_array(source)?)),
            [2, SUITE, CHUNK_BITS, 0] => {
                let file_salt = read_array(source)?;
                Ok(Self::two(&file_salt, &read_array(source)?))
            }
            [1 | 2, ..] => Err(HeaderError::UnknownSuite),
            [other, ..] => Err(HeaderError::UnknownVersion(other)),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::One(bytes) => bytes,
            Self::Two(bytes) => bytes,
        }
    }

    fn version(&self) -> u8 {
        match self {
            Self::One(_) => 1,
            Self::Two(_) => 2,
        }
    }

    fn file_salt(&self) -> &[u8] {
        &self.bytes()[START_LEN..FIXED_LEN_1]
    }

    fn key_salt(&self) -> &[u8] {
        match self {
            Self::One(bytes) => &bytes[START_LEN..],
            Self::Two(bytes) => &bytes[FIXED_LEN_1..],
        }
    }

    fn hash(&self) -> [u8; 32] {
        sha256(&[self.bytes()])
    }

    /// The HKDF info for what a key is for.
    fn info(&self, purpose: &str) -> Vec<u8> {
        let label = format!("lastkey file {} {purpose}", self.version());
        [label.as_bytes(), &self.hash()].concat()
    }

    fn commitment(&self, data_key: &KeyMaterial) -> [u8; COMMITMENT_LEN] {
        let mut commitment = [0; COMMITMENT_LEN];
        let info = self.info("commitment");
        mac::hkdf_sha256(data_key.expose(), self.file_salt(), &info, &mut commitment);
        commitment
    }
}

fn start(version: u8) -> [u8; START_LEN] {
    let mut start = [0; START_LEN];
    start[..8].copy_from_slice(&MAGIC);
    start[8..].copy_from_slice(&[version, SUITE, CHUNK_BITS, 0]);
    start
}

/// The context that a data key is wrapped in.
pub(super) fn salt_context(salt: &[u8]) -> EncryptionContext {
    EncryptionContext::from_pairs([(FILE_SALT_NAME.to_owned(), hex::encode(salt))])
        .expect("one short pair")
}

/// Reads what follows the size of the slots: zeros up to the block's end, and both slots.
fn read_slots(
    source: &mut impl Read,
    blocks: u8,
    fixed: &Fixed,
) -> Result<(Slots, Stanzas), HeaderError> {
    let mut gap = [0; BLOCK_LEN - FIXED_LEN_2 - COMMITMENT_LEN - 1];
    read_exact(source, &mut gap)?;
    if gap.iter().any(|byte| *byte != 0) {
        return Err(HeaderError::Damaged);
    }
    let mut both = vec![0; 2 * BLOCK_LEN * usize::from(blocks)];
    read_exact(source, &mut both)?;
    Slots::parse(blocks, &both, &fixed.hash())
}

pub(super) fn read_array<const N: usize>(source: &mut impl Read) -> Result<[u8; N], HeaderError> {
    let mut bytes = [0; N];
    read_exact(source, &mut bytes)?;
    Ok(bytes)
}

pub(super) fn read_exact(source: &mut impl Read, bytes: &mut [u8]) -> Result<(), HeaderError> {
    source.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => HeaderError::Truncated,
        _ => HeaderError::Io(error),
    })
}
