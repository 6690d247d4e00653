//! EncryptionConfigurations, each judged by the doctor and by a real kube-apiserver 1.37.
//!
//! What the apiserver refuses, the doctor calls an error. What the apiserver takes is an error only
//! if it leaves values in clear or dials a socket that cannot be: the first is shown by what etcd
//! holds, the second by what the apiserver logs.

#[path = "configurations/more.rs"]
mod more;

use super::support::{Lab, PLAINTEXT, value_of};
use lastkey_testbed::{Apiserver, ApiserverOptions, Etcd, Judge, Outcome, Peers, Verdict};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};
use std::thread;

const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";
const KEY: &str = "p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=";

/// What both are expected to say.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// The apiserver starts, the doctor finds no error.
    Fine,
    /// The apiserver does not start; the doctor's code for it.
    Refused(&'static str),
    /// The apiserver starts, and something stays in clear; the doctor's code for it.
    Clear(&'static str),
    /// The apiserver starts and dials this; the doctor's code for it.
    Unreachable(&'static str, &'static str),
}
use Expect::{Clear, Fine, Refused, Unreachable};

fn one(resources: &str, providers: &str) -> String {
    format!("{HEAD}resources:\n- resources: {resources}\n  providers:\n{providers}")
}

/// A KMS provider with these fields beside apiVersion v2 and a timeout.
fn kms(fields: &str) -> String {
    format!("  - kms: {{apiVersion: v2, timeout: 1s, {fields}}}\n")
}

fn good() -> String {
    kms("name: a, endpoint: 'unix:///run/none.sock'")
}

/// A rule with one local key.
fn rule(resources: &str) -> String {
    format!(
        "- resources: {resources}\n  providers:\n  - secretbox: {{keys: [{{name: k, secret: {KEY}}}]}}\n"
    )
}

fn rules(lists: &[&str]) -> String {
    format!("{HEAD}resources:\n{}", lists.iter().map(|list| rule(list)).collect::<String>())
}

fn local(provider: &str, key: &str) -> String {
    one("[secrets]", &format!("  - {provider}: {{keys: [{key}]}}\n"))
}

/// Name, file, what is to be said of it.
fn table() -> Vec<(&'static str, String, Expect)> {
    let secrets = |providers: &str| one("[secrets]", providers);
    let named = |resources: &str| one(resources, &good());
    vec![
        ("plain", secrets(&good()), Fine),
        ("identity-last", secrets(&(good() + "  - identity: {}\n")), Fine),
        (
            "identity-between",
            secrets(&(good() + "  - identity: {}\n" + &kms("name: b, endpoint: 'unix:///b'"))),
            Fine,
        ),
        (
            "identity-first",
            secrets(&("  - identity: {}\n".to_owned() + &good())),
            Clear("identity-first"),
        ),
        ("identity-only", secrets("  - identity: {}\n"), Clear("identity-first")),
        ("identity-without-braces", secrets("  - identity:\n"), Refused("provider-empty")),
        (
            "old-kind",
            secrets(&good())
                .replace("apiserver.config.k8s.io/v1", "v1")
                .replace("EncryptionConfiguration", "EncryptionConfig"),
            Fine,
        ),
        ("beta", secrets(&good()).replace("k8s.io/v1", "k8s.io/v1beta1"), Refused("kind")),
        (
            "wrong-kind",
            secrets(&good()).replace("EncryptionConfiguration", "EncryptionConfig"),
            Refused("kind"),
        ),
        (
            "other-kind",
            secrets(&good()).replace("EncryptionConfiguration", "TracingConfiguration"),
            Refused("kind"),
        ),
        (
            "lower-kind",
            secrets(&good()).replace("EncryptionConfiguration", "encryptionConfiguration"),
            Refused("kind"),
        ),
        ("empty", String::new(), Refused("empty")),
        ("comment", "# nothing\n".to_owned(), Refused("kind")),
        ("no-rules", HEAD.to_owned(), Refused("no-rules")),
        ("no-resources", named("[]"), Refused("no-resources")),
        ("no-providers", secrets("    []\n"), Refused("no-providers")),
        ("metadata", secrets(&good()) + "metadata: {name: a}\n", Refused("unknown-field")),
        ("tabs", secrets(&good()).replace("  providers", "\tproviders"), Refused("syntax")),
        (
            "two-providers",
            secrets(&format!(
                "  - secretbox: {{keys: [{{name: k, secret: {KEY}}}]}}\n    identity: {{}}\n"
            )),
            Refused("provider-several"),
        ),
        (
            "second-document",
            secrets(&good()) + "---\n" + &one("[configmaps]", &good()),
            Clear("second-document"),
        ),
        ("trailing-document-mark", secrets(&good()) + "---\n", Fine),
        ("json", json_text(), Fine),
        (
            "json-twice",
            json_text().replace("\"name\":\"a\"", "\"name\":\"b\",\"name\":\"a\""),
            Refused("duplicate-field"),
        ),
        ("json-unquoted", "{apiVersion: v1}".to_owned(), Refused("syntax")),
        (
            "anchors",
            format!(
                "{HEAD}resources:\n- resources: [secrets]\n  providers: &p\n  - secretbox: {{keys: [{{name: k, secret: {KEY}}}]}}\n- resources: [configmaps]\n  providers: *p\n"
            ),
            Fine,
        ),
        (
            "merge-overridden",
            format!(
                "{HEAD}resources:\n- &r\n  resources: [secrets]\n  providers:\n  - secretbox: {{keys: [{{name: k, secret: {KEY}}}]}}\n- <<: *r\n  resources: [configmaps]\n"
            ),
            Refused("duplicate-field"),
        ),
        // KMS
        (
            "cachesize-v2",
            secrets(&kms("name: a, endpoint: 'unix:///a', cachesize: 5")),
            Refused("kms-cachesize"),
        ),
        (
            "cache-size",
            secrets(&kms("name: a, endpoint: 'unix:///a', cacheSize: 5")),
            Refused("unknown-field"),
        ),
        (
            "name-twice-in-map",
            secrets(&kms("name: a, name: a, endpoint: 'unix:///a'")),
            Refused("duplicate-field"),
        ),
        (
            "name-used-twice",
            secrets(&good()) + &rule_with("[configmaps]", &good()),
            Refused("kms-name-twice"),
        ),
        ("name-twice-in-list", secrets(&(good() + &good())), Refused("kms-name-twice")),
        (
            "name-colon",
            secrets(&kms("name: 'a:b', endpoint: 'unix:///a'")),
            Refused("kms-name-colon"),
        ),
        ("name-missing", secrets(&kms("endpoint: 'unix:///a'")), Refused("kms-name-missing")),
        ("name-boolean", secrets(&kms("name: on, endpoint: 'unix:///a'")), Refused("wrong-type")),
        ("name-number", secrets(&kms("name: 0x1f, endpoint: 'unix:///a'")), Refused("wrong-type")),
        ("name-date", secrets(&kms("name: 2026-01-01, endpoint: 'unix:///a'")), Fine),
        ("name-exponent", secrets(&kms("name: 1e3, endpoint: 'unix:///a'")), Refused("wrong-type")),
        ("kms-v1", secrets(&good().replace("v2", "v1")), Refused("kms-v1")),
        ("kms-no-version", secrets(&good().replace("apiVersion: v2, ", "")), Refused("kms-v1")),
        ("kms-v3", secrets(&good().replace("v2", "v3")), Refused("kms-api-version")),
        ("tcp", secrets(&kms("name: a, endpoint: 'tcp://localhost:1'")), Refused("kms-endpoint")),
        ("path-alone", secrets(&kms("name: a, endpoint: /run/a.sock")), Refused("kms-endpoint")),
        ("endpoint-missing", secrets(&kms("name: a")), Refused("kms-endpoint")),
        (
            "endpoint-escape",
            secrets(&kms("name: a, endpoint: 'unix:///a%zz'")),
            Refused("kms-endpoint"),
        ),
        ("one-slash", secrets(&kms("name: a, endpoint: 'unix:/run/none.sock'")), Fine),
        ("capital-scheme", secrets(&kms("name: a, endpoint: 'UNIX:///run/none.sock'")), Fine),
        ("abstract", secrets(&kms("name: a, endpoint: 'unix:///@lastkey-none'")), Fine),
        (
            "two-slashes",
            secrets(&kms("name: a, endpoint: 'unix://run/none.sock'")),
            Unreachable("kms-endpoint-host", "dial unix /none.sock:"),
        ),
        (
            "relative",
            secrets(&kms("name: a, endpoint: 'unix:none.sock'")),
            Unreachable("kms-endpoint-path", "addr=\"\""),
        ),
        (
            "long-path",
            secrets(&kms(&format!("name: a, endpoint: 'unix:///{}'", "x".repeat(120)))),
            Unreachable("kms-endpoint-long", "invalid argument"),
        ),
        ("timeout-zero", secrets(&good().replace("1s", "0s")), Refused("kms-timeout")),
        ("timeout-negative", secrets(&good().replace("1s", "-1s")), Refused("kms-timeout")),
        ("timeout-words", secrets(&good().replace("1s", "1sec")), Refused("kms-timeout")),
        ("timeout-number", secrets(&good().replace("1s", "1")), Refused("wrong-type")),
        ("timeout-parts", secrets(&good().replace("1s", "0m0.9s100ms")), Fine),
        // resources
        ("capitals", named("[Secrets]"), Refused("resource-capitals")),
        ("star", named("['*']"), Refused("resource-star")),
        ("star-unquoted", named("[*.*]"), Refused("syntax")),
        ("everything", named("['*.*']"), Fine),
        ("core-group", named("['*.']"), Fine),
        ("custom", named("[secrets, widgets.example.org]"), Fine),
        ("twice", named("[secrets, secrets]"), Refused("resource-twice")),
        ("overlap-group", named("[secrets, '*.']"), Refused("resource-overlap")),
        ("overlap-all", named("['*.*', deployments.apps]"), Refused("resource-overlap")),
        ("across-groups", named("['widgets.*']"), Refused("resource-across-groups")),
        ("events-group", named("[events.events.k8s.io]"), Refused("resource-events-group")),
        ("extensions", named("[ingresses.extensions]"), Refused("resource-extensions")),
        ("not-rest", named("[serviceipallocations]"), Refused("resource-not-rest")),
        ("singular", named("[secret]"), Clear("resource-unknown")),
        ("group-forgotten", named("[secrets, deployments]"), Clear("resource-unknown")),
        ("narrow-then-wide", rules(&["[secrets]", "['*.apps']", "['*.*']"]), Fine),
        ("masked-by-all", rules(&["['*.*']", "[secrets]"]), Refused("resource-masked")),
        ("masked-by-group", rules(&["['*.']", "[secrets]"]), Refused("resource-masked")),
        ("secrets-forgotten", named("[configmaps]"), Clear("secrets-uncovered")),
        ("masked-wildcard", rules(&["['*.*']", "['*.apps']"]), Refused("resource-masked")),
        ("wildcard-twice", rules(&["['*.apps']", "['*.apps']"]), Refused("resource-masked")),
        ("resource-in-two-rules", rules(&["[secrets]", "[secrets, configmaps]"]), Fine),
        (
            "excluded",
            format!(
                "{HEAD}resources:\n- resources: [events]\n  providers: [{{identity: {{}}}}]\n{}",
                rule("['*.*']")
            ),
            Fine,
        ),
        // local keys
        ("secretbox", local("secretbox", &format!("{{name: k, secret: {KEY}}}")), Fine),
        (
            "secretbox-short",
            local("secretbox", "{name: k, secret: MTIzNDU2Nzg5MDEyMzQ1Ng==}"),
            Refused("key-length"),
        ),
        ("aescbc-24", local("aescbc", "{name: k, secret: MTIzNDU2Nzg5MDEyMzQ1Njc4OTAxMjM0}"), Fine),
        (
            "aesgcm-17",
            local("aesgcm", "{name: k, secret: MTIzNDU2Nzg5MDEyMzQ1Njc=}"),
            Refused("key-length"),
        ),
        (
            "key-unpadded",
            local("aesgcm", &format!("{{name: k, secret: {}}}", KEY.trim_end_matches('='))),
            Refused("key-base64"),
        ),
        (
            "key-loose-bits",
            local("aesgcm", &format!("{{name: k, secret: {}}}", KEY.replace("jM=", "jN="))),
            Fine,
        ),
        ("key-nameless", local("aescbc", &format!("{{secret: {KEY}}}")), Refused("key-name")),
        ("key-absent", local("aescbc", "{name: k}"), Refused("key-missing")),
        ("no-keys", local("aescbc", ""), Refused("key-missing")),
        (
            "keys-twice-same-type",
            one(
                "[secrets]",
                &format!(
                    "  - aescbc: {{keys: [{{name: k, secret: {KEY}}}]}}\n  - aescbc: {{keys: [{{name: l, secret: MTIzNDU2Nzg5MDEyMzQ1Ng==}}]}}\n"
                ),
            ),
            Fine,
        ),
    ]
}

fn rule_with(resources: &str, providers: &str) -> String {
    format!("- resources: {resources}\n  providers:\n{providers}")
}

fn json_text() -> String {
    json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{ "resources": ["secrets"], "providers": [
            { "kms": { "apiVersion": "v2", "name": "a", "endpoint": "unix:///a", "timeout": "1s" } },
        ]}],
    })
    .to_string()
}

