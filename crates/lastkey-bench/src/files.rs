//! Large files: `lastkey encrypt` and `decrypt`, beside AES-256-GCM alone on as many threads, and
//! beside a file that is only written and synced.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::{
    cpu,
    error::Error,
    options::Options,
    report::{FileLine, Reporter},
    sides::{KEY, Ours, binary},
    stats::{least, median, most},
};

const MIB: usize = 1 << 20;
/// Nobody waits for the tenth gigabyte.
const ROUNDS: usize = 5;

/// What is done to the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// AES-256-GCM over as many bytes in memory, on all processors.
    Aes,
    /// As many bytes written and synced.
    Disk,
    /// `lastkey encrypt` from file to file.
    Encrypt,
    /// `lastkey decrypt` from file to file.
    Decrypt,
    /// `lastkey encrypt` from file to a pipe that nobody reads slowly.
    EncryptPipe,
}

const WAYS: [Way; 5] = [Way::Aes, Way::Disk, Way::Encrypt, Way::Decrypt, Way::EncryptPipe];

/// MiB per second, and processor seconds per GiB.
type Speed = (f64, f64);

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Aes => "AES alone",
            Self::Disk => "disk alone",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::EncryptPipe => "encrypt, no disk",
        }
    }

    /// Whether it ends with a file more on the disk.
    fn writes(self) -> bool {
        matches!(self, Self::Disk | Self::Encrypt | Self::Decrypt)
    }

    /// The floors that bound it.
    fn floors(self) -> &'static [Way] {
        match self {
            Self::Aes | Self::Disk => &[],
            Self::Encrypt | Self::Decrypt => &[Self::Aes, Self::Disk],
            Self::EncryptPipe => &[Self::Aes],
        }
    }
}

/// The files of one run.
struct Bench<'a> {
    lastkey: PathBuf,
    ours: &'a Ours,
    mib: usize,
    dir: PathBuf,
}

/// Measures all ways in turn.
pub(crate) fn measure(
    options: &Options,
    ours: &Ours,
    dir: &Path,
    reporter: &mut Reporter,
) -> Result<(), Error> {
    let (dir, mib) = (dir.join("files"), options.file_mib);
    std::fs::create_dir_all(&dir)?;
    let bench = Bench { lastkey: binary(options)?, ours, mib, dir };
    write(&bench.file("plain"), mib)?;
    let mut rounds: Vec<Vec<Speed>> = Vec::new();
    for _ in 0..options.rounds.min(ROUNDS) {
        let mut round = Vec::new();
        for way in WAYS {
            if way.writes() {
                bench.touch_memory()?;
            }
            rustix::fs::sync();
            round.push(bench.once(way)?);
        }
        rounds.push(round);
        for name in ["sealed", "opened"] {
            std::fs::remove_file(bench.file(name))?;
        }
    }
    for (at, way) in WAYS.into_iter().enumerate() {
        reporter.file(line(way, at, &rounds, mib))?;
    }
    Ok(std::fs::remove_dir_all(&bench.dir)?)
}

fn line(way: Way, at: usize, rounds: &[Vec<Speed>], mib: usize) -> FileLine {
    let speed_of = |floor: &Way| {
        let at = WAYS.iter().position(|way| way == floor).unwrap_or(0);
        move |round: &Vec<Speed>| round[at].0
    };
    let middle = |floor: &Way| median(rounds.iter().map(speed_of(floor)));
    let slowest = |round: &Vec<Speed>| {
        way.floors().iter().map(|floor| speed_of(floor)(round)).fold(f64::INFINITY, f64::min)
    };
    let limit = way.floors().iter().min_by(|a, b| middle(a).total_cmp(&middle(b)));
    let speeds: Vec<f64> = rounds.iter().map(|round| round[at].0).collect();
    FileLine {
        event: "file",
        name: way.name(),
        mib: mib as u64,
        rounds: rounds.len(),
        mib_per_second: median(speeds.iter().copied()),
        mib_per_second_min: least(&speeds),
        mib_per_second_max: most(&speeds),
        cpu_per_gib: median(rounds.iter().map(|round| round[at].1)),
        ratio: limit.map(|_| median(rounds.iter().map(|round| round[at].0 / slowest(round)))),
        limit: limit.map(|limit| limit.name()),
        aims: way.floors().contains(&Way::Disk),
    }
}

