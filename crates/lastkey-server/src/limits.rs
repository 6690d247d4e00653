//! How much the front end takes on: everything is bounded in number, bytes and time, and what is
//! over a bound is refused, or makes the one wait least useful give way.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The bounds. The defaults suit a machine with two cores and 512 MiB for this process;
/// `docs/limits.md` explains each.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections from the network.
    pub connections: usize,
    /// Open connections of one address; loopback has no such limit.
    pub connections_per_address: usize,
    /// Connections that have not finished their TLS handshake; the oldest ones give way.
    pub newcomers: usize,
    /// Connections beyond `connections`, on which health is answered and all else told to wait.
    pub lobby: usize,
    /// Open connections of the admin socket, which the network cannot take.
    pub admin_connections: usize,
    /// Requests begun and not answered, of proven callers or not.
    pub under_way: usize,
    /// Of those, requests whose body is still coming, of callers that have not proven who they are.
    pub coming: usize,
    /// Answers to callers that have not proven who they are, made and not taken (HTTP/2), beside
    /// one of each connection.
    pub untaken: usize,
    /// Answers to proven callers, made and not taken (HTTP/2); beyond, who leaves them is let go
    /// sooner.
    pub untaken_proven: usize,
    /// Requests of proven callers that are worked on at one time, shared fairly.
    pub requests: usize,
    /// Requests of proven callers that wait for their turn.
    pub queue: usize,
    /// For its turn, a request waits at most.
    pub patience: Duration,
    /// Requests that wait for something to happen (long polls).
    pub waiting: usize,
    /// Requests that read the whole audit log, at one time.
    pub long: usize,
    /// Bytes of one body.
    pub body: usize,
    /// Bytes of all bodies at one time, of each the first 64 KiB.
    pub bodies: usize,
    /// Bytes of all bodies at one time, of each what is beyond 64 KiB.
    pub large_bodies: usize,
    /// Bytes of all answers of more than 16 KiB that were not sent yet.
    pub answers: usize,
    /// Bytes of one request's head; long encryption contexts travel in it.
    pub head: usize,
    /// Bytes of all heads under way at one time, of each what is beyond 16 KiB.
    pub heads: usize,
    /// Headers of one request.
    pub headers: usize,
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For the first request's head.
    pub first_request: Duration,
    /// For a later request's head, from its first byte on.
    pub read_head: Duration,
    /// Without a request.
    pub idle: Duration,
    /// For the body of a request, once its head is read.
    pub read_body: Duration,
    /// Who sends a body or takes an answer more slowly than `rate` has so long.
    pub stall: Duration,
    /// Bytes a second, below which a body or an answer is given up.
    pub rate: usize,
    /// For an answer, once the request is read; long polls aside.
    pub answer: Duration,
    /// For requests under way when the server stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_address: 2048,
            newcomers: 2048,
            lobby: 64,
            admin_connections: 256,
            under_way: 8192,
            coming: 2048,
            untaken: 1024,
            untaken_proven: 4096,
            requests: 512,
            queue: 4096,
            patience: Duration::from_secs(2),
            waiting: 4096,
            long: 4,
            body: 1 << 20,
            bodies: 32 << 20,
            large_bodies: 32 << 20,
            answers: 64 << 20,
            head: 96 << 10,
            heads: 16 << 20,
            headers: 64,
            handshake: Duration::from_secs(10),
            first_request: Duration::from_secs(10),
            read_head: Duration::from_secs(10),
            idle: Duration::from_secs(75),
            read_body: Duration::from_secs(15),
            stall: Duration::from_secs(5),
            rate: 4 << 10,
            answer: Duration::from_secs(30),
            drain: Duration::from_secs(6),
        }
    }
}

/// Descriptors that are not connections: the store, the log, the plugin's own, the console.
const OTHER_DESCRIPTORS: usize = 512;

