//! Files and pipes with the real binary: names, outages, interruptions, other keys.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use lastkey_testbed::Ready;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use support::{KEY, Lab, SOON};

const MIB: usize = 1 << 20;

/// The binary in a folder of its own, with somebody's credentials.
struct User {
    binary: PathBuf,
    credentials: PathBuf,
    dir: PathBuf,
}

impl User {
    fn new(lab: &Lab, ready: &Ready) -> Self {
        let binary = lab.lastkey.binary().to_owned();
        Self { binary, credentials: ready.credentials_file.clone(), dir: lab.folder("files") }
    }

    fn command(&self, args: &[&str]) -> Command {
        // A CI that runs us in the background may have told us to ignore interrupts.
        let mut command = Command::new("env");
        command.arg("--default-signal=INT,TERM,HUP").arg(&self.binary);
        command.args(args).current_dir(&self.dir).env("LASTKEY_CREDENTIALS", &self.credentials);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        assert!(output.status.success(), "lastkey {}: {out}{err}", args.join(" "));
        out.into_owned()
    }

    /// The exit code and what was said; it must not be 0.
    fn refused(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args);
        assert!(!output.status.success(), "lastkey {}", args.join(" "));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap_or(-1), said)
    }

    fn start(&self, args: &[&str]) -> Child {
        self.command(args).stdin(Stdio::piped()).spawn().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).unwrap();
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// Everything in the folder, hidden files too.
    fn listing(&self) -> Vec<String> {
        let names = fs::read_dir(&self.dir).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < SOON, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

#[test]
fn files_get_names_and_are_never_overwritten_unasked() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    user.write("a", b"attack at dawn");
    user.write("b", &pattern(MIB + 1));
    user.ok(&["encrypt", "--key", KEY, "a", "b"]);
    assert_eq!(user.listing(), ["a", "a.lastkey", "b", "b.lastkey"]);
    for name in ["a.lastkey", "b.lastkey"] {
        assert_eq!(user.path(name).metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }

    // What exists stays; nothing of the run is done, not even what could have been.
    fs::remove_file(user.path("a.lastkey")).unwrap();
    let (code, said) = user.refused(&["encrypt", "--key", KEY, "a", "b"]);
    assert!(code == 1 && said.contains("b.lastkey exists already"), "{said}");
    assert!(!user.path("a.lastkey").exists());
    user.ok(&["encrypt", "--key", KEY, "--force", "a", "b"]);

    user.write("a", b"precious");
    let (_, said) = user.refused(&["decrypt", "a.lastkey"]);
    assert!(said.contains("a exists already"), "{said}");
    assert_eq!(user.read("a"), b"precious");
    user.ok(&["decrypt", "--force", "a.lastkey", "b.lastkey"]);
    assert_eq!(user.read("a"), b"attack at dawn");
    assert!(user.read("b") == pattern(MIB + 1));
    assert_eq!(user.listing(), ["a", "a.lastkey", "b", "b.lastkey"]);

    // Wrong usage is told before anything happens.
    for args in [
        &["decrypt", "a"][..],
        &["encrypt", "--key", KEY, "a", "b", "-o", "c"],
        &["encrypt", "--key", KEY, "a", "-i", "b"],
        &["encrypt", "a"],
        &["decrypt", "a.lastkey", "a.lastkey", "--force"],
    ] {
        assert_eq!(user.refused(args).0, 2, "{args:?}");
    }
    assert_eq!(user.refused(&["encrypt", "--key", KEY, "missing"]).0, 1);
    assert_eq!(user.refused(&["encrypt", "--key", KEY, "."]).0, 1);
    assert_eq!(user.listing(), ["a", "a.lastkey", "b", "b.lastkey"]);
}

#[test]
fn odd_names_and_places_lose_nothing() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);

    // A name that is no text.
    let odd = std::ffi::OsStr::from_bytes(b"plan\xff");
    fs::write(user.dir.join(odd), b"odd").unwrap();
    let run = |args: &[&str]| user.command(args).arg(odd).output().unwrap();
    assert!(run(&["encrypt", "--key", KEY]).status.success());
    let again = run(&["encrypt", "--key", KEY, "--force", "--output", "json"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    let said: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(said["source"], "plan\u{fffd}");
    let sealed = user.dir.join(std::ffi::OsStr::from_bytes(b"plan\xff.lastkey"));
    assert!(user.command(&["rewrap"]).arg(&sealed).output().unwrap().status.success());
    fs::remove_file(user.dir.join(odd)).unwrap();
    assert!(user.command(&["decrypt"]).arg(&sealed).output().unwrap().status.success());
    assert_eq!(fs::read(user.dir.join(odd)).unwrap(), b"odd");

    // Standard streams by their other names: data and nothing else.
    user.write("plan", b"attack at dawn");
    for name in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let sealed = user.run(&["encrypt", "--key", KEY, "plan", "-o", name]).stdout;
        assert!(sealed.starts_with(b"LASTKEY\0"));
        user.write("sealed", &sealed);
        let mut opened = user.command(&["decrypt", "/dev/stdin", "-o", name]);
        opened.stdin(File::open(user.path("sealed")).unwrap());
        assert_eq!(opened.output().unwrap().stdout, b"attack at dawn");
    }

    // A file that is read is not written behind its own end.
    let mut grows = user.command(&["encrypt", "--key", KEY, "-i", "plan"]);
    grows.stdout(OpenOptions::new().append(true).open(user.path("plan")).unwrap());
    assert_eq!(grows.status().unwrap().code(), Some(2));
    assert_eq!(user.read("plan"), b"attack at dawn");

    // What is no file is not replaced by one, even where files may be; and that shows at once.
    let listener = std::os::unix::net::UnixListener::bind(user.path("socket")).unwrap();
    fs::create_dir(user.path("folder")).unwrap();
    let longest = "n".repeat(256);
    for (out, why) in [
        ("socket", "socket is no file"),
        ("folder", "folder is a directory"),
        ("new/", "new/ is the name of a directory"),
        (&*longest, "too long"),
        ("plan/plan", "Not a directory"),
    ] {
        let (code, said) =
            user.refused(&["encrypt", "--key", "alias/none", "--force", "plan", "-o", out]);
        assert!(code == 1 && said.contains(why), "{out}: {said}");
    }
    assert_eq!(user.refused(&["rewrap", "/dev/null"]).0, 1);
    drop(listener);

    // The longest name there is can be replaced, and its keys, too.
    let name = format!("{}.lastkey", "n".repeat(247));
    for _ in 0..2 {
        user.ok(&["encrypt", "--key", KEY, "plan", "-o", &name, "--force"]);
        user.ok(&["rewrap", &name]);
    }
    assert_eq!(user.run(&["decrypt", &name, "-o", "-"]).stdout, b"attack at dawn");
}

