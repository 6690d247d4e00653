//! What is wrong with a live cluster: each check looks at one thing and says what it found.
//!
//! What an EncryptionConfiguration says by itself is [`crate::encryption_config`]'s; here it is held
//! against what the apiservers do, what rests in etcd, and what lies around on this machine.

mod chain;
mod place;
mod servers;

pub use chain::{check_access, check_plugin};
pub use place::{
    Flags, check_flags, check_sockets, flag, flags_in_manifest, flags_of_process, is_yes,
};
pub use servers::check_servers;

use crate::{
    coverage::{Coverage, Under},
    encryption_config::{EncryptionConfiguration, Finding, Provider, ProviderKind},
};

/// Whether what rests in the cluster can be read by this configuration, and how it would be
/// written anew.
pub fn check_coverage(coverage: &Coverage, config: &EncryptionConfiguration) -> Vec<Finding> {
    let mut findings = Vec::new();
    for name in &coverage.unknown {
        let message =
            format!("{name} is configured, and no apiserver serves it: nothing is encrypted by it");
        let fix = "`kubectl api-resources` lists what is served; mend the name or remove it";
        findings.push(Finding::warning("resource-unserved", message).fix(fix));
    }
    for resource in &coverage.resources {
        let name = &resource.resource;
        let providers = config.providers_of(name);
        let anew = anew(&providers, name);
        for share in &resource.under {
            let under = &share.under;
            let objects = share.objects.map_or_else(|| "some".to_owned(), |n| n.to_string());
            if providers.iter().any(|provider| reads(provider, under)) {
                continue;
            }
            if under.is_clear() && providers.is_empty() {
                continue;
            }
            let message = format!(
                "{objects} objects of {name} are under {}, which the configuration does not have: \
                 once an apiserver restarts, every list of {name} fails",
                shown(under)
            );
            let fix = match under.is_clear() {
                true => "add `- identity: {}` to the end of the rule's providers".to_owned(),
                false => {
                    format!("add that provider to the end of the rule again, then {anew}")
                }
            };
            findings.push(Finding::error("provider-removed", message).fix(fix));
        }
        let clear = resource.under.iter().find(|share| share.under.is_clear());
        let encrypts =
            providers.first().is_some_and(|first| first.kind() != Some(&ProviderKind::Identity));
        match clear {
            Some(share) if encrypts && share.objects != Some(0) => {
                let objects = share.objects.map_or_else(|| "some".to_owned(), |n| n.to_string());
                let message = format!("{objects} objects of {name} are still in clear");
                let fix = format!("{anew} writes them anew");
                findings.push(Finding::warning("objects-in-clear", message).fix(fix));
            }
            None if coverage.exact && encrypts && has_identity(&providers) => {
                let message =
                    format!("nothing of {name} is in clear, and identity is still configured");
                let fix = "remove `- identity: {}` from its rule, so that nobody can slip values in by way of etcd";
                findings.push(Finding::info("identity-needless", message).fix(fix));
            }
            _ => {}
        }
        if resource.under.iter().any(|share| share.under.provider.starts_with("kms v1 ")) {
            let message = format!(
                "objects of {name} are under KMS v1, which no apiserver since 1.29 reads by itself"
            );
            let fix = "`lastkey cluster rotate` with a v2 provider in front";
            findings.push(Finding::warning("kms-v1-objects", message).fix(fix));
        }
    }
    findings
}

/// What writes objects of a resource anew: a rotation, where a KMS v2 provider writes them.
fn anew(providers: &[&Provider], name: &str) -> String {
    match providers.first().and_then(|first| first.kind()) {
        Some(ProviderKind::Kms(kms)) if kms.version() == "v2" => {
            "`lastkey cluster rotate NAME --keep-version`".to_owned()
        }
        _ => format!(
            "`lastkey cluster enable NAME --resource {name}`, which brings them under a KMS,"
        ),
    }
}

fn shown(under: &Under) -> String {
    match &under.key {
        Some(key) if !under.provider.starts_with("kms") => {
            format!("{} (key {key})", under.provider)
        }
        _ => under.provider.clone(),
    }
}

