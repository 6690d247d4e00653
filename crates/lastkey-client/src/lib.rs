//! What every other room uses to reach a key-management service.
//!
//! [`Kms`] is the small trait the components need; [`Client`] is its first backend, a Lastkey
//! server over TLS or over its admin socket. It speaks two languages to that server: the native
//! `/v1` JSON API in [`native`], typed, and the Alibaba RPC actions through [`Client::alibaba`].
//!
//! What it trusts: the installation's own CA and nothing else, for servers; the operating system,
//! for who listens behind the admin socket. What it promises: a dead server costs half a second
//! before the next one is tried; each failure tells a refusal from an outage ([`Error`]); neither
//! secrets nor answers appear in an error, a log or a `Debug` text.

mod api;
mod client;
mod credentials;
mod endpoint;
mod error;
#[doc(hidden)]
pub mod fuzzing;
mod kms;
pub mod native;
pub mod signature;
mod transport;

pub use client::{Client, Config, Retired, Timeouts};
pub use credentials::{AccessKey, ClientCertificate, Credentials, CredentialsError, Identity};
pub use endpoint::{Endpoint, EndpointError, host_and_port};
pub use error::{ApiError, Category, ConfigError, Error};
pub use kms::{Ciphertext, DataKey, Kms};
pub use transport::{MaybeTls, Readiness};
