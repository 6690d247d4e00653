//! The providers of each rule after each stage: a function of the configuration and the goal, and
//! of nothing else.

use serde::{Deserialize, Serialize};

use super::{Goal, Stage};
use crate::encryption_config::{
    Draft, DraftRule, EncryptionConfiguration, Item, Kms, Provider, ProviderKind, Rule,
};

/// What shall write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A plugin, over KMS v2.
    Kms {
        /// What a new provider is named; one that has this endpoint keeps its name.
        name: String,
        /// `unix:///…`
        endpoint: String,
    },
    /// Keys in the configuration: `aescbc`, `aesgcm` or `secretbox`, as it has them.
    Local {
        /// The provider's field.
        kind: String,
    },
    /// Nothing: in clear.
    Identity,
}

impl Target {
    /// Whether a provider is it.
    pub fn is(&self, provider: &Provider) -> bool {
        match (self, provider.kind()) {
            (Self::Kms { endpoint, .. }, Some(ProviderKind::Kms(kms))) => {
                kms.version() == "v2" && same_socket(kms, endpoint)
            }
            (Self::Local { kind }, Some(other)) => other.name() == kind,
            (Self::Identity, Some(kind)) => *kind == ProviderKind::Identity,
            _ => false,
        }
    }

    /// In words.
    pub fn shown(&self) -> String {
        match self {
            Self::Kms { name, .. } => format!("kms v2 {name}"),
            Self::Local { kind } => kind.clone(),
            Self::Identity => "clear".to_owned(),
        }
    }
}

fn same_socket(kms: &Kms, endpoint: &str) -> bool {
    let wanted = Kms { endpoint: endpoint.to_owned(), ..Kms::default() };
    kms.endpoint == endpoint || kms.socket().is_some() && kms.socket() == wanted.socket()
}

/// Why there is no way from here to there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A KMS provider stands in one rule only.
    #[error(
        "{inside} shares the provider {provider} with {outside}, and an apiserver takes a KMS \
         provider in one rule only: move them together, with --resource for each of them"
    )]
    Shared {
        /// Wanted.
        inside: String,
        /// Not wanted.
        outside: String,
        /// What they share.
        provider: String,
    },
    /// The stage before was not reached, or was undone.
    #[error("{resource} has no provider {target} in the configuration any more")]
    TargetMissing {
        /// The resource.
        resource: String,
        /// What is missing.
        target: String,
    },
}

/// The configuration after `stage`. `needed` says which providers of a rule something still rests
/// under; it is asked for [`Stage::Clean`] only.
///
/// # Errors
/// [`PlanError`] when the goal cannot be reached from here.
pub fn next(
    config: &EncryptionConfiguration,
    goal: &Goal,
    stage: Stage,
    needed: &dyn Fn(&Rule, &Provider) -> bool,
) -> Result<Draft, PlanError> {
    match stage {
        Stage::Readable => readable(config, goal),
        Stage::Writing | Stage::Clean => {
            let mut draft = unchanged(config);
            for (index, rule) in config.rules.iter().enumerate() {
                if !rule.resources.iter().any(|named| is_wanted(goal, &named.name)) {
                    continue;
                }
                let providers = match stage {
                    Stage::Writing => writing(rule, index, goal)?,
                    _ => clean(rule, index, goal, needed)?,
                };
                draft.rules[index].providers = providers;
            }
            Ok(draft)
        }
    }
}

/// The same configuration.
fn unchanged(config: &EncryptionConfiguration) -> Draft {
    let rules = config.rules.iter().enumerate().map(|(index, rule)| DraftRule {
        from: Some(index),
        resources: rule.resources.iter().map(|named| named.name.clone()).collect(),
        providers: kept(rule, index),
    });
    Draft { rules: rules.collect() }
}

fn kept(rule: &Rule, index: usize) -> Vec<Item> {
    (0..rule.providers.len()).map(|provider| Item::Kept { rule: index, provider }).collect()
}

/// Whether the goal names a resource, itself or by a wildcard.
fn is_wanted(goal: &Goal, name: &str) -> bool {
    goal.resources.iter().any(|wanted| covers(wanted, name))
}

