//! The policy as it is written: the document, whose sections each have a file beside this one. Doc comments in these
//! become the descriptions in the JSON Schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};

use super::network::networks;
use super::syntax::Location;
use super::{Client, FlagFile, Issuer, Listener, Plan, Reference, Route, State, Tenant, Upstream};
use crate::FilterSet;
use crate::calendar::Calendar;

/// A value and the place in the file where it is written.
#[derive(Clone, Debug)]
pub struct At<T> {
    pub value: T,
    pub(super) location: Location,
}

impl<T> At<T> {
    /// A value that no file holds.
    pub fn nowhere(value: T) -> Self {
        Self { value, location: Location::UNKNOWN }
    }
}

impl<T> At<T> {
    /// Another value of the same place.
    pub(crate) fn with<U>(&self, value: U) -> At<U> {
        At { value, location: self.location }
    }

    /// The line of the file on which the value begins, from 1; 0 when no file holds it.
    pub fn line(&self) -> u64 {
        self.location.line
    }
}

/// Wherever it is written.
impl<T: PartialEq> PartialEq for At<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl<T: Eq> Eq for At<T> {}

impl<T: Serialize> Serialize for At<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

impl<T: JsonSchema> JsonSchema for At<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// The edge's whole policy: who may call what, how often, signed how, and where it goes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Where clients connect.
    pub listeners: Vec<At<Listener>>,
    /// Where operators look: health, readiness, metrics.
    pub admin: Admin,
    /// Services that requests are passed on to, by name.
    pub upstreams: BTreeMap<String, At<Upstream>>,
    /// Token issuers, by name.
    #[serde(default)]
    pub issuers: BTreeMap<String, At<Issuer>>,
    /// Partners and services that sign with keys of their own, by name.
    #[serde(default)]
    pub clients: BTreeMap<String, Client>,
    /// Whose requests are served, by the name that tokens, clients and hosts tell.
    #[serde(default)]
    pub tenants: BTreeMap<String, At<Tenant>>,
    /// What tenants may have, by name.
    #[serde(default)]
    pub plans: BTreeMap<String, At<Plan>>,
    /// The plan of tenants that name none, and of tenants that are not in `tenants` but that a token or a client tells;
    /// absent: those are refused.
    pub default_plan: Option<At<String>>,
    /// Where days and months begin, of quotas and of usage; absent: `+05:30`, India's. It never changes, for summer say.
    #[serde(default)]
    pub utc_offset: Calendar,
    /// Proxies in front of the edge whose `X-Forwarded-For` is believed, in CIDR notation or as one address. Its entries may
    /// have ports. All filters, the log and the upstream get the address that it tells.
    #[serde(default, deserialize_with = "networks")]
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<IpNet>,
    /// What must be remembered between requests: nonces, limits.
    #[serde(default)]
    pub state: State,
    /// Feature flags, for `feature`, for limits, and for routes that share their requests by one.
    pub flags: Option<At<FlagFile>>,
    /// Filters of every route.
    #[serde(default)]
    pub filters: At<FilterSet>,
    /// What may be called.
    pub routes: Vec<At<Route>>,
}

impl Document {
    /// The filters in effect on a route, but for those of plans.
    pub(crate) fn filters_of(&self, route: &Route) -> FilterSet {
        let except: Vec<&str> = route.except.iter().map(|filter| filter.value.as_str()).collect();
        self.filters.value.inherited(&route.filters.value, &except)
    }

    /// The names of the routes whose requests need a nonce.
    pub fn routes_with_nonces(&self) -> Vec<String> {
        let needs = |route: &&At<Route>| self.filters_of(&route.value).nonce.is_some();
        self.routes.iter().filter(needs).map(|route| route.value.name.clone()).collect()
    }

    /// Where the clients' secrets are: keys, and files of keys.
    pub fn client_secrets(&self) -> impl Iterator<Item = &Reference> {
        self.clients.values().flat_map(|client| {
            let keys = client.hmac_keys.iter().map(|key| &key.secret.value);
            keys.chain(client.hmac_key_file.as_ref().map(|file| &file.value))
        })
    }
}

impl<T: Default> Default for At<T> {
    fn default() -> Self {
        Self::nowhere(T::default())
    }
}

/// Where operators look, in plain HTTP: keep it on loopback or a management network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Admin {
    /// IP address and port.
    #[schemars(with = "String")]
    pub address: SocketAddr,
    /// What who revokes tokens here must send, `Authorization: Bearer SECRET` (`POST /revocations`); at least 32 bytes.
    /// Absent: on loopback anybody may, elsewhere nobody.
    pub revocation_secret: Option<At<Reference>>,
    /// Names by which the address may be reached, beside `localhost` and IP addresses. A page in a browser could have a name
    /// of its own lead here (DNS rebinding), so a request for another name is refused with 421. `/health`, `/readiness` and
    /// `/metrics` answer by every name.
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
}

pub(super) fn ms<const N: u64>() -> u64 {
    N
}

pub(super) fn n<const N: u32>() -> u32 {
    N
}
