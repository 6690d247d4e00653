//! TCP with TLS.

use std::{net::SocketAddr, sync::Arc};

use hyper_util::rt::TokioIo;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use super::{drain, pause_after, reap, serve};
use crate::{
    exchange::Peer,
    limits::ConnectionRoom,
    service::Service,
    tls::{ALPN_H2, plugin_of},
};

/// What a client learns that forgot the `s` in `https`.
const NOT_TLS: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\n\
    connection: close\r\ncontent-length: 51\r\n\r\n\
    This port speaks HTTPS alone; use an https:// URL.\n";

/// Accepts connections until the server stops, and then lets them end.
pub(crate) async fn run(service: Arc<Service>, listener: TcpListener, acceptor: TlsAcceptor) {
    let mut connections = JoinSet::new();
    let mut stopping = service.stopping.clone();
    loop {
        tokio::select! {
            () = stopping.wait() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    reap(&mut connections);
                    service.metrics.accepted();
                    let Some(room) = service.admission.connection(Some(address.ip())) else {
                        service.metrics.shed("connections");
                        continue;
                    };
                    let (service, acceptor) = (Arc::clone(&service), acceptor.clone());
                    connections.spawn(connect(service, acceptor, (stream, address), room));
                }
                Err(error) => pause_after(&error).await,
            },
        }
    }
    drop(listener);
    drain(connections, service.limits.drain).await;
}

async fn connect(
    service: Arc<Service>,
    acceptor: TlsAcceptor,
    (stream, address): (TcpStream, SocketAddr),
    _room: ConnectionRoom,
) {
    // Answers are small and each of them is waited for.
    let _ = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(service.limits.handshake, handshake(stream, &acceptor));
    let Ok(Some(stream)) = handshake.await else {
        service.metrics.handshake_failed();
        return;
    };
    let (_, session) = stream.get_ref();
    let is_http2 = session.alpn_protocol() == Some(ALPN_H2);
    let plugin = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|certificate| plugin_of(certificate, service.engine.clock().now()));
    let peer = Peer::Tls { address, plugin };
    serve(service, TokioIo::new(stream), peer, is_http2).await;
}

async fn handshake(
    mut stream: TcpStream,
    acceptor: &TlsAcceptor,
) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await.ok()? == 1 && first[0].is_ascii_uppercase() {
        // A method's first letter; TLS begins with 0x16.
        let _ = stream.write_all(NOT_TLS).await;
        let _ = stream.shutdown().await;
        return None;
    }
    acceptor.accept(stream).await.ok()
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
