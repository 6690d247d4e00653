//! What many writers were told that became of their Secrets, to be compared with what there is.
//!
//! Each name belongs to one writer, so that it knows what has to be there: the value that was
//! acknowledged last, or nothing. Where an answer was lost, either is right, and the name is left
//! alone from then on. A Secret that is there although it was deleted, or gone although it was
//! not, shows at once: a creation or an update is refused.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use lastkey_testbed::{Answer, Apiserver, Client, Session, Unanswered};
use serde_json::{Value, json};

use crate::support::PLAINTEXT;

pub(crate) const WRITERS: usize = 50;
const PATH: &str = "/api/v1/namespaces/default/secrets";
/// So many lists are asked for at once, at most.
const PAGE: usize = 1000;

/// A small generator: the same seed, the same choices.
pub(crate) struct Random(u64);

impl Random {
    /// From `LASTKEY_TEST_SEED`, else a new one each time; it is printed.
    pub(crate) fn from_environment(test: &str) -> (u64, Self) {
        let given = std::env::var("LASTKEY_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish() >> 32);
        eprintln!("{test}: LASTKEY_TEST_SEED={seed}");
        (seed, Self::new(seed))
    }

    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Less than `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// One state of a Secret; without an uid where its creation was not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    value: String,
    uid: Option<String>,
}

/// What may be there under a name; `None` is nothing.
type Slot = Vec<Option<Known>>;

/// All names, and what may be there.
pub(crate) type Model = BTreeMap<String, Slot>;

/// What the writers share.
pub(crate) struct Load {
    pub(crate) over: AtomicBool,
    /// Changes that were acknowledged.
    pub(crate) changes: AtomicUsize,
}

impl Load {
    pub(crate) fn new() -> Self {
        Self { over: AtomicBool::new(false), changes: AtomicUsize::new(0) }
    }

    pub(crate) fn changes(&self) -> usize {
        self.changes.load(Ordering::SeqCst)
    }
}

/// Ends the load, also when an assertion fails.
pub(crate) struct Ending<'a>(pub(crate) &'a Load);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::SeqCst);
    }
}

/// One who creates, updates and deletes its own Secrets.
pub(crate) struct Writer {
    session: Session,
    random: Random,
    slots: Vec<(String, Slot)>,
    number: usize,
    /// What cannot have been.
    wrong: Vec<String>,
}

impl Writer {
    pub(crate) fn new(client: &Client, random: Random, slots: Vec<(String, Slot)>) -> Self {
        Self { session: client.session(), random, slots, number: 0, wrong: Vec::new() }
    }

    /// Works until it is over; answers with what has to be there then, and what was wrong.
    pub(crate) fn work(mut self, load: &Load) -> (Vec<(String, Slot)>, Vec<String>) {
        while !load.over.load(Ordering::SeqCst) {
            let at = self.random.below(self.slots.len());
            if self.slots[at].1.len() == 1 && self.change(at) {
                load.changes.fetch_add(1, Ordering::SeqCst);
            }
            thread::sleep(Duration::from_millis(200 + self.random.below(600) as u64));
        }
        (self.slots, self.wrong)
    }

    /// Whether one change was acknowledged.
    fn change(&mut self, at: usize) -> bool {
        let (name, slot) = self.slots[at].clone();
        self.number += 1;
        let value = format!("{PLAINTEXT}:{name}:{}", self.number);
        match &slot[0] {
            None => self.create(at, &name, &value),
            Some(known) => match self.random.below(8) {
                0 | 1 => self.delete(at, &name, known),
                2 | 3 => self.update_as_read(at, &name, (known, value)),
                _ => self.put(at, (&name, known), (value.clone(), secret(&name, &value))),
            },
        }
    }

    fn create(&mut self, at: usize, name: &str, value: &str) -> bool {
        let new = |uid| Some(Known { value: value.to_owned(), uid });
        match self.send("POST", PATH, Some(&secret(name, value))) {
            Said::Done(made) => self.now(at, new(uid_of(&made))),
            Said::Nothing => false,
            Said::Unknown => self.unsure(at, new(None)),
            Said::Refused(why) => self.is_wrong(format!("creating {name}: {why}")),
        }
    }

    fn delete(&mut self, at: usize, name: &str, known: &Known) -> bool {
        let what = format!("deleting {name}, which was {known:?}");
        match self.send("DELETE", &format!("{PATH}/{name}"), None) {
            Said::Done(_) => self.now(at, None),
            Said::Nothing => false,
            Said::Unknown => self.unsure(at, None),
            Said::Refused(why) => self.is_wrong(format!("{what}: {why}")),
        }
    }

    /// What controllers do: read, change, write on condition that nobody else has.
    fn update_as_read(&mut self, at: usize, name: &str, (known, value): (&Known, String)) -> bool {
        let Said::Done(mut read) = self.send("GET", &format!("{PATH}/{name}"), None) else {
            return false;
        };
        if !is(known, &read) {
            return self.is_wrong(format!("{name} should be {known:?} and has {:?}", of(&read)));
        }
        read["data"] = json!({ "value": BASE64.encode(&value) });
        self.put(at, (name, known), (value, read))
    }

    fn put(
        &mut self,
        at: usize,
        (name, known): (&str, &Known),
        (value, body): (String, Value),
    ) -> bool {
        let conditional = body["metadata"]["resourceVersion"].is_string();
        let new = Some(Known { value, uid: known.uid.clone() });
        match self.send("PUT", &format!("{PATH}/{name}"), Some(&body)) {
            Said::Done(_) => self.now(at, new),
            Said::Nothing => false,
            Said::Unknown => self.unsure(at, new),
            // The rotation wrote it in between.
            Said::Refused(why) if conditional && why.starts_with("409") => false,
            Said::Refused(why) => {
                self.is_wrong(format!("updating {name}, which was {known:?}: {why}"))
            }
        }
    }

    fn now(&mut self, at: usize, known: Option<Known>) -> bool {
        self.slots[at].1 = vec![known];
        true
    }

    fn unsure(&mut self, at: usize, known: Option<Known>) -> bool {
        self.slots[at].1.push(known);
        false
    }

    fn is_wrong(&mut self, what: String) -> bool {
        self.wrong.push(what);
        false
    }

    fn send(&mut self, method: &str, path: &str, body: Option<&Value>) -> Said {
        match self.session.send(method, path, body) {
            Err(Unanswered::NotSent(_)) => {
                // It is away; asked again a moment later.
                thread::sleep(Duration::from_millis(500));
                Said::Nothing
            }
            Err(Unanswered::Lost(_)) => Said::Unknown,
            Ok(answer) => said(&answer),
        }
    }
}

/// What an answer says.
enum Said {
    /// It was carried out.
    Done(Value),
    /// It was not, and may be later.
    Nothing,
    /// It may have been.
    Unknown,
    /// It cannot be.
    Refused(String),
}

fn said(answer: &Answer) -> Said {
    let text = || format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body));
    match answer.status {
        200..300 => Said::Done(serde_json::from_slice(&answer.body).unwrap_or_default()),
        429 => Said::Nothing,
        500.. => Said::Unknown,
        _ => Said::Refused(text()),
    }
}

fn secret(name: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name },
        "data": { "value": BASE64.encode(value) },
    })
}

fn uid_of(secret: &Value) -> Option<String> {
    secret["metadata"]["uid"].as_str().map(str::to_owned)
}

/// Uid and value of what was read.
fn of(secret: &Value) -> (Option<String>, String) {
    let value = BASE64.decode(secret["data"]["value"].as_str().unwrap_or_default());
    (uid_of(secret), String::from_utf8_lossy(&value.unwrap_or_default()).into_owned())
}

fn is(known: &Known, read: &Value) -> bool {
    let (uid, value) = of(read);
    value == known.value && (known.uid.is_none() || known.uid == uid)
}

/// Makes Secrets, many at a time; answers with what was acknowledged.
pub(crate) fn create_all(apiserver: &Apiserver, names: &[String]) -> Vec<(String, Slot)> {
    in_parallel(apiserver, names, |session, name| {
        let value = crate::support::value_of(name);
        let answer = session.send("POST", PATH, Some(&secret(name, &value))).unwrap();
        let Said::Done(made) = said(&answer) else { panic!("creating {name}: {answer:?}") };
        (name.to_owned(), vec![Some(Known { value, uid: uid_of(&made) })])
    })
}

/// Does something for each name, some at a time.
pub(crate) fn in_parallel<T: Send>(
    apiserver: &Apiserver,
    names: &[String],
    each: impl Fn(&mut Session, &str) -> T + Sync,
) -> Vec<T> {
    let parts = names.chunks(names.len().div_ceil(8).max(1));
    let work = &|part: &[String]| {
        let mut session = apiserver.client().session();
        part.iter().map(|name| each(&mut session, name)).collect::<Vec<_>>()
    };
    thread::scope(|scope| {
        let working: Vec<_> = parts.map(|part| scope.spawn(move || work(part))).collect();
        working.into_iter().flat_map(|part| part.join().unwrap()).collect()
    })
}

/// Everything that an apiserver lists, by name.
pub(crate) fn list(client: &Client) -> BTreeMap<String, Value> {
    let (mut session, mut all) = (client.session(), BTreeMap::new());
    let mut next = String::new();
    loop {
        let path = format!("{PATH}?limit={PAGE}&continue={next}");
        let answer = session.send("GET", &path, None).unwrap();
        let Said::Done(mut page) = said(&answer) else { panic!("listing: {answer:?}") };
        for item in page["items"].as_array_mut().unwrap() {
            let name = item["metadata"]["name"].as_str().unwrap().to_owned();
            all.insert(name, item.take());
        }
        next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        if next.is_empty() {
            return all;
        }
    }
}

/// What is there that must not be, or the other way around.
pub(crate) fn differences(model: &Model, now: &BTreeMap<String, Value>) -> Vec<String> {
    let unexpected = now.keys().filter(|name| !model.contains_key(*name));
    let mut found: Vec<String> = unexpected.map(|name| format!("{name} is nobody's")).collect();
    for (name, slot) in model {
        let read = now.get(name);
        let right = slot.iter().any(|state| match (state, read) {
            (None, None) => true,
            (Some(known), Some(read)) => is(known, read),
            _ => false,
        });
        if !right {
            found.push(format!("{name} should be {slot:?} and is {:?}", read.map(of)));
        }
    }
    found
}
