//! A TLS proxy in front of an apiserver, with somebody on it who may interfere.

use crate::message::{Answer, Request};
use crate::session::Session;
use crate::{Client, Error};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::io::BufReader;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// What becomes of a request.
pub enum Act {
    /// The apiserver answers it.
    Pass,
    /// This is the answer; the apiserver never sees the request.
    Answer(Answer),
    /// The apiserver carries it out, and the connection breaks before the answer.
    Lose,
}

type Hook = dyn Fn(&Request) -> Act + Send + Sync;

/// Passes requests on for as long as it lives. Clients show a token: their certificates end here.
pub struct Proxy {
    address: SocketAddr,
    over: Arc<AtomicBool>,
}

impl Proxy {
    /// Serves with an apiserver's own certificate what `upstream` answers, as `hook` wants it.
    pub(crate) fn start(
        upstream: Client,
        (certificate, key): (&str, &str),
        hook: impl Fn(&Request) -> Act + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let broken =
            |cause: String| Error::Request { method: "TLS".into(), url: "the proxy".into(), cause };
        let chain: Result<Vec<_>, _> =
            CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
        let chain = chain.map_err(|e| broken(e.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes());
        let key = key.map_err(|e| broken(e.to_string()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| broken(e.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| broken(e.to_string()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| broken(e.to_string()))?;
        let address = listener.local_addr().map_err(|e| broken(e.to_string()))?;
        let over = Arc::new(AtomicBool::new(false));
        let (config, hook, ending) = (Arc::new(config), Arc::new(hook), Arc::clone(&over));
        thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if ending.load(Ordering::SeqCst) {
                    return;
                }
                let (config, hook, upstream) =
                    (Arc::clone(&config), Arc::clone(&hook), upstream.clone());
                // A connection that breaks is its client's to notice.
                thread::spawn(move || serve(socket, config, (Session::new(upstream), &*hook)).ok());
            }
        });
        Ok(Self { address, over })
    }

    /// `https://host:port`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // wakes the one who waits for connections
        TcpStream::connect(self.address).ok();
    }
}

fn serve(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    (mut upstream, hook): (Session, &Hook),
) -> Result<(), std::io::Error> {
    socket.set_nodelay(true)?;
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, socket));
    while let Some(request) = Request::read(&mut stream)? {
        let act = hook(&request);
        let answer = match act {
            Act::Answer(answer) => answer,
            Act::Pass => upstream.forward(request).map_err(std::io::Error::other)?,
            Act::Lose => {
                upstream.forward(request).map_err(std::io::Error::other)?;
                return Ok(());
            }
        };
        answer.write(stream.get_mut())?;
    }
    Ok(())
}
