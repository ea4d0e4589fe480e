//! The issuers of one policy: their keys, and what they say of tokens that only they can read.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use certs::Watch;
use filters::policy::{Document, Mistake};

use crate::introspection::Introspection;
use crate::jwks::KeyStore;
use crate::metrics::Metrics;

/// Everybody whose tokens a policy believes.
#[derive(Debug)]
pub(crate) struct Issuers {
    pub(crate) keys: Arc<KeyStore>,
    pub(crate) introspection: Introspection,
    /// The policy's names of them, by what Envoy's module knows them as.
    names: BTreeMap<String, String>,
}

impl Issuers {
    /// Asks nobody yet. `watch` follows their files and tells of their keys; the keys of issuers that the policy says the
    /// same of as `before` are held still, and what they said of tokens counts.
    pub(crate) fn new(
        document: &Document,
        folder: &Path,
        metrics: &Metrics,
        watch: &Watch,
        before: Option<&Self>,
    ) -> anyhow::Result<Self> {
        let issuers = &document.issuers;
        let keys = Arc::new(match before {
            Some(before) => before.keys.successor(issuers, folder, watch)?,
            None => KeyStore::new(issuers, folder, metrics.clone(), watch)?,
        });
        let asked_before = before.map(|before| &before.introspection);
        let introspection = Introspection::new(issuers, folder, metrics.clone(), watch, asked_before)?;
        let held = Arc::clone(&keys);
        watch.holds(move || held.report());
        let names = issuers.iter().map(|(name, issuer)| (issuer.value.known_as(), name.clone())).collect();
        Ok(Self { keys, introspection, names })
    }

    /// Fetches the keys that are missing. Tells of issuers that have none even so, and had some `before`, or were not
    /// there: who had none before loses nothing.
    pub(crate) async fn fetch_missing(&self, before: &Self) -> Vec<Mistake> {
        self.keys.fetch_missing().await;
        let missing_before = before.keys.missing();
        let missing = self.keys.missing().into_iter().filter(|issuer| !missing_before.contains(issuer));
        let why = "has no keys: they could not be fetched, so its tokens would be refused";
        missing.map(|issuer| Mistake::whole(format!("issuer `{issuer}` {why}"))).collect()
    }

    /// The policy's name of whom Envoy's module knows as that.
    pub(crate) fn named(&self, known_as: &str) -> Option<&str> {
        self.names.get(known_as).map(String::as_str)
    }
}
