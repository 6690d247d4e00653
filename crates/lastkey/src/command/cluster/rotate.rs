//! `lastkey cluster rotate`: works a rotation off, or tells the worker of one what to do.

mod migration;
pub(super) mod progress;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use lastkey_client::{
    Client,
    native::{Rotation, RotationPhase, StartRotation, Way},
};
use lastkey_crypto::{ClusterId, Entropy as _, SystemEntropy, signing::PublicKey};
use lastkey_kubernetes::{
    cluster::{Access, ApiError, ApiServer},
    encryption_config::{EncryptionConfiguration, ProviderKind, examine, readable},
    rotation::{Options, RotateError, Worker},
};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use self::progress::Progress;
use super::access::unreachable;
use crate::{
    cli::{Connect, RotateOptions},
    command::wire::key_id,
    connect::{block_on, client},
    output::{Exit, Failure, Output, chain, line},
};

/// So many objects are written at once where nothing else is said.
const WORKERS: usize = 16;

pub(super) fn run(
    connect: &Connect,
    options: &RotateOptions,
    output: &Output,
) -> Result<(), Failure> {
    if let (Some(report), Some(key)) = (&options.verify, &options.public_key) {
        return verify(report, key, output);
    }
    let client = client(connect)?;
    block_on(async {
        let name = options.name.as_deref().unwrap_or_default();
        let cluster = find(&client, name).await?;
        let known = client.rotations(cluster).await?;
        let active = known.iter().find(|rotation| !rotation.is_over());
        if options.report {
            return newest_report(name, &known, output);
        }
        if options.pause || options.cancel {
            let active = active.ok_or_else(|| nothing(name))?;
            migration::may_rest(name, active, options.pause)?;
            tell(&client, (name, active), options.pause, output).await?;
            migration::delete_if(&client, active, options.cancel).await;
            return Ok(());
        }
        if let Some(active) = active {
            refuse_change(name, active)?;
        }
        let rotation = match active {
            Some(active) if active.paused && !options.resume => {
                return Err(Failure::failed(format_args!(
                    "the rotation of {name} rests since {}; --resume goes on with it",
                    active.updated
                )));
            }
            Some(active) => {
                is_the_same(&client, (name, active), options, output).await?;
                match active.paused {
                    true => client.pause_rotation(active, false).await?,
                    false => active.clone(),
                }
            }
            None if options.resume => return Err(nothing(name)),
            None => {
                // Whether the cluster can be reached is found out before its key has a new version.
                let (access, api) = reach(&client, cluster).await?;
                refuse_without_kms(name, &access)?;
                migration::check(&api, &access, options).await?;
                if let Some(namespace) = &options.namespace {
                    refuse_without_namespace(name, &api, namespace).await?;
                }
                let start = StartRotation {
                    key: options.key.clone(),
                    keep_version: options.keep_version,
                    namespace: options.namespace.clone(),
                    course: None,
                    retire: options.retire,
                    automatic: false,
                };
                match start_unless_begun(&client, cluster, &start).await? {
                    Some(begun) => begun,
                    None => {
                        let active = just_begun(&client, (name, cluster)).await?;
                        refuse_change(name, &active)?;
                        is_the_same(&client, (name, &active), options, output).await?;
                        active
                    }
                }
            }
        };
        work(client, (name, &rotation), options, output).await
    })
}

/// A change of the provider is not gone on with by a rotation.
fn refuse_change(name: &str, active: &Rotation) -> Result<(), Failure> {
    let (being, verb) = match active.way() {
        None => return Ok(()),
        Some(Way::Enable) => ("enabled", "enable"),
        Some(Way::Disable) => ("disabled", "disable"),
    };
    Err(Failure::failed(format_args!(
        "{name} is being {being}: `lastkey cluster {verb} {name}` goes on with it"
    )))
}

/// Has the server keep a new one; `None` where somebody else has begun one since it was looked.
pub(super) async fn start_unless_begun(
    client: &Client,
    cluster: ClusterId,
    start: &StartRotation,
) -> Result<Option<Rotation>, Failure> {
    match client.start_rotation(cluster, start).await {
        Err(error) if error.code() == Some("Rejected.UnderWay") => Ok(None),
        begun => Ok(Some(begun?)),
    }
}

