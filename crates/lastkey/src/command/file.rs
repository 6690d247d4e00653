//! `lastkey encrypt`, `decrypt` and `rewrap`: the file envelope over files and pipes.
//!
//! What it promises: a file that is written appears whole or not at all, and in place of another
//! only if that was asked for; the service sees data keys and never data; everything that can be
//! refused is refused before the first byte is written; and once the data keys of a run are there,
//! nobody is asked any more.
//!
//! 1. `jobs`: what is read and written, by which names.
//! 2. `keys`: the data keys, from the service or held.
//! 3. `target`: a file that gets its name when it is complete and durable.
//! 4. `writer`: what is written goes to the disk while more is.
//! 5. `report`: what is said about it, to people and to scripts.

mod interrupt;
mod jobs;
mod keys;
mod report;
mod rewrap;
mod target;
mod writer;

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use lastkey_crypto::{
    SystemEntropy,
    envelope::{CHUNK_LEN, EncryptError, Header, PayloadError, Pipeline, Room},
};
use serde_json::{Value, json};

pub(crate) use self::rewrap::rewrap;
use self::{
    jobs::{From, Job, Jobs, To},
    keys::{DataKeys, Service, Unwrapped},
    report::Report,
    target::Sink,
};
use crate::{
    cli::{Connect, DecryptOptions, EncryptOptions},
    output::{Failure, Output, chain},
};

/// What an encrypted file's name ends in.
const SUFFIX: &str = ".lastkey";

pub(crate) fn encrypt(
    connect: &Connect,
    options: &EncryptOptions,
    output: &Output,
) -> Result<(), Failure> {
    harden();
    let jobs = Jobs::to_encrypt(&options.files)?;
    let service = Service::new(connect)?;
    let hold = options.hold.map(minutes);
    let mut keys = DataKeys::new(service, options.keys.clone(), hold);
    let mut report = Report::new(output, &jobs);
    if let Some(count) = jobs.known() {
        keys.prepare(count)?;
    }
    for job in jobs {
        let outcome = job.and_then(|job| encrypt_one(&job, &mut keys, &report));
        report.done(outcome)?;
    }
    report.finish()
}

fn encrypt_one(job: &Job, keys: &mut DataKeys, report: &Report<'_>) -> Result<Value, Failure> {
    let mut source = Source::open(&job.from)?;
    let sink = Sink::create(&job.to, job.force)?;
    let held = keys.next()?;
    let room = if source.is_large(&job.from)? { Room::Spare } else { Room::Tight };
    let file = held.new_file(room, &SystemEntropy);
    let key_id = file.header().stanzas()[0].key_id();
    let mut tick = report.start(job, source.len);
    let bytes = Pipeline::new()
        .on_progress(|done| tick.at(done))
        .encrypt(file, source.reader, sink.writer())
        .map_err(|error| match error {
            EncryptError::Read(error) => job.from.failed(&error),
            EncryptError::Write(error) => job.to.failed(&error),
        })?;
    tick.end();
    sink.keep().map_err(|error| job.to.failed(&error))?;
    Ok(job.describe(bytes, json!({ "key_id": key_id })))
}

pub(crate) fn decrypt(
    connect: &Connect,
    options: &DecryptOptions,
    output: &Output,
) -> Result<(), Failure> {
    harden();
    let jobs = Jobs::to_decrypt(&options.files)?;
    let service = Service::new(connect)?;
    let mut keys = Unwrapped::new(service, options.hold.map(minutes));
    let mut report = Report::new(output, &jobs);
    if let Some(listed) = jobs.listed().filter(|listed| listed.len() > 1) {
        // All data keys first: from then on the service may be away. What a pipe gives, it gives
        // once.
        let headers = listed.filter(Job::can_be_read_twice).map(|job| {
            let header = read_header(&mut Source::open(&job.from)?.reader, &job)?;
            Ok((job, header))
        });
        keys.prepare(headers.collect::<Result<_, Failure>>()?)?;
    }
    for job in jobs {
        let outcome = job.and_then(|job| decrypt_one(&job, &mut keys, &report));
        report.done(outcome)?;
    }
    report.finish()
}

