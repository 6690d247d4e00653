//! What is printed and packaged for a control plane, judged by the tools that will read it: a real
//! apiserver (by server-side dry run), Helm, Prometheus and Grafana's own types.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use lastkey_testbed::Peers;
use serde_json::{Value, json};

use crate::support::{Cluster, Lab, encryption_config};

/// One server by two addresses.
const SERVERS: [&str; 2] = ["https://kms.example.org:7343", "https://10.0.0.9:7343"];
const CLUSTER: &str = "83eb9abc-da3e-494e-b0e6-96b3c401cd15";

/// A file of the project.
fn packaged(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging").join(path)
}

/// What `lastkey cluster config` prints.
fn printed(lab: &Lab, args: &[&str]) -> String {
    let servers = SERVERS.iter().flat_map(|server| ["--server", server]);
    let args: Vec<&str> = ["cluster", "config"].into_iter().chain(args.iter().copied()).collect();
    let args: Vec<&str> = args.into_iter().chain(servers).collect();
    let outcome = lab.lastkey.cli(None, &args).unwrap().expect_ok("cluster config").unwrap();
    outcome.json()["items"][0]["content"].as_str().unwrap().to_owned()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// The static pod and the chart are objects that a real apiserver would store, field by field.
#[test]
fn an_apiserver_takes_the_static_pod_and_the_chart() {
    let test = "an_apiserver_takes_the_static_pod_and_the_chart";
    let wanted = ["etcd", "kube-apiserver-1.37.0", "kubectl", "helm"];
    let Some(peers) = Peers::or_skip(test, &wanted) else { return };
    let lab = Lab::new();
    let config = encryption_config(&lab.path("none.yaml"), "  - identity: {}\n").unwrap();
    let cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", &config);
    let dry_run = |name: &str, manifest: &str| {
        let file = lab.path(name);
        fs::write(&file, manifest).unwrap();
        Command::new(peers.path("kubectl"))
            .args(["apply", "--server-side", "--dry-run=server", "--validate=strict", "--filename"])
            .arg(&file)
            .arg("--kubeconfig")
            .arg(cluster.apiserver.kubeconfig())
            .output()
            .unwrap()
    };
    let pods = [
        ("files.yaml", printed(&lab, &["static-pod"])),
        ("enrolled.yaml", printed(&lab, &["static-pod", "--enrol", CLUSTER])),
        ("chart.yaml", chart(&lab, &peers)),
    ];
    for (name, manifest) in &pods {
        assert!(SERVERS.iter().all(|server| manifest.contains(server)), "{name}: {manifest}");
        let output = dry_run(name, manifest);
        assert!(output.status.success(), "{name}: {}", said(&output));
    }
    // The control: it would have said so.
    let wrong = pods[0].1.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem");
    let output = dry_run("wrong.yaml", &wrong);
    assert!(!output.status.success() && said(&output).contains("readOnlyRootFileSystem"));
}

/// The chart as Helm renders it, after Helm's linter.
fn chart(lab: &Lab, peers: &Peers) -> String {
    let chart = packaged("helm/lastkey-kms-plugin");
    let helm = |verb: &[&str], values: &[&str]| {
        let mut command = Command::new(peers.path("helm"));
        command.args(verb).arg(&chart).args(["--kube-version", "1.37.0"]);
        for value in values {
            command.args(["--set", value]);
        }
        // nothing of whoever runs the tests
        for folder in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            command.env(folder, lab.path("helm"));
        }
        command.output().unwrap()
    };
    let servers = format!("servers={{{}}}", SERVERS.join(","));
    let cluster = format!("cluster={CLUSTER}");
    let lint = helm(&["lint", "--strict"], &[&servers, &cluster]);
    assert!(lint.status.success(), "{}", said(&lint));
    // What it cannot do without is asked for.
    let bare = helm(&["template", "lastkey-kms-plugin"], &[&servers]);
    assert!(!bare.status.success() && said(&bare).contains("cluster list"), "{}", said(&bare));
    // An image that would be looked for at docker.io is refused; of two others, one is never pulled.
    for (image, policy) in [
        ("lastkey:1", None),
        ("acme/lastkey:1", None),
        ("localhost/lastkey:1", Some("Never")),
        ("registry.example.org/lastkey:1", Some("IfNotPresent")),
    ] {
        let named = format!("image={image}");
        let rendered = helm(&["template", "lastkey-kms-plugin"], &[&servers, &cluster, &named]);
        let (is_good, said) = (rendered.status.success(), said(&rendered));
        assert_eq!(is_good, policy.is_some(), "{image}: {said}");
        let line = policy.map_or("registry".to_owned(), |it| format!("imagePullPolicy: {it}\n"));
        assert!(said.contains(&line), "{image}: {said}");
    }
    nodes_of_the_chart(&|values| helm(&["template", "lastkey-kms-plugin"], values), &servers);
    // What is printed for it is all that it needs.
    let values = lab.path("values.yaml");
    fs::write(&values, printed(lab, &["helm", "--enrol", CLUSTER])).unwrap();
    let filled = ["template", "lastkey-kms-plugin", "--values", values.to_str().unwrap()];
    let rendered = helm(&filled, &[]);
    assert!(rendered.status.success(), "{}", said(&rendered));
    String::from_utf8(rendered.stdout).unwrap()
}

