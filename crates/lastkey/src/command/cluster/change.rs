//! `lastkey cluster enable` and `lastkey cluster disable`: another provider for what a cluster
//! encrypts. Both work off the same stored steps as a rotation, with others before and after it.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use jiff::Timestamp;
use lastkey_client::{
    Client,
    native::{Course, Rotation, RotationPhase, StartRotation, Way},
};
use lastkey_crypto::{ClusterId, KeyId};
use lastkey_kubernetes::{
    cluster::{Access, ApiError, ApiServer, ListQuery, Migrate, Shape},
    coverage::{in_use::Ended, resources_of},
    encryption_config::{EncryptionConfiguration, readable, resource_options},
    node::ask_status,
    rotation::{Options, Worker, discover},
    socket::SocketAddress,
    transition::{
        Goal, Hands, Place, Target,
        loaded::{self, providers_told},
        names_of_ours, resources_to_enable, resources_under,
    },
};
use serde_json::{Value, json};

use super::{
    access::{Known, reach, unreachable},
    rotate::{
        holder, just_begun, newest_report, start_unless_begun, stop_on_signals, stopped, tell,
        verify,
    },
};
use crate::{
    cli::{ChangeOptions, Connect, DisableOptions, EnableOptions},
    command::wire::key_id,
    connect::{block_on, client, default_data_dir},
    output::{Exit, Failure, Output, chain},
};

use super::rotate::progress::Progress;

/// Where a plugin listens that was installed on a control plane.
const INSTALLED: &str = "/run/lastkey/kms.sock";
/// What `up` makes.
const SOCKET: &str = "kms.sock";
const KEY: &str = "alias/kubernetes";

/// Into the KMS.
pub(super) fn enable(
    connect: &Connect,
    options: &EnableOptions,
    output: &Output,
) -> Result<(), Failure> {
    let wanted = Wanted {
        way: Way::Enable,
        key: options.key.as_deref(),
        name: &options.provider,
        to: None,
        options: &options.change,
    };
    run(connect, &wanted, output)
}

/// Out of it.
pub(super) fn disable(
    connect: &Connect,
    options: &DisableOptions,
    output: &Output,
) -> Result<(), Failure> {
    let wanted = Wanted {
        way: Way::Disable,
        key: None,
        name: "lastkey",
        to: options.to.as_deref(),
        options: &options.change,
    };
    run(connect, &wanted, output)
}

/// What somebody asked for.
struct Wanted<'a> {
    way: Way,
    key: Option<&'a str>,
    /// A new provider's name.
    name: &'a str,
    /// Where to, out of the KMS; back to clear if nothing is said.
    to: Option<&'a str>,
    options: &'a ChangeOptions,
}

impl Wanted<'_> {
    fn verb(&self) -> &'static str {
        verb(self.way)
    }
}

pub(super) fn verb(way: Way) -> &'static str {
    match way {
        Way::Enable => "enable",
        Way::Disable => "disable",
    }
}

fn run(connect: &Connect, wanted: &Wanted<'_>, output: &Output) -> Result<(), Failure> {
    let options = wanted.options;
    if let (Some(report), Some(key)) = (&options.verify, &options.public_key) {
        return verify(report, key, output);
    }
    let client = client(connect)?;
    block_on(async {
        let name = options.name.as_deref().unwrap_or_default();
        let cluster = find(&client, name).await?;
        let known = client.rotations(cluster.id).await?;
        if options.report {
            let own: Vec<Rotation> =
                known.into_iter().filter(|one| one.way() == Some(wanted.way)).collect();
            return newest_report(name, &own, output);
        }
        let active = known.iter().find(|one| !one.is_over());
        if let Some(other) = active.filter(|one| one.way() != Some(wanted.way)) {
            return Err(under_way(name, other));
        }
        if options.pause || options.cancel {
            let active = active.ok_or_else(|| nothing(name, wanted.verb()))?;
            return tell(&client, (name, active), options.pause, output).await;
        }
        let hands = |access: &Access| hands(access, options);
        let rotation = match active {
            Some(active) if active.paused && !options.resume => {
                return Err(Failure::failed(format_args!(
                    "it rests since {}; --resume goes on with it",
                    active.updated
                )));
            }
            Some(active) => {
                is_the_same(&client, (name, active), wanted).await?;
                match active.paused {
                    true => client.pause_rotation(active, false).await?,
                    false => active.clone(),
                }
            }
            None if options.resume => return Err(nothing(name, wanted.verb())),
            None => {
                let (access, api) = reach(&client, cluster.id).await?;
                let hands = hands(&access)?;
                let socket = socket(connect, options);
                let start =
                    Start { client: &client, api: &api, hands: &hands, cluster: &cluster, socket };
                match start.begin(wanted).await? {
                    Some(begun) => begun,
                    None => join(&client, (name, cluster.id), wanted).await?,
                }
            }
        };
        let (access, api) = reach(&client, cluster.id).await?;
        let hands = hands(&access)?;
        drop(access);
        work((client, api), (name, &rotation), (wanted, hands), output).await
    })
}