impl Bench<'_> {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Has the machine touch as much memory as the next file takes.
    ///
    /// A virtual machine gets a page from its host when it first touches it, which takes several times
    /// as long as to write to it, and many give back to the host what has been free for some seconds. So
    /// whoever writes a file finds the pages of one that is just gone, the floor like ours.
    fn touch_memory(&self) -> Result<(), Error> {
        write(&self.file("bare"), self.mib)?;
        Ok(std::fs::remove_file(self.file("bare"))?)
    }

    fn once(&self, way: Way) -> Result<Speed, Error> {
        let (begun, spent) = (Instant::now(), (cpu::own(), cpu::children()?));
        match way {
            Way::Aes => seal(self.mib)?,
            Way::Disk => {
                write(&self.file("bare"), self.mib)?;
            }
            Way::Encrypt => self.lastkey("encrypt", ("plain", Some("sealed")))?,
            Way::Decrypt => self.lastkey("decrypt", ("sealed", Some("opened")))?,
            Way::EncryptPipe => self.lastkey("encrypt", ("plain", None))?,
        }
        let seconds = begun.elapsed().as_secs_f64();
        let spent = cpu::own().saturating_sub(spent.0) + (cpu::children()? - spent.1).total();
        if way == Way::Disk {
            std::fs::remove_file(self.file("bare"))?;
        }
        let gib = self.mib as f64 / 1024.0;
        Ok((self.mib as f64 / seconds, spent.as_secs_f64() / gib))
    }

    /// Runs the product from one file to the other, or to nowhere.
    fn lastkey(&self, verb: &str, (from, to): (&str, Option<&str>)) -> Result<(), Error> {
        let mut command = Command::new(&self.lastkey);
        command.arg(verb).arg("-i").arg(self.file(from));
        command.env("LASTKEY_CREDENTIALS", &self.ours.ready().credentials_file);
        if verb == "encrypt" {
            command.args(["--key", KEY]);
        }
        if let Some(to) = to {
            command.arg("-o").arg(self.file(to));
        }
        let ended = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let ended = ended.spawn()?.wait_with_output()?;
        if ended.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        Err(Error::Worker { status: ended.status, said })
    }
}

/// Writes so many MiB, and waits until they are on the disk.
fn write(path: &Path, mib: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    let piece: Vec<u8> = (0..MIB).map(|at| (at % 251) as u8).collect();
    for _ in 0..mib {
        file.write_all(&piece)?;
    }
    file.sync_all()
}

/// Seals so many MiB in pieces of one, on all processors.
fn seal(mib: usize) -> Result<(), Error> {
    let threads = std::thread::available_parallelism()?.get();
    let work = |pieces: usize| -> Result<(), Error> {
        let key = UnboundKey::new(&AES_256_GCM, &[7; 32]).map_err(io::Error::other)?;
        let key = LessSafeKey::new(key);
        let mut piece = vec![1; MIB];
        for number in 0..pieces {
            let mut nonce = [0; 12];
            nonce[..8].copy_from_slice(&(number as u64).to_be_bytes());
            let nonce = Nonce::assume_unique_for_key(nonce);
            let tag = key
                .seal_in_place_separate_tag(nonce, Aad::empty(), &mut piece)
                .map_err(io::Error::other)?;
            let _ = std::hint::black_box(tag);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let share = |thread: usize| mib / threads + usize::from(thread < mib % threads);
        let work = &work;
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                let pieces = share(thread);
                scope.spawn(move || work(pieces))
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked").into()))
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_held_against_the_slower_floor() {
        // AES, disk, encrypt, decrypt, encrypt without disk.
        let rounds = [400.0, 200.0, 150.0, 100.0, 300.0].map(|speed| (speed, 1.0)).to_vec();
        let rounds = [rounds.clone(), rounds];
        let encrypt = line(Way::Encrypt, 2, &rounds, 64);
        assert_eq!((encrypt.ratio, encrypt.limit), (Some(0.75), Some("disk alone")));
        let pipe = line(Way::EncryptPipe, 4, &rounds, 64);
        assert_eq!((pipe.ratio, pipe.limit), (Some(0.75), Some("AES alone")));
        assert_eq!(line(Way::Aes, 0, &rounds, 64).ratio, None);
    }

    #[test]
    fn floors_do_their_work() {
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("x"), 2).unwrap();
        assert_eq!(dir.path().join("x").metadata().unwrap().len(), 2 << 20);
        seal(3).unwrap();
    }
}
