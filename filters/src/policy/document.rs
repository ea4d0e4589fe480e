//! The policy as it is written. Doc comments here become the descriptions in the JSON Schema.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, Serializer};

use super::Reference;
use super::secret::Encoding;
use super::syntax::Location;
use super::tenancy::{Plan, Tenant};
use crate::FilterSet;
use crate::calendar::Calendar;
use crate::state::LimitsWhenAway;
use crate::subject::By;
use crate::validity::{Moment, Window};

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
    /// Proxies in front of the edge whose `X-Forwarded-For` is believed, in CIDR notation.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    pub trusted_proxies: Vec<IpNet>,
    /// What must be remembered between requests: nonces, limits.
    #[serde(default)]
    pub state: State,
    /// Filters of every route.
    #[serde(default)]
    pub filters: At<FilterSet>,
    /// What may be called.
    pub routes: Vec<At<Route>>,
}

impl Document {
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

/// An address where clients connect, over TLS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// Its name in logs and metrics.
    pub name: String,
    /// IP address and port.
    #[schemars(with = "String")]
    pub address: SocketAddr,
    pub tls: ListenerTls,
    /// Most connections at once; more wait in the kernel's queue.
    #[serde(default = "n::<10_000>")]
    pub max_connections: u32,
    /// How long a TLS handshake may take, milliseconds.
    #[serde(default = "ms::<5_000>")]
    pub handshake_timeout_ms: u64,
    /// How long a client may take from its handshake to the end of its first request's header, and for each
    /// request's body, milliseconds.
    #[serde(default = "ms::<10_000>")]
    pub request_timeout_ms: u64,
    /// How long a connection is kept without another whole request, milliseconds.
    #[serde(default = "ms::<60_000>")]
    pub idle_timeout_ms: u64,
    /// Requests on one connection, after which it is closed so that load spreads again.
    #[serde(default = "n::<10_000>")]
    pub max_requests_per_connection: u32,
}

/// A listener's certificate and what it asks of clients. TLS 1.2 and 1.3 are spoken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListenerTls {
    /// The chain, leaf first, PEM.
    pub certificate: At<Reference>,
    /// The leaf's private key, PEM.
    pub key: At<Reference>,
    /// Other certificates for clients that ask for certain names (SNI); whoever asks for none of them gets the one
    /// above.
    #[serde(default)]
    pub certificates: Vec<NamedCertificate>,
    /// CAs that must have issued all of these, PEM; absent: any.
    pub ca: Option<At<Reference>>,
    /// Client certificates; absent: none is asked for.
    pub client_certificates: Option<ClientCertificates>,
}

/// A certificate for certain names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NamedCertificate {
    /// The chain, leaf first, PEM.
    pub certificate: At<Reference>,
    /// The leaf's private key, PEM.
    pub key: At<Reference>,
    /// The names, perhaps `*.` and a domain; each must be on the certificate, and stay there when it is renewed.
    /// Absent: its DNS names.
    #[serde(default)]
    pub server_names: Vec<String>,
}

/// Which client certificates are believed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClientCertificates {
    /// The CAs that sign them, PEM.
    pub ca: At<Reference>,
    /// What those CAs have revoked: a list of each, PEM, or the one list in DER; absent: nothing. All of a client's
    /// chain is checked. A client that a new list revokes loses its open connections too.
    pub crl: Option<At<Reference>>,
    /// What becomes of clients while a list is past its `nextUpdate`.
    #[serde(default)]
    pub stale_crl: StaleCrl,
    /// Whether a client without one is turned away in the handshake.
    #[serde(default)]
    pub required: bool,
}

/// What becomes of certificates while the list that would revoke them is past its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StaleCrl {
    /// They are refused.
    #[default]
    Refuse,
    /// The old list is believed for longer; logs and metrics tell.
    Allow,
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
}

/// A service behind the edge.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// IP addresses and ports, used in turn.
    #[schemars(with = "Vec<String>")]
    pub addresses: Vec<SocketAddr>,
    pub tls: UpstreamTls,
    /// Milliseconds until a connection must stand, TLS included.
    #[serde(default = "ms::<1_000>")]
    pub connect_timeout_ms: u64,
    /// Milliseconds an idle connection is kept for reuse. Less than the upstream keeps it: a request that
    /// meets a closing connection cannot be repeated when it moves money.
    #[serde(default = "ms::<10_000>")]
    pub idle_timeout_ms: u64,
    /// Most requests in flight; more are refused at once with 503.
    #[serde(default = "n::<1_024>")]
    pub max_in_flight: u32,
    /// Most repeats under way at once, in percent of the requests in flight there, 3 at least: so that repeats do not
    /// bury an upstream that fails. 0 to 100.
    #[serde(default = "n::<20>")]
    pub retry_budget_percent: u32,
    /// Probes that find an address that does not serve before a request does; absent: none.
    pub health: Option<Health>,
    /// When an address that fails requests is left out for a while.
    #[serde(default)]
    pub outlier: Outlier,
}

