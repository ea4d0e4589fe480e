//! DNS names of upstreams: looked up at an interval, all A and AAAA records, and the last result while lookups fail.
//!
//! The system's resolver is asked, so `/etc/hosts`, search domains and `nsswitch.conf` hold here as everywhere on the
//! host. It tells no TTL, hence the interval.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use filters::policy::{Address, Upstream as Settings};

use super::Upstream;

/// Most addresses of one name. More are left out, in the resolver's order.
const MOST_OF_A_NAME: usize = 64;
/// For one lookup. A resolver without an answer must not hold up the other names for longer.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// The shortest interval between two lookups of a name.
const SHORTEST_MS: u64 = 500;

/// Milliseconds between two lookups of an upstream's names.
pub(crate) fn resolve_interval_ms(settings: &Settings) -> u64 {
    settings.resolve_interval_ms.max(SHORTEST_MS)
}

/// Looks names up.
pub(crate) trait Resolver: Send + Sync + 'static {
    fn lookup(&self, host: &str, port: u16) -> impl Future<Output = io::Result<Vec<SocketAddr>>> + Send;
}

/// The system's resolver.
#[derive(Debug)]
pub(crate) struct System;

impl Resolver for System {
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        match tokio::time::timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((host, port))).await {
            Ok(found) => found.map(Iterator::collect),
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the resolver does not answer")),
        }
    }
}

/// One address as it is written, and what it was last resolved to.
#[derive(Debug)]
pub(super) struct Name {
    written: Address,
    found: Vec<SocketAddr>,
    /// Why the last lookup failed.
    failure: Option<String>,
}

impl Name {
    pub(super) fn new(written: &Address) -> Self {
        let found = match written {
            Address::Ip(at) => vec![*at],
            Address::Name(..) => Vec::new(),
        };
        Self { written: written.clone(), found, failure: None }
    }

    /// Looks it up, if it is a name. A lookup that fails, or finds nothing, changes nothing.
    pub(super) async fn look_up(&mut self, upstream: &str, resolver: &impl Resolver) {
        let Address::Name(host, port) = &self.written else { return };
        let found = resolver.lookup(host, *port).await.and_then(|found| match found.is_empty() {
            true => Err(io::Error::other("the name has no A or AAAA record")),
            false => Ok(found),
        });
        match found {
            Ok(found) => {
                self.found.clear();
                for at in found {
                    if self.found.len() < MOST_OF_A_NAME && !self.found.contains(&at) {
                        self.found.push(at);
                    }
                }
                if self.failure.take().is_some() {
                    tracing::info!(
                        upstream,
                        name = host,
                        addresses = self.found.len(),
                        "the name resolves again"
                    );
                }
            }
            Err(error) => {
                let cause = error.to_string();
                // Once a cause, not once an interval.
                if self.failure.as_ref() != Some(&cause) {
                    let kept = self.found.len();
                    tracing::warn!(upstream, name = host, cause, kept, "the name cannot be resolved");
                    self.failure = Some(cause);
                }
            }
        }
    }
}

/// All addresses of all names, in their order, each once.
pub(super) fn addresses(names: &[Name]) -> Vec<SocketAddr> {
    let mut all = Vec::new();
    for at in names.iter().flat_map(|name| &name.found) {
        if !all.contains(at) {
            all.push(*at);
        }
    }
    all
}

/// Looks the upstream's names up, until the future is dropped.
pub(crate) async fn keep_resolving(upstream: Arc<Upstream>, resolver: impl Resolver) {
    let mut names: Vec<Name> = upstream.settings.addresses.iter().map(Name::new).collect();
    let interval = Duration::from_millis(resolve_interval_ms(&upstream.settings));
    loop {
        for name in &mut names {
            name.look_up(&upstream.name, &resolver).await;
        }
        upstream.set_addresses(&addresses(&names));
        // Spread, so that a fleet does not ask in step.
        tokio::time::sleep(interval.mul_f64(rand::random_range(0.9..1.1))).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Gives these answers one after the other.
    struct Script(Mutex<Vec<io::Result<Vec<SocketAddr>>>>);

    impl Resolver for Script {
        async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            assert_eq!((host, port), ("core.test", 80));
            self.0.lock().unwrap().remove(0)
        }
    }

    fn at(last: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, (last >> 8) as u8, last as u8], 80))
    }

    #[tokio::test]
    async fn the_last_result_stays_while_lookups_fail() {
        let v6: SocketAddr = "[::1]:80".parse().unwrap();
        let many: Vec<SocketAddr> = (0..100).map(at).collect();
        let mut name = Name::new(&"core.test:80".parse().unwrap());
        for (answer, expected, fails) in [
            (Err(io::Error::other("no such host")), vec![], true),
            (Ok(vec![at(1), v6, at(1)]), vec![at(1), v6], false),
            (Err(io::Error::other("the server is away")), vec![at(1), v6], true),
            (Ok(vec![]), vec![at(1), v6], true),
            (Ok(vec![at(2)]), vec![at(2)], false),
            (Ok(many.clone()), many.into_iter().take(64).collect(), false),
        ] {
            name.look_up("core", &Script(Mutex::new(vec![answer]))).await;
            assert_eq!(name.found, expected);
            assert_eq!(name.failure.is_some(), fails);
        }
    }

    #[tokio::test]
    async fn addresses_that_are_no_names_are_not_looked_up() {
        let mut names =
            [Name::new(&"10.0.0.1:80".parse().unwrap()), Name::new(&"core.test:80".parse().unwrap())];
        names[0].look_up("core", &Script(Mutex::default())).await;
        assert_eq!(addresses(&names), [at(1)]);
        names[1].look_up("core", &Script(Mutex::new(vec![Ok(vec![at(1), at(2)])]))).await;
        assert_eq!(addresses(&names), [at(1), at(2)], "each once");
    }
}
