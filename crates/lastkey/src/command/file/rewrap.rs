//! `lastkey rewrap`: other keys for an encrypted file, its data as it is.
//!
//! 1. The file is locked against another rewrap, and its header read.
//! 2. The slot of the header that does not count is overwritten with zeros, and synced, if anything
//!    is in it: a rewrap that was interrupted between 4 and 5 left the old list there.
//! 3. The service re-encrypts the wrapped data key under each new key: neither the data key nor
//!    the data come out.
//! 4. The new list of wrapped keys is written into the free slot of the header, and synced.
//! 5. The old list is overwritten with zeros, and synced.
//!
//! A header without room is replaced by a copy of the file: written beside it as [`Target`] does,
//! with a reflink where the file system can. A kill at any time leaves the file with the old keys
//! or with the new ones.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::Path,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lastkey_client::Client;
use lastkey_crypto::{
    EncryptionContext, KeyId,
    envelope::{CHUNK_LEN, Header, HeaderError, Patch, Room, Stanza},
};
use rustix::{fs::FlockOperation, io::Errno};
use serde_json::{Value, json};

use super::{
    keys::{Service, stanza},
    report::Report,
    shown,
    target::Target,
};
use crate::{
    cli::{Connect, RewrapOptions},
    command::wire::key_id,
    output::{Exit, Failure, Output, chain},
};

pub(crate) fn rewrap(
    connect: &Connect,
    options: &RewrapOptions,
    output: &Output,
) -> Result<(), Failure> {
    let service = Service::new(connect)?;
    let plan = service.ask(|client| Plan::new(client, options))?;
    let mut report = Report::over(output, options.files.len());
    for path in &options.files {
        let outcome = rewrap_one(path, &service, &plan).map(|(key_ids, in_place)| {
            json!({ "rewrapped": shown(path), "key_ids": key_ids, "in_place": in_place })
        });
        report.done(outcome.map_err(|failure| failure.about(path.display())))?;
    }
    report.finish()
}

/// Which keys are to open a file.
enum Plan {
    /// Those that do, in their newest versions.
    Refresh,
    /// These alone.
    Only(Vec<KeyId>),
    /// Some more, some no longer.
    Change { add: Vec<KeyId>, remove: Vec<KeyId> },
}

impl Plan {
    async fn new(client: &Client, options: &RewrapOptions) -> Result<Self, Failure> {
        let [keys, add, remove] = [&options.keys, &options.add_keys, &options.remove_keys];
        if !keys.is_empty() {
            return Ok(Self::Only(key_ids(client, keys).await?));
        }
        if add.is_empty() && remove.is_empty() {
            return Ok(Self::Refresh);
        }
        Ok(Self::Change {
            add: key_ids(client, add).await?,
            remove: key_ids(client, remove).await?,
        })
    }
}

/// The ids behind ids, aliases and ARNs, each once.
async fn key_ids(client: &Client, keys: &[String]) -> Result<Vec<KeyId>, Failure> {
    let mut ids = Vec::new();
    for key in keys {
        let id = key_id(client, key).await?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// Which keys open it from now on, and whether that took no copy.
fn rewrap_one(path: &Path, service: &Service, plan: &Plan) -> Result<(Vec<KeyId>, bool), Failure> {
    // The file itself, so that a copy does not replace a link to it.
    let path = path.canonicalize().map_err(|error| failed(&error))?;
    let mut file = locked(&path)?;
    let mut header = Header::read(&mut file).map_err(|error| Failure::failed(chain(&error)))?;
    let invalid = |error: HeaderError| Failure::failed(chain(&error));
    let gone = clear_remains(&file, &header).map_err(|error| failed(&error))?;
    let stanzas = service.ask(|client| new_stanzas(client, &header, plan, &gone))?;
    let keys: Vec<KeyId> = stanzas.iter().map(Stanza::key_id).collect();
    let in_place = match header.replace(stanzas.clone()).map_err(invalid)? {
        Some(patches) => {
            for patch in patches {
                file.write_all_at(&patch.bytes, patch.offset).map_err(|error| failed(&error))?;
                file.sync_data().map_err(|error| failed(&error))?;
            }
            true
        }
        None => {
            replace_by_copy(&path, &mut file, header, stanzas)?;
            false
        }
    };
    Ok((keys, in_place))
}

/// Opens a file to be changed, which nobody else changes meanwhile.
fn locked(path: &Path) -> Result<File, Failure> {
    let open = || OpenOptions::new().read(true).write(true).open(path);
    let file = open().map_err(|error| failed(&error))?;
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(Failure::failed("only a file can be rewrapped"));
    }
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Err(Failure::failed("another rewrap is at work on it")),
        locked => locked.map_err(|error| failed(&error.into()))?,
    }
    // While we waited for nothing, another rewrap may have put a copy in its place.
    let inode = |metadata: io::Result<std::fs::Metadata>| {
        metadata.map(|metadata| (metadata.dev(), metadata.ino())).ok()
    };
    if inode(file.metadata()) != inode(path.metadata()) {
        return Err(Failure::failed("it was replaced just now; try again"));
    }
    Ok(file)
}

