//! What is left of a file that is changed.

use super::*;
use crate::transition::{Goal, Stage, Target, next};

const FRESH: &str = "qJf8Zz0uT3kV5x1mWb7yRc9dLh2nEo4sGpXaKiUvM6Q=";

fn goal(resources: &[&str]) -> Goal {
    let (name, endpoint) = ("lastkey".to_owned(), "unix:///run/lastkey/kms.sock".to_owned());
    Goal {
        resources: resources.iter().map(|name| (*name).to_owned()).collect(),
        target: Target::Kms { name, endpoint },
    }
}

/// What two stages make of a file: the provider added, then first.
fn both(text: &str, goal: &Goal) -> (Edited, Edited) {
    let stage = |text: &str, stage| {
        let config = readable(Some(text)).unwrap();
        let draft = next(&config, goal, stage, &|_, _| false).unwrap();
        apply(Some(text), &draft, FRESH).unwrap()
    };
    let first = stage(text, Stage::Readable);
    let second = stage(&first.text, Stage::Writing);
    (first, second)
}

#[test]
fn comments_and_order_stay() {
    let text = "\
# written by hand; do not lose this
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
  # the only rule
  - resources:
      - secrets   # all of them
      - configmaps
    providers:
      # the old one
      - aescbc:
          keys:
            # made in 2024
            - name: k1
              secret: p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=
      # reads what is in clear
      - identity: {}
# the end
";
    let (first, second) = both(text, &goal(&["secrets", "configmaps"]));
    let new = "      - kms:
          apiVersion: v2
          name: \"lastkey\"
          endpoint: \"unix:///run/lastkey/kms.sock\"
          timeout: 3s
";
    assert!(!first.comments_lost && !second.comments_lost);
    let expected = text.replace("      # reads what", &format!("{new}      # reads what"));
    assert_eq!(*first.text, expected);
    let expected = text.replace("      # the old one", &format!("{new}      # the old one"));
    assert_eq!(*second.text, expected);
}

#[test]
fn rules_are_split_and_added_in_lines() {
    let text = "\
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources: [configmaps, secrets] # two
  providers:
  # local
  - secretbox: {keys: [{name: k1, secret: p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=}]}
  - identity: {}";
    let (first, _) = both(text, &goal(&["secrets", "widgets.example.org"]));
    assert!(!first.comments_lost, "{}", *first.text);
    let kept = ["[\"configmaps\"] # two", "  # local\n"];
    assert!(kept.iter().all(|part| first.text.contains(part)), "{}", *first.text);
    let names: Vec<String> = examine(&first.text)
        .config
        .rules
        .iter()
        .map(|rule| rule.resources[0].name.clone())
        .collect();
    assert_eq!(names, ["secrets", "configmaps", "widgets.example.org"]);
}

#[test]
fn what_has_no_lines_to_move_is_written_anew() {
    let key = "p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=";
    let json = format!(
        r#"{{"apiVersion": "apiserver.config.k8s.io/v1", "kind": "EncryptionConfiguration",
            "resources": [{{"resources": ["secrets"], "providers": [
              {{"aescbc": {{"keys": [{{"name": "k \"1\"", "secret": "{key}"}}]}}}},
              {{"kms": {{"apiVersion": "v2", "name": "a", "endpoint": "unix:///a.sock", "timeout": "5s"}}}}]}}]}}"#
    );
    let flow = format!(
        "# mine\napiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: [\
         {{resources: [secrets], providers: [{{aescbc: {{keys: [{{name: k, secret: {key}}}]}}}}, \
         {{identity: {{}}}}]}}]\n"
    );
    let anchors = format!(
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
         - resources: [events]\n  providers: &p\n  - secretbox: {{keys: [{{name: k, secret: {key}}}]}}\n\
         - resources: [secrets]\n  providers: *p\n"
    );
    for (text, lost) in [(json, false), (flow, true), (anchors, false)] {
        let (first, second) = both(&text, &goal(&["secrets"]));
        assert_eq!(first.comments_lost, lost, "{}", *first.text);
        assert!(
            first.text.contains(key) && second.text.contains(key),
            "keys stay: {}",
            *second.text
        );
        let config = examine(&second.text).config;
        let rule = config.rules.iter().find(|rule| rule.resources[0].name == "secrets").unwrap();
        assert!(
            matches!(rule.providers[0].kind(), Some(ProviderKind::Kms(kms)) if kms.name == "lastkey")
        );
    }
}

