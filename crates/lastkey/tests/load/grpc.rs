//! Just enough HTTP/2 for the plugin's socket: an honest Status call, and frames as they come.

use std::{io, path::Path, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_HEADERS: u8 = 4;

/// The head of a Status call, in HPACK without a dynamic table.
pub(crate) fn status_head() -> Vec<u8> {
    // :method POST, :scheme http, :path, content-type, te
    let mut block = vec![0x83, 0x86, 0x04];
    literal(&mut block, "/v2.KeyManagementService/Status");
    for (name, value) in
        [(":authority", "localhost"), ("content-type", "application/grpc"), ("te", "trailers")]
    {
        block.push(0);
        literal(&mut block, name);
        literal(&mut block, value);
    }
    block
}

fn literal(block: &mut Vec<u8>, text: &str) {
    block.push(u8::try_from(text.len()).unwrap());
    block.extend_from_slice(text.as_bytes());
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A connection to the plugin's socket that speaks frames.
pub(crate) struct Frames(pub(crate) UnixStream);

impl Frames {
    pub(crate) async fn open(socket: &Path) -> Self {
        let mut stream = UnixStream::connect(socket).await.unwrap();
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        stream.write_all(&hello).await.unwrap();
        Self(stream)
    }

    /// Sends `what` over and over, reading nothing or everything, until the connection is closed.
    ///
    /// # Errors
    /// It is still open after `patience`; or it takes nothing more, which is how many bytes.
    pub(crate) async fn flood(
        self,
        mut what: impl FnMut(u32) -> Vec<u8>,
        (reads, patience): (bool, Duration),
    ) -> Result<(), u64> {
        let (mut from, mut to) = self.0.into_split();
        let drain = async {
            let mut buffer = vec![0; 64 << 10];
            while reads && from.read(&mut buffer).await? > 0 {}
            if reads { Ok(()) } else { std::future::pending::<io::Result<()>>().await }
        };
        let mut sent = 0;
        let send = async {
            let mut round = 0_u32;
            loop {
                let bytes = what(round);
                round += 1;
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
                sent += bytes.len() as u64;
                // So that one flood leaves the machine to the others every now and then.
                tokio::task::yield_now().await;
            }
        };
        let closed = async {
            tokio::select! { () = send => {}, _ = drain => {} }
        };
        tokio::time::timeout(patience, closed).await.map_err(|_| sent)
    }
}

/// An honest client: one Status call; how the plugin answers, and what it says.
pub(crate) async fn status(socket: &Path) -> io::Result<Vec<u8>> {
    call(socket, "Status", &[]).await
}

/// One call of KMS v2 with this message; what the plugin answers, in its frame.
pub(crate) async fn call(socket: &Path, method: &str, message: &[u8]) -> io::Result<Vec<u8>> {
    let stream = UnixStream::connect(socket).await?;
    let other = io::Error::other::<h2::Error>;
    let (sender, connection) = h2::client::handshake(stream).await.map_err(other)?;
    let driver = tokio::spawn(connection);
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let message = [&[0], &length[..], message].concat();
    let request = http::Request::post(format!("http://localhost/v2.KeyManagementService/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let mut sender = sender.ready().await.map_err(other)?;
    let (response, mut body) = sender.send_request(request, false).map_err(other)?;
    body.send_data(message.into(), true).map_err(other)?;
    let response = response.await.map_err(other)?;
    let heads = response.headers().clone();
    let mut response = response.into_body();
    let mut message = Vec::new();
    while let Some(data) = response.data().await {
        message.extend_from_slice(&data.map_err(other)?);
    }
    let trailers = response.trailers().await.map_err(other)?.unwrap_or(heads);
    driver.abort();
    match trailers.get("grpc-status") {
        Some(code) if code == "0" => Ok(message),
        code => {
            let why = trailers.get("grpc-message");
            Err(io::Error::other(format!("the call failed: {code:?} {why:?}")))
        }
    }
}