/// That one.
pub(super) async fn just_begun(
    client: &Client,
    (name, cluster): (&str, ClusterId),
) -> Result<Rotation, Failure> {
    let known = client.rotations(cluster).await?;
    known.into_iter().find(|one| !one.is_over()).ok_or_else(|| {
        Failure::failed(format_args!(
            "somebody else began something with {name} just now, and it has ended: run this again"
        ))
    })
}

fn nothing(name: &str) -> Failure {
    Failure::new(Exit::NotFound, format_args!("there is no rotation of {name} under way"))
}

/// Whether what is gone on with is what was asked for. What it was begun for it is to its end.
async fn is_the_same(
    client: &Client,
    (name, active): (&str, &Rotation),
    options: &RotateOptions,
    output: &Output,
) -> Result<(), Failure> {
    let began = &active.started;
    if options.namespace.is_some() && options.namespace != active.namespace {
        let what = active.namespace.as_ref().map_or_else(
            || "all namespaces".to_owned(),
            |namespace| format!("the namespace {namespace}"),
        );
        return Err(Failure::failed(format_args!(
            "a rotation of {name} for {what} is under way since {began}: `lastkey cluster rotate \
             {name}` goes on with it, --cancel gives it up"
        )));
    }
    if let (Some(namespace), None) = (&active.namespace, &options.namespace) {
        output.hint(&format!(
            "this goes on with a rotation for the namespace {namespace} alone, begun at {began}: run \
             it again afterwards for the others"
        ));
    }
    if let Some(key) = &options.key
        && key_id(client, key).await? != active.key
    {
        output.hint(&format!(
            "this goes on with a rotation of the key {}, begun at {began}; --key is for a new one",
            active.key
        ));
    }
    Ok(())
}

/// The id of the cluster that was named.
async fn find(client: &Client, name: &str) -> Result<ClusterId, Failure> {
    let known = client.clusters().await?.items;
    let named = known.iter().find(|one| one["name"] == name || one["id"] == name);
    let id = named.and_then(|one| one["id"].as_str()?.parse().ok());
    let missing =
        format_args!("there is no cluster {name}; `lastkey cluster list` shows which are")
            .to_string();
    id.ok_or_else(|| Failure::new(Exit::NotFound, missing))
}

/// How the cluster is reached, once its apiservers have been.
pub(crate) async fn reach(
    client: &Client,
    cluster: ClusterId,
) -> Result<(Access, ApiServer), Failure> {
    let (access, api) = super::access::reach(client, cluster).await?;
    for server in 0..api.urls().len() {
        let asked = api.metrics(server).await;
        asked.map_err(|error| unasked(&error))?;
    }
    Ok((access, api))
}

/// An apiserver that did not answer what it was asked first. That it is not well is no refusal.
fn unasked(error: &ApiError) -> Failure {
    match error.is_transient() {
        true => Failure::new(Exit::Unavailable, chain(error)),
        false => unreachable(error),
    }
}

/// Where the configuration can be read here and has no KMS, no apiserver would ever take a new key.
fn refuse_without_kms(name: &str, access: &Access) -> Result<(), Failure> {
    let Some(config) = registered_config(access) else { return Ok(()) };
    if config.rules.is_empty() || config.kms().next().is_some() {
        return Ok(());
    }
    Err(Failure::failed(format_args!(
        "the configuration of {name} has no KMS provider: `lastkey cluster enable {name}` brings it \
         under its key"
    )))
}

/// A namespace that is not there would be gone through without an object, and without a word.
async fn refuse_without_namespace(
    name: &str,
    api: &ApiServer,
    namespace: &str,
) -> Result<(), Failure> {
    match api.has_namespace(namespace).await.map_err(|error| unreachable(&error))? {
        Some(false) => Err(Failure::failed(format_args!(
            "{name} has no namespace {namespace}: `kubectl get namespaces` lists them"
        ))),
        // An account of an earlier release may not know: then the end says if nothing was found.
        Some(true) | None => Ok(()),
    }
}

/// The registered configuration, if it lies here.
fn registered_config(access: &Access) -> Option<EncryptionConfiguration> {
    registered_text(access).map(|text| examine(&text).config)
}

