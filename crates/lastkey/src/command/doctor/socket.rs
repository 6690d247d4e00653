//! The plugin's socket, as the apiserver finds it.

use lastkey_kubernetes::{
    encryption_config::Finding,
    node::{ProbeError, ask_status},
    socket::{Presence, SocketAddress, SocketError, look, shell},
};

/// The two sides name the same socket.
pub(super) fn compare(
    dialled: &[SocketAddress],
    told: &[SocketAddress],
    findings: &mut Vec<Finding>,
) {
    if dialled.is_empty() || told.is_empty() {
        return;
    }
    for address in dialled.iter().filter(|address| !told.contains(address)) {
        let told: Vec<String> = told.iter().map(ToString::to_string).collect();
        let told = told.join(" and ");
        let message = format!("the apiserver dials {address}, and the plugin listens on {told}");
        let fix = format!("start the plugin with --socket {address}, or correct the endpoint");
        // it may be another provider's
        findings.push(Finding::warning("socket-differs", message).fix(fix));
    }
}

/// Whether the apiserver, which runs as that user, can work with it.
pub(super) async fn examine(
    address: &SocketAddress,
    apiserver: Option<u32>,
    findings: &mut Vec<Finding>,
) {
    if let SocketAddress::Path(path) = address {
        match look(path) {
            Ok(Presence::Alive { by, open_to_all }) => {
                if open_to_all {
                    let message = format!("every user of this machine may dial {address}");
                    let fix = format!(
                        "chmod 0600 {} # and SocketMode=0600 in a .socket unit",
                        shell(path)
                    );
                    findings.push(Finding::warning("socket-open-to-all", message).fix(fix));
                }
                owner(path, (by, apiserver), findings);
            }
            Ok(Presence::Stale) => return findings.push(nobody(address, "nobody listens on")),
            Ok(Presence::Nothing) => return findings.push(nobody(address, "there is no socket")),
            Err(error) => return findings.push(unsafe_place(&error)),
        }
    }
    findings.push(match ask_status(address).await {
        Ok(answer) if answer.healthz == "ok" => {
            let (version, key_id) = (answer.version, answer.key_id);
            Finding::info("plugin-works", format!("{address}: ok, {version}, key id {key_id}"))
        }
        Ok(answer) => {
            let message = format!("{address}: the plugin says: {}", answer.healthz);
            Finding::error("plugin-unhealthy", message)
                .fix("mend what it says before the lease ends; do not restart the apiserver")
        }
        Err(ProbeError::Dial(error)) => nobody(address, &format!("{error}:")),
        Err(error) => Finding::error("plugin-fails", format!("{address}: {error}"))
            .fix("the plugin's log says more: journalctl -u lastkey-kms-plugin"),
    });
}

fn nobody(address: &SocketAddress, what: &str) -> Finding {
    Finding::error("socket-dead", format!("{what} {address}"))
        .fix("start the plugin: systemctl start lastkey-kms-plugin.socket lastkey-kms-plugin")
}

fn unsafe_place(error: &SocketError) -> Finding {
    let text = error.to_string();
    let (message, fix) = match text.split_once("run: ") {
        Some((message, command)) => (message.trim_end_matches([' ', ';', ',']), command.to_owned()),
        None => (&*text, way_out(error)),
    };
    let code = match error {
        SocketError::OpenDirectory { .. } | SocketError::ForeignDirectory { .. } => {
            "socket-directory-unsafe"
        }
        SocketError::ForeignSocket { .. } => "socket-owner",
        SocketError::NotASocket(_) | SocketError::IsDirectory(_) => "socket-no-socket",
        _ => "socket-unreadable",
    };
    Finding::error(code, message).fix(fix)
}

/// Where the error names no command.
fn way_out(error: &SocketError) -> String {
    match error {
        SocketError::IsDirectory(path) => format!(
            "rmdir {} and start the plugin again; or give it --socket with a path in there, and the \
             apiserver the same as endpoint",
            shell(path)
        ),
        _ => {
            "run lastkey doctor as root; if it is root already, compare the path with the plugin's \
              --socket and the apiserver's endpoint"
                .to_owned()
        }
    }
}

/// An apiserver that is neither root nor the socket's owner cannot dial it.
fn owner(
    path: &std::path::Path,
    (by, apiserver): (Option<i32>, Option<u32>),
    findings: &mut Vec<Finding>,
) {
    use std::os::unix::fs::MetadataExt as _;
    let (Some(user), Ok(file)) = (apiserver, std::fs::metadata(path)) else { return };
    if user != 0 && user != file.uid() && file.mode() & 0o002 == 0 {
        let by = by.map_or_else(String::new, |by| format!(" (process {by})"));
        let message = format!(
            "the apiserver runs as user {user} and cannot dial {}, which is user {}'s{by}",
            path.display(),
            file.uid()
        );
        let fix = format!("run the plugin as user {user}, or with SocketUser={user}");
        findings.push(Finding::error("socket-owner", message).fix(fix));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_the_way_has_a_fix() {
        let place = tempfile::tempdir().unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let at = |name: &str| place.path().join(name);
        std::fs::write(at("a file"), "").unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("a link")).unwrap();
        for name in ["a file", "a link"] {
            let found = unsafe_place(&look(&at(name)).unwrap_err());
            assert_eq!(found.code, "socket-no-socket");
            assert_eq!(found.fix, format!("rm '{}'", at(name).display()));
        }
        std::fs::create_dir(at("directory")).unwrap();
        let found = unsafe_place(&look(&at("directory")).unwrap_err());
        assert!(found.fix.starts_with("rmdir "), "{found:?}");
        let missing = look(&at("none").join("kms.sock")).map_or_else(
            |it| unsafe_place(&it),
            |_| nobody(&SocketAddress::Path(at("none")), "there is no socket"),
        );
        assert!(!missing.fix.is_empty());
    }
}
