//! Many: apiservers that share an etcd, Secrets beyond what a cache holds. What the server had to
//! do for them is said by its own metrics.
//!
//! `LASTKEY_TEST_SECRETS` sets how many Secrets there are; what is usual fits into CI.

use std::{
    ffi::OsStr,
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use lastkey_testbed::{
    Apiserver, ApiserverOptions, Client, Encrypted, Etcd, Running, eventually, free_port,
};

use crate::{
    NEW_KEY_ID, key_config, late,
    nodes::{Plugin, Town},
    peers,
    support::{Cluster, KEY, Lab, SOON, Split, plugin_options, value_of},
};

/// An apiserver asks for the key id once in this time.
const PROBE: Duration = Duration::from_secs(60);
/// What a busy machine may be late.
const SLACK: Duration = Duration::from_secs(30);
/// Requests at once.
const HANDS: usize = 4;

/// A control-plane node: a plugin that its kubelet's certificate enrolled, and an apiserver.
struct Node {
    plugin: Plugin,
    apiserver: Apiserver,
    /// The key ids that its writes were stored under, in order.
    writes: Vec<String>,
}

#[test]
fn three_apiservers_follow_a_rotation_together() {
    let Some(peers) = peers("three_apiservers_follow_a_rotation_together", "1.37.0") else {
        return;
    };
    let town = Town::new();
    let etcd = Etcd::start(&peers, &town.lab.folder("etcd")).unwrap();
    let mut nodes: Vec<Node> = ["cp-1", "cp-2", "cp-3"]
        .map(|name| {
            town.cli(&["cluster", "node", "approve", name, "--cluster", "prod"]);
            let mut plugin = town.plugin(name, &town.kubelet(name));
            plugin.until_ready();
            let config = key_config(&town.lab.path(&format!("{name}.yaml")), "v2", &plugin.socket);
            let options =
                ApiserverOptions { version: "1.37.0", encryption_config: &config, flags: &[] };
            let apiserver =
                Apiserver::start(&peers, &etcd, &town.lab.folder(name), &options).unwrap();
            Node { plugin, apiserver, writes: Vec::new() }
        })
        .into();
    // 1. One key id for all of them; each reads what the others wrote.
    let old = agreed(&nodes).expect("the plugins agree");
    write_everywhere(&mut nodes, &etcd, "before");
    let first = nodes[0].writes[0].clone();
    assert!(nodes.iter().all(|node| node.writes == [first.clone()]), "one key id everywhere");
    // 2. Rotate. Every plugin knows at once.
    let rotated = now();
    town.cli(&["key", "rotate", KEY]);
    let new = eventually("the plugins agree on the new key id", SOON, || {
        agreed(&nodes).filter(|hash| *hash != old).ok_or("not yet")
    })
    .unwrap();
    let heard = now();
    // 3. Every apiserver follows with its next question, while all of them write and read.
    let mut round = 0;
    eventually("all apiservers write under the new key id", NEW_KEY_ID, || {
        round += 1;
        write_everywhere(&mut nodes, &etcd, &format!("round-{round}"));
        thread::sleep(Duration::from_millis(500));
        match nodes.iter().all(|node| node.writes.last() != Some(&first)) {
            true => Ok(()),
            false => Err("not yet"),
        }
    })
    .unwrap();
    for (number, node) in nodes.iter().enumerate() {
        let told = |hash: &str| last_told(&node.apiserver, hash);
        let (with_old, with_new) = (told(&old).unwrap_or_default(), told(&new).unwrap());
        let took = with_new - rotated;
        eprintln!("apiserver {number}: told the new key id after {took:.1} s");
        assert!(took <= (PROBE + SLACK).as_secs_f64(), "apiserver {number}: after {took} s");
        assert!(with_old <= heard, "apiserver {number} was told the old one afterwards");
    }
    // 4. Nothing flips back, whoever is started anew.
    nodes[1].plugin.restart();
    nodes[1].plugin.until_ready();
    nodes[2].apiserver.restart().unwrap();
    for round in 0..5 {
        write_everywhere(&mut nodes, &etcd, &format!("after-{round}"));
    }
    assert_eq!(agreed(&nodes), Some(new));
    for (number, node) in nodes.iter().enumerate() {
        let mut ids = node.writes.clone();
        ids.dedup();
        assert_eq!(ids.len(), 2, "apiserver {number} went from the old to the new: {ids:?}");
        assert_eq!(node.writes.last(), nodes[0].writes.last(), "apiserver {number}");
    }
}

/// Writes a Secret through each apiserver, which the next one reads.
fn write_everywhere(nodes: &mut [Node], etcd: &Etcd, prefix: &str) {
    for at in 0..nodes.len() {
        let name = format!("{prefix}-{at}");
        let answer = nodes[at].apiserver.create_secret(&name, &value_of(&name)).unwrap();
        answer.expect_ok("a write").unwrap();
        let stored = etcd.get(&Apiserver::etcd_path(&name)).unwrap().unwrap();
        nodes[at].writes.push(Encrypted::parse(&stored.bytes).unwrap().key_id);
        let next = &nodes[(at + 1) % nodes.len()].apiserver;
        assert_eq!(next.secret_value(&name).unwrap(), value_of(&name));
    }
}

/// The key id's hash that all plugins show, if it is one.
fn agreed(nodes: &[Node]) -> Option<String> {
    let hash = |node: &Node| {
        let text = node.plugin.metrics()?;
        let line = text.lines().find(|line| line.starts_with("lastkey_plugin_key_id_hash_info"))?;
        Some(line.split('"').nth(1)?.to_owned())
    };
    let hashes: Vec<_> = nodes.iter().map(hash).collect();
    hashes[0].clone().filter(|first| hashes.iter().all(|hash| hash.as_ref() == Some(first)))
}

/// When an apiserver was last told that key id, in seconds since 1970.
fn last_told(apiserver: &Apiserver, hash: &str) -> Option<f64> {
    let lines = apiserver.metrics("key_id_hash_status_last_timestamp_seconds").unwrap();
    let line = lines.iter().find(|line| line.contains(hash))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[expect(clippy::disallowed_methods, reason = "compared with an apiserver's own clock")]
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// An apiserver that starts with an empty cache, beside a plugin that does, has one Decrypt made
/// for each seed, however many Secrets there are.
#[test]
fn a_cold_start_costs_one_decrypt_a_seed() {
    let Some(peers) = peers("a_cold_start_costs_one_decrypt_a_seed", "1.37.0") else { return };
    let count = size(2000);
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    let config = split.ready.encryption_config_file.clone();
    let mut cluster = Cluster::start(&peers, &lab.folder("cluster"), "1.37.0", &config);
    // 1. Secrets under seeds of three starts, the last two of another key version.
    create(&cluster, "a", count / 3);
    cluster.apiserver.restart().unwrap();
    create(&cluster, "b", count / 3);
    lab.cli(&split.ready, &["key", "rotate", KEY]);
    cluster.apiserver.restart().unwrap();
    create(&cluster, "c", count - 2 * (count / 3));
    let stored = cluster.etcd.list("/registry/secrets/default/").unwrap();
    assert_eq!(stored.len(), count);
    let mut seeds: Vec<_> =
        stored.iter().map(|(_, value)| Encrypted::parse(&value.bytes).unwrap().seed).collect();
    drop(stored);
    seeds.sort();
    seeds.dedup();
    let seeds = seeds.len();
    // 2. Everything that remembers goes.
    cluster.apiserver.kill();
    split.start_plugin();
    let server = server(&split);
    let before = decrypts(&server);
    // 3. A cold start.
    let start = Instant::now();
    cluster.apiserver.restart().unwrap();
    assert_eq!(cluster.apiserver.list_secrets().unwrap().len(), count);
    let (asked, took) = (decrypts(&server) - before, start.elapsed());
    eprintln!(
        "{count} Secrets, {seeds} seeds: {asked} Decrypts, all listed {took:.1?} after a cold start"
    );
    assert!((3..20).contains(&seeds), "{seeds} seeds");
    // A call that had no answer for a second is made once more, which a busy machine may need.
    assert!((seeds..=2 * seeds).contains(&asked), "{asked} Decrypts for {seeds} seeds");
    assert_eq!(cluster.apiserver.secret_value("a-0").unwrap(), value_of("a-0"));
}

/// KMS v1 has a key of its own for each Secret, and an apiserver whose cache is too small for them
/// asks again and again. The server sees each of them once.
#[test]
fn v1_that_thrashes_its_cache_does_not_thrash_the_server() {
    let test = "v1_that_thrashes_its_cache_does_not_thrash_the_server";
    let Some(peers) = peers(test, "1.37.0") else { return };
    let count = size(1500);
    let lab = Lab::new();
    let mut split = Split::start(&lab);
    split.kill_plugin();
    let port = free_port().unwrap();
    let plugin = plugin(&lab, &split, port);
    let config = key_config(&lab.path("v1.yaml"), "v1", &split.ready.plugin_socket);
    let small =
        std::fs::read_to_string(&config).unwrap() + &format!("      cachesize: {}\n", count / 5);
    std::fs::write(&config, small).unwrap();
    let options = ApiserverOptions {
        version: "1.37.0",
        encryption_config: &config,
        flags: &["--feature-gates=KMSv1=true"],
    };
    let mut cluster = Cluster::with_flags(&peers, &lab.folder("cluster"), &options);
    let server = server(&split);
    // 1. A write costs an Encrypt, and nothing else.
    let (encrypted, decrypted) = (requests(&server, "PluginEncrypt"), decrypts(&server));
    create(&cluster, "v1", count);
    let encrypted = requests(&server, "PluginEncrypt") - encrypted;
    let by_writes = decrypts(&server) - decrypted;
    assert!(encrypted >= count, "{encrypted} Encrypts for {count} Secrets");
    assert!(by_writes <= count / 20, "{by_writes} Decrypts for {count} writes");
    // 2. A cold start of the apiserver costs the server nothing: the plugin knows what it wrote.
    let read = |cluster: &Cluster| {
        in_parallel(count, |number| {
            let name = format!("v1-{number}");
            assert_eq!(cluster.apiserver.secret_value(&name).unwrap(), value_of(&name));
        });
    };
    let before = decrypts(&server);
    cluster.apiserver.restart().unwrap();
    read(&cluster);
    let warm = decrypts(&server) - before;
    assert!(warm <= count / 20, "{warm} Decrypts of what the plugin knew");
    // 3. With a cold plugin as well, it is asked once for each.
    cluster.apiserver.kill();
    drop(plugin);
    let _plugin = self::plugin(&lab, &split, port);
    let before = decrypts(&server);
    cluster.apiserver.restart().unwrap();
    read(&cluster);
    read(&cluster);
    let cold = decrypts(&server) - before;
    let page = Client::plain(&format!("127.0.0.1:{port}"));
    let asked = sum(&page, "lastkey_plugin_calls_total{api=\"v1beta1\",method=\"Decrypt\"");
    eprintln!(
        "{count} Secrets, a cache for {}: {by_writes} Decrypts for the writes, {warm} for a cold apiserver, \
         {cold} for {asked} of a cold apiserver and plugin",
        count / 5
    );
    assert!(asked >= 2 * count, "the apiserver's cache thrashes: {asked} calls");
    assert!((count..=count + count / 4).contains(&cold), "{cold} Decrypts, {asked} asked for");
}

/// The plugin of a split, with its metrics there.
fn plugin(lab: &Lab, split: &Split, port: u16) -> Running {
    let listen = format!("127.0.0.1:{port}");
    let mut options = plugin_options(&split.ready).to_vec();
    options.extend::<[&OsStr; 2]>(["--metrics-listen".as_ref(), listen.as_ref()]);
    lab.lastkey.plugin(&options).unwrap()
}

fn server(split: &Split) -> Client {
    let ca = std::fs::read_to_string(&split.ready.ca_file).unwrap();
    Client::tls(split.ready.address(), &ca, None).unwrap()
}

fn decrypts(server: &Client) -> usize {
    requests(server, "PluginDecrypt")
}

/// How many requests of that kind the server has answered, however.
fn requests(server: &Client, action: &str) -> usize {
    sum(server, &format!("lastkey_requests_total{{action=\"{action}\""))
}

/// The sum of the metrics that begin so.
fn sum(page: &Client, start: &str) -> usize {
    let text = page.get("/metrics").unwrap().expect_ok("metrics").unwrap().text();
    let values = text.lines().filter(|line| line.starts_with(start));
    values.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// How many Secrets there are.
fn size(usual: usize) -> usize {
    let told = std::env::var("LASTKEY_TEST_SECRETS").ok();
    told.map_or(usual, |told| told.parse().expect("LASTKEY_TEST_SECRETS is a number"))
}

fn create(cluster: &Cluster, prefix: &str, count: usize) {
    in_parallel(count, |number| {
        let name = format!("{prefix}-{number}");
        let answer = eventually("a Secret is created", SOON, || {
            let answer = cluster.apiserver.create_secret(&name, &value_of(&name))?;
            // shed by a busy apiserver
            if answer.status == 429 { Err(late("429")) } else { Ok(answer) }
        });
        answer.unwrap().expect_ok("creating a secret").unwrap();
    });
}

fn in_parallel(count: usize, work: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for hand in 0..HANDS {
            let work = &work;
            scope.spawn(move || (hand..count).step_by(HANDS).for_each(work));
        }
    });
}
