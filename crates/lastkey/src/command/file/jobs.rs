//! What is read and what is written: from the options to pairs of names.

use std::{
    collections::HashSet,
    ffi::OsString,
    fs::File,
    io::{self, BufRead, BufReader, IsTerminal, Read},
    os::{
        fd::AsFd,
        unix::ffi::{OsStrExt, OsStringExt},
    },
    path::{Path, PathBuf},
    vec,
};

use serde_json::{Value, json};

use super::{SUFFIX, shown, target::is_stream, without_suffix};
use crate::{
    cli::Files,
    output::{Exit, Failure},
    streams,
};

/// Where data comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum From {
    File(PathBuf),
    Input,
}

/// Where data goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum To {
    File(PathBuf),
    Output,
}

/// One file, or one pipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) from: From,
    pub(super) to: To,
    /// Whether an existing file may be replaced.
    pub(super) force: bool,
}

/// The pairs of a run.
pub(super) enum Jobs {
    /// All are known, and every one of them can be begun.
    Listed(Vec<Job>),
    /// Their names come as they come.
    Coming { names: Names, direction: Direction, force: bool },
}

/// Which way the names go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    Encrypt,
    Decrypt,
}

impl Jobs {
    pub(super) fn to_encrypt(files: &Files) -> Result<Self, Failure> {
        let jobs = Self::new(files, Direction::Encrypt)?;
        // `-o -` insists.
        if files.out.is_none() && jobs.write_output() && io::stdout().is_terminal() {
            return Err(usage("an encrypted file is nothing for a terminal; use -o FILE, or -o -"));
        }
        Ok(jobs)
    }

    pub(super) fn to_decrypt(files: &Files) -> Result<Self, Failure> {
        Self::new(files, Direction::Decrypt)
    }

    fn new(files: &Files, direction: Direction) -> Result<Self, Failure> {
        let force = files.force;
        if let Some(list) = &files.files_from {
            let names = Names::open(list, files.null)?;
            return Ok(Self::Coming { names, direction, force });
        }
        let jobs = match &files.files[..] {
            [] => {
                let from = files.input.as_deref().map_or(From::Input, From::of);
                let to = files.out.as_deref().map_or(To::Output, To::of);
                vec![Job { from, to, force }]
            }
            [one] => {
                let to = files.out.as_deref().map(To::of);
                vec![Job::by_name(one, to, direction, force)?]
            }
            _ if files.out.is_some() => {
                return Err(usage("-o names one file; it goes with one FILE"));
            }
            several => several
                .iter()
                .map(|file| Job::by_name(file, None, direction, force))
                .collect::<Result<_, _>>()?,
        };
        jobs.iter().try_for_each(Job::check)?;
        let targets = jobs.iter().filter(|job| matches!(job.to, To::File(_)));
        let mut seen = HashSet::new();
        if let Some(twice) = targets.map(|job| &job.to).find(|to| !seen.insert(to.name())) {
            return Err(usage(format_args!("{} would be written twice", twice.name().display())));
        }
        Ok(Self::Listed(jobs))
    }

    /// How many there are, if that is known.
    pub(super) fn known(&self) -> Option<usize> {
        self.listed().map(|jobs| jobs.len())
    }

    /// The jobs, if they are known.
    pub(super) fn listed(&self) -> Option<impl ExactSizeIterator<Item = Job>> {
        match self {
            Self::Listed(jobs) => Some(jobs.clone().into_iter()),
            Self::Coming { .. } => None,
        }
    }

    /// Whether standard output carries data.
    pub(super) fn write_output(&self) -> bool {
        self.listed().is_some_and(|mut jobs| jobs.any(|job| job.to == To::Output))
    }
}

impl IntoIterator for Jobs {
    type Item = Result<Job, Failure>;
    type IntoIter = Running;

    fn into_iter(self) -> Running {
        match self {
            Self::Listed(jobs) => Running::Listed(jobs.into_iter()),
            Self::Coming { names, direction, force } => Running::Coming { names, direction, force },
        }
    }
}

/// Job after job.
pub(super) enum Running {
    Listed(vec::IntoIter<Job>),
    Coming { names: Names, direction: Direction, force: bool },
}

impl Iterator for Running {
    type Item = Result<Job, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Listed(jobs) => jobs.next().map(Ok),
            Self::Coming { names, direction, force } => {
                let name = names.next()?;
                Some(name.and_then(|name| {
                    let job = Job::by_name(&name, None, *direction, *force)?;
                    job.check().map(|()| job)
                }))
            }
        }
    }
}

impl Job {
    /// Of a FILE that was given without `-i`.
    fn by_name(
        file: &Path,
        to: Option<To>,
        direction: Direction,
        force: bool,
    ) -> Result<Self, Failure> {
        let from = From::of(file);
        let to = match (to, &from) {
            (Some(to), _) => to,
            (None, From::Input) => To::Output,
            (None, From::File(path)) => To::File(counterpart(path, direction)?),
        };
        Ok(Self { from, to, force })
    }

