//! Who listens where, and through which wires a service finds the twins of another.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::Context as _;

use crate::process::{Instance, Service, Twin};
use crate::wire::Wire;

/// The ports that the templates of the configurations name, and whose they are; the issuer is this process.
const PORTS: [(&str, Option<Service>); 11] = [
    ("edge_port", Some(Service::Edge)),
    ("state_port", Some(Service::Edge)),
    ("edge_admin_port", Some(Service::Edge)),
    ("core_port", Some(Service::TxnCore)),
    ("core_admin_port", Some(Service::TxnCore)),
    ("proxy_port", Some(Service::NpciProxy)),
    ("proxy_outside_port", Some(Service::NpciProxy)),
    ("proxy_admin_port", Some(Service::NpciProxy)),
    ("sim_port", Some(Service::NpciSim)),
    ("sim_admin_port", Some(Service::NpciSim)),
    ("issuer_port", None),
];

/// A way between two parts of a stack with twins that can be cut and delayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Between {
    CoreAndProxy,
    ProxyAndCore,
    NetworkAndProxy,
    CoreAndPostgres,
    EdgeAndRedis,
}

impl Between {
    pub const ALL: [Between; 5] = [
        Between::CoreAndProxy,
        Between::ProxyAndCore,
        Between::NetworkAndProxy,
        Between::CoreAndPostgres,
        Between::EdgeAndRedis,
    ];

    /// From whoever connects to whoever is connected to.
    pub fn name(self) -> &'static str {
        match self {
            Between::CoreAndProxy => "txn-core -> npci-proxy",
            Between::ProxyAndCore => "npci-proxy -> txn-core",
            Between::NetworkAndProxy => "npci-sim -> npci-proxy",
            Between::CoreAndPostgres => "txn-core -> PostgreSQL",
            Between::EdgeAndRedis => "edge -> Redis",
        }
    }

    /// The port of services that its clients get another in the place of.
    fn port(self) -> Option<&'static str> {
        match self {
            Between::CoreAndProxy => Some("proxy_port"),
            Between::ProxyAndCore => Some("core_port"),
            Between::NetworkAndProxy => Some("proxy_outside_port"),
            Between::CoreAndPostgres | Between::EdgeAndRedis => None,
        }
    }
}

/// The ports of every instance. Without twins nobody listens on those of the second.
#[derive(Debug)]
pub(crate) struct Addresses {
    ports: BTreeMap<(&'static str, Twin), SocketAddr>,
    wires: BTreeMap<Between, Wire>,
}

impl Addresses {
    pub(crate) fn new() -> anyhow::Result<Addresses> {
        let mut ports = BTreeMap::new();
        for (name, _) in PORTS {
            for twin in [Twin::First, Twin::Second] {
                ports.insert((name, twin), engines::ports::v4()?);
            }
        }
        Ok(Addresses { ports, wires: BTreeMap::new() })
    }

    pub(crate) fn of(&self, name: &'static str, twin: Twin) -> anyhow::Result<SocketAddr> {
        self.ports.get(&(name, twin)).copied().with_context(|| format!("there is no port {name}"))
    }

    /// Puts wires between the services.
    pub(crate) async fn wire_services(&mut self) -> anyhow::Result<()> {
        for between in Between::ALL {
            if let Some(name) = between.port() {
                let targets = vec![self.of(name, Twin::First)?, self.of(name, Twin::Second)?];
                self.wires.insert(between, Wire::start(targets).await?);
            }
        }
        Ok(())
    }

    /// Puts a wire in front of an engine; gives where its clients connect.
    pub(crate) async fn wire_engine(
        &mut self,
        between: Between,
        engine: SocketAddr,
    ) -> anyhow::Result<SocketAddr> {
        let wire = Wire::start(vec![engine]).await?;
        let address = wire.address();
        self.wires.insert(between, wire);
        Ok(address)
    }

    pub(crate) fn wire(&self, between: Between) -> Option<&Wire> {
        self.wires.get(&between)
    }

    /// What stands for each port in an instance's configuration: its own, or where it finds the other service.
    pub(crate) fn values(&self, instance: Instance) -> BTreeMap<&'static str, String> {
        let value = |(name, owner): (&'static str, Option<Service>)| {
            let own = owner == Some(instance.service);
            let twin = if own { instance.twin } else { Twin::First };
            let between = Between::ALL.into_iter().find(|between| between.port() == Some(name));
            let wire = between.filter(|_| !own).and_then(|between| self.wires.get(&between));
            let address = wire.map(Wire::address).or_else(|| self.ports.get(&(name, twin)).copied())?;
            Some((name, address.port().to_string()))
        };
        PORTS.into_iter().filter_map(value).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn twins_listen_on_ports_of_their_own_and_find_others_through_wires() {
        let mut addresses = Addresses::new().unwrap();
        let first = Instance::from(Service::TxnCore);
        let second = Instance { twin: Twin::Second, ..first };
        let port = |addresses: &Addresses, instance, name| addresses.values(instance)[name].clone();
        let proxy = addresses.of("proxy_port", Twin::First).unwrap().port().to_string();
        assert_eq!(port(&addresses, first, "proxy_port"), proxy, "without wires straight to the first");

        addresses.wire_services().await.unwrap();
        assert_ne!(port(&addresses, first, "core_port"), port(&addresses, second, "core_port"));
        let wire = addresses.wire(Between::CoreAndProxy).unwrap().address().port().to_string();
        for core in [first, second] {
            assert_eq!(port(&addresses, core, "proxy_port"), wire);
        }
    }
}
