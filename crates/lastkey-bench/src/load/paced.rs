//! Open-loop load: a call falls due at its time, whether or not those before it were answered.
//!
//! A closed loop asks again as soon as it is answered, so that with many callers what it measures is
//! its own queue. Here latencies count from when a call was *due*: what waits behind a slow
//! answer is slow itself, and so is a call that this process was late to make.

use std::{
    thread,
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::{Caller, Plan, Sample};
use crate::{
    cpu::{self, Spent},
    error::Error,
};

/// Lets callers take turns at `rate` calls a second in all, against the server `pid`.
pub(crate) async fn pace<C: Caller>(
    callers: Vec<C>,
    (plan, rate): (Plan, f64),
    pid: u32,
) -> Result<Sample, Error> {
    let start = Instant::now();
    let begin = start + plan.warm_up;
    let end = begin + plan.measure;
    let (mut queues, mut tasks) = (Vec::new(), Vec::new());
    for caller in callers {
        let (queue, due) = unbounded_channel();
        queues.push(queue);
        tasks.push(tokio::spawn(keep_pace(caller, due, begin)));
    }
    let gap = Duration::from_secs_f64(1.0 / rate);
    // a thread of its own: the runtime's timers tick in milliseconds
    let clock = thread::spawn(move || tick(&queues, (start, end), gap));
    tokio::time::sleep_until(begin.into()).await;
    let (started, server, client) = (Instant::now(), Spent::by(pid)?, cpu::own());
    tokio::time::sleep_until(end.into()).await;
    let elapsed = started.elapsed();
    let (server, client) = (Spent::by(pid)? - server, cpu::own().saturating_sub(client));
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    // it has dropped the queues, else the tasks would not have ended
    let _ = clock.join();
    latencies.sort_unstable();
    Ok(Sample { latencies, elapsed, server, client })
}

/// Says when a call is due, to each queue in turn.
fn tick(queues: &[UnboundedSender<Instant>], (start, end): (Instant, Instant), gap: Duration) {
    let mut due = start;
    for queue in queues.iter().cycle() {
        if due >= end {
            return;
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if queue.send(due).is_err() {
            return;
        }
        due += gap;
    }
}

/// The latencies of the calls that were due from `begin` on.
async fn keep_pace<C: Caller>(
    mut caller: C,
    mut queue: UnboundedReceiver<Instant>,
    begin: Instant,
) -> Result<Vec<u32>, Error> {
    let mut latencies = Vec::new();
    while let Some(due) = queue.recv().await {
        caller.call().await?;
        if due >= begin {
            let nanos = due.elapsed().as_nanos();
            latencies.push(u32::try_from(nanos).unwrap_or(u32::MAX));
        }
    }
    Ok(latencies)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers after a while.
    struct Slow(Duration);

    impl Caller for Slow {
        async fn call(&mut self) -> Result<(), Error> {
            tokio::time::sleep(self.0).await;
            Ok(())
        }
    }

    /// Ten calls fall due in the time that one takes: each waits for those before it, and that
    /// counts.
    #[tokio::test]
    async fn a_slow_answer_makes_those_behind_it_late() {
        let gap = Duration::from_millis(10);
        let plan = Plan { warm_up: Duration::ZERO, measure: gap * 10 };
        let rate = 1.0 / gap.as_secs_f64();
        let us = std::process::id();
        let alone = pace(vec![Slow(gap * 10)], (plan, rate), us).await.unwrap();
        assert_eq!(alone.latencies.len(), 10);
        let nanos = |duration: Duration| u32::try_from(duration.as_nanos()).unwrap();
        // the last was due after nine gaps, and is answered after a hundred at the earliest
        assert!(*alone.latencies.last().unwrap() >= nanos(gap * 90));
        let many: Vec<_> = (0..10).map(|_| Slow(gap)).collect();
        assert_eq!(pace(many, (plan, rate), us).await.unwrap().latencies.len(), 10);
    }
}
