//! The policy as it is meant: checked, inherited, ready to decide.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::document::{At, Client, Document, Issuer, Mirror, Route, Share, StateService};
use super::keyring::{Keyring, window_warnings};
use super::mistake::{Mistake, nearest};
use super::routing::{Match, Paths};
use super::syntax::{self, Location};
use super::warning::warnings;
use super::{Reference, Secret, Shared, Upstream};
use crate::FilterSet;
use crate::chain::Chain;
use crate::client_cert::Claim;

/// A policy that can decide.
#[derive(Debug)]
pub struct Policy {
    document: Document,
    rules: Vec<RouteRule>,
    /// The filters of every route, for answers to requests that have none.
    everywhere: Chain,
    paths: Paths,
    /// The clients' keys as they were when the policy was read.
    keyring: Arc<Keyring>,
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
    pub clients: &'p BTreeMap<String, Client>,
    /// The clients' keys when the policy was read. Requests are decided with those of [`Host::keyring`].
    ///
    /// [`Host::keyring`]: crate::filter::Host::keyring
    pub keyring: &'p Arc<Keyring>,
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

impl Policy {
    /// Reads a document. `secret` resolves the references to HMAC secrets; it is the only thing asked of the
    /// world. All mistakes are told at once, as far as the document can be read.
    pub fn read(
        text: &str,
        secret: &dyn Fn(&Reference) -> Result<Secret, String>,
    ) -> Result<Self, Vec<Mistake>> {
        let document = syntax::read(text).map_err(|mistake| vec![mistake])?;
        let mut mistakes = Vec::new();
        check_listeners(&document, &mut mistakes);
        check_upstreams(&document, &mut mistakes);
        check_issuers(&document, &mut mistakes);
        check_clients(&document, &mut mistakes);
        let keyring = Arc::new(Keyring::read_as_far_as_possible(&document.clients, secret, &mut mistakes));
        let rules = rules(&document, &keyring, &mut mistakes);
        let everywhere = everywhere(&document, &keyring, &mut mistakes);
        let paths = Paths::new(&document, &mut mistakes);
        check_state(&document, &mut mistakes);
        if mistakes.is_empty() {
            let warnings = warnings(&document, &paths);
            Ok(Self { document, rules, everywhere, paths, keyring, warnings })
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

    /// What is worth a second look in the times of the clients' keys, now.
    pub fn window_warnings(&self, now_ms: u64) -> Vec<Mistake> {
        let clients = self.document.clients.iter();
        clients.flat_map(|(name, client)| window_warnings(name, client, &self.keyring, now_ms)).collect()
    }

    /// The clients' keys as they were when the policy was read.
    pub fn keyring(&self) -> &Arc<Keyring> {
        &self.keyring
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
    if let Some(tls) = tls {
        let names = &tls.allowed_clients;
        if names.value.is_empty()
            || names.value.iter().any(|name| name.trim().is_empty() || name.contains('*'))
        {
            let message =
                "`allowed_clients` are whole DNS names, one at least: of the certificate in `client`, say";
            mistakes.push(Mistake::of(names, message));
        }
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
        if issuer.jwks.crl.is_some() && issuer.jwks.ca.is_none() {
            wrong(format!("issuer `{name}`: `jwks.crl` is of the CAs in `jwks.ca`, which is not there"));
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

/// A client has a key or a certificate, and a certificate is one client's.
fn check_clients(document: &Document, mistakes: &mut Vec<Mistake>) {
    let mut claimed: Vec<(Claim, &str)> = Vec::new();
    for (name, client) in &document.clients {
        if client.hmac_keys.is_empty() && client.hmac_key_file.is_none() && client.certificates.is_empty() {
            let message =
                format!("client `{name}` needs `hmac_keys` or `certificates`: it could never be known");
            mistakes.push(Mistake::whole(message));
        }
        for names in &client.certificates {
            match Claim::new(&names.value) {
                Err(why) => mistakes.push(Mistake::of(names, format!("client `{name}`: {why}"))),
                Ok(claim) => match claimed.iter().find(|(other, _)| *other == claim) {
                    Some((_, other)) => {
                        let message =
                            format!("clients `{other}` and `{name}` would have the same certificate");
                        mistakes.push(Mistake::of(names, message));
                    }
                    None => claimed.push((claim, name)),
                },
            }
        }
    }
}

fn rules(document: &Document, keyring: &Arc<Keyring>, mistakes: &mut Vec<Mistake>) -> Vec<RouteRule> {
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
        if let (Some(mirror), Some(true)) =
            (&route.mirror, filters.signing.as_ref().map(|signing| signing.to_upstream.is_some()))
        {
            let message = format!(
                "route `{}`: `mirror` would hand somebody else requests that are signed as ours",
                route.name
            );
            mistakes.push(Mistake::of(mirror, message));
        }
        let site = Site {
            route: &route.name,
            issuers: &document.issuers,
            trusted_proxies: &document.trusted_proxies,
            clients: &document.clients,
            keyring,
        };
        // A mistake lies where the filter is named: on the route if it names it, above otherwise.
        let place = |filter| match route.filters.value.has(filter) {
            true => route.filters.location,
            false => document.filters.location,
        };
        if let Some(filter) = filters.needs_certificate()
            && document.listeners.iter().all(|listener| listener.value.tls.client_certificates.is_none())
        {
            let message = format!(
                "route `{}`: {filter}: a client certificate is required, and no listener asks for one: write \
                 `client_certificates` under its `tls`",
                route.name
            );
            mistakes.push(Mistake::at(place(filter), message));
        }
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
fn everywhere(document: &Document, keyring: &Arc<Keyring>, mistakes: &mut Vec<Mistake>) -> Chain {
    let Document { issuers, clients, trusted_proxies, .. } = document;
    let site = Site { route: "", issuers, trusted_proxies, clients, keyring };
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