fn has_identity(providers: &[&Provider]) -> bool {
    providers.iter().any(|provider| provider.kind() == Some(&ProviderKind::Identity))
}

/// Whether a provider opens what is under `under`.
pub(crate) fn reads(provider: &Provider, under: &Under) -> bool {
    match provider.kind() {
        Some(ProviderKind::Identity) => under.is_clear(),
        Some(ProviderKind::Kms(kms)) => {
            under.provider == format!("kms {} {}", kms.version(), kms.name)
        }
        Some(
            kind @ (ProviderKind::AesCbc(keys)
            | ProviderKind::AesGcm(keys)
            | ProviderKind::Secretbox(keys)),
        ) => {
            // counters know no keys
            let key = under.key.as_deref();
            under.provider == kind.name()
                && key.is_none_or(|key| keys.iter().any(|own| own.name == key))
        }
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        coverage::{ResourceCoverage, Share},
        encryption_config::examine,
    };

    fn coverage(under: &[(&str, Option<&str>)]) -> Coverage {
        let under = under.iter().map(|(provider, key)| Share {
            under: Under {
                provider: (*provider).to_owned(),
                key: key.map(str::to_owned),
                key_version: None,
                cluster: None,
            },
            objects: Some(2),
        });
        let secrets = ResourceCoverage {
            resource: "secrets".to_owned(),
            objects: Some(2),
            under: under.collect(),
        };
        Coverage {
            exact: true,
            resources: vec![secrets],
            unknown: vec![],
            remarks: vec![],
            partly: false,
        }
    }

    fn config(providers: &str) -> EncryptionConfiguration {
        examine(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [secrets]\n  providers:\n{providers}"
        ))
        .config
    }

    fn codes(coverage: &Coverage, config: &EncryptionConfiguration) -> Vec<&'static str> {
        check_coverage(coverage, config).iter().map(|finding| finding.code).collect()
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let kms = "  - kms: {apiVersion: v2, name: a, endpoint: 'unix:///a'}\n";
        let local = "  - aescbc: {keys: [{name: k, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}\n";
        let clear = "  - identity: {}\n";
        let all = config(&[kms, local, clear].concat());
        let some = [("kms v2 a", Some("id")), ("aescbc", Some("k")), ("clear", None)];
        assert_eq!(codes(&coverage(&some), &all), ["objects-in-clear"]);
        assert_eq!(codes(&coverage(&some[..1]), &all), ["identity-needless"]);
        let less = config(kms);
        let removed = ["provider-removed", "provider-removed", "objects-in-clear"];
        assert_eq!(codes(&coverage(&some), &less), removed);
        assert_eq!(codes(&coverage(&[("kms v2 b", None)]), &less), ["provider-removed"]);
        assert_eq!(
            codes(&coverage(&[("aescbc", Some("l"))]), &all),
            ["provider-removed", "identity-needless"]
        );
        assert_eq!(codes(&coverage(&some[..1]), &less), [""; 0]);
    }

    /// A rotation is refused where no KMS provider writes.
    #[test]
    fn what_writes_anew_is_what_can() {
        let (v1, v2) = (
            "  - kms: {apiVersion: v1, name: a, endpoint: 'unix:///a'}\n",
            "  - kms: {apiVersion: v2, name: a, endpoint: 'unix:///a'}\n",
        );
        let local = "  - aescbc: {keys: [{name: k, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}\n";
        for (first, command) in [
            (v2, "`lastkey cluster rotate NAME --keep-version`"),
            (v1, "`lastkey cluster enable NAME --resource secrets`"),
            (local, "`lastkey cluster enable NAME --resource secrets`"),
        ] {
            let config = config(&format!("{first}  - identity: {{}}\n"));
            for under in ["clear", "kms v2 gone"] {
                let found = check_coverage(&coverage(&[(under, None)]), &config);
                assert!(found[0].fix.contains(command), "{found:?}");
            }
        }
    }
}