/// Active health checks: `GET path` must be answered with 200.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Health {
    /// The path to ask for.
    pub path: String,
    /// Milliseconds between two probes of an address.
    #[serde(default = "ms::<5_000>")]
    pub interval_ms: u64,
    /// Milliseconds a probe may take.
    #[serde(default = "ms::<1_000>")]
    pub timeout_ms: u64,
    /// Failures in a row after which an address gets no more requests.
    #[serde(default = "n::<3>")]
    pub unhealthy_after: u32,
    /// Successes in a row after which it gets them again.
    #[serde(default = "n::<2>")]
    pub healthy_after: u32,
}

/// The circuit breaker of each address. Only what the edge sees itself counts: connections refused, broken or
/// without an answer in time. When every address is left out, requests are refused with 503.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Outlier {
    /// Failures in a row after which an address is left out; 0: never.
    pub failures: u32,
    /// Milliseconds that it is left out.
    pub eject_ms: u64,
}

impl Default for Outlier {
    fn default() -> Self {
        Self { failures: 3, eject_ms: 10_000 }
    }
}

/// Mutual TLS to an upstream. There is no way to switch verification off.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UpstreamTls {
    /// The name that the upstream's certificate must carry.
    pub server_name: At<String>,
    /// The CAs that sign it, PEM.
    pub ca: At<Reference>,
    /// What those CAs have revoked: a list of each, PEM, or the one list in DER; absent: nothing. A certificate that is
    /// on a list gets no request. For requests the gateway looks at the upstream's own certificate, for probes and
    /// copies at its chain too; Envoy always at the chain, of which every CA must then have its list.
    pub crl: Option<At<Reference>>,
    /// What becomes of the upstream while a list is past its `nextUpdate`. Envoy refuses it always, so `allow` is not
    /// for Envoy.
    #[serde(default)]
    pub stale_crl: StaleCrl,
    /// The edge's own chain, PEM.
    pub certificate: At<Reference>,
    /// The edge's own key, PEM.
    pub key: At<Reference>,
}

/// Somebody whose tokens are believed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// `iss`, compared to the letter.
    pub issuer: String,
    /// `aud` must contain one of these.
    pub audiences: Vec<String>,
    /// Algorithms its keys are used with. Symmetric ones and `none` cannot be named.
    #[serde(default)]
    pub algorithms: Vec<Algorithm>,
    /// Where its public keys come from, for tokens that are JWTs.
    pub jwks: Option<Jwks>,
    /// Whom to ask about tokens that are none.
    pub introspection: Option<At<Introspection>>,
    /// Seconds that its clock and ours may differ by.
    #[serde(default = "ms::<30>")]
    pub leeway_s: u64,
}

/// Signature algorithms of tokens (RFC 7518, RFC 8037): asymmetric ones only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    ES256,
    RS256,
    EdDSA,
}

/// A JSON Web Key Set (RFC 7517) and how fresh it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jwks {
    /// An `https:` address. Exactly one of `url`, `file` and `discovery`.
    pub url: Option<String>,
    /// The issuer's own metadata say where: `issuer` is then its `https:` address, and must be in them to the letter.
    pub discovery: Option<Discovery>,
    /// `file:PATH`, read again when it changes.
    pub file: Option<Reference>,
    /// The CAs that sign the certificate of `url`, PEM; absent: the system's.
    pub ca: Option<Reference>,
    /// What those CAs have revoked, of the whole chain: a list of each, PEM, or the one list in DER; absent: nothing.
    pub crl: Option<Reference>,
    /// What becomes of the issuer while a list is past its `nextUpdate`: `refuse`, and its keys grow stale.
    #[serde(default)]
    pub stale_crl: StaleCrl,
    /// Seconds between refreshes.
    #[serde(default = "ms::<300>")]
    pub refresh_s: u64,
    /// Seconds that the last good keys serve while refreshes fail.
    #[serde(default = "ms::<86_400>")]
    pub stale_s: u64,
    /// Least seconds between two refreshes that unknown key ids cause.
    #[serde(default = "ms::<10>")]
    pub unknown_kid_refresh_s: u64,
    /// Milliseconds a fetch may take.
    #[serde(default = "ms::<3_000>")]
    pub timeout_ms: u64,
}

