//! What is printed for kubeadm's `ClusterConfiguration` is read back.

use serde_json::{Value, json};

use super::*;

fn parse(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

fn config() -> KubeadmConfig {
    KubeadmConfig {
        socket: "/run/lastkey/kms.sock".parse().unwrap(),
        encryption_config: "/etc/kubernetes/lastkey/encryption-config.yaml".into(),
    }
}

/// As `kubeadm.k8s.io/v1beta4` has it: arguments are a list.
#[test]
fn kubeadms_cluster_configuration() {
    let volume = |name: &str, path: &str, kind: &str| {
        json!({
            "name": name, "hostPath": path, "mountPath": path, "readOnly": true, "pathType": kind,
        })
    };
    let volumes = json!([
        volume("lastkey-config", "/etc/kubernetes/lastkey", "Directory"),
        volume("lastkey-socket", "/run/lastkey", "DirectoryOrCreate"),
    ]);
    assert_eq!(
        parse(&config().yaml().unwrap()),
        json!({
            "apiVersion": "kubeadm.k8s.io/v1beta4",
            "kind": "ClusterConfiguration",
            "apiServer": {
                "extraArgs": [
                    {
                        "name": "encryption-provider-config",
                        "value": "/etc/kubernetes/lastkey/encryption-config.yaml",
                    },
                    {"name": "encryption-provider-config-automatic-reload", "value": "true"},
                ],
                "extraVolumes": volumes,
            },
        })
    );
    // as v1beta3 has it: a map, whose values are strings
    assert_eq!(
        parse(&config().before_1_31().unwrap()),
        json!({
            "apiVersion": "kubeadm.k8s.io/v1beta3",
            "kind": "ClusterConfiguration",
            "apiServer": {
                "extraArgs": {
                    "encryption-provider-config": "/etc/kubernetes/lastkey/encryption-config.yaml",
                    "encryption-provider-config-automatic-reload": "true",
                },
                "extraVolumes": volumes,
            },
        })
    );
}

/// What other releases need is in the comments, without their signs.
#[test]
fn what_other_releases_of_kubeadm_need_is_a_comment() {
    let config = config();
    let yaml = config.yaml().unwrap();
    let (_, comments) = yaml.split_once("lines above.\n").unwrap();
    let uncommented: String = comments
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line)))
        .collect();
    assert!(uncommented.starts_with(&config.before_1_31().unwrap()), "{uncommented}");
    assert!(uncommented.ends_with(&config.probes()), "{uncommented}");
}

/// Flags and mounts are those of the patch, so that one can take the other's place; its probes are
/// all that may be given together with it.
#[test]
fn the_patch_and_the_cluster_configuration_say_the_same() {
    let config = config();
    let KubeadmConfig { socket, encryption_config } = config.clone();
    let patch = ApiserverPatch { socket, encryption_config }.json().unwrap();
    let added = |list: &str| -> Vec<&Value> {
        let operations = patch.as_array().unwrap().iter();
        operations.filter(|it| it["path"] == list).map(|it| &it["value"]).collect()
    };
    let parsed = parse(&config.yaml().unwrap());
    let server = &parsed["apiServer"];
    let flags: Vec<Value> = (server["extraArgs"].as_array().unwrap().iter())
        .map(|it| {
            let [name, value] = ["name", "value"].map(|field| it[field].as_str().unwrap());
            json!(format!("--{name}={value}"))
        })
        .collect();
    assert_eq!(flags.iter().collect::<Vec<_>>(), added("/spec/containers/0/command/-"));
    let mounts = added("/spec/containers/0/volumeMounts/-");
    let volumes = added("/spec/volumes/-");
    let extra = server["extraVolumes"].as_array().unwrap();
    assert_eq!((mounts.len(), volumes.len()), (extra.len(), extra.len()));
    for (extra, (mount, volume)) in extra.iter().zip(mounts.into_iter().zip(volumes)) {
        for field in ["name", "mountPath", "readOnly"] {
            assert_eq!(extra[field], mount[field]);
        }
        assert_eq!(extra["name"], volume["name"]);
        assert_eq!(extra["hostPath"], volume["hostPath"]["path"]);
        assert_eq!(extra["pathType"], volume["hostPath"]["type"]);
    }
    let probes = parse(&config.probes());
    for operation in probes.as_array().unwrap() {
        assert!(patch.as_array().unwrap().contains(operation), "{operation}");
        assert_eq!(operation["op"], "replace");
    }
    assert_eq!(probes.as_array().unwrap().len(), 2);
}

#[test]
fn odd_paths_and_an_abstract_socket() {
    let odd = KubeadmConfig {
        socket: "@lastkey".parse().unwrap(),
        encryption_config: "/etc/a: #\"b\"/encryption config.yaml".into(),
    };
    for yaml in [odd.yaml().unwrap(), odd.before_1_31().unwrap()] {
        let volumes = &parse(&yaml)["apiServer"]["extraVolumes"];
        assert_eq!(volumes.as_array().unwrap().len(), 1, "it needs no mount: {yaml}");
        assert_eq!(volumes[0]["hostPath"], "/etc/a: #\"b\"");
    }
    let broken = KubeadmConfig { encryption_config: "/etc/a\nb/c.yaml".into(), ..config() };
    assert!(matches!(broken.yaml(), Err(ConfigError::Control(_))));
}
