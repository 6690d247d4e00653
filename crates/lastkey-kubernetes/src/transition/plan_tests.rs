//! The plan of every starting configuration.

use super::*;
use crate::encryption_config::{apply, examine, readable};

const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
const FRESH: &str = "qJf8Zz0uT3kV5x1mWb7yRc9dLh2nEo4sGpXaKiUvM6Q=";

fn ours() -> Target {
    Target::Kms { name: "lastkey".to_owned(), endpoint: "unix:///run/lastkey/kms.sock".to_owned() }
}

fn goal(resources: &[&str], target: Target) -> Goal {
    Goal { resources: resources.iter().map(|name| (*name).to_owned()).collect(), target }
}

/// `secrets,configmaps: identity | *.*: other identity`, a rule each.
fn file(rules: &str) -> String {
    let mut text = format!("{HEAD}resources:\n");
    for rule in rules.split('|') {
        let (resources, providers) = rule.split_once(':').unwrap();
        text += "- resources:\n";
        for name in resources.trim().split(',') {
            text += &format!("  - '{}'\n", name.trim());
        }
        text += "  providers:\n";
        for provider in providers.split_whitespace() {
            text += &match provider {
                "identity" => "  - identity: {}\n".to_owned(),
                "aescbc" | "aesgcm" | "secretbox" => format!(
                    "  - {provider}:\n      keys:\n      - name: k\n        secret: p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=\n"
                ),
                kms => format!(
                    "  - kms:\n      apiVersion: v2\n      name: {kms}\n      endpoint: unix:///run/{kms}/kms.sock\n"
                ),
            };
        }
    }
    text
}

/// The same, of a file's text.
fn told(text: &str) -> String {
    let config = examine(text).config;
    let rules = config.rules.iter().map(|rule| {
        let names: Vec<&str> = rule.resources.iter().map(|named| named.name.as_str()).collect();
        let providers = rule.providers.iter().map(|provider| match provider.kind() {
            Some(ProviderKind::Kms(kms)) => kms.name.clone(),
            Some(kind) => kind.name().to_owned(),
            None => String::new(),
        });
        format!("{}: {}", names.join(","), providers.collect::<Vec<_>>().join(" "))
    });
    rules.collect::<Vec<_>>().join(" | ")
}

/// What each stage makes of a file, when nothing is needed afterwards but `needed`.
fn stages(text: Option<&str>, goal: &Goal, needed: &[&str]) -> Vec<String> {
    let needed = |_: &Rule, provider: &Provider| {
        provider.kind().is_some_and(|kind| match kind {
            ProviderKind::Kms(kms) => needed.contains(&kms.name.as_str()),
            kind => needed.contains(&kind.name()),
        })
    };
    let mut text = text.map(str::to_owned);
    let mut seen = Vec::new();
    for stage in [Stage::Readable, Stage::Writing, Stage::Clean] {
        let config = readable(text.as_deref()).unwrap();
        let draft = next(&config, goal, stage, &needed).unwrap();
        let edited = apply(text.as_deref(), &draft, FRESH).unwrap();
        // Whatever is there already stays as it is.
        let again = readable(Some(&edited.text)).unwrap();
        let draft = next(&again, goal, stage, &needed).unwrap();
        assert!(draft.is_same_as(&again), "{stage:?} twice: {}", *edited.text);
        seen.push(told(&edited.text));
        text = Some(edited.text.to_string());
    }
    seen
}

