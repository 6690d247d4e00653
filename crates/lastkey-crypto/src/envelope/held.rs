//! A data key in hand, and the files that are made with it.
//!
//! A held key encrypts any number of files without asking anybody: each file draws a salt of its
//! own, and its payload key comes from both. How long a key may be held is its owner's decision.

use super::{
    HeaderError, PayloadError,
    header::{Fixed, Header, SALT_LEN, salt_context},
    stanza::{Stanza, Stanzas},
};
use crate::{EncryptionContext, Entropy, KeyMaterial, cipher::MessageKey};

/// The salt of a data key about to be made: its wrappings are bound to it.
///
/// It is used up by [`HeldKey::new`], so that no two data keys are mistaken for each other.
#[derive(Debug)]
pub struct KeySalt([u8; SALT_LEN]);

impl KeySalt {
    /// Draws a fresh salt.
    pub fn random(entropy: &dyn Entropy) -> Self {
        let mut salt = [0; SALT_LEN];
        entropy.fill(&mut salt);
        Self(salt)
    }

    /// The encryption context to have the data key made in, and to wrap it in for others.
    pub fn context(&self) -> EncryptionContext {
        salt_context(&self.0)
    }
}

/// Whether a header gets room for other stanzas than its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// At least 12 KiB of header, in which stanzas can be replaced in place. For large files.
    Spare,
    /// No byte more than needed. For small files, which are quickly copied.
    Tight,
}

/// A data key, in locked memory, with its wrappings.
#[derive(Debug)]
pub struct HeldKey {
    data_key: KeyMaterial,
    salt: [u8; SALT_LEN],
    stanzas: Stanzas,
}

impl HeldKey {
    /// Takes a data key that the KMS made in the context of `salt` ([`KeySalt::context`]);
    /// `stanzas` are its wrappings.
    ///
    /// # Errors
    ///
    /// [`HeaderError::StanzaCount`] for no wrapping, or too many.
    #[expect(clippy::needless_pass_by_value, reason = "a salt is used once")]
    pub fn new(
        salt: KeySalt,
        data_key: KeyMaterial,
        stanzas: Vec<Stanza>,
    ) -> Result<Self, HeaderError> {
        Ok(Self { data_key, salt: salt.0, stanzas: Stanzas::new(stanzas)? })
    }

    /// Begins a file of its own salt.
    pub fn new_file(&self, room: Room, entropy: &dyn Entropy) -> NewFile {
        let mut file_salt = [0; SALT_LEN];
        entropy.fill(&mut file_salt);
        let fixed = Fixed::two(&file_salt, &self.salt);
        NewFile::of(Header::new(fixed, &self.data_key, self.stanzas.clone(), room), &self.data_key)
    }

    /// The data key; for instance to see whether another file's header is committed to it
    /// ([`Header::check`]).
    pub fn data_key(&self) -> &KeyMaterial {
        &self.data_key
    }
}

/// A file about to be encrypted: its header, and the key of its payload.
///
/// It cannot be copied, and [`super::Encryptor`] and [`super::Pipeline`] use it up: two payloads
/// under one key would share their nonces.
pub struct NewFile {
    pub(super) header: Header,
    pub(super) key: MessageKey,
}

impl NewFile {
    /// A file in format 1, which has one salt for file and data key, and no room. It is read for
    /// ever and written for test vectors alone.
    ///
    /// # Errors
    ///
    /// [`HeaderError::StanzaCount`].
    #[expect(clippy::needless_pass_by_value, reason = "a salt is used once")]
    pub fn in_format_1(
        salt: KeySalt,
        data_key: &KeyMaterial,
        stanzas: Vec<Stanza>,
    ) -> Result<Self, HeaderError> {
        let stanzas = Stanzas::new(stanzas)?;
        Ok(Self::of(Header::new(Fixed::one(&salt.0), data_key, stanzas, Room::Tight), data_key))
    }

    /// What the file begins with.
    pub fn header(&self) -> &Header {
        &self.header
    }

    fn of(header: Header, data_key: &KeyMaterial) -> Self {
        let key = header.payload_key(data_key);
        Self { header, key }
    }
}

impl std::fmt::Debug for NewFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewFile").field("header", &self.header).finish_non_exhaustive()
    }
}

/// The key of one file's payload, to decrypt it with.
pub struct PayloadKey(pub(super) MessageKey);

impl std::fmt::Debug for PayloadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PayloadKey(..)")
    }
}

impl Header {
    /// The key of the payload, if `data_key` is this file's.
    ///
    /// # Errors
    ///
    /// [`PayloadError::WrongDataKey`] if it is not.
    pub fn open(&self, data_key: &KeyMaterial) -> Result<PayloadKey, PayloadError> {
        self.check(data_key)?;
        Ok(PayloadKey(self.payload_key(data_key)))
    }
}