impl Limits {
    /// Raises this process's soft limit on descriptors as far as needed and allowed, and takes
    /// fewer connections where it stays too low: what cannot be accepted would wait for ever.
    #[must_use]
    pub(crate) fn within_descriptors(mut self) -> Self {
        let others = OTHER_DESCRIPTORS + self.lobby + self.admin_connections;
        let wanted = others.saturating_add(self.connections) as u64;
        let limit = getrlimit(Resource::Nofile);
        let soft = limit.current.unwrap_or(u64::MAX);
        let allowed = wanted.min(limit.maximum.unwrap_or(u64::MAX));
        let raised = Rlimit { current: Some(allowed), maximum: limit.maximum };
        let soft = if soft < allowed && setrlimit(Resource::Nofile, raised).is_ok() {
            allowed
        } else {
            soft
        };
        if soft < wanted {
            let room = soft.saturating_sub(others as u64).max(soft / 2);
            self.connections = usize::try_from(room).unwrap_or(self.connections);
            tracing::warn!(
                connections = self.connections,
                "the limit on open files is low, so fewer connections are accepted; raise it \
                 (LimitNOFILE, ulimit -n)"
            );
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/limits.md");

    fn bytes(bytes: usize) -> String {
        match bytes {
            bytes if bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
            bytes => format!("{} KiB", bytes >> 10),
        }
    }

    fn seconds(time: Duration) -> String {
        format!("{} s", time.as_secs())
    }

    #[test]
    fn the_page_says_what_the_program_does() {
        let limits = Limits::default();
        let number = |number: usize| number.to_string();
        let rate = format!("{} a second after {}", bytes(limits.rate), seconds(limits.stall));
        let rows = [
            ("connections from the network", number(limits.connections)),
            ("… of one address, loopback aside", number(limits.connections_per_address)),
            ("… in the TLS handshake", number(limits.newcomers)),
            ("… in the lobby, beyond all these", number(limits.lobby)),
            ("connections of the admin socket", number(limits.admin_connections)),
            ("requests begun and not answered", number(limits.under_way)),
            ("… whose body is still coming, of strangers", number(limits.coming)),
            ("answers to strangers that they do not take (HTTP/2)", number(limits.untaken)),
            ("… to proven callers", number(limits.untaken_proven)),
            ("requests of proven callers worked on", number(limits.requests)),
            ("… waiting for their turn", number(limits.queue)),
            ("… for", seconds(limits.patience)),
            ("long polls (`plugin/status`, `audit/tail`)", number(limits.waiting)),
            ("requests that read the whole audit log", number(limits.long)),
            ("a body", bytes(limits.body)),
            ("all bodies, the first 64 KiB of each", bytes(limits.bodies)),
            ("all bodies, the rest", bytes(limits.large_bodies)),
            ("all answers of more than 16 KiB", bytes(limits.answers)),
            ("a head", format!("{}, {} headers", bytes(limits.head), limits.headers)),
            ("all heads, beyond 16 KiB of each", bytes(limits.heads)),
            ("TLS handshake", seconds(limits.handshake)),
            ("a connection's first head", seconds(limits.first_request)),
            ("a later head, once begun", seconds(limits.read_head)),
            ("a body", format!("{}, and {rate}", seconds(limits.read_body))),
            ("an answer that its caller does not take", rate),
            ("an answer, once the request is there", seconds(limits.answer)),
            ("without a request", seconds(limits.idle)),
            ("requests under way at a stop", seconds(limits.drain)),
        ];
        for (what, bound) in rows {
            let row = format!("| {what} | {bound}");
            assert!(PAGE.contains(&row), "docs/limits.md has no row {row}");
        }
    }

    #[test]
    fn the_page_has_every_reason() {
        for reason in crate::metrics::SHED_REASONS {
            assert!(PAGE.contains(&format!("`{reason}`")), "docs/limits.md has no {reason}");
        }
    }

    #[test]
    fn connections_fit_the_descriptors() {
        let limits = Limits { connections: 10, ..Limits::default() }.within_descriptors();
        assert_eq!(limits.connections, 10);
        let limits = Limits { connections: 1 << 40, ..Limits::default() }.within_descriptors();
        assert!(limits.connections < 1 << 40);
    }
}
