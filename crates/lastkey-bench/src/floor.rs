//! The floor: the same transport, cipher and disk as lastkey's, and no work.
//!
//! One process, as `lastkey up` is: HTTPS on loopback, a bare gRPC service on one unix socket, and
//! on another a gRPC service that asks the HTTPS floor for each call. Nothing is parsed beyond
//! what hyper and tonic parse by themselves, nobody is authenticated, nothing is looked up.

mod committer;
mod https;
pub(crate) mod keeper;
mod null;
mod plugin;
pub(crate) mod shape;

use std::{io::Write as _, net::SocketAddr, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{error::Error, heap, options::FloorOptions};
use committer::Committer;
use keeper::Keeper;

/// What the floor says once it serves.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct FloorReady {
    /// Where HTTPS is.
    pub(crate) address: SocketAddr,
    /// Where the null answer is.
    pub(crate) null: SocketAddr,
    /// Its self-signed certificate, DER in base64.
    pub(crate) certificate: String,
    /// gRPC that answers from memory.
    pub(crate) bare_socket: PathBuf,
    /// gRPC that asks the HTTPS floor.
    pub(crate) backed_socket: PathBuf,
    /// Tells what was allocated so far, where that is counted.
    pub(crate) counters: PathBuf,
}

/// Serves until it is killed.
pub(crate) fn run(options: &FloorOptions) -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(options))
}

async fn serve(options: &FloorOptions) -> Result<(), Error> {
    let committer = Arc::new(Committer::start(&options.dir.join("floor.journal"))?);
    let keeper = match &options.shape {
        Some(shape) => Some(Keeper::start(&options.dir.join("floor.redb"), shape.clone())?),
        None => None,
    };
    let https = https::Floor::new(options, committer, keeper)?;
    let (listeners, ready) = https.listen(&options.dir).await?;
    let backend = plugin::Backend::new(ready.address, https.certificate())?;
    let sizes = (options.plaintext, options.ciphertext);
    let bare = plugin::listen(&ready.bare_socket, sizes, None)?;
    let backed = plugin::listen(&ready.backed_socket, sizes, Some(backend))?;
    if options.count {
        heap::count(&ready.counters)?;
    }
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, &ready).map_err(std::io::Error::from)?;
    writeln!(out)?;
    out.flush()?;
    drop(out);
    tokio::select! {
        ended = https.serve(listeners) => ended,
        ended = bare => ended,
        ended = backed => ended,
    }
}
