//! Reports of changes to whoever follows a prefix, in bounded memory.
//!
//! Each watch has a queue of its own. A watcher that falls behind loses its queue and is told so
//! once; what happens until it hears of that needs no report, since it must read again anyway.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{Entry, Revision};

/// The most events that wait for one watcher.
const MAX_EVENTS: usize = 1024;
/// The most bytes of paths and values that wait for one watcher.
const MAX_BYTES: usize = 4 << 20;

/// A change to a watched path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The path has this value now.
    Put(Entry),
    /// The path holds nothing any more.
    Delete {
        /// What was removed.
        path: String,
        /// When.
        revision: Revision,
    },
    /// The watcher was too slow, or the store had to be reopened: read the prefix again. Later
    /// events follow as usual.
    Lost,
}

impl Event {
    fn path(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.path,
            Self::Delete { path, .. } => path,
            Self::Lost => "",
        }
    }

    fn bytes(&self) -> usize {
        let value = if let Self::Put(entry) = self { entry.value.len() } else { 0 };
        self.path().len() + value
    }
}

/// The changes to the paths under one prefix, in the order of their revisions.
pub struct Watch {
    shared: Arc<Shared>,
}

impl Watch {
    /// The next event; waits for one. `None` when the store was closed.
    ///
    /// Dropping the future loses no event.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            let arrived = self.shared.arrived.notified();
            match self.shared.queue.lock().take() {
                Taken::Event(event) => return Some(event),
                Taken::Closed => return None,
                Taken::Nothing => {}
            }
            arrived.await;
        }
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("prefix", &self.shared.prefix).finish_non_exhaustive()
    }
}

/// What a watch shares with the store.
struct Shared {
    prefix: String,
    queue: Mutex<Queue>,
    arrived: Notify,
}

impl Shared {
    fn push(&self, event: Event) {
        // Who found something takes until nothing is left, and needs no word of what came behind.
        if self.queue.lock().push(event) {
            self.arrived.notify_one();
        }
    }
}

#[derive(Default)]
struct Queue {
    events: VecDeque<Event>,
    bytes: usize,
    lost: bool,
    closed: bool,
}

enum Taken {
    Event(Event),
    Nothing,
    Closed,
}

impl Queue {
    /// True if nothing waited before.
    fn push(&mut self, event: Event) -> bool {
        if self.lost {
            return false;
        }
        let first = self.events.is_empty();
        self.bytes += event.bytes();
        self.events.push_back(event);
        if self.events.len() > MAX_EVENTS || self.bytes > MAX_BYTES {
            self.lose();
        }
        first
    }

    fn lose(&mut self) {
        self.events = VecDeque::new();
        self.bytes = 0;
        self.lost = true;
    }

    fn take(&mut self) -> Taken {
        if std::mem::take(&mut self.lost) {
            return Taken::Event(Event::Lost);
        }
        match self.events.pop_front() {
            Some(event) => {
                self.bytes -= event.bytes();
                Taken::Event(event)
            }
            None if self.closed => Taken::Closed,
            None => Taken::Nothing,
        }
    }
}

/// The store's end of all its watches.
#[derive(Default)]
pub(crate) struct Watches {
    all: Mutex<Vec<Weak<Shared>>>,
}

impl Watches {
    pub(crate) fn watch(&self, prefix: &str) -> Watch {
        let shared = Arc::new(Shared {
            prefix: prefix.to_owned(),
            queue: Mutex::default(),
            arrived: Notify::new(),
        });
        let mut all = self.all.lock();
        // Where nothing changes, nobody else forgets the watches that were dropped.
        all.retain(|watch| watch.strong_count() > 0);
        all.push(Arc::downgrade(&shared));
        Watch { shared }
    }

    /// Tells the watchers of it. The caller calls in the order of the revisions.
    pub(crate) fn publish(&self, event: Event) {
        let mut last: Option<Arc<Shared>> = None;
        self.all.lock().retain(|weak| {
            let Some(watch) = weak.upgrade() else { return false };
            if event.path().starts_with(&watch.prefix)
                && let Some(earlier) = last.replace(watch)
            {
                earlier.push(event.clone());
            }
            true
        });
        // Most often there is one watcher, and no copy.
        if let Some(last) = last {
            last.push(event);
        }
    }

