//! The HTTP and TLS front ends of Lastkey.
//!
//! One port answers in the client's own language, told apart by the request: the Alibaba Cloud
//! KMS API at `/` ([`alibaba`]), the native API under `/v1`, and `/healthz`, `/readyz` and
//! `/metrics` without credentials. The same is answered on an admin socket, whose callers the
//! kernel vouches for.
//!
//! A front end parses, authenticates, asks the engine one command, and writes the answer. It
//! decides nothing. What it trusts: rustls for the chain of a client certificate, the kernel for
//! the peer of a unix socket, the engine for everything else. What it promises: no input panics
//! it, no caller is anonymous, every buffer, wait and table is bounded, and what is over a bound
//! is refused within two seconds.
//!
//! ```no_run
//! # async fn run(engine: lastkey_engine::Engine) -> Result<(), lastkey_server::BindError> {
//! use lastkey_server::{Server, ServerConfig};
//!
//! let bound = Server::bind(ServerConfig::on("127.0.0.1:7343"), engine).await?;
//! println!("{}", bound.url());
//! bound.run(async { tokio::signal::ctrl_c().await.unwrap_or(()) }).await;
//! # Ok(())
//! # }
//! ```

pub mod alibaba;
mod body;
mod deadline;
mod exchange;
mod fair;
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod limits;
mod listener;
mod metrics;
mod native;
pub mod params;
mod pki;
mod reach;
mod room;
mod rotation_gauges;
mod sealing;
mod server;
mod service;
mod stopping;
mod taken;
mod tls;

pub use limits::Limits;
pub use listener::admin::AdminSocketError;
pub use pki::Pki;
pub use reach::Reach;
pub use server::{BindError, Bound, BoxFuture, OnOpen, Opening, Server, ServerConfig, SinkStatus};
pub use tls::{Authority, AuthorityError, CertificateError, CertificateSource, Csr, Issued, Terms};
