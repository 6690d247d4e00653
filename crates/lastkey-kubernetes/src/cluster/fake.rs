//! An apiserver over real TLS that answers what a test says.

use std::sync::Arc;

use rustls::{ServerConfig, crypto::aws_lc_rs::default_provider};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::{Access, Credential, Migrate};

/// Status and body for method, path and body.
pub(crate) trait Answer:
    Fn(&str, &str, &Value) -> (u16, String) + Clone + Send + 'static
{
}

impl<T: Fn(&str, &str, &Value) -> (u16, String) + Clone + Send + 'static> Answer for T {}

/// Starts one, and says how it is reached.
pub(crate) async fn apiserver(answer: impl Answer) -> Access {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let tls = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    let tls = TlsAcceptor::from(Arc::new(tls));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, answer) = (tls.clone(), answer.clone());
            tokio::spawn(async move { serve(tls.accept(stream).await.ok()?, answer).await });
        }
    });
    Access {
        servers: vec![url.parse().unwrap()],
        ca_pem: certificate.pem(),
        tls_server_name: None,
        credential: Credential::Token {
            token: Zeroizing::new("t".to_owned()),
            account: None,
            until: None,
        },
        etcd: None,
        encryption_config: None,
        resources: Vec::new(),
        migrate: Migrate::Auto,
    }
}

/// Answers request after request of a connection.
pub(crate) async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    answer: impl Answer,
) -> Option<()> {
    let mut read = Vec::new();
    loop {
        while !read.ends_with(b"\r\n\r\n") {
            read.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(std::mem::take(&mut read)).ok()?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse().ok())?
        });
        let mut body = vec![0; length.unwrap_or(0)];
        stream.read_exact(&mut body).await.ok()?;
        let mut line = head.split(' ');
        let (method, path) = (line.next()?, line.next()?);
        let (status, text) =
            answer(method, path, &serde_json::from_slice(&body).unwrap_or_default());
        let length = text.len();
        let text = format!("HTTP/1.1 {status} said\r\ncontent-length: {length}\r\n\r\n{text}");
        stream.write_all(text.as_bytes()).await.ok()?;
        stream.flush().await.ok()?;
    }
}
