//! What is printed is read back.

use serde_json::{Value, json};

use super::*;

/// As `packaging/oci/build-image.sh` names one.
const IMAGE: &str = "localhost/lastkey:0.1.0";

fn parse(yaml: &str) -> Value {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

fn path_socket() -> SocketAddress {
    "/run/lastkey/kms.sock".parse().unwrap()
}

fn command() -> PluginCommand {
    PluginCommand {
        key: "alias/kubernetes".into(),
        servers: vec!["https://kms:7343".into(), "https://10.0.0.9:7343".into()],
        socket: path_socket(),
        identity: Identity::Files("/etc/lastkey".into()),
        state: "/var/lib/lastkey-kms-plugin".into(),
        metrics: None,
    }
}

fn enrolled() -> PluginCommand {
    let identity = Identity::Enrolled {
        cluster: "83eb9abc-da3e-494e-b0e6-96b3c401cd15".into(),
        ca: "/etc/lastkey/ca.pem".into(),
        kubelet: "/var/lib/kubelet/pki/kubelet-client-current.pem".into(),
        kubelet_key: None,
    };
    PluginCommand { identity, metrics: Some(([127, 0, 0, 1], 9099).into()), ..command() }
}

#[test]
fn encryption_configuration() {
    let config = EncryptionConfig::new(path_socket());
    assert_eq!(
        parse(&config.yaml().unwrap()),
        json!({
            "apiVersion": "apiserver.config.k8s.io/v1",
            "kind": "EncryptionConfiguration",
            "resources": [{
                "resources": ["secrets"],
                "providers": [
                    {"kms": {
                        "apiVersion": "v2",
                        "name": "lastkey",
                        "endpoint": "unix:///run/lastkey/kms.sock",
                        "timeout": "3s",
                    }},
                    {"identity": {}},
                ],
            }],
        })
    );
}

#[test]
fn an_abstract_socket_and_more_resources() {
    let config = EncryptionConfig {
        resources: vec!["secrets".into(), "configmaps".into(), "widgets.example.org".into()],
        version: KmsVersion::V1,
        ..EncryptionConfig::new("@lastkey".parse().unwrap())
    };
    let parsed = parse(&config.yaml().unwrap());
    assert_eq!(parsed["resources"][0]["resources"][2], "widgets.example.org");
    let kms = &parsed["resources"][0]["providers"][0]["kms"];
    assert_eq!((&kms["endpoint"], &kms["apiVersion"]), (&json!("unix:///@lastkey"), &json!("v1")));
}

#[test]
fn odd_paths_survive_the_quoting() {
    for path in ["/run/a b/kms.sock", "/run/a: #\"b\"/k'ms.sock", "/run/\\x/ü.sock"] {
        let config = EncryptionConfig::new(path.parse().unwrap());
        let parsed = parse(&config.yaml().unwrap());
        let endpoint = &parsed["resources"][0]["providers"][0]["kms"]["endpoint"];
        let socket: SocketAddress = endpoint.as_str().unwrap().parse().unwrap();
        assert_eq!(socket, SocketAddress::Path(path.into()));
    }
}

#[test]
fn what_an_apiserver_refuses_is_refused_here() {
    let with = |change: &dyn Fn(&mut EncryptionConfig)| {
        let mut config = EncryptionConfig::new(path_socket());
        change(&mut config);
        config.yaml()
    };
    for name in ["", "a:b", "Lastkey", "a b"] {
        assert!(with(&|config| config.provider = name.into()).is_err(), "{name:?}");
    }
    for resources in [
        &[][..],
        &[""],
        &["Secrets"],
        &["*"],
        &["sec*"],
        &["secrets", "secrets"],
        &["events.events.k8s.io"],
        &["ingresses.extensions"],
        &["deployments.apps", "*.apps"],
        &["secrets", "*.*"],
        // taken by an apiserver, and never matched
        &["secret"],
        &["deployments"],
        &["secrets.v1"],
        &["secrets", "deployment.apps"],
        // refused when it starts
        &["widgets.*"],
        &["serviceipallocations"],
        &["secrets", "secrets."],
        &["secrets", "*."],
        &["secrets\u{2028}"],
    ] {
        let set = |config: &mut EncryptionConfig| {
            config.resources = resources.iter().map(|&it| it.into()).collect();
        };
        for version in [KmsVersion::V2, KmsVersion::V1] {
            let printed = with(&|config| {
                set(config);
                config.version = version;
            });
            assert!(printed.is_err(), "{resources:?}");
        }
    }
    for (resources, leaves) in [
        (&["*.*"][..], false),
        (&["*."], false),
        (&["*.apps", "secrets"], false),
        (&["secrets."], false),
        (&["events"], true),
        (&["*.apps", "widgets.example.org"], true),
    ] {
        for version in [KmsVersion::V2, KmsVersion::V1] {
            let config = EncryptionConfig {
                resources: resources.iter().map(|&it| it.into()).collect(),
                version,
                ..EncryptionConfig::new(path_socket())
            };
            assert!(config.yaml().is_ok(), "{resources:?}: {:?}", config.yaml());
            assert_eq!(config.leaves_secrets(), leaves, "{resources:?}");
        }
    }
    let said = with(&|config| config.resources = vec!["deployment.apps".into()]).unwrap_err();
    assert!(said.to_string().contains("write `deployments.apps`"), "{said}");
    assert!(with(&|config| config.socket = SocketAddress::Path("relative".into())).is_err());
    assert!(with(&|config| config.socket = SocketAddress::Path("/@a".into())).is_err());
}

#[test]
fn static_pod() {
    let pod = StaticPod { command: command(), image: IMAGE.into() };
    let parsed = parse(&pod.yaml().unwrap());
    assert_eq!(parsed["kind"], "Pod");
    let container = &parsed["spec"]["containers"][0];
    assert_eq!(
        container["args"],
        json!([
            "kms-plugin",
            "--socket",
            "/run/lastkey/kms.sock",
            "--key",
            "alias/kubernetes",
            "--server",
            "https://kms:7343",
            "--server",
            "https://10.0.0.9:7343",
            "--client-cert",
            "/etc/lastkey/plugin.pem",
            "--client-key",
            "/etc/lastkey/plugin.key",
            "--ca-file",
            "/etc/lastkey/ca.pem",
            "--state-dir",
            "/var/lib/lastkey-kms-plugin",
            "--supervise",
        ])
    );
    let paths = ["/run/lastkey", "/var/lib/lastkey-kms-plugin", "/etc/lastkey"];
    for (at, path) in paths.into_iter().enumerate() {
        assert_eq!(container["volumeMounts"][at]["mountPath"], path);
        assert_eq!(parsed["spec"]["volumes"][at]["hostPath"]["path"], path);
        let names =
            (&container["volumeMounts"][at]["name"], &parsed["spec"]["volumes"][at]["name"]);
        assert_eq!(names.0, names.1);
    }
    assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(
        (&container["image"], &container["imagePullPolicy"]),
        (&json!(IMAGE), &json!("Never"))
    );

    let pod = StaticPod { command: enrolled(), image: IMAGE.into() };
    let parsed = parse(&pod.yaml().unwrap());
    let mounts = &parsed["spec"]["containers"][0]["volumeMounts"];
    assert_eq!(mounts[3]["mountPath"], "/var/lib/kubelet/pki");
    assert_eq!((&mounts[1]["readOnly"], &mounts[3]["readOnly"]), (&Value::Null, &json!(true)));

    let identity = PluginCommand { identity: Identity::Files("/etc/a\nb".into()), ..command() };
    let pod = StaticPod { command: identity, image: IMAGE.into() };
    assert!(matches!(pod.yaml(), Err(ConfigError::Control(_))));

    let command = PluginCommand { socket: "@lastkey".parse().unwrap(), ..command() };
    let pod = StaticPod { command, image: IMAGE.into() };
    assert_eq!(pod.yaml(), Err(ConfigError::NeedsPath));
}

/// No apiserver takes a pod with two mounts at one path.
#[test]
fn a_directory_of_use_for_two_things_is_mounted_once() {
    let in_one = |socket: &str, identity: Identity| PluginCommand {
        socket: socket.parse().unwrap(),
        identity,
        ..command()
    };
    let Identity::Enrolled { cluster, ca, kubelet, .. } = enrolled().identity else {
        panic!("it enrols");
    };
    let by = |kubelet: PathBuf, kubelet_key: Option<PathBuf>| Identity::Enrolled {
        cluster: cluster.clone(),
        ca: ca.clone(),
        kubelet,
        kubelet_key,
    };
    for (command, paths) in [
        (
            in_one("/etc/lastkey/kms.sock", Identity::Files("/etc/lastkey/".into())),
            &["/etc/lastkey", "/var/lib/lastkey-kms-plugin"][..],
        ),
        (
            in_one("/etc/lastkey/kms.sock", by("/etc/lastkey/x.pem".into(), None)),
            &["/etc/lastkey", "/var/lib/lastkey-kms-plugin"],
        ),
        (
            in_one("/run/lastkey/kms.sock", by(kubelet, Some("/etc/lastkey/x.key".into()))),
            &[
                "/run/lastkey",
                "/var/lib/lastkey-kms-plugin",
                "/etc/lastkey",
                "/var/lib/kubelet/pki",
            ],
        ),
    ] {
        let pod =
            parse(&StaticPod { command: command.clone(), image: IMAGE.into() }.yaml().unwrap());
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
        let volumes = pod["spec"]["volumes"].as_array().unwrap();
        let mounted: Vec<_> = mounts.iter().map(|mount| mount["mountPath"].clone()).collect();
        assert_eq!(mounted, paths);
        assert_eq!(volumes.len(), paths.len());
        // It listens there, and that may have to be made.
        assert_eq!(mounts[0]["readOnly"], Value::Null);
        assert_eq!(volumes[0]["hostPath"]["type"], "DirectoryOrCreate");
        // The chart has a mount for each.
        if matches!(command.identity, Identity::Enrolled { .. }) {
            let said = HelmValues { command, image: IMAGE.into() }.yaml();
            assert_eq!(said, Err(ConfigError::Shared("/etc/lastkey".into())));
        }
    }
}

#[test]
fn systemd_units() {
    let units = SystemdUnits { command: command(), binary: "/usr/local/bin/lastkey".into() };
    let line = |text: &str, name: &str| {
        let start = format!("{name}=");
        text.lines().find_map(|line| line.strip_prefix(&start)).map(str::to_owned)
    };
    let socket = units.socket().unwrap();
    assert_eq!(line(&socket, "ListenStream").unwrap(), "/run/lastkey/kms.sock");
    assert_eq!(line(&socket, "SocketMode").unwrap(), "0600");
    let service = units.service().unwrap();
    assert_eq!(
        line(&service, "ExecStart").unwrap(),
        "/usr/local/bin/lastkey kms-plugin --socket /run/lastkey/kms.sock --key alias/kubernetes \
         --server https://kms:7343 --server https://10.0.0.9:7343 \
         --client-cert /etc/lastkey/plugin.pem --client-key /etc/lastkey/plugin.key \
         --ca-file /etc/lastkey/ca.pem --state-dir /var/lib/lastkey-kms-plugin"
    );
    assert_eq!(line(&service, "Type").unwrap(), "notify");
    assert_eq!(line(&service, "ExecReload").unwrap(), "/bin/kill -USR2 $MAINPID");
    assert_eq!(line(&service, "StateDirectory").unwrap(), "lastkey-kms-plugin");
    assert_eq!(line(&service, "ReadWritePaths").unwrap(), "/etc/lastkey");
    assert_eq!(line(&service, "Requires").unwrap(), "lastkey-kms-plugin.socket");

    let units = SystemdUnits { command: enrolled(), binary: "/usr/local/bin/lastkey".into() };
    let service = units.service().unwrap();
    assert_eq!(line(&service, "ReadWritePaths"), None);
    assert!(line(&service, "ExecStart").unwrap().ends_with(
        "--cluster 83eb9abc-da3e-494e-b0e6-96b3c401cd15 --ca-file /etc/lastkey/ca.pem \
         --kubelet-cert /var/lib/kubelet/pki/kubelet-client-current.pem \
         --state-dir /var/lib/lastkey-kms-plugin --metrics-listen 127.0.0.1:9099 --enrol"
    ));

    let odd = PluginCommand { identity: Identity::Files("/etc/a b/$x%".into()), ..command() };
    let units = SystemdUnits { command: odd, binary: "lastkey".into() };
    let service = units.service().unwrap();
    assert!(service.contains(" --ca-file \"/etc/a b/$$x%%/ca.pem\" --state-dir"), "{service}");
    // There a variable is none, and a dollar sign is one.
    assert_eq!(line(&service, "ReadWritePaths").unwrap(), "\"/etc/a b/$x%%\"");
    let odd = PluginCommand { state: "/var/$x%".into(), ..enrolled() };
    let service = SystemdUnits { command: odd, binary: "lastkey".into() }.service().unwrap();
    assert_eq!(line(&service, "ReadWritePaths").unwrap(), "\"/var/$x%%\"");
}

/// systemd's own linter, where the machine has it, has nothing to say about the units.
#[test]
fn systemd_takes_the_units() {
    let directory = tempfile::tempdir().unwrap();
    for (name, command) in [("files", command()), ("enrolled", enrolled())] {
        let place = directory.path().join(name);
        std::fs::create_dir(&place).unwrap();
        // it looks whether the program is there
        let units = SystemdUnits { command, binary: "/bin/sh".into() };
        let service = place.join("lastkey-kms-plugin.service");
        std::fs::write(&service, units.service().unwrap()).unwrap();
        let socket = place.join("lastkey-kms-plugin.socket");
        std::fs::write(&socket, units.socket().unwrap()).unwrap();
        let verify = std::process::Command::new("systemd-analyze")
            .args(["verify", "--man=no", "--recursive-errors=no"])
            .args([&service, &socket])
            .output();
        let Ok(output) = verify else {
            use std::io::Write as _;
            let text = b"\n!!!!  SKIPPED systemd_takes_the_units: there is no systemd-analyze\n";
            return std::io::stderr().write_all(text).unwrap();
        };
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && !said.contains("lastkey-kms-plugin"), "{said}");
    }
}

