//! `lastkey cluster doctor`: what is wrong, and what to do about it.
//!
//! A configuration alone is judged here, without any server. Of a registered cluster everything is
//! looked at that can be reached; what cannot is a finding of its own.

use std::{fs::File, io::Read, path::Path};

use jiff::Timestamp;
use lastkey_client::{Client, native::Rotation};
use lastkey_kubernetes::{
    cluster::{Access, ApiServer},
    doctor::{
        check_access, check_coverage, check_flags, check_plugin, check_servers, check_sockets,
        flags_in_manifest, flags_of_process,
    },
    encryption_config::{EncryptionConfiguration, Finding, MAX_FILE, Severity, examine_bytes},
};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{
    access::{Known, reach},
    change::verb,
    status::cover,
};
use crate::{
    cli::{Connect, DoctorOptions},
    connect::{block_on, client},
    output::{Exit, Failure, Output},
};

pub(super) fn run(
    connect: &Connect,
    options: &DoctorOptions,
    output: &Output,
) -> Result<(), Failure> {
    match (&options.name, &options.encryption_config) {
        (None, Some(path)) => {
            let findings = examine_bytes(&read(path)?).findings;
            tell(&findings, &path.display().to_string(), output)
        }
        (name, _) => {
            let name = name.as_deref().unwrap_or_default();
            let findings = block_on(async { look(&client(connect)?, name, options).await })?;
            tell(&findings, name, output)
        }
    }
}

/// A configuration's content.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: std::io::Error| Failure::file(path, &error);
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_FILE {
        let size = MAX_FILE >> 20;
        return Err(Failure::failed(format_args!("{}: larger than {size} MiB", path.display())));
    }
    Ok(bytes)
}

/// Looks at a registered cluster.
async fn look(
    client: &Client,
    name: &str,
    options: &DoctorOptions,
) -> Result<Vec<Finding>, Failure> {
    let known = Known::all(client).await?;
    let named = known.iter().find(|one| one.name == name || one.id.to_string() == name);
    let missing = || {
        let sentence =
            format!("there is no cluster {name}; `lastkey cluster list` shows which are");
        Failure::new(Exit::NotFound, sentence)
    };
    let cluster = named.ok_or_else(missing)?;
    let (access, api) = reach(client, cluster.id).await?;
    let now = Timestamp::now().as_second();
    let mut findings = Vec::new();
    // 1. The configuration, if it lies here.
    let content = configured(&access, options.encryption_config.as_deref(), &mut findings);
    let config = content.as_ref().map(|content| {
        let examined = examine_bytes(content);
        findings.extend(examined.findings);
        examined.config
    });
    // 2. Each apiserver.
    let content = content.as_ref().map(|content| content.as_slice());
    findings.extend(check_servers(&api, content, now).await);
    // 3. What rests in the cluster.
    findings.extend(rests(&access, &api, config.as_ref()).await);
    // 4. The chain of credentials.
    findings.extend(check_access(&access, now));
    findings.extend(plugins(client, name, now).await?);
    // 5. What lies around here.
    findings.extend(here(&access, config.as_ref(), options));
    findings.sort_by_key(|finding| finding.severity);
    // Before all else: the others may be about a step that is not the last one.
    let rotations = client.rotations(cluster.id).await?;
    let way = rotations.iter().filter(|one| !one.is_over()).find_map(Rotation::way);
    findings.splice(0..0, way.map(|way| under_way(name, verb(way))));
    Ok(findings)
}

fn under_way(name: &str, verb: &str) -> Finding {
    let message = format!(
        "`lastkey cluster {verb}` is under way: what is said of the file is said of a step"
    );
    let fix = format!(
        "`lastkey cluster {verb} {name}` goes on with it, --cancel gives it up; leave the file alone until then"
    );
    Finding::warning("change-under-way", message).fix(fix)
}

/// The content of the configuration that was named, else of the registered one.
fn configured(
    access: &Access,
    named: Option<&Path>,
    findings: &mut Vec<Finding>,
) -> Option<Zeroizing<Vec<u8>>> {
    let path = named.or(access.encryption_config.as_deref());
    match path.map(|path| (path, read(path))) {
        Some((_, Ok(content))) => return Some(content),
        Some((path, Err(failure))) => findings.push(unread(path, named.is_some(), &failure)),
        None => findings.push(no_config("no EncryptionConfiguration is registered".to_owned())),
    }
    None
}

