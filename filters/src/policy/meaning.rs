//! The policy as it is meant: checked, inherited, ready to decide.

use std::collections::{BTreeMap, HashMap, HashSet};

use ipnet::IpNet;

use super::document::{At, Document, Issuer, Mirror, Route, Share, StateService};
use super::mistake::{Mistake, nearest};
use super::routing::{Match, Paths};
use super::syntax::{self, Location};
use super::warning::warnings;
use super::{Reference, Shared, Upstream};
use crate::FilterSet;
use crate::chain::Chain;
use crate::crypto::VerifyingKey;

/// A policy that can decide.
#[derive(Debug)]
pub struct Policy {
    document: Document,
    rules: Vec<RouteRule>,
    /// The filters of every route, for answers to requests that have none.
    everywhere: Chain,
    paths: Paths,
    warnings: Vec<Mistake>,
}

/// A route and the filters that decide on it.
#[derive(Debug)]
pub struct RouteRule {
    pub name: String,
    /// At least one; the sum of the weights is not 0.
    pub upstreams: Vec<Share>,
    pub mirror: Option<Mirror>,
    /// The path that the upstream gets in place of the client's.
    pub rewrite: Option<String>,
    pub timeout_ms: u64,
    pub chain: Chain,
    /// Filters of every route that this one does without.
    pub except: Vec<String>,
}

/// What a filter may know of the rest of the policy when it is made.
#[derive(Debug)]
pub struct Site<'p> {
    /// The route's name.
    pub route: &'p str,
    pub issuers: &'p BTreeMap<String, At<Issuer>>,
    pub trusted_proxies: &'p [IpNet],
    pub keyring: &'p Keyring,
}

/// Keys that sign requests, by key id.
#[derive(Clone, Debug, Default)]
pub struct Keyring(HashMap<String, ClientKey>);

/// A client's key.
#[derive(Clone, Debug)]
pub struct ClientKey {
    /// The client's name in the policy.
    pub client: String,
    /// The tenant that the client belongs to, if it may only sign for one.
    pub tenant: Option<String>,
    pub key: VerifyingKey,
}

impl RouteRule {
    /// The upstream of one request, by weight. `draw` is random.
    pub fn upstream(&self, draw: u32) -> Option<&str> {
        let sum: u32 = self.upstreams.iter().map(|share| share.weight).sum();
        let mut left = draw.checked_rem(sum)?;
        for share in &self.upstreams {
            match left.checked_sub(share.weight) {
                None => return Some(&share.upstream),
                Some(rest) => left = rest,
            }
        }
        None
    }
}

impl Keyring {
    /// Whether a client of that name has a key.
    pub fn has_client(&self, name: &str) -> bool {
        self.0.values().any(|key| key.client == name)
    }

    /// The key of that id.
    pub fn get(&self, keyid: &str) -> Option<&ClientKey> {
        self.0.get(keyid)
    }
}

impl FromIterator<(String, ClientKey)> for Keyring {
    /// From key ids and keys.
    fn from_iter<I: IntoIterator<Item = (String, ClientKey)>>(keys: I) -> Self {
        Self(keys.into_iter().collect())
    }
}

impl Policy {
    /// Reads a document. `secret` resolves the references to HMAC secrets; it is the only thing asked of the
    /// world. All mistakes are told at once, as far as the document can be read.
    pub fn read(
        text: &str,
        secret: &dyn Fn(&Reference) -> Result<Vec<u8>, String>,
    ) -> Result<Self, Vec<Mistake>> {
        let document = syntax::read(text).map_err(|mistake| vec![mistake])?;
        let mut mistakes = Vec::new();
        check_listeners(&document, &mut mistakes);
        check_upstreams(&document, &mut mistakes);
        check_issuers(&document, &mut mistakes);
        let keyring = keyring(&document, secret, &mut mistakes);
        let rules = rules(&document, &keyring, &mut mistakes);
        let everywhere = everywhere(&document, &keyring, &mut mistakes);
        let paths = Paths::new(&document, &mut mistakes);
        check_state(&document, &mut mistakes);
        if mistakes.is_empty() {
            let warnings = warnings(&document);
            Ok(Self { document, rules, everywhere, paths, warnings })
        } else {
            mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
            Err(mistakes)
        }
    }

    /// A document as a module reads it: JSON, whatever it was written in.
    #[cfg(not(target_family = "wasm"))]
    pub fn compile(text: &str) -> Result<String, Mistake> {
        syntax::compile(text)
    }

    pub fn document(&self) -> &Document {
        &self.document
    }

