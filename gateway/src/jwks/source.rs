//! Where an issuer's keys come from: a file, an address, or whatever address the issuer's own metadata name.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use certs::file::Content;
use certs::{Live, TrustFiles, Watch};
use filters::policy::{At, Discovery, Issuer, Jwks, Reference};
use serde::Deserialize;

use crate::load;

/// A key set is a few kilobytes; more is somebody's mistake or somebody's attack.
pub(super) const MOST_BYTES: usize = 256 * 1024;
/// So are an issuer's metadata.
const MOST_METADATA_BYTES: usize = 64 * 1024;

#[derive(Debug)]
pub(super) enum Source {
    Url {
        url: String,
        client: Live<reqwest::Client>,
    },
    /// `metadata` is an address; what is there must name the issuer.
    Metadata {
        metadata: String,
        issuer: String,
        client: Live<reqwest::Client>,
    },
    File(PathBuf),
}

/// By what a change of a file shows.
pub(super) type Stamp = (u64, u64, i64, i64);

impl Source {
    pub(super) fn new(
        name: &str,
        (issuer, jwks): (&Issuer, &Jwks),
        folder: &Path,
        watch: &Watch,
    ) -> anyhow::Result<Self> {
        let client = || client(name, jwks, folder, watch).with_context(|| format!("issuer `{name}`"));
        match (&jwks.url, &jwks.file, jwks.discovery) {
            (_, Some(At { value: Reference::File(path), .. }), _) => Ok(Self::File(folder.join(path))),
            (Some(url), _, _) => Ok(Self::Url { url: url.clone(), client: client()? }),
            (None, _, Some(discovery)) => Ok(Self::Metadata {
                metadata: metadata(&issuer.issuer, discovery),
                issuer: issuer.issuer.clone(),
                client: client()?,
            }),
            (None, _, None) => anyhow::bail!("issuer `{name}` has no source of keys"),
        }
    }

    /// The key set as it is published, whatever it is.
    pub(super) async fn read(&self) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::File(path) => {
                let path = path.clone();
                tokio::task::spawn_blocking(move || read_file(&path)).await?
            }
            Self::Url { url, client } => get(&client.current(), url, MOST_BYTES).await,
            Self::Metadata { metadata, issuer, client } => {
                let client = client.current();
                let bytes = get(&client, metadata, MOST_METADATA_BYTES).await?;
                get(&client, &jwks_uri(&bytes, issuer)?, MOST_BYTES).await
            }
        }
    }

    pub(super) async fn stamp(&self) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt as _;
        let Self::File(path) = self else { return None };
        let meta = tokio::fs::metadata(path).await.ok()?;
        Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
    }

    /// Waits so long; for a file that changes, no longer than that takes.
    pub(super) async fn pause(&self, pause: Duration, before: Option<Stamp>) {
        const LOOK: Duration = Duration::from_millis(250);
        if matches!(self, Self::Url { .. } | Self::Metadata { .. }) {
            return tokio::time::sleep(pause).await;
        }
        let began = Instant::now();
        while let Some(left) = pause.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) {
            tokio::time::sleep(left.min(LOOK)).await;
            if self.stamp().await != before {
                return;
            }
        }
    }
}

/// Bounded, and from nothing but a file: a pipe or a device would be read for ever.
pub(super) fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = certs::file::read(path, Content::Public)?;
    anyhow::ensure!(bytes.len() <= MOST_BYTES, "{} is larger than {MOST_BYTES} bytes", path.display());
    Ok(bytes.to_vec())
}

/// Where the issuer's metadata are.
fn metadata(issuer: &str, discovery: Discovery) -> String {
    let issuer = issuer.trim_end_matches('/');
    match discovery {
        Discovery::Openid => format!("{issuer}/.well-known/openid-configuration"),
        Discovery::Oauth => {
            const SCHEME: &str = "https://";
            let rest = issuer.strip_prefix(SCHEME).unwrap_or(issuer);
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{SCHEME}{host}/.well-known/oauth-authorization-server{path}")
        }
    }
}

