//! `lastkey cluster drill`: what would happen, tried on scratch processes.

mod page;
mod progress;
mod shown;

use std::{
    path::{Path, PathBuf},
    pin::pin,
};

use lastkey_drill::{
    DrillError, Given, LocalProviders, Programs,
    outage::{OutageReport, Outages},
    report::RestoreReport,
    restore::Restore,
};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use self::{page::Page, progress::Watcher};
use crate::{
    cli::{DrillChild, DrillOptions, OutageList, OutageOptions, RestoreOptions, TokenOptions},
    connect::block_on,
    output::{Exit, Failure, Output, chain},
};

/// Becomes a program that dies with who started it.
pub(crate) fn become_program(of: &DrillChild) -> Failure {
    let error = lastkey_drill::become_program(of.parent, &of.program, &of.args);
    Failure::failed(format_args!("{}: {error}", Path::new(&of.program).display()))
}

pub(super) fn run(options: &DrillOptions, output: &Output) -> Result<(), Failure> {
    // What can be found out before anything is started.
    let given = Given {
        kube_apiserver: options.programs.kube_apiserver.clone(),
        etcd: options.programs.etcd.clone(),
        etcdutl: options.programs.etcdutl.clone(),
    };
    let programs = Programs::find(&given, options.snapshot.is_some()).map_err(failed)?;
    let restore = options.snapshot.as_deref().map(|file| restore(file, options, &programs));
    let restore = restore.transpose()?;
    let outages = options.outages.as_ref().map(|list| outages(list, options, &programs));
    let page = options.html.as_deref().map(Page::at).transpose()?;
    // The kernel ties the processes to this very thread, so the work stays on it.
    let (report, failure) = block_on(async {
        let mut report = Report::default();
        let held = hold((restore.as_ref(), outages.as_ref()), &mut report, output).await;
        Ok((report, held.err()))
    })?;
    match failure {
        // there is nothing to be told but that
        Some(failure) if report.restore.is_none() && report.outages.is_none() => Err(failure),
        failure => tell((&report, failure), page, output),
    }
}

/// Holds both drills, as far as they are wanted; what was found until one fails is in `report`.
async fn hold(
    (restore, outages): (Option<&Restore>, Option<&Outages>),
    report: &mut Report,
    output: &Output,
) -> Result<(), Failure> {
    let mut watcher = Watcher::new(output);
    let mut stopped = pin!(stopped()?);
    if let Some(restore) = restore {
        let restored = tokio::select! {
            restored = restore.run(&mut watcher) => restored,
            () = &mut stopped => Err(DrillError::Interrupted),
        };
        report.restore = Some(restored.map_err(failed)?);
    }
    if let Some(outages) = outages {
        let played = outages.run(&mut watcher, stopped.as_mut()).await;
        report.outages = Some(played.map_err(failed)?);
    }
    Ok(())
}

/// What was found.
#[derive(Default)]
struct Report {
    restore: Option<RestoreReport>,
    outages: Option<OutageReport>,
}

/// Resolves when somebody wants us to end.
fn stopped() -> Result<impl Future<Output = ()>, Failure> {
    let on = |kind| signal(kind).map_err(Failure::failed);
    let mut interrupt = on(SignalKind::interrupt())?;
    let (mut terminate, mut hangup) = (on(SignalKind::terminate())?, on(SignalKind::hangup())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    })
}

fn restore(
    snapshot: &Path,
    options: &DrillOptions,
    programs: &Programs,
) -> Result<Restore, Failure> {
    let missing = || Failure::new(Exit::Usage, "give --state DIR with --snapshot FILE");
    let RestoreOptions { state, root_key, encryption_config, etcd_prefix, token, .. } =
        &options.restore;
    let local = encryption_config.as_deref().map(LocalProviders::read).transpose();
    Ok(Restore {
        programs: programs.clone(),
        scratch_dir: scratch_dir(options),
        snapshot: absolute(snapshot)?,
        state: state.clone().ok_or_else(missing)?,
        root_key: root_key.clone(),
        local: local.map_err(failed)?.unwrap_or_default(),
        prefix: etcd_prefix.clone(),
        skip_hash_check: options.restore.skip_hash_check,
        token: token_options(token)?,
        apiserver_flags: options.programs.apiserver_flags.clone(),
        leftovers: options.restore.leftover.clone(),
        workers: options.restore.workers.into(),
    })
}