/// k3s has the kubelet's key in a file of its own.
fn on_k3s(key: &str) -> PluginCommand {
    let Identity::Enrolled { cluster, ca, .. } = enrolled().identity else {
        panic!("it enrols");
    };
    let kubelet = "/var/lib/rancher/k3s/agent/client-kubelet.crt".into();
    let identity = Identity::Enrolled { cluster, ca, kubelet, kubelet_key: Some(key.into()) };
    PluginCommand { identity, ..enrolled() }
}

#[test]
fn a_kubelets_key_in_a_file_of_its_own() {
    let beside = on_k3s("/var/lib/rancher/k3s/agent/client-kubelet.key");
    let words = beside.arguments().join(" ");
    assert!(words.contains(" --kubelet-key /var/lib/rancher/k3s/agent/client-kubelet.key "));
    let mounts = |command: PluginCommand| {
        let pod = StaticPod { command, image: IMAGE.into() }.yaml().unwrap();
        parse(&pod)["spec"]["volumes"].as_array().unwrap().len()
    };
    assert_eq!(mounts(beside) + 1, mounts(on_k3s("/elsewhere/kubelet.key")), "a mount of its own");
}

#[test]
fn values_of_the_chart() {
    let command = on_k3s("/var/lib/rancher/k3s/agent/client-kubelet.key");
    let values = HelmValues { command: command.clone(), image: IMAGE.into() };
    let values = parse(&values.yaml().unwrap());
    assert_eq!(values["servers"], json!(command.servers));
    assert_eq!(values["kubelet"]["key"], "/var/lib/rancher/k3s/agent/client-kubelet.key");
    assert_eq!((&values["image"], &values["key"]), (&json!(IMAGE), &json!(command.key)));
    // every value is one that the chart knows
    let chart = include_str!("../../../../packaging/helm/lastkey-kms-plugin/values.yaml");
    let known = parse(chart);
    for name in values.as_object().unwrap().keys() {
        assert!(known.get(name).is_some(), "{name}");
    }
    let files = HelmValues { command: self::command(), image: IMAGE.into() };
    assert_eq!(files.yaml(), Err(ConfigError::NeedsEnrolment));
}

