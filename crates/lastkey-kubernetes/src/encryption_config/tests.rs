//! What is found in which file. What a real apiserver says of each kind is in the lane `apiserver`
//! of the `lastkey` package.

use super::*;

const HEAD: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n";

/// A file with one rule for secrets, by these lines of providers.
fn secrets(providers: &str) -> String {
    format!("{HEAD}resources:\n- resources: [secrets]\n  providers:\n{providers}")
}

fn kms(fields: &str) -> String {
    secrets(&format!(
        "  - kms: {{apiVersion: v2, name: a, endpoint: 'unix:///run/a.sock', {fields}}}\n"
    ))
}

fn codes(text: &str, severity: Severity) -> Vec<&'static str> {
    let examined = examine(text);
    let of = examined.findings.iter().filter(|finding| finding.severity == severity);
    of.map(|finding| finding.code).collect()
}

fn errors(text: &str) -> Vec<&'static str> {
    codes(text, Severity::Error)
}

/// 32 bytes that nobody has published.
const KEY: &str = "p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=";

#[test]
fn ours_is_without_error_or_warning() {
    let socket = crate::socket::SocketAddress::Path("/run/lastkey/kms.sock".into());
    let ours = crate::cluster_config::EncryptionConfig::new(socket).yaml().unwrap();
    let examined = examine(&ours);
    let codes: Vec<_> = examined.findings.iter().map(|f| (f.severity, f.code)).collect();
    assert_eq!(codes, [(Severity::Info, "identity-last")]);
    let providers = examined.config.providers_of("secrets");
    assert_eq!(providers[0].prefix().as_deref(), Some("k8s:enc:kms:v2:lastkey:"));
    let kms = examined.config.kms().next().unwrap();
    assert_eq!(kms.socket().as_deref(), Some("/run/lastkey/kms.sock"));
}

#[test]
fn what_is_refused_is_an_error() {
    let list = |resources: &str| {
        format!("{HEAD}resources:\n- resources: {resources}\n  providers:\n  - identity: {{}}\n")
    };
    for (text, code) in [
        (String::new(), "empty"),
        ("# nothing\n".to_owned(), "kind"),
        ("a: [".to_owned(), "syntax"),
        ("{apiVersion: v1}".to_owned(), "syntax"),
        ("- a\n".to_owned(), "wrong-type"),
        (kms("").replace("config.k8s.io/v1", "config.k8s.io/v1beta1"), "kind"),
        (HEAD.to_owned(), "no-rules"),
        (kms("cacheSize: 5"), "unknown-field"),
        (kms("cachesize: 5"), "kms-cachesize"),
        (kms("name: b"), "duplicate-field"),
        (kms("timeout: 3"), "wrong-type"),
        (kms("timeout: 3sec"), "kms-timeout"),
        (kms("timeout: 0s"), "kms-timeout"),
        (kms("timeout: -1s"), "kms-timeout"),
        (kms("").replace("name: a", "name: yes"), "wrong-type"),
        (kms("").replace("name: a", "name: 'a:b'"), "kms-name-colon"),
        (kms("").replace("name: a", "name: ''"), "kms-name-missing"),
        (kms("").replace("v2,", "v3,"), "kms-api-version"),
        (kms("").replace("v2,", "v1,"), "kms-v1"),
        (kms("").replace("apiVersion: v2, ", ""), "kms-v1"),
        (kms("").replace("unix:", "tcp:"), "kms-endpoint"),
        (kms("").replace("unix:///run/a.sock", "/run/a.sock"), "kms-endpoint"),
        (kms("").replace("unix:///run/a.sock", ""), "kms-endpoint"),
        (kms("").replace("unix:///run", "unix://run"), "kms-endpoint-host"),
        (kms("").replace("unix:///run", "unix:run"), "kms-endpoint-path"),
        (kms("").replace("run/a", &"x".repeat(120)), "kms-endpoint-long"),
        (secrets("  - identity:\n"), "provider-empty"),
        (secrets("  - identity: {}\n    aescbc: {keys: []}\n"), "provider-several"),
        (secrets("    []\n"), "no-providers"),
        (secrets("  - secretbox: {keys: []}\n"), "key-missing"),
        (secrets("  - secretbox: {keys: [{name: a, secret: '?'}]}\n"), "key-base64"),
        (
            secrets("  - secretbox: {keys: [{name: a, secret: MTIzNDU2Nzg5MDEyMzQ1Ng==}]}\n"),
            "key-length",
        ),
        (secrets(&format!("  - aescbc: {{keys: [{{secret: {KEY}}}]}}\n")), "key-name"),
        (list("[Secrets]"), "resource-capitals"),
        (list("['*']"), "resource-star"),
        (list("[*.*]"), "syntax"),
        (list("[secrets, secrets]"), "resource-twice"),
        (list("[secrets, '*.']"), "resource-overlap"),
        (list("['*.*', deployments.apps]"), "resource-overlap"),
        (list("[events.events.k8s.io]"), "resource-events-group"),
        (list("[ingresses.extensions]"), "resource-extensions"),
        (list("['widgets.*']"), "resource-across-groups"),
        (list("[serviceipallocations]"), "resource-not-rest"),
        (list("[]"), "no-resources"),
        (list("[secret]"), "resource-unknown"),
        (list("[secrets]"), "identity-first"),
        (format!("{}---\n{}", kms(""), kms("")), "second-document"),
        (kms("").replace("[secrets]", "[configmaps]"), "secrets-uncovered"),
        (kms("").replace("[secrets]", "['*.apps', secrets.example.org]"), "secrets-uncovered"),
    ] {
        assert!(errors(&text).contains(&code), "{code}: {:?}\n{text}", examine(&text).findings);
    }
}

