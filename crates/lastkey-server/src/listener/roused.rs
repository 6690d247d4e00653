//! Work beside a connection that is polled only when it was woken itself.
//!
//! A connection's task is woken a few times for each request, and what goes on beside it has nothing
//! to say at nearly all of them. Here that costs naming the task to the bell, which knows it already,
//! and a load.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// A future that is left alone until it was woken.
#[derive(Debug)]
pub(super) struct Roused<F> {
    work: F,
    bell: Arc<Bell>,
    /// The bell as the work knows it.
    waker: Waker,
}

#[derive(Debug)]
struct Bell {
    /// Since when the work was polled last, it was woken.
    rung: AtomicBool,
    /// Whom it wakes; it wakes them once, and has to be told anew.
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}

impl<F: Future + Unpin> Roused<F> {
    pub(super) fn new(work: F) -> Self {
        // It has to be polled once to wait for anything.
        let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
        Self { work, waker: Arc::clone(&bell).into(), bell }
    }

    /// Goes on with other work, under the same bell.
    pub(super) fn set(&mut self, work: F) {
        self.work = work;
        self.bell.rung.store(true, Ordering::SeqCst);
    }
}

impl<F: Future + Unpin> Future for Roused<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        // At every poll, also where nobody has rung: whoever rings says so first and takes the waker
        // after that, and we may have been polled in between, for another reason. Then it was the
        // waker of that poll that went, and nothing else would say that none is left.
        this.bell.task.register(cx.waker());
        // Behind the registration: whoever rang before it is seen here, and whoever rings after it
        // wakes the task.
        if !this.bell.rung.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        // Before the work is polled: whoever rings meanwhile has it polled once more.
        this.bell.rung.store(false, Ordering::SeqCst);
        Pin::new(&mut this.work).poll(&mut Context::from_waker(&this.waker))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::atomic::AtomicUsize, time::Duration};

    use tokio::sync::mpsc;

    use super::*;

    /// Counts how often it is polled; ends when something came.
    fn counted(
        polls: &Arc<AtomicUsize>,
        mut receiver: mpsc::UnboundedReceiver<u32>,
    ) -> impl Future<Output = u32> + Unpin + use<> {
        let polls = Arc::clone(polls);
        poll_fn(move |cx| {
            polls.fetch_add(1, Ordering::SeqCst);
            receiver.poll_recv(cx).map(Option::unwrap_or_default)
        })
    }

    #[tokio::test]
    async fn it_is_polled_when_it_was_woken_and_not_else() {
        let polls = Arc::new(AtomicUsize::new(0));
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut roused = Roused::new(counted(&polls, receiver));
        for _ in 0..10 {
            let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut roused).poll(cx))).await;
            assert_eq!(polled, Poll::Pending);
        }
        assert_eq!(polls.load(Ordering::SeqCst), 1);
        sender.send(7).unwrap();
        assert_eq!((&mut roused).await, 7);
        assert_eq!(polls.load(Ordering::SeqCst), 2);

        // Other work is begun at once, and again left alone.
        let (sender, receiver) = mpsc::unbounded_channel();
        roused.set(counted(&polls, receiver));
        let polled = poll_fn(|cx| Poll::Ready(Pin::new(&mut roused).poll(cx))).await;
        assert_eq!((polled, polls.load(Ordering::SeqCst)), (Poll::Pending, 3));
        // From another task, which is the one to be woken from then on.
        let other = tokio::spawn(roused);
        tokio::task::yield_now().await;
        sender.send(8).unwrap();
        assert_eq!(other.await.unwrap(), 8);
    }

    /// Counts how often it was woken.
    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Between the two steps of a ring the task is polled, because something was to be read.
    #[test]
    fn a_ring_that_a_poll_comes_in_between_takes_nobody_elses_waker() {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let polls = Arc::new(AtomicUsize::new(0));
        let (_sender, receiver) = mpsc::unbounded_channel();
        let mut roused = Roused::new(counted(&polls, receiver));
        let bell = Arc::clone(&roused.bell);
        let mut poll = || {
            let polled = Pin::new(&mut roused).poll(&mut Context::from_waker(&waker));
            assert_eq!(polled, Poll::Pending);
            polls.load(Ordering::SeqCst)
        };
        assert_eq!(poll(), 1);
        // What `wake_by_ref` does, step by step.
        bell.rung.store(true, Ordering::SeqCst);
        assert_eq!(poll(), 2);
        bell.task.wake();
        assert_eq!(woken.0.load(Ordering::SeqCst), 1);
        assert_eq!(poll(), 2, "it was heard before");
        bell.wake_by_ref();
        assert_eq!(woken.0.load(Ordering::SeqCst), 2, "the next ring wakes the task");
        assert_eq!(poll(), 3);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn whoever_wakes_it_at_any_moment_is_heard() {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        let all = poll_fn(move |cx| {
            while let Poll::Ready(number) = receiver.poll_recv(cx) {
                if number == Some(0) {
                    return Poll::Ready(());
                }
            }
            Poll::Pending
        });
        let task = tokio::spawn(Roused::new(all));
        let rings = std::thread::spawn(move || {
            for number in (0..20_000).rev() {
                sender.send(number).unwrap();
            }
        });
        tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap();
        rings.join().unwrap();
    }
}
