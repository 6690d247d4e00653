//! A writer and a reader on each apiserver, all the time; and everything they were told.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use http::Method;
use lastkey_kubernetes::cluster::ApiServer;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::Instant;

/// Each probe is made so often.
const EVERY: Duration = Duration::from_secs(1);
/// A list is more work.
const LIST_EVERY: Duration = Duration::from_secs(3);
/// Nobody waits longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// As much of an error is kept.
const MAX_TEXT: usize = 400;
/// So many different errors of one probe.
const MAX_ERRORS: usize = 8;

/// What is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Probe {
    /// A new Secret is made.
    Write,
    /// A Secret from before the outage is read.
    Read,
    /// The newest Secret that the other apiserver has written is read.
    ReadOther,
    /// All Secrets of the namespace are listed.
    List,
    /// Its `/readyz`.
    Ready,
}

impl Probe {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Write, Self::Read, Self::ReadOther, Self::List, Self::Ready];
}

/// One attempt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Since the probing began.
    pub(super) at: Duration,
    pub(super) ok: bool,
    /// How long the answer took.
    pub(super) took: Duration,
}

/// An error text, and when it was first seen.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Seen {
    pub(super) text: String,
    pub(super) first: Duration,
    pub(super) last: Duration,
    pub(super) count: u64,
}

/// What one probe of one apiserver was told.
#[derive(Debug, Default, Clone)]
pub(super) struct History {
    pub(super) samples: Vec<Sample>,
    pub(super) errors: Vec<Seen>,
}

/// A Secret whose writing was acknowledged.
#[derive(Debug, Clone)]
pub(super) struct Written {
    pub(super) side: usize,
    pub(super) name: String,
    /// When it was begun, since the probing began.
    pub(super) at: Duration,
}

/// The probes of one outage.
pub(super) struct Probing<'a> {
    sides: [&'a ApiServer; 2],
    namespace: String,
    start: Instant,
    stop: Cell<bool>,
    histories: RefCell<BTreeMap<(usize, Probe), History>>,
    pub(super) written: RefCell<Vec<Written>>,
}

