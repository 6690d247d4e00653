//! From the options that name a server to a client of it.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use lastkey_client::{Client, Config, Credentials};

use crate::{
    cli::Connect,
    output::{Exit, Failure},
};

const CREDENTIALS: &str = "credentials.json";
/// Names the credentials file, for who does not want to with every command.
const VARIABLE: &str = "LASTKEY_CREDENTIALS";

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
        let looked = match &looked[..] {
            [] => "nowhere: neither HOME nor XDG_CONFIG_HOME names a directory".to_owned(),
            looked => looked.join(" and "),
        };
        Failure::new(
            Exit::Usage,
            format_args!(
                "no credentials: give --credentials FILE, or set {VARIABLE} to the file that \
                 `lastkey up` names (looked for {looked})"
            ),
        )
    })
}

/// The admin socket of a server on this machine, where no option says which server is meant: the
/// one beside the credentials that would be used, or in the default data directory if there are
/// none.
pub(crate) fn socket_at_hand(connect: &Connect) -> Option<PathBuf> {
    if connect.admin_socket.is_some() {
        return None;
    }
    let directory = match &connect.credentials {
        Some(path) if !is_from_environment(path) => return None,
        Some(path) => path.parent()?.to_owned(),
        None => match find() {
            Ok(credentials) => credentials.parent()?.to_owned(),
            Err(_) => default_data_dir()?,
        },
    };
    Some(directory.join("admin.sock")).filter(|socket| socket.exists())
}

/// Whether these credentials are what every command takes: the option names them, and so does the
/// environment where that is not given.
fn is_from_environment(credentials: &Path) -> bool {
    std::env::var_os(VARIABLE).is_some_and(|named| named == credentials.as_os_str())
}

fn places() -> Vec<PathBuf> {
    let configuration = own("XDG_CONFIG_HOME", ".config", |name| std::env::var_os(name));
    let configuration = configuration.map(|directory| directory.join("lastkey"));
    let directories = configuration.into_iter().chain(default_data_dir());
    directories.map(|directory| directory.join(CREDENTIALS)).collect()
}

/// Where `up` keeps everything unless told otherwise. Nowhere for a user without a home: what lies
/// in a directory that all share is another's to place, and anybody's to clean up.
pub(crate) fn default_data_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/var/lib/lastkey"));
    }
    let state = own("XDG_STATE_HOME", ".local/state", |name| std::env::var_os(name));
    state.map(|directory| directory.join("lastkey"))
}

/// A directory of the user's: as `variable` says, else below the home directory. A name that is
/// not absolute would be another directory in each place that a command is run from.
fn own(
    variable: &str,
    below_home: &str,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Option<PathBuf> {
    let absolute = |name| environment(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
}

/// The default data directory of who cannot do without one.
///
/// # Errors
///
/// There is none; `option` is what names one.
pub(crate) fn data_dir_or(option: &str) -> Result<PathBuf, Failure> {
    default_data_dir().ok_or_else(|| {
        Failure::new(
            Exit::Usage,
            format_args!("neither HOME nor XDG_STATE_HOME names a directory: give {option} DIR"),
        )
    })
}

/// Runs one client command to its end.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?
        .block_on(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_home_has_no_directory_that_others_share() {
        let found = |state: Option<&str>, home: Option<&str>| {
            own("XDG_STATE_HOME", ".local/state", |name| {
                let value = if name == "HOME" { home } else { state };
                value.map(OsString::from)
            })
        };
        assert_eq!(found(Some("/s"), Some("/h")), Some("/s".into()));
        assert_eq!(found(Some(""), Some("/h")), Some("/h/.local/state".into()));
        for nothing in [None, Some(""), Some("here")] {
            assert_eq!(found(nothing, nothing), None);
        }
    }
}
