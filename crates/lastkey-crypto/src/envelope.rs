//! The file envelope: what `lastkey encrypt` writes and `lastkey decrypt` reads.
//!
//! A data key made by the KMS encrypts the file; the data key, wrapped under one or more keys,
//! travels in front of it. Changing who can read the file replaces those wrappings and leaves the
//! payload as it is.
//!
//! ```text
//! offset  bytes                                            meaning
//! 0000    4c 41 53 54 4b 45 59 00                          magic "LASTKEY", 0      ┐
//! 0008    01                                               format version          │ the fixed
//! 0009    01                                               suite (below)           │ header:
//! 000a    14                                               chunks of 2²⁰ bytes     │ 44 bytes,
//! 000b    00                                               zero                    │ hashed
//! 000c    00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f  salt, 32 random bytes   │
//! 001c    10 11 12 13 14 15 16 17 18 19 1a 1b 1c 1d 1e 1f                          ┘
//! 002c    …                                                key commitment, 32 bytes
//! 004c    01                                               how many stanzas, 1 to 64
//! 004d    31 64 31 63 36 61 33 34 2d …                     key id, 36 ASCII        ┐ for each
//! 0071    00 70                                            length, 16 bits         │ stanza
//! 0073    …                                                wrapped data key        ┘
//! 00e3    …                                                payload, chunk by chunk
//! ```
//!
//! **Keys.** With `h` = SHA-256 of the fixed header, HKDF-SHA256 of the data key and the salt
//! gives the payload key (info = `lastkey file 1 payload AES-256-GCM` ‖ h) and the commitment
//! (info = `lastkey file 1 commitment` ‖ h). The stored commitment is compared before anything is
//! decrypted, so that no file opens under two data keys.
//!
//! **Stanzas** lie outside that hash. The encryption context of each wrapped data key is
//! `{"lastkey:file-salt": hex(salt)}`, so a stanza taken from another file does not open here.
//!
//! **Payload** (suite 1) is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015) over AES-256-GCM:
//! chunks of 1 MiB, each followed by its tag of 16 bytes. The nonce of a chunk is its number in 11
//! bytes, big-endian, then 1 for the last chunk and 0 for the others; there is no associated
//! data. The last chunk may be shorter; it is empty only if the whole file is. A chunk that is
//! changed, moved, repeated, missing, or from another file does not open, and neither does the
//! first chunk after a cut.
//!
//! # Encrypting
//!
//! ```
//! use std::io::Write;
//! use lastkey_crypto::{KeyId, KeyMaterial, SystemEntropy, envelope::{Decryptor, Encryptor, FileSalt, Header, Stanza}};
//!
//! // 1. Draw the salt. 2. Have a data key made in its context. 3. Encrypt.
//! let salt = FileSalt::random(&SystemEntropy);
//! let context = salt.context();                       // goes to GenerateDataKey
//! # let _ = context;
//! # let data_key = KeyMaterial::generate(32, &SystemEntropy);
//! # let (key_id, wrapped) = (KeyId::random(&SystemEntropy), vec![7; 112]);
//! let stanza = Stanza::new(key_id, wrapped)?;
//! let mut file = Encryptor::new(Vec::new(), salt, &data_key, vec![stanza])?;
//! file.write_all(b"attack at dawn")?;
//! let sealed = file.finish()?;
//!
//! // Decrypting: the header says which keys may unwrap the data key, and in which context.
//! let mut source = &sealed[..];
//! let header = Header::read(&mut source)?;
//! assert_eq!(header.stanzas()[0].key_id(), key_id);   // header.context() goes to Decrypt
//! let mut plaintext = Vec::new();
//! Decryptor::new(source, &header, &data_key)?.copy_to(&mut plaintext)?;
//! assert_eq!(plaintext, b"attack at dawn");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod header;
mod stream;

pub use header::{FileSalt, Header, HeaderError, MAX_STANZAS, MAX_WRAPPED_LEN, Stanza};
pub use stream::{CHUNK_LEN, Decryptor, EncryptError, Encryptor, PayloadError};
