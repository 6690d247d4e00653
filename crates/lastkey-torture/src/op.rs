//! What callers ask of the engine, and what they are told.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use lastkey_crypto::{ClusterId, EncryptionContext, KeyId, KeyVersionId, SecretBytes};
use lastkey_engine::{
    AliasName, Caller, ClusterName, Engine, Error, Key, KeyRef, Listing, OperatorError, Order,
    Page, RotationPolicy, With,
    audit::Verification,
    command::{
        AddCluster, AliasEntry, CancelKeyDeletion, CreateAlias, CreateKey, CreateKeyVersion,
        Decrypt, DeleteAlias, DescribeKey, DisableKey, EnableKey, Encrypt, Encrypted,
        GenerateDataKey, GenerateDataKeyWithoutPlaintext, ListAliases, ListClusters, ListKeys,
        PluginDecrypt, PluginEncrypt, PluginEncrypted, PluginRequest, PluginState, PluginStatus,
        ReEncrypt, RotateKeyring, ScheduleKeyDeletion, SetDeletionProtection, TagResource,
        UntagResource, UntagWhich, UpdateAlias, UpdateKeyDescription, UpdateRotationPolicy,
        VerifyAudit,
    },
};

use crate::world::Running;

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A new version.
    Rotate,
    /// Its use is allowed.
    Enable,
    /// Its use is stopped.
    Disable,
    /// Another text.
    Describe(String),
    /// More tags.
    Tag(BTreeMap<String, String>),
    /// Fewer.
    Untag(Vec<String>),
    /// Deletion after so many days.
    Schedule(u16),
    /// No deletion.
    Cancel,
    /// Protection from deletion.
    Protect(bool),
    /// When it rotates by itself.
    Policy(RotationPolicy),
}

/// A command.
#[expect(missing_docs, reason = "the fields are the commands' own")]
#[derive(Clone, Debug)]
pub enum Op {
    /// A new key; its description is like no other.
    Create { description: String, alias: Option<AliasName>, tags: BTreeMap<String, String> },
    /// A change of a key.
    Mutate { key: KeyId, by: Mutation },
    /// A name for a key.
    CreateAlias { name: AliasName, key: KeyId },
    /// The name is another key's.
    UpdateAlias { name: AliasName, key: KeyId },
    /// The name is nobody's.
    DeleteAlias { name: AliasName },
    /// Encrypt.
    Encrypt { key: KeyRef, plaintext: Vec<u8>, context: EncryptionContext },
    /// A data key, with its plaintext or without.
    DataKey { key: KeyRef, length: usize, context: EncryptionContext, shown: bool },
    /// Decrypt.
    Decrypt { number: usize, blob: Vec<u8>, context: EncryptionContext },
    /// Encrypt anew under another key.
    ReEncrypt { number: usize, blob: Vec<u8>, context: EncryptionContext, key: KeyId },
    /// What is known of a key.
    Describe { key: KeyId },
    /// Which keys there are.
    Keys { page: usize },
    /// Which aliases there are.
    Aliases { page: usize },
    /// Which clusters there are.
    Clusters,
    /// A new cluster with a plugin.
    AddCluster { name: ClusterName, keys: Vec<KeyId>, fingerprint: String },
    /// What a plugin asks once a minute.
    PluginStatus { cluster: ClusterId, key: KeyId },
    /// What it asks for an apiserver.
    PluginEncrypt { cluster: ClusterId, key: KeyId, plaintext: Vec<u8> },
    /// The same back.
    PluginDecrypt { number: usize, cluster: ClusterId, key: KeyId, sealed: PluginEncrypted },
    /// Whether the log is whole.
    Verify,
    /// Another root key.
    RotateRoot,
    /// Another key for the records, all of which are sealed again; also while they still are.
    RotateKeyring,
}

