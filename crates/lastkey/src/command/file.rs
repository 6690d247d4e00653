//! `lastkey encrypt` and `lastkey decrypt`: the file envelope over files and pipes.
//!
//! A file that is written appears whole or not at all, and never in place of another: it grows
//! without a name (`O_TMPFILE`) and gets its name when it is complete and durable.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use lastkey_client::{Client, Kms};
use lastkey_crypto::{
    KeyMaterial, SystemEntropy,
    envelope::{Header, HeldKey, KeySalt, PayloadError, Pipeline, Room, Stanza},
};
use rustix::fs::{AtFlags, CWD, OFlags};
use serde_json::json;

use crate::{
    cli::{Connect, DecryptOptions, EncryptOptions, Files},
    connect::{block_on, client},
    output::{Exit, Failure, Output, chain},
};

/// The length of a data key in bytes.
const DATA_KEY_BYTES: u16 = 32;

pub(crate) fn encrypt(
    connect: &Connect,
    options: &EncryptOptions,
    output: &Output,
) -> Result<(), Failure> {
    let client = client(connect)?;
    let source = Source::open(&options.files)?;
    let sink = Sink::create(&options.files)?;
    let salt = KeySalt::random(&SystemEntropy);
    let made = block_on(async {
        Ok(client.generate_data_key(&options.key, DATA_KEY_BYTES, &salt.context()).await?)
    })?;
    let data_key = KeyMaterial::from_slice(made.plaintext.expose());
    let key_id = made.wrapped.key_id.parse().map_err(Failure::failed)?;
    let stanza = Stanza::new(key_id, made.wrapped.blob).map_err(Failure::failed)?;
    let failed = |error: &dyn std::error::Error| Failure::failed(chain(error));
    let held = HeldKey::new(salt, data_key, vec![stanza]).map_err(|e| failed(&e))?;
    let file = held.new_file(Room::Tight, &SystemEntropy);
    let mut sink = sink;
    let pipeline = Pipeline::new();
    let bytes =
        pipeline.encrypt(file, source.reader(), &mut sink).map_err(|error| failed(&error))?;
    sink.keep().map_err(|e| options.files.write_failed(&e))?;
    report(&options.files, bytes, output, &json!({ "key_id": made.wrapped.key_id }));
    Ok(())
}

pub(crate) fn decrypt(
    connect: &Connect,
    options: &DecryptOptions,
    output: &Output,
) -> Result<(), Failure> {
    let client = client(connect)?;
    let mut source = Source::open(&options.files)?.reader();
    let header = Header::read(&mut source).map_err(|error| Failure::failed(chain(&error)))?;
    let sink = Sink::create(&options.files)?;
    let data_key = block_on(unwrap(&client, &header))?;
    let key = header.open(&data_key).map_err(|error| payload(&error))?;
    let mut sink = sink;
    let bytes =
        Pipeline::new().decrypt(&key, source, &mut sink).map_err(|error| payload(&error))?;
    sink.keep().map_err(|error| options.files.write_failed(&error))?;
    report(&options.files, bytes, output, &json!({}));
    Ok(())
}

/// Opens the data key with the first stanza that the service opens.
async fn unwrap(client: &Client, header: &Header) -> Result<KeyMaterial, Failure> {
    let mut refusal = None;
    for stanza in header.stanzas() {
        match client.decrypt(stanza.wrapped(), &header.context()).await {
            Ok(data_key) => return Ok(KeyMaterial::from_slice(data_key.expose())),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.map_or_else(|| Failure::failed("the file names no key"), Failure::from))
}

fn payload(error: &PayloadError) -> Failure {
    Failure::failed(chain(error))
}

/// Tells what was written, where standard output is not the file itself.
fn report(files: &Files, bytes: u64, output: &Output, more: &serde_json::Value) {
    let Some(path) = &files.out else { return };
    let mut said = json!({ "file": path, "plaintext_bytes": bytes });
    if let (Some(said), Some(more)) = (said.as_object_mut(), more.as_object()) {
        said.extend(more.clone());
    }
    output.object(&said, || format!("wrote {}", path.display()));
}

impl Files {
    fn write_failed(&self, error: &io::Error) -> Failure {
        match &self.out {
            Some(path) if error.kind() == io::ErrorKind::AlreadyExists => exists(path),
            Some(path) => Failure::file(path, error),
            None => Failure::failed(format_args!("standard output: {error}")),
        }
    }
}

fn exists(path: &Path) -> Failure {
    Failure::failed(format_args!(
        "{} exists already and is left as it is; name another file",
        path.display()
    ))
}

/// What to read.
enum Source {
    File(File),
    Input,
}

impl Source {
    fn open(files: &Files) -> Result<Self, Failure> {
        match &files.input {
            None => Ok(Self::Input),
            Some(path) => File::open(path).map(Self::File).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => {
                    Failure::new(Exit::Failed, format_args!("{}: no such file", path.display()))
                }
                _ => Failure::file(path, &error),
            }),
        }
    }

    fn reader(self) -> Box<dyn Read + Send> {
        match self {
            Self::File(file) => Box::new(BufReader::with_capacity(1 << 17, file)),
            Self::Input => Box::new(io::stdin()),
        }
    }
}

/// What to write.
enum Sink {
    /// A file without a name yet.
    Unnamed {
        file: BufWriter<File>,
        path: PathBuf,
    },
    /// A file of this name, where the file system knows no nameless ones; removed on failure.
    Named {
        file: BufWriter<File>,
        path: PathBuf,
        kept: bool,
    },
    Output(BufWriter<io::Stdout>),
}

impl Sink {
    fn create(files: &Files) -> Result<Self, Failure> {
        let Some(path) = &files.out else { return Ok(Self::Output(BufWriter::new(io::stdout()))) };
        if path.symlink_metadata().is_ok() {
            return Err(exists(path));
        }
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let flags = OFlags::TMPFILE.bits().cast_signed();
        let unnamed =
            OpenOptions::new().write(true).custom_flags(flags).mode(0o600).open(directory);
        let path = path.clone();
        match unnamed {
            Ok(file) => Ok(Self::Unnamed { file: BufWriter::with_capacity(1 << 17, file), path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(Failure::file(directory, &error))
            }
            Err(_) => {
                let named = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
                let file = named.map_err(|error| files.write_failed(&error))?;
                Ok(Self::Named { file: BufWriter::with_capacity(1 << 17, file), path, kept: false })
            }
        }
    }

    /// Makes what was written durable and visible.
    fn keep(mut self) -> io::Result<()> {
        self.flush()?;
        match &mut self {
            Self::Output(_) => Ok(()),
            Self::Named { file, kept, .. } => {
                file.get_ref().sync_all()?;
                *kept = true;
                Ok(())
            }
            Self::Unnamed { file, path } => {
                file.get_ref().sync_all()?;
                let descriptor = std::os::fd::AsRawFd::as_raw_fd(file.get_ref());
                let from = format!("/proc/self/fd/{descriptor}");
                rustix::fs::linkat(CWD, from, CWD, &*path, AtFlags::SYMLINK_FOLLOW)?;
                Ok(())
            }
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Unnamed { file, .. } | Self::Named { file, .. } => file.write(bytes),
            Self::Output(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Unnamed { file, .. } | Self::Named { file, .. } => file.flush(),
            Self::Output(out) => out.flush(),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Self::Named { path, kept: false, .. } = self {
            let _ = std::fs::remove_file(path);
        }
    }
}
