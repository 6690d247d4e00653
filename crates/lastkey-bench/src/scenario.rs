//! What is measured.

use clap::ValueEnum;

/// One operation under load, or one property.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scenario {
    /// Encrypt over HTTPS
    Encrypt,
    /// Decrypt over HTTPS
    Decrypt,
    /// GenerateDataKey over HTTPS
    DataKey,
    /// CreateKey asked of the engine, without transport
    CreateKey,
    /// CreateKey over HTTPS
    CreateKeyHttps,
    /// The plugin's Status over its unix socket
    PluginStatus,
    /// The same, while the server is away
    PluginStatusAway,
    /// The plugin's Status at a thousand calls a second
    PluginStatusPaced,
    /// The same, while the server is away
    PluginStatusAwayPaced,
    /// The plugin's Encrypt over its unix socket
    PluginEncrypt,
    /// The plugin's Decrypt of what it does not remember
    PluginDecrypt,
    /// The plugin's Decrypt of what it remembers
    PluginDecryptCached,
    /// Allocations of a request
    Allocations,
    /// `lastkey encrypt` and `decrypt` of a large file
    Files,
    /// A cluster's Secrets written anew; needs an apiserver, etcd and kubectl
    Rotate,
    /// From exec to ready with 100 000 keys
    Start,
    /// From exec to ready with a million keys
    StartMillion,
}

/// How a scenario is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Signed requests to a server process.
    Https,
    /// gRPC to a plugin process.
    Plugin,
    /// Commands inside a process of their own.
    Engine,
    /// Anything else.
    Other,
}

/// Who is under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// TLS and a canned answer: what the client itself can do.
    Null,
    /// The transport and the disk, with no work.
    Floor,
    /// gRPC alone: an answer from memory, without a server behind it.
    Bare,
    /// redb alone, with all the records that a key's creation writes.
    Redb,
    /// redb alone, with the key's own two records.
    RedbPair,
    /// Lastkey.
    Ours,
}

/// The null answer says what the client costs, which changes little from round to round.
const NULL_ROUNDS: usize = 2;
/// An apiserver has fewer calls in flight than a server has connections.
const PLUGIN_CALLERS: usize = 64;
/// Calls a second of the paced scenarios: what sixty thousand apiservers ask.
const PACE: f64 = 1000.0;
/// The 99th percentile that a paced Status stays under, in microseconds.
const PACED_P99: f64 = 1000.0;

