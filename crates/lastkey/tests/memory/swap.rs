//! Looks for keys in swap: the server's memory is pushed out into a swap file of the test's own, which is
//! then read byte by byte.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use super::{Needle, Site, may_look, needle, root_of};

const MIB: usize = 1 << 20;
/// More than a server has.
const SWAP: usize = 256 * MIB;
const PATIENCE: Duration = Duration::from_secs(120);

/// A file that the kernel swaps to.
struct Swap(PathBuf);

impl Swap {
    /// None where this machine lets nobody add one.
    fn start() -> Option<Self> {
        // A file system on a disk; /tmp may be memory.
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        remove_leftovers(directory);
        let path = directory.join(format!("lastkey-swap-{}", std::process::id()));
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        // Written to its end: what is swapped into a hole could not be read through the file.
        let zeros = vec![0; MIB];
        (0..SWAP / MIB).for_each(|_| file.write_all(&zeros).unwrap());
        file.sync_all().unwrap();
        let swap = Self(path);
        match run("mkswap", &swap.0).and_then(|()| run("swapon", &swap.0)) {
            Ok(()) => Some(swap),
            Err(why) => {
                eprintln!("!!!!  SKIPPED looking for keys in swap: {why}");
                None
            }
        }
    }

    /// How often each needle is in what was swapped out.
    fn look_for(&self, needles: &[Needle]) -> Vec<usize> {
        let mut file = File::open(&self.0).unwrap();
        // The kernel swaps past the page cache: what the cache has is old.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let mut bytes = Vec::with_capacity(SWAP);
        file.read_to_end(&mut bytes).unwrap();
        needles
            .iter()
            .map(|needle| memchr::memmem::find_iter(&bytes, &needle.bytes).count())
            .collect()
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = run("swapoff", &self.0);
        let _ = fs::remove_file(&self.0);
    }
}

/// Of a run that was killed.
fn remove_leftovers(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("lastkey-swap-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            drop(Swap(entry.path()));
        }
    }
}

fn run(program: &str, path: &Path) -> Result<(), String> {
    let done = Command::new(program).arg(path).output();
    let done = done.map_err(|error| format!("{program}: {error}"))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&done.stderr).trim())),
    }
}

/// Asks the kernel to swap out whatever of a process it may.
fn push_out(pid: u32) {
    let process = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let flags = rustix::process::PidfdFlags::empty();
    let process = rustix::process::pidfd_open(process, flags).unwrap();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    for line in maps.lines() {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let [from, to] = [from, to].map(|text| u64::from_str_radix(text, 16).unwrap());
        let range = libc::iovec {
            iov_base: from as *mut libc::c_void,
            iov_len: usize::try_from(to - from).unwrap(),
        };
        // SAFETY: one range, which is of the other process and never touched in this one. The kernel
        // refuses those that are locked, which is what is tested.
        #[expect(unsafe_code, reason = "no library has this call")]
        unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                process.as_raw_fd(),
                &raw const range,
                1usize,
                libc::MADV_PAGEOUT,
                0u32,
            );
        }
    }
}

/// KiB of a process that are in swap.
fn swapped(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmSwap:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn no_key_is_ever_in_swap() {
    let site = Site::start(&[]);
    if !may_look(&site) {
        return;
    }
    let Some(swap) = Swap::start() else { return };
    site.work();
    if site.cli(&["status"])["key_pages_unlocked"] != 0 {
        eprintln!("!!!!  SKIPPED looking for keys in swap: memory cannot be locked here");
        return;
    }
    let mut needles = site.needles(&root_of(&site));
    let keys = needles.len();
    // The control: what lies in ordinary memory does reach swap, and is found there.
    let [place, _] =
        needle("the data directory's name", site.data().to_str().unwrap().as_bytes(), false);
    needles.push(place);
    let pid = site.running.process.pid();
    let started = Instant::now();
    let found = loop {
        push_out(pid);
        let found = swap.look_for(&needles);
        if found[keys] > 0 && swapped(pid) > 1024 {
            break found;
        }
        assert!(
            started.elapsed() < PATIENCE,
            "{} KiB were swapped out, and even what is no secret was not found: this test looks in the wrong way",
            swapped(pid)
        );
        std::thread::sleep(Duration::from_millis(200));
    };
    for (needle, count) in needles[..keys].iter().zip(&found) {
        assert_eq!(*count, 0, "{} is in swap", needle.name);
    }
    // It goes on, with what it has to fetch back.
    site.work_again();
    drop(swap);
    site.work_again();
}
