//! Data keys: asked for, held, and opened again.
//!
//! They lie in locked memory, nowhere else, and for a bounded time by a clock that goes on while
//! the machine sleeps.

use std::{collections::HashMap, rc::Rc, time::Duration};

use futures_util::{StreamExt, TryStreamExt, stream};
use lastkey_client::{Client, Kms};
use lastkey_crypto::{
    KeyMaterial, SystemEntropy,
    context::FILE_SALT_NAME,
    envelope::{Header, HeldKey, KeySalt, PayloadKey, Stanza},
};
use rustix::time::{ClockId, clock_gettime};

use super::jobs::Job;
use crate::{
    cli::Connect,
    connect::client,
    output::{Exit, Failure, chain},
};

/// The length of a data key in bytes.
const DATA_KEY_BYTES: u16 = 32;
/// How many requests are under way at once.
const AT_ONCE: usize = 8;
/// After a failed attempt to renew a held key, the next one waits for so long.
const RENEWAL_PAUSE: Duration = Duration::from_secs(30);

/// The service, and what it takes to ask it.
pub(super) struct Service {
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Service {
    pub(super) fn new(connect: &Connect) -> Result<Self, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Failure::failed)?;
        Ok(Self { client: client(connect)?, runtime })
    }

    /// Does for each item what `ask` says, several at once, in order.
    fn each<'a, I, T, W>(
        &'a self,
        items: impl IntoIterator<Item = I>,
        ask: impl Fn(&'a Client, I) -> W,
    ) -> Result<Vec<T>, Failure>
    where
        W: Future<Output = Result<T, Failure>>,
    {
        let items = stream::iter(items).map(|item| ask(&self.client, item));
        self.runtime.block_on(items.buffered(AT_ONCE).try_collect())
    }

    /// Asks the service one thing.
    pub(super) fn ask<'a, T, W>(&'a self, ask: impl FnOnce(&'a Client) -> W) -> Result<T, Failure>
    where
        W: Future<Output = Result<T, Failure>>,
    {
        self.runtime.block_on(ask(&self.client))
    }
}

/// Data keys for files to be written.
pub(super) struct DataKeys {
    service: Service,
    keys: Vec<String>,
    hold: Option<Duration>,
    /// Of this run's files, each used once.
    prepared: Vec<HeldKey>,
    held: Option<Holding>,
}

/// One data key, for as long as it may be held.
struct Holding {
    key: Rc<HeldKey>,
    time: Time,
}

/// When a held key was made, and until when it is used without asking.
#[derive(Clone, Copy, Debug)]
struct Time {
    since: Duration,
    renew_at: Duration,
    until: Duration,
}

impl Time {
    fn new(now: Duration, hold: Duration) -> Self {
        Self { since: now, renew_at: now + hold / 2, until: now.saturating_add(hold) }
    }

    /// Whether nobody needs to be asked yet.
    fn is_fresh(&self, now: Duration) -> bool {
        // A clock that went back is none to rely on.
        (self.since..self.renew_at).contains(&now)
    }

    /// Goes on after an attempt to renew failed, if it may. A refusal counts at once: the key may
    /// have been disabled.
    fn goes_on(&mut self, now: Duration, exit: Exit) -> bool {
        self.renew_at = (now + RENEWAL_PAUSE).min(self.until);
        exit == Exit::Unavailable && (self.since..self.until).contains(&now)
    }
}

impl DataKeys {
    pub(super) fn new(service: Service, keys: Vec<String>, hold: Option<Duration>) -> Self {
        Self { service, keys, hold, prepared: Vec::new(), held: None }
    }

    /// Asks for what so many files need, so that the service may go away afterwards.
    pub(super) fn prepare(&mut self, files: usize) -> Result<(), Failure> {
        if self.hold.is_some() {
            return self.held().map(drop);
        }
        let made = self.service.each(0..files, |client, _| new_data_key(client, &self.keys));
        self.prepared = made?;
        Ok(())
    }

    /// The data key of the next file.
    pub(super) fn next(&mut self) -> Result<Rc<HeldKey>, Failure> {
        if self.hold.is_some() {
            return self.held();
        }
        match self.prepared.pop() {
            Some(key) => Ok(Rc::new(key)),
            None => self.service.ask(|client| new_data_key(client, &self.keys)).map(Rc::new),
        }
    }

    /// The one data key of the run, renewed after half of its time if the service is there.
    fn held(&mut self) -> Result<Rc<HeldKey>, Failure> {
        let now = now();
        if let Some(held) = self.held.as_ref().filter(|held| held.time.is_fresh(now)) {
            return Ok(Rc::clone(&held.key));
        }
        match self.service.ask(|client| new_data_key(client, &self.keys)) {
            Ok(key) => {
                let key = Rc::new(key);
                let time = Time::new(now, self.hold.unwrap_or_default());
                self.held = Some(Holding { key: Rc::clone(&key), time });
                Ok(key)
            }
            Err(failure) => {
                self.held.take_if(|held| !held.time.goes_on(now, failure.exit()));
                self.held.as_ref().map(|held| Rc::clone(&held.key)).ok_or(failure)
            }
        }
    }
}

