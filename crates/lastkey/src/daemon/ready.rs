//! The line that a long-running command prints once it is ready.

use std::path::PathBuf;

use serde::Serialize;

/// What scripts need, as far as the command has it; all paths are absolute.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Ready {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ca_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) credentials_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) admin_socket: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) plugin_socket: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) plugin_cert_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) plugin_key_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) encryption_config_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key_id: Option<String>,
    /// True where the server waits to be unsealed, and absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sealed: Option<bool>,
}
