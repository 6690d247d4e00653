//! The root key under a key that never leaves its PKCS#11 token.
//!
//! 1. The module is loaded, the token found by its label, the PIN read from its file.
//! 2. A session logs in. The key is found by its label; where a new root key is to be kept and
//!    there is none, the token makes one: AES-256, sensitive, never extractable.
//! 3. The token encrypts or decrypts the root key's 32 bytes with AES-GCM. One that has no AES-GCM
//!    wraps and unwraps them (AES key wrap, RFC 3394): the root key lies in the token's memory then,
//!    as an object of the session, for as long as that takes.
//! 4. The session and the module are closed again: no login stays open.
//!
//! Every call may block, so all of it runs on a thread of its own.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error as TokenError, RvError},
    mechanism::{Mechanism, MechanismType, aead::GcmParams},
    object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle},
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};
use lastkey_crypto::{Entropy, KeyMaterial};
use parking_lot::Mutex;
use zeroize::{Zeroize, Zeroizing};

use super::{
    ROOT_KEY_BYTES, RootPrint, Seal, SealEntry, SealError, SealKind, SealRecord, TokenEntry,
    TokenMechanism,
};

const IV_BYTES: usize = 12;
const TAG_BITS: u64 = 128;
const KEY_BYTES: u64 = 32;
const ASSOCIATED_DATA: &[u8] = b"lastkey root key 1";
/// Longer than any PIN.
const MAX_PIN_FILE: u64 = 4096;

/// A token that has not answered by then is one that cannot be reached. A call of its module cannot
/// be ended: it is left alone, and others are not begun beside it.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A module is initialised once in a process, whoever uses it.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn no_answer() -> SealError {
    SealError::Token(format!("it did not answer within {} s", ANSWER_WITHIN.as_secs()))
}

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
    /// A PIN was refused when nobody waited for the answer any more: whoever comes next is told
    /// before it is tried again.
    refused_late: Mutex<Option<String>>,
}

impl TokenSeal {
    /// A seal on that token; nothing is looked at before it is used.
    pub fn new(config: TokenConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                module: Mutex::default(),
                refused_late: Mutex::default(),
            }),
        }
    }

    async fn encrypt(
        &self,
        root: &KeyMaterial,
        entropy: &dyn Entropy,
    ) -> Result<SealEntry, SealError> {
        let mut iv = [0; IV_BYTES];
        entropy.fill(&mut iv);
        let root = KeyMaterial::from_slice(root.expose());
        self.blocking(move |open| open.wrap(&root, iv)).await.map(SealEntry::Pkcs11)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Open<'_>) -> Result<T, SealError> + Send + 'static,
    ) -> Result<T, SealError> {
        let shared = Arc::clone(&self.shared);
        let given_up = Arc::new(AtomicBool::new(false));
        let nobody_waits = Arc::clone(&given_up);
        let call = tokio::task::spawn_blocking(move || {
            let done = shared.with(work);
            if let Err(SealError::PinRefused(why)) = &done
                && nobody_waits.load(Ordering::SeqCst)
            {
                *shared.refused_late.lock() = Some(why.clone());
            }
            done
        });
        match tokio::time::timeout(ANSWER_WITHIN, call).await {
            Ok(done) => done.map_err(|_| SealError::Token("its module failed".to_owned()))?,
            Err(_) => {
                given_up.store(true, Ordering::SeqCst);
                Err(no_answer())
            }
        }
    }
}

/// A session that is logged in.
struct Open<'a> {
    session: Session,
    mechanisms: Vec<MechanismType>,
    config: &'a TokenConfig,
    found: Found,
}

/// Which token it is, as it says itself.
struct Found {
    label: String,
    serial: String,
}

