//! From the tree to the configuration, as strictly as an apiserver decodes it: every field is
//! known, written in the right case, and of the right type.

use std::rc::Rc;

use super::{
    EncryptionConfiguration, Finding, Kms, LocalKey, Named, Provider, ProviderKind, Rule, Text,
    local_keys,
    tree::{Field, Node, Value},
};

const API_VERSION: &str = "apiserver.config.k8s.io/v1";
const KIND: &str = "EncryptionConfiguration";
/// What a mistake in Kubernetes' documentation once said, and every release takes.
const OLD_API_VERSION: &str = "v1";
const OLD_KIND: &str = "EncryptionConfig";

/// The whole file; `None` when it is not even a map.
pub(super) fn configuration(
    root: &Node,
    findings: &mut Vec<Finding>,
) -> Option<EncryptionConfiguration> {
    let mut decoder = Decoder { findings };
    let map = Map::of(root, "the file", &mut decoder)?;
    if map.fields.is_empty() {
        decoder.say(Finding::error("kind", "the file holds nothing").fix(header_fix()), root.line);
        return None;
    }
    map.only(&["apiVersion", "kind", "resources"], &mut decoder);
    check_kind(&map, &mut decoder);
    let rules = map.list("resources", &mut decoder);
    Some(EncryptionConfiguration {
        rules: rules.iter().map(|node| rule(node, &mut decoder)).collect(),
    })
}

fn header_fix() -> String {
    format!("begin the file with `apiVersion: {API_VERSION}` and `kind: {KIND}`")
}

fn check_kind(map: &Map<'_>, decoder: &mut Decoder<'_>) {
    let version = map.text("apiVersion", decoder).unwrap_or_default();
    let kind = map.text("kind", decoder).unwrap_or_default();
    match (version.as_str(), kind.as_str()) {
        (API_VERSION, KIND) => {}
        (OLD_API_VERSION, OLD_KIND) => {
            let message = "apiVersion and kind are those of an old mistake in the documentation";
            decoder.say(Finding::info("kind-old", message).fix(header_fix()), map.line_of("kind"));
        }
        (version, kind) => {
            let message = format!(
                "no apiserver reads apiVersion {} with kind {} here",
                shown(version),
                shown(kind)
            );
            decoder.say(Finding::error("kind", message).fix(header_fix()), map.line_of("kind"));
        }
    }
}

fn rule(node: &Node, decoder: &mut Decoder<'_>) -> Rule {
    let Some(map) = Map::of(node, "an item of resources", decoder) else {
        return Rule { line: node.line, ..Rule::default() };
    };
    map.only(&["resources", "providers"], decoder);
    let names = map.list("resources", decoder);
    let resources = names.iter().map(|node| Named {
        name: decoder.text_of(node, "a resource").map(|t| resource(&t)).unwrap_or_default(),
        line: node.line,
    });
    let resources = resources.collect();
    let providers = map.list("providers", decoder);
    let providers = providers.iter().map(|node| provider(node, decoder)).collect();
    Rule { resources, providers, line: node.line }
}

/// A resource's name; `secrets.` is `secrets`.
fn resource(name: &str) -> String {
    match name.split_once('.') {
        Some((resource, "")) if resource != "*" => resource.to_owned(),
        _ => name.to_owned(),
    }
}

fn provider(node: &Node, decoder: &mut Decoder<'_>) -> Provider {
    let Some(map) = Map::of(node, "an item of providers", decoder) else {
        return Provider { line: node.line, ..Provider::default() };
    };
    map.only(&["aesgcm", "aescbc", "secretbox", "identity", "kms"], decoder);
    let mut kinds = Vec::new();
    for field in &map.fields {
        // a field without a value counts as absent
        if matches!(field.value.value, Value::Null) {
            continue;
        }
        let kind = match field.name.as_str() {
            "kms" => kms(&field.value, decoder).map(ProviderKind::Kms),
            "aescbc" => keys(&field.value, decoder).map(ProviderKind::AesCbc),
            "aesgcm" => keys(&field.value, decoder).map(ProviderKind::AesGcm),
            "secretbox" => keys(&field.value, decoder).map(ProviderKind::Secretbox),
            "identity" => Map::of(&field.value, "identity", decoder).map(|map| {
                map.only(&[], decoder);
                ProviderKind::Identity
            }),
            _ => None,
        };
        kinds.extend(kind);
    }
    Provider { kinds, line: node.line }
}

fn kms(node: &Node, decoder: &mut Decoder<'_>) -> Option<Kms> {
    let map = Map::of(node, "kms", decoder)?;
    map.only(&["apiVersion", "name", "cachesize", "endpoint", "timeout"], decoder);
    let mut text = |name| map.text(name, decoder).map(|text| text.to_string());
    let (api_version, name, endpoint) = (text("apiVersion"), text("name"), text("endpoint"));
    let timeout = text("timeout");
    Some(Kms {
        api_version: api_version.unwrap_or_default(),
        name: name.unwrap_or_default(),
        endpoint: endpoint.unwrap_or_default(),
        cachesize: map.number("cachesize", decoder),
        timeout,
        line: node.line,
    })
}

