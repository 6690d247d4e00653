//! A restore of a backup whose root key rests under a PKCS#11 token (SoftHSM2).

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use lastkey_testbed::{Lastkey, Peers};

use super::{Setting, report};

const PIN: &str = "161803";
const MODULES: [&str; 3] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
];

/// A token, and what opens it.
struct Token {
    module: PathBuf,
    pin: PathBuf,
}

impl Token {
    /// Makes one, and has the setting's binary find it.
    fn make(setting: &mut Setting, peers: &Peers) -> Self {
        let lab = &mut setting.lab;
        let (tokens, config) = (lab.folder("tokens"), lab.path("softhsm2.conf"));
        let text = format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display());
        fs::write(&config, text).unwrap();
        let made = Command::new(peers.path("softhsm2-util"))
            .env("SOFTHSM2_CONF", &config)
            .args(["--init-token", "--free", "--label", "lab", "--so-pin", "314159", "--pin", PIN])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // The module reads its configuration from the environment.
        let wrapper = lab.path("lastkey");
        let binary = lab.lastkey.binary().display().to_string();
        let script =
            format!("#!/bin/sh\nSOFTHSM2_CONF={} exec {binary} \"$@\"\n", config.display());
        fs::write(&wrapper, script).unwrap();
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
        let logs = lab.folder("logs");
        lab.lastkey = Lastkey::new(&wrapper, logs);
        let pin = lab.path("pin");
        fs::write(&pin, format!("{PIN}\n")).unwrap();
        fs::set_permissions(&pin, fs::Permissions::from_mode(0o600)).unwrap();
        let module = MODULES.iter().map(PathBuf::from).find(|path| path.exists()).unwrap();
        Self { module, pin }
    }

    fn options(&self) -> [(&str, &Path); 3] {
        [
            ("--pkcs11-module", &self.module),
            ("--pkcs11-token", Path::new("lab")),
            ("--pkcs11-pin-file", &self.pin),
        ]
    }
}

#[test]
fn a_backup_under_a_token_is_opened_by_it_or_says_what_it_needs() {
    let Some(mut setting) = Setting::new("a drill with a token") else { return };
    let Some(peers) = Peers::or_skip("a drill with a token", &["softhsm2-util"]) else { return };
    let token = Token::make(&mut setting, &peers);
    let data = setting.lab.path("data");
    let mut args: Vec<&OsStr> = ["up", "--data-dir"].map(OsStr::new).to_vec();
    args.push(data.as_os_str());
    args.extend(["--listen", "127.0.0.1:0", "--seal", "pkcs11"].map(OsStr::new));
    let options = token.options();
    args.extend(options.iter().flat_map(|(name, value)| [OsStr::new(*name), value.as_os_str()]));
    let mut up = setting.lab.lastkey.long_running("up", args).unwrap();
    let config = up.ready.encryption_config_file.clone();
    let names = setting.write("s", &config, &[]);
    let snapshot = setting.snapshot("snapshot.db");
    assert!(up.stop().unwrap().success());
    assert!(!data.join("root.key").exists());
    let given: [(&str, &Path); 2] = [("--snapshot", &snapshot), ("--state", &data)];

    // Without the token nothing can be read, and it is said what is needed.
    let without = setting.drill(&given);
    assert_eq!(without.code, 1, "{}", without.stderr);
    assert!(without.stderr.contains("--pkcs11-module"), "{}", without.stderr);

    // With it everything can.
    let before = super::files(&setting.lab.path("tokens"));
    let outcome = setting.drill(&[&given[..], &token.options()].concat());
    let found = report(&outcome);
    assert_eq!(outcome.code, 0, "{found}\n{}", outcome.stderr);
    assert_eq!((&found["ok"], &found["unreadable"]), (&true.into(), &0.into()));
    assert_eq!(found["state"]["seal"], "pkcs11", "{found}");
    assert_eq!(found["state"]["unsealed_by"], "the token", "{found}");
    let secrets = super::secrets(&found);
    assert_eq!(secrets["readable"].as_u64(), Some(names.len() as u64), "{found}");
    assert_eq!(super::files(&setting.lab.path("tokens")).len(), before.len(), "no object is new");

    // A wrong PIN is said to be one, and tried once only: a few more would lock the token.
    fs::write(&token.pin, "000000\n").unwrap();
    let wrong = setting.drill(&[&given[..], &token.options()].concat());
    assert_eq!(wrong.code, 1, "{}", wrong.stderr);
    assert!(wrong.stderr.contains("PIN") && !wrong.stderr.contains("000000"), "{}", wrong.stderr);
}