fn doctor(lab: &Lab, file: &Path) -> Outcome {
    let file = file.to_string_lossy();
    lab.lastkey.cli(None, &["cluster", "doctor", "--encryption-config", &file]).unwrap()
}

/// The codes of its errors.
fn errors(outcome: &Outcome) -> Vec<String> {
    let json = outcome.json();
    let items = json["items"].as_array().expect("items").iter();
    let errors = items.filter(|item| item["severity"] == "error");
    errors.map(|item| item["code"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_doctor_and_a_real_apiserver_agree() {
    let test = "the_doctor_and_a_real_apiserver_agree";
    let Some(peers) = Peers::or_skip(test, &["kube-apiserver-1.37.0"]) else { return };
    let lab = Lab::new();
    let judge = Judge::new(&peers, &lab.folder("judge"), "1.37.0").unwrap();
    let mut files: Vec<_> =
        table().into_iter().map(|(n, text, e)| (n, text.into_bytes(), e)).collect();
    files.extend(more::table());
    let table = files;
    let (next, complaints) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    // Most of the time one waits for a provider that is not there.
    thread::scope(|scope| {
        let work = || {
            while let Some((name, text, expect)) = table.get(next.fetch_add(1, Ordering::Relaxed)) {
                let file = lab.path(&format!("{name}.yaml"));
                std::fs::write(&file, text).unwrap();
                if let Err(complaint) = check(&lab, &judge, (name, &file), *expect) {
                    let text = String::from_utf8_lossy(text);
                    complaints.lock().unwrap().push(format!("{name}: {complaint}\n{text}"));
                }
            }
        };
        let all: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        all.into_iter().for_each(|worker| worker.join().unwrap());
    });
    let complaints = complaints.into_inner().unwrap();
    assert!(
        complaints.is_empty(),
        "{} of {}:\n{}",
        complaints.len(),
        table.len(),
        complaints.join("\n")
    );
}

fn check(
    lab: &Lab,
    judge: &Judge,
    (name, file): (&str, &PathBuf),
    expect: Expect,
) -> Result<(), String> {
    let outcome = doctor(lab, file);
    let errors = errors(&outcome);
    let verdict = judge.judge(name, file, &[]).map_err(|error| error.to_string())?;
    let said = |code: &str| errors.iter().any(|error| error == code);
    let agree = match (expect, &verdict) {
        (Fine, Verdict::Taken { .. }) => errors.is_empty(),
        (Refused(code), Verdict::Refused { .. }) | (Clear(code), Verdict::Taken { .. }) => {
            said(code)
        }
        (Unreachable(code, dials), Verdict::Taken { log }) => said(code) && log.contains(dials),
        _ => false,
    };
    let code = i32::from(!errors.is_empty());
    match agree && outcome.code == code {
        true => Ok(()),
        false => {
            Err(format!("expected {expect:?}; doctor {}: {errors:?}; {verdict:?}", outcome.code))
        }
    }
}

/// What the doctor calls an error although an apiserver takes it: etcd holds it in clear.
#[test]
fn what_the_doctor_says_stays_in_clear_does() {
    let test = "what_the_doctor_says_stays_in_clear_does";
    let Some(peers) = Peers::or_skip(test, &["etcd", "kube-apiserver-1.37.0"]) else { return };
    let lab = Lab::new();
    let file = lab.path("clear.yaml");
    // 1. A typing error, identity first, and a second document, in one file.
    let first = format!(
        "- resources: [configmaps]\n  providers:\n  - identity: {{}}\n{}",
        &rule("[x]")["- resources: [x]\n  providers:\n".len()..]
    );
    let text = format!(
        "{HEAD}resources:\n{}{first}---\n{}",
        rule("[secret]"),
        rules(&["[serviceaccounts]"])
    );
    std::fs::write(&file, text).unwrap();
    assert_eq!(
        errors(&doctor(&lab, &file)),
        ["secrets-uncovered", "resource-unknown", "identity-first", "second-document"]
    );
    // 2. A real apiserver starts with it and serves.
    let dir = lab.folder("cluster");
    let etcd = Etcd::start(&peers, &dir).unwrap();
    let options = ApiserverOptions { version: "1.37.0", encryption_config: &file, flags: &[] };
    let apiserver = Apiserver::start(&peers, &etcd, &dir, &options).unwrap();
    // 3. All three kinds of objects rest in clear.
    let value = value_of("s");
    apiserver.create_secret("s", &value).unwrap().expect_ok("secret").unwrap();
    let meta = json!({ "name": "s", "annotations": { "value": value } });
    for kind in ["ConfigMap", "ServiceAccount"] {
        let resource = format!("{}s", kind.to_lowercase());
        let body = json!({ "apiVersion": "v1", "kind": kind, "metadata": meta });
        let path = format!("/api/v1/namespaces/default/{resource}");
        apiserver.client().send("POST", &path, Some(&body)).unwrap().expect_ok(kind).unwrap();
    }
    for resource in ["secrets", "configmaps", "serviceaccounts"] {
        let path = format!("/registry/{resource}/default/s");
        let stored = etcd.get(&path).unwrap().expect("it is stored").bytes;
        assert!(String::from_utf8_lossy(&stored).contains(PLAINTEXT), "{resource}");
    }
}

/// Beside what it finds: how it ends when there is nothing to judge.
#[test]
fn the_doctor_ends_as_scripts_expect() {
    let lab = Lab::new();
    let file = lab.path("config.yaml");
    std::fs::write(&file, one("[secrets]", &(good() + "  - identity: {}\n"))).unwrap();
    let outcome = doctor(&lab, &file);
    assert_eq!((outcome.code, outcome.json()["next"].clone()), (0, serde_json::Value::Null));
    for item in outcome.json()["items"].as_array().unwrap() {
        for field in ["severity", "code", "message", "fix"] {
            assert!(item[field].as_str().is_some_and(|text| !text.is_empty()), "{item}");
        }
    }
    let missing = doctor(&lab, &lab.path("nothing.yaml"));
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("nothing.yaml") && missing.stdout.is_empty(), "{missing:?}");
    let usage = lab.lastkey.cli(None, &["cluster", "doctor", "--no-such-option"]).unwrap();
    assert_eq!(usage.code, 2);
    // No key of a file is ever shown.
    std::fs::write(&file, local("aescbc", "{name: k, secret: S3cretS3cret}")).unwrap();
    let outcome = doctor(&lab, &file);
    assert!(!format!("{outcome:?}").contains("S3cret"), "{outcome:?}");
}
