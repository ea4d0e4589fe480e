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

/// Which of the instances of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Twin {
    /// The only one of a stack without twins.
    #[default]
    First,
    Second,
}

/// One process: a service stands for its first instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instance {
    pub service: Service,
    pub twin: Twin,
}

impl Instance {
    /// What a stack consists of, in the order in which it starts. There is one network, and one state service.
    pub(crate) fn of(edge: Edge, twins: &[Twin]) -> Vec<Instance> {
        let each = |&service: &Service| {
            let twins = match service {
                Service::TxnCore | Service::NpciProxy | Service::Edge => twins,
                Service::NpciSim | Service::State => &[Twin::First],
            };
            twins.iter().map(move |&twin| Instance { service, twin })
        };
        Service::of(edge).iter().flat_map(each).collect()
    }

    /// The name in logs and for people, and of its configuration.
    pub fn name(self) -> &'static str {
        match (self.service, self.twin) {
            (service, Twin::First) => service.name(),
            (Service::TxnCore, Twin::Second) => "txn-core-2",
            (Service::NpciProxy, Twin::Second) => "npci-proxy-2",
            (Service::Edge, Twin::Second) => "edge-2",
            // One of each at most.
            (service @ (Service::NpciSim | Service::State), Twin::Second) => service.name(),
        }
    }
}

impl From<Service> for Instance {
    fn from(service: Service) -> Instance {
        Instance { service, twin: Twin::First }
    }
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
    instance: Instance,
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
    bail!("{} is not ready after {} s: {url} says {last}", instance.name(), READY_WITHIN.as_secs())
}
