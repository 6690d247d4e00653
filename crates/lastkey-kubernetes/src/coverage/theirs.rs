//! Whether a registered etcd is the one that these apiservers keep their objects in. What is counted in
//! another one (another cluster's, a copy restored from a snapshot, another prefix) says nothing of
//! what needs a key, and an empty one would free them all.
//!
//! A list carries the revision of the etcd that it was read from. So
//!
//! 1. what etcd answers between two lists is of no earlier revision than the first, and of no later one
//!    than the second, and
//! 2. the object that was listed lies there, as of the very revision that the list has it with.
//!
//! Each resource is looked at by itself, for an apiserver can keep some elsewhere
//! (`--etcd-servers-overrides`). What aggregated apiservers have is of no etcd of these, and has no
//! counter in their metrics. A list that fails because an object in it cannot be decrypted has no
//! revision: then it has to be enough that something of it lies there.
//!
//! What the account may not list is compared by the apiservers' counters: of what they have objects,
//! etcd has some below the prefix, and so it has namespaces.

use crate::cluster::{
    ApiError, ApiServer, Etcd, EtcdError, ListQuery, MIGRATIONS, Resource, Shape,
};

use super::{counted, place_in_etcd};

/// What is written in the very moment of a look is looked at again.
const LOOKS: u32 = 5;

/// Why it is not known to be theirs; `None` if it is. `resources` are those that are counted in it,
/// below `prefix`.
///
/// # Errors
/// When etcd cannot be read.
pub async fn not_theirs(
    api: &ApiServer,
    etcd: &mut Etcd,
    (prefix, resources): (&str, &[Resource]),
) -> Result<Option<String>, EtcdError> {
    let (mut place, mut revision) = (resources.is_empty(), resources.is_empty());
    let mut unlisted = Vec::new();
    // What cannot be written back is not kept: such as `componentstatuses` and metrics.
    for resource in resources.iter().filter(|resource| resource.updatable) {
        match compared(api, etcd, (prefix, resource)).await? {
            Outcome::Theirs { object } => {
                place |= object;
                revision = true;
            }
            Outcome::Unserved => {}
            Outcome::Forbidden => unlisted.push(resource.clone()),
            Outcome::Other(why) => {
                if is_kept_by(api, resource).await {
                    return Ok(Some(format!("{}: {why}", resource.full_name())));
                }
            }
        }
    }
    if !revision {
        // Who may read no object may list migrations, or nothing that could be compared.
        match compared(api, etcd, (prefix, &migrations())).await? {
            Outcome::Theirs { object } => place |= object,
            Outcome::Other(why) => return Ok(Some(why)),
            Outcome::Forbidden | Outcome::Unserved => {
                let why = "the account may list nothing of what is counted, nor migrations";
                return Ok(Some(why.to_owned()));
            }
        }
    }
    // A list without objects says nothing of the prefix, and nothing of what may not be listed.
    match unlisted.is_empty() {
        true => Ok(None),
        false => unlike(api, etcd, (prefix, &unlisted, place)).await,
    }
}

