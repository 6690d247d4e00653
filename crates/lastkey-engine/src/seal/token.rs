//! The root key under a key that never leaves its PKCS#11 token.
//!
//! 1. The module is loaded, the token found by its label, the PIN read from its file.
//! 2. A session logs in. The key is found by its label; where a new root key is to be kept and
//!    there is none, the token makes one: AES-256, sensitive, never extractable.
//! 3. The token encrypts or decrypts the root key's 32 bytes with AES-GCM.
//! 4. The session and the module are closed again: no login stays open.
//!
//! Every call may block, so all of it runs on a thread of its own.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error as TokenError, RvError},
    mechanism::{Mechanism, aead::GcmParams},
    object::{Attribute, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use lastkey_crypto::{Entropy, KeyMaterial};
use parking_lot::Mutex;
use zeroize::{Zeroize, Zeroizing};

use super::{
    ROOT_KEY_BYTES, RootPrint, Seal, SealEntry, SealError, SealKind, SealRecord, TokenEntry,
};

const IV_BYTES: usize = 12;
const TAG_BITS: u64 = 128;
const KEY_BYTES: u64 = 32;
const ASSOCIATED_DATA: &[u8] = b"lastkey root key 1";
/// Longer than any PIN.
const MAX_PIN_FILE: u64 = 4096;

/// A module is initialised once in a process, whoever uses it.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How the token is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenConfig {
    /// The PKCS#11 module, a shared library.
    pub module: PathBuf,
    /// The token's label.
    pub token: String,
    /// The key's label.
    pub key: String,
    /// Where the PIN is read from, each time: a file of mode 0600.
    pub pin_file: PathBuf,
}

/// A seal on a PKCS#11 token.
#[derive(Clone)]
pub struct TokenSeal {
    shared: Arc<Shared>,
}

struct Shared {
    config: TokenConfig,
    /// Stays loaded: not every module bears being unloaded.
    module: Mutex<Option<Pkcs11>>,
}

impl TokenSeal {
    /// A seal on that token; nothing is looked at before it is used.
    pub fn new(config: TokenConfig) -> Self {
        Self { shared: Arc::new(Shared { config, module: Mutex::new(None) }) }
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Open<'_>) -> Result<T, SealError> + Send + 'static,
    ) -> Result<T, SealError> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || shared.with(work))
            .await
            .map_err(|_| SealError::Token("its module failed".to_owned()))?
    }
}

/// A session that is logged in.
struct Open<'a> {
    session: Session,
    config: &'a TokenConfig,
    serial: String,
}

impl Shared {
    /// Steps 1 to 4.
    fn with<T>(
        &self,
        work: impl FnOnce(&Open<'_>) -> Result<T, SealError>,
    ) -> Result<T, SealError> {
        let _alone = ONE_AT_A_TIME.lock();
        let pin = read_pin(&self.config.pin_file)?;
        let module = self.module()?;
        match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
            Ok(()) | Err(TokenError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
            Err(error) => return Err(failed(&error)),
        }
        let done = self.log_in(&module, &pin).and_then(|open| {
            let done = work(&open);
            let _ = open.session.logout();
            drop(open);
            done
        });
        let _ = module.finalize();
        done
    }

    fn module(&self) -> Result<Pkcs11, SealError> {
        let mut module = self.module.lock();
        if let Some(module) = &*module {
            return Ok(module.clone());
        }
        let path = &self.config.module;
        let loaded = Pkcs11::new(path).map_err(|error| {
            SealError::TokenRefused(format!("the module {}: {error}", path.display()))
        })?;
        Ok(module.insert(loaded).clone())
    }

    fn log_in<'a>(&'a self, module: &Pkcs11, pin: &AuthPin) -> Result<Open<'a>, SealError> {
        let (slot, serial) = self.find(module)?;
        // Read and write: a key may have to be made.
        let session = module.open_rw_session(slot).map_err(|error| failed(&error))?;
        match session.login(UserType::User, Some(pin)) {
            Ok(()) | Err(TokenError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => {}
            // To try again would lock the token.
            Err(TokenError::Pkcs11(
                error @ (RvError::PinIncorrect
                | RvError::PinLocked
                | RvError::PinExpired
                | RvError::PinInvalid
                | RvError::PinLenRange),
                _,
            )) => {
                let file = self.config.pin_file.display();
                return Err(SealError::TokenRefused(format!("the PIN in {file}: {error}")));
            }
            Err(error) => return Err(failed(&error)),
        }
        Ok(Open { session, config: &self.config, serial })
    }

    /// The one token of that label.
    fn find(&self, module: &Pkcs11) -> Result<(Slot, String), SealError> {
        let wanted = &self.config.token;
        let slots = module.get_slots_with_initialized_token().map_err(|error| failed(&error))?;
        let mut found = slots.into_iter().filter_map(|slot| {
            let info = module.get_token_info(slot).ok()?;
            let named = info.label() == wanted || info.serial_number() == wanted;
            named.then(|| (slot, info.serial_number().to_owned()))
        });
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(SealError::Token(format!("no token is called {wanted:?}"))),
            (Some(_), Some(_)) => Err(SealError::TokenRefused(format!(
                "more than one token is called {wanted:?}; name it by its serial number"
            ))),
        }
    }
}

