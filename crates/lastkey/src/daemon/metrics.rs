//! The plugin's own `/metrics` and `/healthz`, on a loopback address.

use std::{
    convert::Infallible,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
};

use http::{Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use lastkey_kubernetes::plugin::Metrics;
use tokio::net::TcpListener;

use super::keeper::IdentityMetrics;
use crate::output::{Exit, Failure};

/// Connections at once; a scraper needs one.
const CONNECTIONS: usize = 16;
const TEXT: &str = "text/plain; version=0.0.4";

/// Opens the address, which must be of this machine only.
pub(super) fn bind(address: SocketAddr) -> Result<StdListener, Failure> {
    if !address.ip().is_loopback() {
        return Err(Failure::new(
            Exit::Usage,
            "--metrics-listen takes a loopback address, such as 127.0.0.1:9343: it asks for no \
             credentials",
        ));
    }
    StdListener::bind(address)
        .map_err(|error| Failure::failed(format_args!("--metrics-listen {address}: {error}")))
}

/// Answers until `stop` resolves.
pub(super) async fn serve(
    listener: StdListener,
    (metrics, identity): (Arc<Metrics>, Option<Arc<IdentityMetrics>>),
    stop: impl Future<Output = ()>,
) {
    let listener = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    let listener = match listener {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "no metrics are served"),
    };
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    let accept = async {
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else { continue };
            let (metrics, identity) = (Arc::clone(&metrics), identity.clone());
            tokio::spawn(async move {
                let answer = service_fn(|request| {
                    let answered = answer(&request, &metrics, identity.as_deref());
                    async { Ok::<_, Infallible>(answered) }
                });
                let mut connection = http1::Builder::new();
                connection.timer(TokioTimer::new()).keep_alive(false);
                let _ = connection.serve_connection(TokioIo::new(stream), answer).await;
                drop(place);
            });
        }
    };
    tokio::select! {
        () = accept => {}
        () = stop => {}
    }
}

fn answer(
    request: &Request<Incoming>,
    metrics: &Metrics,
    identity: Option<&IdentityMetrics>,
) -> Response<String> {
    let (status, text) = match request.uri().path() {
        "/metrics" => {
            let identity = identity.map(ToString::to_string).unwrap_or_default();
            (StatusCode::OK, format!("{metrics}{identity}"))
        }
        "/healthz" if metrics.sockets_gone() > 0 => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the socket's file is gone, so nobody can dial the plugin: start it anew\n".to_owned(),
        ),
        "/healthz" if metrics.is_usable() => (StatusCode::OK, "ok\n".to_owned()),
        "/healthz" => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the server is away or refuses the key; the log says which\n".to_owned(),
        ),
        _ => (StatusCode::NOT_FOUND, "there are /metrics and /healthz\n".to_owned()),
    };
    let mut response = Response::new(text);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(TEXT));
    response
}
