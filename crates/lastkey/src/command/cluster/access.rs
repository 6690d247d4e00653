//! Registers how a cluster is reached, and reaches it.
//!
//! 1. The kubeconfig is read; what cannot stand on its own is refused.
//! 2. With its credential the account `lastkey` is made, with a narrow role; a credential that may
//!    not do that is taken to be narrow already, and is kept itself.
//! 3. What will be registered is tried: every apiserver, and etcd.
//! 4. The server is told that somebody looks after this cluster now, so that its keys are guarded,
//!    and keeps the access sealed.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use lastkey_client::Client;
use lastkey_crypto::{ClusterId, KeyId};
use lastkey_kubernetes::{
    cluster::{
        Access, ApiError, ApiServer, Credential, Etcd, EtcdAccess, Kubeconfig, Migrate, NAMESPACE,
        Role, ServerUrl,
    },
    encryption_config::{MAX_FILE, Named, examine},
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::{
    cli::AccessOptions,
    output::{Exit, Failure, Output, chain},
};

/// An apiserver believes in a new role once its caches have it.
const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(500);
/// A token that is good for less than this is replaced when it is used.
const RENEW_BELOW: Duration = Duration::from_secs(29 * 24 * 3600);

/// Where Kubernetes keeps its objects unless told otherwise.
const ETCD_PREFIX: &str = "/registry";

/// Without it nobody would know whether the cluster has left an object out.
pub(super) const NO_ETCD: &str = "--migration cluster needs the cluster's etcd, where it is seen \
                                  that nothing is left: register it with --etcd";

/// What is to be registered, before the server knows the cluster.
pub(super) struct Prepared {
    access: Access,
    role: Role,
    own_credential: bool,
    rotate_automatically: bool,
}

/// A cluster as the server lists it.
pub(super) struct Known {
    pub(super) id: ClusterId,
    pub(super) name: String,
    pub(super) keys: Vec<KeyId>,
    /// Whether the server rotates it by itself.
    pub(super) automatic: bool,
}

impl Known {
    /// All that the server has.
    pub(super) async fn all(client: &Client) -> Result<Vec<Self>, Failure> {
        let page = client.clusters().await?;
        Ok(page.items.iter().filter_map(Self::read).collect())
    }

    fn read(item: &Value) -> Option<Self> {
        let keys = item["keys"].as_array()?.iter();
        Some(Self {
            id: item["id"].as_str()?.parse().ok()?,
            name: item["name"].as_str().unwrap_or_default().to_owned(),
            keys: keys.filter_map(|key| key.as_str()?.parse().ok()).collect(),
            automatic: item["rotate_automatically"] == true,
        })
    }

    /// What people call it.
    pub(super) fn shown(&self) -> String {
        if self.name.is_empty() { self.id.to_string() } else { self.name.clone() }
    }
}

impl Prepared {
    /// Reads all files. Nothing is sent yet.
    pub(super) fn read(path: &Path, options: &AccessOptions) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::error::Error| Failure::new(Exit::Usage, chain(error));
        let mut access = Kubeconfig::read(path).map_err(|error| wrong(&error))?.access;
        if !options.apiservers.is_empty() {
            let urls = options.apiservers.iter().map(|url| url.parse());
            access.servers = urls.collect::<Result<_, _>>().map_err(|error| wrong(&error))?;
        }
        access.etcd = etcd(options)?;
        access.migrate = options.migration.map(Migrate::from).unwrap_or_default();
        if access.migrate == Migrate::Cluster && access.etcd.is_none() {
            return Err(Failure::new(Exit::Usage, NO_ETCD));
        }
        access.resources = options.resources.clone();
        if let Some(file) = &options.encryption_config {
            let absolute = std::path::absolute(file).map_err(|e| Failure::file(file, &e))?;
            match (access.resources.is_empty(), absolute.try_exists()) {
                (false, _) => {}
                // A new cluster has none yet, and on another machine it cannot be seen.
                (true, Ok(false)) => Output::note(&format!(
                    "{} is not there (yet): taken to be for secrets; --resource says otherwise",
                    absolute.display()
                )),
                (true, _) => access.resources = names_in(&absolute)?,
            }
            access.encryption_config = Some(absolute);
        }
        if access.resources.is_empty() {
            access.resources.push("secrets".to_owned());
        }
        ApiServer::new(&access).map_err(|error| wrong(&error))?;
        let role = Role::new(&access.resources, access.migrate);
        let AccessOptions { own_credential, rotate_automatically, .. } = *options;
        Ok(Self { access, role, own_credential, rotate_automatically })
    }

    /// Makes the account, tries everything, and has the server keep it.
    pub(super) async fn register(
        mut self,
        client: &Client,
        of: &Known,
    ) -> Result<(Value, String), Failure> {
        let mut remark = None;
        if !self.own_credential {
            let admin = open(&self.access)?;
            match self.role.establish(&admin).await {
                Ok(credential) => self.access.credential = credential,
                Err(ApiError::Forbidden { .. }) => {
                    remark = Some("this credential may not make accounts: it is kept itself");
                }
                Err(error) => return Err(unanswered(&error, &self.access.servers)),
            }
        }
        self.prove().await?;
        for key in &of.keys {
            client.put_dependant(*key, &nobody_looked(of)).await?;
        }
        // There is none of a cluster that is new; one that cannot be read is replaced as well.
        let old: Option<Access> = client.cluster_access(of.id).await.ok();
        client.put_cluster_access(of.id, &self.access).await?;
        let forgotten = old.map(|old| forgotten(&old, &self.access)).unwrap_or_default();
        if !forgotten.is_empty() {
            Output::note(&format!(
                "what is not given is forgotten. Registered before, and not now: {}. Where that shall \
                 stay, run this again with all options",
                forgotten.join(", ")
            ));
        }
        if self.rotate_automatically {
            client.configure_cluster(of.id, (true, false)).await?;
        }
        Ok(self.said(remark, &forgotten))
    }

    /// Reaches every apiserver and etcd with what will be registered.
    async fn prove(&self) -> Result<(), Failure> {
        let api = open(&self.access)?;
        let start = Instant::now();
        for server in 0..api.urls().len() {
            loop {
                match api.metrics(server).await {
                    Ok(_) => break,
                    Err(ApiError::Unauthorized | ApiError::Forbidden { .. })
                        if start.elapsed() < PATIENCE =>
                    {
                        tokio::time::sleep(AGAIN).await;
                    }
                    Err(error) => {
                        let asked = self.access.servers.get(server..=server).unwrap_or_default();
                        return Err(unanswered(&error, asked));
                    }
                }
            }
        }
        if let Some(access) = &self.access.etcd {
            let mut etcd = Etcd::new(access).map_err(|e| Failure::new(Exit::Usage, chain(&e)))?;
            let nothing = format!("{}/lastkey-tries-whether-it-may-read/", access.prefix);
            let tried = etcd.scan(&nothing, |_, _| {}).await;
            tried.map_err(|error| Failure::new(Exit::Unavailable, chain(&error)))?;
        }
        Ok(())
    }

    fn said(&self, remark: Option<&str>, forgotten: &[String]) -> (Value, String) {
        let servers: Vec<String> = self.access.servers.iter().map(ToString::to_string).collect();
        let etcd = self.access.etcd.iter().flat_map(|etcd| &etcd.servers);
        let etcd: Vec<String> = etcd.map(ToString::to_string).collect();
        let account = match &self.access.credential {
            Credential::Token { account: Some(name), .. } => {
                Some(format!("system:serviceaccount:{NAMESPACE}:{name}"))
            }
            _ => None,
        };
        let role = self.role.yaml();
        let said = json!({
            "servers": servers, "etcd": etcd, "account": account, "remark": remark,
            "resources": self.access.resources, "role": role,
            "rotate_automatically": self.rotate_automatically, "migration": self.access.migrate,
            "forgotten": forgotten,
        });
        let who = account.unwrap_or_else(|| "the kubeconfig's own account".to_owned());
        let mut text = format!("it is reached at {} as {who}", servers.join(" and "));
        if !etcd.is_empty() {
            text += &format!(", its etcd at {}", etcd.join(" and "));
        }
        if let Some(remark) = remark {
            text +=
                &format!("\n{remark}; better: apply this with an administrator's, then add again");
        }
        text += &format!("\nits role:\n\n{role}\nnext: lastkey cluster status");
        (said, text)
    }
}