    /// What can be refused before anything is done.
    fn check(&self) -> Result<(), Failure> {
        if self.from == From::Input {
            streams::require_input()?;
        }
        if let From::File(path) = &self.from {
            let metadata = path.metadata().map_err(|error| self.from.failed(&error))?;
            if metadata.is_dir() {
                return Err(Failure::failed(format_args!(
                    "{} is a directory; pack it first, as in `tar c DIR | lastkey encrypt …`",
                    path.display()
                )));
            }
        }
        match &self.to {
            To::File(path) => check_target(path, self.force),
            To::Output => self.check_output(),
        }
    }

    /// A file that is written behind its own end while it is read never ends.
    fn check_output(&self) -> Result<(), Failure> {
        let from = match &self.from {
            From::File(path) => rustix::fs::stat(path),
            From::Input => rustix::fs::fstat(io::stdin().as_fd()),
        };
        let (Ok(from), Ok(to)) = (from, rustix::fs::fstat(io::stdout().as_fd())) else {
            return Ok(());
        };
        let is_file = rustix::fs::FileType::from_raw_mode(to.st_mode).is_file();
        if is_file && (from.st_dev, from.st_ino) == (to.st_dev, to.st_ino) {
            return Err(usage("what is read is the file that is written; name another with -o"));
        }
        Ok(())
    }

    /// Whether it can be opened, read and opened again without that a byte of it is lost.
    pub(super) fn can_be_read_twice(&self) -> bool {
        matches!(&self.from, From::File(path) if path.metadata().is_ok_and(|there| there.is_file()))
    }

    /// Says which file a failure is about, where that is not clear.
    pub(super) fn about(&self, failure: Failure) -> Failure {
        match &self.from {
            From::File(path) => failure.about(path.display()),
            From::Input => failure,
        }
    }

    /// What is reported when it is done.
    pub(super) fn describe(&self, plaintext_bytes: u64, more: Value) -> Value {
        let mut said = json!({ "plaintext_bytes": plaintext_bytes });
        if let From::File(path) = &self.from {
            said["source"] = json!(shown(path));
        }
        if let To::File(path) = &self.to {
            said["file"] = json!(shown(path));
        }
        if let (Some(said), Value::Object(more)) = (said.as_object_mut(), more) {
            said.extend(more);
        }
        said
    }
}

/// FILE.lastkey of FILE, or the other way round.
fn counterpart(path: &Path, direction: Direction) -> Result<PathBuf, Failure> {
    match direction {
        Direction::Encrypt => {
            let mut name = path.as_os_str().to_owned();
            name.push(SUFFIX);
            Ok(name.into())
        }
        Direction::Decrypt => without_suffix(path).ok_or_else(|| {
            usage(format_args!(
                "{} does not end in {SUFFIX}; say with -o FILE where to write",
                path.display()
            ))
        }),
    }
}

/// Whether `path` can become a file, as far as that shows before it is written.
fn check_target(path: &Path, force: bool) -> Result<(), Failure> {
    let not = |what| Failure::failed(format_args!("{} is {what}", path.display()));
    if path.as_os_str().as_bytes().ends_with(b"/") {
        return Err(not("the name of a directory; name a file in it"));
    }
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Failure::file(path, &error)),
        Ok(_) if is_stream(path) => return Ok(()),
        Ok(_) if !force => return Err(exists(path)),
        Ok(_) => {}
    }
    match path.metadata() {
        Ok(there) if there.is_dir() => Err(not("a directory; name a file in it")),
        Ok(there) if !there.is_file() => {
            Err(not("no file, and nothing takes its place; write to standard output instead"))
        }
        // A file, or a link that leads nowhere.
        _ => Ok(()),
    }
}

pub(super) fn exists(path: &Path) -> Failure {
    Failure::failed(format_args!(
        "{} exists already and is left as it is; name another file, or replace it with --force",
        path.display()
    ))
}

fn usage(message: impl std::fmt::Display) -> Failure {
    Failure::new(Exit::Usage, message)
}

impl From {
    fn of(path: &Path) -> Self {
        let input = ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];
        if is_one_of(path, input) { Self::Input } else { Self::File(path.to_owned()) }
    }

    pub(super) fn failed(&self, error: &io::Error) -> Failure {
        match self {
            Self::File(path) if error.kind() == io::ErrorKind::NotFound => {
                Failure::failed(format_args!("{}: no such file", path.display()))
            }
            Self::File(path) => Failure::file(path, error),
            Self::Input => Failure::failed(format_args!("standard input: {error}")),
        }
    }
}

