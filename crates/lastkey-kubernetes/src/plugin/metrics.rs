//! What the plugin counts, for whoever renders it.

mod keys;
mod memory;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lastkey_crypto::{mac::sha256, plugin_blob::PluginKey};
use parking_lot::RwLock;
use tonic::Code;

use self::keys::KeyCalls;
pub use self::memory::MemoryMetrics;
use super::view::{Uptime, uptime};
use crate::socket::Closed;

/// A method of either service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// `v2.KeyManagementService/Status`
    Status,
    /// `v2.KeyManagementService/Encrypt`
    Encrypt,
    /// `v2.KeyManagementService/Decrypt`
    Decrypt,
    /// `v1beta1.KeyManagementService/Version`
    VersionV1,
    /// `v1beta1.KeyManagementService/Encrypt`
    EncryptV1,
    /// `v1beta1.KeyManagementService/Decrypt`
    DecryptV1,
}

impl Method {
    const ALL: [Self; 6] = [
        Self::Status,
        Self::Encrypt,
        Self::Decrypt,
        Self::VersionV1,
        Self::EncryptV1,
        Self::DecryptV1,
    ];

    /// The version of the protocol and the method's name in it.
    pub fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Status => ("v2", "Status"),
            Self::Encrypt => ("v2", "Encrypt"),
            Self::Decrypt => ("v2", "Decrypt"),
            Self::VersionV1 => ("v1beta1", "Version"),
            Self::EncryptV1 => ("v1beta1", "Encrypt"),
            Self::DecryptV1 => ("v1beta1", "Decrypt"),
        }
    }
}

/// gRPC has codes 0 to 16.
const CODES: usize = 17;

/// Counters of one plugin; `Display` is the Prometheus text format.
#[derive(Debug, Default)]
pub struct Metrics {
    calls: [[AtomicU64; CODES]; Method::ALL.len()],
    keys: KeyCalls,
    closed: Arc<Closed>,
    memory: Arc<MemoryMetrics>,
    heard: RwLock<Heard>,
}

/// What the watch last heard.
#[derive(Debug, Default)]
struct Heard {
    last_contact: Option<Uptime>,
    key_id_hash: Option<String>,
    usable: bool,
}

impl Metrics {
    /// How often a method ended with a code.
    pub fn calls(&self, method: Method, code: Code) -> u64 {
        self.calls[method as usize][code as usize].load(Ordering::Relaxed)
    }

    /// How long ago the server last answered.
    pub fn last_contact_age(&self) -> Option<Duration> {
        self.heard.read().last_contact.map(|at| uptime().saturating_sub(at))
    }

    /// `sha256:` and the hash of the current key id, as the apiserver's own metrics have it.
    pub fn key_id_hash(&self) -> Option<String> {
        self.heard.read().key_id_hash.clone()
    }

    /// Whether the server was there and allowed the key when last heard.
    pub fn is_usable(&self) -> bool {
        self.heard.read().usable
    }

    /// Sockets whose file is gone: nobody can dial them.
    pub fn sockets_gone(&self) -> u64 {
        self.closed.gone.load(Ordering::Relaxed)
    }

    /// How many connections were closed, and why.
    pub fn closed(&self) -> Arc<Closed> {
        Arc::clone(&self.closed)
    }

    /// What the plugin does without its server.
    pub fn memory(&self) -> Arc<MemoryMetrics> {
        Arc::clone(&self.memory)
    }

