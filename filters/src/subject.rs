//! Whose requests are counted together, and under which key.

use std::net::{IpAddr, Ipv6Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::filter::Context;
use crate::plan::Scope;

/// Whose requests are counted together. `user` and `device` lie within their tenant, and in a plan everything does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Everybody's on this route; in a plan, the tenant's on each route.
    Route,
    /// The client's address; of IPv6 the network of 64 bits, all of whose addresses one sender may have.
    Ip,
    /// The tenant that `tenant` found; without that filter the token's, otherwise the client's.
    Tenant,
    /// The client of the policy, known by its certificate or its signature.
    Client,
    /// `sub` of the token.
    User,
    /// The token's device.
    Device,
    /// The key that signed the request.
    Key,
}

impl By {
    /// As the policy writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Route => "route",
            Self::Ip => "ip",
            Self::Tenant => "tenant",
            Self::Client => "client",
            Self::User => "user",
            Self::Device => "device",
            Self::Key => "key",
        }
    }
}

/// The key under which a request is counted; `None` when it does not say who sends it. `kind` keeps counters of
/// different filters apart.
pub(crate) fn counter_key(
    kind: &str,
    name: &str,
    by: By,
    scope: Scope,
    route: &str,
    context: &Context,
) -> Option<String> {
    let subject = subject(by, context)?;
    let route = match by {
        By::Route => route,
        By::Ip | By::Tenant | By::Client | By::User | By::Device | By::Key => "",
    };
    let within = match scope {
        Scope::Route => String::new(),
        Scope::Plan => {
            let tenant = &context.tenant.as_ref()?.name;
            format!("{}/{tenant}/", tenant.len())
        }
    };
    Some(format!("{kind}/{}/{}/{route}/{within}{subject}", scope.counter(name), by.name()))
}

/// What is wrong with a limit's name, if anything.
pub(crate) fn name_mistake(name: &str) -> Option<String> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
    let good = (1..=64).contains(&name.len()) && name.bytes().all(plain);
    (!good).then(|| format!("limit name `{name}`: use lower-case letters, digits, '-' and '_', at most 64"))
}

pub(crate) fn subject(by: By, context: &Context) -> Option<String> {
    let identity = context.identity();
    let found = context.tenant.as_ref().map(|tenant| &*tenant.name);
    let tenant = || found.or_else(|| identity.map(|who| who.tenant.as_deref().unwrap_or(&who.issuer)));
    let within_tenant = |subject: &str| tenant().map(|tenant| format!("{}/{tenant}/{subject}", tenant.len()));
    match by {
        By::Route => Some(String::new()),
        By::Ip => Some(sender(context.client_ip)),
        By::Tenant => tenant().or_else(|| context.client.as_ref()?.tenant.as_deref()).map(str::to_owned),
        By::Client => Some(context.client.as_ref()?.name.to_string()),
        By::User => within_tenant(&identity?.subject),
        By::Device => within_tenant(identity?.device.as_deref()?),
        By::Key => Some(context.signed.as_ref()?.keyid.clone()),
    }
}

/// The last 64 bits of an IPv6 address are its owner's to choose (RFC 4291 section 2.5.1), so they tell no
/// sender from another. An IPv4 address written as IPv6 is the IPv4 address.
fn sender(ip: IpAddr) -> String {
    match ip.to_canonical() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => {
            let network = ip.to_bits() >> 64 << 64;
            format!("{}/64", Ipv6Addr::from_bits(network))
        }
    }
}
