use std::path::PathBuf;

use serde_json::Value;

use crate::config::Setting;
use crate::fleet::Engines;
use crate::process::{Edge, Service, Twin};

/// Where a stack lives, and what differs from the development configuration.
#[derive(Debug, Clone)]
pub struct Options {
    /// PKI, keys, configurations, logs and data go here. What an earlier stack left is replaced, except payments when
    /// `keep_payments` is set.
    pub dir: PathBuf,
    /// Go on with the payments of an earlier stack in this folder. Embedded engines only.
    pub keep_payments: bool,
    pub settings: Vec<Setting>,
    pub edge: Edge,
    pub engines: Engines,
    /// The instances of txn-core, npci-proxy and the gateway.
    pub instances: Vec<Twin>,
}

impl Options {
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            keep_payments: false,
            settings: Vec::new(),
            edge: Edge::default(),
            engines: Engines::default(),
            instances: vec![Twin::First],
        }
    }

    /// Chooses what is under the services.
    #[must_use]
    pub fn engines(mut self, engines: Engines) -> Options {
        self.engines = engines;
        self
    }

    /// Two instances of txn-core, npci-proxy and the gateway, on the engines of a fleet, with wires between them
    /// that can be cut.
    #[must_use]
    pub fn twins(mut self) -> Options {
        self.engines = Engines::Fleet;
        self.instances = vec![Twin::First, Twin::Second];
        self
    }

    /// Chooses who is the edge.
    #[must_use]
    pub fn edge(mut self, edge: Edge) -> Options {
        self.edge = edge;
        self
    }

    /// Changes one value of a service's configuration; see [`Setting`].
    #[must_use]
    pub fn set(mut self, service: Service, pointer: &str, value: Value) -> Options {
        self.settings.push(Setting { service, pointer: pointer.to_owned(), value });
        self
    }
}
