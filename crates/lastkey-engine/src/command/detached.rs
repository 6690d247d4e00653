//! Work that is finished even if nobody waits for it any more.
//!
//! A task of its own from the start would do the same. But tasks are aligned to cache lines, and an
//! allocator that has to cut such a place out of its heap leaves crumbs on both sides, for each
//! change that is made; and two threads would wake each other where one can go on.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::runtime::Handle;

/// Runs where it is awaited. Where that ends before the work does, a task goes on with it.
///
/// Resolves to `None` if the work panicked.
pub(super) struct Detached<T: Send + 'static> {
    /// Gone once it is finished.
    work: Option<BoxFuture<'static, Option<T>>>,
}

impl<T: Send + 'static> Detached<T> {
    pub(super) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        let work = AssertUnwindSafe(work).catch_unwind().map(Result::ok);
        Self { work: Some(work.boxed()) }
    }
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        let Some(work) = &mut self.work else { return Poll::Ready(None) };
        let done = ready!(work.as_mut().poll(context));
        self.work = None;
        Poll::Ready(done)
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        // Where the runtime has ended, so has every task.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(work);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::sync::Semaphore;

    use super::*;

    /// Work in three steps, each of which waits for leave, and how many were done.
    fn steps() -> (Detached<&'static str>, Arc<Semaphore>, Arc<AtomicUsize>) {
        let (leave, done) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let work = {
            let (leave, done) = (Arc::clone(&leave), Arc::clone(&done));
            async move {
                for _ in 0..3 {
                    leave.acquire().await.unwrap().forget();
                    done.fetch_add(1, Ordering::SeqCst);
                }
                "finished"
            }
        };
        (Detached::new(work), leave, done)
    }

    #[tokio::test]
    async fn it_runs_where_it_is_awaited() {
        let (work, leave, done) = steps();
        leave.add_permits(3);
        assert_eq!(work.await, Some("finished"));
        assert_eq!(done.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn it_is_finished_although_nobody_waits_any_more() {
        for polled in [false, true] {
            let (mut work, leave, done) = steps();
            leave.add_permits(1);
            if polled {
                assert!((&mut work).now_or_never().is_none());
                assert_eq!(done.load(Ordering::SeqCst), 1);
            }
            drop(work);
            leave.add_permits(2);
            while done.load(Ordering::SeqCst) < 3 {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test]
    async fn a_panic_is_nothing_but_no_answer() {
        let work = Detached::<()>::new(async { panic!("on purpose") });
        assert_eq!(work.await, None);
    }

    #[test]
    fn outside_of_a_runtime_it_just_ends() {
        drop(steps().0);
    }
}
