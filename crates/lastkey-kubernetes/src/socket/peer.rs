//! Accepted connections.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

use super::{
    Door, Listener, SocketError,
    door::Threshold,
    guests::{Closed, Guest, Guests},
    refusals::Refusals,
};
use crate::authority::AuthorityFilter;

/// How long to wait when the process has no descriptors left.
const PAUSE: Duration = Duration::from_millis(100);
/// How often a socket's file is looked for.
const LOOK: Duration = Duration::from_secs(10);

/// What belongs to one connection; each request on it carries a clone.
#[derive(Debug, Clone)]
pub struct PeerInfo<T>(pub T);

/// A connection of an apiserver, its authority made legal.
#[derive(Debug)]
pub struct Connection<T> {
    stream: AuthorityFilter<UnixStream>,
    info: PeerInfo<T>,
    guest: Guest,
}

/// The connections of all listeners; what dropping it ends is accepting, not the connections.
///
/// # Errors
/// When the process has no descriptors left.
pub fn accept_all<T>(
    listeners: Vec<Listener>,
) -> Result<impl Stream<Item = io::Result<Connection<T>>>, SocketError>
where
    T: Default + Send + 'static,
{
    let door = Door::default();
    door.open();
    accept_through(&door, listeners, Arc::default())
}

/// As [`accept_all`], while the door is open; counts what it closes. The stream ends after the last
/// connection that was accepted before the door closed.
///
/// # Errors
/// When the process has no descriptors left.
pub fn accept_through<T>(
    door: &Door,
    listeners: Vec<Listener>,
    closed: Arc<Closed>,
) -> Result<impl Stream<Item = io::Result<Connection<T>>> + use<T>, SocketError>
where
    T: Default + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    let (guests, refusals) = (Arc::new(Guests::new(closed)), Arc::default());
    for listener in listeners {
        let accept = Accept::new(listener, (door.clone(), Arc::clone(&refusals)))?;
        tasks.spawn(accept.run(sender.clone(), Arc::clone(&guests)));
    }
    // the tasks live as long as the stream
    Ok(WithTasks { stream: ReceiverStream::new(receiver), _tasks: tasks })
}

struct WithTasks<T> {
    stream: ReceiverStream<io::Result<Connection<T>>>,
    _tasks: JoinSet<()>,
}

impl<T> Stream for WithTasks<T> {
    type Item = io::Result<Connection<T>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.get_mut().stream).poll_next(cx)
    }
}

struct Accept {
    listener: UnixListener,
    /// Owns the socket's file, which goes with it.
    socket: Listener,
    door: Door,
    refusals: Arc<Refusals>,
}

impl Accept {
    fn new(socket: Listener, (door, refusals): (Door, Arc<Refusals>)) -> Result<Self, SocketError> {
        let listener = socket
            .listener
            .try_clone()
            .and_then(UnixListener::from_std)
            .map_err(SocketError::io("listen on", &socket.address))?;
        Ok(Self { listener, socket, door, refusals })
    }

    async fn run<T: Default>(
        self,
        sender: mpsc::Sender<io::Result<Connection<T>>>,
        guests: Arc<Guests>,
    ) {
        let mut threshold = self.door.threshold();
        if !threshold.opened().await {
            return;
        }
        let looks = self.look(&guests.closed);
        let accepts = async {
            while let Some(stream) = self.next(&mut threshold).await {
                if self.socket.checks_peer && !self.is_trusted(&stream) {
                    guests.closed.refused.fetch_add(1, Ordering::Relaxed);
                    continue;
                }
                let (stream, info) = (AuthorityFilter::new(stream), PeerInfo(T::default()));
                let connection = Connection { stream, info, guest: guests.admit() };
                if sender.send(Ok(connection)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = accepts => {}
            () = looks => {}
        }
    }

    /// Looks after the socket's file for ever: once it is gone, nobody can dial any more, and nothing
    /// else shows that.
    async fn look(&self, closed: &Closed) {
        let Some(file) = &self.socket.seen else { return std::future::pending().await };
        let (mut was_there, socket) = (true, &self.socket.address);
        loop {
            tokio::time::sleep(LOOK).await;
            match file.is_there() {
                Ok(is_there) if is_there == was_there => continue,
                Ok(true) => {
                    closed.gone.fetch_sub(1, Ordering::Relaxed);
                    tracing::info!(socket, "the socket's file is there again");
                }
                Ok(false) => {
                    closed.gone.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(
                        socket,
                        "the socket's file was removed or replaced, so nobody can dial this process \
                         any more: stop it, and start it anew; where systemd holds the socket, \
                         systemctl restart its .socket unit as well"
                    );
                }
                Err(_) => continue,
            }
            was_there = !was_there;
        }
    }

    /// Whether it is our own user or root.
    fn is_trusted(&self, stream: &UnixStream) -> bool {
        let us = rustix::process::geteuid().as_raw();
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == us || peer.uid() == 0 => true,
            Ok(peer) => {
                let (socket, uid) = (&self.socket.address, peer.uid());
                if let Some(unsaid) = self.refusals.add(uid, Instant::now()) {
                    tracing::warn!(socket, uid, unsaid, "refused a connection of another user");
                }
                false
            }
            Err(error) => {
                tracing::warn!(%error, "refused a connection without a peer credential");
                false
            }
        }
    }

    /// The next connection; none once the door is closed.
    async fn next(&self, threshold: &mut Threshold) -> Option<UnixStream> {
        loop {
            let accepted = tokio::select! {
                biased;
                () = threshold.closed() => return None,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => return Some(stream),
                Err(error) => {
                    tracing::warn!(socket = self.socket.address, %error, "cannot accept");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl<T: Clone + Send + Sync + 'static> Connected for Connection<T> {
    type ConnectInfo = PeerInfo<T>;

    fn connect_info(&self) -> PeerInfo<T> {
        self.info.clone()
    }
}

impl<T: Unpin> AsyncRead for Connection<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.guest.check(cx)?;
        let read = ready!(Pin::new(&mut this.stream).poll_read(cx, buf));
        if read.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidData) {
            this.guest.flooded();
        }
        read?;
        this.guest.heard(this.stream.has_request());
        Poll::Ready(Ok(()))
    }
}

impl<T: Unpin> AsyncWrite for Connection<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.guest.check(cx)?;
        Pin::new(&mut this.stream).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.guest.check(cx)?;
        Pin::new(&mut this.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use futures_util::StreamExt;

    use super::*;
    use crate::socket::SocketAddress;

    /// A tidy-up of `/run` left a plugin that looked well and that nobody could dial.
    #[tokio::test(start_paused = true)]
    async fn a_socket_file_that_was_removed_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kms.sock");
        let listener = Listener::bind(&SocketAddress::Path(path.clone())).unwrap();
        let (door, closed) = (Door::default(), Arc::<Closed>::default());
        door.open();
        let mut incoming =
            Box::pin(accept_through::<()>(&door, vec![listener], Arc::clone(&closed)).unwrap());
        let gone = async || {
            tokio::time::sleep(2 * LOOK).await;
            closed.gone.load(Ordering::Relaxed)
        };
        assert_eq!(gone().await, 0);
        let aside = directory.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        assert_eq!((gone().await, gone().await), (1, 1));
        // another one in its place is not it
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert_eq!(gone().await, 1);
        fs::rename(&aside, &path).unwrap();
        assert_eq!(gone().await, 0);
        // it was accepted from all the while
        let _client = UnixStream::connect(&path).await.unwrap();
        assert!(incoming.next().await.unwrap().is_ok());
    }
}
