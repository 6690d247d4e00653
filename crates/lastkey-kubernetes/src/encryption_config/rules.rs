//! What an apiserver (1.37) refuses when it starts. Each check says which rule of its it is.

use std::collections::HashSet;

use super::{
    EncryptionConfiguration, Finding, KeyShape, Kms, LocalKey, Named, Provider, ProviderKind, Rule,
    decode::shown, golang,
};

/// Storage of these is not reached through the API's own path.
const NOT_REST: [&str; 3] =
    ["apiserveripinfo", "serviceipallocations", "servicenodeportallocations"];

/// Whether an apiserver knows the name and refuses it.
pub(super) fn is_not_rest(name: &str) -> bool {
    NOT_REST.contains(&name)
}

/// ` --resource NAME` for each of these names, as a shell takes it.
pub fn resource_options(names: impl IntoIterator<Item: AsRef<str>>) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    let quoted = |name: &str| match !name.is_empty() && name.chars().all(plain) {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', r"'\''")),
    };
    names.into_iter().map(|name| format!(" --resource {}", quoted(name.as_ref()))).collect()
}

/// Everything that is refused.
pub(super) fn check(config: &EncryptionConfiguration, findings: &mut Vec<Finding>) {
    if config.rules.is_empty() {
        let message = "there is no rule: `resources` is missing or empty";
        let fix = "add a rule: `lastkey cluster enable NAME` does, at all apiservers in the right order; \
                   `lastkey cluster config encryption` prints a file for a new cluster";
        findings.push(Finding::error("no-rules", message).fix(fix));
    }
    let mut names = HashSet::new();
    for rule in &config.rules {
        check_names(rule, findings);
        check_overlap(rule, findings);
        if rule.providers.is_empty() {
            let message = "this rule has no provider";
            let fix = format!(
                "copy the file from another control-plane node; where they are all like this one, write \
                 `- identity: {{}}` for it, then `lastkey cluster enable NAME{}` adds one, at all \
                 apiservers in the right order",
                resource_options(rule.resources.iter().map(|named| &named.name))
            );
            findings.push(Finding::error("no-providers", message).fix(fix).at(rule.line));
        }
        for provider in &rule.providers {
            check_provider(provider, &mut names, findings);
        }
    }
    check_masks(config, findings);
}

/// `validateResourceNames`.
fn check_names(rule: &Rule, findings: &mut Vec<Finding>) {
    if rule.resources.is_empty() {
        let message = "this rule names no resource";
        let fix = "name what it is for, such as `resources: [secrets]`";
        findings.push(Finding::error("no-resources", message).fix(fix).at(rule.line));
    }
    for named in &rule.resources {
        let (resource, group) = named.parts();
        let name = named.name.as_str();
        let found = if name.to_lowercase() != name {
            let fix = format!("write `{}`", name.to_lowercase());
            Finding::error("resource-capitals", format!("{} has capitals", shown(name))).fix(fix)
        } else if name == "*" {
            Finding::error("resource-star", "a lone * is not a name")
                .fix("write `'*.'` for the core group or `'*.*'` for everything")
        } else if NOT_REST.contains(&name) {
            let message = format!("{} cannot be encrypted: it has no API of its own", shown(name));
            Finding::error("resource-not-rest", message).fix("remove it")
        } else if group == "events.k8s.io" {
            let message = "events are stored under the core group, whichever way they come";
            Finding::error("resource-events-group", message).fix("write `events`")
        } else if group == "extensions" {
            let message = "the group extensions is gone";
            let fix =
                "name the group that took the resource over, such as `ingresses.networking.k8s.io`";
            Finding::error("resource-extensions", message).fix(fix)
        } else if group == "*" && resource != "*" {
            let message = format!("{} asks for one resource in all groups", shown(name));
            let fix = "name its group, or write `'*.*'` for everything";
            Finding::error("resource-across-groups", message).fix(fix)
        } else {
            continue;
        };
        findings.push(found.at(named.line));
    }
}