/// A file may be for others only: `enable --resource configmaps` makes one, and leaves Secrets alone.
#[test]
fn a_part_without_secrets_is_brought_under_the_key() {
    let text = "\
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources:
  - configmaps
  providers:
  - identity: {}
";
    let draft = |providers: Vec<Item>, from: Option<usize>| Draft {
        rules: vec![DraftRule { from, resources: vec!["configmaps".to_owned()], providers }],
    };
    let kms = Item::Kms { name: "lastkey".into(), endpoint: "unix:///run/kms.sock".into() };
    let uncovered = |text: &str| {
        let findings = examine(text).findings;
        findings.iter().any(|f| (f.severity, f.code) == (Severity::Error, "secrets-uncovered"))
    };
    assert!(uncovered(text) && readable(Some(text)).is_ok());
    let kept = Item::Kept { rule: 0, provider: 0 };
    for (text, draft) in [
        (Some(text), draft(vec![kms.clone(), kept], Some(0))),
        (None, draft(vec![kms, Item::Identity], None)),
    ] {
        let new = apply(text, &draft, FRESH).unwrap().text;
        assert!(uncovered(&new), "{}", *new);
        let config = examine(&new).config;
        let prefix = config.providers_of("configmaps")[0].prefix();
        assert_eq!(prefix.as_deref(), Some("k8s:enc:kms:v2:lastkey:"));
    }
}

/// As an editor on Windows saves them; a last line without its end.
#[test]
fn carriage_returns_and_missing_ends_stay_out_of_the_way() {
    let text = "\
# mine
apiVersion: apiserver.config.k8s.io/v1
kind: EncryptionConfiguration
resources:
- resources:
  - secrets
  providers:
  # old
  - aescbc:
      keys:
      - name: k1
        secret: p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=
  - identity: {}";
    for text in [text.to_owned(), text.replace('\n', "\r\n"), format!("\u{feff}{text}")] {
        let (first, second) = both(&text, &goal(&["secrets"]));
        let kinds = |text: &str| -> Vec<String> {
            let config = examine(text).config;
            let kinds = config.rules[0].providers.iter();
            kinds.map(|one| one.kind().unwrap().name().to_owned()).collect()
        };
        assert_eq!(kinds(&first.text), ["aescbc", "kms", "identity"], "{text:?}");
        assert_eq!(kinds(&second.text), ["kms", "aescbc", "identity"], "{text:?}");
        assert!(second.text.contains("# mine") && second.text.contains("# old"), "{text:?}");
        assert!(!first.comments_lost && !second.comments_lost, "{text:?}");
    }
}

#[test]
fn what_the_doctor_refuses_is_neither_read_nor_written() {
    let config = |providers: &str| {
        format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
             - resources: [secrets]\n  providers:\n{providers}"
        )
    };
    for broken in ["  - aescbc: {}\n", "  - identity: {}\n    kms: {}\n", "  - nonsense: {}\n"] {
        let error = readable(Some(&config(broken))).unwrap_err();
        assert!(matches!(error, EditError::Refused(_)), "{error}");
    }
    // A name that no apiserver takes.
    let text = config("  - identity: {}\n");
    let draft = Draft {
        rules: vec![DraftRule {
            from: Some(0),
            resources: vec!["secrets".to_owned()],
            providers: vec![Item::Kms { name: "a:b".into(), endpoint: "unix:///a".into() }],
        }],
    };
    let error = apply(Some(&text), &draft, FRESH).map(drop).unwrap_err();
    assert!(
        matches!(&error, EditError::WouldBeRefused(f) if f.code == "kms-name-colon"),
        "{error}"
    );
    // In clear until the next step, and one rule more than none, are taken.
    assert!(readable(Some(&text)).is_ok());
    assert!(readable(None).unwrap().rules.is_empty());
    let none =
        "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources: []\n";
    assert!(!both(none, &goal(&["secrets"])).1.comments_lost);
}
