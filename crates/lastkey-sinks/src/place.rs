//! How far a sink has come, remembered across restarts.
//!
//! A small file for each sink, replaced whole and durably after lots that arrived, once a second at
//! most. What arrived since comes twice after a crash. Where the file cannot be read, or holds
//! nothing that makes sense, the sink begins with the oldest record there is: what comes twice does
//! less harm than what never comes. Nothing about the file keeps a server from starting.
//!
//! Beside the last record's number the file has its hash: a number alone fits any log.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use lastkey_crypto::mac;
use lastkey_engine::audit::{Follower, Place};
use lastkey_store::disk::{Disk as _, FileSystem, Readers, replace};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Kept {
    /// For people who look.
    sink: String,
    seq: u64,
    checkpoint: u64,
    /// Files of older releases have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hash: Option<String>,
}

/// How far a sink has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) place: Place,
    /// SHA-256 of the last record's line, where that is known.
    pub(crate) hash: Option<[u8; 32]>,
}

/// Where a sink begins.
#[derive(Debug)]
pub(crate) struct Beginning {
    pub(crate) reached: Reached,
    /// Whether a restart would begin there too.
    pub(crate) is_kept: bool,
    /// What whoever looks after the sink should know.
    pub(crate) remark: Option<String>,
}

/// The file of one sink.
pub(crate) struct PlaceFile {
    path: PathBuf,
    sink: String,
}

impl PlaceFile {
    pub(crate) fn new(directory: &Path, sink: String) -> Self {
        let name = hex::encode(&mac::sha256(&[sink.as_bytes()])[..8]);
        Self { path: directory.join(format!("{name}.json")), sink }
    }

    /// Where to go on; a new sink begins with what is recorded from now on.
    pub(crate) fn load(&self, audit: &Path) -> Beginning {
        match fs::read(&self.path).and_then(|bytes| parse(&bytes)) {
            Ok(reached) => Beginning { reached, is_kept: true, remark: None },
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.begin(audit),
            Err(error) => self.begin_at_the_oldest(audit, format_args!("cannot be read: {error}")),
        }
    }

    /// Of a new sink.
    fn begin(&self, audit: &Path) -> Beginning {
        let end = match Follower::end(audit) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Place::default(),
            Err(error) => {
                let why = format_args!("is not there yet, and the log cannot be read: {error}");
                return self.begin_at_the_oldest(audit, why);
            }
            Ok(end) => end,
        };
        let reached = Reached { place: end, hash: None };
        let stored = self.store(reached);
        if let Err(error) = &stored {
            tracing::warn!(sink = self.sink, %error, "where the new audit sink begins is not \
                remembered yet");
        }
        Beginning { reached, is_kept: stored.is_ok(), remark: None }
    }

    fn begin_at_the_oldest(&self, audit: &Path, why: impl fmt::Display) -> Beginning {
        let file = self.path.display();
        let remark = format!("{file} {why}; it began again with the oldest record");
        tracing::warn!(
            sink = self.sink,
            file = %file,
            "how far the audit sink had come is not known, for the file {why}; it begins again with \
             the oldest record"
        );
        let reached = Reached { place: beginning(audit), hash: None };
        Beginning { reached, is_kept: false, remark: Some(remark) }
    }

    /// Durable once it returns.
    pub(crate) fn store(&self, reached: Reached) -> io::Result<()> {
        let Reached { place: Place { seq, checkpoint }, hash } = reached;
        let kept = Kept { sink: self.sink.clone(), seq, checkpoint, hash: hash.map(hex::encode) };
        self.make_directory()?;
        replace(&FileSystem, &self.path, &serde_json::to_vec(&kept)?, Readers::Owner)
    }

    /// A directory that a power cut takes away would take the place with it.
    fn make_directory(&self) -> io::Result<()> {
        let Some(directory) = self.path.parent() else { return Ok(()) };
        if directory.is_dir() {
            return Ok(());
        }
        FileSystem.create_directory(directory)?;
        directory.parent().map_or(Ok(()), |above| FileSystem.sync_directory(above))
    }
}

/// Before the oldest record there is; of a log that cannot be read, before the first.
pub(crate) fn beginning(audit: &Path) -> Place {
    Follower::beginning(audit).unwrap_or_default()
}

/// Reads what the file holds.
pub(crate) fn parse(bytes: &[u8]) -> io::Result<Reached> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    let kept: Kept = serde_json::from_slice(bytes)?;
    let hash = kept.hash.map(|hash| {
        let mut bytes = [0; 32];
        hex::decode_to_slice(hash, &mut bytes).map(|()| bytes).map_err(invalid)
    });
    let place = Place { seq: kept.seq, checkpoint: kept.checkpoint };
    Ok(Reached { place, hash: hash.transpose()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_read_back_and_a_file_of_an_older_release_too() {
        let directory = tempfile::tempdir().unwrap();
        let places = PlaceFile::new(&directory.path().join("places"), "stdout".into());
        for hash in [None, Some([7; 32])] {
            let reached = Reached { place: Place { seq: 7, checkpoint: 3 }, hash };
            places.store(reached).unwrap();
            let found = places.load(directory.path());
            assert_eq!((found.reached, found.is_kept, found.remark), (reached, true, None));
        }
        let old = parse(br#"{"sink":"stdout","seq":7,"checkpoint":3}"#).unwrap();
        assert_eq!(old, Reached { place: Place { seq: 7, checkpoint: 3 }, hash: None });
    }

    #[test]
    fn what_makes_no_sense_is_said() {
        let wrong: [&[u8]; 4] = [
            b"",
            b"\0\0\0\0",
            br#"{"sink":"stdout","seq":-1,"checkpoint":3}"#,
            br#"{"sink":"stdout","seq":7,"checkpoint":3,"hash":"07"}"#,
        ];
        let directory = tempfile::tempdir().unwrap();
        let places = PlaceFile::new(directory.path(), "stdout".into());
        for content in wrong {
            fs::write(&places.path, content).unwrap();
            let found = places.load(directory.path());
            assert_eq!((found.reached, found.is_kept), (Reached::default(), false));
            assert!(found.remark.unwrap().contains("oldest"), "{content:?}");
        }
    }
}