/// It runs wherever the label of a control plane is, whatever its value; kubeadm's is empty, that of k3s
/// and RKE2 is `true`. A kubelet's key in a directory of its own is mounted.
fn nodes_of_the_chart(template: &dyn Fn(&[&str]) -> Output, servers: &str) {
    let cluster = format!("cluster={CLUSTER}");
    let rendered = |values: &[&str]| -> String {
        let output = template(&[&[servers, &cluster], values].concat());
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let plain = rendered(&[]);
    let exists = "- key: node-role.kubernetes.io/control-plane\n                operator: Exists\n";
    assert!(plain.contains(exists) && !plain.contains("nodeSelector:"), "{plain}");
    assert!(plain.contains("tolerations:\n        - operator: Exists\n"), "{plain}");
    let labelled = rendered(&["affinity=null", "nodeSelector.role=cp"]);
    assert!(labelled.contains("nodeSelector:\n        role: cp\n"), "{labelled}");
    assert!(!labelled.contains("affinity:"), "{labelled}");
    let everywhere = template(&[servers, &cluster, "affinity=null"]);
    assert!(!everywhere.status.success() && said(&everywhere).contains("nodeSelector"));

    let beside = rendered(&["kubelet.key=/var/lib/kubelet/pki/kubelet.key"]);
    assert!(!beside.contains("name: kubelet-key"), "{beside}");
    let apart = rendered(&["kubelet.key=/elsewhere/kubelet.key"]);
    for part in [
        "- name: kubelet-key\n              mountPath: \"/elsewhere\"\n              readOnly: true\n",
        "- name: kubelet-key\n          hostPath:\n            path: \"/elsewhere\"\n",
    ] {
        assert!(apart.contains(part), "{part}\n{apart}");
    }
}

/// Each rule fires when it should and only then, from metrics that are missing at first or at last; the
/// page lists the rules that there are.
#[test]
fn the_rules_fire_when_they_should() {
    let path = packaged("prometheus/lastkey.rules.yaml");
    let rules = fs::read_to_string(&path).unwrap();
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
    let page = fs::read_to_string(page).unwrap();
    let listed: Vec<&str> = (page.lines())
        .filter(|line| line.starts_with("| `Lastkey"))
        .filter_map(|line| line.split('`').nth(1))
        .collect();
    let named: Vec<&str> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(named.len() > 15, "{named:?}");
    assert_eq!(listed, named, "docs/metrics.md lists the rules in their order");

    let test = "the_rules_fire_when_they_should";
    let Some(peers) = Peers::or_skip(test, &["promtool"]) else { return };
    let try_in = |folder: &Path| {
        let mut promtool = Command::new(peers.path("promtool"));
        let tests = folder.join("lastkey.rules.tests.yaml");
        promtool.args(["test", "rules"]).arg(tests).output().unwrap()
    };
    let output = try_in(path.parent().unwrap());
    assert!(output.status.success(), "{}", said(&output));
    // The control: a rule that is never true.
    let lab = Lab::new();
    let was = "present_over_time(lastkey_plugin_usable[6h])";
    assert!(rules.contains(was));
    fs::write(lab.path("lastkey.rules.yaml"), rules.replace(was, "lastkey_plugin_usable")).unwrap();
    let tests = packaged("prometheus/lastkey.rules.tests.yaml");
    fs::copy(tests, lab.path("lastkey.rules.tests.yaml")).unwrap();
    let output = try_in(&lab.path(""));
    assert!(!output.status.success(), "{}", said(&output));
    assert!(said(&output).contains("LastkeyPluginGone"), "{}", said(&output));
}

/// Prometheus takes the rules, and each query of the board.
#[test]
fn prometheus_takes_the_rules_and_the_boards_queries() {
    let test = "prometheus_takes_the_rules_and_the_boards_queries";
    let Some(peers) = Peers::or_skip(test, &["promtool"]) else { return };
    let lab = Lab::new();
    let check = |name: &str, rules: &str| {
        let file = lab.path(name);
        fs::write(&file, rules).unwrap();
        Command::new(peers.path("promtool")).args(["check", "rules"]).arg(&file).output().unwrap()
    };
    let alerts = check("alerts.yaml", &printed(&lab, &["alerts"]));
    assert!(alerts.status.success(), "{}", said(&alerts));
    let board: Value = serde_json::from_str(&printed(&lab, &["dashboard"])).unwrap();
    let mut queries = Vec::new();
    collect(&board, "expr", &mut queries);
    assert!(queries.len() > 5, "{queries:?}");
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(number, query)| {
            let query = query.replace("$__rate_interval", "5m").replace("$__range", "1h");
            json!({"record": format!("board:query:{number}"), "expr": query})
        })
        .collect();
    let wrong = json!({"record": "board:query:wrong", "expr": "rate(lastkey_plugin_calls_total)"});
    let group =
        |rules: &[Value]| json!({"groups": [{"name": "board", "rules": rules}]}).to_string();
    let output = check("board.yaml", &group(&rules));
    assert!(output.status.success(), "{}", said(&output));
    // The control.
    assert!(!check("wrong.yaml", &group(&[wrong])).status.success());
}