/// A name is one that containerd keeps and a kubelet looks for alike.
#[test]
fn an_image_is_named_with_its_registry_and_tag() {
    let pod = |image: &str| StaticPod { command: command(), image: image.into() }.yaml();
    let values = |image: &str| HelmValues { command: enrolled(), image: image.into() }.yaml();
    for (image, policy) in [
        ("localhost/lastkey:0.1.0", "Never"),
        ("registry.example.org/team/lastkey:1", "IfNotPresent"),
        ("registry:5000/lastkey@sha256:00", "IfNotPresent"),
        ("docker.io/acme/lastkey:1", "IfNotPresent"),
    ] {
        let pod = parse(&pod(image).unwrap());
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            (&container["image"], &container["imagePullPolicy"]),
            (&json!(image), &json!(policy))
        );
        assert_eq!(parse(&values(image).unwrap())["image"], image);
    }
    for image in [
        "",
        "lastkey",
        "lastkey:0.1.0",
        "library/lastkey:0.1.0",
        "acme/lastkey:0.1.0",
        "localhost/lastkey",
        "localhost/",
        "registry:5000/lastkey",
        "localhost/last key:1",
        "localhost/lastkey:1\n",
    ] {
        for printed in [pod(image), values(image)] {
            assert!(matches!(printed, Err(ConfigError::Image { .. })), "{image:?}: {printed:?}");
        }
    }
}

