//! Which plugins were told that they may use a key, for how long, and which know better by now
//! (decision 8).
//!
//! A plugin asks for the state of its key over and over, and says each time which answer it has
//! acted upon: that is its confirmation. Whoever took a key or an identity away can so wait until
//! all who hold it have confirmed, and name those who have not, with the end of their leases.
//!
//! The table lives in memory. For the length of one lease after a start, a plugin that was not heard
//! since may hold what the process before told it, so it counts as one that has not confirmed.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use lastkey_crypto::{ClusterId, KeyId, SpoolId};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    Action, AliasName, Clock, ClusterName, Error, KeyRef, Principal, Timestamp,
    command::{PLUGIN_LEASE, SHORTEST_LEASE},
    engine::Core,
    policy::Resource,
};

/// Who was heard within this time, or waits for an answer, is waited for.
const CONNECTED: Duration = Duration::from_secs(3);
/// A plugin that reaches the server is heard within this time: its questions wait for 30 seconds.
const HEARD_WITHIN: Duration = Duration::from_secs(45);
/// Who goes by one plugin's files for so long at the same time is more than one that hands over to
/// another.
const SIDE_BY_SIDE: Duration = Duration::from_secs(120);
/// Processes that one plugin's identity may run at once.
const MAX_INSTANCES: usize = 8;

/// What was taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The use of a key.
    Key(KeyRef),
    /// A plugin's identity.
    Plugin {
        /// Its cluster.
        cluster: ClusterId,
        /// Its name in there.
        name: String,
    },
}

/// A plugin that may still go by what it was told before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unconfirmed {
    /// Its cluster.
    pub cluster: ClusterId,
    /// What people call that.
    pub cluster_name: Option<ClusterName>,
    /// Its name; an administrator's that runs one is a principal's text.
    pub plugin: String,
    /// When its lease ends: by then it serves nothing any more, whatever it heard.
    pub until: Timestamp,
}

/// One running plugin.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Holder {
    cluster: ClusterId,
    /// A principal's text.
    principal: String,
    instance: Option<SpoolId>,
}

#[derive(Clone, Debug)]
struct Told {
    principal: Principal,
    key: KeyRef,
    /// The answer that it has acted upon.
    confirmed: String,
    /// When it was first heard, since it was silent for a lease.
    first: Duration,
    /// When it was last heard.
    heard: Duration,
    /// Questions of it that wait for their answers.
    waiting: usize,
    /// When it was last told that it may use something, and until when it so may.
    allowed: Option<(Duration, Timestamp)>,
}

/// Everybody who was told something.
pub(crate) struct Holders {
    table: Mutex<HashMap<Holder, Told>>,
    /// Counts confirmations.
    confirmations: watch::Sender<u64>,
    /// When the engine started, on the running clock.
    started: Duration,
    /// In seconds.
    lease: AtomicU64,
}

impl Told {
    /// When it was last there.
    fn there(&self, now: Duration) -> Duration {
        if self.waiting > 0 { now } else { self.heard }
    }

    fn is_there(&self, now: Duration) -> bool {
        now.saturating_sub(self.there(now)) < HEARD_WITHIN
    }

    fn goes_by(&self) -> &str {
        match &self.principal {
            Principal::Plugin { fingerprint, .. } => fingerprint,
            _ => "",
        }
    }
}

/// A plugin's question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asks<'a> {
    pub(crate) principal: &'a Principal,
    pub(crate) cluster: ClusterId,
    pub(crate) instance: Option<SpoolId>,
    pub(crate) key: &'a KeyRef,
    /// The answer it has acted upon.
    pub(crate) known: &'a str,
}

impl Asks<'_> {
    fn holder(&self) -> Holder {
        let (cluster, instance) = (self.cluster, self.instance);
        Holder { cluster, principal: self.principal.to_string(), instance }
    }
}

/// Ends a question's wait, whichever way it ends.
pub(crate) struct Waits<'a> {
    holders: &'a Holders,
    holder: Holder,
    clock: &'a dyn Clock,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        if let Some(told) = self.holders.table.lock().get_mut(&self.holder) {
            told.waiting = told.waiting.saturating_sub(1);
            // it was there until now, and has yet to say that it has acted upon its answer
            told.heard = self.clock.running();
        }
    }
}

