//! Every reason, and the verdicts.

use lastkey_crypto::{KeyId, KeyVersionId, Lineage};

use super::*;
use crate::{
    objects::Item,
    report::{Snapshot, State},
    state::{Cluster, Version},
};

const fn cluster(number: u8) -> ClusterId {
    ClusterId::from_bytes([number; 16])
}

const fn version(number: u8) -> KeyVersionId {
    KeyVersionId::from_bytes([number; 16])
}

const fn key(number: u8) -> KeyId {
    KeyId::from_bytes([number; 16])
}

fn ours(of: u8, under: u8) -> Origin {
    Origin::Ours {
        api: "v2",
        provider: "lastkey".to_owned(),
        cluster: cluster(of),
        version: version(under),
        lineage: Lineage::from_bytes([7; 16]),
    }
}

fn local(key: &str) -> Origin {
    Origin::Local { provider: "aescbc".to_owned(), key: key.to_owned() }
}

/// One Secret under each of these.
fn contents(origins: Vec<Origin>) -> Contents {
    let items =
        (0..origins.len()).map(|origin| Item { key: format!("secrets/default/s{origin}"), origin });
    let mut contents = Contents::default();
    contents.items = items.collect();
    contents.origins = origins;
    contents
}

/// A backup with the cluster 1, its key 1 with the version 1 and the retired version 4, a disabled key
/// 2 with the version 2, and a key 3 with the version 3 that the cluster was not given.
fn known() -> Known {
    let mut known = Known::default();
    let of = Cluster { name: Some("prod".to_owned()), keys: vec![key(1), key(2)] };
    known.clusters.insert(cluster(1), of);
    for (number, state) in [(1, "Enabled"), (2, "Disabled"), (3, "Enabled")] {
        let id = key(number);
        let alias = (number == 1).then(|| "alias/kubernetes".to_owned());
        known.keys.insert(id, Key { id, alias, state: state.to_owned() });
        let created_at = "2026-01-01T00:00:00Z".to_owned();
        let of = Version { key: id, created_at: created_at.clone(), is_retired: false };
        known.versions.insert(version(number), of);
    }
    let of = Version { key: key(1), created_at: String::new(), is_retired: true };
    known.versions.insert(version(4), of);
    known.lineages.insert(Lineage::from_bytes([7; 16]), key(1));
    known
}

const LOCAL: &str = "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
    resources:\n- resources: [secrets]\n  providers:\n  - aescbc:\n      keys:\n      - name: k1\n        \
    secret: MDEyMzQ1Njc4OWFiY2RlZg==\n";

/// The report on these, each of which came to that.
fn report(origins: Vec<(Origin, Outcome)>) -> RestoreReport {
    let (origins, outcomes): (Vec<_>, Vec<_>) = origins.into_iter().unzip();
    let (contents, known) = (contents(origins), known());
    let local = LocalProviders::parse(LOCAL).ok().unwrap();
    let leftovers = ["podsecuritypolicy".to_owned()];
    let mut findings = Findings::new(&contents, &known, (&local, &leftovers));
    for (index, outcome) in outcomes.into_iter().enumerate() {
        let resource = match (&outcome, index) {
            (Outcome::NotServed, 0) => "example.org/widgets",
            (Outcome::NotServed, 1) => "podsecuritypolicy",
            (Outcome::NotServed, _) => "masterleases",
            _ => "secrets",
        };
        findings.outcomes[index] = Some((resource.to_owned(), outcome));
        findings.addresses.insert(index, ("default".to_owned(), format!("s{index}")));
    }
    let snapshot = Snapshot { file: String::new(), status: crate::etcd::SnapshotStatus::default() };
    findings.report(snapshot, State::default())
}

fn failed() -> Outcome {
    Outcome::Failed(ApiError::Failed { status: 500, reason: "InternalError".to_owned() })
}

