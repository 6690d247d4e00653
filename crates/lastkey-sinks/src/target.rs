//! What a lot of lines is delivered to.

use crate::{SinkAddress, stdout::Stdout, syslog::Syslog, webhook::Webhook};

/// Why a lot did not arrive.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DeliveryError {
    /// The connection or the file refused.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// TLS refused.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// HTTP failed.
    #[error("HTTP: {0}")]
    Http(#[from] hyper::Error),
    /// The receiver did not take it.
    #[error("the receiver answered {status}")]
    Refused {
        /// What it answered.
        status: http::StatusCode,
        /// When it wants to be asked again.
        retry_after: Option<std::time::Duration>,
    },
    /// There was no connection in time.
    #[error("no connection in time")]
    NoConnection,
    /// It took too long.
    #[error("no answer in time")]
    Late,
}

/// A sink that takes lots.
pub(crate) enum Target {
    Stdout(Stdout),
    Syslog(Syslog),
    Webhook(Box<Webhook>),
}

impl Target {
    /// Delivers lines without newlines. On an error all of them come again.
    pub(crate) async fn deliver(&mut self, lines: &[Vec<u8>]) -> Result<(), DeliveryError> {
        match self {
            Self::Stdout(stdout) => stdout.deliver(lines).await,
            Self::Syslog(syslog) => syslog.deliver(lines).await,
            Self::Webhook(webhook) => webhook.deliver(lines).await,
        }
    }

    /// Whether a delivery that takes long may be given up and made anew. What standard output was
    /// given cannot be taken back.
    pub(crate) fn may_be_late(&self) -> bool {
        matches!(self, Self::Stdout(_))
    }
}

/// What a webhook needs beside its address.
pub(crate) struct Trust {
    pub(crate) tls: std::sync::Arc<rustls::ClientConfig>,
    pub(crate) token: Option<zeroize::Zeroizing<String>>,
}

impl Target {
    pub(crate) fn open(
        address: &SinkAddress,
        trust: impl FnOnce() -> Result<Trust, crate::StartError>,
    ) -> Result<Self, crate::StartError> {
        Ok(match address {
            SinkAddress::Stdout => Self::Stdout(Stdout::open()?),
            SinkAddress::Syslog(transport) => Self::Syslog(Syslog::new(transport.clone())),
            SinkAddress::Webhook(uri) => {
                Self::Webhook(Box::new(Webhook::new(uri.clone(), trust()?)))
            }
        })
    }
}