#[test]
fn enable_from_every_configuration() {
    let secrets = &["secrets"][..];
    let table: [(&str, &[&str], [&str; 3]); 13] = [
        // In clear, with and without a rule.
        (
            "secrets: identity",
            secrets,
            ["secrets: identity lastkey", "secrets: lastkey identity", "secrets: lastkey"],
        ),
        (
            "configmaps: aescbc",
            secrets,
            [
                "configmaps: aescbc | secrets: identity lastkey",
                "configmaps: aescbc | secrets: lastkey identity",
                "configmaps: aescbc | secrets: lastkey",
            ],
        ),
        // Under local keys.
        (
            "secrets: aescbc identity",
            secrets,
            [
                "secrets: aescbc lastkey identity",
                "secrets: lastkey aescbc identity",
                "secrets: lastkey",
            ],
        ),
        (
            "secrets: secretbox",
            secrets,
            ["secrets: secretbox lastkey", "secrets: lastkey secretbox", "secrets: lastkey"],
        ),
        (
            "secrets: identity aesgcm",
            secrets,
            [
                "secrets: identity lastkey aesgcm",
                "secrets: lastkey aesgcm identity",
                "secrets: lastkey",
            ],
        ),
        // Under another plugin, also one of the same name.
        (
            "secrets: other identity",
            secrets,
            [
                "secrets: other lastkey identity",
                "secrets: lastkey other identity",
                "secrets: lastkey",
            ],
        ),
        // Begun before, or done.
        (
            "secrets: identity lastkey",
            secrets,
            ["secrets: identity lastkey", "secrets: lastkey identity", "secrets: lastkey"],
        ),
        (
            "secrets: lastkey identity",
            secrets,
            ["secrets: lastkey identity", "secrets: lastkey identity", "secrets: lastkey"],
        ),
        ("secrets: lastkey", secrets, ["secrets: lastkey", "secrets: lastkey", "secrets: lastkey"]),
        // A rule for more than is wanted is split; a wildcard's is put a rule in front of.
        (
            "secrets,configmaps: identity",
            secrets,
            [
                "secrets: identity lastkey | configmaps: identity",
                "secrets: lastkey identity | configmaps: identity",
                "secrets: lastkey | configmaps: identity",
            ],
        ),
        (
            "*.*: aescbc identity",
            secrets,
            [
                "secrets: aescbc lastkey identity | *.*: aescbc identity",
                "secrets: lastkey aescbc identity | *.*: aescbc identity",
                "secrets: lastkey | *.*: aescbc identity",
            ],
        ),
        // In several rules a KMS provider needs several names.
        (
            "secrets: aescbc | configmaps: secretbox identity",
            &["secrets", "configmaps"],
            [
                "secrets: aescbc lastkey-2 | configmaps: secretbox lastkey identity",
                "secrets: lastkey-2 aescbc | configmaps: lastkey secretbox identity",
                "secrets: lastkey-2 | configmaps: lastkey",
            ],
        ),
        // Everything, with exceptions of its own.
        (
            "events: identity | secrets: aescbc",
            &["secrets", "widgets.example.org", "*.apps"],
            [
                "events: identity | secrets: aescbc lastkey | widgets.example.org,*.apps: identity lastkey-2",
                "events: identity | secrets: lastkey aescbc | widgets.example.org,*.apps: lastkey-2 identity",
                "events: identity | secrets: lastkey | widgets.example.org,*.apps: lastkey-2",
            ],
        ),
    ];
    for (before, resources, after) in table {
        let found = stages(Some(&file(before)), &goal(resources, ours()), &[]);
        assert_eq!(found, after, "{before}");
    }
    // Without any file.
    let found = stages(None, &goal(secrets, ours()), &[]);
    assert_eq!(
        found,
        ["secrets: identity lastkey", "secrets: lastkey identity", "secrets: lastkey"]
    );
    // Another plugin that has taken the name.
    let taken = file("secrets: lastkey identity").replace("/run/lastkey/", "/run/else/");
    let found = stages(Some(&taken), &goal(secrets, ours()), &[]);
    assert_eq!(found[1..], ["secrets: lastkey-2 lastkey identity", "secrets: lastkey-2"]);
}

#[test]
fn disable_to_everything() {
    let secrets = goal(&["secrets"], Target::Identity);
    let found = stages(Some(&file("secrets: lastkey")), &secrets, &[]);
    assert_eq!(
        found,
        ["secrets: lastkey identity", "secrets: identity lastkey", "secrets: identity"]
    );
    let found = stages(Some(&file("secrets: lastkey aescbc identity")), &secrets, &[]);
    assert_eq!(found[1..], ["secrets: identity lastkey aescbc", "secrets: identity"]);
    for kind in ["aescbc", "aesgcm", "secretbox"] {
        let to = goal(&["secrets"], Target::Local { kind: kind.to_owned() });
        let found = stages(Some(&file(&format!("secrets: lastkey {kind}"))), &to, &[]);
        assert_eq!(found[1..], [format!("secrets: {kind} lastkey"), format!("secrets: {kind}")]);
        // With a key that is made.
        let found = stages(Some(&file("secrets: lastkey identity")), &to, &[]);
        assert_eq!(found[0], format!("secrets: lastkey {kind} identity"));
        assert_eq!(found[2], format!("secrets: {kind}"));
    }
    let other = Target::Kms { name: "other".into(), endpoint: "unix:///run/other/kms.sock".into() };
    let found = stages(Some(&file("secrets: lastkey")), &goal(&["secrets"], other), &[]);
    assert_eq!(found, ["secrets: lastkey other", "secrets: other lastkey", "secrets: other"]);
}