/// Token introspection (RFC 7662): the issuer says of each token whether it counts and what it claims. Its answer must
/// have what a JWT must: `sub`, `exp`, and one of the audiences in `aud`. While it cannot be asked its tokens are refused
/// with 503.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Introspection {
    /// An `https:` address.
    pub url: String,
    /// The CAs that sign the certificate of `url`, PEM.
    pub ca: At<Reference>,
    /// What those CAs have revoked, of the whole chain: a list of each, PEM, or the one list in DER; absent: nothing.
    pub crl: Option<At<Reference>>,
    /// What becomes of the issuer while a list is past its `nextUpdate`.
    #[serde(default)]
    pub stale_crl: StaleCrl,
    /// What the edge is called there.
    pub client_id: String,
    /// Where the edge's secret is, sent with `client_id` (`client_secret_basic`, RFC 6749 section 2.3.1). Exactly one of
    /// `client_secret` and `certificate`.
    pub client_secret: Option<At<Reference>>,
    /// The chain that the edge shows instead, PEM (`tls_client_auth`, RFC 8705 section 2.1).
    pub certificate: Option<At<Reference>>,
    /// Its key, PEM.
    pub key: Option<At<Reference>>,
    /// Milliseconds that an answer may take.
    #[serde(default = "ms::<1_000>")]
    pub timeout_ms: u64,
    /// Seconds that a token counts without being asked about again, at most until it expires; 1 to 300. So long a token
    /// that its issuer has revoked may still pass, unless it is revoked here too.
    #[serde(default = "ms::<30>")]
    pub cache_s: u64,
    /// Seconds that a token that does not count is not asked about again; 1 to 60.
    #[serde(default = "ms::<5>")]
    pub negative_cache_s: u64,
    /// Answers to remember; 1 to 1000000.
    #[serde(default = "n::<10_000>")]
    pub cache_entries: u32,
    /// Most questions under way; further tokens are refused with 503 meanwhile.
    #[serde(default = "n::<64>")]
    pub max_in_flight: u32,
}

/// Whose rules say where an issuer's metadata are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Discovery {
    /// OpenID Connect Discovery 1.0 section 4: `ISSUER/.well-known/openid-configuration`.
    Openid,
    /// RFC 8414 section 3: `/.well-known/oauth-authorization-server` between the host and the path.
    Oauth,
}

/// A client with keys or certificates of its own.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Client {
    /// The tenant that it belongs to. A request that it sends with a token of another tenant, or of none, is
    /// refused; absent: it may act for any token.
    pub tenant: Option<At<String>>,
    /// Keys for HMAC-SHA256 message signatures. Several at a time let one take over from another.
    #[serde(default)]
    pub hmac_keys: Vec<HmacKey>,
    /// More of them, in a file that is followed, so that keys come and go without another policy: JSON,
    /// `{"keys": [{"id": "acme-2", "secret": "BASE64", "not_before": "2026-11-01T00:00:00Z"}]}`, of each the `id`, the
    /// `secret`, and perhaps `not_before` and `not_after`. At most 64.
    pub hmac_key_file: Option<At<Reference>>,
    /// The certificates that are its own: one that fits any of these.
    #[serde(default)]
    pub certificates: Vec<At<CertificateNames>>,
    /// API keys that it sends, for the filter `api_key`. Several at a time let one take over from another.
    #[serde(default)]
    pub api_keys: Vec<At<ApiKey>>,
}

/// An API key, as `gateway api-key new` makes it: the policy has its hash alone. Outside its times it counts for nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Its name among people; unique among all clients.
    pub id: String,
    /// The SHA-256 of the key, 64 lower-case hexadecimal digits.
    pub sha256: String,
    /// From when it counts; absent: always.
    pub not_before: Option<Moment>,
    /// Until when it counts; absent: for ever.
    pub not_after: Option<Moment>,
}

impl ApiKey {
    /// When it counts.
    pub fn window(&self) -> Window {
        Window { not_before: self.not_before, not_after: self.not_after }
    }
}