impl Holders {
    pub(crate) fn new(started: Duration) -> Self {
        let lease = AtomicU64::new(PLUGIN_LEASE.as_secs());
        Self { table: Mutex::default(), confirmations: watch::channel(0).0, started, lease }
    }

    /// How long a plugin may go by what it is told from now on.
    pub(crate) fn lease(&self) -> Duration {
        Duration::from_secs(self.lease.load(Ordering::Relaxed))
    }

    /// Gives shorter leases from now on. Longer than the usual is none: what a process before this one
    /// gave out is taken to have been the usual.
    pub(crate) fn set_lease(&self, lease: Duration) {
        let lease = lease.clamp(SHORTEST_LEASE, PLUGIN_LEASE);
        self.lease.store(lease.as_secs(), Ordering::Relaxed);
    }

    /// A plugin asks; what it knows is confirmed. One that was never answered is no holder yet, so
    /// that strangers leave nothing behind.
    pub(crate) fn heard(&self, asks: Asks<'_>, now: Duration) {
        if let Some(told) = self.table.lock().get_mut(&asks.holder()) {
            told.heard = now;
            if told.confirmed != asks.known {
                asks.known.clone_into(&mut told.confirmed);
                self.confirmations.send_modify(|count| *count += 1);
            }
        }
    }

    /// An allowed question waits for its answer.
    pub(crate) fn waits<'a>(&'a self, asks: Asks<'_>, clock: &'a dyn Clock) -> Waits<'a> {
        let (holder, now) = (asks.holder(), clock.running());
        let mut table = self.table.lock();
        make_room(&mut table, &holder, now);
        if holder.instance.is_some() {
            // one that could not read its own name yet when it first asked
            table.remove(&Holder { instance: None, ..holder.clone() });
        }
        let told = table.entry(holder.clone()).or_insert_with(|| Told {
            principal: asks.principal.clone(),
            key: asks.key.clone(),
            confirmed: asks.known.to_owned(),
            first: now,
            heard: now,
            waiting: 0,
            allowed: None,
        });
        told.principal = asks.principal.clone();
        told.key = asks.key.clone();
        told.waiting += 1;
        Waits { holders: self, holder, clock }
    }

    /// What is known of the running plugins of that name.
    fn of<T>(
        &self,
        (cluster, name): (ClusterId, &str),
        one: impl Fn(&Holder, &Told) -> T,
    ) -> Vec<T> {
        let is_it = |holder: &Holder, told: &Told| {
            let named = |known: &Principal| matches!(known, Principal::Plugin { name: known, .. } if **known == *name);
            holder.cluster == cluster && named(&told.principal)
        };
        let table = self.table.lock();
        table.iter().filter(|(it, told)| is_it(it, told)).map(|(it, told)| one(it, told)).collect()
    }

    /// Whether nobody is known to go by another identity of that plugin's than this one.
    pub(crate) fn all_go_by(
        &self,
        plugin: (ClusterId, &str),
        fingerprint: &str,
        now: Duration,
    ) -> bool {
        let is_another = |holder: &Holder, told: &Told| {
            // Of those that do not name their instance, several look like one.
            let several = holder.instance.is_none() && told.waiting > 1;
            told.is_there(now) && (told.goes_by() != fingerprint || several)
        };
        // So shortly after a start not everybody has come back.
        let is_known = now.saturating_sub(self.started) >= HEARD_WITHIN;
        is_known && !self.of(plugin, is_another).contains(&true)
    }

    /// Whether somebody is there who goes by this identity of that plugin's.
    pub(crate) fn somebody_goes_by(
        &self,
        plugin: (ClusterId, &str),
        fingerprint: &str,
        now: Duration,
    ) -> bool {
        let goes = |_: &Holder, told: &Told| told.is_there(now) && told.goes_by() == fingerprint;
        self.of(plugin, goes).contains(&true)
    }

    /// Whether two plugins of that name have run side by side.
    pub(crate) fn are_several(&self, plugin: (ClusterId, &str), now: Duration) -> bool {
        let times = self.of(plugin, |_, told| (told.first, told.there(now)));
        times.iter().enumerate().any(|(at, one)| {
            times[..at].iter().any(|other| {
                let (from, until) = (one.0.max(other.0), one.1.min(other.1));
                until.saturating_sub(from) >= SIDE_BY_SIDE
            })
        })
    }

    /// How many different identities of that plugin's are in use at this moment.
    pub(crate) fn identities_in_use(&self, plugin: (ClusterId, &str)) -> usize {
        let asks = |_: &Holder, told: &Told| (told.waiting > 0).then(|| told.goes_by().to_owned());
        self.of(plugin, asks).into_iter().flatten().collect::<HashSet<_>>().len()
    }

    /// It is answered that it may use something until then.
    pub(crate) fn allowed(&self, asks: Asks<'_>, (now, until): (Duration, Timestamp)) {
        if let Some(told) = self.table.lock().get_mut(&asks.holder()) {
            told.allowed = Some((now, until));
        }
    }
}