#[test]
fn what_something_rests_under_stays() {
    let secrets = goal(&["secrets"], ours());
    let text = file("secrets: aescbc secretbox identity");
    let found = stages(Some(&text), &secrets, &["secretbox"]);
    assert_eq!(found[2], "secrets: lastkey secretbox");
    let found = stages(Some(&text), &secrets, &["identity"]);
    assert_eq!(found[2], "secrets: lastkey identity");
    let back = goal(&["secrets"], Target::Identity);
    let found = stages(Some(&file("secrets: lastkey")), &back, &["lastkey"]);
    assert_eq!(found[2], "secrets: identity lastkey");
}

#[test]
fn what_cannot_be_told_apart_is_refused() {
    let config = examine(&file("secrets,configmaps: other identity")).config;
    let none = |_: &Rule, _: &Provider| false;
    let error = next(&config, &goal(&["secrets"], ours()), Stage::Readable, &none).unwrap_err();
    assert!(matches!(&error, PlanError::Shared { provider, .. } if provider == "other"), "{error}");
    let config = examine(&file("*.*: other")).config;
    let error = next(&config, &goal(&["secrets"], ours()), Stage::Readable, &none).unwrap_err();
    assert!(matches!(error, PlanError::Shared { .. }), "{error}");
    let config = examine(&file("secrets: identity")).config;
    let error = next(&config, &goal(&["secrets"], ours()), Stage::Writing, &none).unwrap_err();
    assert!(matches!(error, PlanError::TargetMissing { .. }), "{error}");
}

#[test]
fn what_is_meant_by_default() {
    let enable = |rules: &str| resources_to_enable(&examine(&file(rules)).config).join(",");
    assert_eq!(enable("configmaps: identity"), "secrets");
    assert_eq!(
        enable("configmaps,widgets.example.org: aescbc"),
        "configmaps,secrets,widgets.example.org"
    );
    assert_eq!(enable("*.*: aescbc"), "*.*");
    assert_eq!(enable("secrets: identity | *.*: aescbc"), "*.*,secrets");
    let config = examine(&file("secrets: lastkey | configmaps: other | events: identity")).config;
    let ours = names_of_ours(&config, &[], "unix:///run/lastkey/kms.sock");
    assert_eq!(resources_under(&config, &ours), ["secrets"]);
    let told = names_of_ours(&config, &["other".to_owned()], "unix:///nowhere");
    assert_eq!(resources_under(&config, &told), ["configmaps"]);
}

/// Out of the KMS and back into it: what had a rule of its own stays in clear, and is named.
#[test]
fn what_stays_in_clear_is_known() {
    let clear = |text: &str| in_clear(&examine(text).config);
    assert_eq!(clear(&file("secrets: lastkey identity | configmaps: aescbc")), [""; 0]);
    let back = file("secrets,widgets.example.org: identity | configmaps: identity lastkey");
    assert_eq!(clear(&back), ["secrets", "widgets.example.org", "configmaps"]);
    // what an earlier rule, or a wildcard with a rule of its own, writes
    let wide = file(
        "secrets: lastkey | events: identity | secrets,events,*.apps: identity | *.*: lastkey",
    );
    assert_eq!(clear(&wide), ["events", "*.apps"]);
    let text = file("secrets,widgets.example.org: identity | configmaps: identity");
    let config = examine(&text).config;
    let goal = Goal { resources: resources_to_enable(&config), target: ours() };
    let after = |text: &str, stage| {
        let config = readable(Some(text)).unwrap();
        apply(Some(text), &next(&config, &goal, stage, &|_, _| false).unwrap(), FRESH).unwrap().text
    };
    let mut text = text;
    for stage in [Stage::Readable, Stage::Writing, Stage::Clean] {
        text = after(&text, stage).to_string();
    }
    assert_eq!(clear(&text), ["widgets.example.org", "configmaps"], "{text}");
}
