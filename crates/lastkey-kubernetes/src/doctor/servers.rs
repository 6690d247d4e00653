//! What each apiserver says of itself: its health, its metrics, its certificate.

use std::collections::{BTreeMap, BTreeSet};

use lastkey_crypto::mac::sha256;

use super::chain::check_certificate;
use crate::{
    cluster::{ApiError, ApiServer},
    coverage::samples,
    encryption_config::{Finding, examine_bytes},
};

const KEY_IDS: &str = "apiserver_envelope_encryption_key_id_hash_status_last_timestamp_seconds";
const LOADED: &str = "apiserver_encryption_config_controller_last_config_info";
const RELOADS: &str =
    "apiserver_encryption_config_controller_automatic_reload_last_timestamp_seconds";
const WORK: &str = "apiserver_storage_transformation_operations_total";
const FEATURES: &str = "kubernetes_feature_enabled";

/// Asks each apiserver. `config` is the registered configuration's content, if it lies here; `now`
/// in seconds since 1970.
pub async fn check_servers(api: &ApiServer, config: Option<&[u8]>, now: i64) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut told = Vec::new();
    let urls: Vec<String> = api.urls().map(ToString::to_string).collect();
    for (server, url) in urls.iter().enumerate() {
        match api.readyz(server).await {
            Ok(Ok(())) => {}
            Ok(Err(checks)) => findings.push(unready(url, &checks)),
            Err(error) => {
                findings.push(unreachable(url, &error));
                continue;
            }
        }
        if let Some(certificate) = api.certificate(server).await {
            findings.extend(check_certificate(
                &certificate,
                &format!("the serving certificate of {url}"),
                now,
            ));
        }
        match api.metrics(server).await {
            Ok(metrics) => {
                check_metrics(url, &metrics, config, &mut findings);
                told.push((url.as_str(), key_ids(&metrics)));
            }
            Err(error) => findings.push(unreachable(url, &error)),
        }
    }
    let configured = config.map(|config| {
        let providers = examine_bytes(config).config;
        providers.kms().map(|kms| kms.name.clone()).collect::<BTreeSet<_>>()
    });
    findings.extend(skew(&told, configured.as_ref()));
    findings
}

fn unready(url: &str, checks: &[String]) -> Finding {
    if checks.iter().any(|check| check.starts_with("kms-provider")) {
        let message = format!("{url} cannot work with its KMS plugin");
        return Finding::error("kms-unhealthy", message)
            .fix("`lastkey doctor` on that node; `journalctl -u lastkey-kms-plugin`");
    }
    let message = format!("{url} is not ready: {}", checks.join(", "));
    Finding::warning("apiserver-unready", message).fix(format!("`curl -k {url}/readyz?verbose`"))
}

fn unreachable(url: &str, error: &ApiError) -> Finding {
    let message = format!("{url} cannot be asked: {error}");
    Finding::error("apiserver-unreachable", message)
        .fix("`lastkey cluster add NAME --kubeconfig FILE` registers another address or credential")
}

fn check_metrics(url: &str, metrics: &str, config: Option<&[u8]>, findings: &mut Vec<Finding>) {
    let loaded: Vec<String> = samples(metrics, &[LOADED])
        .filter_map(|sample| sample.label("hash").map(str::to_owned))
        .collect();
    let here = config.map(|config| format!("sha256:{}", hex::encode(sha256(&[config]))));
    let works_by_it = here.as_ref().is_some_and(|here| loaded.contains(here));
    if here.is_some() && !loaded.is_empty() && !works_by_it {
        let message =
            format!("{url} works by another EncryptionConfiguration than the one that lies here");
        let fix = "copy the file there; without --encryption-provider-config-automatic-reload=true restart the apiserver, too";
        findings.push(Finding::warning("config-not-loaded", message).fix(fix));
    }
    let last = |status: &str| {
        let own = samples(metrics, &[RELOADS]).filter(|s| s.label("status") == Some(status));
        own.map(|sample| sample.value).fold(0.0, f64::max)
    };
    // a file that was put back is not loaded anew, and no success is told of it
    if last("failure") > last("success") && !works_by_it {
        let message = format!(
            "{url} could not load its EncryptionConfiguration anew, and goes on by the old one"
        );
        let fix = "`lastkey cluster doctor --encryption-config FILE` on that node says why";
        findings.push(Finding::error("config-reload-failed", message).fix(fix));
    }
    if samples(metrics, &[FEATURES]).any(|s| s.label("name") == Some("KMSv1") && s.value > 0.0) {
        let message = format!("{url} runs with the feature gate KMSv1");
        let fix = "remove KMSv1=true from --feature-gates once nothing is under a v1 provider";
        findings.push(Finding::warning("flag-kms-v1", message).fix(fix));
    }
    let mut failing = BTreeSet::new();
    for sample in samples(metrics, &[WORK]) {
        let failed = sample.label("status") != Some("OK") && sample.value > 0.0;
        if failed && sample.label("transformation_type") == Some("from_storage") {
            failing.extend(sample.label("resource").map(str::to_owned));
        }
    }
    for resource in failing {
        let message = format!("{url} has failed to decrypt objects of {resource} since it started");
        let fix = "`lastkey cluster status` shows what they are under; put that provider back";
        findings.push(Finding::warning("decryption-failed", message).fix(fix));
    }
}