fn registered_text(access: &Access) -> Option<Zeroizing<String>> {
    let path = access.encryption_config.as_ref()?;
    fs::read_to_string(path).ok().map(Zeroizing::new)
}

/// What is written anew, and whether that is all that may be under the key.
pub(crate) struct Resources {
    pub(crate) names: Vec<String>,
    pub(crate) whole: bool,
    /// Whether the configuration was read to know that.
    pub(crate) configured: bool,
}

impl Resources {
    /// Those that were chosen; else what the registered configuration encrypts by a KMS, if it can be
    /// read here; else what was registered.
    pub(crate) fn of(access: &Access, chosen: &[String]) -> Self {
        let config = registered_config(access);
        let named = |first: bool| -> Vec<String> {
            let rules = config.iter().flat_map(|config| &config.rules);
            let by_kms = rules.filter(|rule| {
                let asked = if first { 1 } else { rule.providers.len() };
                let mut kinds = rule.providers.iter().take(asked);
                kinds.any(|one| matches!(one.kind(), Some(ProviderKind::Kms(_))))
            });
            by_kms.flat_map(|rule| &rule.resources).map(|named| named.name.clone()).collect()
        };
        let (written, read) = (named(true), named(false));
        // What was registered and is in no rule any more rests as it did.
        let is_named = |name: &&String| {
            let (resource, group) = name.split_once('.').unwrap_or((name, ""));
            let all = config.iter().flat_map(|config| config.names());
            all.into_iter().any(|named| named.name == **name || named.covers(resource, group))
        };
        let dropped = access.resources.iter().filter(|name| !is_named(name));
        let registered: Vec<&String> = read.iter().chain(dropped).collect();
        let names = match (chosen.is_empty(), written.is_empty()) {
            (false, _) => chosen.to_vec(),
            (true, false) => written,
            (true, true) if access.resources.is_empty() => vec!["secrets".to_owned()],
            (true, true) => access.resources.clone(),
        };
        // What is not looked at may be under any version.
        let whole =
            registered.iter().all(|one| names.contains(*one) || names.iter().any(|n| n == "*.*"));
        // One that no apiserver would take says nothing.
        let text = registered_text(access);
        let config = text.and_then(|text| readable(Some(&text)).ok());
        let configured = config.is_some_and(|config| !config.rules.is_empty());
        Self { names, whole, configured }
    }
}

async fn work(
    client: Client,
    (name, rotation): (&str, &Rotation),
    options: &RotateOptions,
    output: &Output,
) -> Result<(), Failure> {
    let (access, api) = reach(&client, rotation.cluster).await?;
    let resources = Resources::of(&access, &options.resources);
    let whole = resources.whole || rotation.state["whole"] == true;
    if !whole && rotation.namespace.is_none() {
        output.hint(
            "not all that is registered is written anew: no older version becomes free by this",
        );
    }
    if options.retire && !rotation.retire {
        output.hint("this rotation was begun without --retire, and ends without");
    }
    let stop = Arc::new(AtomicBool::new(false));
    let progress = Progress::new(output, name);
    let worker = Worker {
        client,
        api,
        etcd: access.etcd.clone(),
        options: Options {
            resources: resources.names,
            whole: resources.whole,
            configured: resources.configured,
            workers: options.workers.map_or(WORKERS, usize::from),
            rate: options.rate,
            page: options.page,
            holder: holder(),
            migrate: migration::wanted(options, &access),
            only_own: migration::only_own(options),
            patience: options.migration_patience,
        },
        change: None,
        watch: Box::new(move |event| progress.tell(event)),
        stop: Arc::clone(&stop),
    };
    drop(access);
    stop_on_signals(&stop);
    let over = worker.run(rotation).await.map_err(stopped)?;
    drop(worker);
    match over.phase {
        RotationPhase::Finished => reported(name, &over, output),
        _ => Err(Failure::failed(format_args!("the rotation of {name} was cancelled"))),
    }
}

