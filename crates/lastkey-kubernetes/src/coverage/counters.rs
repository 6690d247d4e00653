//! What apiservers count: objects of each resource, and under what those were that they have read.

use std::collections::BTreeSet;

use super::{ResourceCoverage, Share, Under};
use crate::cluster::Resource;

/// One line of Prometheus' text format.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample<'a> {
    /// The metric's name.
    pub name: &'a str,
    /// Between the braces, as written.
    labels: &'a str,
    /// The value.
    pub value: f64,
}

impl Sample<'_> {
    /// A label's value; what is escaped in it stays so.
    pub fn label(&self, name: &str) -> Option<&str> {
        let mut rest = self.labels;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            let end = end_of_value(after)?;
            if label == name {
                return Some(&after[..end]);
            }
            rest = after[end + 1..].strip_prefix(',')?;
        }
    }
}

/// Up to the quote that no backslash is in front of.
fn end_of_value(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        end
    })
}

/// The samples whose metric has one of these names.
pub fn samples<'a>(text: &'a str, names: &'a [&str]) -> impl Iterator<Item = Sample<'a>> {
    text.lines().filter_map(move |line| {
        let name = line.split(['{', ' ']).next()?;
        if !names.contains(&name) {
            return None;
        }
        let rest = &line[name.len()..];
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once('}')?,
            None => ("", rest),
        };
        let value = value.trim().split(' ').next()?.parse().ok()?;
        Some(Sample { name, labels, value })
    })
}

/// Objects, by the newer and the older name of the same counter.
const OBJECTS: [&str; 2] = ["apiserver_resource_objects", "apiserver_storage_objects"];
const TRANSFORMATIONS: [&str; 1] = ["apiserver_storage_transformation_operations_total"];

/// What these apiservers say of a resource.
pub(super) fn of(resource: &Resource, metrics: &[String]) -> ResourceCoverage {
    let name = resource.full_name();
    let mut objects: Option<u64> = None;
    let mut prefixes = BTreeSet::new();
    for text in metrics {
        for sample in samples(text, &OBJECTS) {
            let own = match sample.name {
                "apiserver_resource_objects" => {
                    sample.label("group") == Some(&resource.group)
                        && sample.label("resource") == Some(&resource.name)
                }
                _ => sample.label("resource") == Some(&name),
            };
            if own && sample.value >= 0.0 {
                // counts of objects are far below 2^53
                let value = sample.value as u64;
                objects = Some(objects.map_or(value, |known| known.max(value)));
            }
        }
        for sample in samples(text, &TRANSFORMATIONS) {
            let read = sample.label("transformation_type") == Some("from_storage");
            if read && sample.label("resource") == Some(&name) && sample.value > 0.0 {
                prefixes.extend(sample.label("transformer_prefix").map(str::to_owned));
            }
        }
    }
    let under = prefixes.iter().filter_map(|prefix| provider(prefix));
    let under = under.map(|under| Share { under: Under::only(under), objects: None }).collect();
    ResourceCoverage { resource: name, objects, under }
}

/// `k8s:enc:kms:v2:lastkey:` as it is shown elsewhere.
fn provider(prefix: &str) -> Option<String> {
    let mut parts = match prefix {
        "identity" => return Some(Under::CLEAR.to_owned()),
        _ => prefix.strip_prefix("k8s:enc:")?.split(':'),
    };
    let (kind, api, name) = (parts.next()?, parts.next()?, parts.next()?);
    Some(match kind {
        "kms" => format!("kms {api} {name}"),
        _ => kind.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read() {
        let text = "# HELP a b\na{x=\"1\",y=\"q\\\"}\"} 3\na 4 17\nb{x=\"1\"} 1e3\nac 1\na{ 5\n";
        let read: Vec<_> = samples(text, &["a", "b"]).collect();
        let values: Vec<f64> = read.iter().map(|sample| sample.value).collect();
        assert_eq!(values, [3.0, 4.0, 1000.0]);
        assert_eq!((read[0].label("x"), read[0].label("y")), (Some("1"), Some("q\\\"}")));
        assert_eq!((read[0].label("z"), read[1].label("x")), (None, None));
    }

    #[test]
    fn counters_become_coverage() {
        let text = "apiserver_resource_objects{group=\"\",resource=\"secrets\"} 7\n\
            apiserver_resource_objects{group=\"apps\",resource=\"secrets\"} 9\n\
            apiserver_storage_transformation_operations_total{resource=\"secrets\",status=\"OK\",transformation_type=\"from_storage\",transformer_prefix=\"k8s:enc:kms:v2:lastkey:\"} 3\n\
            apiserver_storage_transformation_operations_total{resource=\"secrets\",status=\"OK\",transformation_type=\"from_storage\",transformer_prefix=\"identity\"} 1\n\
            apiserver_storage_transformation_operations_total{resource=\"secrets\",status=\"OK\",transformation_type=\"to_storage\",transformer_prefix=\"k8s:enc:aescbc:v1:\"} 1\n";
        let secrets = Resource {
            group: String::new(),
            version: "v1".to_owned(),
            name: "secrets".to_owned(),
            kind: "Secret".to_owned(),
            namespaced: true,
            updatable: true,
        };
        let coverage = of(&secrets, &[text.to_owned()]);
        let under: Vec<&str> = coverage.under.iter().map(|s| s.under.provider.as_str()).collect();
        assert_eq!((coverage.objects, under), (Some(7), vec!["clear", "kms v2 lastkey"]));
    }
}