#[test]
fn what_works_is_no_error() {
    for (text, code) in [
        (kms("timeout: 1m30s"), "kms-timeout-long"),
        (kms("timeout: 100ms"), "kms-timeout-short"),
        (
            secrets(&format!("  - aescbc: {{keys: [{{name: a, secret: {KEY}}}]}}\n")),
            "provider-weak",
        ),
        (
            secrets(&format!("  - secretbox: {{keys: [{{name: a, secret: {KEY}}}]}}\n")),
            "provider-local",
        ),
        (
            kms("")
                + "  - identity: {}\n  - kms: {apiVersion: v2, name: b, endpoint: 'unix:///b'}\n",
            "identity-between",
        ),
        (
            secrets(&format!(
                "  - secretbox: {{keys: [{{name: a, secret: {KEY}}}]}}\n  - kms: {{apiVersion: v2, name: b, endpoint: 'unix:///b'}}\n"
            )),
            "kms-not-first",
        ),
        (
            secrets("  - aesgcm: {keys: [{name: a, secret: c2VjcmV0IGlzIHNlY3VyZQ==}]}\n"),
            "key-guessable",
        ),
        (
            secrets(&format!(
                "  - aesgcm: {{keys: [{{name: a, secret: {KEY}}}, {{name: b, secret: {KEY}}}]}}\n"
            )),
            "key-reused",
        ),
    ] {
        assert_eq!(errors(&text), [""; 0], "{text}");
        assert!(
            codes(&text, Severity::Warning).contains(&code),
            "{:?}\n{text}",
            examine(&text).findings
        );
    }
}

#[test]
fn rules_follow_each_other() {
    let rule = |resources: &str, name: &str| {
        format!(
            "- resources: {resources}\n  providers:\n  - kms: {{apiVersion: v2, name: {name}, endpoint: 'unix:///{name}'}}\n"
        )
    };
    let both = |first: &str, second: &str| format!("{HEAD}resources:\n{first}{second}");
    assert_eq!(errors(&both(&rule("[secrets]", "a"), &rule("['*.*']", "b"))), [""; 0]);
    assert_eq!(errors(&both(&rule("['*.*']", "a"), &rule("[secrets]", "b"))), ["resource-masked"]);
    assert_eq!(errors(&both(&rule("['*.']", "a"), &rule("[secrets]", "b"))), ["resource-masked"]);
    assert_eq!(
        errors(&both(&rule("['*.apps', secrets]", "a"), &rule("['*.apps']", "b"))),
        ["resource-masked"]
    );
    assert_eq!(
        errors(&both(&rule("[secrets]", "a"), &rule("[configmaps]", "a"))),
        ["kms-name-twice"]
    );
    let split = both(&rule("[secrets]", "a"), &rule("[secrets]", "b"));
    assert_eq!(errors(&split), [""; 0]);
    assert!(codes(&split, Severity::Warning).contains(&"resource-split"));
    let clear = "- resources: [events]\n  providers:\n  - identity: {}\n";
    let excluded = both(clear, &rule("['*.*']", "a"));
    assert_eq!(errors(&excluded), [""; 0]);
    assert!(codes(&excluded, Severity::Info).contains(&"excluded"));
    // the first rule that names it writes
    let later = clear.replace("events", "secrets");
    assert_eq!(errors(&both(&rule("[secrets]", "a"), &later)), [""; 0]);
    let more = both(&rule("[secrets]", "a"), &clear.replace("events", "secrets, pods"));
    assert_eq!(errors(&more), ["identity-first"]);
    let secrets_clear = both(&clear.replace("events", "secrets"), &rule("['*.*']", "a"));
    assert_eq!(errors(&secrets_clear), ["identity-first"]);
}

