//! How far a sink has come, remembered across restarts.
//!
//! A small file for each sink, replaced whole after lots that arrived. It is not synchronised: a
//! power cut can set it back, and then some lines come twice.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use lastkey_crypto::mac;
use lastkey_engine::audit::{Follower, Place};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Kept {
    /// For people who look.
    sink: String,
    seq: u64,
    checkpoint: u64,
}

/// The file of one sink.
pub(crate) struct PlaceFile {
    path: PathBuf,
    sink: String,
}

impl PlaceFile {
    pub(crate) fn new(directory: &Path, sink: String) -> io::Result<Self> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let name = hex::encode(&mac::sha256(&[sink.as_bytes()])[..8]);
        Ok(Self { path: directory.join(format!("{name}.json")), sink })
    }

    /// Where to go on; a new sink begins with what is recorded from now on.
    pub(crate) fn load(&self, audit: &Path) -> io::Result<Place> {
        match fs::read(&self.path) {
            Ok(bytes) => parse(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let place = match Follower::end(audit) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Place::default(),
                    place => place?,
                };
                self.store(place)?;
                Ok(place)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn store(&self, place: Place) -> io::Result<()> {
        let Place { seq, checkpoint } = place;
        let kept = Kept { sink: self.sink.clone(), seq, checkpoint };
        let temporary = self.path.with_extension("new");
        let mut options = fs::OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        io::Write::write_all(&mut file, &serde_json::to_vec(&kept)?)?;
        drop(file);
        fs::rename(&temporary, &self.path)
    }
}

/// Reads what the file holds.
pub(crate) fn parse(bytes: &[u8]) -> io::Result<Place> {
    match serde_json::from_slice::<Kept>(bytes) {
        Ok(Kept { seq, checkpoint, .. }) => Ok(Place { seq, checkpoint }),
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
    }
}
