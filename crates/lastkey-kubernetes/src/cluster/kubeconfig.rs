//! Reads a kubeconfig, as far as a credential in it can stand on its own.
//!
//! The server uses what it is given long after the person who gave it has gone, on another machine.
//! So files are read now, and what runs a program, asks an identity provider or goes through a
//! proxy of this machine is refused with the reason.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Access, AccessError, Credential, Migrate, ServerUrl};

/// Larger files are none.
const MAX_FILE: u64 = 1 << 20;

/// Why a kubeconfig cannot be used. None of these holds anything of its content but names.
#[derive(Debug, thiserror::Error)]
pub enum KubeconfigError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is not the YAML that it should be.
    #[error("not a kubeconfig{}", .line.map(|line| format!(" (line {line})")).unwrap_or_default())]
    Malformed {
        /// Where reading stopped.
        line: Option<u64>,
    },
    /// Something that it refers to is not in it.
    #[error("the kubeconfig has no {what} {name:?}")]
    Missing {
        /// `context`, `cluster` or `user`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A field is not base64.
    #[error("{field} is not base64 of a PEM text")]
    Encoding {
        /// Which one.
        field: &'static str,
    },
    /// It names no certificate authority.
    #[error("the kubeconfig's cluster has no certificate-authority: lastkey trusts no other")]
    NoAuthority,
    /// The user has nothing that proves who it is.
    #[error(
        "the kubeconfig's user {user:?} has neither a client certificate with its key nor a token"
    )]
    NoCredential {
        /// Its name.
        user: String,
    },
    /// It cannot stand on its own.
    #[error(
        "the kubeconfig's {whose} uses {what}: {why}; give a kubeconfig with a client certificate or a token"
    )]
    Unsupported {
        /// `cluster` or `user`.
        whose: &'static str,
        /// The field.
        what: String,
        /// Why not.
        why: &'static str,
    },
    /// What it holds cannot be used.
    #[error(transparent)]
    Access(#[from] AccessError),
}

/// What the current context of a kubeconfig gives.
pub struct Kubeconfig {
    /// The context's name.
    pub context: String,
    /// The cluster's address, authority and credential.
    pub access: Access,
}

impl Kubeconfig {
    /// Reads a file; what it refers to is read beside it.
    ///
    /// # Errors
    /// When it cannot be read, or not be used.
    pub fn read(path: &Path) -> Result<Self, KubeconfigError> {
        let text = read_file(path)?;
        Self::parse(&text, path.parent().unwrap_or(Path::new(".")))
    }

