//! The file envelope: what `lastkey encrypt` writes and `lastkey decrypt` reads.
//!
//! A data key made by the KMS encrypts the file; the data key, wrapped under one or more keys,
//! travels in front of it. Changing who can read the file replaces those wrappings and leaves the
//! payload as it is.
//!
//! ```text
//! offset  bytes                                            meaning
//! 0000    4c 41 53 54 4b 45 59 00                          magic "LASTKEY", 0      ┐
//! 0008    02                                               format version          │
//! 0009    01                                               suite (below)           │ the fixed
//! 000a    14                                               chunks of 2²⁰ bytes     │ header:
//! 000b    00                                               zero                    │ 76 bytes,
//! 000c    00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  file salt, 32 random    │ hashed
//! 001c    10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f                          │
//! 002c    20 21 22 23 24 25 26 27 28 29 2a 2b 2c 2d 2e 2f  key salt, 32 random     │
//! 003c    30 31 32 33 34 35 36 37 38 39 3a 3b 3c 3d 3e 3f                          ┘
//! 004c    …                                                key commitment, 32 bytes
//! 006c    00                                               size of a slot, in blocks of 4096
//! 006d    01                                               how many stanzas, 1 to 64
//! 006e    30 62 39 66 32 61 36 65 2d …                     key id, 36 ASCII        ┐ for each
//! 0092    00 7c                                            length, 16 bits         │ stanza
//! 0094    …                                                wrapped data key        ┘
//! 0110    …                                                payload, chunk by chunk
//! ```
//!
//! **Room.** If the size of a slot is not 0 but n, at most 16, zeros follow up to offset 4096; then
//! two slots of n · 4096 bytes, then the payload. A slot is blank, or holds a list of stanzas:
//!
//! ```text
//! 0000    00 00 00 00 00 00 00 01                          generation, from 1
//! 0008    01                                               how many stanzas, 1 to 64
//! 0009    …                                                stanzas, then zeros
//! 0fe0    …                                                checksum, the slot's last 32 bytes
//! ```
//!
//! The checksum is SHA-256 of `lastkey file 2 stanzas` ‖ h ‖ the slot before it. Of two slots whose
//! checksums are right the one of the higher generation counts; at least one must be. So stanzas
//! are replaced in place: the new list goes into the other slot, is synced, and then the old slot
//! is blanked. A large file gets room (n = 1 for up to a dozen stanzas), a small one does not.
//!
//! **Keys.** With `h` = SHA-256 of the fixed header, HKDF-SHA256 of the data key and the file salt
//! gives the payload key (info = `lastkey file 2 payload AES-256-GCM` ‖ h) and the commitment
//! (info = `lastkey file 2 commitment` ‖ h). The stored commitment is compared before anything is
//! decrypted, so that no file opens under two data keys. Files may share a data key ([`HeldKey`]):
//! each has a file salt, and so a payload key, of its own.
//!
//! **Stanzas** lie outside that hash. The encryption context of each wrapped data key is
//! `{"lastkey:file-salt": hex(key salt)}`, so a stanza taken from a file with another data key does
//! not open here.
//!
//! **Payload** (suite 1) is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015) over AES-256-GCM:
//! chunks of 1 MiB, each followed by its tag of 16 bytes. The nonce of a chunk is its number in 11
//! bytes, big-endian, then 1 for the last chunk and 0 for the others; there is no associated
//! data. The last chunk may be shorter; it is empty only if the whole file is. A chunk that is
//! changed, moved, repeated, missing, or from another file does not open, and neither does the
//! first chunk after a cut.
//!
//! **Format 1** is read for ever. Its fixed header has no key salt (44 bytes; the file salt is also
//! the context's), the labels say `lastkey file 1`, and the count of the stanzas follows the
//! commitment at once: it has no room.
//!
//! # Encrypting
//!
//! ```
//! use std::io::Write;
//! use lastkey_crypto::{KeyId, KeyMaterial, SystemEntropy};
//! use lastkey_crypto::envelope::{Decryptor, Encryptor, Header, HeldKey, KeySalt, Room, Stanza};
//!
//! // 1. Draw the key salt. 2. Have a data key made in its context. 3. Encrypt, as many files as
//! // you like; nobody is asked any more.
//! let salt = KeySalt::random(&SystemEntropy);
//! let context = salt.context();                       // goes to GenerateDataKey
//! # let _ = context;
//! # let data_key = KeyMaterial::generate(32, &SystemEntropy);
//! # let (key_id, wrapped) = (KeyId::random(&SystemEntropy), vec![7; 112]);
//! let stanza = Stanza::new(key_id, wrapped)?;
//! let held = HeldKey::new(salt, data_key, vec![stanza])?;
//! let mut file = Encryptor::new(Vec::new(), held.new_file(Room::Tight, &SystemEntropy))?;
//! file.write_all(b"attack at dawn")?;
//! let sealed = file.finish()?;
//!
//! // Decrypting: the header says which keys may unwrap the data key, and in which context.
//! let mut source = &sealed[..];
//! let header = Header::read(&mut source)?;
//! assert_eq!(header.stanzas()[0].key_id(), key_id);   // header.context() goes to Decrypt
//! let mut plaintext = Vec::new();
//! Decryptor::new(source, &header, held.data_key())?.copy_to(&mut plaintext)?;
//! assert_eq!(plaintext, b"attack at dawn");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Encryptor`] and [`Decryptor`] hold one chunk and work on the caller's thread; [`Pipeline`]
//! takes whole files through all cores.

mod chunk;
mod error;
mod header;
mod held;
mod parallel;
mod slots;
mod stanza;
mod stream;

pub use chunk::CHUNK_LEN;
pub use error::{EncryptError, PayloadError};
pub use header::{Header, HeaderError, Patch};
pub use held::{HeldKey, KeySalt, NewFile, PayloadKey, Room};
pub use parallel::Pipeline;
pub use stanza::{MAX_STANZAS, MAX_WRAPPED_LEN, Stanza};
pub use stream::{Decryptor, Encryptor};