/// The server's own options that reach a token.
fn token_options(options: &TokenOptions) -> Result<Vec<std::ffi::OsString>, Failure> {
    let TokenOptions { pkcs11_module, pkcs11_token, pkcs11_key, pkcs11_pin_file } = options;
    let (Some(module), Some(token), Some(pin)) = (pkcs11_module, pkcs11_token, pkcs11_pin_file)
    else {
        return Ok(Vec::new());
    };
    Ok(vec![
        "--pkcs11-module".into(),
        absolute(module)?.into(),
        "--pkcs11-token".into(),
        token.into(),
        "--pkcs11-key".into(),
        pkcs11_key.into(),
        "--pkcs11-pin-file".into(),
        absolute(pin)?.into(),
    ])
}

fn scratch_dir(options: &DrillOptions) -> PathBuf {
    options.scratch_dir.clone().unwrap_or_else(std::env::temp_dir)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| Failure::new(Exit::Usage, error))
}

fn outages(list: &OutageList, options: &DrillOptions, programs: &Programs) -> Outages {
    let OutageOptions { outage_length, recovery, lease, write_lease } = &options.outage;
    Outages {
        programs: programs.clone(),
        scratch_dir: scratch_dir(options),
        outages: list.0.clone(),
        length: *outage_length,
        recovery: *recovery,
        lease: *lease,
        write_lease: *write_lease,
        apiserver_flags: options.programs.apiserver_flags.clone(),
    }
}

/// The report in all the ways that were asked for, and the exit code that goes with it.
fn tell(
    (report, failure): (&Report, Option<Failure>),
    page: Option<Page>,
    output: &Output,
) -> Result<(), Failure> {
    let Report { restore, outages } = report;
    let verdicts = [
        restore.as_ref().map(|it| (it.ok, &it.verdict)),
        outages.as_ref().map(|it| (it.ok, &it.verdict)),
    ];
    let bad: Vec<&str> =
        verdicts.iter().flatten().filter(|(ok, _)| !ok).map(|(_, text)| text.as_str()).collect();
    let whole = json!({
        "event": "report", "ok": bad.is_empty() && failure.is_none(),
        "restore": restore, "outages": outages,
    });
    output.object(&whole, || {
        let restore = restore.as_ref().map(shown::restore);
        let outages = outages.as_ref().map(shown::outages);
        restore.into_iter().chain(outages).collect::<Vec<_>>().join("\n\n")
    });
    // what was printed is there, whatever becomes of the file
    if let Some(page) = page {
        page.write(&lastkey_drill::html::page(restore.as_ref(), outages.as_ref()))?;
    }
    match failure {
        Some(failure) if bad.is_empty() => Err(failure),
        Some(failure) => Err(failure.and(bad.join("; "))),
        None if bad.is_empty() => Ok(()),
        None => Err(Failure::failed(bad.join("; "))),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: DrillError) -> Failure {
    let exit = match &error {
        DrillError::Missing(_) => Exit::NotFound,
        DrillError::Sealed(_) => Exit::Unavailable,
        DrillError::LongPath { .. } => Exit::Usage,
        _ => Exit::Failed,
    };
    Failure::new(exit, chain(&error))
}

/// A report as JSON, to be laid out.
fn rows<T: serde::Serialize>(items: &[T]) -> Vec<Value> {
    items.iter().map(|item| json!(item)).collect()
}
