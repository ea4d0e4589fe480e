//! What issuers' keys come from, and what issuers are asked with, read once. Followed it is by those who ask.

use std::collections::BTreeMap;

use certs::Watch;
use filters::policy::{At, Document, Issuer, Mistake, Reference};

use super::files::Files;
use crate::introspection::Introspection;
use crate::jwks::{self, KeyStore};
use crate::metrics::Metrics;

impl Files<'_> {
    /// Whether all of it is there and can be used.
    pub(super) fn issuers(&mut self, document: &Document) {
        for (name, issuer) in &document.issuers {
            let unfollowed = Watch::new("check");
            let mut files = Files { watch: &unfollowed, mistakes: Vec::new(), ..*self };
            files.issuer(name, &issuer.value);
            if files.mistakes.is_empty()
                && let Err(why) = files.asks(name, issuer)
            {
                files.mistakes.push(Mistake::of(issuer, why));
            }
            let mistakes = files.mistakes;
            self.mistakes.extend(mistakes);
        }
    }

    /// What has a place of its own.
    fn issuer(&mut self, name: &str, issuer: &Issuer) {
        if let Some(jwks) = &issuer.jwks {
            if let Some(written @ At { value: Reference::File(path), .. }) = &jwks.file
                && let Err(why) = jwks::read(&self.folder.join(path))
            {
                self.mistakes.push(Mistake::of(written, format!("issuer `{name}`: {why}")));
            }
            if let Some(ca) = &jwks.ca {
                self.trust("jwks".to_owned(), ca, jwks.crl.as_ref(), jwks.stale_crl);
            }
        }
        if let Some(At { value: asked, .. }) = &issuer.introspection {
            self.trust("introspection".to_owned(), &asked.ca, asked.crl.as_ref(), asked.stale_crl);
        }
    }

    /// Whether it can be asked, for all that can be known without asking it.
    fn asks(&self, name: &str, issuer: &At<Issuer>) -> Result<(), String> {
        let one = BTreeMap::from([(name.to_owned(), issuer.clone())]);
        let read = Metrics::new().map_err(anyhow::Error::from).and_then(|metrics| {
            KeyStore::new(&one, self.folder, metrics.clone(), self.watch)?;
            Introspection::new(&one, self.folder, metrics, self.watch, None).map(drop)
        });
        read.map_err(|why| told_once(&why))
    }
}

/// An error with its causes, less those that it has told of itself.
fn told_once(why: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in why.chain().map(ToString::to_string).filter(|cause| !cause.is_empty()) {
        match told.contains(&cause) {
            true => {}
            false if told.is_empty() => told = cause,
            false => told = format!("{told}: {cause}"),
        }
    }
    told
}