#[test]
fn a_stream_that_is_closed_is_not_taken_for_an_empty_one() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    let run = |redirected: &str, args: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$0\" \"$@\" {redirected}")]).arg(&user.binary);
        command.args(args).current_dir(&user.dir).env("LASTKEY_CREDENTIALS", &user.credentials);
        command.output().unwrap()
    };
    user.write("plan", b"attack at dawn");
    for (redirected, args, stream) in [
        ("<&-", &["encrypt", "--key", KEY, "-o", "sealed"][..], "standard input is closed"),
        ("0>>log", &["encrypt", "--key", KEY, "-o", "sealed"], "standard input is closed"),
        ("<&-", &["encrypt", "--key", KEY, "--files-from", "-"], "standard input is closed"),
        ("<&-", &["decrypt", "-o", "opened"], "standard input is closed"),
        (">&-", &["encrypt", "--key", KEY, "-i", "plan"], "standard output is closed"),
        (">&-", &["decrypt", "-i", "plan"], "standard output is closed"),
    ] {
        let output = run(redirected, args);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && said.contains(stream), "{args:?}: {said}");
    }
    let _ = fs::remove_file(user.path("log"));
    assert_eq!(user.listing(), ["plan"]);
    assert!(run("<&-", &["encrypt", "--key", KEY, "plan"]).status.success(), "it reads a file");
    assert!(run("</dev/null", &["encrypt", "--key", KEY, "-o", "empty"]).status.success());
    assert_eq!(user.run(&["decrypt", "empty", "-o", "-"]).stdout, b"");
}