/// What the server is told of a cluster that nobody has looked at yet: its keys are guarded from
/// now on.
fn nobody_looked(of: &Known) -> Value {
    json!({ "kind": "cluster", "id": of.id, "name": of.name, "versions": {} })
}

/// What a registration had that the one in its place has not, as the options that would give it.
fn forgotten(old: &Access, new: &Access) -> Vec<String> {
    let servers = old.servers.iter().filter(|server| !new.servers.contains(server));
    let mut options: Vec<String> = servers.map(|server| format!("--apiserver {server}")).collect();
    if let Some(etcd) = &old.etcd {
        let is_left_out =
            |server: &&_| new.etcd.as_ref().is_none_or(|new| !new.servers.contains(server));
        let left_out = etcd.servers.iter().filter(is_left_out);
        options.extend(left_out.map(|server| format!("--etcd {server}")));
        let prefix = new.etcd.as_ref().map_or(ETCD_PREFIX, |etcd| &etcd.prefix);
        if etcd.prefix != prefix {
            options.push(format!("--etcd-prefix {}", etcd.prefix));
        }
    }
    if let (Some(path), None) = (&old.encryption_config, &new.encryption_config) {
        options.push(format!("--encryption-config {}", path.display()));
    }
    let named = |name: &String| Named { name: name.clone(), line: None };
    let covered: Vec<Named> = new.resources.iter().map(named).collect();
    for old in old.resources.iter().map(named) {
        let (resource, group) = old.parts();
        if !covered.iter().any(|new| new.covers(resource, group)) {
            options.push(format!("--resource {}", old.name));
        }
    }
    if new.migrate.is_auto() && !old.migrate.is_auto() {
        options.push(format!("--migration {}", old.migrate.name()));
    }
    options
}