/// What a client's certificate is known by; of several, all must be in it. Names are compared whole: a wildcard fits
/// nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateNames {
    /// A DNS name.
    pub dns: Option<String>,
    /// A URI, to the letter: `spiffe://bank.example/payments` say.
    pub uri: Option<String>,
    /// An email address.
    pub email: Option<String>,
    /// The SHA-256 of its public key (SubjectPublicKeyInfo) in base64, as `certs show` prints it.
    pub spki_sha256: Option<String>,
}

/// A shared secret and the key id that names it. Outside its times the key verifies nothing and signs nothing.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HmacKey {
    /// `keyid` in the signature; unique among all clients.
    pub id: At<String>,
    /// At least 32 bytes.
    pub secret: At<Reference>,
    /// How the secret is written.
    #[serde(default)]
    pub encoding: Encoding,
    /// From when it counts; absent: always.
    pub not_before: Option<Moment>,
    /// Until when it counts; absent: for ever.
    pub not_after: Option<Moment>,
}

impl HmacKey {
    /// When it counts.
    pub fn window(&self) -> Window {
        Window { not_before: self.not_before, not_after: self.not_after }
    }
}

/// Where nonces and limits are kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// In the memory of this process.
    #[serde(default)]
    pub memory: Memory,
    /// In a Redis that every gateway and every state service of the fleet shares; absent: each has its own memory.
    pub redis: Option<At<Redis>>,
    /// Where `gateway state` offers its memory to Envoy's workers; absent: it does not.
    pub service: Option<At<StateService>>,
    /// What becomes of limits while the shared state (Redis, or for Envoy the state service) is away. Nonces are refused then, always.
    #[serde(default)]
    pub limits_when_away: LimitsWhenAway,
}

/// A Redis (7 or later; one primary, not a cluster) that keeps nonces and limits. Its `maxmemory-policy` must be
/// `noeviction`: a nonce that is evicted can be replayed. What was signed before it began to remember is refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Redis {
    /// Where its address is written: `redis://host:port/0` on this host, otherwise
    /// `rediss://user:password@host:port/0`.
    pub url: At<Reference>,
    /// The CAs that sign its certificate, PEM; absent: the system's.
    pub ca: Option<At<Reference>>,
    /// What every key begins with: edges with the same prefix share their state.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// Milliseconds until a connection must stand.
    #[serde(default = "ms::<1_000>")]
    pub connect_timeout_ms: u64,
    /// Milliseconds that one answer may take, after which Redis counts as away.
    #[serde(default = "ms::<50>")]
    pub timeout_ms: u64,
}

fn prefix() -> String {
    "torana:".to_owned()
}

/// The state service: nonces, limits and the issuers' keys for every Envoy worker of this policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateService {
    /// IP address and port. Exactly one of `address` and `socket`.
    #[schemars(with = "Option<String>")]
    pub address: Option<SocketAddr>,
    /// The path of a Unix socket; who may open it is asked nothing else.
    pub socket: Option<String>,
    /// Mutual TLS; may be absent on loopback only. A socket has none.
    pub tls: Option<StateTls>,
    /// Milliseconds that one answer may take, after which the service counts as away.
    #[serde(default = "ms::<100>")]
    pub timeout_ms: u64,
}

impl StateService {
    /// Whether who asks is known, by the socket that it may open or by its certificate.
    pub fn knows_its_clients(&self) -> bool {
        self.socket.is_some() || self.tls.is_some()
    }
}

/// Both ends of the mutual TLS between Envoy and the state service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StateTls {
    /// The service's chain, PEM.
    pub certificate: At<Reference>,
    /// The service's key, PEM.
    pub key: At<Reference>,
    /// The CAs that sign its clients' certificates, PEM.
    pub client_ca: At<Reference>,
    /// The DNS names of which a client's certificate must bear one, compared whole: Envoy's own. Those CAs may know
    /// others, and the service tells every client's secret.
    pub allowed_clients: At<Vec<String>>,
    /// What those CAs have revoked: a list of each, PEM, or the one list in DER; absent: nothing.
    pub crl: Option<At<Reference>>,
    /// What becomes of clients while a list is past its `nextUpdate`.
    #[serde(default)]
    pub stale_crl: StaleCrl,
    /// What Envoy shows and believes when it connects.
    pub client: UpstreamTls,
}

/// Bounds of the in-memory state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Most things remembered at once. When it is full of things that are still needed, requests that need
    /// more are refused with 503: nothing is forgotten early.
    pub max_entries: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self { max_entries: 2_000_000 }
    }
}