#[test]
fn a_folder_that_may_be_written_and_not_read_takes_files() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    let folder = user.path("dropbox");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o1333)).unwrap();
    user.write("plan", b"attack at dawn");
    let mut command = Command::new("setpriv");
    if rustix::process::getuid().is_root() {
        // Whom no permission stops does without what lets it pass.
        let without = "-dac_override,-dac_read_search";
        command.args(["--bounding-set", without, "--inh-caps", without]);
    }
    command.arg(&user.binary);
    command.args(["encrypt", "--key", KEY, "plan", "-o", "dropbox/plan.lastkey"]);
    command.current_dir(&user.dir).env("LASTKEY_CREDENTIALS", &user.credentials);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(user.run(&["decrypt", "dropbox/plan.lastkey", "-o", "-"]).stdout, b"attack at dawn");
}

#[test]
fn what_a_pipe_got_before_the_damage_is_declared_worthless() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    let plain = pattern(3 * MIB);
    user.write("a", &plain);
    user.ok(&["encrypt", "--key", KEY, "a"]);
    let sealed = user.path("a.lastkey");
    let len = sealed.metadata().unwrap().len();
    OpenOptions::new().write(true).open(&sealed).unwrap().write_at(b"x", len - MIB as u64).unwrap();

    let output = user.run(&["decrypt", "a.lastkey", "-o", "-"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout == plain[..2 * MIB], "only what was authenticated came out");
    assert!(said.contains("throw them away") && said.contains("chunk 2"), "{said}");

    let (_, said) = user.refused(&["decrypt", "a.lastkey", "-o", "b"]);
    assert!(!said.contains("throw"), "{said}");
    assert_eq!(user.listing(), ["a", "a.lastkey"]);
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    for (number, how) in [Signal::INT, Signal::TERM, Signal::KILL].into_iter().enumerate() {
        let out = format!("out-{number}");
        let mut child = user.start(&["encrypt", "--key", KEY, "-o", &out]);
        // More than the pipe and all buffers hold: by the end of this it is writing.
        let mut input = child.stdin.take().unwrap();
        input.write_all(&pattern(16 * MIB)).unwrap();
        signal(&child, how);
        assert!(!child.wait().unwrap().success());
        drop(input);
        assert_eq!(user.listing(), Vec::<String>::new(), "{how:?}");
    }
}

#[test]
fn a_file_that_was_begun_is_finished_without_the_server() {
    let lab = Lab::new();
    let mut up = Some(lab.up());
    let ready = up.as_ref().unwrap().ready.clone();
    let user = User::new(&lab, &ready);
    let plain = pattern(24 * MIB);
    let mut encrypt = user.start(&["encrypt", "--key", KEY, "-o", "sealed"]);
    let mut input = encrypt.stdin.take().unwrap();
    input.write_all(&plain[..16 * MIB]).unwrap();
    up = None; // kill -9
    input.write_all(&plain[16 * MIB..]).unwrap();
    drop(input);
    assert!(encrypt.wait_with_output().unwrap().status.success());

    // Without a server nothing begins, and nothing is left.
    let began = Instant::now();
    assert_eq!(user.refused(&["decrypt", "-i", "sealed", "-o", "opened"]).0, 6);
    assert_eq!(user.refused(&["encrypt", "--key", KEY, "sealed"]).0, 6);
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(user.listing(), ["sealed"]);

    up.replace(lab.lastkey.up(&lab.path("data"), ready.address()).unwrap());
    let mut decrypt = user.start(&["decrypt"]);
    let sealed = user.read("sealed");
    let mut input = decrypt.stdin.take().unwrap();
    let mut output = decrypt.stdout.take().unwrap();
    let feeder = std::thread::spawn(move || {
        input.write_all(&sealed[..16 * MIB]).unwrap();
        drop(up); // kill -9
        input.write_all(&sealed[16 * MIB..]).unwrap();
    });
    let mut opened = Vec::new();
    output.read_to_end(&mut opened).unwrap();
    feeder.join().unwrap();
    assert!(decrypt.wait().unwrap().success());
    assert!(opened == plain);
}