impl Shared {
    /// Steps 1 to 4.
    fn with<T>(
        &self,
        work: impl FnOnce(&Open<'_>) -> Result<T, SealError>,
    ) -> Result<T, SealError> {
        let _alone = ONE_AT_A_TIME.try_lock_for(ANSWER_WITHIN).ok_or_else(no_answer)?;
        if let Some(why) = self.refused_late.lock().take() {
            return Err(SealError::PinRefused(why));
        }
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
        let (slot, found) = self.find(module)?;
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
                return Err(SealError::PinRefused(format!("the PIN in {file}: {error}")));
            }
            Err(error) => return Err(failed(&error)),
        }
        let mechanisms = module.get_mechanism_list(slot).map_err(|error| failed(&error))?;
        Ok(Open { session, mechanisms, config: &self.config, found })
    }

    /// The one token of that label.
    fn find(&self, module: &Pkcs11) -> Result<(Slot, Found), SealError> {
        let wanted = &self.config.token;
        let slots = module.get_slots_with_initialized_token().map_err(|error| failed(&error))?;
        let mut found = slots.into_iter().filter_map(|slot| {
            let info = module.get_token_info(slot).ok()?;
            let (label, serial) = (info.label().to_owned(), info.serial_number().to_owned());
            (label == *wanted || serial == *wanted).then_some((slot, Found { label, serial }))
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

    /// What the token can do, the best of it.
    fn mechanism(&self) -> Result<TokenMechanism, SealError> {
        let has = |wanted| self.mechanisms.contains(&wanted);
        if has(MechanismType::AES_GCM) {
            return Ok(TokenMechanism::AesGcm);
        }
        if has(MechanismType::AES_KEY_WRAP) {
            return Ok(TokenMechanism::AesKeyWrap);
        }
        let token = &self.config.token;
        Err(SealError::TokenRefused(format!(
            "token {token:?} has neither AES-GCM (CKM_AES_GCM) nor AES key wrap (CKM_AES_KEY_WRAP)"
        )))
    }

    /// A key is for one mechanism: what one wraps must not be what another decrypts.
    fn make_key(&self, label: &str, mechanism: TokenMechanism) -> Result<ObjectHandle, SealError> {
        let crypt = mechanism == TokenMechanism::AesGcm;
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Encrypt(crypt),
            Attribute::Decrypt(crypt),
            Attribute::Wrap(!crypt),
            Attribute::Unwrap(!crypt),
            Attribute::ValueLen(KEY_BYTES.into()),
            Attribute::Label(label.as_bytes().to_vec()),
        ];
        self.session.generate_key(&Mechanism::AesKeyGen, &template).map_err(|error| failed(&error))
    }

    fn wrap(&self, root: &KeyMaterial, iv: [u8; IV_BYTES]) -> Result<TokenEntry, SealError> {
        let TokenConfig { token, key: label, .. } = self.config;
        let mechanism = self.mechanism()?;
        let key = match self.key(label)? {
            Some(key) => key,
            None => self.make_key(label, mechanism)?,
        };
        let wrapped = match mechanism {
            TokenMechanism::AesGcm => self.encrypt(key, root, iv)?,
            TokenMechanism::AesKeyWrap => self.key_wrap(key, root)?,
        };
        Ok(TokenEntry {
            token: token.clone(),
            serial: self.found.serial.clone(),
            key: label.clone(),
            mechanism,
            wrapped,
        })
    }

    /// IV, ciphertext and tag.
    fn encrypt(
        &self,
        key: ObjectHandle,
        root: &KeyMaterial,
        mut iv: [u8; IV_BYTES],
    ) -> Result<Vec<u8>, SealError> {
        let params = GcmParams::new(&mut iv, ASSOCIATED_DATA, TAG_BITS.into());
        let mechanism = Mechanism::AesGcm(params.map_err(|error| failed(&error))?);
        let sealed = self.session.encrypt(&mechanism, key, root.expose());
        let sealed = sealed.map_err(|error| failed(&error))?;
        drop(mechanism);
        // Some tokens draw the IV themselves.
        let mut wrapped = iv.to_vec();
        wrapped.extend_from_slice(&sealed);
        Ok(wrapped)
    }

    /// The root key as an object of the session, wrapped; tried at once, for not every token gives
    /// back what it was given.
    fn key_wrap(&self, key: ObjectHandle, root: &KeyMaterial) -> Result<Vec<u8>, SealError> {
        let mut template = passing_key();
        template.push(Attribute::Value(root.expose().to_vec()));
        let object = self.session.create_object(&template);
        for attribute in &mut template {
            if let Attribute::Value(bytes) = attribute {
                bytes.zeroize();
            }
        }
        let object = object.map_err(|error| failed(&error))?;
        let wrapped = self.session.wrap_key(&Mechanism::AesKeyWrap, key, object);
        let destroyed = self.session.destroy_object(object);
        let wrapped = wrapped.map_err(|error| failed(&error))?;
        destroyed.map_err(|error| failed(&error))?;
        match self.key_unwrap(key, &wrapped)? {
            again if KeyMaterial::from_slice(&again).equals(root) => Ok(wrapped),
            _ => Err(SealError::WrongRoot(SealKind::Pkcs11)),
        }
    }

    fn key_unwrap(
        &self,
        key: ObjectHandle,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let unwrapped =
            self.session.unwrap_key(&Mechanism::AesKeyWrap, key, wrapped, &passing_key());
        let object = match unwrapped {
            Ok(object) => object,
            Err(TokenError::Pkcs11(
                RvError::WrappedKeyInvalid | RvError::WrappedKeyLenRange,
                _,
            )) => return Err(SealError::WrongRoot(SealKind::Pkcs11)),
            Err(error) => return Err(failed(&error)),
        };
        let found = self.session.get_attributes(object, &[AttributeType::Value]);
        let destroyed = self.session.destroy_object(object);
        let found = found.map_err(|error| failed(&error))?;
        destroyed.map_err(|error| failed(&error))?;
        match found.into_iter().next() {
            Some(Attribute::Value(bytes)) => Ok(Zeroizing::new(bytes)),
            _ => Err(SealError::TokenRefused(format!(
                "token {:?} keeps to itself what it unwrapped, and has no AES-GCM",
                self.config.token
            ))),
        }
    }

    fn decrypt(&self, key: ObjectHandle, wrapped: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let (iv, sealed) = wrapped.split_at_checked(IV_BYTES).ok_or(SealError::Record)?;
        let mut iv = <[u8; IV_BYTES]>::try_from(iv).map_err(|_| SealError::Record)?;
        let params = GcmParams::new(&mut iv, ASSOCIATED_DATA, TAG_BITS.into());
        let mechanism = Mechanism::AesGcm(params.map_err(|error| failed(&error))?);
        match self.session.decrypt(&mechanism, key, sealed) {
            Ok(root) => Ok(Zeroizing::new(root)),
            Err(TokenError::Pkcs11(
                RvError::EncryptedDataInvalid | RvError::EncryptedDataLenRange,
                _,
            )) => Err(SealError::WrongRoot(SealKind::Pkcs11)),
            Err(error) => Err(failed(&error)),
        }
    }

    fn unwrap(&self, entry: &TokenEntry) -> Result<KeyMaterial, SealError> {
        let TokenEntry { key: label, mechanism, wrapped, .. } = entry;
        let Some(key) = self.key(label)? else {
            let token = &self.config.token;
            let missing = SealError::TokenRefused(format!(
                "token {token:?} has no key called {label:?}, which the root key was encrypted with"
            ));
            return Err(self.found.instead_of(entry, token, missing));
        };
        let opened = match mechanism {
            TokenMechanism::AesGcm => self.decrypt(key, wrapped),
            TokenMechanism::AesKeyWrap => self.key_unwrap(key, wrapped),
        };
        let root = opened.map_err(|error| match self.session.get_session_info() {
            Ok(_) => self.found.instead_of(entry, &self.config.token, error),
            // It is away, whichever it is.
            Err(_) => error,
        })?;
        let key = KeyMaterial::from_slice(&root);
        if key.len() == ROOT_KEY_BYTES {
            Ok(key)
        } else {
            Err(SealError::WrongRoot(SealKind::Pkcs11))
        }
    }
}

impl Found {
    /// What to say where the token that was `named` failed, and may not be the one that the root
    /// key was encrypted on. One of the same label may well be: a key that was cloned to other
    /// hardware has another serial number beside it. What may pass on that one is tried again.
    fn instead_of(&self, entry: &TokenEntry, named: &str, failed: SealError) -> SealError {
        let TokenEntry { token, serial, .. } = entry;
        let Self { label, serial: found } = self;
        if serial == found {
            return failed;
        }
        match failed {
            SealError::Token(failed) if token == label => SealError::Token(format!(
                "{failed} (the root key was encrypted on serial {serial}, and this is serial \
                 {found}: if its key is no clone, name the right one)"
            )),
            SealError::Token(failed) | SealError::TokenRefused(failed) => {
                other(entry, (named, found), &failed)
            }
            failed => other(entry, (named, found), &failed.to_string()),
        }
    }
}

fn other(entry: &TokenEntry, (named, found): (&str, &str), failed: &str) -> SealError {
    let TokenEntry { token, serial, key, .. } = entry;
    SealError::TokenRefused(format!(
        "the root key was encrypted by key {key:?} of token {token:?} (serial {serial}), but \
         --pkcs11-token names {named:?} (serial {found}): {failed}; name the right one"
    ))
}

/// The root key on its way through the token: of this session alone, and to be read.
fn passing_key() -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ]
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
        let entry = self.encrypt(&root, entropy).await?;
        Ok((root, entry))
    }

    async fn wrap(
        &self,
        _: SealKind,
        (root, _): (&KeyMaterial, &SealRecord),
        entropy: &dyn Entropy,
    ) -> Result<SealEntry, SealError> {
        self.encrypt(root, entropy).await
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

    fn place(&self) -> Option<String> {
        let TokenConfig { module, token, key, .. } = &self.shared.config;
        // Another module may show a token of the same label; one module has many names.
        let named = module.canonicalize().or_else(|_| std::path::absolute(module));
        let module = named.unwrap_or_else(|_| module.clone());
        Some(format!("token {token}, key {key}, module {}", module.display()))
    }

    /// The key on the token stays, whatever it was used for: it is not ours to destroy.
    async fn settle(&self, _: &SealRecord) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_of_the_same_label_by_another_module_is_in_another_place() {
        let by = |module: &str| {
            let (token, key) = ("lab".to_owned(), "lastkey".to_owned());
            let pin_file = PathBuf::from("/pin");
            TokenSeal::new(TokenConfig { module: module.into(), token, key, pin_file }).place()
        };
        assert_eq!(by("/one.so").unwrap(), "token lab, key lastkey, module /one.so");
        assert_ne!(by("/one.so"), by("/two.so"));
        let directory = tempfile::tempdir().unwrap();
        let [module, other] = ["module.so", "other.so"].map(|name| directory.path().join(name));
        std::fs::write(&module, "").unwrap();
        std::os::unix::fs::symlink(&module, &other).unwrap();
        assert_eq!(by(module.to_str().unwrap()), by(other.to_str().unwrap()));
    }

    #[test]
    fn what_may_pass_on_a_token_of_the_same_label_is_tried_again() {
        let entry = TokenEntry {
            token: "lab".to_owned(),
            serial: "1".to_owned(),
            key: "lastkey".to_owned(),
            mechanism: TokenMechanism::AesGcm,
            wrapped: Vec::new(),
        };
        let says = |label: &str, serial: &str, failed| {
            let found = Found { label: label.to_owned(), serial: serial.to_owned() };
            let error = found.instead_of(&entry, label, failed);
            (error.is_transient(), error.to_string())
        };
        let busy = || SealError::Token("it is busy".to_owned());
        assert_eq!(says("lab", "1", busy()), (true, busy().to_string()));
        let (tried_again, clone) = says("lab", "2", busy());
        assert!(
            tried_again && clone.contains("it is busy (") && clone.contains("serial 2"),
            "{clone}"
        );
        let (tried_again, other) = says("other", "2", busy());
        assert!(!tried_again && other.contains("token \"lab\" (serial 1)"), "{other}");
        // A key that is another one, or none, stays that.
        for failed in
            [SealError::WrongRoot(SealKind::Pkcs11), SealError::TokenRefused("no key".to_owned())]
        {
            let (tried_again, said) = says("lab", "2", failed);
            assert!(!tried_again && said.contains("(serial 2)"), "{said}");
        }
    }
}
