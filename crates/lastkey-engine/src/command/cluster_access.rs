//! How a cluster's apiservers and its etcd are reached: kept sealed, given to administrators only.
//!
//! What it says is the business of those who use it; to the engine it is a secret.
//!
//! Record `cluster-access/<cluster id>` (behind the barrier):
//! ```text
//! 00  1  format 1
//! 01  …  JSON
//! ```

use lastkey_crypto::{ClusterId, SecretBytes};
use zeroize::Zeroizing;

use super::{Command, Done, Scope, dependants};
use crate::{
    Error, action::Action, audit::Record, barrier::Expect, engine::Core, policy::Resource,
};

const FORMAT: u8 = 1;
/// Certificates and keys of a cluster and its etcd are a tenth of it.
const MAX_ACCESS: usize = 256 * 1024;

/// Where it is kept.
pub(super) fn path(cluster: ClusterId) -> String {
    format!("cluster-access/{cluster}")
}

/// Keeps how a cluster is reached, in place of what was known.
pub struct PutClusterAccess {
    /// The cluster.
    pub cluster: ClusterId,
    /// Addresses and credentials, JSON.
    pub access: SecretBytes,
}

impl Command for PutClusterAccess {
    const ACTION: Action = Action::PutClusterAccess;
    type Output = ();

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        Resource::Service
    }

    fn validate(&self) -> Result<(), Error> {
        match self.access.expose().len() {
            0 => Err(Error::MissingParameter("access")),
            length if length > MAX_ACCESS => {
                Err(Error::LimitExceeded { what: "bytes of an access", limit: MAX_ACCESS })
            }
            _ => Ok(()),
        }
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<()>, Error> {
        let known = core.records.cluster(self.cluster).ok_or(Error::NotFound("cluster"))?;
        let path = path(self.cluster);
        let expect = core.records.raw(&path).await?.map_or(Expect::Absent, |old| old.expect());
        let mut value = Zeroizing::new(Vec::with_capacity(1 + self.access.expose().len()));
        value.push(FORMAT);
        value.extend_from_slice(self.access.expose());
        // From now on somebody can look at what it has; until then nobody knows.
        let change = dependants::expect_a_look(core, &known.value).await?;
        Ok(Done::write((), change.put(path, value, expect)))
    }
}

/// Answers with how a cluster is reached.
#[derive(Clone, Copy, Debug)]
pub struct GetClusterAccess {
    /// The cluster.
    pub cluster: ClusterId,
}

impl Command for GetClusterAccess {
    const ACTION: Action = Action::GetClusterAccess;
    type Output = SecretBytes;

    fn resource(&self, _: &Core, record: &mut Record) -> Resource {
        record.field("cluster", self.cluster);
        Resource::Service
    }

    async fn act(&self, core: &Core, _: &mut Scope<'_>) -> Result<Done<SecretBytes>, Error> {
        let stored = core.records.raw(&path(self.cluster)).await?;
        let stored = stored.ok_or(Error::NotFound("access to this cluster"))?;
        match stored.value.expose().split_first() {
            Some((&FORMAT, json)) => Ok(Done::read(SecretBytes::new(json.to_vec()))),
            _ => Err(Error::Internal),
        }
    }
}