#[test]
fn a_list_of_files_needs_the_server_at_its_beginning_alone() {
    let lab = Lab::new();
    let up = lab.up();
    let ready = up.ready.clone();
    let user = User::new(&lab, &ready);
    user.write("b", b"attack at dawn");
    let fifo = user.path("a");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    // The first of the list waits for us; by then all data keys are there.
    let encrypt = user.start(&["encrypt", "--key", KEY, "a", "b"]);
    let mut input = OpenOptions::new().write(true).open(&fifo).unwrap();
    drop(up); // kill -9
    input.write_all(b"from a pipe").unwrap();
    drop(input);
    assert!(encrypt.wait_with_output().unwrap().status.success());

    let up = lab.lastkey.up(&lab.path("data"), ready.address()).unwrap();
    fs::remove_file(user.path("b")).unwrap();
    let decrypt = user.start(&["decrypt", "a.lastkey", "b.lastkey"]);
    let mut output = File::open(&fifo).unwrap();
    drop(up); // kill -9
    let mut first = Vec::new();
    output.read_to_end(&mut first).unwrap();
    assert!(decrypt.wait_with_output().unwrap().status.success());
    assert_eq!(first, b"from a pipe");
    assert_eq!(user.read("b"), b"attack at dawn");
}

#[test]
fn what_gives_its_bytes_once_is_read_once() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    for name in ["a", "b", "c"] {
        user.write(name, name.as_bytes());
        user.ok(&["encrypt", "--key", KEY, name]);
        fs::remove_file(user.path(name)).unwrap();
    }
    // Standard input and a FIFO, each beside a file.
    let fifo = user.path("pipe.lastkey");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)
        .unwrap();
    let mut decrypt = user.command(&["decrypt", "a.lastkey", "-", "pipe.lastkey"]);
    let decrypt = decrypt.stdin(File::open(user.path("b.lastkey")).unwrap()).spawn().unwrap();
    let content = user.read("c.lastkey");
    let writer = std::thread::spawn(move || fs::write(fifo, content));
    let output = decrypt.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    writer.join().unwrap().unwrap();
    assert_eq!(
        (output.stdout, user.read("a"), user.read("pipe")),
        (vec![b'b'], vec![b'a'], vec![b'c'])
    );
}

#[test]
fn a_list_that_is_none_ends() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    let (code, said) = user.refused(&["encrypt", "--key", KEY, "--files-from", "."]);
    assert!(code == 2 && said.contains("is a directory, not a list"), "{code} {said}");
    let mut endless = user.command(&["encrypt", "--key", KEY, "--files-from", "-"]);
    endless.stdin(File::open("/dev/zero").unwrap());
    let output = endless.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("longer than any name"), "{said}");
}

