//! What an apiserver accepts without a word, although values stay in clear, nothing can work, or
//! the next rotation will hurt.

use std::{collections::HashMap, time::Duration};

use super::{
    EncryptionConfiguration, Finding, KeyShape, Kms, LocalKey, Named, Provider, ProviderKind, Rule,
    decode::shown, golang, rules::resource_options, unknown,
};

/// A socket's address holds so many bytes (`sun_path`, less one for the end).
const MAX_SOCKET_PATH: usize = 107;
const SHORT: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

pub(super) fn give(config: &EncryptionConfiguration, findings: &mut Vec<Finding>) {
    for (index, rule) in config.rules.iter().enumerate() {
        unknown::about_names(rule, findings);
        about_order(rule, (&config.rules[..index], &config.rules[index + 1..]), findings);
        about_identity(rule, findings);
        for provider in &rule.providers {
            about_provider(provider, findings);
        }
    }
    about_rules(config, findings);
    about_equal_keys(config, findings);
}

/// What the first provider writes with. A resource that an earlier rule names is written by that
/// rule's.
fn about_order(rule: &Rule, (earlier, later): (&[Rule], &[Rule]), findings: &mut Vec<Finding>) {
    let Some(first) = rule.providers.first() else { return };
    let before = |named: &&Named| {
        earlier.iter().flat_map(|rule| &rule.resources).any(|other| other.name == named.name)
    };
    let writes: Vec<&Named> = rule.resources.iter().filter(|named| !before(named)).collect();
    if first.kinds.len() > 1 || writes.is_empty() {
        return;
    }
    let names = || {
        let names: Vec<String> = writes.iter().take(5).map(|named| shown(&named.name)).collect();
        let more = if writes.len() > 5 { " and more" } else { "" };
        format!("{}{more}", names.join(", "))
    };
    if first.kind() == Some(&ProviderKind::Identity) {
        let only = rule.providers.len() == 1;
        let excluded = |named: &Named| {
            let (resource, group) = named.parts();
            let wide = |other: &Named| other.parts().0 == "*" && other.covers(resource, group);
            later.iter().flat_map(|rule| &rule.resources).any(wide) && !covers_secrets(named)
        };
        if only && writes.iter().all(|named| excluded(named)) {
            let message = format!("{} stay in clear by a rule before the wildcard's", names());
            let fix = "remove this rule if that is not intended";
            findings.push(Finding::info("excluded", message).fix(fix).at(first.line));
            return;
        }
        let message = format!(
            "identity comes first, so everything is written in clear for {}; an apiserver says \
             nothing about it",
            names()
        );
        let fix = match only {
            // without the names it would be for Secrets and what is encrypted already
            true => format!(
                "put a provider that encrypts before it: `lastkey cluster enable NAME{}` does that at \
                 all apiservers in the right order; `lastkey cluster config encryption` prints a file \
                 for a new cluster",
                resource_options(writes.iter().map(|named| &named.name))
            ),
            false => {
                // Of a v1 KMS no rotation keeps the version.
                let kms = |provider: &Provider| matches!(provider.kind(), Some(ProviderKind::Kms(kms)) if kms.version() == "v2");
                let anew = match rule.providers.get(1).is_some_and(kms) {
                    true => "`lastkey cluster rotate NAME --keep-version`".to_owned(),
                    false => format!(
                        "`lastkey cluster enable NAME{}`",
                        resource_options(writes.iter().map(|named| &named.name))
                    ),
                };
                format!(
                    "move `- identity: {{}}` to the end of the list, restart the apiserver, then \
                     {anew} to encrypt what is stored"
                )
            }
        };
        findings.push(Finding::error("identity-first", message).fix(fix).at(first.line));
        return;
    }
    let kms_later =
        rule.providers.iter().skip(1).find(|p| matches!(p.kind(), Some(ProviderKind::Kms(_))));
    if let (Some(kind), Some(later)) = (first.kind(), kms_later)
        && !matches!(kind, ProviderKind::Kms(_))
    {
        let message = format!(
            "{} writes, although a KMS provider follows: its keys stay in use",
            kind.name()
        );
        let fix = "move the KMS provider to the front unless you are on your way back from it";
        findings.push(Finding::warning("kms-not-first", message).fix(fix).at(later.line));
    }
}