#[test]
fn k3s_configuration() {
    let config = K3sConfig { encryption_config: "/etc/lastkey/encryption config.yaml".into() };
    let yaml = config.yaml().unwrap();
    assert_eq!(
        parse(&yaml),
        json!({"kube-apiserver-arg+": [
            "encryption-provider-config=/etc/lastkey/encryption config.yaml",
            "encryption-provider-config-automatic-reload=true",
        ]})
    );
    // What RKE2 takes instead is the comment without its signs.
    let rke2 = Rke2Config { encryption_config: config.encryption_config, socket: path_socket() };
    let (_, comment) = yaml.split_once("/run/lastkey.\n").unwrap();
    let lines: String =
        comment.lines().map(|line| format!("{}\n", line.strip_prefix('#').unwrap())).collect();
    assert_eq!(lines, rke2.yaml().unwrap());
}

/// A rename of the file reaches RKE2's apiserver only where no file of the node has the path that is
/// in the argument; RKE2 mounts such a file by itself, over any directory.
#[test]
fn rke2_configuration() {
    let config = Rke2Config {
        encryption_config: "/etc/kubernetes/lastkey/encryption-config.yaml".into(),
        socket: "/srv/kms/lastkey.sock".parse().unwrap(),
    };
    let yaml = config.yaml().unwrap();
    assert_eq!(
        parse(&yaml),
        json!({
            "kube-apiserver-arg+": [
                "encryption-provider-config=/lastkey/encryption-config.yaml",
                "encryption-provider-config-automatic-reload=true",
            ],
            "kube-apiserver-extra-mount+": [
                "/etc/kubernetes/lastkey:/lastkey:ro",
                "/srv/kms:/srv/kms:ro",
            ],
        })
    );
    let abstract_socket = Rke2Config { socket: "@lastkey".parse().unwrap(), ..config.clone() };
    let mounts = &parse(&abstract_socket.yaml().unwrap())["kube-apiserver-extra-mount+"];
    assert_eq!(mounts.as_array().unwrap().len(), 1);
    let colon = Rke2Config { socket: "/run/a:b/kms.sock".parse().unwrap(), ..config };
    assert_eq!(colon.yaml(), Err(ConfigError::Colon("/run/a:b".into())));
}

