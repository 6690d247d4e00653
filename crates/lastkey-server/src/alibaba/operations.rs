//! The names of the KMS API of 2016-01-20 that this server knows, but does not offer.
//!
//! A client that asks for one learns that it is missing here, not that it mistyped.

/// The API version that every request names.
pub(super) const VERSION: &str = "2016-01-20";

/// Sorted.
const NOT_OFFERED: &[&str] = &[
    "AdvanceEncrypt",
    "AsymmetricDecrypt",
    "AsymmetricEncrypt",
    "AsymmetricSign",
    "AsymmetricVerify",
    "BatchGetSecretValue",
    "CertificatePrivateKeyDecrypt",
    "CertificatePrivateKeySign",
    "CertificatePublicKeyEncrypt",
    "CertificatePublicKeyVerify",
    "ConnectKmsInstance",
    "CreateApplicationAccessPoint",
    "CreateCertificate",
    "CreateClientKey",
    "CreateNetworkRule",
    "CreatePolicy",
    "CreateSecret",
    "DeleteApplicationAccessPoint",
    "DeleteCertificate",
    "DeleteClientKey",
    "DeleteKeyMaterial",
    "DeleteNetworkRule",
    "DeletePolicy",
    "DeleteSecret",
    "DescribeApplicationAccessPoint",
    "DescribeCertificate",
    "DescribeNetworkRule",
    "DescribePolicy",
    "DescribeSecret",
    "ExportDataKey",
    "GenerateAndExportDataKey",
    "GenerateMac",
    "GetCertificate",
    "GetChallenge",
    "GetClientKey",
    "GetDefaultKmsInstance",
    "GetKeyPolicy",
    "GetKmsInstance",
    "GetKmsInstanceQuotaInfos",
    "GetManagedDataKey",
    "GetParametersForImport",
    "GetPublicKey",
    "GetRandomPassword",
    "GetSecretPolicy",
    "GetSecretValue",
    "ImportKeyMaterial",
    "ListApplicationAccessPoints",
    "ListClientKeys",
    "ListKmsInstances",
    "ListManagedDataKeyVersions",
    "ListNetworkRules",
    "ListPolicies",
    "ListSecretVersionIds",
    "ListSecrets",
    "PutSecretValue",
    "ReleaseKmsInstance",
    "RestoreSecret",
    "RotateSecret",
    "SetKeyPolicy",
    "SetSecretPolicy",
    "UpdateApplicationAccessPoint",
    "UpdateCertificateStatus",
    "UpdateKmsInstanceBindVpc",
    "UpdateNetworkRule",
    "UpdatePolicy",
    "UpdateSecret",
    "UpdateSecretRotationPolicy",
    "UpdateSecretVersionStage",
    "UploadCertificate",
    "VerifyMac",
];

/// Whether `action` is of this API, but not offered.
pub(super) fn known(action: &str) -> bool {
    NOT_OFFERED.binary_search(&action).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_together_with_the_offered_ones_complete() {
        assert!(NOT_OFFERED.is_sorted());
        assert_eq!(NOT_OFFERED.len() + super::super::OFFERED.len(), 102);
        assert!(super::super::OFFERED.iter().all(|name| !known(name)));
    }
}
