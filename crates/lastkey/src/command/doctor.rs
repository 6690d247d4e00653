//! `lastkey doctor`: what is wrong on this control-plane node, and the command that mends it.
//!
//! It goes the way of a Secret: the apiserver's flags, its EncryptionConfiguration, the plugin's
//! socket, the plugin's certificate, the server. Nothing is changed, and nothing of what it reads is
//! shown but names, times and paths.

mod apiserver;
mod enrolment;
mod identity;
mod plugin;
mod socket;

use std::path::{Path, PathBuf};

use lastkey_kubernetes::{
    encryption_config::{Finding, Severity},
    node::{Manifest, Process, processes},
};
use serde_json::{Value, json};

use self::identity::State;
use crate::{
    cli::NodeDoctorOptions,
    connect::block_on,
    output::{Column, Failure, Output},
};

const COLUMNS: [Column; 4] = [
    Column("SEVERITY", "severity"),
    Column("CODE", "code"),
    Column("MESSAGE", "message"),
    Column("FIX", "fix"),
];

/// Something that runs on this node, or will.
struct Program {
    /// What it is started as.
    command: Vec<String>,
    /// Where that was found.
    from: String,
    process: Option<Process>,
    manifest: Option<Manifest>,
}

impl Program {
    /// Whichever was named, else a manifest or a process that is there; a command lists the ids that
    /// can be named. A manifest says more of an
    /// apiserver, a process more of a plugin: `manifest_first`.
    fn find(
        (named, listed_by): (Option<&str>, &str),
        (manifest, manifest_first): (&str, bool),
        is: impl Fn(&Process) -> bool,
    ) -> Result<Option<Self>, Finding> {
        if let Some(named) = named {
            return match named.parse() {
                Ok(id) => Self::of(id, listed_by).map(Some),
                Err(_) => Self::read(Path::new(named)).map(Some),
            };
        }
        let manifest = Path::new(manifest);
        if manifest_first && manifest.exists() {
            return Self::read(manifest).map(Some);
        }
        if let Some(process) = processes().into_iter().find(|process| is(process)) {
            return Ok(Some(Self::running(process)));
        }
        match manifest.exists() {
            true => Self::read(manifest).map(Some),
            false => Ok(None),
        }
    }

    fn of(id: u32, listed_by: &str) -> Result<Self, Finding> {
        Process::find(id).map(Self::running).ok_or_else(|| {
            Finding::error("no-process", format!("there is no process {id}"))
                .fix(format!("give the id of a running process: {listed_by}"))
        })
    }

    fn running(process: Process) -> Self {
        let from = format!("the process {}", process.id);
        Self { command: process.command.clone(), from, process: Some(process), manifest: None }
    }

    fn read(path: &Path) -> Result<Self, Finding> {
        let unreadable = |error: &dyn std::fmt::Display| {
            Finding::error("manifest-unreadable", format!("{}: {error}", path.display()))
                .fix("give the path of a static pod manifest that you may read")
        };
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(&error))?;
        let manifest = Manifest::parse(&text).map_err(|error| unreadable(&error))?;
        let (command, from) = (manifest.command.clone(), path.display().to_string());
        Ok(Self { command, from, process: None, manifest: Some(manifest) })
    }

    /// A path that it names, for us.
    fn sees(&self, path: &Path) -> PathBuf {
        let mounted = self.manifest.as_ref().and_then(|manifest| manifest.on_node(path));
        let seen = self.process.as_ref().map(|process| process.sees(path));
        mounted.or(seen).unwrap_or_else(|| path.to_owned())
    }
}

pub(crate) fn run(options: &NodeDoctorOptions, output: &Output) -> Result<(), Failure> {
    let findings = block_on(async { Ok(examine(options).await) })?;
    let items: Vec<Value> = findings.iter().map(|finding| json!(finding)).collect();
    output.list(&items, &Value::Null, &COLUMNS);
    let errors = findings.iter().filter(|it| it.severity == Severity::Error).count();
    match errors {
        0 => Ok(()),
        1 => Err(Failure::failed("one error")),
        more => Err(Failure::failed(format_args!("{more} errors"))),
    }
}

async fn examine(options: &NodeDoctorOptions) -> Vec<Finding> {
    let mut findings = Vec::new();
    // 1. What the apiserver was told.
    let apiserver = apiserver::find(options.apiserver.as_deref(), &mut findings);
    let config = apiserver::encryption_config(
        apiserver.as_ref(),
        options.encryption_config.as_deref(),
        &mut findings,
    );
    // 2. What the plugin was told.
    let plugin = plugin::find(options.plugin.as_deref(), &mut findings);
    // 3. Where both meet.
    let dialled = config.as_ref().map(apiserver::endpoints).unwrap_or_default();
    let told = plugin.as_ref().map(plugin::Plugin::sockets).unwrap_or_default();
    socket::compare(&dialled, &told, &mut findings);
    let user = apiserver.as_ref().and_then(|it| it.process.as_ref()).map(|it| it.user);
    let each = if dialled.is_empty() { &told } else { &dialled };
    for address in each {
        socket::examine(address, user, &mut findings).await;
    }
    // 4. The plugin's identity, and the server as the plugin finds it.
    if let Some(plugin) = &plugin {
        match plugin.identity(&mut findings) {
            State::Good => plugin.server(&mut findings, false).await,
            State::Ended => plugin.server(&mut findings, true).await,
            State::Enrols => plugin.enrolment(&mut findings).await,
            State::Unusable => {}
        }
    }
    findings.sort_by_key(|finding| finding.severity);
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each is looked for as what it is.
    #[test]
    fn a_process_that_is_not_there_is_listed_by_its_own_name() {
        // beyond what Linux numbers
        let (gone, mut findings) = (Some("999999999"), Vec::new());
        apiserver::find(gone, &mut findings);
        plugin::find(gone, &mut findings);
        let fixes: Vec<_> = findings.iter().map(|finding| (finding.code, &*finding.fix)).collect();
        let fix = |command| ("no-process", command);
        assert_eq!(
            fixes,
            [
                fix("give the id of a running process: pgrep -x kube-apiserver"),
                fix("give the id of a running process: pgrep -f 'lastkey kms-plugin'"),
            ]
        );
    }
}
