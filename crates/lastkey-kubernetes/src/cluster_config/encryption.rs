//! The apiserver's `EncryptionConfiguration`.

use std::collections::HashSet;

use super::{ConfigError, quoted};
use crate::socket::SocketAddress;

/// Which protocol the apiserver speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KmsVersion {
    /// For every release from 1.27 on.
    #[default]
    V2,
    /// Deprecated, off by default since 1.29, and blind to rotation.
    V1,
}

/// An `EncryptionConfiguration` with one KMS provider.
#[derive(Debug, Clone)]
pub struct EncryptionConfig {
    /// Part of every stored object; it may never change while any of them exists.
    pub provider: String,
    /// What is encrypted, such as `secrets` or `configmaps` or `widgets.example.org`.
    pub resources: Vec<String>,
    /// Where the plugin listens.
    pub socket: SocketAddress,
    /// Which protocol is spoken.
    pub version: KmsVersion,
}

impl EncryptionConfig {
    /// Secrets, over KMS v2, by a provider named `lastkey`.
    pub fn new(socket: SocketAddress) -> Self {
        Self {
            provider: "lastkey".to_owned(),
            resources: vec!["secrets".to_owned()],
            socket,
            version: KmsVersion::V2,
        }
    }

    /// The file's content.
    ///
    /// `identity` comes last, so that what was stored in clear before can still be read; were it
    /// first, every write would go on in clear, without a word from the apiserver.
    pub fn yaml(&self) -> Result<String, ConfigError> {
        check_provider(&self.provider)?;
        check_resources(&self.resources)?;
        self.socket.check().map_err(|error| ConfigError::Socket(error.to_string()))?;
        let mut resources = String::new();
        for resource in &self.resources {
            resources += &format!("      - {}\n", quoted(resource)?);
        }
        let version = match self.version {
            KmsVersion::V2 => "v2",
            KmsVersion::V1 => "v1",
        };
        Ok(format!(
            "\
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  - resources:
{resources}    providers:
      - kms:
          apiVersion: {version}
          name: {name}
          endpoint: {endpoint}
          timeout: 3s
      # reads what was stored before; must stay last
      - identity: {{}}
",
            name = quoted(&self.provider)?,
            endpoint = quoted(&self.socket.endpoint())?,
        ))
    }
}

fn check_provider(name: &str) -> Result<(), ConfigError> {
    let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match !name.is_empty() && name.len() <= 63 && name.bytes().all(label) {
        true => Ok(()),
        false => Err(ConfigError::Provider(name.to_owned())),
    }
}

/// What an apiserver refuses at its start (1.37), and what it would never match.
fn check_resources(resources: &[String]) -> Result<(), ConfigError> {
    if resources.is_empty() {
        return Err(ConfigError::NoResource);
    }
    let mut seen = HashSet::new();
    for resource in resources {
        let refuse = |reason| Err(ConfigError::Resource { resource: resource.clone(), reason });
        let (name, group) = resource.split_once('.').unwrap_or((resource, ""));
        if resource.is_empty() || !resource.bytes().all(is_name) {
            return refuse("names are lower-case letters, digits, dots and -");
        }
        if name.contains('*') && (name != "*" || group.is_empty()) {
            return refuse("a wildcard is *.GROUP or *.*");
        }
        if group.contains('*') && group != "*" {
            return refuse("a wildcard is *.GROUP or *.*");
        }
        if group == "events.k8s.io" {
            return refuse("name events without a group");
        }
        if group == "extensions" {
            return refuse("the group extensions is gone; name the group that took it over");
        }
        if !seen.insert(resource) {
            return refuse("it is named twice");
        }
    }
    for resource in resources {
        let group = resource.split_once('.').map_or("", |(_, group)| group);
        let masks = |other: &str| other != resource && seen.contains(&other.to_owned());
        if masks("*.*") || !group.is_empty() && masks(&format!("*.{group}")) {
            let reason = "a wildcard in the same list covers it already";
            return Err(ConfigError::Resource { resource: resource.clone(), reason });
        }
    }
    Ok(())
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b'*')
}