/// The cluster that was named.
async fn find(client: &Client, name: &str) -> Result<Known, Failure> {
    let known = Known::all(client).await?;
    let named = known.into_iter().find(|one| one.name == name || one.id.to_string() == name);
    named.ok_or_else(|| {
        let missing = format!("there is no cluster {name}; `lastkey cluster list` shows which are");
        Failure::new(Exit::NotFound, missing)
    })
}

/// The one that somebody else has begun since it was looked.
async fn join(
    client: &Client,
    (name, cluster): (&str, ClusterId),
    wanted: &Wanted<'_>,
) -> Result<Rotation, Failure> {
    let active = just_begun(client, (name, cluster)).await?;
    if active.way() != Some(wanted.way) {
        return Err(under_way(name, &active));
    }
    is_the_same(client, (name, &active), wanted).await?;
    Ok(active)
}

/// Refuses to go on with another change than was asked for. What is not said, is as it was begun.
async fn is_the_same(
    client: &Client,
    (name, active): (&str, &Rotation),
    wanted: &Wanted<'_>,
) -> Result<(), Failure> {
    let goal = goal_of(active)?;
    let target = wanted.to.is_none_or(|to| is_target(&goal.target, to));
    let socket = match (&wanted.options.plugin_socket, wanted.way) {
        (Some(socket), Way::Enable) => is_at(&goal.target, socket),
        _ => true,
    };
    let named: BTreeSet<&String> = wanted.options.resources.iter().collect();
    let resources = named.is_empty() || named == goal.resources.iter().collect();
    let key = match wanted.key {
        None => true,
        Some(key) => key_id(client, key).await? == active.key,
    };
    if target && socket && resources && key {
        return Ok(());
    }
    let verb = wanted.verb();
    Err(Failure::failed(format_args!(
        "another {verb} of {name} is under way since {}: of {}, to {}, with the key {}",
        active.started,
        goal.resources.join(", "),
        goal.target.shown(),
        active.key,
    ))
    .and(format_args!("`lastkey cluster {verb} {name}` goes on with it, --cancel gives it up")))
}

/// Whether `--to` stands for this.
fn is_target(target: &Target, to: &str) -> bool {
    match target {
        Target::Identity => to == "identity" || to == "clear",
        Target::Local { kind } => to == kind,
        Target::Kms { name, endpoint } => match to.split_once('=') {
            Some((named, socket)) => named == name && socket == endpoint,
            None => to == name,
        },
    }
}

/// Whether a plugin's socket is what is changed to.
fn is_at(target: &Target, socket: &Path) -> bool {
    let socket = absolute(socket).to_string_lossy().parse::<SocketAddress>();
    matches!((target, socket), (Target::Kms { endpoint, .. }, Ok(socket)) if socket.endpoint() == *endpoint)
}

/// Where it goes.
fn goal_of(rotation: &Rotation) -> Result<Goal, Failure> {
    let course = rotation.course.as_ref();
    let goal = course.and_then(|course| serde_json::from_value(course.goal.clone()).ok());
    goal.ok_or_else(|| Failure::failed("it was begun by another release"))
}