/// A worker that stopped: what the server or an apiserver says has the exit code that it has
/// everywhere.
pub(super) fn stopped(error: RotateError) -> Failure {
    match error {
        RotateError::Server(error) => error.into(),
        RotateError::Api(error) => unreachable(&error),
        RotateError::List { resource, error } => {
            unreachable(&error).about(format_args!("{resource} cannot be listed"))
        }
        error @ RotateError::OnlyOwn { .. } => Failure::new(Exit::Usage, chain(&error)),
        error @ (RotateError::MayNot { .. } | RotateError::NotByCluster { .. }) => {
            Failure::new(Exit::Denied, chain(&error))
        }
        error => Failure::failed(chain(&error)),
    }
}

/// Has a worker stop at its next step once somebody interrupts this process.
pub(super) fn stop_on_signals(stop: &Arc<AtomicBool>) {
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// What a worker calls itself: nobody else at the same time.
pub(crate) fn holder() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let mut random = [0; 8];
    SystemEntropy.fill(&mut random);
    format!("{host}/{}/{:016x}", std::process::id(), u64::from_ne_bytes(random))
}

/// The end: the signed report, and what it says to a person.
fn reported(name: &str, over: &Rotation, output: &Output) -> Result<(), Failure> {
    let signed = over.report.clone().unwrap_or_default();
    let report: Value = serde_json::from_str(&signed).unwrap_or_default();
    let content = &report["content"];
    let mut event = content.clone();
    event["event"] = json!("report");
    event["rotation"] = json!(over.id);
    event["signed"] = json!(signed);
    output.object(&event, || {
        let refused = content["refused"].as_u64().unwrap_or(0);
        let namespace = content["namespace"].as_str();
        let what = namespace.map_or_else(
            || name.to_owned(),
            |namespace| format!("the namespace {namespace} of {name}"),
        );
        let mut said = format!(
            "{what} is under the key version {}: {} of {} objects were written anew; worked {} s",
            over.target, content["rewritten"], content["objects"], content["seconds"]
        );
        if let Some(namespace) = namespace.filter(|_| content["objects"] == 0) {
            said += &format!("\nnothing was found there: is there a namespace {namespace}?");
        }
        if let Some(proof) = content["proof"].as_str() {
            said += &format!("\n{proof}");
        }
        if let Some(why) = content["verified"]["why"].as_str().filter(|why| !why.is_empty()) {
            said += &format!("\nnot by etcd: {why}");
        }
        if let Some(older) = content["verified"]["older"].as_u64() {
            said += &format!(
                "\n{older} objects outside of these resources are under an older version, which is \
                 needed: `lastkey cluster status {name}` shows of what"
            );
        }
        let unserved: Vec<&str> = content["unserved"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        if !unserved.is_empty() {
            said += &format!(
                "\nserved by nobody at present, and not written anew: {}",
                unserved.join(", ")
            );
        }
        if let Some(not_read) = content["verified"]["not_read"].as_str() {
            said += &format!("\nnot counted: {not_read}");
        }
        if content["whole"] == false && content["chosen"] == false {
            said += "\nno older version is free by this";
        } else if content["whole"] == false {
            let names = content["resources"].as_array().into_iter().flatten();
            let names: Vec<&str> = names.filter_map(Value::as_str).collect();
            let inside = content["namespace"].as_str().map(|name| format!(" in {name}"));
            let (names, inside) = (names.join(", "), inside.unwrap_or_default());
            said += &format!("\nonly {names}{inside}: no older version is free by this");
        }
        if refused > 0 {
            said += &format!("\n{refused} could not be written, so no older version is free:");
        }
        if let Some(why) = content["not_known"].as_str() {
            said += &format!("\n{why}");
        }
        for why in content["left_out"].as_array().into_iter().flatten() {
            said += &format!("\nnot written anew: {}", why.as_str().unwrap_or_default());
        }
        for refusal in content["refusals"].as_array().into_iter().flatten() {
            let text = |field: &str| refusal[field].as_str().unwrap_or_default().to_owned();
            let (resource, namespace) = (text("resource"), text("namespace"));
            said += &format!("\n- {resource} {namespace}/{}: {}", text("name"), text("reason"));
        }
        for (what, field) in [
            ("to be retired once no backup needs it either", "retiring"),
            ("not retired, because callers have encrypted by themselves", "kept_for_callers"),
        ] {
            for version in content[field].as_array().into_iter().flatten() {
                said += &format!("\n{what}: {}", version.as_str().unwrap_or_default());
            }
        }
        said + &format!("\n`lastkey cluster rotate {name} --report` prints the signed report")
    });
    Ok(())
}

pub(super) fn newest_report(
    name: &str,
    known: &[Rotation],
    output: &Output,
) -> Result<(), Failure> {
    let report = known.iter().rev().find_map(|rotation| rotation.report.as_deref());
    let missing = || Failure::new(Exit::NotFound, format_args!("{name} has no report yet"));
    let report = report.ok_or_else(missing)?;
    // Both formats are the line as it was signed: anything else could not be verified.
    let _ = output;
    line(report);
    Ok(())
}

pub(super) async fn tell(
    client: &Client,
    (name, active): (&str, &Rotation),
    pause: bool,
    output: &Output,
) -> Result<(), Failure> {
    let now = match pause {
        true => client.pause_rotation(active, true).await?,
        false => client.cancel_rotation(active).await?,
    };
    let said = json!({ "rotation": now.id, "phase": now.phase, "paused": now.paused });
    output.object(&said, || match (pause, active.way()) {
        (true, None) => format!("the rotation of {name} rests after the page that is under way"),
        (false, None) => {
            format!("the rotation of {name} is given up; no version has become free")
        }
        (true, Some(_)) => format!("the change of {name} rests after the step that is under way"),
        (false, Some(way)) => {
            let (on, back) = match way {
                Way::Enable => ("enable", "disable"),
                Way::Disable => ("disable", "enable"),
            };
            format!(
                "the change of {name} is given up in the phase {:?}: the configuration stays as \
                 it is now, and reads everything; `lastkey cluster {back} {name}` goes back, \
                 `lastkey cluster {on} {name}` on",
                active.phase
            )
        }
    });
    Ok(())
}

pub(super) fn verify(
    report: &std::path::Path,
    key: &std::path::Path,
    output: &Output,
) -> Result<(), Failure> {
    let read = |path: &std::path::Path| {
        fs::read_to_string(path).map_err(|error| Failure::file(path, &error))
    };
    let (line, pem) = (read(report)?, read(key)?);
    let key =
        PublicKey::from_pem(&pem).map_err(|error| Failure::new(Exit::Usage, chain(&error)))?;
    let checked = lastkey_engine::verify_report(&line, key);
    let found = checked.map_err(|error| Failure::failed(chain(&error)))?;
    let content = &found["content"];
    output.object(&json!({ "ok": true, "report": found }), || {
        format!(
            "the report is as it was signed on {}: {} objects of the cluster {}, {} written anew, \
             {} refused",
            found["time"].as_str().unwrap_or_default(),
            content["objects"],
            content["cluster"].as_str().unwrap_or_default(),
            content["rewritten"],
            content["refused"],
        )
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scripts tell by it whether trying again helps.
    #[test]
    fn who_is_refused_is_told_apart_from_who_is_away() {
        let server = || "https://a".to_owned();
        let reason = || "refused".to_owned();
        let refused = [ApiError::Unauthorized, ApiError::Forbidden { what: "GET /".to_owned() }];
        let away = [
            ApiError::Unreachable { server: server(), reason: reason() },
            ApiError::NoAnswer { server: server(), reason: reason() },
        ];
        let ends = |failure: &Failure, exit: Exit| {
            let shown = format!("{failure:?}");
            assert!(shown.contains(&format!("exit: {exit:?}")), "{shown}");
        };
        for (errors, exit) in [(refused, Exit::Denied), (away, Exit::Unavailable)] {
            for error in errors {
                ends(&unasked(&error), exit);
                ends(&stopped(error.clone().into()), exit);
                let listed = RotateError::List { resource: "secrets".to_owned(), error };
                let text = listed.to_string();
                let failure = stopped(listed);
                ends(&failure, exit);
                assert_eq!(failure.to_string(), text);
            }
        }
        // One that is starting.
        let failed = ApiError::Failed { status: 503, reason: String::new() };
        ends(&unasked(&failed), Exit::Unavailable);
        ends(&stopped(RotateError::Interrupted), Exit::Failed);
    }
}
