//! The service as a whole: its status, its audit log, its credentials.

use lastkey_crypto::{Epoch, KeyId, SecretBytes, memory};
use lastkey_store::StoreHealth;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Command, Done, Scope};
use crate::{
    Error, Timestamp,
    action::Action,
    audit::{Query, QueryPage, Record, Verification},
    barrier::Expect,
    engine::Core,
    identity::AccessKey,
    key_index::KeyIndex,
    policy::Resource,
    records::Change,
};

/// At most so many certificates that run out are warned of by name.
const MAX_LATE: usize = 10;

/// How the service is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceStatus {
    /// This release.
    pub version: &'static str,
    /// When the engine started.
    pub started: Timestamp,
    /// The server's clock.
    pub now: Timestamp,
    /// What protects the root key.
    pub seal: &'static str,
    /// Whether requests can be recorded and changes kept.
    pub ready: bool,
    /// How many keys there are.
    pub keys: usize,
    /// How many clusters there are.
    pub clusters: usize,
    /// The newest audit record's number.
    pub audit_records: u64,
    /// The hash of its line.
    pub audit_head: String,
    /// Pages of key memory.
    pub key_pages: usize,
    /// Those that the system refused to lock.
    pub key_pages_unlocked: usize,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// Answers with how the service is.
#[derive(Clone, Copy, Debug)]
pub struct DescribeService;

impl Command for DescribeService {
    const ACTION: Action = Action::DescribeService;
    type Output = ServiceStatus;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<ServiceStatus>, Error> {
        Ok(Done::read(core.service_status()))
    }
}

impl Core {
    fn service_status(&self) -> ServiceStatus {
        let head = self.audit.head();
        let memory = memory::stats();
        // Not held while the warnings look at it.
        let seal = self.seal_kind.lock().name();
        ServiceStatus {
            version: env!("CARGO_PKG_VERSION"),
            started: self.started,
            now: self.clock.now(),
            seal,
            ready: self.readiness().is_ok(),
            keys: self.records.with_key_ids(KeyIndex::len),
            clusters: self.records.clusters().len(),
            audit_records: head.seq,
            audit_head: hex::encode(head.hash),
            key_pages: memory.pages_mapped,
            key_pages_unlocked: memory.pages_unlocked,
            warnings: self.warnings(memory.pages_unlocked),
        }
    }

    fn warnings(&self, unlocked: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        if *self.seal_kind.lock() == crate::seal::SealKind::File {
            warnings.push(
                "the root key is kept in a file beside the store: whoever can read the data \
                 directory can read every key"
                    .to_owned(),
            );
        }
        warnings.push(
            "no backup of this installation is known: what was encrypted is lost with its disk; \
             stop the server and copy the data directory to a safe place"
                .to_owned(),
        );
        if unlocked > 0 {
            warnings.push(format!(
                "{unlocked} pages of key memory could not be locked and may be swapped out; raise \
                 the limit on locked memory (LimitMEMLOCK, ulimit -l)"
            ));
        }
        for late in self.identities().late.iter().take(MAX_LATE) {
            warnings.push(format!(
                "the certificate of the plugin {} of the cluster {} ends at {} and was not \
                 renewed; is the plugin running? If it is gone for good: lastkey cluster node revoke",
                late.name, late.cluster, late.ends
            ));
        }
        for (cluster, name) in self.copied().iter().take(MAX_LATE) {
            warnings.push(format!(
                "the plugin {name} of the cluster {cluster} runs under several certificates: its \
                 files were copied, to other nodes or by a thief; give each node a plugin of its own \
                 (docs/nodes.md), then end this one: lastkey cluster node revoke --plugin {name}"
            ));
        }
        warnings.extend(self.log_warnings.iter().cloned());
        if let Some(why) = self.audit.signing_fails() {
            warnings.push(format!("the newest audit records are not signed: {why}"));
        }
        warnings
    }

    /// Why requests cannot be worked on at present, if they cannot.
    pub(crate) fn readiness(&self) -> Result<(), Error> {
        self.audit.health()?;
        self.records.barrier.trust()?;
        match self.records.barrier.store().health() {
            StoreHealth::Serving => Ok(()),
            StoreHealth::Full => Err(Error::StorageFull),
            StoreHealth::Failed { reason } => Err(Error::Unavailable(reason)),
        }
    }
}

