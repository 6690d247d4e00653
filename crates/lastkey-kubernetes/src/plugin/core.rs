//! What both versions of the protocol have in common: the three calls, each as numbered steps.

use std::{collections::HashMap, future::Future, pin::Pin, sync::Arc, time::Duration};

use lastkey_client::{
    Client, Error as ClientError,
    native::{PluginDecrypt, PluginEncrypt, PluginEncrypted},
};
use lastkey_crypto::{
    SecretBytes, blob,
    plugin_blob::{self, PluginBlob, PluginKey},
};
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout_at},
};

use super::{
    memory::{Asked, Memory, Ticket},
    metrics::MemoryMetrics,
    problem::{Problem, failure_kind},
    view::{Announcement, View, uptime},
};

/// The one annotation: the id of the key version, in clear, for whoever reads etcd.
pub const KEY_VERSION_ANNOTATION: &str = "key-version.kms.lastkey.dev";

/// The most bytes that fit in an apiserver's ciphertext once they are encrypted; it sends 32.
pub(super) const MAX_PLAINTEXT: usize =
    plugin_blob::MAX_LEN - plugin_blob::OVERHEAD - blob::OVERHEAD;

/// What one connection was told last. An apiserver compares what Encrypt answers with what Status
/// told *it*, so a neighbour's Status must not move it.
pub(super) type Announced = Arc<Mutex<Option<PluginKey>>>;

pub(super) struct Core {
    pub(super) client: Arc<Client>,
    pub(super) key: String,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) refresh: Arc<Notify>,
    pub(super) permits: Semaphore,
    /// For a whole call; below the apiserver's own deadline of 3 s.
    pub(super) budget: Duration,
    /// What any connection was told last, for one that has not asked yet.
    pub(super) last_announced: Announced,
    /// What was opened before, if that may be remembered.
    pub(super) memory: Option<Arc<Memory>>,
    pub(super) metrics: Arc<MemoryMetrics>,
}

/// What an apiserver stores.
pub(super) struct Sealed {
    pub(super) ciphertext: Vec<u8>,
    pub(super) key_id: String,
    pub(super) annotations: HashMap<String, Vec<u8>>,
    /// What made it.
    pub(super) key: PluginKey,
    /// Whether the server has opened it again.
    opened: bool,
}

/// What an apiserver brings back; v1 has neither key id nor annotations.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    /// The apiserver's name of the call; v1 has none.
    pub(super) uid: &'a str,
    pub(super) ciphertext: &'a [u8],
    pub(super) identity: Option<Identity<'a>>,
}

/// A key id as an apiserver stored it, and the annotations beside it.
type Identity<'a> = (&'a str, &'a HashMap<String, Vec<u8>>);

impl Core {
    /// Answers from memory; never waits.
    pub(super) fn status(&self, announced: &Announced) -> Result<Announcement, Problem> {
        let announcement = self.view.borrow().announce(uptime())?;
        *announced.lock() = Some(announcement.key);
        *self.last_announced.lock() = Some(announcement.key);
        Ok(announcement)
    }

    /// Encrypts under the generation this connection was told.
    pub(super) async fn encrypt(
        &self,
        announced: &Announced,
        plaintext: &SecretBytes,
    ) -> Result<Sealed, Problem> {
        let trust = self.memory.as_ref().map(|memory| memory.trust());
        let sealed = self.encrypt_pinned(announced, plaintext).await?;
        self.learn((&sealed, Some((&*sealed.key_id, &sealed.annotations))), trust, plaintext);
        Ok(sealed)
    }

    async fn encrypt_pinned(
        &self,
        announced: &Announced,
        plaintext: &SecretBytes,
    ) -> Result<Sealed, Problem> {
        // 1. Refuse what cannot work.
        check_plaintext(plaintext)?;
        let _permit = self.permit()?;
        let deadline = Instant::now() + self.budget;
        // 2. Take the generation Status announced, so that concurrent calls never flip.
        let told = (*announced.lock()).or(*self.last_announced.lock());
        // 3. Encrypt; after a rotation the pin holds for a minute, then the server refuses it.
        let stale = match told {
            None => None,
            Some(pin) => match self.seal(pin, plaintext).await {
                Err(Problem::Stale) => Some(pin),
                outcome => return outcome,
            },
        };
        // 4. Rare, and much to carry about: wait for a generation to encrypt under.
        let work = Box::pin(self.encrypt_anew(stale, (announced, plaintext)));
        self.in_time(deadline, work).await
    }