/// Forgets those whose leases have ended long ago, and the oldest of too many.
fn make_room(table: &mut HashMap<Holder, Told>, new: &Holder, now: Duration) {
    if table.contains_key(new) {
        return;
    }
    table.retain(|_, told| {
        let held = told.allowed.is_some_and(|(at, _)| now.saturating_sub(at) <= PLUGIN_LEASE);
        held || told.waiting > 0 || now.saturating_sub(told.heard) <= PLUGIN_LEASE
    });
    let same = |known: &&Holder| known.cluster == new.cluster && known.principal == new.principal;
    if table.keys().filter(same).count() >= MAX_INSTANCES {
        let oldest = table.iter().filter(|(known, _)| same(known)).min_by_key(|(_, it)| it.heard);
        if let Some(oldest) = oldest.map(|(known, _)| known.clone()) {
            table.remove(&oldest);
        }
    }
}

impl Core {
    /// Waits until those who hold what was taken have confirmed that they know, at most so long for
    /// those who are connected. Answers who has not.
    pub(crate) async fn unconfirmed(
        self: &Arc<Self>,
        taken: &Taken,
        patience: Duration,
    ) -> Result<Vec<Unconfirmed>, Error> {
        let deadline = Instant::now() + patience;
        let mut confirmations = self.holders.confirmations.subscribe();
        loop {
            confirmations.mark_unchanged();
            let found = self.who_holds(taken).await?;
            let wait = found.iter().any(|(_, connected)| *connected);
            if !wait || timeout_at(deadline, confirmations.changed()).await.is_err() {
                return Ok(found.into_iter().map(|(unconfirmed, _)| unconfirmed).collect());
            }
        }
    }

    /// The plugins that reach their key by this name, as far as they were told within a lease that
    /// they may use it; those that may have been told so by the process before this one, too.
    pub(crate) fn reached_by(&self, alias: &AliasName) -> Vec<Unconfirmed> {
        let now = self.clock.running();
        let known: Vec<(Holder, Told)> =
            self.holders.table.lock().iter().map(|(it, told)| (it.clone(), told.clone())).collect();
        let named = KeyRef::Alias(alias.clone());
        let key = self.resolve(&named);
        // By which name those reach it that were not heard since the start, nobody knows.
        let silent = self.not_heard_since_the_start(&known, (&Taken::Key(named.clone()), key), now);
        let mut found: Vec<Unconfirmed> = silent.into_iter().map(|(one, _)| one).collect();
        for (holder, told) in known.iter().filter(|(_, told)| told.key == named) {
            let Some((at, until)) = told.allowed else { continue };
            let resource = Resource::ClusterKey { key, cluster: holder.cluster };
            if now.saturating_sub(at) <= self.holders.lease()
                && self.policy.allows(&told.principal, Action::PluginStatus, resource)
            {
                found.push(self.unconfirmed_one(holder.cluster, &told.principal, until));
            }
        }
        found.sort_by(|a, b| (a.cluster, &a.plugin).cmp(&(b.cluster, &b.plugin)));
        found.dedup();
        found
    }

