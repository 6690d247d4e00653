//! On what was measured, and how quiet it was.

use std::{fs, path::Path, process::Command, time::Instant};

use serde::Serialize;

/// The machine and what is measured on it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    processor: String,
    processors: usize,
    memory_gib: u64,
    kernel: String,
    file_system: String,
    commit: String,
}

/// How busy the machine was with other things.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Noise {
    /// Processors that other processes than ours kept busy, on average.
    pub(crate) others: f64,
    /// Processors that the hypervisor gave to others, on average.
    pub(crate) stolen: f64,
    /// The load average of the last minute before the run.
    pub(crate) load_before: f64,
}

impl Machine {
    /// This machine; files are written to `dir`.
    pub(crate) fn here(dir: &Path) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map(|(_, v)| v.trim().to_owned())
        };
        let kib = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kib: u64 = kib.trim_end_matches(" kB").parse().unwrap_or(0);
        let kernel = read("/proc/sys/kernel/osrelease").trim().to_owned();
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            memory_gib: (kib + (1 << 19)) >> 20,
            kernel: kernel.split(['-', '+']).next().unwrap_or_default().to_owned(),
            file_system: file_system(dir, &read("/proc/mounts")),
            commit: commit(),
        }
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{} × {}, {} GiB, Linux {}, {}; commit {}",
            self.processors,
            self.processor,
            self.memory_gib,
            self.kernel,
            self.file_system,
            self.commit
        )
    }
}

/// `type on device` of the mount that holds `dir`.
fn file_system(dir: &Path, mounts: &str) -> String {
    let dir = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let mut best: (usize, String) = Default::default();
    for line in mounts.lines() {
        let mut fields = line.split(' ');
        let (Some(device), Some(at), Some(kind)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if dir.starts_with(at) && at.len() >= best.0 {
            best = (at.len(), format!("{kind} on {device}"));
        }
    }
    best.1
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return "unknown".into() };
    match git(&["status", "--porcelain", "--untracked-files=no", "crates", "Cargo.lock"]) {
        Some(changes) if changes.is_empty() => commit,
        _ => format!("{commit} with changes"),
    }
}

/// Counts from its making on.
pub(crate) struct NoiseMeter {
    begun: Instant,
    before: Ticks,
    ours_before: u64,
    load_before: f64,
}

/// Ticks of all processors together.
#[derive(Clone, Copy, Default)]
struct Ticks {
    busy: u64,
    stolen: u64,
}

impl NoiseMeter {
    pub(crate) fn start() -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load_before = load.split(' ').next().and_then(|v| v.parse().ok()).unwrap_or(0.0);
        Self { begun: Instant::now(), before: ticks(), ours_before: our_ticks(), load_before }
    }

    /// What there was of it. Our own processes must have ended, or they count as others.
    pub(crate) fn stop(&self) -> Noise {
        let now = ticks();
        let ours = our_ticks().saturating_sub(self.ours_before);
        let all =
            self.begun.elapsed().as_secs_f64() * rustix::param::clock_ticks_per_second() as f64;
        let busy = now.busy.saturating_sub(self.before.busy).saturating_sub(ours);
        let share = |ticks: u64| (ticks as f64 / all.max(1.0) * 100.0).round() / 100.0;
        Noise {
            others: share(busy),
            stolen: share(now.stolen.saturating_sub(self.before.stolen)),
            load_before: self.load_before,
        }
    }
}

/// The first line of `/proc/stat`: user, nice, system, idle, iowait, irq, softirq, steal, …
fn ticks() -> Ticks {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    parse_ticks(stat.lines().next().unwrap_or_default())
}

fn parse_ticks(line: &str) -> Ticks {
    let fields: Vec<u64> = line.split_whitespace().skip(1).map_while(|f| f.parse().ok()).collect();
    let field = |at: usize| fields.get(at).copied().unwrap_or(0);
    Ticks { busy: field(0) + field(1) + field(2) + field(5) + field(6), stolen: field(7) }
}

/// What we and our children that ended have spent: fields 14 to 17 of proc_pid_stat(5).
fn our_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    fields.split_whitespace().skip(11).take(4).filter_map(|f| f.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_counts() {
        let mounts = "/dev/a / ext4 rw 0 0\ntmpfs /tmp tmpfs rw 0 0\n";
        assert_eq!(file_system(Path::new("/"), mounts), "ext4 on /dev/a");
        assert_eq!(file_system(Path::new("/tmp"), mounts), "tmpfs on tmpfs");
    }

    #[test]
    fn waiting_is_not_busy() {
        let ticks = parse_ticks("cpu  10 1 5 1000 70 2 3 4 0 0");
        assert_eq!((ticks.busy, ticks.stolen), (21, 4));
    }
}