fn nothing(name: &str, verb: &str) -> Failure {
    Failure::new(Exit::NotFound, format_args!("there is no {verb} of {name} under way"))
}

fn under_way(name: &str, other: &Rotation) -> Failure {
    let verb = other.way().map_or("rotate", verb);
    Failure::failed(format_args!(
        "something else is done with {name} at present: `lastkey cluster {verb} {name}` goes on \
         with it, --cancel gives it up"
    ))
}

/// What the worker needs of this machine.
fn hands(access: &Access, options: &ChangeOptions) -> Result<Hands, Failure> {
    let path = access.encryption_config.clone().ok_or_else(|| {
        Failure::failed(
            "it is not known where the cluster's EncryptionConfiguration lies: `lastkey cluster \
             add NAME --kubeconfig FILE --encryption-config FILE` (the path that the apiservers \
             have in --encryption-provider-config, whether or not it exists yet)",
        )
    })?;
    Ok(Hands {
        place: Place { path },
        by_hand: options.by_hand,
        accept: options.accept_changes,
        copy: options.encryption_config.clone(),
        etcd: access.etcd.clone(),
        registered: access.resources.clone(),
        printed: Default::default(),
    })
}

/// Where the plugin listens: as was said, else where `up` has made its socket, else where it is
/// installed.
fn socket(connect: &Connect, options: &ChangeOptions) -> PathBuf {
    let beside = |file: &PathBuf| file.parent().map(|directory| directory.join(SOCKET));
    let file = connect.admin_socket.as_ref().or(connect.credentials.as_ref());
    let of_up = file.and_then(beside).filter(|path| path.exists());
    let by_default = || default_data_dir().map(|dir| dir.join(SOCKET)).filter(|path| path.exists());
    let given = options.plugin_socket.clone();
    let found = given.or(of_up).or_else(by_default).unwrap_or_else(|| PathBuf::from(INSTALLED));
    absolute(&found)
}

/// The same from everywhere; an abstract name is.
fn absolute(socket: &Path) -> PathBuf {
    if socket.to_string_lossy().starts_with('@') {
        return socket.to_path_buf();
    }
    std::path::absolute(socket).unwrap_or_else(|_| socket.to_path_buf())
}

/// What a new change is begun with.
struct Start<'a> {
    client: &'a Client,
    api: &'a ApiServer,
    hands: &'a Hands,
    cluster: &'a Known,
    socket: PathBuf,
}

