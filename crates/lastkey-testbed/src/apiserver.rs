//! A real kube-apiserver on the loopback, and an administrator's view of it.

use crate::pki::{Authority, Pair};
use crate::process::{Daemon, free_port};
use crate::{Act, Client, Error, Etcd, Peers, Proxy, Request, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value as Json, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// An apiserver starts in 4 s alone; several at once on a busy machine need far longer.
const START: Duration = Duration::from_secs(240);

/// What an administrator of the cluster shows.
#[derive(Clone)]
pub struct Identity {
    /// The client certificate.
    pub pair: Pair,
    /// The authority of the apiserver.
    pub ca: String,
}

/// How an apiserver is to be started.
pub struct ApiserverOptions<'a> {
    /// `1.37.0` or `1.31.0`.
    pub version: &'a str,
    /// What its resources are encrypted with.
    pub encryption_config: &'a Path,
    /// Further flags.
    pub flags: &'a [&'a str],
}

/// A kube-apiserver; stopped when dropped.
pub struct Apiserver {
    process: Daemon,
    command: Command,
    dir: PathBuf,
    client: Client,
    kubeconfig: PathBuf,
    address: String,
    pki: Pki,
}

/// Certificates and keys of one cluster.
#[derive(Clone)]
struct Pki {
    ca_file: PathBuf,
    cert: PathBuf,
    key: PathBuf,
    admin: Identity,
}

impl Pki {
    fn new(dir: &Path) -> Result<Self, Error> {
        let ca = Authority::new("testbed")?;
        let ca_file = dir.join("cluster-ca.pem");
        std::fs::write(&ca_file, ca.certificate()).map_err(Error::file(&ca_file))?;
        let (cert, key) = ca.server("kube-apiserver")?.write(dir, "kube-apiserver")?;
        let pair = ca.client("admin", &["system:masters"])?;
        let admin = Identity { pair, ca: ca.certificate().to_owned() };
        Ok(Self { ca_file, cert, key, admin })
    }
}

impl Apiserver {
    /// Starts one on `etcd` with its files in `dir`, and waits until it serves requests (whether
    /// or not its KMS provider works).
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start(
        peers: &Peers,
        etcd: &Etcd,
        dir: &Path,
        options: &ApiserverOptions<'_>,
    ) -> Result<Self, Error> {
        Self::spawn(peers, etcd, (dir, Pki::new(dir)?), options)
    }