    /// Encrypts under the generation that follows a stale one, or under the first one heard of.
    async fn encrypt_anew(
        &self,
        stale: Option<PluginKey>,
        (announced, plaintext): (&Announced, &SecretBytes),
    ) -> Result<Sealed, Problem> {
        let stale = match stale {
            Some(stale) => stale,
            None => {
                let pin = self.current().await?;
                match self.seal(pin, plaintext).await {
                    Err(Problem::Stale) => pin,
                    outcome => return outcome,
                }
            }
        };
        // Learn the new generation, and answer with it.
        let new = self.newer_than(stale).await?;
        let sealed = self.seal(new, plaintext).await?;
        *announced.lock() = Some(new);
        Ok(sealed)
    }

    /// Encrypts under the newest generation.
    pub(super) async fn encrypt_current(&self, plaintext: &SecretBytes) -> Result<Sealed, Problem> {
        let deadline = Instant::now() + self.budget;
        let current = self.in_time(deadline, Box::pin(self.current())).await?;
        let current = Announced::new(Mutex::new(Some(current)));
        let trust = self.memory.as_ref().map(|memory| memory.trust());
        let sealed = self.encrypt_pinned(&current, plaintext).await?;
        self.learn((&sealed, None), trust, plaintext);
        Ok(sealed)
    }

    /// Remembers what the server has opened before it answered, for who will ask for it so.
    fn learn(
        &self,
        (sealed, identity): (&Sealed, Option<Identity<'_>>),
        trust: Option<Ticket>,
        plaintext: &SecretBytes,
    ) {
        if let (Some(memory), Some(trust), true) = (&self.memory, trust, sealed.opened) {
            let stored = Stored { uid: "", ciphertext: &sealed.ciphertext, identity };
            memory.learn(&Asked::new(&stored, sealed.key), (trust, plaintext));
        }
    }

    /// Opens what this cluster's apiservers stored. Answers also whose it is, by its own account.
    pub(super) async fn decrypt(
        &self,
        stored: Stored<'_>,
    ) -> (Result<SecretBytes, Problem>, Option<PluginKey>) {
        // 1. Parse the ciphertext.
        match PluginBlob::parse(stored.ciphertext) {
            Ok(envelope) => (self.open(&stored, &envelope).await, Some(*envelope.key())),
            Err(error) => (Err(error.into()), None),
        }
    }

    async fn open(
        &self,
        stored: &Stored<'_>,
        envelope: &PluginBlob<'_>,
    ) -> Result<SecretBytes, Problem> {
        let key = *envelope.key();
        let view = Arc::clone(&self.view.borrow());
        // 2. The key id and the annotations are those it was made with.
        if let Some((key_id, annotations)) = stored.identity {
            if !view.is_key_id_of(&key, key_id) {
                return Err(Problem::KeyIdMismatch);
            }
            if !are_annotations_of(&key, annotations) {
                return Err(Problem::AnnotationMismatch);
            }
        }
        // 3. What is remembered of our cluster's is answered without waiting for anything.
        let asked = self.memory.as_ref().map(|memory| (memory, Asked::new(stored, key)));
        if let Some((memory, asked)) = &asked
            && view.key.is_some_and(|ours| ours.cluster == key.cluster)
            && let Some(opened) = memory.at_once(asked)
        {
            return Ok(opened);
        }
        // On the heap, for it is large: an answer from above need not carry it about.
        let work = Box::pin(async {
            // 4. It is our cluster's.
            let ours = self.current().await?;
            if ours.cluster != key.cluster {
                return Err(Problem::ForeignCluster(key.cluster));
            }
            // 5. Memory or the server opens it, also under an epoch we have never seen.
            match asked {
                Some((memory, asked)) => memory.open(asked, || self.fetch(envelope)).await,
                None => self.fetch(envelope).await,
            }
        });
        self.in_time(Instant::now() + self.budget, work).await
    }

    /// Has the server open it.
    async fn fetch(&self, envelope: &PluginBlob<'_>) -> Result<SecretBytes, Problem> {
        let _permit = self.permit()?;
        let call = PluginDecrypt {
            key: &self.key,
            generation: (*envelope.key()).into(),
            blob: envelope.blob_bytes(),
        };
        let opened = self.client.plugin_decrypt(call, self.budget).await;
        opened.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: ClientError) -> Problem {
        self.metrics.failed(failure_kind(&error));
        Problem::Server(error)
    }

    async fn seal(&self, pin: PluginKey, plaintext: &SecretBytes) -> Result<Sealed, Problem> {
        let call = PluginEncrypt {
            key: &self.key,
            cluster: Some(pin.cluster),
            pin: Some(lastkey_client::native::PluginGeneration::from(pin).pin()),
            plaintext: plaintext.expose(),
        };
        let answer = match self.client.plugin_encrypt(call, self.budget).await {
            Ok(answer) => answer,
            Err(error) if is_stale(&error) => return Err(Problem::Stale),
            Err(error) => return Err(self.failed(error)),
        };
        let key_id = self.view.borrow().key_id_of(&pin);
        check_answer(&answer, (pin, &key_id))?;
        let ciphertext = PluginBlob::new(pin, &answer.blob)
            .map_err(|_| Problem::Inconsistent("the blob is not of the key version it names"))?
            .encode();
        let annotations = annotations(&pin);
        Ok(Sealed { ciphertext, key_id, annotations, key: pin, opened: answer.opened })
    }

    /// The generation that encrypts now; just after the start, waits for the first answer.
    async fn current(&self) -> Result<PluginKey, Problem> {
        let heard = Arc::clone(&self.view.borrow());
        let heard = match heard.is_starting() {
            false => heard,
            true => {
                let mut view = self.view.clone();
                let heard = view.wait_for(|view| !view.is_starting()).await;
                heard.map_err(|_| Problem::Starting(None))?.clone()
            }
        };
        match heard.key {
            Some(key) => Ok(key),
            None => heard.announce(uptime()).map(|said| said.key),
        }
    }

    /// The generation that follows `old`, asking the server if the watch has not heard of it.
    async fn newer_than(&self, old: PluginKey) -> Result<PluginKey, Problem> {
        let mut view = self.view.clone();
        let is_newer = |view: &View| view.key.filter(|&key| key != old);
        if is_newer(&view.borrow()).is_none() {
            self.refresh.notify_one();
        }
        let decided = |view: &Arc<View>| is_newer(view).is_some() || view.refusal().is_some();
        let heard = view.wait_for(decided).await.map_err(|_| Problem::Stale)?;
        match heard.refusal() {
            Some(refusal) => Err(Problem::Key(refusal.clone())),
            None => is_newer(&heard).ok_or(Problem::Stale),
        }
    }

    fn permit(&self) -> Result<SemaphorePermit<'_>, Problem> {
        self.permits.try_acquire().map_err(|_| Problem::Overloaded)
    }