/// Answers with audit records.
#[derive(Clone, Debug)]
pub struct QueryAudit {
    /// Which.
    pub query: Query,
}

impl Command for QueryAudit {
    const ACTION: Action = Action::QueryAudit;
    type Output = QueryPage;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<QueryPage>, Error> {
        let (audit, query) = (core.audit.clone(), self.query.clone());
        read_log(move || audit.query(&query)).await.map(Done::read)
    }
}

/// Recomputes the audit log's chain.
#[derive(Clone, Copy, Debug)]
pub struct VerifyAudit;

impl Command for VerifyAudit {
    const ACTION: Action = Action::VerifyAudit;
    type Output = Verification;

    fn resource(&self, _: &Core, _: &mut Record) -> Resource {
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<Verification>, Error> {
        let (audit, known) = (core.audit.clone(), core.outbox.remembered());
        read_log(move || audit.verify(&known)).await.map(Done::read)
    }
}

/// Reads files where that may take its time.
async fn read_log<T: Send + 'static>(
    read: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(read)
        .await
        .map_err(|_| Error::Internal)?
        .map_err(|error| Error::Unavailable(format!("the audit log cannot be read: {error}")))
}

macro_rules! permission {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name;

        impl Command for $name {
            const ACTION: Action = Action::$name;
            type Output = ();

            fn resource(&self, _: &Core, _: &mut Record) -> Resource {
                Resource::Service
            }

            async fn act(&self, _: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
                Ok(Done::read(()))
            }
        }
    };
}

permission! {
    /// Asks leave to read the certificates, which the front end holds.
    ReadCertificate
}

permission! {
    /// Asks leave to renew the server's certificate, which the front end does.
    RenewCertificate
}

/// Keeps the access key of the account root. There is one; a second is refused.
pub struct CreateAccessKey {
    /// The id.
    pub id: String,
    /// The secret.
    pub secret: SecretBytes,
}

impl Command for CreateAccessKey {
    const ACTION: Action = Action::CreateAccessKey;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("target", &self.id);
        Resource::Service
    }

    fn validate(&self) -> Result<(), Error> {
        if self.id.is_empty() || self.id.len() > 64 || !self.id.is_ascii() {
            return Err(Error::invalid("AccessKeyId", "give 1 to 64 ASCII characters"));
        }
        if !(32..=64).contains(&self.secret.expose().len()) {
            return Err(Error::invalid("AccessKeySecret", "give 32 to 64 characters"));
        }
        Ok(())
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
        if core.records.has_access_keys() {
            return Err(Error::Exists("root access key"));
        }
        let key = AccessKey {
            id: self.id.as_str().into(),
            secret: lastkey_crypto::KeyMaterial::from_slice(self.secret.expose()),
            created: core.clock.now(),
        };
        Ok(Done::write((), Change::new().create_access_key(key)))
    }
}

/// Keeps a secret of a front end, such as its CA's private key, behind the barrier.
pub struct WriteSealed {
    /// Its name: lower-case letters, digits and hyphens.
    pub name: &'static str,
    /// The secret.
    pub value: SecretBytes,
}

/// Where a front end's secret is kept.
pub(crate) fn sealed_path(name: &str) -> String {
    format!("sealed/{name}")
}

impl Command for WriteSealed {
    const ACTION: Action = Action::WriteSealed;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("target", self.name);
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let path = sealed_path(self.name);
        let expect = core.records.raw(&path).await?.map_or(Expect::Absent, |old| old.expect());
        let value = Zeroizing::new(self.value.expose().to_vec());
        Ok(Done::write((), Change::new().put(path, value, expect)))
    }
}

/// Draws new epochs for keys of a store that was restored, so that no key id comes twice.
pub(crate) struct RedrawEpochs {
    pub(crate) keys: Vec<KeyId>,
}

impl Command for RedrawEpochs {
    const ACTION: Action = Action::RedrawEpochs;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.number("keys", self.keys.len() as u64);
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let mut change = Change::new();
        for id in &self.keys {
            let old = core.records.key(*id).await?;
            let mut new = old.value.clone();
            new.superseded = None;
            new.primary.epoch = Epoch::random(&*core.entropy);
            change = change.update_key(&old, new);
        }
        Ok(Done::write((), change))
    }
}
