//! Names that no resource has: an apiserver takes them without a word, and what they were meant for
//! stays in clear.
//!
//! Groups without a dot are Kubernetes' own (a custom resource's group needs one), so those can be
//! judged without a cluster. Of other groups only a cluster knows: `lastkey cluster doctor NAME`.

use super::{Finding, Rule, decode::shown, rules::is_not_rest};

/// Resources of the core group.
const CORE: [&str; 17] = [
    "bindings",
    "componentstatuses",
    "configmaps",
    "endpoints",
    "events",
    "limitranges",
    "namespaces",
    "nodes",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "serviceaccounts",
    "services",
];

/// Groups whose resources have been the same for long, and all groups that are written without a dot.
const GROUPS: [(&str, &[&str]); 5] = [
    ("apps", &["controllerrevisions", "daemonsets", "deployments", "replicasets", "statefulsets"]),
    ("autoscaling", &["horizontalpodautoscalers"]),
    ("batch", &["cronjobs", "jobs"]),
    ("policy", &["poddisruptionbudgets", "podsecuritypolicies"]),
    (
        "rbac.authorization.k8s.io",
        &["clusterrolebindings", "clusterroles", "rolebindings", "roles"],
    ),
];

/// What people leave the group away of, besides those above.
const ELSEWHERE: [(&str, &str); 4] = [
    ("ingresses", "networking.k8s.io"),
    ("networkpolicies", "networking.k8s.io"),
    ("leases", "coordination.k8s.io"),
    ("customresourcedefinitions", "apiextensions.k8s.io"),
];

/// Names that match nothing.
pub(super) fn about_names(rule: &Rule, findings: &mut Vec<Finding>) {
    for named in &rule.resources {
        let name = named.name.as_str();
        // what is refused anyway needs no second finding
        if name == "*" || name.to_lowercase() != name || is_not_rest(name) {
            continue;
        }
        let (resource, group) = named.parts();
        if let Some(problem) = problem(resource, group) {
            let message = format!(
                "{} {problem}: it matches nothing, and what it was meant for is stored in clear",
                shown(name)
            );
            let fix = fix(resource);
            findings.push(Finding::error("resource-unknown", message).fix(fix).at(named.line));
        }
    }
}

fn problem(resource: &str, group: &str) -> Option<&'static str> {
    let letters = |text: &str, more: char| {
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == more;
        !text.is_empty() && text.chars().all(fits)
    };
    match (resource, group) {
        ("*", "" | "*") | (_, "extensions" | "events.k8s.io") => None,
        (_, "*") if letters(resource, '-') => None,
        (_, "") => (!CORE.contains(&resource)).then_some("is no resource of the core group"),
        _ if resource != "*" && !letters(resource, '-') || !letters(group, '.') => {
            Some("is not of the form RESOURCE.GROUP")
        }
        _ if known(without_version(group)).is_some() && without_version(group) != group => {
            Some("has a version in it")
        }
        _ => match known(group) {
            Some(all) if resource == "*" || all.contains(&resource) => None,
            Some(_) => Some("is no resource of that group"),
            None if !group.contains('.') => Some("is of a group that there is not"),
            None => None,
        },
    }
}

fn known(group: &str) -> Option<&'static [&'static str]> {
    GROUPS.iter().find(|(name, _)| *name == group).map(|(_, resources)| *resources)
}

/// `apps` of `v1.apps`, as `kubectl get deployments.v1.apps` has it.
fn without_version(group: &str) -> &str {
    match group.split_once('.') {
        Some((version, rest))
            if version
                .strip_prefix('v')
                .is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit())) =>
        {
            rest
        }
        _ => group,
    }
}

fn fix(resource: &str) -> String {
    let resource = resource.split('/').next().unwrap_or_default().trim();
    if resource == "*" {
        return "write `'*.'` for the core group, `'*.apps'` for another, or `'*.*'` for everything"
            .to_owned();
    }
    let plural = [resource.to_owned(), format!("{resource}s")];
    for name in &plural {
        if CORE.contains(&name.as_str()) {
            return format!("write `{name}`");
        }
        let own = GROUPS.iter().find(|(_, all)| all.contains(&name.as_str()));
        let other = ELSEWHERE.iter().find(|(other, _)| other == name);
        if let Some(group) = own.map(|(group, _)| group).or(other.map(|(_, group)| group)) {
            return format!("write `{name}.{group}`");
        }
    }
    "write RESOURCE.GROUP; `kubectl api-resources` lists both".to_owned()
}
