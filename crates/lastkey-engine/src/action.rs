//! The names of what can be asked of the engine.

use std::fmt;

macro_rules! actions {
    ($($name:ident),* $(,)?) => {
        /// What a command does, as policies and audit records name it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "each variant is the name of the command that it stands for")]
        #[non_exhaustive]
        pub enum Action { $($name),* }

        impl Action {
            /// Every action.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }
        }
    };
}

actions! {
    // keys
    CreateKey, DescribeKey, ListKeys, UpdateKeyDescription, EnableKey, DisableKey,
    ScheduleKeyDeletion, CancelKeyDeletion, SetDeletionProtection,
    // versions
    CreateKeyVersion, DescribeKeyVersion, ListKeyVersions, UpdateRotationPolicy,
    RetireKeyVersion, ReinstateKeyVersion, AdvanceRetirement,
    // what needs them
    PutDependant, RemoveDependant, ListDependants, DescribeImpact,
    DescribeGuard, SetSecondPerson, ConfirmOverride, RejectOverride,
    // rotations of clusters
    StartRotation, ListRotations, ClaimRotation, SaveRotation, PauseRotation, CancelRotation,
    FinishRotation,
    // aliases and tags
    CreateAlias, UpdateAlias, DeleteAlias, ListAliases, ListAliasesByKeyId,
    TagResource, UntagResource, ListResourceTags, ListTagResources,
    // cryptography
    Encrypt, Decrypt, ReEncrypt, GenerateDataKey, GenerateDataKeyWithoutPlaintext,
    // clusters and their plugins
    AddCluster, ListClusters, AddPlugin, PluginStatus, PluginEncrypt, PluginDecrypt,
    PutClusterAccess, GetClusterAccess, RemoveClusterAccess, ForgetCluster, ConfigureCluster,
    // how plugins get, renew and lose their identities
    TrustNodes, ListNodes, ApproveNode, RevokeNode, EnrolNode, RenewPlugin, ConfirmPlugin,
    PluginCachedDecrypt,
    // the service itself
    DescribeService, QueryAudit, VerifyAudit, ReadCertificate, RenewCertificate,
    CreateAccessKey, WriteSealed, RotateDueKey, DestroyKey, RedrawEpochs, AcceptRestore,
    RotateKeyring, DropKeyringKeys, RefuseCallers, Heartbeat,
    DeleteAudit, ReadCheckpointKey,
    // the seal
    SealServer, UnsealServer, ManageSeal, RekeySeal, ConfirmSeal, CancelSeal, MigrateSeal,
    RotateRootKey, ForgetShares,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
