//! `lastkey audit verify --offline`: files and a public key, no server.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use lastkey_crypto::signing::PublicKey;
use lastkey_engine::audit::{self, Checkpoint, Offline, Progress};
use lastkey_store::disk::FileSystem;

use super::{progress::Watch, report};
use crate::{
    cli::VerifyOptions,
    output::{Exit, Failure, Output},
};

const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) fn verify(
    directory: &Path,
    options: &VerifyOptions,
    output: &Output,
) -> Result<(), Failure> {
    let directory = log_directory(directory)?;
    let keys = options.public_key.iter().map(|path| key(path)).collect::<Result<Vec<_>, _>>()?;
    let mut witnesses = Vec::new();
    for path in &options.checkpoint {
        let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
        if text.trim().is_empty() {
            // Nothing would be checked by it, and the log would pass.
            let message = format_args!("{}: there is no checkpoint in it", path.display());
            return Err(Failure::new(Exit::Usage, message));
        }
        for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
            if Checkpoint::parse(line.trim_end()).is_none() {
                let message = format_args!(
                    "{}: line {number} is no checkpoint; give lines of a log's checkpoints.log, \
                     as they were written",
                    path.display()
                );
                return Err(Failure::new(Exit::Usage, message));
            }
            witnesses.push(line.to_owned());
        }
    }
    let progress = Arc::new(Progress::default());
    let mut watch = Watch::new(output);
    let found = std::thread::scope(|scope| {
        let work = scope.spawn(|| {
            let trust = Offline { keys: &keys, witnesses: &witnesses };
            audit::offline(&FileSystem, &directory, &trust, &progress)
        });
        while !work.is_finished() {
            watch.at(progress.done(), progress.total());
            std::thread::sleep(LOOK_EVERY);
        }
        watch.end();
        work.join()
    });
    let found = found
        .map_err(|_| Failure::failed("the verification ended in the middle"))?
        .map_err(|error| Failure::file(&directory, &error))?;
    report(&serde_json::to_value(&found).map_err(Failure::failed)?, output)
}

/// The log in a data directory, or the directory itself.
fn log_directory(given: &Path) -> Result<PathBuf, Failure> {
    let inside = given.join("audit");
    let directory = if inside.is_dir() { inside } else { given.to_owned() };
    let entries = fs::read_dir(&directory).map_err(|error| unreadable(given, &error))?;
    for entry in entries {
        let name = entry.map_err(|error| unreadable(given, &error))?.file_name();
        if name == "checkpoints.log" || name.as_encoded_bytes().starts_with(b"segment-") {
            return Ok(directory);
        }
    }
    Err(Failure::new(
        Exit::Usage,
        format_args!(
            "no audit log in {}: there are neither segments nor checkpoints.log; give a data \
             directory or its audit directory (if this is one, its whole log is gone)",
            directory.display()
        ),
    ))
}

fn key(path: &Path) -> Result<PublicKey, Failure> {
    let text = fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    PublicKey::from_pem(&text)
        .map_err(|error| Failure::new(Exit::Usage, format_args!("{}: {error}", path.display())))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Usage, format_args!("{}: {error}", path.display()))
}
