//! What go-yaml is particular about, names that nothing has, and resources in several rules.

use super::{
    Expect::{self, Clear, Fine, Refused},
    HEAD, KEY, json_text, kms, local, one, rule, rules,
};

const LOCAL: &str =
    "  - secretbox: {keys: [{name: k, secret: p2G0T8dJ6mPqRk1ZxYwVu3sLhNfBeCa9DiXo5tQyEjM=}]}\n";
const IDENTITY: &str = "  - identity: {}\n";

/// A rule in clear.
fn clear(resources: &str) -> String {
    format!("- resources: {resources}\n  providers:\n{IDENTITY}")
}

fn utf16(text: &str, unit: fn(u16) -> [u8; 2]) -> Vec<u8> {
    text.encode_utf16().flat_map(unit).collect()
}

/// `text` with the first `#` as a byte that is no UTF-8.
fn latin(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    let at = bytes.iter().position(|byte| *byte == b'#').unwrap();
    bytes[at] = 0xe9;
    bytes
}

/// Name, file, what is to be said of it.
pub(super) fn table() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let all = [
        encodings(),
        written(),
        anchors(),
        comments(),
        tabs(),
        names(),
        several(),
        values(),
        escapes(),
    ];
    all.into_iter().flatten().collect()
}

fn encodings() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let plain = one("[secrets]", LOCAL);
    let marked = format!("\u{feff}{plain}");
    // what follows the character is a line of its own to an apiserver, and the first provider
    let hidden = |unseen: char| {
        Vec::from(one("[secrets]", &format!("  # keep{unseen}  - identity: {{}}\n{LOCAL}")))
    };
    vec![
        ("crlf", plain.replace('\n', "\r\n").into(), Fine),
        ("cr", plain.replace('\n', "\r").into(), Fine),
        ("cr-tab", plain.replace('\n', "\r").replace("kind:", "\t# c\rkind:").into(), {
            Refused("syntax")
        }),
        ("next-line-in-comment", hidden('\u{85}'), Clear("syntax")),
        ("line-separator-in-comment", hidden('\u{2028}'), Clear("syntax")),
        ("paragraph-separator-in-comment", hidden('\u{2029}'), Clear("syntax")),
        ("line-separator-in-json", json_text().replace("\"a\"", "\"a\u{2028}\"").into(), Fine),
        ("bom", marked.clone().into(), Fine),
        ("bom-twice", format!("\u{feff}{marked}").into(), Refused("syntax")),
        ("utf16", utf16(&marked, u16::to_le_bytes), Fine),
        ("utf16-big", utf16(&marked, u16::to_be_bytes), Fine),
        ("utf16-unmarked", utf16(&plain, u16::to_le_bytes), Refused("syntax")),
        ("latin1-name", latin(&plain.replace("name: k", "name: '#'")), Refused("syntax")),
        ("latin1-comment", latin(&(plain.clone() + "# #\n")), Refused("syntax")),
        ("latin1-json", latin(&json_text().replace("\"a\"", "\"a#\"")), Fine),
        ("bell", plain.replace("name: k", "name: \"\u{7}\"").into(), Refused("syntax")),
        ("null-byte", (plain.clone() + "\0").into(), Refused("syntax")),
        ("escaped-null-byte", plain.replace("name: k", "name: \"\\0\"").into(), Fine),
        ("emoji", plain.replace("name: k", "name: 😀").into(), Fine),
    ]
}

