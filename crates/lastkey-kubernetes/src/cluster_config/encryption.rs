//! The apiserver's `EncryptionConfiguration`.

use super::{ConfigError, quoted};
use crate::{
    encryption_config::{Finding, Severity, examine},
    socket::SocketAddress,
};

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

/// What the doctor calls a file that Secrets are not in.
const UNCOVERED: &str = "secrets-uncovered";

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

    /// The file's content. What the doctor calls an error in it is not answered.
    ///
    /// `identity` comes last, so that what was stored in clear before can still be read; were it
    /// first, every write would go on in clear, without a word from the apiserver.
    pub fn yaml(&self) -> Result<String, ConfigError> {
        check_provider(&self.provider)?;
        if self.resources.is_empty() {
            return Err(ConfigError::NoResource);
        }
        self.socket.check().map_err(|error| ConfigError::Socket(error.to_string()))?;
        let mut resources = String::new();
        for resource in &self.resources {
            resources += &format!("      - {}\n", quoted(resource)?);
        }
        let version = match self.version {
            KmsVersion::V2 => "v2",
            KmsVersion::V1 => "v1",
        };
        let yaml = format!(
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
        );
        match examine(&yaml).findings.into_iter().find(|finding| self.is_against(finding)) {
            Some(finding) => Err(ConfigError::Refused(finding)),
            None => Ok(yaml),
        }
    }

    /// Whether what the doctor finds speaks against the file: not that it has what was asked for, KMS
    /// v1 or only resources that were named. Of Secrets without a rule, [`Self::leaves_secrets`] tells.
    fn is_against(&self, finding: &Finding) -> bool {
        let asked = match finding.code {
            "kms-v1" => self.version == KmsVersion::V1,
            code => code == UNCOVERED,
        };
        finding.severity == Severity::Error && !asked
    }

    /// Whether new Secrets would be written in clear by this file.
    pub fn leaves_secrets(&self) -> bool {
        let told = |yaml: String| examine(&yaml).findings.iter().any(|it| it.code == UNCOVERED);
        self.yaml().is_ok_and(told)
    }
}

fn check_provider(name: &str) -> Result<(), ConfigError> {
    let label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    match !name.is_empty() && name.len() <= 63 && name.bytes().all(label) {
        true => Ok(()),
        false => Err(ConfigError::Provider(name.to_owned())),
    }
}