/// Where the keys are, as the metadata of that very issuer say (RFC 8414 section 3.3).
fn jwks_uri(metadata: &[u8], issuer: &str) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Metadata {
        issuer: String,
        jwks_uri: String,
    }
    let metadata: Metadata =
        serde_json::from_slice(metadata).context("the issuer's metadata cannot be read")?;
    anyhow::ensure!(metadata.issuer == issuer, "the metadata are those of another issuer");
    anyhow::ensure!(metadata.jwks_uri.starts_with("https://"), "`jwks_uri` must begin with https://");
    Ok(metadata.jwks_uri)
}

async fn get(client: &reqwest::Client, url: &str, most_bytes: usize) -> anyhow::Result<Vec<u8>> {
    let mut answer = client.get(url).send().await?.error_for_status()?;
    // A redirection is followed by nobody, and is no answer.
    anyhow::ensure!(answer.status() == reqwest::StatusCode::OK, "{url} answers {}", answer.status());
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        anyhow::ensure!(body.len() + chunk.len() <= most_bytes, "{url} answers more than {most_bytes} bytes");
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn client(name: &str, jwks: &Jwks, folder: &Path, watch: &Watch) -> anyhow::Result<Live<reqwest::Client>> {
    let timeout = Duration::from_millis(jwks.timeout_ms);
    let limits = certs::client::ClientLimits { connect_timeout: timeout, timeout, ..Default::default() };
    match jwks.ca.as_ref().map(|ca| &ca.value) {
        Some(Reference::File(path)) => {
            let crl = match jwks.crl.as_ref().map(|crl| &crl.value) {
                Some(Reference::File(path)) => Some(folder.join(path)),
                Some(Reference::Env(_)) => anyhow::bail!("`jwks.crl` must be a `file:`"),
                None => None,
            };
            let files = TrustFiles { ca: folder.join(path), crl, stale: load::stale_crl(jwks.stale_crl) };
            let trust = watch.trust(format!("issuer/{name}/ca"), files)?;
            watch.connects(certs::Client {
                name: format!("issuer/{name}"),
                server_name: None,
                identity: None,
                trust: trust.clone(),
            });
            let trusted = trust.clone();
            Ok(watch.derive(&[&trust], move || {
                let tls = certs::client_config(&trusted.current(), None, certs::Versions::Tls12And13)?;
                certs::client::https(tls, limits)
            })?)
        }
        Some(Reference::Env(_)) => anyhow::bail!("`jwks.ca` must be a `file:`"),
        None => Ok(reqwest::Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(timeout)
            .timeout(timeout)
            .build()?
            .into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_metadata_are() {
        for (issuer, openid, oauth) in [
            (
                "https://id.test",
                "https://id.test/.well-known/openid-configuration",
                "https://id.test/.well-known/oauth-authorization-server",
            ),
            (
                "https://id.test:8443/realms/bank/",
                "https://id.test:8443/realms/bank/.well-known/openid-configuration",
                "https://id.test:8443/.well-known/oauth-authorization-server/realms/bank",
            ),
        ] {
            assert_eq!(metadata(issuer, Discovery::Openid), openid);
            assert_eq!(metadata(issuer, Discovery::Oauth), oauth);
        }
    }

    #[test]
    fn metadata_that_are_believed() {
        for (text, expected) in [
            (
                r#"{"issuer":"https://id.test","jwks_uri":"https://keys.test/k","x":1}"#,
                Some("https://keys.test/k"),
            ),
            (r#"{"issuer":"https://id.test/","jwks_uri":"https://keys.test/k"}"#, None),
            (r#"{"issuer":"https://evil.test","jwks_uri":"https://keys.test/k"}"#, None),
            (r#"{"jwks_uri":"https://keys.test/k"}"#, None),
            (r#"{"issuer":"https://id.test","jwks_uri":"http://keys.test/k"}"#, None),
            (r#"{"issuer":"https://id.test","jwks_uri":"file:///etc/passwd"}"#, None),
            (r#"{"issuer":"https://id.test"}"#, None),
            (r#"{"issuer":"https://id.test","issuer":"https://id.test","jwks_uri":"https://k"}"#, None),
            ("<html>", None),
            ("", None),
        ] {
            assert_eq!(jwks_uri(text.as_bytes(), "https://id.test").ok().as_deref(), expected, "{text}");
        }
    }
}