impl Start<'_> {
    /// Finds out what is to be done and whether it can be, and has the server keep it. `None` where
    /// somebody else was quicker.
    async fn begin(&self, wanted: &Wanted<'_>) -> Result<Option<Rotation>, Failure> {
        let socket: SocketAddress =
            self.socket.to_string_lossy().parse().map_err(|e| Failure::new(Exit::Usage, e))?;
        let endpoint = socket.endpoint();
        let text = self.hands.current().map_err(|error| Failure::failed(chain(&error)))?;
        let config = readable(text.as_ref().map(|text| text.as_str())).map_err(|error| {
            Failure::failed(chain(&error)).and("`lastkey cluster doctor` says more")
        })?;
        let goal = match wanted.way {
            Way::Enable => {
                self.check_socket(&socket).await?;
                let name = wanted.name.to_owned();
                let target = Target::Kms { name, endpoint };
                Goal { resources: resources_to_enable(&config), target }
            }
            Way::Disable => {
                let ours = names_of_ours(&config, &self.told().await, &endpoint);
                let target = target(wanted.to.unwrap_or("identity"), &config)?;
                Goal { resources: resources_under(&config, &ours), target }
            }
        };
        let named = wanted.options.resources.clone();
        let resources = if named.is_empty() { goal.resources } else { named };
        if resources.is_empty() {
            return Err(Failure::failed(format_args!(
                "the configuration has no provider at {}: give --plugin-socket PATH, or --resource \
                 for what is to be written otherwise",
                self.socket.display()
            )));
        }
        self.check_answers().await?;
        self.check_access(&resources).await?;
        let goal = Goal { resources, target: goal.target };
        if let Target::Local { .. } = goal.target {
            let checked = self.hands.check_new_keys(&config, &goal);
            checked.map_err(|error| Failure::failed(chain(&error)))?;
        }
        let shown = self.hands.check_shown_keys(
            &config,
            text.as_ref().map_or("", |text| text.as_str()),
            &goal,
        );
        shown.map_err(|error| Failure::failed(chain(&error)))?;
        let goal = serde_json::to_value(&goal).map_err(Failure::failed)?;
        let key = match (wanted.key, self.cluster.keys.len()) {
            (Some(key), _) => Some(key.to_owned()),
            (None, 0 | 1) => None,
            (None, _) => Some(KEY.to_owned()),
        };
        let course = Some(Course { way: wanted.way, goal });
        let start = StartRotation { key, keep_version: true, course, ..StartRotation::default() };
        start_unless_begun(self.client, self.cluster.id, &start).await
    }

    /// A socket on this machine has to answer, and for this cluster, before anything is begun.
    async fn check_socket(&self, socket: &SocketAddress) -> Result<(), Failure> {
        if !self.socket.parent().is_some_and(Path::is_dir) {
            return Ok(());
        }
        let place = self.socket.display();
        let answer = ask_status(socket).await.map_err(|error| {
            Failure::new(
                Exit::Unavailable,
                format_args!("the plugin at {place}: {}", chain(&error)),
            )
            .and("start it, or give --plugin-socket PATH; `lastkey doctor` says more")
        })?;
        if self.known_ids().await.contains(&answer.key_id) {
            return Ok(());
        }
        Err(Failure::failed(format_args!(
            "the plugin at {place} acts for another cluster or key: give --plugin-socket PATH of one \
             that has the identity of {} (`lastkey cluster config`)",
            self.cluster.shown()
        )))
    }

    /// The key ids that apiservers of this cluster may be told.
    async fn known_ids(&self) -> Vec<String> {
        let mut ids = Vec::new();
        for key in &self.cluster.keys {
            ids.extend(self.key_ids(*key).await);
        }
        ids
    }

    /// The KMS providers that the apiservers know by a key id of this cluster's keys.
    async fn told(&self) -> Vec<String> {
        providers_told(self.api, &self.known_ids().await).await
    }

    async fn key_ids(&self, key: KeyId) -> Vec<String> {
        let Ok(impact) = self.client.key_impact_in(key, self.cluster.id).await else {
            return Vec::new();
        };
        let versions = impact["versions"].as_array().cloned().unwrap_or_default();
        let ids = versions.iter().filter_map(|version| version["plugin_key_id"].as_str());
        ids.map(str::to_owned).collect()
    }

    /// No step is taken past an apiserver that is away, so nothing is begun either.
    async fn check_answers(&self) -> Result<(), Failure> {
        for answer in loaded::look(self.api).await {
            answer.map_err(|(url, error)| {
                unreachable(&error).and(format_args!(
                    "every apiserver has to answer before anything is begun: start the one at {url}, or \
                     register those that there are (`lastkey cluster add {} --kubeconfig FILE \
                     --apiserver URL …`)",
                    self.cluster.shown()
                ))
            })?;
        }
        Ok(())
    }

    /// The account has to be allowed to list what is to be written anew.
    async fn check_access(&self, resources: &[String]) -> Result<(), Failure> {
        let served = discover(self.api, resources).await;
        let discovery = served.map_err(|error| unreachable(&error))?;
        for resource in resources_of(resources, &discovery).0 {
            let query = ListQuery { limit: 1, shape: Shape::Metadata, ..ListQuery::default() };
            match self.api.list(&resource, &query).await {
                Err(error @ ApiError::Forbidden { .. }) => {
                    return Err(unreachable(&error).and(format_args!(
                        "register what is to be encrypted: `lastkey cluster add {} --kubeconfig \
                         FILE … --resource {}`",
                        self.cluster.shown(),
                        resources.join(" --resource ")
                    )));
                }
                Err(ApiError::NotFound) | Ok(_) => {}
                Err(error) => {
                    let name = resource.full_name();
                    return Err(unreachable(&error).and(format_args!(
                        "{name} cannot be listed: `kubectl get {name}` says more"
                    )));
                }
            }
        }
        Ok(())
    }
}

