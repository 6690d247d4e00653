//! How many connections there are on the plugin's sockets, and who leaves when there are too many.
//!
//! An apiserver opens one connection for each provider and keeps it. Whoever else may open the
//! socket must not keep it out: a connection that has not sent a whole request within
//! [`PROVES_ITSELF_WITHIN`] is closed, and when all places are taken, the connection leaves that
//! has sent nothing for longest, those first that never sent a request.

use std::{
    collections::HashMap,
    future::Future as _,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Context,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Sleep, sleep},
};

/// Connections at a time, of all sockets of one plugin.
pub const MAX_CONNECTIONS: usize = 32;
/// For a connection's first request.
pub const PROVES_ITSELF_WITHIN: Duration = Duration::from_secs(10);

/// How many connections were closed, and why; and how many sockets nobody can dial.
#[derive(Debug, Default)]
pub struct Closed {
    /// It was of another user, where that is not allowed.
    pub refused: AtomicU64,
    /// It sent what no honest client sends, and too much of it.
    pub flood: AtomicU64,
    /// It had to leave for another.
    pub crowded: AtomicU64,
    /// It sent no request in time.
    pub unproven: AtomicU64,
    /// Sockets whose file is gone at present.
    pub gone: AtomicU64,
}

/// The connections of one plugin.
#[derive(Debug)]
pub(super) struct Guests {
    pub(super) closed: Arc<Closed>,
    within: Duration,
    book: Mutex<Book>,
}

#[derive(Debug, Default)]
struct Book {
    open: HashMap<u64, Entry>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    mark: Arc<Mark>,
    leave: oneshot::Sender<()>,
}

/// What is known of one connection.
#[derive(Debug)]
struct Mark {
    opened: Instant,
    is_proven: AtomicBool,
    /// Milliseconds since `opened`.
    heard: AtomicU64,
}

impl Mark {
    fn silent(&self) -> Duration {
        let heard = Duration::from_millis(self.heard.load(Ordering::Relaxed));
        self.opened.elapsed().saturating_sub(heard)
    }
}

/// One connection's place; it has to be asked on every read and write.
#[derive(Debug)]
pub(super) struct Guest {
    guests: Arc<Guests>,
    number: u64,
    mark: Arc<Mark>,
    leaves: oneshot::Receiver<()>,
    /// Until the first request is there.
    unproven: Option<Pin<Box<Sleep>>>,
    has_left: bool,
}

impl Default for Guests {
    fn default() -> Self {
        let (closed, book) = (Arc::default(), Mutex::default());
        Self { closed, within: PROVES_ITSELF_WITHIN, book }
    }
}

impl Guests {
    pub(super) fn new(closed: Arc<Closed>) -> Self {
        Self { closed, ..Self::default() }
    }

    /// Lets a connection in; another may have to leave for it.
    pub(super) fn admit(self: &Arc<Self>) -> Guest {
        let (leave, leaves) = oneshot::channel();
        let mark = Arc::new(Mark {
            opened: Instant::now(),
            is_proven: AtomicBool::new(false),
            heard: AtomicU64::new(0),
        });
        let mut book = self.book.lock();
        while book.open.len() >= MAX_CONNECTIONS {
            book.send_one_away();
            self.closed.crowded.fetch_add(1, Ordering::Relaxed);
        }
        let number = book.next;
        book.next += 1;
        book.open.insert(number, Entry { mark: Arc::clone(&mark), leave });
        let unproven = Some(Box::pin(sleep(self.within)));
        Guest { guests: Arc::clone(self), number, mark, leaves, unproven, has_left: false }
    }
}

impl Book {
    fn send_one_away(&mut self) {
        let order = |entry: &Entry| {
            let is_unproven = !entry.mark.is_proven.load(Ordering::Relaxed);
            (is_unproven, entry.mark.silent())
        };
        let last =
            self.open.iter().max_by_key(|(_, entry)| order(entry)).map(|(&number, _)| number);
        if let Some(entry) = last.and_then(|number| self.open.remove(&number)) {
            tracing::warn!("too many connections on the plugin's sockets: one was closed");
            let _ = entry.leave.send(());
        }
    }
}

impl Guest {
    /// Whether the connection may go on.
    ///
    /// # Errors
    /// It had to leave for another, or sent no request in time.
    pub(super) fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.has_left || Pin::new(&mut self.leaves).poll(cx).is_ready() {
            self.has_left = true;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let is_late = |deadline: &mut Pin<Box<Sleep>>| deadline.as_mut().poll(cx).is_ready();
        if self.unproven.as_mut().is_some_and(is_late) {
            self.has_left = true;
            self.guests.closed.unproven.fetch_add(1, Ordering::Relaxed);
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    /// The connection ends because of what it sent.
    pub(super) fn flooded(&self) {
        self.guests.closed.flood.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes came; whether there was a whole request's head by now.
    pub(super) fn heard(&mut self, has_request: bool) {
        let now = u64::try_from(self.mark.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.mark.heard.store(now, Ordering::Relaxed);
        if has_request && self.unproven.take().is_some() {
            self.mark.is_proven.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.guests.book.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, task::Poll};

    use super::*;

    async fn check(guest: &mut Guest) -> io::Result<()> {
        poll_fn(|cx| Poll::Ready(guest.check(cx))).await
    }

    #[tokio::test]
    async fn those_without_a_request_leave_first_and_then_the_most_silent() {
        let guests = Arc::new(Guests::default());
        let mut all: Vec<Guest> = (0..MAX_CONNECTIONS).map(|_| guests.admit()).collect();
        for (at, guest) in all.iter_mut().enumerate() {
            if at != 7 {
                guest.heard(true);
            }
        }
        std::thread::sleep(Duration::from_millis(20));
        for (at, guest) in all.iter_mut().enumerate() {
            if at != 3 {
                guest.heard(false);
            }
        }
        let mut first = guests.admit();
        first.heard(true);
        assert!(check(&mut all[7]).await.is_err(), "it never sent a request");
        assert!(check(&mut all[3]).await.is_ok());
        let _second = guests.admit();
        assert!(check(&mut all[3]).await.is_err(), "it has been silent for longest");
        for at in [0, 1, 2, 4, 5, 6, 8] {
            assert!(check(&mut all[at]).await.is_ok());
        }
        assert_eq!(guests.closed.crowded.load(Ordering::Relaxed), 2);
        drop((all, first));
        assert_eq!(guests.book.lock().open.len(), 1);
    }

    #[tokio::test]
    async fn a_connection_proves_itself_in_time() {
        let within = Duration::from_millis(400);
        let guests = Arc::new(Guests { within, ..Guests::default() });
        let (mut silent, mut proven) = (guests.admit(), guests.admit());
        proven.heard(true);
        silent.heard(false);
        tokio::time::sleep(within / 4).await;
        assert!(check(&mut silent).await.is_ok());
        tokio::time::sleep(within).await;
        assert!(check(&mut silent).await.is_err() && check(&mut silent).await.is_err());
        assert_eq!(guests.closed.unproven.load(Ordering::Relaxed), 1);
        assert!(check(&mut proven).await.is_ok());
    }
}