fn etcd(options: &AccessOptions) -> Result<Option<EtcdAccess>, Failure> {
    if options.etcd.is_empty() {
        return Ok(None);
    }
    let read = |path: &Option<std::path::PathBuf>| match path {
        None => Ok(None),
        Some(path) => fs::read_to_string(path).map(Some).map_err(|e| Failure::file(path, &e)),
    };
    let servers = options.etcd.iter().map(|url| url.parse()).collect::<Result<Vec<_>, _>>();
    let access = EtcdAccess {
        servers: servers.map_err(|error| Failure::new(Exit::Usage, chain(&error)))?,
        ca_pem: read(&options.etcd_ca)?,
        certificate_pem: read(&options.etcd_cert)?,
        key_pem: read(&options.etcd_key)?.map(Zeroizing::new),
        prefix: options.etcd_prefix.clone(),
    };
    Etcd::new(&access).map_err(|error| Failure::new(Exit::Usage, chain(&error)))?;
    Ok(Some(access))
}

/// What a configuration covers.
fn names_in(path: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error: &std::io::Error| Failure::file(path, error);
    if fs::metadata(path).map_err(|e| failed(&e))?.len() > MAX_FILE as u64 {
        return Err(Failure::failed(format_args!("{}: larger than 1 MiB", path.display())));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|e| failed(&e))?);
    let mut names: Vec<String> =
        examine(&text).config.names().map(|named| named.name.clone()).collect();
    names.sort();
    names.dedup();
    Ok(names)
}

/// What is encrypted, or was: by the configuration as it is now, if it lies here, and as it was
/// registered. What somebody has taken out of the file since rests as it did.
pub(super) fn resources(access: &Access) -> Vec<String> {
    let now = access.encryption_config.as_deref().and_then(|path| names_in(path).ok());
    let names = now.into_iter().flatten().chain(access.resources.iter().cloned());
    names.collect::<std::collections::BTreeSet<_>>().into_iter().collect()
}

fn open(access: &Access) -> Result<ApiServer, Failure> {
    ApiServer::new(access).map_err(|error| Failure::failed(chain(&error)))
}

pub(super) fn unreachable(error: &ApiError) -> Failure {
    let exit = match error {
        ApiError::Unauthorized | ApiError::Forbidden { .. } => Exit::Denied,
        ApiError::Unreachable { .. } | ApiError::NoAnswer { .. } => Exit::Unavailable,
        _ => Exit::Failed,
    };
    Failure::new(exit, chain(error))
}

