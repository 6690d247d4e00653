//! Lets Rust's HTTP/2 take what a kube-apiserver sends as `:authority`.
//!
//! grpc-go puts the path of the socket there, plain or percent-encoded (`%2Frun%2Fkms.sock`): with
//! KMS v2 up to Kubernetes 1.31, with v1 in every release. Neither is an authority as RFC 3986
//! §3.2 has it, and the `h2` crate answers `PROTOCOL_ERROR`, so no plugin on stock tonic can serve
//! those apiservers on a path socket.
//!
//! [`AuthorityFilter`] sits between the socket and `h2`, reads along, and overwrites an illegal
//! value with a legal one *in place*:
//!
//! - of the same decoded length, so both ends' HPACK dynamic tables hold entries of the same size
//!   and evict alike;
//! - of the same encoded length, Huffman-coded or not, so no frame changes its size;
//! - and everything else passes unchanged. Nothing here uses the authority.
//!
//! What it trusts: nothing. Bytes come from whoever may open the socket; memory is bounded by
//! [`MAX_HELD`], and whatever cannot be followed passes through untouched, for `h2` to judge. A
//! connection ends that sends a larger head, or more than [`MAX_CONTROL`] frames without a request:
//! `h2` answers each of those frames, however many there are. An
//! empty authority stays as it is, since no legal value has its length.

mod frames;
mod hpack;
mod huffman;
#[cfg(test)]
mod tests;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use frames::{FrameFilter, MAX_CONTROL, MAX_HELD};

/// How much is read from the socket at once.
const READ_SIZE: usize = 8 << 10;

/// A connection whose incoming side passes through a [`FrameFilter`].
#[derive(Debug)]
pub struct AuthorityFilter<S> {
    inner: S,
    filter: FrameFilter,
    scratch: Box<[u8]>,
    /// Filtered bytes, of which `taken` were already read.
    ready: Vec<u8>,
    taken: usize,
    ended: bool,
}

impl<S> AuthorityFilter<S> {
    /// Filters what is read from `inner`, from the client's connection preface on.
    pub fn new(inner: S) -> Self {
        Self {
            inner,
            filter: FrameFilter::new(),
            scratch: vec![0; READ_SIZE].into(),
            ready: Vec::new(),
            taken: 0,
            ended: false,
        }
    }

    /// The connection underneath.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Whether the head of a request has come, whole.
    pub fn has_request(&self) -> bool {
        self.filter.has_request()
    }

    fn take(&mut self, buf: &mut ReadBuf<'_>) {
        let rest = &self.ready[self.taken..];
        let count = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..count]);
        self.taken += count;
        if self.taken == self.ready.len() {
            self.ready.clear();
            self.taken = 0;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for AuthorityFilter<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // a held header block yields nothing until its end, and nothing would mean the end
        while this.ready.is_empty() && !this.ended {
            let mut scratch = ReadBuf::new(&mut this.scratch);
            ready!(Pin::new(&mut this.inner).poll_read(cx, &mut scratch))?;
            if scratch.filled().is_empty() {
                this.ended = true;
                this.filter.finish(&mut this.ready);
            } else {
                this.filter.push(scratch.filled(), &mut this.ready);
                if this.filter.is_flood() {
                    tracing::warn!("a connection on the plugin's socket sent floods: closed");
                    return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                }
            }
        }
        this.take(buf);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for AuthorityFilter<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }

    /// `h2` writes each answer of more than 256 bytes by itself where it may hand over several
    /// pieces at once, and up to 1 KiB together with others where it may not: with many calls in
    /// flight one system call, and one time that the apiserver is woken, for many answers.
    fn is_write_vectored(&self) -> bool {
        false
    }
}