    /// Starts another one of the same cluster: on the same etcd, with the same certificates and
    /// keys, and its files in a `dir` of its own.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn start_beside(
        &self,
        peers: &Peers,
        (etcd, dir): (&Etcd, &Path),
        options: &ApiserverOptions<'_>,
    ) -> Result<Self, Error> {
        Self::spawn(peers, etcd, (dir, self.pki.clone()), options)
    }

    fn spawn(
        peers: &Peers,
        etcd: &Etcd,
        (dir, pki): (&Path, Pki),
        options: &ApiserverOptions<'_>,
    ) -> Result<Self, Error> {
        let Pki { ca_file, cert, key, admin } = &pki;
        let port = free_port()?;
        let mut command = Command::new(peers.path(&format!("kube-apiserver-{}", options.version)));
        let file = |name: &str, path: &Path| format!("--{name}={}", path.display());
        command
            .arg(format!("--etcd-servers={}", etcd.url()))
            .arg(format!("--secure-port={port}"))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            // Refused by 1.37 with a loopback address otherwise.
            .arg("--endpoint-reconciler-type=none")
            .arg(file("tls-cert-file", cert))
            .arg(file("tls-private-key-file", key))
            .arg(file("client-ca-file", ca_file))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            // The public half is read from the certificate.
            .arg(file("service-account-key-file", cert))
            .arg(file("service-account-signing-key-file", key))
            .args(["--service-cluster-ip-range=10.0.0.0/24", "--authorization-mode=RBAC"])
            // There is no controller manager to make service accounts.
            .arg("--disable-admission-plugins=ServiceAccount")
            .arg(file("encryption-provider-config", options.encryption_config))
            .args(options.flags);
        let address = format!("127.0.0.1:{port}");
        let client = Client::tls(&address, &admin.ca, Some(&admin.pair))?;
        let kubeconfig = write_kubeconfig(dir, &address, admin)?;
        let process = Daemon::start("kube-apiserver", &command, dir)?;
        let dir = dir.to_path_buf();
        let mut apiserver = Self { process, command, dir, client, kubeconfig, address, pki };
        apiserver.wait_until_serving()?;
        Ok(apiserver)
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Kills it, starts it again on the same port, and waits until it serves.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.launch()?;
        self.wait_until_serving()
    }

    /// As [`Apiserver::restart`], without waiting: as long as Secrets cannot be decrypted, an
    /// apiserver that has some does not become ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self) -> Result<(), Error> {
        self.process.kill();
        self.process = Daemon::start("kube-apiserver", &self.command, &self.dir)?;
        Ok(())
    }

    /// Waits until it serves requests, whether or not its KMS provider is healthy.
    ///
    /// # Errors
    /// When it does not, or ends.
    pub fn wait_until_serving(&mut self) -> Result<(), Error> {
        let client = &self.client;
        self.process.until("kube-apiserver serves requests", START, || {
            // The provider is left out: a broken one keeps the whole check from ever turning ok.
            client.get("/readyz?exclude=kms-providers")?.expect_ok("readyz")
        })?;
        // The namespace is made by a controller of the apiserver itself, a moment later.
        let namespace = "/api/v1/namespaces/default";
        self.process.until("the default namespace exists", START, || {
            client.get(namespace)?.expect_ok("namespace").map(drop)
        })
    }

    /// A proxy in front of it; clients reach this apiserver through it as if it were its own
    /// address, with a token.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn proxy(
        &self,
        hook: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Result<Proxy, Error> {
        let read = |path: &Path| std::fs::read_to_string(path).map_err(Error::file(path));
        let (cert, key) = (read(&self.pki.cert)?, read(&self.pki.key)?);
        Proxy::start(Client::tls(&self.address, &self.pki.admin.ca, None)?, (&cert, &key), hook)
    }

    /// `https://host:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// An administrator's client.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// An administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// Everything it logged so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Creates a Secret in `default` with one entry, `value`.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub fn create_secret(&self, name: &str, value: &str) -> Result<Response, Error> {
        let body = secret(name, value);
        self.client.send("POST", SECRETS, Some(&body))
    }

    /// Reads a Secret from etcd (never from the watch cache).
    ///
    /// # Errors
    /// When there is no answer at all.
    pub fn get_secret(&self, name: &str) -> Result<Response, Error> {
        self.client.get(&format!("{SECRETS}/{name}"))
    }

    /// The entry `value` of a Secret.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn secret_value(&self, name: &str) -> Result<String, Error> {
        let secret = self.get_secret(name)?.expect_ok(&format!("reading secret {name}"))?.json();
        Ok(entry(&secret))
    }

    /// Gives a Secret another value.
    ///
    /// # Errors
    /// When there is no answer at all.
    pub fn update_secret(&self, name: &str, value: &str) -> Result<Response, Error> {
        let path = format!("{SECRETS}/{name}");
        self.client.send("PUT", &path, Some(&secret(name, value)))
    }

    /// Writes a Secret back exactly as it is, which re-encrypts it when it is stale.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn touch_secret(&self, name: &str) -> Result<(), Error> {
        let path = format!("{SECRETS}/{name}");
        let now = self.client.get(&path)?.expect_ok(&format!("reading secret {name}"))?.json();
        let answer = self.client.send("PUT", &path, Some(&now))?;
        answer.expect_ok(&format!("writing secret {name} back")).map(drop)
    }

    /// Names and values of all Secrets in `default`.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn list_secrets(&self) -> Result<Vec<(String, String)>, Error> {
        let list = self.client.get(SECRETS)?.expect_ok("listing secrets")?.json();
        let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let name = |item: &Json| item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Ok(items.iter().map(|item| (name(item), entry(item))).collect())
    }

    /// Lines of its metrics that contain `part`.
    ///
    /// # Errors
    /// When there are no metrics.
    pub fn metrics(&self, part: &str) -> Result<Vec<String>, Error> {
        let text = self.client.get("/metrics")?.expect_ok("metrics")?.text();
        let lines = text.lines().filter(|l| !l.starts_with('#') && l.contains(part));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Where etcd keeps a Secret of `default`.
    #[must_use]
    pub fn etcd_path(name: &str) -> String {
        format!("/registry/secrets/default/{name}")
    }
}

const SECRETS: &str = "/api/v1/namespaces/default/secrets";

fn secret(name: &str, value: &str) -> Json {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": { "name": name },
        "data": { "value": BASE64.encode(value) },
    })
}

fn entry(secret: &Json) -> String {
    let bytes = BASE64.decode(secret["data"]["value"].as_str().unwrap_or_default());
    String::from_utf8(bytes.unwrap_or_default()).unwrap_or_default()
}

fn write_kubeconfig(dir: &Path, address: &str, identity: &Identity) -> Result<PathBuf, Error> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "testbed", "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority-data": BASE64.encode(&identity.ca),
        }}],
        "users": [{ "name": "admin", "user": {
            "client-certificate-data": BASE64.encode(&identity.pair.certificate),
            "client-key-data": BASE64.encode(&identity.pair.key),
        }}],
        "contexts": [{ "name": "testbed", "context": { "cluster": "testbed", "user": "admin" } }],
        "current-context": "testbed",
    });
    let path = dir.join("kubeconfig");
    // JSON is YAML.
    std::fs::write(&path, config.to_string()).map_err(Error::file(&path))?;
    Ok(path)
}