#[test]
fn a_held_data_key_outlives_the_server() {
    let lab = Lab::new();
    let up = lab.up();
    let ready = up.ready.clone();
    let user = User::new(&lab, &ready);
    for name in ["a", "b", "c"] {
        user.write(name, name.repeat(100).as_bytes());
    }
    let args = ["encrypt", "--key", KEY, "--hold", "10", "--files-from", "-"];
    let mut encrypt = user.start(&args);
    let mut names = encrypt.stdin.take().unwrap();
    names.write_all(b"a\n").unwrap();
    until("the first file", || user.path("a.lastkey").exists());
    drop(up); // kill -9
    names.write_all(b"b\nc\n").unwrap();
    drop(names);
    let output = encrypt.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Without --hold, an outage fails what it hits, and nothing else.
    let mut encrypt = user.start(&["encrypt", "--key", KEY, "--force", "--files-from", "-"]);
    encrypt.stdin.take().unwrap().write_all(b"a\n").unwrap();
    assert_eq!(encrypt.wait_with_output().unwrap().status.code(), Some(6));

    // They share a data key, so one is opened with the server, the others without.
    let up = lab.lastkey.up(&lab.path("data"), ready.address()).unwrap();
    let before = data_key_uses(&user);
    let args = ["decrypt", "--hold", "10", "--force", "--files-from", "-"];
    let mut decrypt = user.start(&args);
    let mut names = decrypt.stdin.take().unwrap();
    for name in ["a", "b", "c"] {
        user.write(name, b"");
    }
    names.write_all(b"a.lastkey\n").unwrap();
    until("the first file", || !user.read("a").is_empty());
    assert_eq!(data_key_uses(&user), before + 1);
    drop(up); // kill -9
    names.write_all(b"b.lastkey\nc.lastkey\n").unwrap();
    drop(names);
    assert!(decrypt.wait_with_output().unwrap().status.success());
    for name in ["a", "b", "c"] {
        assert_eq!(user.read(name), name.repeat(100).as_bytes());
    }
}

/// How many data keys the service has opened.
fn data_key_uses(user: &User) -> usize {
    let said = user.ok(&["audit", "query", "--action", "Decrypt", "--output", "json"]);
    serde_json::from_str::<Value>(&said).unwrap()["items"].as_array().unwrap().len()
}

#[test]
fn other_keys_open_a_file_whose_data_did_not_move() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    for alias in ["alias/one", "alias/two"] {
        user.ok(&["key", "create", "--alias", alias]);
    }
    let plain = pattern(2 * MIB + 1);
    user.write("big", &plain);
    user.write("small", b"attack at dawn");
    user.ok(&["encrypt", "--key", "alias/one", "big", "small"]);
    let inode = user.path("big.lastkey").metadata().unwrap().ino();
    let before = user.read("big.lastkey");
    let opens = || {
        assert!(user.run(&["decrypt", "big.lastkey", "-o", "-"]).stdout == plain);
        assert_eq!(user.ok(&["decrypt", "small.lastkey", "-o", "-"]), "attack at dawn");
    };

    // A new version of its own key: both files get by without the old one.
    user.ok(&["key", "rotate", "alias/one"]);
    let said = user.ok(&["rewrap", "big.lastkey", "small.lastkey", "--output", "json"]);
    let events: Vec<Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events[0]["in_place"], true);
    assert_eq!(events[1]["in_place"], false, "too small to have room");
    assert_eq!(events[2]["event"], "report");
    let blob_version = |name: &str| {
        // The blob of the one stanza begins with the id of the version that made it.
        let mut rest = &user.read(name)[..];
        let header = lastkey_crypto::envelope::Header::read(&mut rest).unwrap();
        String::from_utf8(header.stanzas()[0].wrapped()[..36].to_vec()).unwrap()
    };
    let described = user.ok(&["key", "describe", "alias/one", "--output", "json"]);
    let described: Value = serde_json::from_str(&described).unwrap();
    for name in ["big.lastkey", "small.lastkey"] {
        assert_eq!(described["primary_key_version"], blob_version(name), "{name}");
    }
    opens();

    // A second key, then the first no more.
    user.ok(&["rewrap", "--add-key", "alias/two", "big.lastkey", "small.lastkey"]);
    opens();
    user.ok(&["key", "disable", "alias/one"]);
    opens();
    user.ok(&["rewrap", "--remove-key", "alias/one", "big.lastkey", "small.lastkey"]);
    opens();
    let (code, _) = user.refused(&["rewrap", "--remove-key", "alias/two", "big.lastkey"]);
    assert_eq!(code, 1, "the last key stays");
    assert_eq!(user.refused(&["rewrap", "--remove-key", "alias/one", "big.lastkey"]).0, 3);
    user.ok(&["key", "disable", "alias/two"]);
    user.refused(&["decrypt", "big.lastkey", "-o", "-"]);
    user.refused(&["rewrap", "--key", "alias/one", "big.lastkey"]);
    user.ok(&["key", "enable", "alias/two"]);
    opens();

    let after = user.read("big.lastkey");
    assert_eq!(user.path("big.lastkey").metadata().unwrap().ino(), inode);
    assert!(after[3 * 4096..] == before[3 * 4096..], "the data is as it was");
    assert!(after[..3 * 4096] != before[..3 * 4096]);
    assert_eq!(user.listing(), ["big", "big.lastkey", "small", "small.lastkey"]);
}