fn keys(node: &Node, decoder: &mut Decoder<'_>) -> Option<Vec<LocalKey>> {
    let map = Map::of(node, "a local provider", decoder)?;
    map.only(&["keys"], decoder);
    let keys = map.list("keys", decoder);
    Some(keys.iter().map(|node| key(node, decoder)).collect())
}

fn key(node: &Node, decoder: &mut Decoder<'_>) -> LocalKey {
    let line = node.line;
    let Some(map) = Map::of(node, "a key", decoder) else {
        return LocalKey { line, ..LocalKey::default() };
    };
    map.only(&["name", "secret"], decoder);
    let name = map.text("name", decoder).map(|name| name.to_string()).unwrap_or_default();
    let secret = map.text("secret", decoder).unwrap_or_default();
    LocalKey { name, secret: local_keys::shape(&secret), line }
}

/// Text of the file in a message: short, without control characters, in quotes.
pub(super) fn shown(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.chars().count() > LONGEST {
        true => format!("{:?}…", text.chars().take(LONGEST).collect::<String>()),
        false => format!("{text:?}"),
    }
}

struct Decoder<'f> {
    findings: &'f mut Vec<Finding>,
}

impl Decoder<'_> {
    fn say(&mut self, finding: Finding, line: Option<usize>) {
        self.findings.push(finding.at(line));
    }

    fn wrong_type(&mut self, what: &str, expected: &str, node: &Node) {
        let found = node.value.what();
        let message = format!("{what} must be {expected}, and is {found}");
        let fix = match (expected, &node.value) {
            ("a string", Value::Bool | Value::Number(_)) => {
                "put it in quotes: YAML takes yes, no, on, off and digits for other types"
                    .to_owned()
            }
            _ => format!("write {expected}"),
        };
        self.say(Finding::error("wrong-type", message).fix(fix), node.line);
    }

    /// A string; `null` is an absent one.
    fn text_of(&mut self, node: &Node, what: &str) -> Option<Text> {
        match &node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Null => None,
            _ => {
                self.wrong_type(what, "a string", node);
                None
            }
        }
    }
}

struct Map<'n> {
    fields: Vec<&'n Field>,
}

impl<'n> Map<'n> {
    /// The fields of a map; `null` is an empty one.
    fn of(node: &'n Node, what: &str, decoder: &mut Decoder<'_>) -> Option<Self> {
        match &node.value {
            Value::Map(fields) => Some(Self { fields: fields.iter().collect() }),
            Value::Null => Some(Self { fields: Vec::new() }),
            _ => {
                decoder.wrong_type(what, "a map", node);
                None
            }
        }
    }

    /// Says which fields are unknown.
    fn only(&self, known: &[&str], decoder: &mut Decoder<'_>) {
        for field in &self.fields {
            let name = field.name.as_str();
            if known.contains(&name) {
                continue;
            }
            let near = known.iter().find(|known| known.eq_ignore_ascii_case(name));
            let fix = match near {
                Some(near) => format!("write `{near}`: capitals matter"),
                None if known.is_empty() => "remove it: nothing belongs here".to_owned(),
                None => format!("remove it; these are known here: {}", known.join(", ")),
            };
            let message = format!("the field {} is unknown", shown(name));
            decoder.say(Finding::error("unknown-field", message).fix(fix), field.line);
        }
    }

    /// The last one of that name, as the decoder leaves it.
    fn get(&self, name: &str) -> Option<&'n Field> {
        self.fields.iter().rfind(|field| field.name.as_str() == name).copied()
    }

    fn line_of(&self, name: &str) -> Option<usize> {
        self.get(name).and_then(|field| field.line)
    }

    fn text(&self, name: &str, decoder: &mut Decoder<'_>) -> Option<Text> {
        let field = self.get(name)?;
        decoder.text_of(&field.value, name)
    }

    fn number(&self, name: &str, decoder: &mut Decoder<'_>) -> Option<i64> {
        let node = &self.get(name)?.value;
        match node.value {
            Value::Null => None,
            Value::Number(Some(number)) if i32::try_from(number).is_ok() => Some(number),
            _ => {
                decoder.wrong_type(name, "a whole number of 32 bits", node);
                None
            }
        }
    }

    fn list(&self, name: &str, decoder: &mut Decoder<'_>) -> &'n [Rc<Node>] {
        let Some(field) = self.get(name) else { return &[] };
        match &field.value.value {
            Value::List(items) => items,
            Value::Null => &[],
            _ => {
                decoder.wrong_type(name, "a list", &field.value);
                &[]
            }
        }
    }
}