fn written() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let plain = one("[secrets]", LOCAL);
    let after = |before: &str| Vec::from(format!("{before}{plain}"));
    vec![
        ("directive-1.1", after("%YAML 1.1\n---\n"), Fine),
        ("directive-1.2", after("%YAML 1.2\n---\n"), Refused("syntax")),
        ("directive-after-comment", after("# c\n\n%YAML 1.2\n---\n"), Refused("syntax")),
        ("directive-other", after("%FOO a\n---\n"), Refused("syntax")),
        ("directive-tag", after("%TAG !e! tag:e,2000:\n---\n"), Fine),
        ("empty-first-document", after("---\n---\n"), Refused("kind")),
        ("ended-document", format!("{plain}...\n]\n").into(), Clear("second-document")),
        ("white-space", Vec::from("  \n"), Refused("kind")),
        ("a-list", Vec::from("- a\n"), Refused("wrong-type")),
        ("json-comma", json_text().replace("}]}", "}],}").into(), Refused("syntax")),
        ("json-and-more", (json_text() + "\n---\n{}").into(), Refused("syntax")),
        ("json-case", json_text().replace("apiVersion\":\"ap", "apiversion\":\"ap").into(), {
            Refused("unknown-field")
        }),
        ("empty-rule", (plain.clone() + "-\n").into(), Refused("no-resources")),
        ("empty-provider", one("[secrets]", "  -\n").into(), Refused("provider-empty")),
        ("providers-map", one("[secrets]", "    identity: {}\n").into(), Refused("wrong-type")),
        ("resources-text", one("secrets", LOCAL).into(), Refused("wrong-type")),
        ("identity-list", one("[secrets]", "  - identity: []\n").into(), Refused("wrong-type")),
        ("name-forgotten", one("[secrets]", &LOCAL.replace("name: ", "name:")).into(), {
            Refused("unknown-field")
        }),
    ]
}

/// What go-yaml takes for a name of one.
fn anchors() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let named = |anchor: &str| {
        let text = one("[secrets]", LOCAL).replace("providers:", &format!("providers: &{anchor}"));
        let other = format!("- resources: [configmaps]\n  providers: *{anchor}\n");
        Vec::from(text + &other)
    };
    let list = |list: &str| Vec::from(one(list, LOCAL));
    vec![
        ("anchor-hyphen", named("local-keys_1"), Fine),
        ("anchor-dot", named("local-keys.v1"), Refused("syntax")),
        ("anchor-slash", named("a/b"), Refused("syntax")),
        ("anchor-colon", named("a:b"), Refused("syntax")),
        ("anchor-at", named("a@b"), Refused("syntax")),
        ("anchor-cyrillic", named("ключ"), Refused("syntax")),
        ("anchor-hash", named("a#b"), Refused("syntax")),
        ("anchor-bracket", list("&a[secrets]"), Refused("syntax")),
        ("anchor-in-brackets", list("[&a secrets]"), Fine),
        ("anchor-dot-in-brackets", list("[&a.b secrets]"), Refused("syntax")),
        ("anchor-in-quotes", list("[secrets] # &a.b '*a.b'"), Fine),
        (
            "anchor-dot-in-second-document",
            {
                let first = one("[secrets]", LOCAL);
                (first + "---\na: &a.b c\n").into()
            },
            Clear("second-document"),
        ),
    ]
}

/// Without a blank before them.
fn comments() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let plain = one("[secrets]", LOCAL);
    let list = |list: &str| Vec::from(one(list, LOCAL));
    let block = |head: &str| {
        let key = format!("      - name: k\n        secret: {head}\n          {KEY}\n");
        Vec::from(one("[secrets]", &format!("  - aescbc:\n      keys:\n{key}")))
    };
    let kind = |kind: &str| Vec::from(plain.replace("EncryptionConfiguration", kind));
    vec![
        ("comment-at-bracket", list("[secrets]#all"), Fine),
        ("comment-in-brackets", list("[#c\n    secrets,#all\n    'configmaps'#c\n    ]#"), Fine),
        ("comment-at-brace", (plain.clone() + "  - identity: {}#c\n").into(), Fine),
        ("comment-in-braces", (plain.clone() + "  - identity: {#c\n      }#d\n").into(), Fine),
        ("comment-at-quotes", kind("\"EncryptionConfiguration\"#c"), Fine),
        ("comment-at-quote", kind("'EncryptionConfiguration'#c"), Fine),
        ("comment-at-plain", kind("EncryptionConfiguration#c"), Refused("kind")),
        ("comment-at-bar", block("|#c"), Fine),
        ("comment-at-strip", block("|-#c"), Fine),
        ("comment-at-indent", block(">2#c"), Fine),
        ("comment-at-bad-head", block("|x#c"), Refused("syntax")),
        ("comment-at-tag", kind("!!str#c"), Refused("kind")),
        ("comment-then-text", kind("'EncryptionConfiguration'#c\n  d"), Refused("syntax")),
    ]
}

