//! What a plugin reaches its server through: passes everything on, slowly, or nothing at all.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use crate::DrillError;

const BUFFER: usize = 16 << 10;

/// How it passes things on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// At once.
    Pass,
    /// Each piece of an answer comes so late.
    Slow(Duration),
    /// Nothing goes through, and nobody is told.
    Hold,
}

/// How it passes things on, and where to: `None` while there is no server.
#[derive(Debug, Clone, Copy)]
struct Way {
    mode: Mode,
    server: Option<SocketAddr>,
}

/// A relay on the loopback; ends when dropped.
pub(super) struct Relay {
    way: watch::Sender<Way>,
    task: JoinHandle<()>,
    port: u16,
}

impl Relay {
    pub(super) async fn to(server: SocketAddr) -> Result<Self, DrillError> {
        let start =
            |source| DrillError::Start { program: "a listener on 127.0.0.1".to_owned(), source };
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(start)?;
        let port = listener.local_addr().map_err(start)?.port();
        let (way, watched) = watch::channel(Way { mode: Mode::Pass, server: Some(server) });
        let task = tokio::spawn(accept(listener, watched));
        Ok(Self { way, task, port })
    }

    pub(super) fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub(super) fn set(&self, mode: Mode) {
        self.way.send_modify(|way| way.mode = mode);
    }

    /// Where the server is from now on. The port of one that has ended may be anybody's.
    pub(super) fn lead_to(&self, server: Option<SocketAddr>) {
        self.way.send_modify(|way| way.server = server);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, way: watch::Receiver<Way>) {
    // they end with this task
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(relay(client, way.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn relay(client: TcpStream, way: watch::Receiver<Way>) {
    // while it is away, so are we: the connection is closed at once
    let Some(server) = way.borrow().server else { return };
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let answers = way.clone();
    // when either ends, so does the other
    tokio::select! {
        _ = copy(from_client, to_server, way, false) => {}
        _ = copy(from_server, to_client, answers, true) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut way: watch::Receiver<Way>,
    answers: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        loop {
            let now = way.borrow_and_update().mode;
            match now {
                Mode::Slow(delay) if answers => {
                    tokio::time::sleep(delay).await;
                    break;
                }
                Mode::Pass | Mode::Slow(_) => break,
                Mode::Hold if way.changed().await.is_err() => return Ok(()),
                Mode::Hold => {}
            }
        }
        to.write_all(&buffer[..length]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_holds_and_lets_go() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay::to(server.local_addr().unwrap()).await.unwrap();
        let mut client = TcpStream::connect(("127.0.0.1", relay.port)).await.unwrap();
        let (mut served, _) = server.accept().await.unwrap();
        client.write_all(b"one").await.unwrap();
        let mut three = [0; 3];
        served.read_exact(&mut three).await.unwrap();
        relay.set(Mode::Hold);
        client.write_all(b"two").await.unwrap();
        let nothing =
            tokio::time::timeout(Duration::from_millis(200), served.read_exact(&mut three));
        assert!(nothing.await.is_err(), "nothing goes through");
        relay.set(Mode::Pass);
        served.read_exact(&mut three).await.unwrap();
        assert_eq!(&three, b"two");
        drop(served);
        assert_eq!(client.read(&mut three).await.unwrap(), 0, "it ends with the server's side");
        // without a server nobody is let in, and a new one is found
        relay.lead_to(None);
        let mut client = TcpStream::connect(("127.0.0.1", relay.port)).await.unwrap();
        assert!(matches!(client.read(&mut three).await, Ok(0) | Err(_)));
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        relay.lead_to(Some(other.local_addr().unwrap()));
        let _client = TcpStream::connect(("127.0.0.1", relay.port)).await.unwrap();
        other.accept().await.unwrap();
    }
}
