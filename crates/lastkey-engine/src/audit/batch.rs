//! Records on their way to the committer, and the batch that it makes of them.

use std::iter::Peekable;

use tokio::sync::oneshot;

use super::{
    AuditError, Head,
    journal::{FRAME_BYTES, MAX_PAYLOAD},
    segment,
};

/// A batch is closed when it is this large, far below what a journal frame can carry.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// What a line adds to its record's body.
pub(super) const LINE_OVERHEAD: usize = 128;
/// The memory of a burst is given back when it is larger than this.
const KEPT_BYTES: usize = 256 << 10;

/// Resolves a record's ticket.
type Done = oneshot::Sender<Result<u64, AuditError>>;

/// Records that wait for the committer: their bodies one after the other.
///
/// Who appends frees the body's own memory again, on the thread that took it. Freed by the committer
/// it would never come back to where the next one is taken from but by way of the allocator's lock.
#[derive(Default)]
pub(super) struct Waiting {
    bodies: Vec<u8>,
    /// How long each body is, and who waits for it.
    entries: Vec<(usize, Done)>,
}

/// One of them.
pub(super) struct Pending<'a> {
    pub(super) body: &'a [u8],
    pub(super) done: Done,
}

impl Waiting {
    pub(super) fn push(&mut self, body: &[u8], done: Done) {
        self.bodies.extend_from_slice(body);
        self.entries.push((body.len(), done));
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Takes the records out, in the order in which they came.
    pub(super) fn records(&mut self) -> Peekable<impl Iterator<Item = Pending<'_>>> {
        let mut rest = self.bodies.as_slice();
        let entries = self.entries.drain(..).map(move |(length, done)| {
            let (body, after) = rest.split_at(length);
            rest = after;
            Pending { body, done }
        });
        entries.peekable()
    }

    /// Forgets the bodies of records that were taken out.
    pub(super) fn clear(&mut self) {
        self.bodies.clear();
        self.bodies.shrink_to(KEPT_BYTES);
    }
}

/// A batch as it goes into the journal: room for the frame's fields, then the lines.
pub(super) struct Batch {
    pub(super) frame: Vec<u8>,
    pub(super) done: Vec<Done>,
    pub(super) head: Head,
}

impl Batch {
    /// Renders records into the empty `frame` until there are no more or the batch is large enough.
    pub(super) fn collect<'a>(
        mut frame: Vec<u8>,
        records: &mut Peekable<impl Iterator<Item = Pending<'a>>>,
        mut head: Head,
    ) -> Self {
        const { assert!(BATCH_BYTES + FRAME_BYTES < MAX_PAYLOAD) };
        frame.resize(FRAME_BYTES, 0);
        let mut done = Vec::new();
        while let Some(pending) = records
            .next_if(|pending| frame.len() + pending.body.len() + LINE_OVERHEAD <= BATCH_BYTES)
        {
            let seq = head.seq + 1;
            let hash = segment::write_line(&mut frame, seq, &head.hash, pending.body);
            head = Head { seq, hash };
            done.push(pending.done);
        }
        Self { frame, done, head }
    }
}

/// What a batch came to, for those who wait for it; given once the committer is free again, so
/// that who comes back at once finds it so.
pub(super) struct Answers {
    pub(super) done: Vec<Done>,
    /// The sequence number of the first.
    pub(super) first: u64,
    pub(super) health: Result<(), AuditError>,
}

impl Answers {
    pub(super) fn give(self) {
        for (seq, done) in (self.first..).zip(self.done) {
            let _ = done.send(self.health.clone().map(|()| seq));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_out_as_they_went_in_and_a_burst_is_forgotten() {
        let mut waiting = Waiting::default();
        let bodies: [&[u8]; 4] = [b"first", b"", &[7; 2 * KEPT_BYTES], b"last"];
        for round in 0..2 {
            assert!(waiting.is_empty());
            let mut tickets = Vec::new();
            for body in bodies {
                let (done, ticket) = oneshot::channel();
                waiting.push(body, done);
                tickets.push(ticket);
            }
            assert_eq!(waiting.len(), bodies.len());
            let mut records = waiting.records();
            for (seq, body) in (round..).zip(bodies) {
                let Pending { body: found, done } = records.next().unwrap();
                assert_eq!(found, body);
                done.send(Ok(seq)).unwrap();
            }
            assert!(records.next().is_none());
            drop(records);
            waiting.clear();
            assert!(waiting.bodies.is_empty() && waiting.bodies.capacity() <= KEPT_BYTES);
            for (seq, mut ticket) in (round..).zip(tickets) {
                assert_eq!(ticket.try_recv().unwrap(), Ok(seq));
            }
        }
    }
}