async fn new_data_key(client: &Client, keys: &[String]) -> Result<HeldKey, Failure> {
    let [first, others @ ..] = keys else {
        return Err(Failure::new(Exit::Usage, "no key is given"));
    };
    let salt = KeySalt::random(&SystemEntropy);
    let context = salt.context();
    let made = client.generate_data_key(first, DATA_KEY_BYTES, &context).await?;
    let mut stanzas = vec![stanza(&made.wrapped.key_id, made.wrapped.blob)?];
    for key in others {
        let wrapped = client.encrypt(key, made.plaintext.expose(), &context).await?;
        stanzas.push(stanza(&wrapped.key_id, wrapped.blob)?);
    }
    let data_key = KeyMaterial::from_slice(made.plaintext.expose());
    HeldKey::new(salt, data_key, stanzas).map_err(|error| Failure::failed(chain(&error)))
}

/// What the service wrapped, for the header.
pub(super) fn stanza(key_id: &str, wrapped: Vec<u8>) -> Result<Stanza, Failure> {
    let key_id = key_id.parse().map_err(Failure::failed)?;
    Stanza::new(key_id, wrapped).map_err(|error| Failure::failed(chain(&error)))
}

/// Data keys of files to be read.
pub(super) struct Unwrapped {
    service: Service,
    hold: Option<Duration>,
    /// By what their wrappings are bound to, with the time they were opened.
    held: HashMap<String, (KeyMaterial, Duration)>,
    /// Whether the run's data keys were fetched beforehand: then they stay to its end.
    prepared: bool,
}

impl Unwrapped {
    pub(super) fn new(service: Service, hold: Option<Duration>) -> Self {
        Self { service, hold, held: HashMap::new(), prepared: false }
    }

    /// Opens the data keys of these files, each once, so that the service may go away afterwards.
    pub(super) fn prepare(&mut self, files: Vec<(Job, Header)>) -> Result<(), Failure> {
        let files: HashMap<String, (Job, Header)> =
            files.into_iter().map(|(job, header)| (salt_of(&header), (job, header))).collect();
        let opened = self.service.each(&files, |client, (salt, (job, header))| async move {
            let data_key = unwrap(client, header).await.map_err(|failure| job.about(failure))?;
            Ok((salt.clone(), data_key))
        })?;
        let now = now();
        self.held.extend(opened.into_iter().map(|(salt, data_key)| (salt, (data_key, now))));
        self.prepared = true;
        Ok(())
    }

    /// The key of a file's payload.
    pub(super) fn open(&mut self, header: &Header) -> Result<PayloadKey, Failure> {
        let now = now();
        if !self.prepared {
            let hold = self.hold.unwrap_or_default();
            self.held.retain(|_, (_, since)| now < since.saturating_add(hold));
        }
        let salt = salt_of(header);
        if let Some((data_key, _)) = self.held.get(&salt)
            && let Ok(key) = header.open(data_key)
        {
            return Ok(key);
        }
        let data_key = self.service.ask(|client| unwrap(client, header))?;
        let key = header.open(&data_key).map_err(|error| Failure::failed(chain(&error)))?;
        if self.hold.is_some() {
            self.held.insert(salt, (data_key, now));
        }
        Ok(key)
    }
}

fn salt_of(header: &Header) -> String {
    header.context().get(FILE_SALT_NAME).unwrap_or_default().to_owned()
}

/// Opens the data key with the first stanza that the service opens.
async fn unwrap(client: &Client, header: &Header) -> Result<KeyMaterial, Failure> {
    let mut refusal = None;
    for stanza in header.stanzas() {
        match client.decrypt(stanza.wrapped(), &header.context()).await {
            Ok(data_key) => return Ok(KeyMaterial::from_slice(data_key.expose())),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.map_or_else(|| Failure::failed("the file names no key"), Failure::from))
}

/// Time since the machine started, asleep or not.
fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        now.tv_sec.try_into().unwrap_or_default(),
        now.tv_nsec.try_into().unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_held_key_is_renewed_halfway_and_ends_with_its_time() {
        let mut time = Time::new(seconds(1000), seconds(600));
        assert!(time.is_fresh(seconds(1000)) && time.is_fresh(seconds(1299)));
        assert!(!time.is_fresh(seconds(1300)) && !time.is_fresh(seconds(999)));

        // The server is away: it goes on, and is asked again after a while.
        assert!(time.goes_on(seconds(1300), Exit::Unavailable));
        assert!(time.is_fresh(seconds(1329)) && !time.is_fresh(seconds(1330)));
        assert!(time.goes_on(seconds(1599), Exit::Unavailable));
        assert!(!time.is_fresh(seconds(1600)), "no pause reaches beyond its time");
        assert!(!time.goes_on(seconds(1600), Exit::Unavailable), "its time is over");
    }

    #[test]
    fn a_refusal_ends_a_held_key_at_once() {
        for exit in [Exit::Failed, Exit::NotFound, Exit::Denied, Exit::Dependency] {
            assert!(!Time::new(seconds(0), seconds(600)).goes_on(seconds(300), exit));
        }
    }
}