/// What was answered.
#[derive(Debug)]
pub enum Answer {
    /// That it is done.
    Done,
    /// A key.
    Key(Arc<Key>),
    /// A new version.
    Version(KeyVersionId),
    /// A ciphertext, and its plaintext if it was not the caller's.
    Sealed(Encrypted, Option<SecretBytes>),
    /// A plaintext.
    Opened(SecretBytes),
    /// Some keys.
    Keys(Listing<KeyId>),
    /// Some aliases.
    Aliases(Listing<AliasEntry>),
    /// Some clusters.
    Clusters(Vec<ClusterId>),
    /// A plugin's state.
    Plugin(Box<PluginState>),
    /// A plugin's ciphertext.
    PluginSealed(PluginEncrypted),
    /// What is wrong with the log.
    Verified(Verification),
}

/// The name of the plugin.
pub const PLUGIN: &str = "node-1";
/// Entries of one page.
const PAGE_SIZE: usize = 100;

fn plain(bytes: &[u8]) -> SecretBytes {
    SecretBytes::new(bytes.to_vec())
}

impl Op {
    /// Asks the engine.
    ///
    /// # Errors
    /// What the engine answers with.
    pub async fn run(self, engine: Running, caller: Caller) -> Result<Answer, Error> {
        macro_rules! done {
            ($command:expr) => {
                engine.execute(&caller, $command).await.map(|()| Answer::Done)
            };
        }
        let page = |number| Page::new(Some(number), Some(PAGE_SIZE));
        match self {
            Self::Create { description, alias, tags } => {
                let command = CreateKey { description, alias, tags, ..CreateKey::default() };
                engine.execute(&caller, command).await.map(Answer::Key)
            }
            Self::Mutate { key, by } => mutate(&engine, &caller, KeyRef::Id(key), by).await,
            Self::CreateAlias { name, key } => {
                done!(CreateAlias { alias: name, key: KeyRef::Id(key) })
            }
            Self::UpdateAlias { name, key } => {
                done!(UpdateAlias { alias: name, key: KeyRef::Id(key) })
            }
            Self::DeleteAlias { name } => done!(DeleteAlias { alias: name }),
            Self::Encrypt { key, plaintext, context } => {
                let command = Encrypt { key, plaintext: SecretBytes::new(plaintext), context };
                let sealed = engine.execute(&caller, command).await?;
                Ok(Answer::Sealed(sealed, None))
            }
            Self::DataKey { key, length, context, shown } => {
                let command = GenerateDataKey { key, length, context, encoding: plain };
                if shown {
                    let made = engine.execute(&caller, command).await?;
                    return Ok(Answer::Sealed(made.encrypted, Some(made.plaintext)));
                }
                let command = GenerateDataKeyWithoutPlaintext(command);
                Ok(Answer::Sealed(engine.execute(&caller, command).await?, None))
            }
            Self::Decrypt { blob, context, .. } => {
                let opened = engine.execute(&caller, Decrypt { blob, context }).await?;
                Ok(Answer::Opened(opened.plaintext))
            }
            Self::ReEncrypt { blob, context, key, .. } => {
                let command = ReEncrypt {
                    blob,
                    source_context: context.clone(),
                    source_key: None,
                    destination: KeyRef::Id(key),
                    destination_context: context,
                };
                Ok(Answer::Sealed(engine.execute(&caller, command).await?, None))
            }
            Self::Describe { key } => {
                let command = DescribeKey { key: KeyRef::Id(key) };
                engine.execute(&caller, command).await.map(Answer::Key)
            }
            Self::Keys { page: number } => {
                let command = ListKeys { page: page(number)?, filter: Default::default() };
                engine.execute(&caller, command).await.map(Answer::Keys)
            }
            Self::Aliases { page: number } => {
                let command = ListAliases { page: page(number)? };
                engine.execute(&caller, command).await.map(Answer::Aliases)
            }
            Self::Clusters => {
                let clusters = engine.execute(&caller, ListClusters).await?;
                Ok(Answer::Clusters(clusters.iter().map(|cluster| cluster.id).collect()))
            }
            Self::AddCluster { name, keys, fingerprint } => {
                let plugin = PluginRequest { name: ClusterName::parse(PLUGIN)?, fingerprint };
                let command = AddCluster {
                    name: Some(name),
                    keys: keys.into_iter().map(KeyRef::Id).collect(),
                    plugin: Some(plugin),
                };
                let added = engine.execute(&caller, command).await?;
                Ok(Answer::Clusters(vec![added.cluster.id]))
            }
            Self::PluginStatus { cluster, key } => {
                let command = PluginStatus {
                    cluster,
                    key: KeyRef::Id(key),
                    known: String::new(),
                    wait: Duration::ZERO,
                    instance: None,
                };
                let state = engine.execute(&caller, command).await?;
                Ok(Answer::Plugin(Box::new(state)))
            }
            Self::PluginEncrypt { cluster, key, plaintext } => {
                let plaintext = SecretBytes::new(plaintext);
                let command = PluginEncrypt { cluster, key: KeyRef::Id(key), pin: None, plaintext };
                engine.execute(&caller, command).await.map(Answer::PluginSealed)
            }
            Self::PluginDecrypt { cluster, key, sealed, .. } => {
                let command = PluginDecrypt {
                    cluster,
                    key: KeyRef::Id(key),
                    envelope: sealed.key,
                    blob: sealed.blob,
                };
                engine.execute(&caller, command).await.map(Answer::Opened)
            }
            Self::RotateRoot => {
                let order = engine.instance.order(&caller, Order::RotateRoot, With::default());
                match order.await {
                    Ok(_) => Ok(Answer::Done),
                    Err(OperatorError::Engine(error)) => Err(error),
                    Err(other) => Err(Error::Unavailable(other.to_string())),
                }
            }
            Self::RotateKeyring => {
                engine.execute(&caller, RotateKeyring).await.map(|_| Answer::Done)
            }
            Self::Verify => engine.execute(&caller, VerifyAudit).await.map(Answer::Verified),
        }
    }