impl<'a> Probing<'a> {
    /// Makes the namespace, and the Secret that is read.
    pub(super) async fn begin(sides: [&'a ApiServer; 2], namespace: &str) -> Result<Self, String> {
        let probing = Self {
            sides,
            namespace: namespace.to_owned(),
            start: Instant::now(),
            stop: Cell::new(false),
            histories: RefCell::default(),
            written: RefCell::default(),
        };
        let body = json!({ "metadata": { "name": namespace } });
        let made = probing.call(0, (Method::POST, "/api/v1/namespaces", Some(&body))).await;
        // an attempt before may have come so far
        made.map(drop)
            .or_else(|error| if error.starts_with("409") { Ok(()) } else { Err(error) })?;
        match probing.create(0, "kept").await {
            Err(error) if !error.starts_with("409") => Err(error),
            _ => Ok(probing),
        }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// When something last went wrong since then.
    pub(super) fn last_failure_since(&self, then: Duration) -> Option<Duration> {
        let histories = self.histories.borrow();
        let last = |history: &History| {
            let bad = history.samples.iter().rev().find(|sample| !sample.ok)?;
            Some(bad.at).filter(|at| *at >= then)
        };
        histories.values().filter_map(last).max()
    }

    /// The newest error, for a message.
    pub(super) fn last_error(&self) -> String {
        let histories = self.histories.borrow();
        let errors = histories.values().flat_map(|history| &history.errors);
        let newest = errors.max_by_key(|seen| seen.last);
        newest.map_or_else(|| "nothing was answered".to_owned(), |seen| seen.text.clone())
    }

    /// How many of the Secrets whose writing was acknowledged cannot be read on both sides.
    pub(super) async fn lost(&self) -> u64 {
        let written = self.written.borrow().clone();
        let mut lost = 0;
        for one in &written {
            let mut read = true;
            for side in [0, 1] {
                let mut well = self.read(side, &one.name).await.is_ok();
                if !well {
                    // once more: it may have been the machine
                    tokio::time::sleep(EVERY).await;
                    well = self.read(side, &one.name).await.is_ok();
                }
                read &= well;
            }
            lost += u64::from(!read);
        }
        lost
    }

    /// Since the probing began.
    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub(super) fn stop(&self) {
        self.stop.set(true);
    }

    /// What all of them were told.
    pub(super) fn histories(&self) -> BTreeMap<(usize, Probe), History> {
        self.histories.borrow().clone()
    }

    /// Whether everything that was tried since then went well, and everything was tried.
    pub(super) fn all_well_since(&self, then: Duration) -> bool {
        let histories = self.histories.borrow();
        let well = |side, probe| {
            histories.get(&(side, probe)).is_some_and(|history| {
                let mut since = history.samples.iter().rev().take_while(|it| it.at > then);
                since.next().is_some_and(|last| last.ok) && since.all(|sample| sample.ok)
            })
        };
        [0, 1].into_iter().all(|side| Probe::ALL.into_iter().all(|probe| well(side, probe)))
    }

    /// Probes until it is stopped.
    pub(super) async fn run(&self) {
        let all = [0, 1]
            .into_iter()
            .flat_map(|side| Probe::ALL.into_iter().map(move |probe| self.repeat(side, probe)));
        futures_util::future::join_all(all).await;
    }

    async fn repeat(&self, side: usize, probe: Probe) {
        let every = if probe == Probe::List { LIST_EVERY } else { EVERY };
        let mut number = 0_u64;
        while !self.stop.get() {
            let began = Instant::now();
            number += 1;
            let at = self.now();
            let result =
                match tokio::time::timeout(PATIENCE, self.attempt(side, probe, number)).await {
                    Ok(Some(result)) => result,
                    Ok(None) => {
                        tokio::time::sleep(every).await;
                        continue;
                    }
                    Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
                };
            self.note((side, probe), (at, began.elapsed()), result);
            tokio::time::sleep(every.saturating_sub(began.elapsed())).await;
        }
    }

    /// `None` if there is nothing to try yet.
    async fn attempt(&self, side: usize, probe: Probe, number: u64) -> Option<Result<(), String>> {
        Some(match probe {
            Probe::Write => {
                let name = format!("{}-{number}", ["one", "two"][side]);
                let at = self.now();
                let written = self.create(side, &name).await;
                if written.is_ok() {
                    self.written.borrow_mut().push(Written { side, name, at });
                }
                written
            }
            Probe::Read => self.read(side, "kept").await,
            Probe::ReadOther => {
                let newest = self.newest_of(1 - side)?;
                self.read(side, &newest.name).await
            }
            Probe::List => {
                let path = self.secrets();
                self.call(side, (Method::GET, &path, None)).await.map(drop)
            }
            Probe::Ready => {
                self.call(side, (Method::GET, "/readyz/kms-providers", None)).await.map(drop)
            }
        })
    }

    /// The newest Secret that one side has written.
    pub(super) fn newest_of(&self, side: usize) -> Option<Written> {
        let written = self.written.borrow();
        written.iter().rev().find(|one| one.side == side).cloned()
    }

    fn secrets(&self) -> String {
        format!("/api/v1/namespaces/{}/secrets", self.namespace)
    }

    async fn create(&self, side: usize, name: &str) -> Result<(), String> {
        let body = json!({
            "metadata": { "name": name },
            "data": { "value": BASE64.encode(value_of(name)) },
        });
        let path = self.secrets();
        self.call(side, (Method::POST, &path, Some(&body))).await.map(drop)
    }

    /// Reads a Secret, which has to have its value.
    pub(super) async fn read(&self, side: usize, name: &str) -> Result<(), String> {
        let path = format!("{}/{name}", self.secrets());
        let body = self.call(side, (Method::GET, &path, None)).await?;
        match body["data"]["value"].as_str() == Some(&BASE64.encode(value_of(name))) {
            true => Ok(()),
            false => Err("it has another value than what was written".to_owned()),
        }
    }

    async fn call(
        &self,
        side: usize,
        (method, path, body): (Method, &str, Option<&Value>),
    ) -> Result<Value, String> {
        let answer = self.sides[side].answer(0, method, (path, body)).await;
        let (status, body) = answer.map_err(|error| error.to_string())?;
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status.is_success() {
            return Ok(json);
        }
        let text = match json["message"].as_str() {
            Some(message) => message.to_owned(),
            None => String::from_utf8_lossy(&body).into_owned(),
        };
        let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
        Err(format!("{}: {}", status.as_u16(), text.chars().take(MAX_TEXT).collect::<String>()))
    }

    fn note(
        &self,
        which: (usize, Probe),
        (at, took): (Duration, Duration),
        result: Result<(), String>,
    ) {
        let mut histories = self.histories.borrow_mut();
        let history = histories.entry(which).or_default();
        history.samples.push(Sample { at, ok: result.is_ok(), took });
        let Err(text) = result else { return };
        // times and names of objects differ from one to the next
        let same = |seen: &&mut Seen| pattern(&seen.text) == pattern(&text);
        if let Some(seen) = history.errors.iter_mut().find(same) {
            seen.count += 1;
            seen.last = at;
        } else if history.errors.len() < MAX_ERRORS {
            history.errors.push(Seen { text, first: at, last: at, count: 1 });
        }
    }
}

/// An error without what differs from one to the next: words with a digit in them are times, ports,
/// numbers of requests, names of objects.
fn pattern(text: &str) -> String {
    let words = text.split_inclusive(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| !word.bytes().any(|byte| byte.is_ascii_digit())).collect()
}

fn value_of(name: &str) -> String {
    format!("the value of {name}, written by a drill")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_error_is_kept_once() {
        let sealed =
            |request: &str| format!("500: it is sealed (Unavailable.Sealed, request {request})");
        let first = sealed("5BCBCD96-367F-F54F-6F41-C6245B41B5F7");
        assert_eq!(pattern(&first), pattern(&sealed("08193AA1-075E-AC91-B2E8-1067713DA34F")));
        let late = "expired at 2026-11-22T22:50:04Z, Key: /secrets/drill/one-16";
        assert_eq!(
            pattern(late),
            pattern("expired at 2026-11-22T22:51:10Z, Key: /secrets/drill/one-7")
        );
        assert_ne!(pattern("500: TLS failed: timed out"), pattern("500: TLS failed: eof"));
    }
}