    /// Who has not confirmed, and whether it is connected.
    async fn who_holds(&self, taken: &Taken) -> Result<Vec<(Unconfirmed, bool)>, Error> {
        let now = self.clock.running();
        let key = match taken {
            Taken::Key(key) => self.resolve(key),
            Taken::Plugin { .. } => None,
        };
        let known: Vec<(Holder, Told)> =
            self.holders.table.lock().iter().map(|(it, told)| (it.clone(), told.clone())).collect();
        let mut found = self.not_heard_since_the_start(&known, (taken, key), now);
        for (holder, told) in known {
            let Some((at, until)) = told.allowed else { continue };
            let is_over = now.saturating_sub(at) > self.holders.lease();
            if is_over || !self.concerns(&holder, &told, (taken, key)) {
                continue;
            }
            if told.confirmed != self.expected_of(&holder, &told).await? {
                let connected = told.waiting > 0 || now.saturating_sub(told.heard) < CONNECTED;
                found.push((
                    self.unconfirmed_one(holder.cluster, &told.principal, until),
                    connected,
                ));
            }
        }
        found.sort_by(|(a, _), (b, _)| (a.cluster, &a.plugin).cmp(&(b.cluster, &b.plugin)));
        found.dedup();
        Ok(found)
    }

    fn concerns(
        &self,
        holder: &Holder,
        told: &Told,
        (taken, key): (&Taken, Option<KeyId>),
    ) -> bool {
        match taken {
            Taken::Plugin { cluster, name } => {
                matches!(&told.principal, Principal::Plugin { name: known, .. } if **known == **name)
                    && holder.cluster == *cluster
            }
            Taken::Key(_) => {
                let granted = self.records.cluster(holder.cluster);
                let granted =
                    granted.is_some_and(|it| key.is_some_and(|key| it.value.keys.contains(&key)));
                granted || self.resolve(&told.key) == key
            }
        }
    }

    /// Registered plugins that were not heard since the start: the process before may have told
    /// them something.
    fn not_heard_since_the_start(
        &self,
        known: &[(Holder, Told)],
        (taken, key): (&Taken, Option<KeyId>),
        now: Duration,
    ) -> Vec<(Unconfirmed, bool)> {
        if now.saturating_sub(self.holders.started) > PLUGIN_LEASE {
            return Vec::new();
        }
        let until = self.started.after(PLUGIN_LEASE);
        let mut found = Vec::new();
        for cluster in self.records.clusters() {
            let cluster = &cluster.value;
            for plugin in &cluster.plugins {
                let concerned = match taken {
                    Taken::Key(_) => key.is_some_and(|key| cluster.keys.contains(&key)),
                    Taken::Plugin { cluster: of, name } => {
                        cluster.id == *of && plugin.name == *name
                    }
                };
                let is_it = |(holder, told): &&(Holder, Told)| {
                    holder.cluster == cluster.id
                        && matches!(&told.principal, Principal::Plugin { name, .. } if **name == *plugin.name)
                };
                let heard = known.iter().any(|it| is_it(&it));
                if concerned && !heard && plugin.created < self.started {
                    let (cluster_name, plugin) = (cluster.name.clone(), plugin.name.clone());
                    let cluster = cluster.id;
                    found.push((Unconfirmed { cluster, cluster_name, plugin, until }, false));
                }
            }
        }
        found
    }

    /// What a plugin knows that has acted upon the newest answer to its question.
    async fn expected_of(&self, holder: &Holder, told: &Told) -> Result<String, Error> {
        let refusal = |error: &Error| format!("!{}", error.code());
        let key = self.resolve(&told.key);
        let resource = Resource::ClusterKey { key, cluster: holder.cluster };
        if !self.policy.allows(&told.principal, Action::PluginStatus, resource) {
            return Ok(refusal(&Error::Denied));
        }
        let id = match self.require(&told.key) {
            Ok(id) => id,
            Err(error) => return Ok(refusal(&error)),
        };
        match crate::command::plugin_state(self, id, holder.cluster).await {
            Ok(state) => Ok(state.token),
            Err(error @ (Error::KeyNotFound | Error::NotFound(_))) => Ok(refusal(&error)),
            Err(error) => Err(error),
        }
    }

    fn unconfirmed_one(
        &self,
        cluster: ClusterId,
        principal: &Principal,
        until: Timestamp,
    ) -> Unconfirmed {
        let cluster_name = self.records.cluster(cluster).and_then(|it| it.value.name.clone());
        let plugin = match principal {
            Principal::Plugin { name, .. } => name.as_ref().to_owned(),
            other => other.to_string(),
        };
        Unconfirmed { cluster, cluster_name, plugin, until }
    }
}