    /// Whether it is meant to change what is stored.
    pub fn changes(&self) -> bool {
        matches!(
            self,
            Self::Create { .. }
                | Self::Mutate { .. }
                | Self::CreateAlias { .. }
                | Self::UpdateAlias { .. }
                | Self::DeleteAlias { .. }
                | Self::AddCluster { .. }
        )
    }

    /// The alias that it changes.
    pub fn alias(&self) -> Option<&AliasName> {
        match self {
            Self::Create { alias, .. } => alias.as_ref(),
            Self::CreateAlias { name, .. }
            | Self::UpdateAlias { name, .. }
            | Self::DeleteAlias { name } => Some(name),
            _ => None,
        }
    }
}

async fn mutate(
    engine: &Engine,
    caller: &Caller,
    key: KeyRef,
    by: Mutation,
) -> Result<Answer, Error> {
    match by {
        Mutation::Rotate => {
            let version = engine.execute(caller, CreateKeyVersion { key }).await?;
            return Ok(Answer::Version(version.id));
        }
        Mutation::Enable => engine.execute(caller, EnableKey { key }).await,
        Mutation::Disable => engine.execute(caller, DisableKey { key, overriding: None }).await,
        Mutation::Describe(description) => {
            engine.execute(caller, UpdateKeyDescription { key, description }).await
        }
        Mutation::Tag(tags) => engine.execute(caller, TagResource { key, tags }).await,
        Mutation::Untag(names) => {
            let which = UntagWhich::Names(names);
            engine.execute(caller, UntagResource { key, which }).await
        }
        Mutation::Schedule(window_days) => {
            engine.execute(caller, ScheduleKeyDeletion { key, window_days, overriding: None }).await
        }
        Mutation::Cancel => engine.execute(caller, CancelKeyDeletion { key }).await,
        Mutation::Protect(enable) => {
            let description = String::new();
            engine.execute(caller, SetDeletionProtection { key, enable, description }).await
        }
        Mutation::Policy(policy) => {
            engine.execute(caller, UpdateRotationPolicy { key, policy }).await
        }
    }?;
    Ok(Answer::Done)
}