/// The same of one of these, while it is registered: what every apiserver has is missing behind a path
/// that is wrong.
fn unanswered(error: &ApiError, servers: &[ServerUrl]) -> Failure {
    let failure = unreachable(error);
    match (error, servers.iter().find(|server| !server.path().is_empty())) {
        (ApiError::NotFound, Some(server)) => failure.and(format_args!(
            "no apiserver answers at {server}: is the path {} in its address right? The kubeconfig's \
             `server`, or --apiserver, says where it is",
            server.path()
        )),
        (ApiError::NotFound, None) => failure.and("is there an apiserver at this address?"),
        _ => failure,
    }
}

/// How a registered cluster is reached. A token that has been used for a day is replaced by its
/// successor; if that fails, the old one is still good.
pub(super) async fn reach(client: &Client, of: ClusterId) -> Result<(Access, ApiServer), Failure> {
    let mut access: Access = client.cluster_access(of).await.map_err(|error| {
        let advice = "register how it is reached: `lastkey cluster add NAME --kubeconfig FILE`";
        Failure::from(error).and(advice)
    })?;
    let api = open(&access)?;
    let Some(name) = due(&access.credential) else { return Ok((access, api)) };
    let role = Role { name, resources: Vec::new(), migrate: access.migrate };
    match role.renew(&api).await {
        Ok(credential) => {
            access.credential = credential;
            client.put_cluster_access(of, &access).await?;
            let api = open(&access)?;
            Ok((access, api))
        }
        Err(error) => {
            tracing::warn!(%error, "the cluster's token could not be replaced yet");
            Ok((access, api))
        }
    }
}

/// The account whose token should be replaced.
fn due(credential: &Credential) -> Option<String> {
    let Credential::Token { account: Some(account), until: Some(until), .. } = credential else {
        return None;
    };
    let until: Timestamp = until.parse().ok()?;
    let left = until.duration_since(Timestamp::now());
    (left < RENEW_BELOW.try_into().ok()?).then(|| account.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(mut more: Value) -> Access {
        let mut whole = json!({
            "servers": ["https://10.0.0.1:6443"], "ca_pem": "", "resources": ["secrets"],
            "credential": { "kind": "token", "token": "t" },
        });
        whole.as_object_mut().unwrap().append(more.as_object_mut().unwrap());
        serde_json::from_value(whole).unwrap()
    }

    #[test]
    fn a_path_that_leads_nowhere_is_named() {
        let said = |url: &str| {
            let servers = ["https://10.0.0.1:6443", url].map(|url| url.parse().unwrap());
            format!("{:?}", unanswered(&ApiError::NotFound, &servers))
        };
        assert!(said("https://10.0.0.2:6443/k8s/prod/").contains("is the path /k8s/prod in"));
        assert!(!said("https://10.0.0.2:6443").contains("path"));
        let servers = ["https://10.0.0.2/k8s".parse().unwrap()];
        assert!(!format!("{:?}", unanswered(&ApiError::Unauthorized, &servers)).contains("path"));
    }

    #[test]
    fn what_a_new_registration_leaves_out_is_named() {
        let plain = access(json!({}));
        let etcd = json!({ "servers": ["https://10.0.0.1:2379"], "prefix": "/elsewhere" });
        let full = access(json!({
            "servers": ["https://10.0.0.1:6443", "https://10.0.0.2:6443"],
            "etcd": etcd, "encryption_config": "/etc/e.yaml", "migrate": "cluster",
            "resources": ["secrets", "configmaps", "*.example.org"],
        }));
        assert_eq!(
            forgotten(&full, &plain),
            [
                "--apiserver https://10.0.0.2:6443",
                "--etcd https://10.0.0.1:2379",
                "--etcd-prefix /elsewhere",
                "--encryption-config /etc/e.yaml",
                "--resource configmaps",
                "--resource *.example.org",
                "--migration cluster",
            ]
        );
        // what is there in other words is not left out
        for (old, new) in [(&plain, &full), (&full, &full), (&plain, &plain)] {
            assert_eq!(forgotten(old, new), [""; 0]);
        }
        let all = access(json!({ "resources": ["*.*"] }));
        assert_eq!(forgotten(&plain, &all), [""; 0]);
        assert_eq!(forgotten(&all, &plain), ["--resource *.*"]);
        let usual = json!({ "servers": ["https://10.0.0.1:2379"], "prefix": ETCD_PREFIX });
        let usual = access(json!({ "etcd": usual }));
        assert_eq!(forgotten(&usual, &plain), ["--etcd https://10.0.0.1:2379"]);
    }
}
