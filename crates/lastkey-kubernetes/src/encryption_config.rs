//! An apiserver's EncryptionConfiguration, read as the apiserver reads it, and judged.
//!
//! [`examine`] says what an apiserver would refuse and what it would accept without a word although
//! it leaves values in clear or cannot work. The rules are those of Kubernetes 1.37
//! (`k8s.io/apiserver`, `pkg/apis/apiserver/validation` and `pkg/server/options/encryptionconfig`);
//! a test gives every kind of file to a real apiserver too.
//!
//! Local keys are measured when they are read and zeroed; none is kept or shown.

mod advice;
mod decode;
mod edit;
mod finding;
mod golang;
mod lines;
mod local_keys;
mod rules;
mod strict;
mod tree;
mod unknown;
mod write;

use zeroize::Zeroizing;

pub use edit::{Draft, DraftRule, EditError, Edited, Item, apply, readable};
pub use finding::{Finding, Severity};
pub use rules::resource_options;

/// Larger files are refused unread.
pub const MAX_FILE: usize = 1 << 20;

/// What a file says, and what is to be said about it.
#[derive(Debug)]
pub struct Examined {
    /// As far as it can be understood.
    pub config: EncryptionConfiguration,
    /// In the order of the lines they are about; the file as a whole first.
    pub findings: Vec<Finding>,
}

impl Examined {
    /// Whether an apiserver refuses it, or it leaves new writes in clear.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|finding| finding.severity == Severity::Error)
    }
}

/// Reads and judges a file's bytes, whatever they are.
pub fn examine_bytes(bytes: &[u8]) -> Examined {
    match strict::text(bytes) {
        Ok(text) => examine(&text),
        Err(finding) => {
            Examined { config: EncryptionConfiguration::default(), findings: vec![finding] }
        }
    }
}

/// Reads and judges a file's content.
pub fn examine(text: &str) -> Examined {
    let mut findings = Vec::new();
    let config = match tree::read(text, &mut findings) {
        Some(root) => decode::configuration(&root, &mut findings),
        None => None,
    };
    if let Some(config) = &config {
        rules::check(config, &mut findings);
        // advice on top of what cannot be read would be guesses
        if findings.iter().all(|finding| finding.code != "unknown-field") {
            advice::give(config, &mut findings);
        }
    }
    findings.sort_by_key(|finding| finding.line);
    Examined { config: config.unwrap_or_default(), findings }
}

/// The whole file.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct EncryptionConfiguration {
    /// What applies to which resources, in order.
    pub rules: Vec<Rule>,
}

/// One item of `resources`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Rule {
    /// What it is for.
    pub resources: Vec<Named>,
    /// The first one writes, all read.
    pub providers: Vec<Provider>,
    /// Where it starts.
    pub line: Option<usize>,
}

/// A resource as the file names it: `secrets`, `widgets.example.org`, `*.apps`, `*.`, `*.*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name.
    pub name: String,
    /// Where it stands.
    pub line: Option<usize>,
}

impl Named {
    /// Resource and group; no dot means the core group.
    pub fn parts(&self) -> (&str, &str) {
        self.name.split_once('.').unwrap_or((&self.name, ""))
    }

    /// Whether it covers a resource of that full name.
    pub fn covers(&self, resource: &str, group: &str) -> bool {
        let (own, own_group) = self.parts();
        match own {
            "*" => own_group == "*" || own_group == group,
            _ => own == resource && own_group == group,
        }
    }
}

/// One item of `providers`. An apiserver takes exactly one kind in each.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Provider {
    /// What it declares.
    pub kinds: Vec<ProviderKind>,
    /// Where it starts.
    pub line: Option<usize>,
}

impl Provider {
    /// What an apiserver would use of it.
    pub fn kind(&self) -> Option<&ProviderKind> {
        self.kinds.first()
    }