    /// What the policy may say and its writer should know that it says, in the order of the file: routes that
    /// anybody may call, say, and every filter that a route does without.
    pub fn warnings(&self) -> &[Mistake] {
        &self.warnings
    }

    /// The filters of every route, for the answer to a request that no route serves.
    pub fn everywhere(&self) -> &Chain {
        &self.everywhere
    }

    pub fn rules(&self) -> &[RouteRule] {
        &self.rules
    }

    pub fn upstream(&self, name: &str) -> Option<&Upstream> {
        self.document.upstreams.get(name).map(|upstream| &upstream.value)
    }

    /// Finds the rule for a request. The path must be [unambiguous](crate::shape::unambiguous); the version is
    /// the one that the request [asks for](super::version).
    pub fn route(&self, method: &str, path: &str, version: Option<&str>) -> Match<'_> {
        self.paths.find(method, path, version)
    }
}

fn check_listeners(document: &Document, mistakes: &mut Vec<Mistake>) {
    if document.listeners.is_empty() {
        mistakes.push(Mistake::whole("`listeners` is empty: nobody could connect"));
    }
    let mut names = HashSet::new();
    let mut addresses = HashSet::new();
    for At { value: listener, location } in &document.listeners {
        if !names.insert(&listener.name) {
            mistakes.push(Mistake::at(*location, format!("two listeners are named `{}`", listener.name)));
        }
        if !addresses.insert(listener.address) || listener.address == document.admin.address {
            mistakes.push(Mistake::at(*location, format!("{} is used twice", listener.address)));
        }
    }
}

fn check_upstreams(document: &Document, mistakes: &mut Vec<Mistake>) {
    for (name, At { value: upstream, location }) in &document.upstreams {
        if upstream.addresses.is_empty() {
            mistakes.push(Mistake::at(*location, format!("upstream `{name}` has no address")));
        }
        if upstream.tls.server_name.value.trim().is_empty() {
            mistakes.push(Mistake::at(upstream.tls.server_name.location, NO_SERVER_NAME));
        }
        if let Some(health) = &upstream.health {
            if !health.path.starts_with('/') {
                let message = format!("upstream `{name}`: the `path` of `health` begins with /");
                mistakes.push(Mistake::at(*location, message));
            }
            let numbers = [health.interval_ms, health.timeout_ms];
            let counts = [health.unhealthy_after, health.healthy_after];
            if numbers.contains(&0) || counts.contains(&0) {
                let message = format!("upstream `{name}`: the numbers of `health` are at least 1");
                mistakes.push(Mistake::at(*location, message));
            }
        }
        if upstream.outlier.failures > 0 && upstream.outlier.eject_ms == 0 {
            let message =
                format!("upstream `{name}`: `eject_ms` is at least 1; `failures: 0` never leaves one out");
            mistakes.push(Mistake::at(*location, message));
        }
    }
}

fn check_state(document: &Document, mistakes: &mut Vec<Mistake>) {
    if let Some(redis) = &document.state.redis {
        if redis.value.timeout_ms == 0 || redis.value.connect_timeout_ms == 0 {
            mistakes.push(Mistake::of(redis, "the times of `redis` are at least 1"));
        }
        if redis.value.prefix.len() > 64 || !redis.value.prefix.bytes().all(|byte| byte.is_ascii_graphic()) {
            mistakes.push(Mistake::of(redis, "`prefix` is at most 64 visible characters"));
        }
    }
    let Some(service) = &document.state.service else { return };
    let StateService { address, socket, tls, timeout_ms } = &service.value;
    let mut wrong = |message: &str| mistakes.push(Mistake::of(service, message));
    match (address, socket, tls) {
        (Some(_), Some(_), _) | (None, None, _) => {
            wrong("the state service needs exactly one of `address` and `socket`");
        }
        (None, Some(_), Some(_)) => wrong("the state service's `socket` has no `tls`"),
        (Some(address), None, None) if !address.ip().is_loopback() => {
            wrong("the state service needs `tls` off the host: it hands out nonces, limits and keys");
        }
        (Some(_), None, _) | (None, Some(_), None) => {}
    }
    if *timeout_ms == 0 {
        wrong("the state service's `timeout_ms` is at least 1");
    }
    if let Some(tls) = tls
        && tls.client.server_name.value.trim().is_empty()
    {
        mistakes.push(Mistake::at(tls.client.server_name.location, NO_SERVER_NAME));
    }
}

const NO_SERVER_NAME: &str = "`server_name` is empty: the upstream's certificate could not be verified";