/// `validateResourceOverlap`: within one list.
fn check_overlap(rule: &Rule, findings: &mut Vec<Finding>) {
    let mut seen: Vec<&Named> = Vec::new();
    for named in &rule.resources {
        let (resource, group) = named.parts();
        if seen.iter().any(|other| other.name == named.name) {
            let message = format!("{} is named twice in one list", shown(&named.name));
            let fix = "remove one of them";
            findings.push(Finding::error("resource-twice", message).fix(fix).at(named.line));
        }
        let overlaps = |other: &&&Named| {
            let (other_resource, other_group) = other.parts();
            let all = |resource, group| (resource, group) == ("*", "*");
            let same_group = group == other_group && (resource == "*" || other_resource == "*");
            let differ = other.name != named.name;
            differ && (same_group || all(resource, group) || all(other_resource, other_group))
        };
        if let Some(other) = seen.iter().find(overlaps) {
            let names = format!("{} and {}", shown(&other.name), shown(&named.name));
            let message = format!("{names} overlap in one list, so that one of them has no effect");
            let fix = "remove the narrower one, or give it a rule of its own before the wildcard's";
            findings.push(Finding::error("resource-overlap", message).fix(fix).at(named.line));
        }
        seen.push(named);
    }
}

/// `getTransformerOverridesAndKMSPluginProbes`: an earlier wildcard leaves nothing to a later rule.
fn check_masks(config: &EncryptionConfiguration, findings: &mut Vec<Finding>) {
    let mut wildcards: HashSet<&str> = HashSet::new();
    for rule in &config.rules {
        let before = wildcards.clone();
        for named in &rule.resources {
            let group = format!("*.{}", named.parts().1);
            if let Some(mask) = [group.as_str(), "*.*"].into_iter().find(|w| before.contains(w)) {
                let message = format!(
                    "{} is masked by {} in an earlier rule",
                    shown(&named.name),
                    shown(mask)
                );
                let fix = "move this rule before the one with the wildcard, or remove it";
                findings.push(Finding::error("resource-masked", message).fix(fix).at(named.line));
            }
            if named.parts().0 == "*" {
                wildcards.insert(&named.name);
            }
        }
    }
}

fn check_provider<'c>(
    provider: &'c Provider,
    names: &mut HashSet<&'c str>,
    findings: &mut Vec<Finding>,
) {
    let kinds: Vec<&str> = provider.kinds.iter().map(ProviderKind::name).collect();
    match kinds.len() {
        0 => {
            let message = "this item of providers declares no provider";
            let fix =
                "write one of kms, secretbox, aesgcm, aescbc, or `identity: {}` with its braces";
            findings.push(Finding::error("provider-empty", message).fix(fix).at(provider.line));
        }
        1 => {}
        _ => {
            let message = format!("one item declares {}", kinds.join(" and "));
            let fix = "give each provider an item of its own, starting with `- `";
            findings.push(Finding::error("provider-several", message).fix(fix).at(provider.line));
        }
    }
    for kind in &provider.kinds {
        match kind {
            ProviderKind::Kms(kms) => {
                check_kms(kms, names, findings);
                names.insert(&kms.name);
            }
            ProviderKind::AesCbc(keys) | ProviderKind::AesGcm(keys) => {
                check_keys(provider, keys, (&[16, 24, 32], "16, 24 or 32"), findings);
            }
            ProviderKind::Secretbox(keys) => {
                check_keys(provider, keys, (&[32], "32"), findings);
            }
            ProviderKind::Identity => {}
        }
    }
}

/// `validateKMSConfiguration`, and the feature gate of v1.
fn check_kms(kms: &Kms, names: &HashSet<&str>, findings: &mut Vec<Finding>) {
    let mut say = |finding: Finding| findings.push(finding.at(kms.line));
    let is_v1 = kms.version() == "v1";
    match kms.version() {
        "v2" => {}
        "v1" => {
            let absent = if kms.api_version.is_empty() { " (no apiVersion means v1)" } else { "" };
            let message = format!(
                "the provider {} speaks KMS v1{absent}, which apiservers since 1.29 refuse unless \
                 they are started with --feature-gates=KMSv1=true, and which never notices that a \
                 key was rotated",
                shown(&kms.name)
            );
            let fix =
                "write `apiVersion: v2` under a new name before it, then `lastkey cluster rotate`";
            say(Finding::error("kms-v1", message).fix(fix));
        }
        other => {
            let message = format!("{} is no version of KMS", shown(other));
            say(Finding::error("kms-api-version", message).fix("write `apiVersion: v2`"));
        }
    }
    if kms.name.is_empty() {
        say(Finding::error("kms-name-missing", "the provider has no name")
            .fix("add `name: lastkey`"));
    }
    if !is_v1 && kms.name.contains(':') {
        let message = format!("the name {} has a colon", shown(&kms.name));
        say(Finding::error("kms-name-colon", message).fix("use letters, digits and hyphens"));
    }
    if names.contains(kms.name.as_str()) && !kms.name.is_empty() {
        let message = format!("two providers are named {}", shown(&kms.name));
        let fix = "put both rules' resources into one rule, or give this provider another name \
                   (which makes it another provider to the apiserver)";
        say(Finding::error("kms-name-twice", message).fix(fix));
    }
    match kms.cachesize {
        Some(_) if !is_v1 => {
            let message = "cachesize is for KMS v1 only";
            say(Finding::error("kms-cachesize", message).fix("remove `cachesize`"));
        }
        Some(0) => {
            let message = "a cachesize of 0 is refused";
            say(Finding::error("kms-cachesize", message).fix("remove `cachesize`"));
        }
        _ => {}
    }
    if let Some(timeout) = &kms.timeout {
        let bad = match golang::parse_duration(timeout) {
            None => "is no duration",
            Some(Err(())) => "is negative",
            Some(Ok(time)) if time.is_zero() => "is zero",
            Some(Ok(_)) => "",
        };
        if !bad.is_empty() {
            let message = format!("the timeout {} {bad}", shown(timeout));
            say(Finding::error("kms-timeout", message).fix("write `timeout: 3s`"));
        }
    }
    check_endpoint(kms, &mut say);
}

