//! Encrypt, decrypt, data keys.

use std::sync::atomic::Ordering;

use lastkey_crypto::{
    Algorithm, EncryptionContext, KeyId, KeyVersionId, SecretBytes, blob, mac::equal,
};

use super::{Command, Done, Scope};
use crate::{
    Error,
    action::Action,
    audit::Record,
    engine::Core,
    key::{Key, KeyRef, KeyUsage},
    policy::Resource,
};

/// The most bytes that [`Encrypt`] takes.
pub const MAX_PLAINTEXT: usize = 6 * 1024;
/// The most bytes of a data key.
pub const MAX_DATA_KEY: usize = 1024;

/// What was encrypted, and under what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encrypted {
    /// The key.
    pub key_id: KeyId,
    /// Its version.
    pub key_version: KeyVersionId,
    /// The ciphertext blob, in binary.
    pub blob: Vec<u8>,
}

/// What was decrypted, and under what.
pub struct Decrypted {
    /// The key.
    pub key_id: KeyId,
    /// Its version.
    pub key_version: KeyVersionId,
    /// The plaintext.
    pub plaintext: SecretBytes,
}

/// A data key, wrapped and in plain.
pub struct DataKey {
    /// What [`Decrypt`] opens.
    pub encrypted: Encrypted,
    /// The same in plain, as the front end encodes it.
    pub plaintext: SecretBytes,
}

/// Encrypts a small value.
pub struct Encrypt {
    /// Under which key.
    pub key: KeyRef,
    /// The value.
    pub plaintext: SecretBytes,
    /// Bound to it; the same is needed to decrypt.
    pub context: EncryptionContext,
}

/// Decrypts what [`Encrypt`] or a data key command made.
pub struct Decrypt {
    /// The ciphertext blob, in binary.
    pub blob: Vec<u8>,
    /// The context it was bound to.
    pub context: EncryptionContext,
}

/// Decrypts and encrypts anew, without showing the plaintext.
pub struct ReEncrypt {
    /// The ciphertext blob, in binary.
    pub blob: Vec<u8>,
    /// The context it was bound to.
    pub source_context: EncryptionContext,
    /// The key that must have made it, if the caller knows.
    pub source_key: Option<KeyRef>,
    /// The key to encrypt it under.
    pub destination: KeyRef,
    /// The context to bind it to.
    pub destination_context: EncryptionContext,
}

/// How a front end hands out a data key: the bytes it shows are the bytes that are wrapped.
pub type Encoding = fn(&[u8]) -> SecretBytes;

/// Makes a data key.
pub struct GenerateDataKey {
    /// Wrapped under which key.
    pub key: KeyRef,
    /// How many bytes.
    pub length: usize,
    /// Bound to it.
    pub context: EncryptionContext,
    /// How it is handed out.
    pub encoding: Encoding,
}

/// Makes a data key and keeps its plaintext to itself.
pub struct GenerateDataKeyWithoutPlaintext(pub GenerateDataKey);

impl Command for Encrypt {
    const ACTION: Action = Action::Encrypt;
    type Output = Encrypted;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        record.context(self.context.names());
        core.key_resource(&self.key, record)
    }

    fn validate(&self) -> Result<(), Error> {
        check_context(&self.context)?;
        if self.plaintext.expose().len() > MAX_PLAINTEXT {
            return Err(Error::invalid("Plaintext", "give at most 6144 bytes"));
        }
        Ok(())
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Encrypted>, Error> {
        seal(core, scope, &self.key, &self.context, self.plaintext.expose()).await.map(Done::read)
    }
}

impl Command for Decrypt {
    const ACTION: Action = Action::Decrypt;
    type Output = Decrypted;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.context(self.context.names());
        Resource::Key(None)
    }

    fn validate(&self) -> Result<(), Error> {
        check_context(&self.context)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Decrypted>, Error> {
        open(core, scope, &self.blob, &self.context).await.map(Done::read)
    }
}

impl Command for ReEncrypt {
    const ACTION: Action = Action::ReEncrypt;
    type Output = Encrypted;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        record.context(self.source_context.names());
        core.key_resource(&self.destination, record)
    }

    fn validate(&self) -> Result<(), Error> {
        check_context(&self.source_context)?;
        check_context(&self.destination_context)
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Encrypted>, Error> {
        let expected = self.source_key.as_ref().map(|key| core.require(key)).transpose()?;
        let opened = open(core, scope, &self.blob, &self.source_context).await?;
        if expected.is_some_and(|expected| expected != opened.key_id) {
            return Err(Error::InvalidCiphertext);
        }
        scope.record.field("source_key", opened.key_id);
        scope.record.field("source_key_version", opened.key_version);
        let plaintext = opened.plaintext.expose();
        seal(core, scope, &self.destination, &self.destination_context, plaintext)
            .await
            .map(Done::read)
    }
}

impl Command for GenerateDataKey {
    const ACTION: Action = Action::GenerateDataKey;
    type Output = DataKey;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        record.context(self.context.names());
        core.key_resource(&self.key, record)
    }

    fn validate(&self) -> Result<(), Error> {
        check_context(&self.context)?;
        if !(1..=MAX_DATA_KEY).contains(&self.length) {
            return Err(Error::invalid("NumberOfBytes", "give 1 to 1024"));
        }
        Ok(())
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<DataKey>, Error> {
        let mut bytes = zeroize::Zeroizing::new(vec![0; self.length]);
        core.entropy.fill(&mut bytes);
        let plaintext = (self.encoding)(&bytes);
        let encrypted = seal(core, scope, &self.key, &self.context, plaintext.expose()).await?;
        Ok(Done::read(DataKey { encrypted, plaintext }))
    }
}