    /// Whether nobody watches, so that events need not be made.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.lock().is_empty()
    }

    /// Makes everyone read again.
    pub(crate) fn lose_all(&self) {
        self.each(|watch| {
            watch.queue.lock().lose();
            watch.arrived.notify_one();
        });
    }

    /// Ends every watch behind the events it still has.
    pub(crate) fn close(&self) {
        self.each(|watch| {
            watch.queue.lock().closed = true;
            watch.arrived.notify_one();
        });
    }

    /// Visits the living watches and forgets the dropped ones.
    fn each(&self, mut visit: impl FnMut(&Shared)) {
        self.all.lock().retain(|weak| match weak.upgrade() {
            Some(watch) => {
                visit(&watch);
                true
            }
            None => false,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64) -> Event {
        let entry = Entry { path: "p".into(), value: vec![], revision: Revision(revision) };
        Event::Put(entry)
    }

    #[tokio::test]
    async fn a_lost_watcher_hears_of_it_once_and_goes_on() {
        let watches = Watches::default();
        let mut watch = watches.watch("p");
        watches.publish(event(1));
        watches.lose_all();
        watches.publish(event(2));
        assert_eq!(watch.next().await, Some(Event::Lost));
        watches.publish(event(3));
        assert_eq!(watch.next().await, Some(event(3)));
    }

    #[tokio::test]
    async fn bytes_that_wait_are_bounded() {
        let watches = Watches::default();
        let mut watch = watches.watch("");
        for revision in 0..5 {
            let value = vec![0; 1 << 20];
            watches.publish(Event::Put(Entry {
                path: "p".into(),
                value,
                revision: Revision(revision),
            }));
        }
        assert_eq!(watch.next().await, Some(Event::Lost));
    }

    #[tokio::test]
    async fn as_many_events_and_bytes_wait_as_were_promised_and_no_more() {
        let put = |bytes: usize| {
            Event::Put(Entry {
                path: "path".into(),
                value: vec![0; bytes - 4],
                revision: Revision(1),
            })
        };
        let heard = async |sizes: Vec<usize>| {
            let watches = Watches::default();
            let mut watch = watches.watch("");
            // Some came and went before: they count no more.
            for _ in 0..3 {
                watches.publish(put(MAX_BYTES - 1));
                assert_eq!(watch.next().await, Some(put(MAX_BYTES - 1)));
            }
            let count = sizes.len();
            sizes.into_iter().for_each(|bytes| watches.publish(put(bytes)));
            watches.close();
            for n in 0..count {
                if watch.next().await == Some(Event::Lost) {
                    return n;
                }
            }
            count
        };
        assert_eq!(heard(vec![5; MAX_EVENTS]).await, MAX_EVENTS);
        assert_eq!(heard(vec![5; MAX_EVENTS + 1]).await, 0);
        assert_eq!(heard(vec![MAX_BYTES - 10, 10]).await, 2);
        assert_eq!(heard(vec![MAX_BYTES - 10, 11]).await, 0);
        // A deletion counts by its path.
        let watches = Watches::default();
        let mut watch = watches.watch("");
        let path = "p".repeat(1 << 20);
        for _ in 0..5 {
            watches.publish(Event::Delete { path: path.clone(), revision: Revision(1) });
        }
        assert_eq!(watch.next().await, Some(Event::Lost));
    }

    #[tokio::test]
    async fn each_watcher_gets_what_it_follows_in_order_and_is_woken() {
        let watches = Watches::default();
        let put = |path: &str, revision| {
            let revision = Revision(revision);
            Event::Put(Entry { path: path.into(), value: vec![1], revision })
        };
        let (mut all, mut some) = (watches.watch(""), watches.watch("a/"));
        // It waits before anything happens.
        let waiting = tokio::spawn(async move {
            let first = all.next().await;
            (all, first)
        });
        tokio::task::yield_now().await;
        for (at, path) in ["a/1", "b/1", "a/2"].into_iter().enumerate() {
            watches.publish(put(path, at as u64));
        }
        let (mut all, first) = waiting.await.unwrap();
        assert_eq!(first, Some(put("a/1", 0)));
        assert_eq!(all.next().await, Some(put("b/1", 1)));
        assert_eq!(all.next().await, Some(put("a/2", 2)));
        assert_eq!(some.next().await, Some(put("a/1", 0)));
        assert_eq!(some.next().await, Some(put("a/2", 2)));
        watches.publish(put("a/3", 3));
        assert_eq!(all.next().await, Some(put("a/3", 3)));
        assert_eq!(some.next().await, Some(put("a/3", 3)));
    }

    #[test]
    fn dropped_watches_are_forgotten() {
        let watches = Watches::default();
        for _ in 0..1000 {
            drop(watches.watch("p"));
        }
        assert!(watches.all.lock().len() <= 1);
        watches.publish(event(1));
        assert!(watches.is_empty());
    }

    #[tokio::test]
    async fn events_before_the_end_are_delivered() {
        let watches = Watches::default();
        let mut watch = watches.watch("");
        watches.publish(event(1));
        watches.close();
        assert_eq!(watch.next().await, Some(event(1)));
        assert_eq!(watch.next().await, None);
        assert_eq!(watch.next().await, None);
    }
}