fn check_endpoint(kms: &Kms, say: &mut impl FnMut(Finding)) {
    let fix = "write `endpoint: unix:///run/lastkey/kms.sock`";
    let endpoint = shown(&kms.endpoint);
    if kms.endpoint.is_empty() {
        let message = "the provider has no endpoint";
        return say(Finding::error("kms-endpoint", message).fix(fix));
    }
    match golang::parse_url(&kms.endpoint) {
        Err(why) => {
            let message = format!("the endpoint {endpoint} is no URL: {why}");
            say(Finding::error("kms-endpoint", message).fix(fix));
        }
        Ok(url) if url.scheme != "unix" => {
            let message = format!("the endpoint {endpoint} is no unix socket");
            say(Finding::error("kms-endpoint", message).fix(fix));
        }
        Ok(url) => {
            if let Err(why) = golang::check_target(&url.socket()) {
                let message = format!("the endpoint {endpoint} cannot be dialled: {why}");
                say(Finding::error("kms-endpoint", message).fix(fix));
            }
        }
    }
}

/// `validateKeys`.
fn check_keys(
    provider: &Provider,
    keys: &[LocalKey],
    (lengths, in_words): (&[usize], &str),
    findings: &mut Vec<Finding>,
) {
    let fix = format!(
        "copy it from the file of another control-plane node; where nothing rests under it yet, \
         `head -c 32 /dev/urandom | base64` makes a key of 32 bytes ({in_words} are taken); better: \
         a KMS provider, by `lastkey cluster enable NAME`"
    );
    if keys.is_empty() {
        let message = "the provider has no key";
        findings.push(Finding::error("key-missing", message).fix(fix.as_str()).at(provider.line));
    }
    for key in keys {
        let name = shown(&key.name);
        let mut say = |code, message: String| {
            findings.push(Finding::error(code, message).fix(fix.as_str()).at(key.line));
        };
        if key.name.is_empty() {
            say("key-name", "a key has no name".to_owned());
        }
        match key.secret {
            KeyShape::Missing => say("key-missing", format!("the key {name} has no secret")),
            KeyShape::NotBase64 => {
                say("key-base64", format!("the secret of the key {name} is not base64"))
            }
            KeyShape::Bytes { length, .. } if !lengths.contains(&length) => {
                let message = format!("the key {name} has {length} bytes; {in_words} are taken");
                say("key-length", message);
            }
            KeyShape::Bytes { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::encryption_config::examine;

    /// What `cluster config encryption` prints fails every list where something is encrypted already.
    #[test]
    fn a_printed_file_is_for_new_clusters_only() {
        let file = |providers: &str| {
            format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
                 - resources: [secrets]\n  providers: {providers}\n"
            )
        };
        for (providers, code) in [
            ("[]", "no-providers"),
            ("[secretbox: {keys: []}]", "key-missing"),
            ("[aescbc: {keys: [{name: a, secret: '?'}]}]", "key-base64"),
            ("[aescbc: {keys: [{name: a, secret: MTIz}]}]", "key-length"),
        ] {
            let findings = examine(&file(providers)).findings;
            let found = findings.iter().find(|finding| finding.code == code).expect(code);
            assert!(found.fix.contains("another control-plane node"), "{found:?}");
            for fix in findings.iter().map(|finding| &finding.fix) {
                let prints = fix.contains("cluster config encryption");
                assert!(!prints || fix.contains("for a new cluster"), "{fix}");
            }
        }
    }
}