impl Scenario {
    /// Those that are measured unless others are asked for.
    pub(crate) const USUAL: [Self; 3] = [Self::Encrypt, Self::PluginStatus, Self::PluginEncrypt];
    pub(crate) const ALL: [Self; 17] = [
        Self::Encrypt,
        Self::Decrypt,
        Self::DataKey,
        Self::CreateKey,
        Self::CreateKeyHttps,
        Self::PluginStatus,
        Self::PluginStatusAway,
        Self::PluginStatusPaced,
        Self::PluginStatusAwayPaced,
        Self::PluginEncrypt,
        Self::PluginDecrypt,
        Self::PluginDecryptCached,
        Self::Allocations,
        Self::Files,
        Self::Rotate,
        Self::Start,
        Self::StartMillion,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::DataKey => "data-key",
            Self::CreateKey => "create-key",
            Self::CreateKeyHttps => "create-key-https",
            Self::PluginStatus => "plugin-status",
            Self::PluginStatusAway => "plugin-status-away",
            Self::PluginStatusPaced => "plugin-status-paced",
            Self::PluginStatusAwayPaced => "plugin-status-away-paced",
            Self::PluginEncrypt => "plugin-encrypt",
            Self::PluginDecrypt => "plugin-decrypt",
            Self::PluginDecryptCached => "plugin-decrypt-cached",
            Self::Allocations => "allocations",
            Self::Files => "files",
            Self::Rotate => "rotate",
            Self::Start => "start",
            Self::StartMillion => "start-million",
        }
    }

    /// Who takes turns, ours last.
    pub(crate) fn sides(self) -> &'static [Side] {
        match self {
            Self::Encrypt | Self::Decrypt | Self::DataKey | Self::CreateKeyHttps => {
                &[Side::Null, Side::Floor, Side::Ours]
            }
            Self::CreateKey => &[Side::RedbPair, Side::Redb, Side::Ours],
            Self::PluginStatus
            | Self::PluginStatusAway
            | Self::PluginStatusPaced
            | Self::PluginStatusAwayPaced
            | Self::PluginDecryptCached => &[Side::Bare, Side::Ours],
            Self::PluginEncrypt | Self::PluginDecrypt => &[Side::Bare, Side::Floor, Side::Ours],
            Self::Allocations | Self::Files | Self::Rotate | Self::Start | Self::StartMillion => {
                &[]
            }
        }
    }

    pub(crate) fn kind(self) -> Kind {
        match self {
            Self::Encrypt | Self::Decrypt | Self::DataKey | Self::CreateKeyHttps => Kind::Https,
            Self::PluginStatus
            | Self::PluginStatusAway
            | Self::PluginStatusPaced
            | Self::PluginStatusAwayPaced
            | Self::PluginEncrypt
            | Self::PluginDecrypt
            | Self::PluginDecryptCached => Kind::Plugin,
            Self::CreateKey => Kind::Engine,
            Self::Allocations | Self::Files | Self::Rotate | Self::Start | Self::StartMillion => {
                Kind::Other
            }
        }
    }

    /// Whether keys are made.
    pub(crate) fn makes_keys(self) -> bool {
        matches!(self, Self::CreateKey | Self::CreateKeyHttps)
    }

    /// Whether it has to be known what the creation of a key writes.
    pub(crate) fn needs_shape(self) -> bool {
        self.makes_keys() || self == Self::Allocations
    }

    /// Which of these numbers of callers make sense here.
    pub(crate) fn callers(self, asked: &[usize]) -> Vec<usize> {
        let fits = |callers: &usize| match self {
            Self::CreateKey | Self::CreateKeyHttps => [1, 64].contains(callers),
            _ if self.kind() == Kind::Plugin => *callers <= PLUGIN_CALLERS,
            _ => true,
        };
        let some: Vec<usize> = asked.iter().copied().filter(fits).collect();
        if some.is_empty() { asked.to_vec() } else { some }
    }

    /// What ours has to reach of the floor's calls per second.
    pub(crate) fn aim(self) -> Option<f64> {
        match self {
            Self::Encrypt | Self::Decrypt | Self::DataKey => Some(0.8),
            Self::PluginStatus | Self::PluginStatusAway | Self::PluginDecryptCached => Some(0.9),
            Self::CreateKey | Self::PluginEncrypt | Self::PluginDecrypt => Some(0.7),
            _ => None,
        }
    }

    /// Calls a second, where they fall due at a pace.
    pub(crate) fn pace(self) -> Option<f64> {
        matches!(self, Self::PluginStatusPaced | Self::PluginStatusAwayPaced).then_some(PACE)
    }

    /// The 99th percentile that ours has to stay under, in microseconds.
    pub(crate) fn p99_aim(self) -> Option<f64> {
        self.pace().map(|_| PACED_P99)
    }

    /// The side that the aim is about.
    pub(crate) fn yardstick(self) -> Side {
        match self {
            Self::CreateKey => Side::Redb,
            Self::PluginStatus
            | Self::PluginStatusAway
            | Self::PluginStatusPaced
            | Self::PluginStatusAwayPaced
            | Self::PluginDecryptCached => Side::Bare,
            _ => Side::Floor,
        }
    }
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Floor => "floor",
            Self::Bare => "bare grpc",
            Self::Redb => "redb",
            Self::RedbPair => "redb pair",
            Self::Ours => "ours",
        }
    }

    /// In how many of so many rounds it takes part.
    pub(crate) fn rounds(self, rounds: usize) -> usize {
        if self == Self::Null { rounds.min(NULL_ROUNDS) } else { rounds }
    }
}