/// Whether `wide` stands for all that `name` stands for.
pub(crate) fn covers(wide: &str, name: &str) -> bool {
    let group = |name: &str| name.split_once('.').map_or("", |(_, group)| group).to_owned();
    match wide {
        "*.*" => true,
        wide if wide.starts_with("*.") => group(wide) == group(name),
        wide => wide == name,
    }
}

/// The target is behind the provider that writes, wherever it is wanted.
fn readable(config: &EncryptionConfiguration, goal: &Goal) -> Result<Draft, PlanError> {
    let mut draft = unchanged(config);
    let mut names = Names::of(config);
    // Rules are split from the last one to the first: indexes before them stay.
    for (index, rule) in config.rules.iter().enumerate().rev() {
        let (inside, outside): (Vec<String>, Vec<String>) = rule
            .resources
            .iter()
            .map(|named| named.name.clone())
            .partition(|name| is_wanted(goal, name));
        if inside.is_empty() {
            continue;
        }
        let providers = with_target(rule, index, goal, &mut names);
        if outside.is_empty() {
            draft.rules[index].providers = providers;
            continue;
        }
        check_unshared(rule, &inside, &outside)?;
        draft.rules[index].resources = outside;
        draft.rules.insert(index, DraftRule { from: None, resources: inside, providers });
    }
    uncovered(config, goal, (&mut draft, &mut names))?;
    Ok(draft)
}

/// What is wanted and in no rule by its own name gets one: in front of the wildcard that it falls
/// under, with what that reads by, else at the end.
fn uncovered(
    config: &EncryptionConfiguration,
    goal: &Goal,
    (draft, names): (&mut Draft, &mut Names),
) -> Result<(), PlanError> {
    let named = |name: &String| config.names().any(|known| known.name == *name);
    let missing: Vec<&String> = goal.resources.iter().filter(|name| !named(name)).collect();
    let mut plain = Vec::new();
    for name in missing {
        let wide = config.rules.iter().position(|rule| {
            rule.resources.iter().any(|other| other.name != *name && covers(&other.name, name))
        });
        let Some(index) = wide else {
            plain.push(name.clone());
            continue;
        };
        let rule = &config.rules[index];
        let outside: Vec<String> = rule.resources.iter().map(|named| named.name.clone()).collect();
        check_unshared(rule, std::slice::from_ref(name), &outside)?;
        let providers = with_target(rule, index, goal, names);
        let new = DraftRule { from: None, resources: vec![name.clone()], providers };
        let at = draft.rules.iter().position(|rule| rule.from == Some(index)).unwrap_or(0);
        draft.rules.insert(at, new);
    }
    if plain.is_empty() || goal.target == Target::Identity {
        return Ok(());
    }
    // Without a rule they are in clear, and go on to be written so until the next stage.
    let providers = vec![Item::Identity, names.new_item(&goal.target)];
    draft.rules.push(DraftRule { from: None, resources: plain, providers });
    Ok(())
}

fn check_unshared(rule: &Rule, inside: &[String], outside: &[String]) -> Result<(), PlanError> {
    let kms = rule.providers.iter().find_map(|provider| match provider.kind() {
        Some(ProviderKind::Kms(kms)) => Some(kms.name.clone()),
        _ => None,
    });
    match kms {
        None => Ok(()),
        Some(provider) => Err(PlanError::Shared {
            inside: inside.join(", "),
            outside: outside.join(", "),
            provider,
        }),
    }
}

/// A rule's providers with the target among them.
fn with_target(rule: &Rule, index: usize, goal: &Goal, names: &mut Names) -> Vec<Item> {
    let mut items = kept(rule, index);
    if rule.providers.iter().any(|provider| goal.target.is(provider)) {
        return items;
    }
    match (&goal.target, names.new_item(&goal.target)) {
        // By custom it comes last, unless it writes.
        (Target::Identity, new) => items.push(new),
        (_, new) => items.insert(1.min(items.len()), new),
    }
    items
}

/// The target's place in a rule.
fn place_of(rule: &Rule, goal: &Goal) -> Result<usize, PlanError> {
    let missing = || PlanError::TargetMissing {
        resource: rule.resources.first().map(|named| named.name.clone()).unwrap_or_default(),
        target: goal.target.shown(),
    };
    rule.providers.iter().position(|provider| goal.target.is(provider)).ok_or_else(missing)
}