/// Something that may be called.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// Its name in logs, metrics and limits.
    pub name: String,
    /// Methods that may be used.
    pub methods: Vec<String>,
    /// `/v1/send` exactly, `/v1/transactions/{id}` with any one segment, or `/v1/files/{*rest}` with the
    /// rest. The most specific route serves.
    pub path: String,
    /// The path that the upstream gets in place of the client's. The query stays as it is.
    pub rewrite: Option<At<String>>,
    /// The version of the API that it serves, as `X-API-Version: 2` or `Accept: application/vnd.NAME.v2+json`
    /// asks for it. A route without one serves requests that ask for none.
    pub version: Option<At<String>>,
    /// The name of the upstream. Exactly one of `upstream` and `upstreams`.
    pub upstream: Option<At<String>>,
    /// Upstreams that share the requests by weight, for a canary say.
    #[serde(default)]
    pub upstreams: Vec<At<Share>>,
    /// Requests of one sender go to the same one of `upstreams`: whose requests those are. A weight that grows draws
    /// senders to its upstream and moves no others. Requests that do not say who sends them go by chance.
    pub sticky: Option<At<By>>,
    /// Makes the sharing an experiment of this name: each of `upstreams` is a `variant`, which the upstream is told in
    /// `X-Torana-Experiment: NAME=VARIANT`, and logs and metrics too. Routes with the same experiment and variants have
    /// each sender see the same one.
    pub experiment: Option<At<String>>,
    /// That this route will go, and when: every answer says so.
    pub deprecated: Option<At<Deprecated>>,
    /// Sends a copy of each request to another upstream, whose answer nobody hears.
    pub mirror: Option<At<Mirror>>,
    /// Lets WebSockets (RFC 6455) through, over HTTP/1.1: the filters decide on the request that asks for one, and what
    /// then passes is between client and upstream. Absent: whoever asks for another protocol is refused.
    pub websocket: Option<At<WebSocket>>,
    /// Milliseconds the upstream may take for the whole answer; of a WebSocket, `websocket` says how long it may be.
    #[serde(default = "ms::<5_000>")]
    pub timeout_ms: u64,
    /// Times that a request is sent again, to the next address, when its connection broke before an answer began; at most
    /// 3, and only where all `methods` are safe (RFC 9110 section 9.2.1): what may have moved money is never repeated.
    /// A request of which nothing was sent is no repeat, and needs none of this.
    #[serde(default)]
    pub retries: u32,
    /// What this route requires on top of what every route does.
    #[serde(default)]
    pub filters: At<FilterSet>,
    /// Filters of every route that this one does without, in so many words.
    #[serde(default)]
    pub except: Vec<At<String>>,
}

/// Bounds of a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WebSocket {
    /// Milliseconds that may pass without a word from the upstream, its answer included. Have it ping more often.
    pub idle_timeout_ms: u64,
    /// Seconds after which it is closed, whatever passes: whoever opened it must show again who he is.
    pub most_s: u64,
}

impl Default for WebSocket {
    fn default() -> Self {
        Self { idle_timeout_ms: 60_000, most_s: 3_600 }
    }
}

/// An upstream's share of a route's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// The name of the upstream.
    pub upstream: String,
    /// Its part of the sum of all weights; 0 to 10000.
    pub weight: u32,
    /// What its requests see, in an `experiment`; two variants may have the same upstream.
    pub variant: Option<String>,
}

impl Share {
    /// What tells it from the others of its route.
    pub(crate) fn key(&self) -> &str {
        self.variant.as_deref().unwrap_or(&self.upstream)
    }
}

/// When a route is no longer to be used, and when it will be gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Deprecated {
    /// Since when it should not be used; may lie ahead. `Deprecation` (RFC 9745) says so.
    pub since: Moment,
    /// From when on it may be gone; not before `since`. `Sunset` (RFC 8594) says so.
    pub sunset: Option<Moment>,
    /// Where people read what to use instead, an `https:` address. `Link` with the relation `deprecation` says so.
    pub link: Option<String>,
}

/// Copies of requests, to see how another version fares. They never delay or fail the original, carry
/// `X-Torana-Mirror: 1`, and must not move money a second time: that is the upstream's to see to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mirror {
    /// The name of the upstream.
    pub upstream: String,
    /// How many of a hundred requests are copied.
    #[serde(default = "n::<100>")]
    pub percent: u32,
}

fn ms<const N: u64>() -> u64 {
    N
}

fn n<const N: u32>() -> u32 {
    N
}