#[test]
fn providers_are_found_as_an_apiserver_finds_them() {
    let rule = |resources: &str, name: &str| {
        format!(
            "- resources: {resources}\n  providers:\n  - kms: {{apiVersion: v2, name: {name}, endpoint: 'unix:///{name}'}}\n"
        )
    };
    let text = format!(
        "{HEAD}resources:\n{}{}{}",
        rule("[secrets]", "a"),
        rule("['*.apps']", "b"),
        rule("['*.*']", "c")
    );
    let config = examine(&text).config;
    let first = |name: &str| config.providers_of(name)[0].prefix().unwrap();
    assert_eq!(first("secrets"), "k8s:enc:kms:v2:a:");
    assert_eq!(first("deployments.apps"), "k8s:enc:kms:v2:b:");
    assert_eq!(first("configmaps"), "k8s:enc:kms:v2:c:");
    assert!(examine(&kms("")).config.providers_of("configmaps").is_empty());
}

#[test]
fn yaml_is_read_as_an_apiserver_reads_it() {
    // anchors and merges are followed
    let text = format!(
        "{HEAD}resources:\n- resources: [secrets]\n  providers: &p\n  - kms: &k {{apiVersion: v2, name: a, endpoint: 'unix:///a'}}\n\
         - resources: [configmaps]\n  providers:\n  - kms: {{<<: *k}}\n"
    );
    assert_eq!(errors(&text), ["kms-name-twice"]);
    // a field of a merge may not come again
    assert!(errors(&text.replace("{<<: *k}", "{<<: *k, name: b}")).contains(&"duplicate-field"));
    // a dollar billion laughs
    let bomb = "a: &a [x,x,x,x]\n".to_owned()
        + &(b'b'..=b'z')
            .map(|c| {
                let (c, p) = (c as char, (c - 1) as char);
                format!("{c}: &{c} [*{p},*{p},*{p},*{p}]\n")
            })
            .collect::<String>();
    assert!(errors(&bomb).contains(&"unknown-field"));
    let deep = "[".repeat(300);
    assert_eq!(errors(&deep), ["syntax"]);
    let json = r#"{"apiVersion":"apiserver.config.k8s.io/v1","kind":"EncryptionConfiguration","resources":[{"resources":["secrets"],
        "providers":[{"kms":{"apiVersion":"v2","name":"a","endpoint":"unix:///a"}}]}]}"#;
    assert_eq!(errors(json), [""; 0]);
    assert_eq!(
        errors(&json.replace("\"name\":\"a\"", "\"name\":\"a\",\"name\":\"b\"")),
        ["duplicate-field"]
    );
}