fn covers_secrets(named: &Named) -> bool {
    named.covers("secrets", "")
}

/// Where `identity` stands, if it does not write.
fn about_identity(rule: &Rule, findings: &mut Vec<Finding>) {
    let is_identity = |provider: &Provider| provider.kind() == Some(&ProviderKind::Identity);
    let Some(at) = rule.providers.iter().position(is_identity) else {
        if !rule.providers.is_empty() {
            let message = "without identity, what was stored in clear before cannot be read: one \
                           such object fails every list";
            let fix = "check with `lastkey cluster status`; add `- identity: {}` at the end as long \
                       as anything is in clear";
            findings.push(Finding::info("no-identity", message).fix(fix).at(rule.line));
        }
        return;
    };
    if at == 0 {
        return;
    }
    let line = rule.providers[at].line;
    if at + 1 == rule.providers.len() {
        let message = "identity is left: whoever can write to etcd can put values in clear there, \
                       and they are believed";
        let fix = "remove it once `lastkey cluster status` shows nothing in clear";
        findings.push(Finding::info("identity-last", message).fix(fix).at(line));
    } else {
        let message = "identity stands between other providers";
        let fix = "move `- identity: {}` to the end of the list";
        findings.push(Finding::warning("identity-between", message).fix(fix).at(line));
    }
}

fn about_provider(provider: &Provider, findings: &mut Vec<Finding>) {
    match provider.kind() {
        Some(ProviderKind::Kms(kms)) => about_kms(kms, findings),
        Some(ProviderKind::AesCbc(keys)) => {
            let message = "aescbc does not notice changed values (padding oracles are known), and \
                           its keys lie in this file";
            about_local("provider-weak", message, (provider, keys), findings);
        }
        Some(ProviderKind::AesGcm(keys)) => {
            let message = "aesgcm draws random nonces under one key: after 200 000 writes the key \
                           must have been replaced by hand, and it lies in this file";
            about_local("provider-weak", message, (provider, keys), findings);
        }
        Some(ProviderKind::Secretbox(keys)) => {
            let message = "secretbox is sound, but its keys lie in this file and are only replaced \
                           by hand";
            about_local("provider-local", message, (provider, keys), findings);
        }
        Some(ProviderKind::Identity) | None => {}
    }
}

fn about_local(
    code: &'static str,
    message: &str,
    (provider, keys): (&Provider, &[LocalKey]),
    findings: &mut Vec<Finding>,
) {
    let fix = "move to a KMS provider: `lastkey cluster enable NAME`, then remove this one";
    findings.push(Finding::warning(code, message).fix(fix).at(provider.line));
    for key in keys {
        if let KeyShape::Bytes { known: true, .. } = key.secret {
            let message = format!(
                "anybody can guess the key {}: it is from documentation or a pattern",
                shown(&key.name)
            );
            let fix = "put a new key before it: `head -c 32 /dev/urandom | base64`, and re-encrypt \
                       everything";
            findings.push(Finding::warning("key-guessable", message).fix(fix).at(key.line));
        }
        if key.name.contains(':') {
            let message = format!(
                "the key's name {} has a colon, which separates names in etcd",
                shown(&key.name)
            );
            findings.push(
                Finding::warning("key-name-colon", message)
                    .fix("use another name for the next key")
                    .at(key.line),
            );
        }
    }
}

fn about_kms(kms: &Kms, findings: &mut Vec<Finding>) {
    let mut say = |finding: Finding| findings.push(finding.at(kms.line));
    if let Some(Ok(timeout)) = kms.timeout.as_deref().and_then(golang::parse_duration)
        && !timeout.is_zero()
    {
        if timeout < SHORT {
            let message = "the timeout is so short that one slow answer fails a request";
            say(Finding::warning("kms-timeout-short", message).fix("write `timeout: 3s`"));
        } else if timeout > LONG {
            let message = "the timeout is so long that requests give up before it, and health \
                           checks queue behind each other";
            say(Finding::warning("kms-timeout-long", message).fix("write `timeout: 3s`"));
        }
    }
    let Ok(url) = golang::parse_url(&kms.endpoint) else { return };
    if url.scheme == "unix" {
        about_socket(&url, &kms.endpoint, &mut say);
    }
}

