//! TCP with TLS.

use std::{
    future::{Future as _, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{Door, doorman::Guest, drain, pace::Paced, pulse::Phase, reap, serve};
use crate::{exchange::Peer, service::Service, tls::ALPN_H2};

/// What a client learns that forgot the `s` in `https`.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
    connection: close\r\ncontent-length: 51\r\n\r\n\
    This port speaks HTTPS alone; use an https:// URL.\n";

/// So many connections may have been accepted without having been looked at, for [`FIRST_LOOK`]
/// without having said anything, or without what they said first having been worked on; more of
/// them wait in the system's queue. A flood is thus never accepted faster than we can tell who
/// means it. None of these waits for a peer: who says a part and then nothing holds up nobody.
const STARTING: usize = 512;
const FIRST_LOOK: Duration = Duration::from_millis(50);

/// Accepts connections until the server stops, and then lets them end.
pub(crate) async fn run(service: Arc<Service>, listener: TcpListener) {
    let mut connections = JoinSet::new();
    let mut stopping = service.stopping.clone();
    let mut door = Door::default();
    let starting = Arc::new(Semaphore::new(STARTING));
    loop {
        tokio::select! {
            () = stopping.wait() => break,
            accepted = accept(&listener, &starting) => match accepted {
                Ok((stream, address, start)) => {
                    reap(&mut connections);
                    service.metrics.accepted();
                    let Some(guest) = service.doorman.admit(address.ip(), &service.metrics) else {
                        continue;
                    };
                    let number = guest.number();
                    let connected = connect(Arc::clone(&service), (stream, address), (guest, start));
                    let task = connections.spawn(connected);
                    service.doorman.served_by(number, task);
                }
                Err(error) => door.failed(&error, &service, || listener.accept()).await,
            },
        }
    }
    drop(listener);
    drain(connections, service.limits.drain).await;
}

async fn accept(
    listener: &TcpListener,
    starting: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let start = Arc::clone(starting).acquire_owned().await.map_err(io::Error::other)?;
    let (stream, address) = listener.accept().await?;
    Ok((stream, address, start))
}

async fn connect(
    service: Arc<Service>,
    (stream, address): (TcpStream, SocketAddr),
    (guest, start): (Guest, OwnedSemaphorePermit),
) {
    // Answers are small and each of them is waited for.
    let _ = stream.set_nodelay(true);
    let (acceptor, mut stopping) = service.sealing.welcome();
    let handshake = handshake(&service, (stream, &acceptor), (&guest, start));
    let handshake = tokio::time::timeout(service.limits.handshake, handshake);
    let stream = tokio::select! {
        stream = handshake => stream.ok().flatten(),
        // Nothing has begun yet.
        () = stopping.wait() => return,
    };
    let Some(stream) = stream else {
        service.metrics.handshake_failed();
        return;
    };
    guest.ticket.known();
    guest.pulse.reach(Phase::Open);
    let (_, session) = stream.get_ref();
    let is_http2 = session.alpn_protocol() == Some(ALPN_H2);
    let shown = service.sealing.shown(session.peer_certificates());
    let peer = Peer::Tls { address, shown };
    serve(service, (TokioIo::new(stream), is_http2, stopping), peer, guest).await;
}

async fn handshake(
    service: &Arc<Service>,
    (mut stream, acceptor): (TcpStream, &TlsAcceptor),
    (guest, start): (&Guest, OwnedSemaphorePermit),
) -> Option<TlsStream<Paced<TcpStream>>> {
    let mut first = [0];
    let mut start = Some(start);
    let come = match tokio::time::timeout(FIRST_LOOK, stream.peek(&mut first)).await {
        Ok(come) => come,
        Err(_) => {
            start = None;
            stream.peek(&mut first).await
        }
    };
    if come.ok()? == 1 && first[0].is_ascii_uppercase() {
        // A method's first letter; TLS begins with 0x16.
        drop(start);
        let _ = stream.write_all(NOT_TLS).await;
        let _ = stream.shutdown().await;
        return None;
    }
    let paced = Paced::new(stream, Arc::clone(&guest.pulse), Arc::clone(service));
    let mut accept = pin!(acceptor.accept(paced));
    // Most of a handshake's work, if its first message is there; from then on it is the peer's turn.
    let begun = poll_fn(|cx| Poll::Ready(accept.as_mut().poll(cx))).await;
    drop(start);
    match begun {
        Poll::Ready(stream) => stream.ok(),
        Poll::Pending => accept.await.ok(),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_plain_answer_is_as_long_as_it_says() {
        let text = std::str::from_utf8(super::NOT_TLS).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
    }
}
