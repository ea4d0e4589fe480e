//! DNS names of upstreams: looked up at an interval, all A and AAAA records, and the last result while lookups fail.
//!
//! The system's resolver is asked, so `/etc/hosts`, search domains and `nsswitch.conf` hold here as everywhere on the
//! host. It tells no TTL, hence the interval.

use std::collections::HashMap;
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
/// Milliseconds from the first failure to the next lookup. Each further failure doubles them, up to the interval.
const FIRST_RETRY_MS: u64 = 1_000;

/// Milliseconds between two lookups of an upstream's names.
pub(crate) fn resolve_interval_ms(settings: &Settings) -> u64 {
    settings.resolve_interval_ms.max(SHORTEST_MS)
}

/// Milliseconds between a first failure and the next lookup.
pub(crate) fn first_retry_ms(settings: &Settings) -> u64 {
    resolve_interval_ms(settings).min(FIRST_RETRY_MS)
}

/// Milliseconds until the next round of lookups, after so many rounds in a row with a failure.
fn pause_ms(settings: &Settings, failures: u32) -> u64 {
    let interval = resolve_interval_ms(settings);
    match failures.checked_sub(1) {
        None => interval,
        Some(doublings) => {
            first_retry_ms(settings).saturating_mul(2_u64.saturating_pow(doublings)).min(interval)
        }
    }
}

/// What names were last resolved to.
pub(super) type Found = HashMap<Address, Vec<SocketAddr>>;

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
    /// `known`: what names were resolved to before.
    pub(super) fn new(written: &Address, known: &Found) -> Self {
        let found = match written {
            Address::Ip(at) => vec![*at],
            Address::Name(..) => known.get(written).cloned().unwrap_or_default(),
        };
        Self { written: written.clone(), found, failure: None }
    }

    pub(super) fn is_resolved(&self) -> bool {
        !self.found.is_empty()
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

/// What the names among these were last resolved to.
pub(super) fn found(names: &[Name]) -> Found {
    let resolved = names.iter().filter(|name| name.written.is_name() && name.is_resolved());
    resolved.map(|name| (name.written.clone(), name.found.clone())).collect()
}

/// Looks the upstream's names up, until the future is dropped.
pub(crate) async fn keep_resolving(upstream: Arc<Upstream>, resolver: impl Resolver) {
    let mut names = upstream.names();
    let mut failures: u32 = 0;
    loop {
        look_up_all(&upstream, &mut names, &resolver).await;
        let has_failed = names.iter().any(|name| name.failure.is_some());
        failures = if has_failed { failures.saturating_add(1) } else { 0 };
        let pause = Duration::from_millis(pause_ms(&upstream.settings, failures));
        // Spread, so that a fleet does not ask in step.
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.9..1.1))).await;
    }
}

/// Looks each name up once.
async fn look_up_all(upstream: &Upstream, names: &mut [Name], resolver: &impl Resolver) {
    for at in 0..names.len() {
        if let Some(name) = names.get_mut(at) {
            name.look_up(&upstream.name, resolver).await;
        }
        // Addresses of one name are used while the resolver is slow with the next.
        if names.iter().any(Name::is_resolved) {
            upstream.resolved(names);
        }
    }
    for name in names.iter() {
        if let Some(why) = &name.failure {
            upstream.failures.note_lookup(why);
        }
    }
    upstream.resolved(names);
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
        let mut name = Name::new(&"core.test:80".parse().unwrap(), &Found::new());
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
        let mut names = [
            Name::new(&"10.0.0.1:80".parse().unwrap(), &Found::new()),
            Name::new(&"core.test:80".parse().unwrap(), &Found::new()),
        ];
        names[0].look_up("core", &Script(Mutex::default())).await;
        assert_eq!(addresses(&names), [at(1)]);
        names[1].look_up("core", &Script(Mutex::new(vec![Ok(vec![at(1), at(2)])]))).await;
        assert_eq!(addresses(&names), [at(1), at(2)], "each once");
    }

    fn upstream(settings: &str, before: Option<&Upstream>) -> Upstream {
        let settings: Settings = serde_json::from_str(settings).unwrap();
        Upstream::new("core", &settings, &Default::default(), &certs::Watch::new("test"), before).unwrap()
    }

    fn used(upstream: &Upstream) -> Option<Vec<SocketAddr>> {
        let addresses = upstream.addresses.borrow();
        Some(addresses.as_ref()?.iter().map(|address| address.at).collect())
    }

    /// A policy that takes over while the resolver is away keeps what the one before has found.
    #[tokio::test]
    async fn the_last_result_outlives_a_reload() {
        const SETTINGS: &str = r#"{ "addresses": ["core.test:80"], "tls": "off" }"#;
        let fails = || Script(Mutex::new(vec![Err(io::Error::other("the resolver is away"))]));
        let before = upstream(SETTINGS, None);
        assert_eq!(used(&before), None, "requests wait for the first lookup");
        look_up_all(&before, &mut before.names(), &Script(Mutex::new(vec![Ok(vec![at(1)])]))).await;
        assert_eq!(used(&before), Some(vec![at(1)]));
        for settings in [SETTINGS, r#"{ "addresses": ["core.test:80"], "tls": "off", "protocol": "h2c" }"#] {
            let after = upstream(settings, Some(&before));
            assert_eq!(used(&after), Some(vec![at(1)]), "{settings}");
            look_up_all(&after, &mut after.names(), &fails()).await;
            assert_eq!(used(&after), Some(vec![at(1)]), "{settings}");
        }
        let nothing_known = upstream(SETTINGS, None);
        look_up_all(&nothing_known, &mut nothing_known.names(), &fails()).await;
        assert_eq!(used(&nothing_known), Some(vec![]), "requests no longer wait");
    }

    #[test]
    fn a_failed_lookup_is_repeated_before_the_interval_ends() {
        for (interval_ms, pauses) in
            [(30_000, [30_000, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000]), (700, [700; 7]), (1, [500; 7])]
        {
            let text = format!(
                r#"{{ "addresses": ["core.test:80"], "tls": "off", "resolve_interval_ms": {interval_ms} }}"#
            );
            let settings: Settings = serde_json::from_str(&text).unwrap();
            for (failures, expected) in (0..).zip(pauses) {
                assert_eq!(pause_ms(&settings, failures), expected, "{interval_ms} {failures}");
            }
            assert_eq!(pause_ms(&settings, u32::MAX), pauses[6], "{interval_ms}");
        }
    }
}