/// Blanks what an interrupted rewrap left in the slot that does not count, and says which keys
/// opened the file by that, as far as it is whole.
fn clear_remains(file: &File, header: &Header) -> io::Result<Vec<KeyId>> {
    // Where the slots are shows where a list would be written, and which one would be blanked.
    let Ok(Some([free, counts])) = header.clone().replace(header.stanzas().to_vec()) else {
        return Ok(Vec::new());
    };
    let mut remains = vec![0; free.bytes.len()];
    file.read_exact_at(&mut remains, free.offset)?;
    if remains.iter().all(|byte| *byte == 0) {
        return Ok(Vec::new());
    }
    let keys = keys_without(file, &counts, &free)?;
    remains.fill(0);
    file.write_all_at(&remains, free.offset)?;
    file.sync_data()?;
    Ok(keys)
}

/// The keys of the header's other list, which is the one that counts without the first.
fn keys_without(file: &File, counts: &Patch, other: &Patch) -> io::Result<Vec<KeyId>> {
    let start = usize::try_from(counts.offset).map_err(io::Error::other)?;
    let slots = counts.offset.max(other.offset) + counts.bytes.len() as u64;
    let mut bytes = vec![0; usize::try_from(slots).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    bytes[start..start + counts.bytes.len()].copy_from_slice(&counts.bytes);
    let header = Header::read(&mut &bytes[..]);
    Ok(header.map_or_else(|_| Vec::new(), |header| ids(&header)))
}

fn ids(header: &Header) -> Vec<KeyId> {
    header.stanzas().iter().map(Stanza::key_id).collect()
}

/// The wrapped keys that are to be in the header. To remove a key that is `gone` already, by what
/// this command cleared away, is no mistake.
async fn new_stanzas(
    client: &Client,
    header: &Header,
    plan: &Plan,
    gone: &[KeyId],
) -> Result<Vec<Stanza>, Failure> {
    let stays = |stanza: &&Stanza| match plan {
        Plan::Refresh => true,
        Plan::Only(_) => false,
        Plan::Change { add, remove } => {
            !add.contains(&stanza.key_id()) && !remove.contains(&stanza.key_id())
        }
    };
    let mut stanzas: Vec<Stanza> = header.stanzas().iter().filter(stays).cloned().collect();
    match plan {
        Plan::Refresh => {
            for stanza in &mut stanzas {
                let one = std::slice::from_ref(stanza);
                *stanza = wrap(client, one, header, stanza.key_id()).await?;
            }
        }
        Plan::Only(add) | Plan::Change { add, .. } => {
            for key in add {
                stanzas.push(wrap(client, header.stanzas(), header, *key).await?);
            }
        }
    }
    if let Plan::Change { remove, .. } = plan {
        let there = ids(header);
        let is_unknown = |key: &&KeyId| !there.contains(key) && !gone.contains(key);
        if let Some(unknown) = remove.iter().find(is_unknown) {
            return Err(Failure::new(Exit::NotFound, format_args!("{unknown} does not open it")));
        }
    }
    if stanzas.is_empty() {
        return Err(Failure::failed("no key would be left that opens it"));
    }
    Ok(stanzas)
}

/// Has the data key wrapped under `key`, by way of the first wrapping that the service opens.
async fn wrap(
    client: &Client,
    from: &[Stanza],
    header: &Header,
    key: KeyId,
) -> Result<Stanza, Failure> {
    let context = context_json(&header.context());
    let key = key.to_string();
    let mut refusal = None;
    for old in from {
        let blob = STANDARD.encode(old.wrapped());
        let parameters = [
            ("CiphertextBlob", &*blob),
            ("DestinationKeyId", &*key),
            ("SourceEncryptionContext", &*context),
            ("DestinationEncryptionContext", &*context),
        ];
        match client.alibaba("ReEncrypt", &parameters).await {
            Ok(answer) => {
                let blob = answer["CiphertextBlob"].as_str().unwrap_or_default();
                let blob = STANDARD.decode(blob).map_err(Failure::failed)?;
                return stanza(answer["KeyId"].as_str().unwrap_or(&key), blob);
            }
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.map_or_else(|| Failure::failed("the file names no key"), Failure::from))
}

fn context_json(context: &EncryptionContext) -> String {
    let pairs = context.iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
    Value::Object(pairs).to_string()
}

/// Writes the file anew behind another header.
fn replace_by_copy(
    path: &Path,
    file: &mut File,
    header: Header,
    stanzas: Vec<Stanza>,
) -> Result<(), Failure> {
    let payload = |file: &mut File| -> io::Result<u64> {
        let (at, len) = (file.stream_position()?, file.metadata()?.len());
        Ok(len.saturating_sub(at))
    };
    let len = payload(file).map_err(|error| failed(&error))?;
    let room = if len > CHUNK_LEN as u64 { Room::Spare } else { Room::Tight };
    let header =
        header.with_stanzas(stanzas, room).map_err(|error| Failure::failed(chain(&error)))?;
    let target =
        Target::beside(path, file).map_err(|(place, error)| Failure::file(&place, &error))?;
    let mut copy = target.file();
    copy.write_all(&header.encode()).map_err(|error| failed(&error))?;
    // By `copy_file_range`, within the kernel.
    io::copy(file, &mut copy).map_err(|error| failed(&error))?;
    target.keep().map_err(|error| failed(&error))
}

fn failed(error: &io::Error) -> Failure {
    Failure::failed(error)
}