fn check_issuers(document: &Document, mistakes: &mut Vec<Mistake>) {
    for (name, At { value: issuer, location }) in &document.issuers {
        let mut wrong = |message: String| mistakes.push(Mistake::at(*location, message));
        if issuer.audiences.is_empty() {
            wrong(format!(
                "issuer `{name}` needs `audiences`: a token for anybody is a token for an attacker"
            ));
        }
        if issuer.algorithms.is_empty() {
            wrong(format!("issuer `{name}` needs `algorithms`"));
        }
        match (&issuer.jwks.url, &issuer.jwks.file) {
            (Some(url), None) if url.starts_with("https://") => {}
            (Some(_), None) => wrong(format!("issuer `{name}`: `jwks.url` must begin with https://")),
            (None, Some(Reference::File(_))) => {}
            (None, Some(Reference::Env(_))) => {
                wrong(format!("issuer `{name}`: `jwks.file` must be a `file:`"))
            }
            (None, None) | (Some(_), Some(_)) => {
                wrong(format!("issuer `{name}` needs exactly one of `jwks.url` and `jwks.file`"));
            }
        }
        if issuer.jwks.refresh_s == 0 || issuer.jwks.unknown_kid_refresh_s == 0 || issuer.jwks.timeout_ms == 0
        {
            wrong(format!("issuer `{name}`: the times of `jwks` are at least 1"));
        }
    }
}

fn keyring(
    document: &Document,
    secret: &dyn Fn(&Reference) -> Result<Vec<u8>, String>,
    mistakes: &mut Vec<Mistake>,
) -> Keyring {
    let mut keys = HashMap::new();
    for (client, settings) in &document.clients {
        let tenant = settings.tenant.as_ref();
        if let Some(tenant) = tenant.filter(|tenant| tenant.value.trim().is_empty()) {
            let message = format!("client `{client}`: `tenant` is empty: no token could be of that tenant");
            mistakes.push(Mistake::at(tenant.location, message));
        }
        for key in &settings.hmac_keys {
            let reference = &key.secret.value;
            let read = secret(reference)
                .and_then(|written| key.encoding.decode(written))
                .and_then(|bytes| VerifyingKey::hmac(&bytes).map_err(|why| why.to_string()));
            let verifying = match read {
                Ok(verifying) => verifying,
                Err(why) => {
                    mistakes.push(Mistake::at(key.secret.location, format!("{reference}: {why}")));
                    continue;
                }
            };
            let id = key.id.value.clone();
            let tenant = tenant.map(|tenant| tenant.value.clone());
            if keys.insert(id, ClientKey { client: client.clone(), tenant, key: verifying }).is_some() {
                mistakes
                    .push(Mistake::at(key.id.location, format!("key id `{}` is used twice", key.id.value)));
            }
        }
    }
    Keyring(keys)
}

fn rules(document: &Document, keyring: &Keyring, mistakes: &mut Vec<Mistake>) -> Vec<RouteRule> {
    if document.routes.is_empty() {
        mistakes.push(Mistake::whole("`routes` is empty: nothing could be called"));
    }
    let mut names = HashSet::new();
    let mut rules = Vec::new();
    let mut shared: HashMap<(&str, String), (String, &str)> = HashMap::new();
    for At { value: route, location } in &document.routes {
        if !names.insert(&route.name) {
            mistakes.push(Mistake::at(*location, format!("two routes are named `{}`", route.name)));
        }
        let upstreams = shares(document, route, *location, mistakes);
        let mirror = mirror(document, route, mistakes);
        if route.timeout_ms == 0 {
            mistakes
                .push(Mistake::at(*location, format!("route `{}`: `timeout_ms` is at least 1", route.name)));
        }
        if let Some(rewrite) = &route.rewrite
            && !(rewrite.value.starts_with('/') && crate::shape::unambiguous(&rewrite.value))
        {
            let message = format!("`{}` is not a path; `rewrite` is one, without parameters", rewrite.value);
            mistakes.push(Mistake::of(rewrite, message));
        }
        let except = except(document, route, mistakes);
        let filters = document.filters.value.inherited(&route.filters.value, &except);
        let site = Site {
            route: &route.name,
            issuers: &document.issuers,
            trusted_proxies: &document.trusted_proxies,
            keyring,
        };
        // A mistake lies where the filter is named: on the route if it names it, above otherwise.
        let place = |filter| match route.filters.value.has(filter) {
            true => route.filters.location,
            false => document.filters.location,
        };
        for (filter, Shared { name, meaning }) in filters.shared() {
            let (first, elsewhere) =
                shared.entry((filter, name.clone())).or_insert_with(|| (meaning.clone(), &route.name));
            if *first != meaning {
                let message = format!(
                    "route `{}`: {filter}: `{name}` is {meaning} here and {first} on route `{elsewhere}`, and \
                     both would count together; use another name or the same settings",
                    route.name
                );
                mistakes.push(Mistake::at(place(filter), message));
            }
        }
        match filters.build(&site) {
            Ok(filters) => rules.push(RouteRule {
                name: route.name.clone(),
                upstreams,
                mirror,
                rewrite: route.rewrite.as_ref().map(|rewrite| rewrite.value.clone()),
                timeout_ms: route.timeout_ms,
                chain: Chain::new(filters),
                except: except.into_iter().map(str::to_owned).collect(),
            }),
            Err(why) => {
                mistakes.push(Mistake::at(place(why.filter), format!("route `{}`: {why}", route.name)));
            }
        }
    }
    rules
}