    /// One call, and the key version it was about as far as there was one.
    pub(super) fn count(&self, (method, code): (Method, Code), key: Option<&PluginKey>) {
        self.calls[method as usize][code as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(key) = key {
            self.keys.count(key, (method, code));
        }
    }

    pub(super) fn heard(&self, key_id: Option<&str>, last_contact: Option<Uptime>, usable: bool) {
        let key_id_hash = key_id.map(key_id_hash);
        *self.heard.write() = Heard { last_contact, key_id_hash, usable };
    }
}

/// As the apiserver's own metrics show a key id.
fn key_id_hash(key_id: &str) -> String {
    format!("sha256:{}", hex::encode(sha256(&[key_id.as_bytes()])))
}

/// As the apiserver's own metrics write a code.
fn code_name(code: usize) -> String {
    match Code::from_i32(code as i32) {
        Code::Ok => "OK".to_owned(),
        code => format!("{code:?}"),
    }
}

impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# HELP lastkey_plugin_calls_total Calls of the apiserver by gRPC code.")?;
        writeln!(f, "# TYPE lastkey_plugin_calls_total counter")?;
        for method in Method::ALL {
            let (api, name) = method.names();
            for (code, count) in self.calls[method as usize].iter().enumerate() {
                let count = count.load(Ordering::Relaxed);
                if count > 0 || code == Code::Ok as usize {
                    let code = code_name(code);
                    let labels = format!("api=\"{api}\",method=\"{name}\",code=\"{code}\"");
                    writeln!(f, "lastkey_plugin_calls_total{{{labels}}} {count}")?;
                }
            }
        }
        write!(f, "{}", self.keys)?;
        let name = "lastkey_plugin_connections_closed_total";
        writeln!(f, "# HELP {name} Connections refused, or closed because of a bound.")?;
        writeln!(f, "# TYPE {name} counter")?;
        let closed = &self.closed;
        for (reason, count) in [
            ("refused", &closed.refused),
            ("flood", &closed.flood),
            ("crowded", &closed.crowded),
            ("unproven", &closed.unproven),
        ] {
            writeln!(f, "{name}{{reason=\"{reason}\"}} {}", count.load(Ordering::Relaxed))?;
        }
        let name = "lastkey_plugin_sockets_gone";
        writeln!(f, "# HELP {name} Sockets whose file is gone, so that nobody can dial them.")?;
        writeln!(f, "# TYPE {name} gauge\n{name} {}", self.sockets_gone())?;
        write!(f, "{}", self.memory)?;
        writeln!(f, "# HELP lastkey_plugin_usable Whether the server allows the key now.")?;
        writeln!(f, "# TYPE lastkey_plugin_usable gauge")?;
        writeln!(f, "lastkey_plugin_usable {}", u8::from(self.is_usable()))?;
        if let Some(age) = self.last_contact_age() {
            let name = "lastkey_plugin_last_contact_age_seconds";
            writeln!(f, "# HELP {name} Time since the server last answered.")?;
            writeln!(f, "# TYPE {name} gauge\n{name} {:.3}", age.as_secs_f64())?;
        }
        if let Some(hash) = self.key_id_hash() {
            let name = "lastkey_plugin_key_id_hash_info";
            writeln!(f, "# HELP {name} The current key id, hashed as the apiserver does.")?;
            writeln!(f, "# TYPE {name} gauge\n{name}{{key_id_hash=\"{hash}\"}} 1")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_what_happened() {
        let metrics = Metrics::default();
        metrics.count((Method::Encrypt, Code::Ok), None);
        metrics.count((Method::DecryptV1, Code::InvalidArgument), None);
        metrics.heard(Some("abc"), Some(uptime()), true);
        let text = metrics.to_string();
        for line in [
            "lastkey_plugin_calls_total{api=\"v2\",method=\"Encrypt\",code=\"OK\"} 1",
            "lastkey_plugin_calls_total{api=\"v1beta1\",method=\"Decrypt\",code=\"InvalidArgument\"} 1",
            "lastkey_plugin_connections_closed_total{reason=\"flood\"} 0",
            "lastkey_plugin_connections_closed_total{reason=\"refused\"} 0",
            "lastkey_plugin_sockets_gone 0",
            "lastkey_plugin_usable 1",
            // the well-known hash of "abc"
            "lastkey_plugin_key_id_hash_info{key_id_hash=\"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"} 1",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
    }
}
