//! What is measured.

use clap::ValueEnum;

/// One operation under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Encrypt over HTTPS
    Encrypt,
    /// Decrypt over HTTPS
    Decrypt,
    /// GenerateDataKey over HTTPS
    DataKey,
    /// The plugin's Status over its unix socket
    PluginStatus,
    /// The plugin's Encrypt over its unix socket
    PluginEncrypt,
}

/// Who is under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The transport and the disk, with no work.
    Floor,
    /// gRPC alone: an answer from memory, without a server behind it.
    Bare,
    /// Lastkey.
    Ours,
}

impl Scenario {
    /// Those that are measured unless others are asked for.
    pub(crate) const USUAL: [Self; 3] = [Self::Encrypt, Self::PluginStatus, Self::PluginEncrypt];
    pub(crate) const ALL: [Self; 5] =
        [Self::Encrypt, Self::Decrypt, Self::DataKey, Self::PluginStatus, Self::PluginEncrypt];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::DataKey => "data-key",
            Self::PluginStatus => "plugin-status",
            Self::PluginEncrypt => "plugin-encrypt",
        }
    }

    /// Who takes turns, ours last.
    pub(crate) fn sides(self) -> &'static [Side] {
        match self {
            Self::Encrypt | Self::Decrypt | Self::DataKey => &[Side::Floor, Side::Ours],
            Self::PluginStatus => &[Side::Bare, Side::Ours],
            Self::PluginEncrypt => &[Side::Bare, Side::Floor, Side::Ours],
        }
    }

    pub(crate) fn is_https(self) -> bool {
        matches!(self, Self::Encrypt | Self::Decrypt | Self::DataKey)
    }
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Bare => "bare grpc",
            Self::Ours => "ours",
        }
    }
}