/// Who serves a route, and in which shares.
fn shares(document: &Document, route: &Route, location: Location, mistakes: &mut Vec<Mistake>) -> Vec<Share> {
    const MOST_WEIGHT: u32 = 10_000;
    let known = || document.upstreams.keys().map(String::as_str);
    let written: Vec<At<Share>> = match (&route.upstream, route.upstreams.as_slice()) {
        (Some(At { value, location }), []) => {
            vec![At { value: Share { upstream: value.clone(), weight: 1 }, location: *location }]
        }
        (None, shares @ [_, ..]) => shares.to_vec(),
        (None, []) | (Some(_), [_, ..]) => {
            let message = format!("route `{}` needs exactly one of `upstream` and `upstreams`", route.name);
            mistakes.push(Mistake::at(location, message));
            return Vec::new();
        }
    };
    for share in &written {
        if !document.upstreams.contains_key(&share.value.upstream) {
            mistakes.push(Mistake::of(share, unknown("upstream", &share.value.upstream, known())));
        }
        if share.value.weight > MOST_WEIGHT {
            mistakes.push(Mistake::of(share, format!("`weight` is at most {MOST_WEIGHT}")));
        }
    }
    if written.iter().all(|share| share.value.weight == 0) {
        mistakes.push(Mistake::at(location, format!("route `{}`: every weight is 0", route.name)));
    }
    written.into_iter().map(|share| share.value).collect()
}

fn mirror(document: &Document, route: &Route, mistakes: &mut Vec<Mistake>) -> Option<Mirror> {
    let mirror = route.mirror.as_ref()?;
    if !document.upstreams.contains_key(&mirror.value.upstream) {
        let known = document.upstreams.keys().map(String::as_str);
        mistakes.push(Mistake::of(mirror, unknown("upstream", &mirror.value.upstream, known)));
    }
    if !(1..=100).contains(&mirror.value.percent) {
        mistakes.push(Mistake::of(mirror, "`percent` is between 1 and 100"));
    }
    Some(mirror.value.clone())
}

/// The filters of every route, on no route at all.
fn everywhere(document: &Document, keyring: &Keyring, mistakes: &mut Vec<Mistake>) -> Chain {
    let issuers = &document.issuers;
    let site = Site { route: "", issuers, trusted_proxies: &document.trusted_proxies, keyring };
    let built = document.filters.value.clone().build(&site);
    Chain::new(built.unwrap_or_else(|why| {
        mistakes.push(Mistake::at(document.filters.location, format!("every route: {why}")));
        Vec::new()
    }))
}

fn except<'d>(document: &Document, route: &'d Route, mistakes: &mut Vec<Mistake>) -> Vec<&'d str> {
    for At { value: filter, location } in &route.except {
        if !FilterSet::NAMES.contains(&filter.as_str()) {
            let known = FilterSet::NAMES.iter().copied();
            mistakes.push(Mistake::at(*location, unknown("filter", filter, known)));
        } else if !document.filters.value.has(filter) {
            let message = format!("`{filter}` is not a filter of every route, so there is nothing to except");
            mistakes.push(Mistake::at(*location, message));
        }
    }
    route.except.iter().map(|filter| filter.value.as_str()).collect()
}

pub(super) fn unknown<'n>(what: &str, name: &str, known: impl Iterator<Item = &'n str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("there is no {what} `{name}`; did you mean `{near}`?"),
        None => format!("there is no {what} `{name}`; known: {}", known.collect::<Vec<_>>().join(", ")),
    }
}
