//! The policy as it is meant: checked, inherited, ready to decide.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::document::{
    At, Client, Deprecated, Document, Introspection, Issuer, Mirror, Route, Share, StateService,
};
use super::keyring::{Keyring, window_warnings};
use super::mistake::{Mistake, nearest};
use super::routing::{Match, Paths};
use super::syntax::{self, Location};
use super::tenancy::{self, Plans, Tenancy};
use super::warning::warnings;
use super::{Reference, Secret, Shared, Upstream, WebSocket};
use crate::FilterSet;
use crate::api_key;
use crate::chain::Chain;
use crate::client_cert::Claim;
use crate::filter::Context;
use crate::sharing;
use crate::subject::{By, name_mistake, subject};

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
    /// Whose requests go to the same upstream.
    pub sticky: Option<By>,
    pub experiment: Option<String>,
    /// Fields of every answer that say that the route will go.
    pub deprecation: Vec<(&'static str, String)>,
    pub mirror: Option<Mirror>,
    /// The path that the upstream gets in place of the client's.
    pub rewrite: Option<String>,
    pub timeout_ms: u64,
    /// Times that a request may be sent again.
    pub retries: u32,
    /// Whether WebSockets pass, and their bounds.
    pub websocket: Option<WebSocket>,
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
    pub tenancy: Tenancy<'p>,
}

