//! Who may call, by address: allow and deny lists.

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

    fn build(self, _site: &Site<'_>) -> Result<Box<dyn Filter>, Unusable> {
        let mut allow = self.inherited;
        allow.push(self.allow);
        allow.retain(|list| !list.is_empty());
        Ok(Box::new(IpAccess { allow, deny: self.deny }))
    }
}

#[derive(Debug)]
struct IpAccess {
    allow: Vec<Vec<IpNet>>,
    deny: Vec<IpNet>,
}

impl Filter for IpAccess {
    fn name(&self) -> &'static str {
        "ip_access"
    }

    fn head(&self, _request: &Request<'_>, _host: &dyn Host, context: &mut Context) -> Verdict {
        let ip = context.client_ip;
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&ip));
        if within(&self.deny) || !self.allow.iter().all(|list| within(list)) {
            return Verdict::refuse(403, "ip_denied", "This address may not call this service.");
        }
        Verdict::Pass
    }
}
