//! By which address this machine's own clients reach the server: the one in `credentials.json`,
//! and the one of the plugin inside `up`.
//!
//! Our own authority's certificate is good for every address that we listen on. One that somebody
//! brought has the names that it has; one of them is taken if it means where we listen, and
//! otherwise what is wrong is said.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use crate::tls::{Brought, Refusal};

/// How long the names of a certificate are looked up.
const LOOK_UP: Duration = Duration::from_secs(5);

/// An address of the server's, and whether its certificate is good for it.
#[derive(Clone, Debug)]
pub struct Reach {
    host: String,
    address: SocketAddr,
    brought: Option<Arc<Brought>>,
    doubt: Option<String>,
    is_about_the_name: bool,
}

impl Reach {
    /// For a server that listens on `address`, which was given as `host`.
    pub(crate) async fn of(host: &str, address: SocketAddr, brought: Option<Brought>) -> Self {
        let unspecified = host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
        let own = if unspecified { "localhost" } else { host };
        let brought = brought.map(Arc::new);
        let refusal = brought.as_ref().and_then(|brought| brought.refusal(own));
        let mut reach =
            Self { host: own.to_owned(), address, brought, doubt: None, is_about_the_name: false };
        let names = reach.brought.as_ref().map(|brought| brought.names()).unwrap_or_default();
        match refusal {
            None => {}
            Some(Refusal::Certificate(why)) => reach.doubt = Some(why),
            Some(Refusal::Name) => match reach.name_of_here(&names).await {
                Some(name) => reach.host = name,
                None => {
                    let names = match names.is_empty() {
                        true => "no name at all".to_owned(),
                        false => names.join(", "),
                    };
                    reach.doubt = Some(format!(
                        "it is not for {own}, but for {names}; have one of its names mean the \
                         address of --listen on this machine, as in /etc/hosts"
                    ));
                    reach.is_about_the_name = true;
                }
            },
        }
        reach
    }

    /// The URL.
    pub fn url(&self) -> String {
        let port = self.address.port();
        match self.host.contains(':') {
            true => format!("https://[{}]:{port}", self.host),
            false => format!("https://{}:{port}", self.host),
        }
    }

    /// Why clients on this machine will not accept the server's certificate at that URL, and what
    /// to do about it.
    pub fn doubt(&self) -> Option<&str> {
        self.doubt.as_deref()
    }

    /// Whether they would under another name.
    pub fn is_about_the_name(&self) -> bool {
        self.is_about_the_name
    }

    /// Whether somebody who put this host and port in place of ours knew better: ours will not do,
    /// and the certificate is for theirs.
    pub fn yields_to(&self, host: &str, port: u16) -> bool {
        let is_named = self.brought.as_ref().is_some_and(|brought| brought.is_for(host));
        self.doubt.is_some() && port == self.address.port() && is_named
    }

    /// The first of the names that the certificate is good for and that means where we listen.
    async fn name_of_here(&self, names: &[String]) -> Option<String> {
        let brought = self.brought.as_ref()?;
        let search = async {
            for name in names.iter().filter(|name| brought.refusal(name).is_none()) {
                if self.is_here(name).await {
                    return Some(name.clone());
                }
            }
            None
        };
        tokio::time::timeout(LOOK_UP, search).await.ok()?
    }

    /// Whether a name means this machine and no other, and among that where we listen.
    async fn is_here(&self, name: &str) -> bool {
        let Ok(found) = tokio::net::lookup_host((name, self.address.port())).await else {
            return false;
        };
        let found: Vec<IpAddr> = found.map(|address| address.ip()).collect();
        let ours = self.address.ip();
        found.iter().any(|ip| listens_on(ours, *ip))
            && found.iter().all(|ip| is_of_this_machine(*ip))
    }
}

/// Whether who listens on `ours` is reached at `asked`, of the same machine.
fn listens_on(ours: IpAddr, asked: IpAddr) -> bool {
    ours == asked || (ours.is_unspecified() && (asked.is_ipv4() || ours.is_ipv6()))
}

fn is_of_this_machine(ip: IpAddr) -> bool {
    // No other address can be bound.
    ip.is_loopback() || UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::brought_for_tests;

    async fn reach(host: &str, names: &[&str]) -> Reach {
        let directory = tempfile::tempdir().unwrap();
        let source = brought_for_tests(directory.path(), names);
        let address = SocketAddr::new(host.parse().unwrap(), 7343);
        Reach::of(host, address, Brought::read(&source).unwrap()).await
    }

    #[tokio::test]
    async fn a_name_is_taken_that_the_certificate_has_and_that_means_this_server() {
        for (host, names, url) in [
            ("127.0.0.1", &["127.0.0.1"][..], "https://127.0.0.1:7343"),
            ("::1", &["::1"], "https://[::1]:7343"),
            // What was brought first is not tried first: what was listened on is.
            ("127.0.0.1", &["localhost", "127.0.0.1"], "https://127.0.0.1:7343"),
            ("127.0.0.1", &["kms.invalid", "10.255.255.1", "localhost"], "https://localhost:7343"),
            ("0.0.0.0", &["localhost"], "https://localhost:7343"),
            ("0.0.0.0", &["192.0.2.1", "127.0.0.1"], "https://127.0.0.1:7343"),
        ] {
            let reach = reach(host, names).await;
            assert_eq!(reach.url(), url, "{host} {names:?}");
            assert_eq!(reach.doubt(), None, "{host} {names:?}");
            assert!(!reach.yields_to("kms.invalid", 7343), "there is nothing to put right");
        }
    }

    #[tokio::test]
    async fn what_no_client_here_will_accept_is_said_and_may_be_put_right_by_hand() {
        for (host, names, url) in [
            ("127.0.0.1", &["kms.invalid"][..], "https://127.0.0.1:7343"),
            // Of this machine, but not where we listen.
            ("127.0.0.1", &["kms.invalid", "127.0.0.2"], "https://127.0.0.1:7343"),
            ("0.0.0.0", &["kms.invalid", "192.0.2.1", "*.invalid"], "https://localhost:7343"),
        ] {
            let reach = reach(host, names).await;
            assert_eq!(reach.url(), url, "{host} {names:?}");
            assert!(reach.doubt().unwrap().contains("kms.invalid"), "{:?}", reach.doubt());
            assert!(reach.yields_to("kms.invalid", 7343));
            assert!(!reach.yields_to("kms.invalid", 7344), "another server's");
            assert!(!reach.yields_to("127.0.0.1", 7343), "that will not do");
        }
        let address = SocketAddr::from(([127, 0, 0, 1], 7343));
        let ours = Reach::of("127.0.0.1", address, None).await;
        assert_eq!((ours.doubt(), ours.yields_to("kms.invalid", 7343)), (None, false));
    }
}