impl RouteRule {
    /// The position in [`upstreams`](Self::upstreams) of the one that serves a request of this sender, if who sends it
    /// matters and is known, or else of this draw, which is random.
    pub(crate) fn share(&self, context: &Context, draw: u32) -> Option<usize> {
        let sender = self.sticky.and_then(|by| subject(by, context));
        match sender {
            Some(sender) => {
                let name = self.experiment.as_deref().unwrap_or(&self.name);
                sharing::of_subject(&self.upstreams, name, &sender)
            }
            None => sharing::by_chance(&self.upstreams, draw),
        }
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
        check_api_keys(&document, &mut mistakes);
        let keyring = Arc::new(Keyring::read_as_far_as_possible(&document.clients, secret, &mut mistakes));
        let plans = check_tenancy(&document, &keyring, &mut mistakes);
        let rules = rules(&document, plans, &keyring, &mut mistakes);
        let everywhere = everywhere(&document, plans, &keyring, &mut mistakes);
        let paths = Paths::new(&document, &mut mistakes);
        check_state(&document, &mut mistakes);
        if mistakes.is_empty() {
            // A module has nobody to warn.
            let warnings =
                if cfg!(target_family = "wasm") { Vec::new() } else { warnings(&document, &paths) };
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

    /// For how many seconds each route that takes a signed request once remembers it, by the route's name.
    pub fn nonces_remembered_s(&self) -> BTreeMap<&str, u64> {
        let routes = self.document.routes.iter().map(|route| &route.value);
        let remembered = routes.filter_map(|route| {
            let except: Vec<&str> = route.except.iter().map(|filter| filter.value.as_str()).collect();
            let filters = self.document.filters.value.inherited(&route.filters.value, &except);
            Some((route.name.as_str(), filters.nonce?.remembered_s()))
        });
        remembered.collect()
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
        if upstream.retry_budget_percent > 100 {
            let message = format!("upstream `{name}`: `retry_budget_percent` is at most 100");
            mistakes.push(Mistake::at(*location, message));
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
        if let Some(introspection) = &issuer.introspection {
            check_introspection(name, introspection, mistakes);
        }
        let mut wrong = |message: String| mistakes.push(Mistake::at(*location, message));
        let Some(jwks) = &issuer.jwks else {
            match (&issuer.introspection, issuer.algorithms.is_empty()) {
                (None, _) => wrong(format!("issuer `{name}` needs `jwks` or `introspection`")),
                (Some(_), false) => {
                    wrong(format!("issuer `{name}`: `algorithms` are of `jwks`, which is not there"))
                }
                (Some(_), true) => {}
            }
            continue;
        };
        if issuer.algorithms.is_empty() {
            wrong(format!("issuer `{name}` needs `algorithms`"));
        }
        if jwks.crl.is_some() && jwks.ca.is_none() {
            wrong(format!("issuer `{name}`: `jwks.crl` is of the CAs in `jwks.ca`, which is not there"));
        }
        match (&jwks.url, &jwks.file, jwks.discovery) {
            (Some(url), None, None) if url.starts_with("https://") => {}
            (Some(_), None, None) => wrong(format!("issuer `{name}`: `jwks.url` must begin with https://")),
            (None, Some(Reference::File(_)), None) => {}
            (None, Some(Reference::Env(_)), None) => {
                wrong(format!("issuer `{name}`: `jwks.file` must be a `file:`"))
            }
            (None, None, Some(_)) if is_address(&issuer.issuer) => {}
            (None, None, Some(_)) => wrong(format!(
                "issuer `{name}`: `jwks.discovery` needs an `issuer` that is an https:// address without query and \
                 fragment"
            )),
            (None, None, None) | (Some(_), _, Some(_)) | (_, Some(_), Some(_)) | (Some(_), Some(_), None) => {
                wrong(format!(
                    "issuer `{name}` needs exactly one of `jwks.url`, `jwks.file` and `jwks.discovery`"
                ));
            }
        }
        if jwks.refresh_s == 0 || jwks.unknown_kid_refresh_s == 0 || jwks.timeout_ms == 0 {
            wrong(format!("issuer `{name}`: the times of `jwks` are at least 1"));
        }
    }
}

fn check_introspection(name: &str, written: &At<Introspection>, mistakes: &mut Vec<Mistake>) {
    let mut wrong = |message: &str| {
        mistakes.push(Mistake::of(written, format!("issuer `{name}`: introspection: {message}")))
    };
    let settings = &written.value;
    if !settings.url.starts_with("https://") {
        wrong("`url` must begin with https://");
    }
    if settings.client_id.is_empty() || !settings.client_id.bytes().all(|byte| (b' '..=b'~').contains(&byte))
    {
        wrong("`client_id` is visible ASCII");
    }
    match (&settings.client_secret, &settings.certificate, &settings.key) {
        (Some(_), None, None) | (None, Some(_), Some(_)) => {}
        (Some(_), _, _) | (None, _, _) => {
            wrong("the edge is known there by a `client_secret`, or by a `certificate` and its `key`");
        }
    }
    if settings.timeout_ms == 0 || settings.max_in_flight == 0 {
        wrong("`timeout_ms` and `max_in_flight` are at least 1");
    }
    let bounded = (1..=300).contains(&settings.cache_s)
        && (1..=60).contains(&settings.negative_cache_s)
        && (1..=1_000_000).contains(&settings.cache_entries);
    if !bounded {
        wrong(
            "`cache_s` is between 1 and 300, `negative_cache_s` between 1 and 60, `cache_entries` between 1 and \
             1000000",
        );
    }
}

/// Whether metadata could be found there.
fn is_address(issuer: &str) -> bool {
    let rest = issuer.strip_prefix("https://").unwrap_or_default();
    !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#')
}

/// A client has a key or a certificate, and a certificate is one client's.
fn check_clients(document: &Document, mistakes: &mut Vec<Mistake>) {
    let mut claimed: Vec<(Claim, &str)> = Vec::new();
    for (name, client) in &document.clients {
        let signs = !client.hmac_keys.is_empty() || client.hmac_key_file.is_some();
        if !signs && client.certificates.is_empty() && client.api_keys.is_empty() {
            let message = format!(
                "client `{name}` needs `hmac_keys` or `certificates` or `api_keys`: it could never be known"
            );
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

fn check_api_keys(document: &Document, mistakes: &mut Vec<Mistake>) {
    let clients = document.clients.iter();
    let keys: Vec<_> =
        clients.flat_map(|(name, client)| client.api_keys.iter().map(move |key| (name, key))).collect();
    let written = keys.iter().map(|(name, key)| (name.as_str(), &key.value));
    for (position, why) in api_key::mistakes(written) {
        if let Some((_, key)) = keys.get(position) {
            mistakes.push(Mistake::of(*key, why));
        }
    }
}

fn rules(
    document: &Document,
    plans: &Plans,
    keyring: &Arc<Keyring>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<RouteRule> {
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
        let deprecation =
            route.deprecated.as_ref().map(|told| deprecation(told, mistakes)).unwrap_or_default();
        check_experiment(route, mistakes);
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
        let filters = tenancy::with_plans(filters, plans, &except);
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
            tenancy: Tenancy::of(document, plans, &filters, &except),
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
        check_retries(route, *location, mistakes);
        if let Some(websocket) = &route.websocket {
            check_websocket(websocket, route, &filters, mistakes);
        }
        match filters.build(&site) {
            Ok(filters) => rules.push(RouteRule {
                name: route.name.clone(),
                upstreams,
                sticky: route.sticky.as_ref().map(|by| by.value),
                experiment: route.experiment.as_ref().map(|name| name.value.clone()),
                deprecation,
                mirror,
                rewrite: route.rewrite.as_ref().map(|rewrite| rewrite.value.clone()),
                timeout_ms: route.timeout_ms,
                retries: route.retries,
                websocket: route.websocket.as_ref().map(|websocket| websocket.value),
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
            let only = Share { upstream: value.clone(), weight: 1, variant: None };
            vec![At { value: only, location: *location }]
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

fn check_retries(route: &Route, location: Location, mistakes: &mut Vec<Mistake>) {
    const MOST: u32 = 3;
    let mut wrong =
        |message: String| mistakes.push(Mistake::at(location, format!("route `{}`: {message}", route.name)));
    if route.retries > MOST {
        wrong(format!("`retries` is at most {MOST}"));
    }
    let unsafe_one =
        route.methods.iter().find(|method| !matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS"));
    if let (1.., Some(method)) = (route.retries, unsafe_one) {
        wrong(format!("`retries` would repeat {method}, which may change something twice"));
    }
}

fn check_websocket(
    websocket: &At<WebSocket>,
    route: &Route,
    filters: &FilterSet,
    mistakes: &mut Vec<Mistake>,
) {
    const MOST_S: u64 = 86_400;
    let mut wrong = |message: &str| {
        mistakes.push(Mistake::of(websocket, format!("route `{}`: {message}", route.name)));
    };
    let WebSocket { idle_timeout_ms, most_s } = websocket.value;
    if idle_timeout_ms == 0 || most_s == 0 || most_s > MOST_S {
        wrong("of `websocket`, `idle_timeout_ms` is at least 1, and `most_s` between 1 and 86400");
    }
    if route.methods != ["GET"] {
        wrong("WebSockets are asked for with GET, and `methods` is another: write `methods: [GET]`");
    }
    if route.mirror.is_some() {
        wrong("a WebSocket cannot be copied: drop `mirror` or `websocket`");
    }
    if filters.signing.is_some() {
        wrong("what passes on a WebSocket cannot be signed or verified: drop `signing` or `websocket`");
    }
}

/// Stickiness needs somebody to stick and something to choose from; an experiment needs both, and names for them.
fn check_experiment(route: &Route, mistakes: &mut Vec<Mistake>) {
    if let Some(sticky) = &route.sticky {
        if sticky.value == By::Route {
            mistakes.push(Mistake::of(sticky, "`sticky: route` would send everybody to the same upstream"));
        }
        if route.upstreams.len() < 2 {
            let message =
                format!("route `{}`: `sticky` needs several `upstreams` to choose from", route.name);
            mistakes.push(Mistake::of(sticky, message));
        }
    }
    let mut variants = HashSet::new();
    for share in &route.upstreams {
        match (&route.experiment, &share.value.variant) {
            (None, Some(variant)) => {
                let message =
                    format!("route `{}`: variant `{variant}` is of no `experiment`: name one", route.name);
                mistakes.push(Mistake::of(share, message));
            }
            (Some(_), None) => {
                let message =
                    format!("route `{}`: each upstream of an experiment is a `variant`", route.name);
                mistakes.push(Mistake::of(share, message));
            }
            (Some(_), Some(variant)) if !variants.insert(variant) => {
                mistakes.push(Mistake::of(share, format!("two variants are named `{variant}`")));
            }
            (Some(_), Some(variant)) => {
                if name_mistake(variant).is_some() {
                    let message = format!("variant `{variant}`: {NAME}");
                    mistakes.push(Mistake::of(share, message));
                }
            }
            (None, None) => {}
        }
    }
    if let Some(experiment) = &route.experiment {
        if name_mistake(&experiment.value).is_some() {
            mistakes.push(Mistake::of(experiment, format!("experiment `{}`: {NAME}", experiment.value)));
        }
        if route.sticky.is_none() {
            let message = format!(
                "experiment `{}` needs `sticky`: whose requests see the same variant",
                experiment.value
            );
            mistakes.push(Mistake::of(experiment, message));
        }
    }
}

const NAME: &str = "use lower-case letters, digits, '-' and '_', at most 64";

/// The fields that tell of it.
fn deprecation(told: &At<Deprecated>, mistakes: &mut Vec<Mistake>) -> Vec<(&'static str, String)> {
    let Deprecated { since, sunset, link } = &told.value;
    let mut fields = vec![("deprecation", format!("@{}", since.ms().div_euclid(1_000)))];
    if let Some(sunset) = sunset {
        if sunset < since {
            mistakes.push(Mistake::of(
                told,
                "`sunset` comes before `since`: a route goes after it is deprecated",
            ));
        }
        fields.push(("sunset", sunset.http_date()));
    }
    if let Some(link) = link {
        let plain = |byte: u8| (b'!'..=b'~').contains(&byte) && !b"<>\"".contains(&byte);
        if !link.starts_with("https://") || !link.bytes().all(plain) {
            mistakes.push(Mistake::of(told, format!("`{link}` is not an `https:` address")));
        }
        fields.push(("link", format!("<{link}>; rel=\"deprecation\"; type=\"text/html\"")));
    }
    fields
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

/// Tenants and plans, seen from no route at all.
fn check_tenancy<'d>(
    document: &'d Document,
    keyring: &Arc<Keyring>,
    mistakes: &mut Vec<Mistake>,
) -> &'d Plans {
    let Document { issuers, clients, trusted_proxies, .. } = document;
    let tenancy = Tenancy::of(document, &document.plans, &FilterSet::default(), &[]);
    let site = Site { route: "", issuers, trusted_proxies, clients, keyring, tenancy };
    tenancy::check(document, &site, mistakes)
}

/// The filters of every route, on no route at all.
fn everywhere(
    document: &Document,
    plans: &Plans,
    keyring: &Arc<Keyring>,
    mistakes: &mut Vec<Mistake>,
) -> Chain {
    let Document { issuers, clients, trusted_proxies, .. } = document;
    let filters = tenancy::with_plans(document.filters.value.clone(), plans, &[]);
    let tenancy = Tenancy::of(document, plans, &filters, &[]);
    let site = Site { route: "", issuers, trusted_proxies, clients, keyring, tenancy };
    let built = filters.build(&site);
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
