//! Who may connect, by address: allow and deny lists, and which proxies are believed about the client's.

use std::net::IpAddr;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::{Context, Filter, Host, Request, Verdict};
use crate::policy::network::networks;
use crate::policy::{Settings, Site, Unusable};

/// Allow and deny lists of address ranges. A denied address is refused even where it is allowed too.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Networks in CIDR notation, or single addresses, that may call. Empty: every address that is not denied.
    #[serde(deserialize_with = "networks")]
    #[schemars(with = "Vec<String>")]
    pub allow: Vec<IpNet>,
    /// Networks or single addresses that may not.
    #[serde(deserialize_with = "networks")]
    #[schemars(with = "Vec<String>")]
    pub deny: Vec<IpNet>,
    /// A parent's allow lists: the address must be in each of them too.
    #[serde(skip_deserializing, skip_serializing_if = "Vec::is_empty")]
    #[schemars(skip)]
    inherited: Vec<Vec<IpNet>>,
}

impl Settings for Config {
    fn and(mut self, mut child: Self) -> Self {
        child.inherited.append(&mut self.inherited);
        if !self.allow.is_empty() {
            child.inherited.push(self.allow);
        }
        child.deny.append(&mut self.deny);
        child
    }

    fn build(self, site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        let mut allow = self.inherited;
        allow.push(self.allow);
        allow.retain(|list| !list.is_empty());
        Ok(Box::new(IpAccess { allow, deny: self.deny, trusted_proxies: site.trusted_proxies.to_vec() }))
    }
}

#[derive(Debug)]
struct IpAccess {
    allow: Vec<Vec<IpNet>>,
    deny: Vec<IpNet>,
    trusted_proxies: Vec<IpNet>,
}

impl Filter for IpAccess {
    fn name(&self) -> &'static str {
        "ip_access"
    }

    fn head(&self, request: &Request<'_>, _host: &dyn Host, context: &mut Context) -> Verdict {
        let Some(ip) = client_address(request, &self.trusted_proxies) else {
            return Verdict::refuse(
                400,
                "forwarded_for_invalid",
                "X-Forwarded-For must be a comma-separated list of IP addresses.",
            );
        };
        context.client_ip = ip;
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        if within(&self.deny) || !self.allow.iter().all(|list| within(list)) {
            return Verdict::refuse(403, "ip_denied", "This address may not call this service.");
        }
        Verdict::Pass
    }
}

/// The client's address: walking `X-Forwarded-For` from the nearest hop, the first that is not a trusted
/// proxy. What a client wrote itself lies further left and is never reached. `None` when a trusted proxy
/// passed on something that is not an address.
fn client_address(request: &Request<'_>, trusted: &[IpNet]) -> Option<IpAddr> {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|net| net.contains(ip));
    let mut client = request.peer.to_canonical();
    let fields: Vec<&[u8]> = request.headers.all("x-forwarded-for").collect();
    let hops = fields.iter().rev().flat_map(|field| field.rsplit(|byte| *byte == b','));
    for hop in hops {
        if !is_trusted(&client) {
            break;
        }
        client = std::str::from_utf8(hop).ok()?.trim().parse::<IpAddr>().ok()?.to_canonical();
    }
    Some(client)
}