/// Why what the apiservers have counted is not what etcd has. `place` says that an object was found
/// below the prefix already.
async fn unlike(
    api: &ApiServer,
    etcd: &mut Etcd,
    (prefix, unlisted, place): (&str, &[Resource], bool),
) -> Result<Option<String>, EtcdError> {
    let asked = [unlisted, &[namespaces()]].concat();
    let counted = match counted(api, (&asked, Vec::new())).await {
        Ok(counted) => counted.resources,
        Err(error) => return Ok(Some(error.to_string())),
    };
    for (resource, counted) in asked.iter().zip(counted) {
        let is_there = etcd.has_any(&place_in_etcd(prefix, resource)).await?;
        let name = resource.full_name();
        let is_namespaces = resource.name == "namespaces" && resource.group.is_empty();
        match counted.objects {
            // What aggregated apiservers have is in no counter; namespaces are, a minute after a start.
            None if is_namespaces && !place => {
                return Ok(Some("the apiservers have counted no namespaces yet".to_owned()));
            }
            Some(objects @ 1..) if !is_there => {
                return Ok(Some(format!(
                    "it has no {name}, of which the apiservers have {objects}"
                )));
            }
            _ if is_namespaces && !is_there => {
                return Ok(Some("it has no namespaces, which every cluster has".to_owned()));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// What one resource says.
enum Outcome {
    /// The revisions are theirs; whether an object was found where it should lie, too.
    Theirs {
        object: bool,
    },
    /// Nothing: nobody serves it.
    Unserved,
    Forbidden,
    Other(String),
}

async fn compared(
    api: &ApiServer,
    etcd: &mut Etcd,
    (prefix, resource): (&str, &Resource),
) -> Result<Outcome, EtcdError> {
    let mut why = String::new();
    for _ in 0..LOOKS {
        let before = match seen(api, resource).await {
            Ok(Some(seen)) => seen,
            Ok(None) => return Ok(Outcome::Other("a list of it has no revision".to_owned())),
            Err(ApiError::NotFound) => return Ok(Outcome::Unserved),
            Err(ApiError::Forbidden { .. }) => return Ok(Outcome::Forbidden),
            Err(error @ ApiError::Failed { .. }) => {
                return Ok(match etcd.has_any(&place_in_etcd(prefix, resource)).await? {
                    true => Outcome::Theirs { object: true },
                    false => Outcome::Other(error.to_string()),
                });
            }
            Err(error) => return Ok(Outcome::Other(error.to_string())),
        };
        let place = place_in_etcd(prefix, resource);
        let first = before.first.as_ref();
        let key = first.map_or_else(|| place.clone(), |(name, _)| format!("{place}{name}"));
        let (revision, stored) = etcd.revisions(&key).await?;
        let after = match seen(api, resource).await {
            Ok(Some(seen)) => seen.revision,
            Ok(None) => i64::MIN,
            Err(error) => return Ok(Outcome::Other(error.to_string())),
        };
        match judge(&before, (revision, stored), after) {
            None => return Ok(Outcome::Theirs { object: before.first.is_some() }),
            Some(reason) => why = reason,
        }
    }
    Ok(Outcome::Other(why))
}

/// What an apiserver shows of a resource.
struct Seen {
    revision: i64,
    /// Where its first object lies below the resource's place, and of which revision it is.
    first: Option<(String, i64)>,
}

async fn seen(api: &ApiServer, resource: &Resource) -> Result<Option<Seen>, ApiError> {
    let query = ListQuery { limit: 1, shape: Shape::Metadata, ..ListQuery::default() };
    let page = api.list(resource, &query).await?;
    let Ok(revision) = page.resource_version.parse() else { return Ok(None) };
    let first = page.objects.first().map(|object| {
        let meta = object.meta();
        let name = match resource.namespaced {
            true => format!("{}/{}", meta.namespace, meta.name),
            false => meta.name.clone(),
        };
        (name, meta.resource_version.parse().unwrap_or_default())
    });
    Ok(Some(Seen { revision, first }))
}

/// Why it is another etcd; `None` if it is theirs. `after` is the revision of the later list.
fn judge(before: &Seen, (revision, stored): (i64, Option<i64>), after: i64) -> Option<String> {
    if !(before.revision..=after).contains(&revision) {
        return Some(format!(
            "etcd is at revision {revision}, and what the apiservers list is of {} to {after}",
            before.revision
        ));
    }
    match (&before.first, stored) {
        (Some((_, listed)), Some(stored)) if *listed == stored => None,
        (Some(_), Some(_)) => {
            Some("an object that is listed has another revision in it".to_owned())
        }
        (Some(_), None) => {
            Some("an object that is listed is not in it, below its prefix".to_owned())
        }
        (None, _) => None,
    }
}

/// Whether these apiservers have counted objects of the resource in an etcd, or nothing at all yet.
async fn is_kept_by(api: &ApiServer, resource: &Resource) -> bool {
    match counted(api, (&[resource.clone(), namespaces()], Vec::new())).await {
        Ok(counted) => {
            let objects: Vec<_> = counted.resources.iter().map(|one| one.objects).collect();
            !matches!(objects[..], [None, Some(_)])
        }
        Err(_) => true,
    }
}

fn namespaces() -> Resource {
    Resource {
        group: String::new(),
        version: "v1".to_owned(),
        name: "namespaces".to_owned(),
        kind: "Namespace".to_owned(),
        namespaced: false,
        updatable: true,
    }
}

fn migrations() -> Resource {
    let (name, group) = MIGRATIONS.split_once('.').unwrap_or((MIGRATIONS, ""));
    Resource {
        group: group.to_owned(),
        version: "v1".to_owned(),
        name: name.to_owned(),
        kind: "StorageVersionMigration".to_owned(),
        namespaced: false,
        updatable: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_revisions_are_theirs() {
        let seen = |first: Option<i64>| Seen {
            revision: 100,
            first: first.map(|revision| ("default/a".to_owned(), revision)),
        };
        let is_theirs = |before: &Seen, etcd, after| judge(before, etcd, after).is_none();
        assert!(is_theirs(&seen(Some(7)), (100, Some(7)), 100));
        assert!(is_theirs(&seen(Some(7)), (103, Some(7)), 105), "somebody writes meanwhile");
        assert!(is_theirs(&seen(None), (100, None), 100), "there is none");
        // Another cluster's, behind or ahead.
        assert!(!is_theirs(&seen(Some(7)), (99, Some(7)), 100));
        assert!(!is_theirs(&seen(None), (101, None), 100));
        // Another prefix; another object of that name, or one that was written since.
        assert!(!is_theirs(&seen(Some(7)), (100, None), 100));
        assert!(!is_theirs(&seen(Some(7)), (100, Some(8)), 100));
    }
}