/// Power went between the two writes: the new list is whole, and the old one still beside it.
#[test]
fn a_key_whose_removal_was_interrupted_is_removed_by_the_same_command() {
    const SLOTS: std::ops::Range<usize> = 4096..3 * 4096;
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    for alias in ["alias/one", "alias/two"] {
        user.ok(&["key", "create", "--alias", alias]);
    }
    let plain = pattern(2 * MIB);
    user.write("big", &plain);
    user.ok(&["encrypt", "--key", "alias/one", "big"]);
    user.ok(&["rewrap", "--add-key", "alias/two", "big.lastkey"]);
    let before = user.read("big.lastkey");
    let old = lastkey_crypto::envelope::Header::read(&mut &before[..]).unwrap();
    let removed = old.stanzas()[0].wrapped().to_vec();
    let remove = ["rewrap", "--remove-key", "alias/one", "big.lastkey"];
    user.ok(&remove);
    let holds = |bytes: &[u8]| bytes.windows(removed.len()).any(|window| window == removed);
    let mut interrupted = user.read("big.lastkey");
    assert!(holds(&before) && !holds(&interrupted));
    for at in SLOTS {
        // Each list lies in a slot of its own; the other is blank.
        assert!(before[at] == 0 || interrupted[at] == 0, "byte {at}");
        interrupted[at] |= before[at];
    }

    user.write("big.lastkey", &interrupted);
    let said = user.ok(&[&remove[..], &["--output", "json"]].concat());
    assert!(said.contains(r#""in_place":true"#), "{said}");
    assert!(!holds(&user.read("big.lastkey")), "its wrapping is still there");
    assert!(user.run(&["decrypt", "big.lastkey", "-o", "-"]).stdout == plain);
    assert_eq!(user.refused(&remove).0, 3, "now it is none of the file's keys");

    // Whatever else is asked for, and if it is refused: what was left is cleared away first.
    user.write("big.lastkey", &interrupted);
    user.refused(&["rewrap", "--remove-key", "alias/two", "big.lastkey"]);
    assert!(!holds(&user.read("big.lastkey")));
    // Half of the old list was blanked: nobody can tell any more which keys it named.
    let mut torn = interrupted.clone();
    let start = (0..torn.len() - removed.len())
        .find(|at| torn[*at..*at + removed.len()] == removed)
        .unwrap();
    torn[start + 10] ^= 1;
    user.write("big.lastkey", &torn);
    assert_eq!(user.refused(&remove).0, 3);
    let rest = &removed[11..];
    assert!(!user.read("big.lastkey").windows(rest.len()).any(|window| window == rest));
    assert!(user.run(&["decrypt", "big.lastkey", "-o", "-"]).stdout == plain);
}

#[test]
fn a_rewrap_that_is_killed_leaves_a_file_that_opens() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    user.ok(&["key", "create", "--alias", "alias/other"]);
    user.write("big", &pattern(2 * MIB));
    user.write("small", b"attack at dawn");
    user.ok(&["encrypt", "--key", KEY, "big", "small"]);
    fs::set_permissions(user.path("small.lastkey"), fs::Permissions::from_mode(0o640)).unwrap();
    for round in 0..24_u64 {
        let key = if round % 2 == 0 { "alias/other" } else { KEY };
        let mut child = user.start(&["rewrap", "--key", key, "big.lastkey", "small.lastkey"]);
        std::thread::sleep(Duration::from_millis(7 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        for (name, len) in [("big.lastkey", 2 * MIB), ("small.lastkey", 14)] {
            let output = user.run(&["decrypt", name, "-o", "-"]);
            assert!(output.status.success(), "round {round}, {name}: {output:?}");
            assert_eq!(output.stdout.len(), len, "round {round}, {name}");
        }
    }
    user.ok(&["rewrap", "big.lastkey", "small.lastkey"]);
    assert_eq!(user.path("small.lastkey").metadata().unwrap().permissions().mode() & 0o777, 0o640);
}

#[test]
fn scripts_hear_of_progress_on_the_stream_that_carries_no_data() {
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    for (args, data_out) in [(&["-o", "out"][..], false), (&[][..], true)] {
        let args = [&["encrypt", "--key", KEY, "--output", "json"], args].concat();
        let mut child = user.start(&args);
        let mut input = child.stdin.take().unwrap();
        let events: Box<dyn std::io::Read + Send> = match data_out {
            true => Box::new(child.stderr.take().unwrap()),
            false => Box::new(child.stdout.take().unwrap()),
        };
        let data = child.stdout.take().map(|mut out| {
            std::thread::spawn(move || {
                let mut data = Vec::new();
                out.read_to_end(&mut data).unwrap();
                data
            })
        });
        let listen = std::thread::spawn(move || {
            let lines = BufReader::new(events).lines().map_while(Result::ok);
            lines.map(|line| serde_json::from_str(&line).unwrap()).collect::<Vec<Value>>()
        });
        for _ in 0..12 {
            input.write_all(&pattern(MIB)).unwrap();
            std::thread::sleep(Duration::from_millis(200));
        }
        drop(input);
        assert!(child.wait().unwrap().success());
        let events = listen.join().unwrap();
        let (last, progress) = events.split_last().unwrap();
        assert!(!progress.is_empty(), "two seconds and more");
        for event in progress {
            assert_eq!(event["event"], "progress");
            assert!(event["done"].as_u64().unwrap() > 0 && event["total"].is_null());
        }
        assert_eq!(last["event"], "report");
        assert_eq!(last["plaintext_bytes"], 12 * MIB);
        assert!(last["key_id"].is_string());
        if data_out {
            assert!(data.unwrap().join().unwrap().starts_with(b"LASTKEY\0"), "nothing but data");
        } else {
            assert_eq!(last["file"], "out");
        }
    }
}

#[test]
fn five_gibibytes_go_through_two_pipes() {
    const LEN: u64 = 5 << 30;
    let lab = Lab::new();
    let up = lab.up();
    let user = User::new(&lab, &up.ready);
    File::create(user.path("sparse")).unwrap().set_len(LEN).unwrap();
    let mut encrypt = user.start(&["encrypt", "--key", KEY, "sparse", "-o", "-"]);
    let sealed = encrypt.stdout.take().unwrap();
    let mut decrypt = user.command(&["decrypt"]).stdin(sealed).spawn().unwrap();
    let mut opened = decrypt.stdout.take().unwrap();
    let mut portion = vec![0; MIB];
    let mut total = 0;
    loop {
        let len = opened.read(&mut portion).unwrap();
        if len == 0 {
            break;
        }
        assert!(portion[..len] == vec![0; len], "zeros, as in the file");
        total += len as u64;
        // A tenth of it is looked at as a sample of how memory behaves.
        if total.is_multiple_of(LEN / 10) {
            assert!(resident_kib(decrypt.id()) < 256 << 10, "memory does not grow with the file");
        }
    }
    assert_eq!(total, LEN);
    assert!(encrypt.wait().unwrap().success() && decrypt.wait().unwrap().success());
}

/// Memory of a process.
fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    let status = status.unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
