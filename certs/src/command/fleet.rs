//! The processes that are asked: what each says of itself on its admin address, and Envoy.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use certs::report::Report;
use clap::Args;
use serde::{Deserialize, Serialize};

use super::{causes, envoy};

/// Which processes to ask.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Fleet {
    /// The admin address of a service, which answers `GET /certificates`; may be given many times.
    #[arg(long, value_name = "URL")]
    admin: Vec<String>,
    /// The `envoy.json` that `gateway envoy --out` wrote for a running Envoy; may be given many times.
    #[arg(long, value_name = "FILE")]
    envoy: Vec<PathBuf>,
    /// The `stack.json` of a development stack: everything in it is asked.
    #[arg(long, value_name = "FILE")]
    stack: Option<PathBuf>,
}

/// A process, and what it says.
#[derive(Debug)]
pub(super) struct Told {
    /// Where it was asked.
    pub(super) source: String,
    pub(super) report: Result<Report, String>,
}

/// Where a process is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
enum Source {
    Admin(String),
    Envoy(PathBuf),
}

/// As much of `stack.json` as is needed here.
#[derive(Deserialize)]
struct StackFile {
    services: Vec<StackService>,
    envoy: Option<PathBuf>,
}

#[derive(Deserialize)]
struct StackService {
    name: String,
    admin_url: String,
}

impl Fleet {
    /// Asks all of them, at once.
    ///
    /// # Errors
    /// When nobody is named, or the stack's file cannot be read. Who does not answer is told as such.
    pub(super) async fn ask(&self) -> anyhow::Result<Vec<Told>> {
        let sources = self.sources()?;
        ensure!(!sources.is_empty(), "nobody to ask; give --stack FILE, --admin URL or --envoy FILE");
        let client = client()?;
        let mut asked = Vec::new();
        for source in sources {
            let client = client.clone();
            asked.push(tokio::spawn(async move {
                let report = match &source {
                    Source::Admin(url) => report(&client, url).await,
                    Source::Envoy(file) => envoy::report(&client, file).await,
                };
                let source = match source {
                    Source::Admin(url) => url,
                    Source::Envoy(file) => file.display().to_string(),
                };
                Told { source, report: report.map_err(|error| causes(&error)) }
            }));
        }
        let mut told = Vec::new();
        for one in asked {
            told.push(one.await?);
        }
        Ok(told)
    }

    fn sources(&self) -> anyhow::Result<Vec<Source>> {
        let mut sources: Vec<Source> = self.admin.iter().cloned().map(Source::Admin).collect();
        sources.extend(self.envoy.iter().cloned().map(Source::Envoy));
        if let Some(file) = &self.stack {
            let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            let stack: StackFile =
                serde_json::from_slice(&text).with_context(|| format!("{} is no stack", file.display()))?;
            // Envoy's own admin address knows nothing of files.
            let is_envoy = |service: &StackService| service.name == "edge" && stack.envoy.is_some();
            sources.extend(
                stack
                    .services
                    .iter()
                    .filter(|service| !is_envoy(service))
                    .map(|one| Source::Admin(one.admin_url.clone())),
            );
            sources.extend(stack.envoy.clone().map(Source::Envoy));
        }
        Ok(sources)
    }
}

async fn report(client: &reqwest::Client, url: &str) -> anyhow::Result<Report> {
    let url = format!("{}/certificates", url.trim_end_matches('/'));
    let answer = client.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
    ensure!(answer.status().is_success(), "{url} answers {}", answer.status());
    Ok(answer.json().await?)
}

/// Admin addresses are plain HTTP, inside.
fn client() -> anyhow::Result<reqwest::Client> {
    let roots = rustls::RootCertStore::empty();
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .timeout(Duration::from_secs(5))
        .build()?)
}

/// Whether two paths name one file. What cannot be found is compared as it is written.
pub(super) fn same_file(one: &Path, other: &Path) -> bool {
    let whole = |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path));
    match (whole(one), whole(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => one == other,
    }
}
