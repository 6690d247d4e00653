//! Calls by key version, under the hash of the key id that the apiserver's own metrics carry, so
//! that dashboards can join them.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use lastkey_crypto::plugin_blob::PluginKey;
use parking_lot::RwLock;
use tonic::Code;

use super::{CODES, Method, key_id_hash};

/// Key versions that are counted; calls of further ones are only in the sums of all.
const MAX_KEYS: usize = 64;
const NAME: &str = "lastkey_plugin_key_calls_total";

/// Counters of each key version that was met.
#[derive(Debug, Default)]
pub(super) struct KeyCalls(RwLock<HashMap<PluginKey, Calls>>);

#[derive(Debug, Default)]
struct Calls {
    /// As the apiserver's metrics have it.
    key_id_hash: String,
    counts: [[AtomicU64; CODES]; Method::ALL.len()],
}

impl KeyCalls {
    pub(super) fn count(&self, key: &PluginKey, (method, code): (Method, Code)) {
        let add = |calls: &Calls| {
            calls.counts[method as usize][code as usize].fetch_add(1, Ordering::Relaxed);
        };
        if let Some(calls) = self.0.read().get(key) {
            return add(calls);
        }
        let mut known = self.0.write();
        if known.len() < MAX_KEYS || known.contains_key(key) {
            let key_id_hash = || key_id_hash(&key.key_id());
            let new = || Calls { key_id_hash: key_id_hash(), ..Calls::default() };
            add(known.entry(*key).or_insert_with(new));
        }
    }
}

impl fmt::Display for KeyCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# HELP {NAME} Calls of the apiserver by key version.")?;
        writeln!(f, "# TYPE {NAME} counter")?;
        for (key, calls) in self.0.read().iter() {
            for method in Method::ALL {
                for (code, count) in calls.counts[method as usize].iter().enumerate() {
                    let count = count.load(Ordering::Relaxed);
                    if count > 0 {
                        let (api, name) = method.names();
                        let code = super::code_name(code);
                        writeln!(
                            f,
                            "{NAME}{{api=\"{api}\",method=\"{name}\",code=\"{code}\",key_version=\"{}\",\
                             key_id_hash=\"{}\"}} {count}",
                            key.key_version, calls.key_id_hash
                        )?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lastkey_crypto::{ClusterId, Epoch, KeyVersionId, Lineage};

    use super::*;

    fn key(number: u8) -> PluginKey {
        PluginKey {
            lineage: Lineage::from_bytes([1; 16]),
            cluster: ClusterId::from_bytes([2; 16]),
            key_version: KeyVersionId::from_bytes([3; 16]),
            epoch: Epoch::from_bytes([number; 16]),
        }
    }

    #[test]
    fn keys_are_told_apart_and_bounded() {
        let calls = KeyCalls::default();
        for number in 0..=u8::MAX {
            calls.count(&key(number), (Method::Decrypt, Code::Ok));
        }
        calls.count(&key(0), (Method::Decrypt, Code::NotFound));
        let text = calls.to_string();
        assert_eq!(text.lines().count(), 2 + MAX_KEYS + 1);
        let hash = key_id_hash(&key(0).key_id());
        let version = key(0).key_version;
        let line = format!(
            "{NAME}{{api=\"v2\",method=\"Decrypt\",code=\"NotFound\",key_version=\"{version}\",\
             key_id_hash=\"{hash}\"}} 1"
        );
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
}
