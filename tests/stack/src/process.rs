//! Services as child processes.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use tokio::time::sleep;

/// How long a service may take to finish what is in flight after SIGTERM.
pub(crate) const GRACE: Duration = Duration::from_secs(12);
const READY_WITHIN: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(25);

/// What runs as a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    NpciSim,
    TxnCore,
    NpciProxy,
    /// The state service, which Envoy's workers share.
    State,
    Edge,
}

/// Who is the edge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Edge {
    /// `gateway serve`.
    #[default]
    Gateway,
    /// Envoy with the module, and `gateway state` beside it.
    Envoy,
}

impl Service {
    /// What a stack consists of, in the order in which it starts.
    pub fn of(edge: Edge) -> &'static [Service] {
        const ENVOY: [Service; 5] =
            [Service::NpciSim, Service::TxnCore, Service::NpciProxy, Service::State, Service::Edge];
        const GATEWAY: [Service; 4] = [Service::NpciSim, Service::TxnCore, Service::NpciProxy, Service::Edge];
        match edge {
            Edge::Gateway => &GATEWAY,
            Edge::Envoy => &ENVOY,
        }
    }

    /// The name in logs and for people, and of its configuration.
    pub fn name(self) -> &'static str {
        match self {
            Service::NpciSim => "npci-sim",
            Service::TxnCore => "txn-core",
            Service::NpciProxy => "npci-proxy",
            Service::State => "state",
            Service::Edge => "edge",
        }
    }
}

/// A command line.
#[derive(Debug, Clone)]
pub(crate) struct CommandLine {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

/// Waits until `url`, the service's readiness, answers 200; `check` is asked in between whether its process lives.
///
/// # Errors
/// When the process ends, or is not ready in time: with what it said last.
pub(crate) async fn ready(
    service: Service,
    http: &reqwest::Client,
    url: &str,
    check: impl Fn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut last = String::from("no answer");
    while started.elapsed() < READY_WITHIN {
        check()?;
        match http.get(url).timeout(Duration::from_secs(1)).send().await {
            Ok(answer) if answer.status().is_success() => return Ok(()),
            Ok(answer) => last = format!("{} {}", answer.status(), answer.text().await.unwrap_or_default()),
            Err(_) => {}
        }
        sleep(POLL).await;
    }
    bail!("{} is not ready after {} s: {url} says {last}", service.name(), READY_WITHIN.as_secs())
}
