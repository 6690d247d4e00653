//! How much processor time was spent, by a server and by ourselves.

use std::{fs, io, ops::Sub, time::Duration};

use rustix::time::{ClockId, clock_gettime};

/// Processor time of a process so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spent {
    /// In its own code.
    pub(crate) user: Duration,
    /// In the kernel on its behalf.
    pub(crate) system: Duration,
}

impl Spent {
    /// What process `pid` has spent with all its threads (`/proc/<pid>/stat`, in ticks of 10 ms).
    pub(crate) fn by(pid: u32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let tick = Duration::from_secs(1) / u32::try_from(clock_ticks()).unwrap_or(100);
        parse(&stat, tick, OWN).ok_or_else(|| io::Error::other("/proc/<pid>/stat has another form"))
    }

    /// Both together.
    pub(crate) fn total(self) -> Duration {
        self.user + self.system
    }
}

/// What our children that have ended spent.
pub(crate) fn children() -> io::Result<Spent> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let tick = Duration::from_secs(1) / u32::try_from(clock_ticks()).unwrap_or(100);
    parse(&stat, tick, CHILDREN).ok_or_else(|| io::Error::other("/proc/self/stat has another form"))
}

impl Sub for Spent {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }
}

/// What this process has spent, to the nanosecond.
pub(crate) fn own() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}

fn clock_ticks() -> u64 {
    rustix::param::clock_ticks_per_second()
}

/// Fields 14 and 15 of proc_pid_stat(5) are a process's own times, 16 and 17 its children's.
const OWN: usize = 11;
const CHILDREN: usize = 13;

/// Two fields, counted from the third on: the second may hold spaces and parentheses.
fn parse(stat: &str, tick: Duration, at: usize) -> Option<Spent> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(at);
    let mut next = || Some(tick * times.next()?.parse::<u32>().ok()?);
    Some(Spent { user: next()?, system: next()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 250 50 7 9 20 0 1 0 5 0 0";
        let spent = parse(stat, Duration::from_millis(10), OWN).unwrap();
        assert_eq!(spent.user, Duration::from_millis(2500));
        assert_eq!(spent.system, Duration::from_millis(500));
        assert_eq!(spent.total(), Duration::from_secs(3));
        let children = parse(stat, Duration::from_millis(10), CHILDREN).unwrap();
        assert_eq!(children.total(), Duration::from_millis(160));
        assert!(parse("7 a", Duration::ZERO, OWN).is_none());
    }
}