/// Endpoints that an apiserver takes and can never reach.
fn about_socket(url: &golang::GoUrl, endpoint: &str, say: &mut impl FnMut(Finding)) {
    let socket = url.socket();
    let fix = "write `endpoint: unix:///run/lastkey/kms.sock`";
    let endpoint = shown(endpoint);
    if !url.host.is_empty() {
        let message = format!(
            "the endpoint {endpoint} has two slashes where three belong: the apiserver takes \
             {} for a host and connects to {}",
            shown(&url.host),
            shown(&socket)
        );
        let fix = format!("write `endpoint: unix:///{}{}`", url.host, url.path);
        say(Finding::error("kms-endpoint-host", message).fix(fix));
    } else if socket.is_empty() || socket == "/" || socket == "@" {
        let message = format!("the endpoint {endpoint} names no socket");
        say(Finding::error("kms-endpoint-path", message).fix(fix));
    } else if socket.len() > MAX_SOCKET_PATH {
        let message = format!(
            "the socket's path has {} bytes; no system takes more than {MAX_SOCKET_PATH}",
            socket.len()
        );
        say(Finding::error("kms-endpoint-long", message).fix(fix));
    } else if socket.starts_with('@') {
        let message = "an abstract socket has no permissions: any process in the same network \
                       namespace may speak to it, so the plugin must check its peers";
        let fix =
            "use a path unless the apiserver is older than 1.32; lastkey's plugin checks peers";
        say(Finding::info("kms-endpoint-abstract", message).fix(fix));
    }
    if url.cut {
        let message = format!("the endpoint {endpoint} has a ? or #, and all after it is ignored");
        say(Finding::warning("kms-endpoint-cut", message).fix(fix));
    }
}

/// What no single rule shows.
fn about_rules(config: &EncryptionConfiguration, findings: &mut Vec<Finding>) {
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (index, rule) in config.rules.iter().enumerate() {
        for named in &rule.resources {
            let first = *seen.entry(&named.name).or_insert(index);
            if first != index && named.parts().0 != "*" {
                let message = format!(
                    "{} is in an earlier rule too: this one's providers only read it",
                    shown(&named.name)
                );
                let fix = "name it in one rule, with all of its providers in the order you want";
                findings.push(Finding::warning("resource-split", message).fix(fix).at(named.line));
            }
        }
    }
    let covered = config.names().any(covers_secrets);
    if !covered && !config.rules.is_empty() {
        let message = "no rule covers secrets: every new one is written in clear";
        let fix = "add `secrets` to the resources of a rule with a KMS provider";
        findings.push(Finding::error("secrets-uncovered", message).fix(fix));
    }
    if let Some(all) = config.names().find(|named| named.name == "*.*") {
        let excluded = config.names().any(|named| named.name == "events");
        if !excluded {
            let message = "*.* encrypts events and leases too, which are written all the time";
            let fix =
                "put a rule for `events` with `identity: {}` alone before it, if that is too much";
            findings.push(Finding::info("wildcard-events", message).fix(fix).at(all.line));
        }
    }
}

/// One key under two names, or in two providers.
fn about_equal_keys(config: &EncryptionConfiguration, findings: &mut Vec<Finding>) {
    let mut seen: HashMap<u64, (&'static str, &str)> = HashMap::new();
    let kinds = config.rules.iter().flat_map(|r| &r.providers).flat_map(|p| &p.kinds);
    for kind in kinds {
        let (ProviderKind::AesCbc(keys)
        | ProviderKind::AesGcm(keys)
        | ProviderKind::Secretbox(keys)) = kind
        else {
            continue;
        };
        for key in keys {
            let KeyShape::Bytes { same_as, .. } = key.secret else { continue };
            let this = (kind.name(), key.name.as_str());
            // the same provider in several rules has the same keys
            if let Some(other) = seen.insert(same_as, this).filter(|other| *other != this) {
                let message = format!(
                    "the keys {} of {} and {} of {} are the same",
                    shown(other.1),
                    other.0,
                    shown(this.1),
                    this.0
                );
                let fix = "`head -c 32 /dev/urandom | base64` makes another key";
                findings.push(Finding::warning("key-reused", message).fix(fix).at(key.line));
            }
        }
    }
}