/// What the page says for RKE2 is what is printed.
#[test]
fn the_page_has_what_rke2_needs() {
    let page = include_str!("../../../../docs/kubernetes.md");
    let config = Rke2Config {
        encryption_config: "/etc/kubernetes/lastkey/encryption-config.yaml".into(),
        socket: path_socket(),
    };
    assert!(page.contains(&config.yaml().unwrap()));
}

/// Applies the patch to what kubeadm writes, by the rules of RFC 6902 as far as it uses them.
#[test]
fn kubeadm_patch() {
    let patch = ApiserverPatch {
        socket: path_socket(),
        encryption_config: "/etc/kubernetes/lastkey/encryption-config.yaml".into(),
    };
    let parsed = parse(&patch.yaml().unwrap());
    assert_eq!(parsed, patch.json().unwrap());
    let mut pod = json!({"spec": {
        "containers": [{
            "command": ["kube-apiserver"],
            "livenessProbe": {"httpGet": {"path": "/livez"}},
            "startupProbe": {"httpGet": {"path": "/livez"}},
            "volumeMounts": [],
        }],
        "volumes": [],
    }});
    for operation in parsed.as_array().unwrap() {
        let path = operation["path"].as_str().unwrap();
        match (operation["op"].as_str().unwrap(), path.strip_suffix("/-")) {
            ("add", Some(list)) => pod
                .pointer_mut(list)
                .and_then(Value::as_array_mut)
                .unwrap()
                .push(operation["value"].clone()),
            ("replace", None) => *pod.pointer_mut(path).unwrap() = operation["value"].clone(),
            other => panic!("{other:?}"),
        }
    }
    let container = &pod["spec"]["containers"][0];
    assert_eq!(
        container["command"],
        json!([
            "kube-apiserver",
            "--encryption-provider-config=/etc/kubernetes/lastkey/encryption-config.yaml",
            "--encryption-provider-config-automatic-reload=true",
        ])
    );
    for probe in ["livenessProbe", "startupProbe"] {
        assert_eq!(container[probe]["httpGet"]["path"], "/livez?exclude=kms-providers");
    }
    assert_eq!(container["volumeMounts"][0]["mountPath"], "/etc/kubernetes/lastkey");
    assert_eq!(container["volumeMounts"][1]["mountPath"], "/run/lastkey");
    assert_eq!(pod["spec"]["volumes"][1]["hostPath"]["path"], "/run/lastkey");
}
