//! TLS and a canned answer: nothing is parsed but the end of the request's head. What a client
//! does against it is what the client itself is able to, and costs.

use std::sync::Arc;

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use crate::error::Error;

/// Answers every request on every connection with these bytes, until it is killed.
pub(super) async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    body: &[u8],
) -> Result<(), Error> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let answer: Bytes = [head.as_bytes(), body].concat().into();
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(connection(stream, acceptor.clone(), answer.clone()));
    }
}

/// How a connection ends is its client's business.
async fn connection(stream: TcpStream, acceptor: TlsAcceptor, answer: Bytes) {
    let Ok(mut stream) = acceptor.accept(stream).await else { return };
    let mut request = Vec::with_capacity(4 << 10);
    loop {
        request.clear();
        // Requests of the load have no body.
        while !request.ends_with(b"\r\n\r\n") {
            if !matches!(stream.read_buf(&mut request).await, Ok(1..)) {
                return;
            }
        }
        if stream.write_all(&answer).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

/// The acceptor for a configuration.
pub(super) fn acceptor(config: rustls::ServerConfig) -> TlsAcceptor {
    Arc::new(config).into()
}