impl Open<'_> {
    /// The key of that label, if there is one.
    fn key(&self, label: &str) -> Result<Option<ObjectHandle>, SealError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        let found = self.session.find_objects(&template).map_err(|error| failed(&error))?;
        match found.as_slice() {
            [] => Ok(None),
            [key] => Ok(Some(*key)),
            _ => Err(SealError::TokenRefused(format!("more than one key is called {label:?}"))),
        }
    }

    fn make_key(&self, label: &str) -> Result<ObjectHandle, SealError> {
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
            Attribute::ValueLen(KEY_BYTES.into()),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        self.session.generate_key(&Mechanism::AesKeyGen, &template).map_err(|error| failed(&error))
    }

    /// IV, ciphertext and tag.
    fn wrap(&self, root: &KeyMaterial, mut iv: [u8; IV_BYTES]) -> Result<TokenEntry, SealError> {
        let TokenConfig { token, key: label, .. } = self.config;
        let key = match self.key(label)? {
            Some(key) => key,
            None => self.make_key(label)?,
        };
        let params = GcmParams::new(&mut iv, ASSOCIATED_DATA, TAG_BITS.into());
        let mechanism = Mechanism::AesGcm(params.map_err(|error| failed(&error))?);
        let sealed = self.session.encrypt(&mechanism, key, root.expose());
        let sealed = sealed.map_err(|error| failed(&error))?;
        drop(mechanism);
        // Some tokens draw the IV themselves.
        let mut wrapped = iv.to_vec();
        wrapped.extend_from_slice(&sealed);
        Ok(TokenEntry {
            token: token.clone(),
            serial: self.serial.clone(),
            key: label.clone(),
            wrapped,
        })
    }

    fn unwrap(&self, entry: &TokenEntry) -> Result<KeyMaterial, SealError> {
        let TokenEntry { token, key: label, wrapped, .. } = entry;
        let missing = || {
            SealError::TokenRefused(format!(
                "token {token:?} has no key called {label:?}, which the root key was encrypted with"
            ))
        };
        let key = self.key(label)?.ok_or_else(missing)?;
        let (iv, sealed) = wrapped.split_at_checked(IV_BYTES).ok_or(SealError::Record)?;
        let mut iv = <[u8; IV_BYTES]>::try_from(iv).map_err(|_| SealError::Record)?;
        let params = GcmParams::new(&mut iv, ASSOCIATED_DATA, TAG_BITS.into());
        let mechanism = Mechanism::AesGcm(params.map_err(|error| failed(&error))?);
        let mut root = match self.session.decrypt(&mechanism, key, sealed) {
            Ok(root) => root,
            Err(TokenError::Pkcs11(
                RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange,
                _,
            )) => return Err(SealError::WrongRoot(SealKind::Pkcs11)),
            Err(error) => return Err(failed(&error)),
        };
        let key = KeyMaterial::from_slice(&root);
        root.zeroize();
        if key.len() == ROOT_KEY_BYTES {
            Ok(key)
        } else {
            Err(SealError::WrongRoot(SealKind::Pkcs11))
        }
    }
}

fn failed(error: &TokenError) -> SealError {
    SealError::Token(error.to_string())
}

fn read_pin(path: &Path) -> Result<AuthPin, SealError> {
    let io = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => {
            SealError::TokenRefused(format!("its PIN file {} is missing", path.display()))
        }
        _ => SealError::Io { path: path.to_owned(), source },
    };
    let file = File::open(path).map_err(io)?;
    let mode = file.metadata().map_err(io)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SealError::Exposed { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::with_capacity(256));
    file.take(MAX_PIN_FILE).read_to_string(&mut text).map_err(io)?;
    Ok(AuthPin::new(text.trim_end_matches(['\n', '\r']).into()))
}

#[async_trait]
impl Seal for TokenSeal {
    fn kind(&self) -> SealKind {
        SealKind::Pkcs11
    }

    async fn begin(&self, entropy: &dyn Entropy) -> Result<(KeyMaterial, SealEntry), SealError> {
        let root = KeyMaterial::generate(ROOT_KEY_BYTES, entropy);
        let entry = self.wrap(SealKind::Pkcs11, &root, entropy).await?;
        Ok((root, entry))
    }

    async fn wrap(
        &self,
        _: SealKind,
        root: &KeyMaterial,
        entropy: &dyn Entropy,
    ) -> Result<SealEntry, SealError> {
        let mut iv = [0; IV_BYTES];
        entropy.fill(&mut iv);
        let root = KeyMaterial::from_slice(root.expose());
        self.blocking(move |open| open.wrap(&root, iv)).await.map(SealEntry::Pkcs11)
    }

    async fn unwrap(
        &self,
        entry: &SealEntry,
        _: Option<RootPrint>,
    ) -> Result<KeyMaterial, SealError> {
        let SealEntry::Pkcs11(entry) = entry else { return Err(SealError::NeedsShares) };
        let entry = entry.clone();
        self.blocking(move |open| open.unwrap(&entry)).await
    }

    /// The key on the token stays, whatever it was used for: it is not ours to destroy.
    async fn settle(&self, _: &SealRecord) {}
}