#[test]
fn go_yaml_is_stricter_than_yaml() {
    let plain = kms("");
    for (text, refused) in [
        (plain.replace("  - kms", "  -\tkms"), true),
        (plain.replace("kind:", "\t# c\nkind:"), true),
        (plain.replace("kind: ", "kind:\t"), false),
        (format!("%YAML 1.2\n---\n{plain}"), true),
        (format!("%YAML 1.1\n---\n{plain}"), false),
        (plain.replace("name: a", "name: !!int a"), true),
    ] {
        let expected: &[&str] = if refused { &["syntax"] } else { &[] };
        assert_eq!(errors(&text), expected, "{text}");
    }
    let codes = |bytes: &[u8]| -> Vec<&str> {
        let findings = examine_bytes(bytes).findings.into_iter();
        findings.filter(|f| f.severity == Severity::Error).map(|f| f.code).collect()
    };
    let wide: Vec<u8> =
        format!("\u{feff}{plain}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(codes(&wide), [""; 0]);
    assert_eq!(codes(&wide[2..]), ["syntax"]);
    assert_eq!(codes(&[plain.as_bytes(), b"# \xe9\n"].concat()), ["syntax"]);
    let findings = examine_bytes(&[plain.as_bytes(), b"# \xe9\n"].concat()).findings;
    assert_eq!(findings[0].line, Some(1 + plain.lines().count()));
}

/// go-yaml ends a line, and with it a comment, where an editor shows none: what seems to be a comment
/// is read, and what seems to be read is none.
#[test]
fn what_ends_a_line_unseen_is_refused() {
    let hidden = kms("").replace("providers:", "providers:\n  # keep|  - identity: {}");
    assert_eq!(errors(&hidden), [""; 0]);
    for (unseen, shown) in [('\u{85}', "U+0085"), ('\u{2028}', "U+2028"), ('\u{2029}', "U+2029")] {
        let text = hidden.replace('|', &unseen.to_string());
        for (text, line) in [
            (text.clone(), 6),
            (text.replace('\n', "\r\n"), 6),
            (format!("\u{feff}{text}"), 6),
            (kms("").replace("name: a", &format!("name: a{unseen}b")), 6),
            (format!("{unseen}{}", kms("")), 1),
            (format!("{}# {unseen}", kms("")), 7),
        ] {
            let found = examine(&text).findings;
            let [only] = &found[..] else { panic!("{found:?}") };
            assert_eq!((only.severity, only.code), (Severity::Error, "syntax"), "{text:?}");
            assert_eq!(only.line, Some(line), "{text:?}");
            assert!(only.message.contains(shown), "{only:?}");
        }
        let edited = readable(Some(&text)).map(drop);
        assert!(matches!(edited, Err(EditError::Refused(_))), "`enable` reads by the same rules");
    }
    // JSON ends no line there, and a name may have it
    let json = format!(
        "{{\"apiVersion\":\"apiserver.config.k8s.io/v1\",\"kind\":\"EncryptionConfiguration\",\
         \"resources\":[{{\"resources\":[\"secrets\"],\"providers\":[{{\"secretbox\":\
         {{\"keys\":[{{\"name\":\"\u{2028}\",\"secret\":\"{KEY}\"}}]}}}}]}}]}}"
    );
    assert_eq!(errors(&json), [""; 0]);
}

/// A carriage return alone ends a line, too, for what is told by lines.
#[test]
fn carriage_returns_end_lines() {
    let old = kms("").replace('\n', "\r");
    assert_eq!(errors(&old), [""; 0]);
    assert_eq!(errors(&old.replace("kind:", "\t# c\rkind:")), ["syntax"]);
    assert_eq!(errors(&format!("# c\r%YAML 1.2\r---\r{old}")), ["syntax"]);
}

#[test]
fn numbers_are_gos() {
    let named = |name: &str| kms("").replace("name: a", &format!("name: {name}"));
    for number in [
        "0xdeadbeefdeadbeef",
        "0xffff_ffff_ffff_ffff",
        "0o1777777777777777777777",
        "18446744073709551615",
        "-0x8000000000000000",
        "1e308",
        "-1e-9999",
        "99999999999999999999",
    ] {
        assert!(errors(&named(number)).contains(&"wrong-type"), "{number}");
    }
    for text in
        ["12e4567", "-1.5e999", ".1e400", "0x1ffffffffffffffff", "+0xdeadbeefdeadbeef", "0xfg"]
    {
        assert_eq!(errors(&named(text)), [""; 0], "{text}");
    }
}

#[test]
fn names_that_nothing_has() {
    let list = |names: &str| kms("").replace("[secrets]", names);
    for (name, fix) in [
        ("secrets.v1", "write `secrets`"),
        ("secret.core", "write `secrets`"),
        ("deployment.apps", "write `deployments.apps`"),
        ("deployments.v1.apps", "write `deployments.apps`"),
        ("deployments.apps/scale", "write `deployments.apps`"),
        ("ingress.networking", "write RESOURCE.GROUP; `kubectl api-resources` lists both"),
    ] {
        let findings = examine(&list(&format!("[secrets, {name}]"))).findings;
        let found = findings.iter().find(|f| f.code == "resource-unknown").expect(name);
        assert_eq!((found.severity, found.fix.as_str()), (Severity::Error, fix), "{name}");
    }
    for names in [
        "['secrets.']",
        "[secrets, widgets.example.org]",
        "['*.apps', '*.example.org', pods, secrets]",
    ] {
        assert_eq!(errors(&list(names)), [""; 0], "{names}");
    }
    assert_eq!(examine(&list("['secrets.']")).config.rules[0].resources[0].name, "secrets");
    assert_eq!(errors(&list("['secrets.', secrets]")), ["resource-twice"]);
}

#[test]
fn no_key_is_shown() {
    let key = "S3cretS3cretS3cretS3cretS3cret==";
    for text in [
        secrets(&format!("  - aescbc: {{keys: [{{name: a, secret: {key}}}]}}\n")),
        secrets(&format!("  - aescbc: {{keys: [{{name: a, secret: ?{key}}}]}}\n")),
        secrets(&format!("  - aescbc: {{keys: [{{name: a, secret: [{key}]}}]}}\n")),
        secrets(&format!("  - aescbc: {{keys: [{{name: a, secret: {key}\n")),
    ] {
        let examined = examine(&text);
        assert!(!format!("{examined:?}").contains("S3cret"), "{examined:?}");
    }
}

#[test]
fn findings_name_their_line() {
    let text = kms("cachesize: 5");
    let found = examine(&text).findings;
    let line = found.iter().find(|finding| finding.code == "kms-cachesize").unwrap().line;
    assert_eq!(line, Some(6));
    for finding in found {
        assert!(!finding.fix.is_empty() && !finding.message.is_empty(), "{finding:?}");
    }
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    /// A file with much in it, to be damaged.
    fn whole() -> String {
        format!(
            "{HEAD}resources:\n- &r\n  resources: [secrets, '*.apps']\n  providers: &p\n\
             \x20 - kms: {{apiVersion: v2, name: a, endpoint: 'unix:///run/a.sock', timeout: 1m3.5s}}\n\
             \x20 - aescbc: {{keys: [{{name: k, secret: {KEY}}}]}}\n  - identity: {{}}\n\
             - <<: *r\n  resources: ['*.*']\n  providers: *p\n"
        )
    }

    fn judge(text: &str) {
        for finding in examine(text).findings {
            assert!(!finding.message.is_empty() && !finding.fix.is_empty(), "{finding:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_judged(text in "\\PC{0,200}") {
            judge(&text);
        }

        #[test]
        fn any_damage_is_judged(at in 0_usize..400, cut in 0_usize..40, put in "\\PC{0,12}|[-:{}\\[\\]&*!'\" \n]{0,6}") {
            let mut text: Vec<char> = whole().chars().collect();
            let at = at.min(text.len());
            let end = (at + cut).min(text.len());
            text.splice(at..end, put.chars());
            judge(&text.into_iter().collect::<String>());
        }
    }
}

#[test]
fn names_of_anchors_are_go_yamls() {
    let file = |anchor: &str, alias: &str| {
        let local = format!("secretbox: {{keys: [{{name: k, secret: {KEY}}}]}}");
        format!(
            "{HEAD}resources:\n- resources: [secrets]\n  providers: {anchor}\n  - {local}\n- resources: \
             [configmaps]\n  providers: {alias}\n"
        )
    };
    for name in ["p", "local-keys_2", "A-1"] {
        assert_eq!(errors(&file(&format!("&{name}"), &format!("*{name}"))), [""; 0], "{name}");
    }
    for name in ["local-keys.v1", "a.b", "a/b", "a:b", "a@b", "ключ", "a#b"] {
        let found = examine(&file(&format!("&{name}"), &format!("*{name}"))).findings;
        let found = found.iter().find(|one| one.severity == Severity::Error).expect(name);
        assert_eq!((found.code, found.line), ("syntax", Some(5)), "{name}");
        assert!(found.message.contains("the anchor"), "{found:?}");
    }
    // a bracket right behind it
    for list in ["&p[secrets]", "&p{}"] {
        assert_eq!(errors(&secrets("  - identity: {}\n").replace("[secrets]", list)), ["syntax"]);
    }
    // in values and behind the first document these are no anchors
    let quoted = secrets("  - identity: {}\n").replace("[secrets]", "['&a.b', \"*a.b\"] # &a.b");
    assert!(!errors(&quoted).contains(&"syntax"), "{:?}", errors(&quoted));
}

/// go-yaml wants no blank before a comment where what comes before it ends by itself.
#[test]
fn comments_need_no_blank() {
    let plain = format!(
        "{HEAD}resources:\n- resources: [secrets]\n  providers:\n  - secretbox:\n      keys:\n      \
         - name: k\n        secret: |\n          {KEY}\n  - identity: {{}}\n"
    );
    assert_eq!(errors(&plain), [""; 0]);
    for (from, to) in [
        ("[secrets]", "[secrets]#all"),
        ("[secrets]", "[#c\n  secrets,#all\n  configmaps\n  ]"),
        ("[secrets]", "[#c\n  'secrets'#all\n  ]#b"),
        ("identity: {}", "identity: {}#c # d"),
        ("identity: {}", "identity: {#\n   }#"),
        ("EncryptionConfiguration", "\"EncryptionConfiguration\"#c"),
        ("EncryptionConfiguration", "'EncryptionConfiguration'#c"),
        ("|", "|#c"),
        ("|", "|-#c"),
        ("|", "|2#c"),
        ("|", ">+2#ключ"),
    ] {
        let text = plain.replace(from, to);
        let found = examine(&text);
        assert!(!found.has_errors(), "{to}: {:?}", found.findings);
        let identity = found.findings.iter().find(|one| one.code == "identity-last").expect(to);
        let lines = text.lines().count() - usize::from(to.contains("{#"));
        assert_eq!(identity.line, Some(lines), "{to}: lines are those of the file");
    }
    // where it is none, or wants one
    for (from, to) in
        [("|", "|x#c"), ("[secrets]", "&a#c [secrets]"), ("[secrets]", "[secrets]x#c")]
    {
        assert_eq!(errors(&plain.replace(from, to)), ["syntax"], "{to}");
    }
    // too many to go on
    let many = plain.replace("[secrets]", &format!("[{}secrets]", "a,#\n".repeat(2_000)));
    let found = examine(&many).findings;
    assert_eq!(found[0].fix, "put a blank before the #", "{found:?}");
}

#[test]
fn only_a_kms_v2_behind_identity_is_rotated() {
    for (version, advised) in [("v2", "rotate NAME --keep-version"), ("v1", "enable NAME")] {
        let text = format!(
            "{HEAD}resources:\n- resources: [secrets]\n  providers:\n  - identity: {{}}\n  - kms: \
             {{apiVersion: {version}, name: lk, endpoint: 'unix:///k.sock'}}\n"
        );
        let findings = examine(&text).findings;
        let first = findings.iter().find(|one| one.code == "identity-first").unwrap();
        assert!(first.fix.contains(&format!("`lastkey cluster {advised}")), "{}", first.fix);
    }
}

/// `enable` without names is for Secrets and what is encrypted already.
#[test]
fn what_is_in_clear_is_named_in_its_fix() {
    let rule =
        |resources: &str| format!("- resources: {resources}\n  providers: [{{identity: {{}}}}]\n");
    let text = format!(
        "{HEAD}resources:\n{}{}{}",
        rule("[secrets, widgets.example.org]"),
        rule("[configmaps]"),
        rule("['*.apps', configmaps]")
    );
    let findings = examine(&text).findings;
    let fixes = findings.iter().filter(|one| one.code == "identity-first").map(|one| &one.fix);
    let fixes: Vec<&String> = fixes.collect();
    for (fix, options) in fixes.iter().zip([
        "NAME --resource secrets --resource widgets.example.org`",
        "NAME --resource configmaps`",
        "NAME --resource '*.apps'`",
    ]) {
        assert!(fix.contains(&format!("`lastkey cluster enable {options}")), "{fix}");
    }
    assert_eq!(fixes.len(), 3);
}