    /// What every value that it wrote starts with; nothing for `identity`.
    pub fn prefix(&self) -> Option<String> {
        Some(match self.kind()? {
            ProviderKind::Kms(kms) => format!("k8s:enc:kms:{}:{}:", kms.version(), kms.name),
            ProviderKind::AesCbc(_) => "k8s:enc:aescbc:v1:".to_owned(),
            ProviderKind::AesGcm(_) => "k8s:enc:aesgcm:v1:".to_owned(),
            ProviderKind::Secretbox(_) => "k8s:enc:secretbox:v1:".to_owned(),
            ProviderKind::Identity => String::new(),
        })
    }
}

/// How values are written and read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProviderKind {
    /// By a plugin.
    Kms(Kms),
    /// By keys in the file, AES-CBC.
    AesCbc(Vec<LocalKey>),
    /// By keys in the file, AES-GCM.
    AesGcm(Vec<LocalKey>),
    /// By keys in the file, XSalsa20 and Poly1305.
    Secretbox(Vec<LocalKey>),
    /// In clear.
    Identity,
}

impl ProviderKind {
    /// Its field's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kms(_) => "kms",
            Self::AesCbc(_) => "aescbc",
            Self::AesGcm(_) => "aesgcm",
            Self::Secretbox(_) => "secretbox",
            Self::Identity => "identity",
        }
    }
}

/// A KMS plugin.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Kms {
    /// As it is written; empty means v1.
    pub api_version: String,
    /// Part of everything it wrote.
    pub name: String,
    /// Where it listens, as a URL.
    pub endpoint: String,
    /// KMS v1 only.
    pub cachesize: Option<i64>,
    /// As it is written; `None` means three seconds.
    pub timeout: Option<String>,
    /// Where it starts.
    pub line: Option<usize>,
}

impl Kms {
    /// `v1` where none is written.
    pub fn version(&self) -> &str {
        if self.api_version.is_empty() { "v1" } else { &self.api_version }
    }

    /// The socket's path (`@…` for an abstract one) as the apiserver makes it of the endpoint.
    pub fn socket(&self) -> Option<String> {
        golang::parse_url(&self.endpoint).ok().map(|url| url.socket())
    }
}

/// A key in the file, without its material.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct LocalKey {
    /// Part of everything it wrote.
    pub name: String,
    /// What is known of the key itself.
    pub secret: KeyShape,
    /// Where it starts.
    pub line: Option<usize>,
}

/// A key's shape.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum KeyShape {
    /// There is none.
    #[default]
    Missing,
    /// It is not base64.
    NotBase64,
    /// So many bytes.
    Bytes {
        /// How many.
        length: usize,
        /// Whether anybody could guess it: from documentation, or the same byte over and over.
        known: bool,
        /// Tells equal keys apart from others, within this file only.
        same_as: u64,
    },
}

impl EncryptionConfiguration {
    /// The providers of a resource (`secrets`, `widgets.example.org`), as an apiserver finds them:
    /// by its own name, else by its group's wildcard, else by `*.*`. None means in clear.
    pub fn providers_of(&self, full_name: &str) -> Vec<&Provider> {
        let (_, group) = full_name.split_once('.').unwrap_or((full_name, ""));
        let group_wildcard = format!("*.{group}");
        for wanted in [full_name, group_wildcard.as_str(), "*.*"] {
            let rules = self.rules.iter().filter(|r| r.resources.iter().any(|n| n.name == wanted));
            let found: Vec<&Provider> = rules.flat_map(|rule| &rule.providers).collect();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// All names of resources, in the file's order.
    pub fn names(&self) -> impl Iterator<Item = &Named> {
        self.rules.iter().flat_map(|rule| &rule.resources)
    }

    /// Every KMS provider with its rule.
    pub fn kms(&self) -> impl Iterator<Item = &Kms> {
        let providers = self.rules.iter().flat_map(|rule| &rule.providers);
        providers.flat_map(|provider| &provider.kinds).filter_map(|kind| match kind {
            ProviderKind::Kms(kms) => Some(kms),
            _ => None,
        })
    }
}

/// Text out of a configuration: it may be a key, so it is zeroed.
type Text = Zeroizing<String>;

#[cfg(test)]
mod tests;