/// The target first; `identity` last, if it is left.
fn writing(rule: &Rule, index: usize, goal: &Goal) -> Result<Vec<Item>, PlanError> {
    let at = place_of(rule, goal)?;
    let mut order: Vec<usize> = vec![at];
    let is_clear = |place: &usize| rule.providers[*place].kind() == Some(&ProviderKind::Identity);
    let others = || (0..rule.providers.len()).filter(|place| *place != at);
    order.extend(others().filter(|place| !is_clear(place)));
    order.extend(others().filter(is_clear));
    Ok(order.into_iter().map(|provider| Item::Kept { rule: index, provider }).collect())
}

/// The target, and behind it what something still rests under.
fn clean(
    rule: &Rule,
    index: usize,
    goal: &Goal,
    needed: &dyn Fn(&Rule, &Provider) -> bool,
) -> Result<Vec<Item>, PlanError> {
    let at = place_of(rule, goal)?;
    let stays = |place: &usize| *place == at || needed(rule, &rule.providers[*place]);
    let places = (0..rule.providers.len()).filter(stays);
    Ok(places.map(|provider| Item::Kept { rule: index, provider }).collect())
}

/// Names of KMS providers: each once in a configuration.
struct Names {
    taken: Vec<String>,
}

impl Names {
    fn of(config: &EncryptionConfiguration) -> Self {
        Self { taken: config.kms().map(|kms| kms.name.clone()).collect() }
    }

    /// A provider that is not there yet.
    fn new_item(&mut self, target: &Target) -> Item {
        match target {
            Target::Identity => Item::Identity,
            Target::Local { kind } => Item::Local { kind: kind.clone() },
            Target::Kms { name, endpoint } => {
                let mut own = name.clone();
                let mut number = 1;
                while self.taken.contains(&own) {
                    number += 1;
                    own = format!("{name}-{number}");
                }
                self.taken.push(own.clone());
                Item::Kms { name: own, endpoint: endpoint.clone() }
            }
        }
    }
}

/// What is to be enabled where nothing is named: Secrets, and what is encrypted already.
pub fn resources_to_enable(config: &EncryptionConfiguration) -> Vec<String> {
    let encrypts = |rule: &&Rule| {
        let first = rule.providers.first().and_then(Provider::kind);
        first.is_some_and(|kind| *kind != ProviderKind::Identity)
    };
    let encrypted = config.rules.iter().filter(encrypts).flat_map(|rule| &rule.resources);
    let mut names: Vec<String> = encrypted.map(|named| named.name.clone()).collect();
    // A wildcard that encrypts them covers Secrets too, unless a rule of their own excepts them.
    let own = config.names().any(|named| named.name == "secrets");
    if own || !names.iter().any(|name| covers(name, "secrets")) {
        names.push("secrets".to_owned());
    }
    names.sort();
    names.dedup();
    names
}

/// What a configuration names and has written in clear, as an apiserver finds its provider.
pub fn in_clear(config: &EncryptionConfiguration) -> Vec<String> {
    let clear = |name: &&String| {
        let first = config.providers_of(name).first().and_then(|provider| provider.kind());
        first == Some(&ProviderKind::Identity)
    };
    let mut names = Vec::new();
    for name in config.names().map(|named| &named.name).filter(clear) {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// What a configuration has under any of these KMS providers.
pub fn resources_under(config: &EncryptionConfiguration, ours: &[String]) -> Vec<String> {
    let has = |rule: &&Rule| {
        rule.providers.iter().any(|provider| match provider.kind() {
            Some(ProviderKind::Kms(kms)) => ours.contains(&kms.name),
            _ => false,
        })
    };
    let names = config.rules.iter().filter(has).flat_map(|rule| &rule.resources);
    names.map(|named| named.name.clone()).collect()
}

/// The names of the KMS providers that a key id came from, or that dial a socket.
pub fn names_of_ours(
    config: &EncryptionConfiguration,
    told: &[String],
    endpoint: &str,
) -> Vec<String> {
    let own = config.kms().filter(|kms| told.contains(&kms.name) || same_socket(kms, endpoint));
    own.map(|kms| kms.name.clone()).collect()
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
