//! Between a socket and what speaks over it: notes what passes, bounds what is read of a head,
//! and sees a client leave while it waits for something to happen.

use std::{
    future::Future as _,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf, Ready},
    net::{TcpStream, UnixStream},
};

use super::pulse::{FREE_HEAD, Pulse};
use crate::service::Service;

/// A socket that tells whether its peer has gone, without reading from it.
pub(crate) trait Socket: AsyncRead + AsyncWrite + Unpin {
    /// Becomes ready when something can be read, or the peer has gone.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// What is known of the reading side.
    fn readiness(&self) -> impl Future<Output = io::Result<Ready>>;
}

macro_rules! socket {
    ($kind:ty) => {
        impl Socket for $kind {
            fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_read_ready(cx)
            }

            fn readiness(&self) -> impl Future<Output = io::Result<Ready>> {
                self.ready(Interest::READABLE)
            }
        }
    };
}

socket!(TcpStream);
socket!(UnixStream);

/// A socket, and the pulse of its connection.
pub(crate) struct Paced<S> {
    socket: S,
    pulse: Arc<Pulse>,
    service: Arc<Service>,
    /// Whether a head was given room beyond the free part, and nothing has come since.
    is_large: bool,
}

impl<S> Paced<S> {
    pub(crate) fn new(socket: S, pulse: Arc<Pulse>, service: Arc<Service>) -> Self {
        Self { socket, pulse, service, is_large: false }
    }

    /// Notes bytes that came; refuses them if heads take too much in all.
    fn came(&mut self, bytes: usize) -> io::Result<()> {
        let unanswered = self.pulse.read(bytes);
        if unanswered <= FREE_HEAD || self.pulse.in_flight() > 0 {
            if std::mem::take(&mut self.is_large) {
                self.pulse.release_head();
            }
            return Ok(());
        }
        self.is_large = true;
        if self.pulse.hold_head(unanswered, &self.service.admission.heads) {
            return Ok(());
        }
        self.service.metrics.shed("heads");
        Err(io::Error::other("no room for a head of this size"))
    }
}

impl<S: Socket> Paced<S> {
    /// Whether a client that waits for something to happen has gone meanwhile. Nobody reads on
    /// while a request is worked on, so nobody else would notice.
    fn has_gone(&self, cx: &mut Context<'_>) -> bool {
        if !self.pulse.has_long_poll() || self.socket.poll_readable(cx).is_pending() {
            return false;
        }
        let readiness = pin!(self.socket.readiness());
        match readiness.poll(cx) {
            Poll::Ready(Ok(ready)) => ready.is_read_closed(),
            Poll::Ready(Err(_)) => true,
            Poll::Pending => false,
        }
    }
}

impl<S: Socket> AsyncRead for Paced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buf))?;
        Poll::Ready(this.came(buf.filled().len() - before))
    }
}

impl<S: Socket> Paced<S> {
    fn went(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(bytes)) => self.pulse.wrote(*bytes),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.pulse.block(),
        }
        written
    }
}

impl<S: Socket> AsyncWrite for Paced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write(cx, bytes);
        this.went(written)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.has_gone(cx) {
            this.service.metrics.shed("gone");
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.socket).poll_write_vectored(cx, slices);
        this.went(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}