impl Command for GenerateDataKeyWithoutPlaintext {
    const ACTION: Action = Action::GenerateDataKeyWithoutPlaintext;
    type Output = Encrypted;

    fn resource(&self, core: &Core, record: &mut Record) -> Resource {
        self.0.resource(core, record)
    }

    fn validate(&self) -> Result<(), Error> {
        self.0.validate()
    }

    async fn act(&self, core: &Core, scope: &mut Scope<'_>) -> Result<Done<Encrypted>, Error> {
        let made = self.0.act(core, scope).await?;
        Ok(Done::read(made.output?.encrypted))
    }
}

/// Names that the service itself binds are not for callers to claim.
fn check_context(context: &EncryptionContext) -> Result<(), Error> {
    match context.reserved_name() {
        Some(_) => {
            Err(Error::invalid("EncryptionContext", "names beginning with lastkey: are reserved"))
        }
        None => Ok(()),
    }
}

/// Encrypts under the primary version of a key.
#[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
async fn seal(
    core: &Core,
    scope: &mut Scope<'_>,
    key: &KeyRef,
    context: &EncryptionContext,
    plaintext: &[u8],
) -> Result<Encrypted, Error> {
    let key = core.records.key(core.require(key)?).await?;
    let key = &key.value;
    scope.used(key.id, Some(key.primary.version));
    let by = By::Caller;
    let blob = seal_under(core, scope, (key, key.primary.version, by), context, plaintext).await?;
    Ok(Encrypted { key_id: key.id, key_version: key.primary.version, blob })
}

/// Who encrypts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    /// Whoever calls: nobody else knows what becomes of it.
    Caller,
    /// A plugin, for a cluster that can be looked at.
    Plugin,
}

/// Encrypts under one version of a usable key.
#[expect(clippy::too_many_arguments, reason = "each is a thing of its own")]
pub(super) async fn seal_under(
    core: &Core,
    scope: &Scope<'_>,
    (key, version, by): (&Key, KeyVersionId, By),
    context: &EncryptionContext,
    plaintext: &[u8],
) -> Result<Vec<u8>, Error> {
    key.state.usable()?;
    key.version_usable(version)?;
    match key.usage {
        KeyUsage::EncryptDecrypt => {}
    }
    let version = core.records.version(version).await?;
    core.records.count_use(&version, by == By::Caller).await?;
    // It is being retired, and who does that may not have seen us.
    if version.uses.is_shut() {
        return Err(Error::StaleKeyVersion);
    }
    core.key_uses.encrypted.fetch_add(1, Ordering::Relaxed);
    let used = (core.clock.now(), &scope.caller.principal);
    core.records.note_use(&version, used, Action::Encrypt);
    Ok(blob::seal(&version.material, &version.id, context, plaintext, &*core.entropy))
}

/// Opens what was just made, so that nothing is stored that does not open; no use of the key, as
/// nobody is shown anything.
///
/// # Errors
/// [`Error::Internal`] when it does not: a fault of this machine.
pub(super) async fn check_opens(
    core: &Core,
    blob: &[u8],
    (context, plaintext): (&EncryptionContext, &[u8]),
) -> Result<(), Error> {
    let parsed = blob::Blob::parse(blob).map_err(|_| Error::Internal)?;
    let version = core.records.version(parsed.key_version_id()).await?;
    let opened = parsed.open(&version.material, context).map_err(|_| Error::Internal)?;
    match equal(opened.expose(), plaintext) {
        true => Ok(()),
        false => Err(Error::Internal),
    }
}

/// Opens a blob under whatever version made it.
///
/// A blob that is malformed, of a version that does not exist, or does not authenticate: all one
/// answer, so that nobody learns which it was.
pub(super) async fn open(
    core: &Core,
    scope: &mut Scope<'_>,
    bytes: &[u8],
    context: &EncryptionContext,
) -> Result<Decrypted, Error> {
    let parsed = blob::Blob::parse(bytes).map_err(|_| Error::InvalidCiphertext)?;
    let version = match core.records.version(parsed.key_version_id()).await {
        Err(Error::KeyVersionNotFound) => return Err(Error::InvalidCiphertext),
        other => other?,
    };
    let key = match core.records.key(version.key_id).await {
        Err(Error::KeyNotFound) => return Err(Error::InvalidCiphertext),
        other => other?,
    };
    scope.used(version.key_id, Some(version.id));
    // Authentic first: a state is only told to who holds a genuine ciphertext.
    let plaintext =
        parsed.open(&version.material, context).map_err(|_| Error::InvalidCiphertext)?;
    key.value.state.usable()?;
    key.value.version_usable(version.id)?;
    core.key_uses.decrypted.fetch_add(1, Ordering::Relaxed);
    let used = (core.clock.now(), &scope.caller.principal);
    core.records.note_use(&version, used, Action::Decrypt);
    Ok(Decrypted { key_id: version.key_id, key_version: version.id, plaintext })
}

/// The number of bytes of a data key for that algorithm name.
///
/// # Errors
/// [`Error::InvalidParameter`] for an unknown name.
pub fn data_key_length(spec: &str) -> Result<usize, Error> {
    match spec {
        "AES_256" => Ok(Algorithm::Aes256.key_len()),
        "AES_128" => Ok(Algorithm::Aes128.key_len()),
        _ => Err(Error::invalid("KeySpec", "give AES_256 or AES_128, or NumberOfBytes")),
    }
}