/// Everything that is called so, at any depth.
fn collect(value: &Value, name: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(name).and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| collect(field, name, found));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, name, found)),
        _ => {}
    }
}

/// The board is a value of Grafana's own type, with no field that the type does not have.
#[test]
fn grafana_takes_the_board() {
    let test = "grafana_takes_the_board";
    let Some(peers) = Peers::or_skip(test, &["grafana"]) else { return };
    let lab = Lab::new();
    let modules = peers.path("grafana");
    std::os::unix::fs::symlink(&modules, lab.path("node_modules")).unwrap();
    let compile = |name: &str, board: &str| {
        let file = lab.path(name);
        // JSON has no enums: their values will do.
        let text = format!(
            "import type {{ Dashboard }} from '@grafana/schema';\n\
             type Plain<T> = T extends string ? `${{T}}`\n\
             \x20 : T extends object ? {{ [K in keyof T]: Plain<T[K]> }} : T;\n\
             export const board: Plain<Dashboard> = {board};\n"
        );
        fs::write(&file, text).unwrap();
        Command::new("node")
            .arg(modules.join("typescript/bin/tsc"))
            .args(["--noEmit", "--strict", "--skipLibCheck", "--target", "es2022"])
            .args(["--module", "esnext", "--moduleResolution", "bundler"])
            .arg(&file)
            .current_dir(lab.path(""))
            .output()
            .unwrap()
    };
    let board = printed(&lab, &["dashboard"]);
    let output = compile("board.ts", &board);
    assert!(output.status.success(), "{}", said(&output));
    // The control.
    let wrong = board.replacen("\"gridPos\"", "\"gridPosition\"", 1);
    assert!(!compile("wrong.ts", &wrong).status.success());
}