fn decrypt_one(job: &Job, keys: &mut Unwrapped, report: &Report<'_>) -> Result<Value, Failure> {
    let mut source = Source::open(&job.from)?;
    let header = read_header(&mut source.reader, job)?;
    let sink = Sink::create(&job.to, job.force)?;
    let key = keys.open(&header).map_err(|failure| job.about(failure))?;
    let mut tick = report.start(job, source.len);
    let mut released = 0;
    let end = Pipeline::new()
        .on_progress(|done| {
            released = done;
            tick.at(done);
        })
        .decrypt(&key, source.reader, sink.writer());
    let bytes = end.map_err(|error| payload_failed(&error, job, released))?;
    tick.end();
    sink.keep().map_err(|error| job.to.failed(&error))?;
    Ok(job.describe(bytes, json!({})))
}

fn read_header(source: &mut impl Read, job: &Job) -> Result<Header, Failure> {
    Header::read(source).map_err(|error| job.about(Failure::failed(chain(&error))))
}

/// A pipe got what came before the damage: whoever reads it must know that it is not everything.
fn payload_failed(error: &PayloadError, job: &Job, released: u64) -> Failure {
    let failure = match error {
        PayloadError::Read(error) => job.from.failed(error),
        PayloadError::Write(error) => job.to.failed(error),
        other => job.about(Failure::failed(chain(other))),
    };
    match job.to {
        To::Output if released > 0 => failure.and(format_args!(
            "the {released} bytes that came out are not the whole file: throw them away"
        )),
        _ => failure,
    }
}

/// No core dump of a process that holds data keys. Keys lie in locked memory either way.
fn harden() {
    let _ = lastkey_crypto::memory::harden_process();
}

fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// What is read.
struct Source {
    reader: Box<dyn Read + Send>,
    /// In bytes, where it is known.
    len: Option<u64>,
}

impl Source {
    fn open(from: &From) -> Result<Self, Failure> {
        let file = match from {
            From::File(path) => File::open(path),
            // Not the buffered standard input: our portions are large.
            From::Input => io::stdin().as_fd().try_clone_to_owned().map(File::from),
        };
        let file = file.map_err(|error| from.failed(&error))?;
        let metadata = file.metadata().map_err(|error| from.failed(&error))?;
        let len = metadata.is_file().then_some(metadata.len());
        Ok(Self { reader: Box::new(file), len })
    }

    /// Whether there is more than one chunk; of a pipe, as much is read ahead as shows it.
    fn is_large(&mut self, from: &From) -> Result<bool, Failure> {
        if let Some(len) = self.len {
            return Ok(len > CHUNK_LEN as u64);
        }
        let rest = std::mem::replace(&mut self.reader, Box::new(io::empty()));
        let mut ahead = Vec::with_capacity(CHUNK_LEN + 1);
        let mut rest = rest.take(CHUNK_LEN as u64 + 1);
        rest.read_to_end(&mut ahead).map_err(|error| from.failed(&error))?;
        let is_large = ahead.len() > CHUNK_LEN;
        self.reader = Box::new(io::Cursor::new(ahead).chain(rest.into_inner()));
        Ok(is_large)
    }
}

/// A file's name as it is reported. A name need not be text; JSON is.
fn shown(path: &Path) -> Cow<'_, str> {
    path.as_os_str().to_string_lossy()
}

/// The file that `decrypt` writes by itself.
fn without_suffix(path: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let name = path.file_name()?.as_bytes().strip_suffix(SUFFIX.as_bytes())?;
    (!name.is_empty()).then(|| path.with_file_name(std::ffi::OsString::from_vec(name.to_vec())))
}