/// What is dialled is a URL once more, to gRPC.
fn escapes() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let file = |path: &str| {
        let fields = format!("name: a, endpoint: 'unix:///{path}'");
        Vec::from(one("[secrets]", &kms(&fields)))
    };
    let refused = Refused("kms-endpoint");
    vec![
        ("escape-null", file("a%00"), refused),
        ("escape-line", file("a%0a"), refused),
        ("escape-control", file("a%1f"), refused),
        ("escape-delete", file("a%7f"), refused),
        ("escape-of-escape", file("a%25zz"), refused),
        ("escape-of-percent", file("a%25"), refused),
        ("escape-of-percent-twice", file("a%2525"), Fine),
        ("escape-in-abstract", file("@a%00"), refused),
        ("escape-of-space", file("a%20b"), Fine),
        ("escape-behind-question", file("a%3f%25zz"), Fine),
        ("escape-behind-hash", file("a%23%25zz"), refused),
        ("escape-of-colon", file("@a%3ab"), Fine),
    ]
}

/// Where go-yaml takes one, and where not.
fn tabs() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let plain = one("[secrets]", LOCAL);
    let local = |from: &str, to: &str| Vec::from(plain.replace(from, to));
    let block = format!(
        "  - aescbc:\n      keys:\n      - name: k\n        secret: |\n          {KEY}\n# end\n"
    );
    vec![
        ("tab-after-dash", local("  - secretbox", "  -\tsecretbox"), Refused("syntax")),
        ("tab-after-dash-and-space", local("  - secretbox", "  - \tsecretbox"), Refused("syntax")),
        ("tab-after-rule-dash", local("- resources", "-\tresources"), Refused("syntax")),
        ("tab-before-resource", one("\n  -\tsecrets", LOCAL).into(), Refused("syntax")),
        ("tab-before-quotes", one("\n  -\t'secrets'", LOCAL).into(), Refused("syntax")),
        ("tab-before-brace", local("  - sec", "  -\t{}\n  - sec"), Refused("syntax")),
        ("tab-line", local("kind:", "\t\nkind:"), Refused("syntax")),
        ("tab-comment", local("kind:", "\t# c\nkind:"), Refused("syntax")),
        ("tab-end", (plain.clone() + "\t").into(), Refused("syntax")),
        ("tab-after-colon", local("kind: ", "kind:\t"), Fine),
        ("tab-before-colon", local("kind:", "kind\t:"), Fine),
        (
            "tab-at-line-end",
            local("EncryptionConfiguration\n", "EncryptionConfiguration\t# c\n"),
            { Fine },
        ),
        ("tab-in-brackets", local("keys: [", "keys:\t[\t"), Fine),
        ("tab-in-block-scalar-head", one("[secrets]", &block.replace('|', "|\t")).into(), Fine),
        ("tab-in-quotes", local("name: k", "name: '-\tk'"), Fine),
    ]
}

fn names() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let named = |resources: &str| Vec::from(one(resources, LOCAL));
    let unknown = Clear("resource-unknown");
    vec![
        ("core-dot", named("['secrets.']"), Fine),
        ("core-dot-twice", named("['secrets.', secrets]"), Refused("resource-twice")),
        ("singular-dot", named("['secret.']"), unknown),
        ("group-core", named("[secrets.core]"), unknown),
        ("group-version", named("[secrets.v1]"), unknown),
        ("all-of-core", named("['*.core']"), unknown),
        ("all-of-v1", named("['*.v1']"), unknown),
        ("version-and-group", named("[secrets, deployments.v1.apps]"), unknown),
        ("path", named("[secrets, apps/v1/deployments]"), unknown),
        ("subresource", named("[pods/status]"), unknown),
        ("subresource-in-group", named("[secrets, deployments.apps/scale]"), unknown),
        ("singular-in-group", named("[secrets, deployment.apps]"), unknown),
        ("singular-role", named("[secrets, role.rbac.authorization.k8s.io]"), unknown),
        ("group-without-dot", named("[secrets, widgets.acme]"), unknown),
        ("star-in-name", named("['secret*']"), unknown),
        ("three-stars", named("['*.*.*']"), unknown),
        ("space-behind", named("['secrets ']"), unknown),
        ("no-name", named("['', secrets]"), unknown),
        ("null-name", named("[null, secrets]"), unknown),
        ("group-alone", named("[.apps, secrets]"), unknown),
        ("dot-star", named("['.*']"), Refused("resource-across-groups")),
        ("known-groups", named("[secrets, deployments.apps, jobs.batch, '*.policy']"), Fine),
        ("role", named("[secrets, roles.rbac.authorization.k8s.io]"), Fine),
        ("all-events-group", named("['*.events.k8s.io']"), Refused("resource-events-group")),
    ]
}