/// What `--to` stands for.
fn target(to: &str, config: &EncryptionConfiguration) -> Result<Target, Failure> {
    if to == "identity" || to == "clear" {
        return Ok(Target::Identity);
    }
    if ["aescbc", "aesgcm", "secretbox"].contains(&to) {
        return Ok(Target::Local { kind: to.to_owned() });
    }
    let (name, endpoint) = match to.split_once('=') {
        Some((name, endpoint)) => (name, endpoint.to_owned()),
        None => {
            let kms = config.kms().find(|kms| kms.name == to && kms.version() == "v2");
            let kms = kms.ok_or_else(|| {
                Failure::new(
                    Exit::Usage,
                    format_args!(
                        "the configuration has no KMS v2 provider {to}: give --to \
                         {to}=unix:///SOCKET for a new one, or one of identity, aescbc, aesgcm, \
                         secretbox"
                    ),
                )
            })?;
            (to, kms.endpoint.clone())
        }
    };
    if name.is_empty() || name.contains(':') || !endpoint.starts_with("unix:///") {
        return Err(Failure::new(
            Exit::Usage,
            "give --to NAME=unix:///SOCKET, without a colon in NAME",
        ));
    }
    Ok(Target::Kms { name: name.to_owned(), endpoint })
}

/// Whether a cluster's objects go under the KMS: `updating`, `running`, `off`, or `unknown`; what is
/// under way, and since when. `under` says whether anything rests under one of its keys, where that
/// was counted, and `writes` whether an apiserver is known to write under one.
pub(super) fn state(known: &[Rotation], under: Option<bool>, writes: bool) -> Value {
    let newest = newest(known);
    if let Some(one) = newest.filter(|one| !one.is_over()) {
        return json!({
            "status": "updating", "way": one.way(), "phase": one.phase, "paused": one.paused,
            "since": one.started, "updated": one.updated,
        });
    }
    let finished = newest.filter(|one| one.phase == RotationPhase::Finished);
    // Whether the change saw that all was as it should be in the end.
    let report =
        finished.and_then(|one| serde_json::from_str::<Value>(one.report.as_deref()?).ok());
    let whole = report.is_some_and(|report| report["content"]["whole"] == true);
    let status = match (under, finished.and_then(Rotation::way)) {
        (Some(true), _) | (None, Some(Way::Enable)) => "running",
        (None, _) if writes => "running",
        (Some(false), _) => "off",
        (None, Some(Way::Disable)) if whole => "off",
        (None, _) => "unknown",
    };
    json!({ "status": status })
}

fn newest(known: &[Rotation]) -> Option<&Rotation> {
    known.iter().rev().find(|one| one.course.is_some())
}

/// That nothing writes under the cluster's keys any more: the newest change went out of the KMS and
/// is finished, so every apiserver has loaded that; and nothing was found under them (`under`).
pub(super) fn ended(known: &[Rotation], under: bool) -> Option<Ended> {
    let newest = newest(known).filter(|_| !under)?;
    if newest.way() != Some(Way::Disable) || newest.phase != RotationPhase::Finished {
        return None;
    }
    let at: Timestamp = newest.updated.parse().ok()?;
    Some(Ended { seconds: at.as_second(), at: newest.updated.clone() })
}

/// The same for people, where there is something to say.
pub(super) fn shown(state: &Value) -> Option<String> {
    let text = |field: &str| state[field].as_str().unwrap_or_default().to_owned();
    match text("status").as_str() {
        "updating" => {
            // How far it is, is said of all that is under way.
            Some(format!("updating, by `lastkey cluster {}`", text("way")))
        }
        "running" => Some("running: encrypted under its key".to_owned()),
        "unknown" => Some(
            "whether anything is encrypted under its key is not known: register its etcd, or see \
             `lastkey cluster doctor`"
                .to_owned(),
        ),
        _ => None,
    }
}