/// The newest key id that each provider's plugin told, as a hash.
fn key_ids(metrics: &str) -> BTreeMap<String, String> {
    let mut newest: BTreeMap<String, (f64, String)> = BTreeMap::new();
    for sample in samples(metrics, &[KEY_IDS]) {
        let (Some(provider), Some(hash)) =
            (sample.label("provider_name"), sample.label("key_id_hash"))
        else {
            continue;
        };
        let known = newest.entry(provider.to_owned()).or_default();
        if sample.value >= known.0 {
            *known = (sample.value, hash.to_owned());
        }
    }
    newest.into_iter().map(|(provider, (_, hash))| (provider, hash)).collect()
}

/// Apiservers that write under different keys, by the same provider. Their metrics name providers
/// until they restart, even those that no file has any more: of these nothing is said, and less where
/// nobody knows which are `configured`.
fn skew(
    told: &[(&str, BTreeMap<String, String>)],
    configured: Option<&BTreeSet<String>>,
) -> Vec<Finding> {
    let is_configured = |provider: &&String| configured.is_none_or(|all| all.contains(*provider));
    let providers: BTreeSet<&String> =
        told.iter().flat_map(|(_, ids)| ids.keys()).filter(is_configured).collect();
    let mut findings = Vec::new();
    for provider in providers {
        let hashes: BTreeSet<&String> =
            told.iter().filter_map(|(_, ids)| ids.get(provider)).collect();
        let without: Vec<&str> = told
            .iter()
            .filter(|(_, ids)| !ids.contains_key(provider))
            .map(|(url, _)| *url)
            .collect();
        if hashes.len() > 1 {
            let message = format!(
                "the apiservers write under {} different keys by the provider {provider}",
                hashes.len()
            );
            let fix =
                "wait a minute after a rotation; else `lastkey doctor` on each control-plane node";
            findings.push(Finding::warning("apiserver-skew", message).fix(fix));
        }
        if !without.is_empty() {
            let message = format!(
                "{} has never heard of a key by the provider {provider}",
                without.join(" and ")
            );
            let (finding, fix): (fn(_, String) -> _, _) = match configured {
                Some(_) => (
                    Finding::error,
                    "give every apiserver the same EncryptionConfiguration and a plugin",
                ),
                None => (
                    Finding::warning,
                    "if it is configured still, give every apiserver the same EncryptionConfiguration \
                     and a plugin",
                ),
            };
            findings.push(finding("apiserver-without-provider", message).fix(fix));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption_config::Severity::{Error, Warning};

    fn line(provider: &str, hash: &str, at: u32) -> String {
        format!(
            "{KEY_IDS}{{apiserver_id_hash=\"x\",key_id_hash=\"{hash}\",provider_name=\"{provider}\"}} {at}\n"
        )
    }

    #[test]
    fn apiservers_that_differ_are_told() {
        let (old, new) = (line("a", "1", 10), line("a", "1", 10) + &line("a", "2", 20));
        let said = |metrics: &[(&'static str, &String)], file: Option<&[&str]>| -> Vec<_> {
            let told: Vec<_> = metrics.iter().map(|(url, text)| (*url, key_ids(text))).collect();
            let file = file.map(|names| names.iter().map(|name| (*name).to_owned()).collect());
            let findings = skew(&told, file.as_ref());
            findings.iter().map(|finding| (finding.severity, finding.code)).collect()
        };
        let (none, file) = (String::new(), Some(&["a"][..]));
        assert_eq!(said(&[("x", &new), ("y", &new)], file), []);
        assert_eq!(said(&[("x", &old), ("y", &new)], file), [(Warning, "apiserver-skew")]);
        let without = "apiserver-without-provider";
        assert_eq!(said(&[("x", &old), ("y", &none)], file), [(Error, without)]);
        // 1. One that is configured no more, as `disable` leaves it.
        assert_eq!(said(&[("x", &old), ("y", &none)], Some(&["b"])), []);
        assert_eq!(said(&[("x", &old), ("y", &new)], Some(&[])), []);
        // 2. Where nobody knows.
        assert_eq!(said(&[("x", &old), ("y", &none)], None), [(Warning, without)]);
    }

    #[test]
    fn metrics_tell_what_is_loaded_and_what_fails() {
        let codes = |metrics: &str| -> Vec<&str> {
            let mut findings = Vec::new();
            check_metrics("x", metrics, Some(b"abc"), &mut findings);
            findings.iter().map(|finding| finding.code).collect()
        };
        let hash = hex::encode(sha256(&[b"abc"]));
        assert_eq!(codes(&format!("{LOADED}{{hash=\"sha256:{hash}\"}} 1\n")), [""; 0]);
        assert_eq!(codes(&format!("{LOADED}{{hash=\"sha256:0\"}} 1\n")), ["config-not-loaded"]);
        assert_eq!(
            codes(&format!(
                "{RELOADS}{{status=\"failure\"}} 2\n{RELOADS}{{status=\"success\"}} 1\n"
            )),
            ["config-reload-failed"]
        );
        // a bad file was there for a while, and the one that is loaded was put back
        let failed = format!("{RELOADS}{{status=\"failure\"}} 2\n");
        assert_eq!(codes(&format!("{LOADED}{{hash=\"sha256:{hash}\"}} 1\n{failed}")), [""; 0]);
        assert_eq!(
            codes(&format!("{LOADED}{{hash=\"sha256:0\"}} 1\n{failed}")),
            ["config-not-loaded", "config-reload-failed"]
        );
        assert_eq!(
            codes(&format!("{FEATURES}{{name=\"KMSv1\",stage=\"DEPRECATED\"}} 1\n")),
            ["flag-kms-v1"]
        );
        let work = format!(
            "{WORK}{{resource=\"secrets\",status=\"Unknown\",transformation_type=\"from_storage\"}} 2\n"
        );
        assert_eq!(codes(&work), ["decryption-failed"]);
    }
}
