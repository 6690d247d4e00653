//! From the options that name a server to a client of it.

use std::path::{Path, PathBuf};

use lastkey_client::{Client, Config, Credentials};

use crate::{
    cli::Connect,
    output::{Exit, Failure},
};

const CREDENTIALS: &str = "credentials.json";

/// A client with the credentials that were given, or found where they usually are.
pub(crate) fn client(connect: &Connect) -> Result<Client, Failure> {
    Ok(Client::new(config(connect)?)?)
}

/// What that client is made from.
pub(crate) fn config(connect: &Connect) -> Result<Config, Failure> {
    if let Some(socket) = &connect.admin_socket {
        return Ok(Config::admin(socket.clone()));
    }
    Ok(Config::from_credentials(credentials(connect)?))
}

/// The credentials that were given, or found where they usually are.
pub(crate) fn credentials(connect: &Connect) -> Result<Credentials, Failure> {
    let path = match &connect.credentials {
        Some(path) => path.clone(),
        None => find()?,
    };
    Credentials::read(&path).map_err(|error| Failure::new(Exit::Usage, error))
}

/// The first credentials file that exists.
fn find() -> Result<PathBuf, Failure> {
    let places = places();
    places.iter().find(|path| path.exists()).cloned().ok_or_else(|| {
        let looked: Vec<String> = places.iter().map(|path| path.display().to_string()).collect();
        let looked = looked.join(" and ");
        Failure::new(
            Exit::Usage,
            format_args!(
                "no credentials: give --credentials FILE, or set LASTKEY_CREDENTIALS to the file \
                 that `lastkey up` names (looked for {looked})"
            ),
        )
    })
}

fn places() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let configuration = std::env::var_os("XDG_CONFIG_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| home.map(|home| home.join(".config")));
    let mut places: Vec<PathBuf> =
        configuration.into_iter().map(|dir| dir.join("lastkey").join(CREDENTIALS)).collect();
    places.push(default_data_dir().join(CREDENTIALS));
    places
}

/// Where `up` keeps everything unless told otherwise.
pub(crate) fn default_data_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/lastkey");
    }
    let state = std::env::var_os("XDG_STATE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".local/state")));
    state.unwrap_or_else(std::env::temp_dir).join("lastkey")
}

/// Runs one client command to its end.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?
        .block_on(work)
}