/// Works it off.
async fn work(
    (client, api): (Client, ApiServer),
    (name, rotation): (&str, &Rotation),
    (wanted, hands): (&Wanted<'_>, Hands),
    output: &Output,
) -> Result<(), Failure> {
    let goal = goal_of(rotation)?;
    let options = wanted.options;
    let stop = Arc::new(AtomicBool::new(false));
    stop_on_signals(&stop);
    let progress = Progress::new(output, name).of(wanted.verb());
    let worker = Worker {
        client,
        api,
        etcd: hands.etcd.clone(),
        options: Options {
            resources: goal.resources,
            whole: true,
            configured: true,
            workers: options.workers.into(),
            rate: options.rate,
            page: options.page,
            holder: holder(),
            migrate: Migrate::Own,
            only_own: None,
            patience: Duration::ZERO,
        },
        change: Some(hands),
        watch: Box::new(move |event| progress.tell(event)),
        stop,
    };
    let over = worker.run(rotation).await.map_err(stopped)?;
    drop(worker);
    match over.phase {
        RotationPhase::Finished => reported(name, (&over, wanted.verb()), output),
        _ => Err(Failure::failed(format_args!("the {} of {name} was cancelled", wanted.verb()))),
    }
}

/// What the new key is not for, and how it would be.
fn stays_in_clear(name: &str, clear: &[String]) -> String {
    format!(
        "\nstays in clear, as the configuration has it: {}; `lastkey cluster enable {name}{}` brings \
         it under the key, too",
        clear.join(", "),
        resource_options(clear)
    )
}

/// The end: the signed report, and what it says to a person.
fn reported(name: &str, (over, verb): (&Rotation, &str), output: &Output) -> Result<(), Failure> {
    let signed = over.report.clone().unwrap_or_default();
    let report: Value = serde_json::from_str(&signed).unwrap_or_default();
    let content = &report["content"];
    let mut event = content.clone();
    event["event"] = json!("report");
    event["rotation"] = json!(over.id);
    event["signed"] = json!(signed);
    let texts = |field: &str| -> Vec<String> {
        let items = content[field].as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    output.object(&event, || {
        let mut said = format!(
            "{name}: {} is under {}: {} of {} objects were written anew; worked {} s",
            texts("resources").join(", "),
            content["to"].as_str().unwrap_or_default(),
            content["rewritten"],
            content["objects"],
            content["seconds"],
        );
        for (what, field) in [
            ("taken out of the configuration", "removed"),
            ("left in it", "left"),
            ("kept, with the keys in it: delete when nobody goes back", "predecessors"),
        ] {
            let texts = texts(field);
            if !texts.is_empty() {
                said += &format!("\n{what}: {}", texts.join(", "));
            }
        }
        let clear = texts("in_clear");
        if !clear.is_empty() {
            said += &stays_in_clear(name, &clear);
        }
        for why in content["left_out"].as_array().into_iter().flatten() {
            said += &format!("\nnot written anew: {}", why.as_str().unwrap_or_default());
        }
        if content["whole"] == false {
            said += "\nno version of a key is free by this: not all that was registered or is under a KMS \
                     was gone through, or something is left";
        }
        for refusal in content["refusals"].as_array().into_iter().flatten() {
            let text = |field: &str| refusal[field].as_str().unwrap_or_default().to_owned();
            let (resource, namespace) = (text("resource"), text("namespace"));
            said += &format!("\n- {resource} {namespace}/{}: {}", text("name"), text("reason"));
        }
        said + &format!("\n`lastkey cluster {verb} {name} --report` prints the signed report")
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is copied into a shell, which would make file names of a wildcard.
    #[test]
    fn the_way_for_what_stays_in_clear_can_be_pasted() {
        let said = stays_in_clear("prod", &["*.*".to_owned(), "events".to_owned()]);
        assert!(said.contains("in clear, as the configuration has it: *.*, events;"), "{said}");
        let command = "`lastkey cluster enable prod --resource '*.*' --resource events`";
        assert!(said.contains(command), "{said}");
    }
}