    /// Reads a text; relative paths in it start at `beside`.
    ///
    /// # Errors
    /// When it cannot be used.
    pub fn parse(text: &str, beside: &Path) -> Result<Self, KubeconfigError> {
        // the library's own words quote the text, and with it a key
        let file: File = serde_saphyr::from_str(text).map_err(|error| {
            KubeconfigError::Malformed { line: error.location().map(|place| place.line()) }
        })?;
        let name = file.current_context.unwrap_or_default();
        let context = named(file.contexts, &name, "context")?.context;
        let cluster = named(file.clusters, &context.cluster, "cluster")?.cluster;
        let user = named(file.users, &context.user, "user")?.user;
        let credential = user.credential(&context.user, beside)?;
        Ok(Self { context: name, access: cluster.access(credential, beside)? })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct File {
    current_context: Option<String>,
    #[serde(default)]
    contexts: Option<Vec<NamedContext>>,
    #[serde(default)]
    clusters: Option<Vec<NamedCluster>>,
    #[serde(default)]
    users: Option<Vec<NamedUser>>,
}

trait Named {
    fn name(&self) -> &str;
}

macro_rules! named {
    ($($entry:ident { $field:ident: $what:ty }),* $(,)?) => {
        $(
            #[derive(Deserialize)]
            struct $entry {
                name: String,
                $field: $what,
            }
            impl Named for $entry {
                fn name(&self) -> &str {
                    &self.name
                }
            }
        )*
    };
}

named! {
    NamedContext { context: Context },
    NamedCluster { cluster: Cluster },
    NamedUser { user: User },
}

/// The first of that name, as kubectl takes it.
fn named<T: Named>(
    of: Option<Vec<T>>,
    name: &str,
    what: &'static str,
) -> Result<T, KubeconfigError> {
    let found = of.unwrap_or_default().into_iter().find(|entry| entry.name() == name);
    found.ok_or_else(|| KubeconfigError::Missing { what, name: name.to_owned() })
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

impl Cluster {
    fn access(self, credential: Credential, beside: &Path) -> Result<Access, KubeconfigError> {
        let unsupported = |what: &str, why| {
            Err(KubeconfigError::Unsupported { whose: "cluster", what: what.to_owned(), why })
        };
        if self.insecure_skip_tls_verify {
            return unsupported("insecure-skip-tls-verify", "anybody could pose as the apiserver");
        }
        if self.proxy_url.is_some() {
            return unsupported(
                "proxy-url",
                "the server reaches the cluster directly or not at all",
            );
        }
        let ca_pem = match (self.certificate_authority_data, self.certificate_authority) {
            (Some(data), _) => pem(&data, "certificate-authority-data")?.to_string(),
            (None, Some(path)) => read_file(&beside.join(path))?.to_string(),
            (None, None) => return Err(KubeconfigError::NoAuthority),
        };
        Ok(Access {
            servers: vec![self.server.parse::<ServerUrl>()?],
            ca_pem,
            tls_server_name: self.tls_server_name,
            credential,
            etcd: None,
            encryption_config: None,
            resources: Vec::new(),
            migrate: Migrate::Auto,
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct User {
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<Zeroizing<String>>,
    token: Option<Zeroizing<String>>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    exec: Option<Exec>,
    auth_provider: Option<serde::de::IgnoredAny>,
    #[serde(rename = "as")]
    impersonate: Option<String>,
}

#[derive(Deserialize)]
struct Exec {
    command: String,
}

impl User {
    fn credential(self, name: &str, beside: &Path) -> Result<Credential, KubeconfigError> {
        let unsupported =
            |what: String, why| Err(KubeconfigError::Unsupported { whose: "user", what, why });
        if let Some(exec) = self.exec {
            let what = format!("the program {:?} (exec)", exec.command);
            return unsupported(what, "it would have to run wherever the rotation runs");
        }
        if self.auth_provider.is_some() {
            let why = "it asks an identity provider in the name of a person";
            return unsupported("auth-provider".to_owned(), why);
        }
        if self.username.is_some() {
            return unsupported("a password".to_owned(), "no apiserver has taken one since 1.19");
        }
        if self.impersonate.is_some() {
            return unsupported(
                "as".to_owned(),
                "an account that may impersonate may do everything",
            );
        }
        let file =
            |path: Option<PathBuf>| path.map(|path| read_file(&beside.join(path))).transpose();
        let data = |text: Option<&str>, field| text.map(|text| pem(text, field)).transpose();
        let token = match self.token {
            Some(token) => Some(token),
            None => file(self.token_file)?,
        };
        let chain = match data(self.client_certificate_data.as_deref(), "client-certificate-data")?
        {
            Some(chain) => Some(chain),
            None => file(self.client_certificate)?,
        };
        let key =
            match data(self.client_key_data.as_ref().map(|key| key.as_str()), "client-key-data")? {
                Some(key) => Some(key),
                None => file(self.client_key)?,
            };
        match (token, chain, key) {
            // as kubectl: a certificate goes before a token
            (_, Some(chain), Some(key_pem)) => {
                Ok(Credential::Certificate { certificate_pem: chain.to_string(), key_pem })
            }
            (Some(token), _, _) if !token.trim().is_empty() => {
                let token = Zeroizing::new(token.trim().to_owned());
                Ok(Credential::Token { token, account: None, until: None })
            }
            _ => Err(KubeconfigError::NoCredential { user: name.to_owned() }),
        }
    }
}

fn pem(data: &str, field: &'static str) -> Result<Zeroizing<String>, KubeconfigError> {
    let wrong = || KubeconfigError::Encoding { field };
    let stripped = Zeroizing::new(data.split_ascii_whitespace().collect::<String>());
    let bytes = Zeroizing::new(BASE64.decode(stripped.as_bytes()).map_err(|_| wrong())?);
    let text = std::str::from_utf8(&bytes).map_err(|_| wrong())?;
    Ok(Zeroizing::new(text.to_owned()))
}

fn read_file(path: &Path) -> Result<Zeroizing<String>, KubeconfigError> {
    let failed = |source| KubeconfigError::Read { path: path.to_owned(), source };
    if fs::metadata(path).map_err(failed)?.len() > MAX_FILE {
        return Err(failed(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB")));
    }
    fs::read_to_string(path).map(Zeroizing::new).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(cluster: &str, user: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: main\n\
             contexts:\n- name: main\n  context: {{cluster: c, user: u}}\n\
             clusters:\n- name: c\n  cluster: {{server: 'https://h:6443', {cluster}}}\n\
             users:\n- name: u\n  user: {{{user}}}\n"
        )
    }

    fn parse(cluster: &str, user: &str) -> Result<Kubeconfig, KubeconfigError> {
        Kubeconfig::parse(&config(cluster, user), Path::new("/nowhere"))
    }

    const CA: &str = "certificate-authority-data: Q0E=";

    #[test]
    fn credentials_are_taken() {
        let taken = parse(CA, "token: abc").unwrap();
        assert_eq!((taken.context.as_str(), taken.access.ca_pem.as_str()), ("main", "CA"));
        assert_eq!(taken.access.servers[0].to_string(), "https://h:6443");
        assert!(
            matches!(&taken.access.credential, Credential::Token { token, .. } if **token == "abc")
        );
        let both = parse(CA, "token: abc, client-certificate-data: Qw==, client-key-data: Sw==");
        let credential = both.unwrap().access.credential;
        assert!(matches!(&credential, Credential::Certificate { key_pem, .. } if **key_pem == "K"));
    }

    #[test]
    fn what_cannot_stand_on_its_own_is_refused() {
        for (cluster, user, says) in [
            (CA, "exec: {command: aws}", "the program \"aws\" (exec)"),
            (CA, "auth-provider: {name: oidc}", "auth-provider"),
            (CA, "username: a, password: s3cret", "a password"),
            (CA, "token: abc, as: root", "impersonate"),
            (CA, "client-certificate-data: Qw==", "neither"),
            ("insecure-skip-tls-verify: true", "token: abc", "insecure-skip-tls-verify"),
            ("proxy-url: 'http://p', certificate-authority-data: Q0E=", "token: abc", "proxy-url"),
            ("tls-server-name: x", "token: abc", "certificate-authority"),
            ("certificate-authority: ca.pem", "token: abc", "/nowhere/ca.pem"),
            ("certificate-authority-data: '%%'", "token: abc", "base64"),
        ] {
            let error = parse(cluster, user).err().unwrap_or_else(|| panic!("{user} is taken"));
            assert!(error.to_string().contains(says), "{error}");
            assert!(!error.to_string().contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_broken_file_does_not_show_itself() {
        let error = Kubeconfig::parse("users: [{name: u, user: {token: s3cret]}", Path::new("."));
        let error = error.err().unwrap().to_string();
        assert!(error.starts_with("not a kubeconfig"), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}
