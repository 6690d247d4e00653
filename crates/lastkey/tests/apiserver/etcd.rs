//! Our reader of etcd, against a real one that admits clients by certificate.

use super::support::Lab;
use lastkey_kubernetes::cluster::{Etcd, EtcdAccess, EtcdError, Scan};
use lastkey_testbed::{Authority, Pair, Peers};
use std::collections::BTreeSet;
use zeroize::Zeroizing;

fn access(url: &str, ca: &str, client: Option<&Pair>) -> EtcdAccess {
    EtcdAccess {
        // the first one is away: the next is asked
        servers: ["https://127.0.0.1:1", url].iter().map(|url| url.parse().unwrap()).collect(),
        ca_pem: Some(ca.to_owned()),
        certificate_pem: client.map(|pair| pair.certificate.clone()),
        key_pem: client.map(|pair| Zeroizing::new(pair.key.clone())),
        prefix: "/registry".to_owned(),
    }
}

/// All keys below `/registry/things/`.
async fn read(access: &EtcdAccess) -> Result<(Scan, BTreeSet<String>), EtcdError> {
    let mut etcd = Etcd::new(access)?;
    let mut keys = BTreeSet::new();
    let visit = |key: &[u8], value: &[u8]| {
        assert_eq!(value, b"a value");
        assert!(keys.insert(String::from_utf8(key.to_vec()).unwrap()), "no key comes twice");
    };
    let scan = etcd.scan("/registry/things/", visit).await?;
    Ok((scan, keys))
}

#[test]
fn etcd_is_read_over_mutual_tls() {
    let Some(peers) = Peers::or_skip("etcd_is_read_over_mutual_tls", &["etcd"]) else { return };
    let lab = Lab::new();
    let (ca, stranger) = (Authority::new("etcd").unwrap(), Authority::new("other").unwrap());
    let etcd = lastkey_testbed::Etcd::start_secure(&peers, &lab.folder("etcd"), &ca).unwrap();
    let url = etcd.secure_url().unwrap();
    // More than two pages, with neighbours on both sides.
    let mine: BTreeSet<String> = (0..1_100).map(|n| format!("/registry/things/{n}")).collect();
    for key in &mine {
        etcd.put(key, b"a value").unwrap();
    }
    etcd.put("/registry/thing", b"another").unwrap();
    etcd.put("/registry/things0", b"another").unwrap();
    let client = ca.client("lastkey", &[]).unwrap();
    let foreign = stranger.client("lastkey", &[]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (scan, keys) = read(&access(url, ca.certificate(), Some(&client))).await.unwrap();
        assert_eq!((scan.keys, scan.moved, keys == mine), (1_100, false, true));
        // Neither without a certificate, nor with another authority's, nor of a server that we do
        // not trust.
        for wrong in [
            access(url, ca.certificate(), None),
            access(url, ca.certificate(), Some(&foreign)),
            access(url, stranger.certificate(), Some(&client)),
        ] {
            let refused = read(&wrong).await;
            assert!(matches!(refused, Err(EtcdError::Unreachable { .. })), "{refused:?}");
        }
    });
}
