//! The providers of an EncryptionConfiguration that hold their keys themselves, with these keys: a
//! scratch apiserver needs them to read what they wrote.
//!
//! [`lastkey_kubernetes::encryption_config`] says whether a file is one that an apiserver takes; it
//! keeps no key. This takes the keys out of such a file, and only for the scratch apiserver's own.

use std::path::Path;

use lastkey_kubernetes::encryption_config::{MAX_FILE, Severity, examine};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::DrillError;

/// Keys, in the order of the file. It holds secrets, so it has no `Debug`.
#[derive(Default)]
pub struct LocalProviders {
    keys: Vec<(Kind, Key)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    AesCbc,
    AesGcm,
    Secretbox,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::AesCbc => "aescbc",
            Self::AesGcm => "aesgcm",
            Self::Secretbox => "secretbox",
        }
    }
}

#[derive(Deserialize, Serialize, PartialEq)]
struct Key {
    name: String,
    secret: Zeroizing<String>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    resources: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Provider {
    aescbc: Option<Keys>,
    aesgcm: Option<Keys>,
    secretbox: Option<Keys>,
}

#[derive(Deserialize)]
struct Keys {
    #[serde(default)]
    keys: Vec<Key>,
}

impl LocalProviders {
    /// Reads a file that an apiserver takes.
    ///
    /// # Errors
    /// When it cannot be read, or an apiserver would refuse it.
    pub fn read(path: &Path) -> Result<Self, DrillError> {
        let length = std::fs::metadata(path).map_err(DrillError::file(path))?.len();
        let broken = |reason: String| DrillError::Configuration { path: path.to_owned(), reason };
        if length > MAX_FILE as u64 {
            return Err(broken("it is too large to be an EncryptionConfiguration".to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(DrillError::file(path))?;
        Self::parse(&Zeroizing::new(text)).map_err(broken)
    }

    /// Reads a file's content.
    ///
    /// # Errors
    /// Why it is none that an apiserver takes; never with anything of a key.
    pub fn parse(text: &str) -> Result<Self, String> {
        let examined = examine(text);
        // what is wrong with a key or the syntax; a provider that does not fit, such as KMS v1
        // without its gate, or identity in the first place, is no reason not to read the others
        let unreadable = ["syntax", "empty", "kind", "key-missing", "key-base64", "key-length"];
        let wrong = examined.findings.iter().find(|finding| {
            finding.severity == Severity::Error && unreadable.contains(&finding.code)
        });
        if let Some(finding) = wrong {
            return Err(finding.message.clone());
        }
        // the parser's own words may quote the line, and with it a key
        let file: File = serde_saphyr::from_str(text)
            .map_err(|_| "it cannot be read as an EncryptionConfiguration".to_owned())?;
        let mut keys: Vec<(Kind, Key)> = Vec::new();
        for provider in file.resources.into_iter().flat_map(|rule| rule.providers) {
            let Provider { aescbc, aesgcm, secretbox } = provider;
            let kinds =
                [(Kind::AesCbc, aescbc), (Kind::AesGcm, aesgcm), (Kind::Secretbox, secretbox)];
            for (kind, found) in kinds {
                for key in found.into_iter().flat_map(|found| found.keys) {
                    // the same key is often written into several rules
                    if !keys.iter().any(|(of, known)| *of == kind && *known == key) {
                        keys.push((kind, key));
                    }
                }
            }
        }
        Ok(Self { keys })
    }

    /// Whether there is a key of that name.
    #[must_use]
    pub fn has(&self, provider: &str, name: &str) -> bool {
        self.keys.iter().any(|(kind, key)| kind.name() == provider && key.name == name)
    }

    /// As providers of a configuration, one a key: several keys of one name are all tried.
    pub(crate) fn providers(&self) -> impl Iterator<Item = Value> {
        self.keys.iter().map(|(kind, key)| json!({ kind.name(): { "keys": [key] } }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_taken_out() {
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
            - resources: [secrets]\n  providers:\n  - aescbc:\n      keys:\n      - name: k1\n        secret: MDEyMzQ1Njc4OWFiY2RlZg==\n  - identity: {}\n\
            - resources: [configmaps]\n  providers:\n  - secretbox:\n      keys:\n      - {name: k1, secret: MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=}\n  - aescbc:\n      keys:\n      - name: k1\n        secret: MDEyMzQ1Njc4OWFiY2RlZg==\n";
        let local = LocalProviders::parse(text).ok().unwrap();
        assert!(local.has("aescbc", "k1") && local.has("secretbox", "k1"));
        assert!(!local.has("aesgcm", "k1") && !local.has("aescbc", "k2"));
        let providers: Vec<Value> = local.providers().collect();
        assert_eq!(providers.len(), 2);
        assert_eq!(providers[0]["aescbc"]["keys"][0]["secret"], "MDEyMzQ1Njc4OWFiY2RlZg==");
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        for text in ["", "- 1", "kind: Pod", "resources: 7\nkind: EncryptionConfiguration"] {
            let _ = LocalProviders::parse(text).err();
        }
        let text = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
            - resources: [secrets]\n  providers:\n  - aescbc:\n      keys:\n      - name: k1\n        secret: c2hvcnQ=\n";
        let why = LocalProviders::parse(text).err().unwrap();
        assert!(!why.contains("c2hvcnQ"), "{why}");
    }
}