fn several() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let file = |all: &[String]| Vec::from(format!("{HEAD}resources:\n{}", all.concat()));
    let secret = || rule("[secrets]");
    vec![
        ("clear-in-second-rule", file(&[secret(), clear("[secrets]")]), Fine),
        ("clear-in-second-rule-dot", file(&[secret(), clear("['secrets.']")]), Fine),
        ("clear-in-first-rule", file(&[clear("[secrets]"), secret()]), Clear("identity-first")),
        ("one-more-in-clear", file(&[secret(), clear("[secrets, configmaps]")]), {
            Clear("identity-first")
        }),
        ("all-else-in-clear", file(&[secret(), clear("['*.*']")]), Clear("identity-first")),
        ("masked-dot", rules(&["['*.']", "['secrets.']"]).into(), Refused("resource-masked")),
        ("clear-masked", file(&[rule("['*.*']"), clear("[events]")]), Refused("resource-masked")),
        ("core-then-all", rules(&["['*.']", "['*.*']"]).into(), Fine),
    ]
}

fn values() -> Vec<(&'static str, Vec<u8>, Expect)> {
    let provider = |fields: &str| {
        Vec::from(one("[secrets]", &kms(&format!("endpoint: 'unix:///run/none.sock', {fields}"))))
    };
    let key = |secret: &str| Vec::from(local("aescbc", &format!("{{name: k, secret: {secret}}}")));
    let twice = "cDJHMFQ4ZEo2bVBxUmsxWnhZd1Z1M3NMaE5mQmVDYTlEaVhvNXRReUVqTT0=";
    vec![
        ("tagged-text", provider("name: !!str 5"), Fine),
        ("tagged-number", provider("name: !!int '5'"), Refused("wrong-type")),
        ("tagged-wrongly", provider("name: !!int abc"), Refused("syntax")),
        ("tagged-bool", provider("name: !!bool abc"), Refused("syntax")),
        ("tagged-null", provider("name: !!null a"), Refused("syntax")),
        ("tagged-other", provider("name: !foo abc"), Fine),
        ("name-y", provider("name: y"), Refused("wrong-type")),
        ("name-sexagesimal", provider("name: 1_0"), Refused("wrong-type")),
        ("name-unsigned", provider("name: 0xdeadbeefdeadbeef"), Refused("wrong-type")),
        ("name-too-large", provider("name: 0x1deadbeefdeadbeef"), Fine),
        ("name-infinite", provider("name: 12e4567"), Fine),
        ("name-tiny", provider("name: 12e-4567"), Refused("wrong-type")),
        ("name-space", provider("name: ' '"), Fine),
        ("cachesize-null", provider("name: a, cachesize: null"), Fine),
        ("cachesize-large", provider("name: a, cachesize: 99999999999"), Refused("wrong-type")),
        ("binary-key", key(&format!("!!binary {KEY}")), Refused("key-base64")),
        ("binary-key-twice", key(&format!("!!binary {twice}")), Fine),
        ("url-key", key(&KEY.replace('Q', "_")), Refused("key-base64")),
        ("key-space", key(&format!("'{KEY} '")), Refused("key-base64")),
        ("key-over-lines", key(&format!("\"{}\\n{}\"", &KEY[..20], &KEY[20..])), Fine),
        ("key-folded", key(&format!("'{}\n      {}'", &KEY[..20], &KEY[20..])), {
            Refused("key-base64")
        }),
    ]
}