#[test]
fn each_failure_has_its_reason() {
    let cases = [
        (ours(1, 9), "key-version-missing"),
        (ours(2, 1), "cluster-unknown"),
        (ours(1, 2), "key-unusable"),
        (ours(1, 3), "key-not-granted"),
        (ours(1, 4), "key-version-retired"),
        (ours(1, 1), "damaged"),
        (local("k2"), "local-key-missing"),
        (local("k1"), "local-key-wrong"),
        (Origin::Foreign { api: "v2", provider: "other".to_owned() }, "other-plugin"),
        (Origin::Unknown, "unknown-format"),
        (Origin::Clear, "not-readable"),
    ];
    let report = report(cases.iter().map(|(origin, _)| (origin.clone(), failed())).collect());
    assert!(!report.ok);
    let reasons: Vec<&str> = report.unreadable_objects.iter().map(|one| one.reason).collect();
    assert_eq!(reasons, cases.each_ref().map(|(_, reason)| *reason));
    assert_eq!((report.objects, report.readable, report.unreadable), (11, 0, 11));
    assert!(report.reasons.iter().all(|row| !row.fix.is_empty() && row.objects == 1));
    let first = &report.unreadable_objects[0];
    assert_eq!((&*first.namespace, &*first.name), ("default", "s0"));
    assert_eq!(first.key.as_deref(), Some("alias/kubernetes"), "known by its lineage");
    assert_eq!(first.key_version, Some(version(9).to_string()));
    // the version that is missing, once; the one of the other cluster is there
    assert_eq!(report.missing_key_versions.len(), 1);
    let missing = &report.missing_key_versions[0];
    assert_eq!((&*missing.cluster, missing.objects), ("prod", 1));
    let expected =
        format!("11 of 11 objects cannot be read: the key version {} is missing", version(9));
    assert!(report.verdict.starts_with(&expected), "{}", report.verdict);
    assert!(report.verdict.contains("damaged") && report.verdict.contains("other-plugin"));
}

#[test]
fn what_can_be_read_is_counted_and_what_is_nothing_is_not() {
    let report = report(vec![
        (ours(1, 1), Outcome::Read),
        (Origin::Clear, Outcome::NotServed),
        (local("k1"), Outcome::Read),
        (Origin::Clear, Outcome::Read),
        // the apiserver's own bookkeeping, what nobody misses, and an event that has expired
        (Origin::Clear, Outcome::NotServed),
        (Origin::Clear, Outcome::Gone),
    ]);
    assert!(report.ok && report.unreadable_objects.is_empty() && report.reasons.is_empty());
    assert_eq!(report.verdict, "all 3 objects can be read");
    assert_eq!((report.objects, report.not_objects), (3, 2));
    let remarks = report.remarks.join("\n");
    assert!(remarks.contains("masterleases 1, podsecuritypolicy 1"), "{remarks}");
    assert!(remarks.contains("1 objects went away"), "{remarks}");
    let under = report.under.iter().find(|row| row.provider == "kms v2 lastkey").unwrap();
    assert_eq!((under.key.as_deref(), under.readable), (Some("alias/kubernetes"), 1));
    assert_eq!(under.created_at.as_deref(), Some("2026-01-01T00:00:00Z"));
}

#[test]
fn what_is_served_by_nobody_is_not_forgotten() {
    for origin in [ours(1, 1), Origin::Clear] {
        let report = report(vec![(origin, Outcome::NotServed)]);
        assert!(!report.ok);
        assert_eq!(report.unreadable_objects[0].reason, "not-served");
    }
}

#[test]
fn what_fails_for_another_reason_than_its_key_is_not_called_damaged() {
    let gone = || Outcome::Failed(ApiError::NotFound);
    let report = report(vec![(ours(1, 1), gone()), (local("k1"), gone())]);
    let reasons: Vec<&str> = report.unreadable_objects.iter().map(|one| one.reason).collect();
    assert_eq!(reasons, ["not-readable", "not-readable"]);
}

#[test]
fn a_snapshot_without_anything_of_ours_is_called_that() {
    let report = report(vec![(local("k1"), Outcome::Read), (Origin::Clear, Outcome::Read)]);
    assert!(report.ok && report.verdict.contains("none of them is encrypted by Lastkey"));
}

#[test]
fn a_snapshot_of_another_cluster_is_called_that() {
    let report = report(vec![(ours(2, 9), failed()), (Origin::Clear, Outcome::Read)]);
    let verdict = &report.verdict;
    assert!(verdict.contains("the snapshot is of another cluster"), "{verdict}");
    assert!(verdict.contains(&cluster(2).to_string()) && verdict.contains("prod ("), "{verdict}");
}