    /// `work` is boxed, because it is large and would be moved here.
    async fn in_time<T>(
        &self,
        deadline: Instant,
        work: Pin<Box<impl Future<Output = Result<T, Problem>>>>,
    ) -> Result<T, Problem> {
        match timeout_at(deadline, work).await {
            Ok(outcome) => outcome,
            // while nothing has answered yet, that is the more useful reason
            Err(_) => match self.view.borrow().announce(uptime()) {
                Err(starting @ Problem::Starting(_)) => Err(starting),
                _ => {
                    self.metrics.failed("timeout");
                    Err(Problem::Deadline)
                }
            },
        }
    }
}

fn annotations(key: &PluginKey) -> HashMap<String, Vec<u8>> {
    [(KEY_VERSION_ANNOTATION.to_owned(), key.key_version.text().to_vec())].into()
}

fn are_annotations_of(key: &PluginKey, found: &HashMap<String, Vec<u8>>) -> bool {
    let version = found.get(KEY_VERSION_ANNOTATION);
    found.len() == 1 && version.is_some_and(|it| it[..] == key.key_version.text()[..])
}

fn check_plaintext(plaintext: &SecretBytes) -> Result<(), Problem> {
    match plaintext.len() {
        0 => Err(Problem::Empty),
        1..=MAX_PLAINTEXT => Ok(()),
        bytes => Err(Problem::TooLarge { what: "the plaintext", bytes, limit: MAX_PLAINTEXT }),
    }
}

/// The server encrypted under what we asked for, and computes key ids as we do.
fn check_answer(answer: &PluginEncrypted, (pin, key_id): (PluginKey, &str)) -> Result<(), Problem> {
    if PluginKey::from(answer.generation) != pin {
        return Err(Problem::Inconsistent("it encrypted under another generation than asked for"));
    }
    if answer.plugin_key_id != key_id {
        return Err(Problem::Inconsistent("its key id is not that of its key version"));
    }
    Ok(())
}

fn is_stale(error: &ClientError) -> bool {
    error.code() == Some("Rejected.StaleKeyVersion")
}
