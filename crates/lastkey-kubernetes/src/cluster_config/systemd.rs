//! The plugin under systemd, which holds the listening socket: an apiserver that dials during a
//! restart waits instead of failing, and does not back off for minutes.

use super::{ConfigError, Identity, PluginCommand};

/// A service and its socket.
#[derive(Debug, Clone)]
pub struct SystemdUnits {
    /// What the service runs.
    pub command: PluginCommand,
    /// Where the binary lies.
    pub binary: String,
}

impl SystemdUnits {
    /// The content of `lastkey-kms-plugin.socket`.
    pub fn socket(&self) -> Result<String, ConfigError> {
        let path = self.command.socket_path()?.display().to_string();
        Ok(format!(
            "\
[Unit]
Description=Socket of the Lastkey KMS plugin

[Socket]
ListenStream={path}
SocketMode=0600
DirectoryMode=0700

[Install]
WantedBy=sockets.target
",
            path = specifiers(&path)?,
        ))
    }

    /// The content of `lastkey-kms-plugin.service`.
    pub fn service(&self) -> Result<String, ConfigError> {
        self.command.socket_path()?;
        let mut line = word(&self.binary)?;
        for argument in self.command.arguments() {
            line.push(' ');
            line += &word(&argument)?;
        }
        let state = specifiers(&self.command.state.display().to_string())?;
        // systemd makes this one itself, as it does with any other below /var/lib
        let mut writes = match state.strip_prefix("/var/lib/") {
            Some(name) if !name.contains(' ') => {
                format!("StateDirectory={name}\nStateDirectoryMode=0700\n")
            }
            _ => format!("ReadWritePaths={}\n", listed(&state)),
        };
        if let Identity::Files(directory) = &self.command.identity {
            let directory = listed(&specifiers(&directory.display().to_string())?);
            writes +=
                &format!("# the certificate is renewed in its place\nReadWritePaths={directory}\n");
        }
        Ok(format!(
            "\
[Unit]
Description=Lastkey KMS plugin for kube-apiserver
Requires=lastkey-kms-plugin.socket
Wants=network-online.target
After=network-online.target lastkey-kms-plugin.socket
# whichever of them runs the apiserver here
Before=kubelet.service k3s.service rke2-server.service
# never gives up: the socket is held, and the apiserver waits
StartLimitIntervalSec=0

[Service]
# an upgrade in place tells systemd which process goes on
Type=notify
ExecStart={line}
# takes the binary that now lies at the same path, and fails no call
ExecReload=/bin/kill -USR2 $MAINPID
Restart=always
RestartSec=100ms
TimeoutStopSec=15
{writes}UMask=0077
LimitCORE=0
# what it remembers is locked in memory
LimitMEMLOCK=64M
CapabilityBoundingSet=
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"
        ))
    }
}

/// One word of a command line (`systemd.service(5)`, COMMAND LINES), the only place where variables
/// are expanded.
fn word(text: &str) -> Result<String, ConfigError> {
    Ok(listed(&specifiers(text)?.replace('$', "$$")))
}

/// One of a list's items.
fn listed(item: &str) -> String {
    let escaped = item.replace('\\', "\\\\").replace('"', "\\\"");
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@=,+".contains(&byte);
    match !escaped.is_empty() && escaped.bytes().all(plain) {
        true => escaped,
        false => format!("\"{escaped}\""),
    }
}

/// A percent sign begins a specifier everywhere in a unit.
fn specifiers(text: &str) -> Result<String, ConfigError> {
    match text.chars().any(char::is_control) {
        true => Err(ConfigError::Control(text.to_owned())),
        false => Ok(text.replace('%', "%%")),
    }
}