/// One that cannot be read. That is an error if somebody asked for it; a registered one may lie on
/// another machine.
fn unread(path: &Path, named: bool, failure: &Failure) -> Finding {
    if !named && matches!(path.try_exists(), Ok(false)) {
        let shown = path.display();
        return no_config(format!("the EncryptionConfiguration {shown} is not on this machine"));
    }
    let message = format!("the EncryptionConfiguration was not looked at: {failure}");
    let finding = if named { Finding::error } else { Finding::warning };
    finding("config-unreadable", message).fix("give a path that you may read, or run this as root")
}

fn no_config(message: String) -> Finding {
    let fix = "run this on a control-plane node, or `lastkey cluster doctor NAME --encryption-config FILE` \
               with a copy";
    Finding::info("config-not-here", message).fix(fix)
}

async fn rests(
    access: &Access,
    api: &ApiServer,
    config: Option<&EncryptionConfiguration>,
) -> Vec<Finding> {
    match (cover(access, api).await, config) {
        (Ok(coverage), Some(config)) => check_coverage(&coverage, config),
        (Ok(_), None) => Vec::new(),
        (Err(failure), _) => {
            let message = format!("what rests in the cluster cannot be counted: {failure}");
            let fix = "`lastkey cluster status` says more";
            vec![Finding::warning("coverage-unknown", message).fix(fix)]
        }
    }
}

/// Plugins' certificates, as far as the server knows when they end.
async fn plugins(client: &Client, name: &str, now: i64) -> Result<Vec<Finding>, Failure> {
    let clusters = client.clusters().await?.items;
    let cluster = clusters.iter().find(|one| one["name"] == name || one["id"] == name);
    let plugins = cluster.and_then(|one| one["plugins"].as_array());
    let checked = plugins.into_iter().flatten().filter_map(|plugin| {
        let time = |field: &str| plugin[field].as_str()?.parse().ok().map(Timestamp::as_second);
        let name = plugin["name"].as_str().unwrap_or_default();
        check_plugin(name, (time("created_at"), time("not_after")), now)
    });
    Ok(checked.collect())
}

/// Flags of an apiserver that runs here or is described here, and sockets.
fn here(
    access: &Access,
    config: Option<&EncryptionConfiguration>,
    options: &DoctorOptions,
) -> Vec<Finding> {
    let local = access.servers.iter().filter(|url| url.is_loopback());
    let running = local.filter_map(|url| flags_of_process(url.port())).next();
    let flags = running.or_else(|| flags_in_manifest(&options.apiserver_manifest));
    let registered = access.encryption_config.as_deref();
    let mut findings = flags.map(|flags| check_flags(&flags, registered)).unwrap_or_default();
    findings.extend(config.map(check_sockets).unwrap_or_default());
    findings
}

/// Prints them, and fails if there is an error among them.
fn tell(findings: &[Finding], about: &str, output: &Output) -> Result<(), Failure> {
    let items: Vec<Value> = findings.iter().map(|finding| json!(finding)).collect();
    let list = json!({ "items": items, "next": null });
    output.object(&list, || human(findings, about));
    match findings.iter().filter(|finding| finding.severity == Severity::Error).count() {
        0 => Ok(()),
        1 => Err(Failure::failed(format_args!("{about}: one error"))),
        more => Err(Failure::failed(format_args!("{about}: {more} errors"))),
    }
}

fn human(findings: &[Finding], about: &str) -> String {
    if findings.is_empty() {
        return format!("{about}: nothing to say");
    }
    let told = findings.iter().map(|finding| {
        let severity = match finding.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Info => "info",
        };
        let place = finding.line.map(|line| format!(" line {line}")).unwrap_or_default();
        let Finding { code, message, fix, .. } = finding;
        format!("{severity:<8}{code}{place}\n        {message}\n        fix: {fix}")
    });
    told.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_is_not_read_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("encryption.yaml");
        // root may read everything, but no directory
        for (path, named, said) in [
            (&*gone, true, (Severity::Error, "config-unreadable")),
            (dir.path(), true, (Severity::Error, "config-unreadable")),
            (dir.path(), false, (Severity::Warning, "config-unreadable")),
            (&*gone, false, (Severity::Info, "config-not-here")),
        ] {
            let finding = unread(path, named, &read(path).unwrap_err());
            assert_eq!((finding.severity, finding.code), said, "{path:?}");
            assert!(finding.message.contains(&path.display().to_string()), "{finding:?}");
        }
    }
}