impl To {
    fn of(path: &Path) -> Self {
        // By whichever name: what is said about a file may not end up in it.
        let output = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"];
        if is_one_of(path, output) { Self::Output } else { Self::File(path.to_owned()) }
    }

    fn name(&self) -> &Path {
        match self {
            Self::File(path) => path,
            Self::Output => Path::new("-"),
        }
    }

    pub(super) fn failed(&self, error: &io::Error) -> Failure {
        match self {
            Self::File(path) if error.kind() == io::ErrorKind::AlreadyExists => exists(path),
            Self::File(path) => Failure::file(path, error),
            Self::Output => Failure::failed(format_args!("standard output: {error}")),
        }
    }
}

fn is_one_of(path: &Path, names: [&str; 4]) -> bool {
    names.iter().any(|name| path.as_os_str() == *name)
}

/// Names from a list, one after the other, as they are written into it.
pub(super) struct Names {
    source: Box<dyn BufRead>,
    from: From,
    end: u8,
    /// Nothing more comes of it.
    ended: bool,
}

/// No name of a file is longer, in bytes (Linux: `PATH_MAX` is 4096).
const LONGEST_NAME: u64 = 64 << 10;

impl Names {
    fn open(list: &Path, null: bool) -> Result<Self, Failure> {
        let from = From::of(list);
        let source: Box<dyn BufRead> = match &from {
            From::File(path) => {
                let file = File::open(path).map_err(|error| from.failed(&error))?;
                if file.metadata().is_ok_and(|there| there.is_dir()) {
                    return Err(usage(format_args!(
                        "{} is a directory, not a list of files; make one, as in \
                         `find DIR -type f -print0 | lastkey … --files-from - --null`",
                        path.display()
                    )));
                }
                Box::new(BufReader::new(file))
            }
            From::Input => {
                streams::require_input()?;
                Box::new(io::stdin().lock())
            }
        };
        Ok(Self { source, from, end: if null { 0 } else { b'\n' }, ended: false })
    }

    /// What is the list's own failure ends it: the next read would only give the same again.
    fn ends(&mut self, failure: Failure) -> Option<Result<PathBuf, Failure>> {
        self.ended = true;
        Some(Err(failure))
    }
}

impl Iterator for Names {
    type Item = Result<PathBuf, Failure>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.ended {
                return None;
            }
            let mut name = Vec::new();
            match self.source.by_ref().take(LONGEST_NAME).read_until(self.end, &mut name) {
                Err(error) => return self.ends(self.from.failed(&error)),
                Ok(0) => return None,
                Ok(bytes) if bytes as u64 == LONGEST_NAME => {
                    return self.ends(Failure::failed(
                        "the list of files holds what is longer than any name: is it a list, and \
                         do its names end in a newline (with --null: in a zero byte)?",
                    ));
                }
                Ok(_) => {}
            }
            if name.last() == Some(&self.end) {
                name.pop();
            }
            if name == b"-" {
                return Some(Err(usage("a list of files cannot name standard input")));
            }
            if !name.is_empty() {
                return Some(Ok(PathBuf::from(OsString::from_vec(name))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_counterparts() {
        let to = |name: &str, direction| counterpart(Path::new(name), direction).ok();
        assert_eq!(to("a/plan.txt", Direction::Encrypt), Some("a/plan.txt.lastkey".into()));
        assert_eq!(to("a/plan.txt.lastkey", Direction::Decrypt), Some("a/plan.txt".into()));
        for name in ["plan.txt", ".lastkey", "a/.lastkey", "lastkey", "/", "a.lastkey/b"] {
            assert_eq!(to(name, Direction::Decrypt), None, "{name}");
        }
    }

    #[test]
    fn lists_are_read_name_by_name() {
        let names = |text: &'static [u8], end| {
            let names = Names { source: Box::new(text), from: From::Input, end, ended: false };
            names.map(|name| name.ok()).collect::<Vec<_>>()
        };
        let some = |name: &str| Some(PathBuf::from(name));
        assert_eq!(names(b"a\n\nb c\nd", b'\n'), [some("a"), some("b c"), some("d")]);
        assert_eq!(names(b"a\nb\0c\0", 0), [some("a\nb"), some("c")]);
        assert_eq!(names(b"-\n", b'\n'), [None]);
    }

    #[test]
    fn a_list_that_cannot_be_read_fails_once() {
        let names = |source: Box<dyn BufRead>| {
            let names = Names { source, from: From::Input, end: b'\n', ended: false };
            names.take(9).map(|name| name.is_ok()).collect::<Vec<_>>()
        };
        let directory = File::open(".").unwrap();
        assert_eq!(names(Box::new(BufReader::new(directory))), [false]);
        let text = [&b"a\n"[..], &vec![0; 1 << 20]].concat();
        assert_eq!(names(Box::new(io::Cursor::new(text))), [true, false]);
        assert!(Names::open(Path::new("."), false).is_err());
    }
}
