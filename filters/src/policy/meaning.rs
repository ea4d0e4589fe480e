//! The policy as it is meant: checked, inherited, ready to decide.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::document::{At, Document};
use super::key_times::window_warnings;
use super::keyring::Keyring;
use super::mistake::{Mistake, unknown};
use super::preflight::{Preflight, Preflights};
use super::routing::{Match, Paths};
use super::syntax;
#[cfg(not(target_family = "wasm"))]
use super::syntax::{Reading, Unreadable};
use super::tenancy::{self, Plans, Tenancy};
use super::warning::warnings;
use super::{
    Client, FlagFile, Issuer, Mirror, Reference, Route, Secret, Share, Shared, Upstream, WebSocket, bounds,
    clients, envoy, flag_file, issuers, listeners, names, nobody, path, routes, shared_state, streaming,
    upstreams,
};
use crate::FilterSet;
use crate::chain::Chain;
use crate::compression;
use crate::filter::Context;
use crate::flags::FlagUse;
use crate::nonce;
use crate::shape;
use crate::sharing;
use crate::subject::{By, subject};
use crate::websocket;

/// A policy that can decide.
#[derive(Debug)]
pub struct Policy {
    document: Document,
    rules: Vec<RouteRule>,
    /// The filters of every route, for answers to requests that have none.
    everywhere: Chain,
    paths: Paths,
    preflights: Preflights,
    /// The clients' keys as they were when the policy was read.
    keyring: Arc<Keyring>,
    flag_file: Option<Arc<FlagFile>>,
    /// What it counts on.
    flag_uses: Vec<FlagUse>,
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
    /// The feature flag whose variant says who serves.
    pub flag: Option<String>,
    /// Fields of every answer that say that the route will go.
    pub deprecation: Vec<(&'static str, String)>,
    pub mirror: Option<Mirror>,
    /// The path that the upstream gets in place of the client's.
    pub rewrite: Option<String>,
    /// Milliseconds that each of `upstreams` may take for the whole answer, in their order; 0: any time.
    pub timeouts_ms: Vec<u64>,
    /// Times that a request may be sent again.
    pub retries: u32,
    /// Whether WebSockets pass, and their bounds.
    pub websocket: Option<WebSocket>,
    /// The limit, bytes, of bodies that are forwarded as they arrive; `None`: the whole body is decided on first.
    pub streams: Option<usize>,
    /// Milliseconds without a byte in either direction after which a request ends.
    pub idle_timeout_ms: Option<u64>,
    /// Which answers are compressed, if any.
    pub compression: Option<compression::Config>,
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
    pub clients: &'p BTreeMap<String, Client>,
    /// The clients' keys when the policy was read. Requests are decided with those of [`Host::keyring`].
    ///
    /// [`Host::keyring`]: crate::filter::Host::keyring
    pub keyring: &'p Arc<Keyring>,
    pub tenancy: Tenancy<'p>,
    /// For how long nonces are remembered.
    pub nonces: nonce::Kept,
}

/// For how long a policy remembers nonces.
pub(super) fn nonces(document: &Document) -> nonce::Kept {
    nonce::Kept::of(document.routes.iter().filter_map(|route| document.filters_of(&route.value).nonce))
}

impl RouteRule {
    /// The position in [`upstreams`](Self::upstreams) of the one that serves a request of this sender, if who sends it
    /// matters and is known, or else of this draw, which is random. Where a flag decides and says none of them, the first
    /// serves.
    pub(crate) fn share(&self, context: &Context, draw: u32) -> Option<usize> {
        if let Some(flag) = &self.flag {
            let said = context.flags.variant(flag);
            let chosen = |share: &Share| said.is_some() && share.variant.as_deref() == said;
            return Some(self.upstreams.iter().position(chosen).unwrap_or(0));
        }
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
        Self::read_with(text, secret, &|_| Vec::new())
    }

    /// As [`read`](Self::read). If the policy has mistakes, those that `further` finds in the document are told with
    /// them.
    #[cfg(not(target_family = "wasm"))]
    pub fn read_with(
        text: &str,
        secret: &dyn Fn(&Reference) -> Result<Secret, String>,
        further: &dyn Fn(&Document) -> Vec<Mistake>,
    ) -> Result<Self, Vec<Mistake>> {
        let text = syntax::without_mark(text);
        let Unreadable { mut mistakes, readings } = match syntax::read(text) {
            Ok(document) => {
                return Self::of(document, secret).map_err(|wrong| {
                    let (document, mut mistakes) = *wrong;
                    for mistake in further(&document) {
                        if !mistakes.contains(&mistake) {
                            mistakes.push(mistake);
                        }
                    }
                    mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
                    mistakes
                });
            }
            Err(unreadable) => unreadable,
        };
        // Of what the rest means, what both readings say and what has a place: the whole lacks what was not read.
        let meant = readings.into_iter().map(|Reading { document, draft }| {
            let (document, mut found) = match Self::of(document, secret) {
                Ok(policy) => (policy.document, Vec::new()),
                Err(wrong) => *wrong,
            };
            found.extend(further(&document));
            let settled = found.into_iter().filter_map(|mistake| draft.settled(text, mistake));
            settled.filter(|mistake| mistake.line > 0).collect::<Vec<_>>()
        });
        let in_both = meant
            .reduce(|first, second| first.into_iter().filter(|mistake| second.contains(mistake)).collect());
        for mistake in in_both.unwrap_or_default() {
            if !mistakes.contains(&mistake) {
                mistakes.push(mistake);
            }
        }
        mistakes.sort_by_key(|mistake| (mistake.line, mistake.column));
        Err(mistakes)
    }

    #[cfg(target_family = "wasm")]
    fn read_with(
        text: &str,
        secret: &dyn Fn(&Reference) -> Result<Secret, String>,
        _: &dyn Fn(&Document) -> Vec<Mistake>,
    ) -> Result<Self, Vec<Mistake>> {
        Self::of(syntax::read(text)?, secret).map_err(|wrong| wrong.1)
    }

    /// What a document means, or the document and its mistakes.
    fn of(
        document: Document,
        secret: &dyn Fn(&Reference) -> Result<Secret, String>,
    ) -> Result<Self, Box<(Document, Vec<Mistake>)>> {
        let mut mistakes = Vec::new();
        // A module gets what was checked.
        if !cfg!(target_family = "wasm") {
            bounds::check(&document, &mut mistakes);
            names::check(&document, &mut mistakes);
        }
        listeners::check(&document, &mut mistakes);
        // A module gets what was checked.
        #[cfg(not(target_family = "wasm"))]
        super::files::check(&document, &mut mistakes);
        upstreams::check(&document, &mut mistakes);
        issuers::check(&document, &mut mistakes);
        clients::check(&document, &mut mistakes);
        shared_state::check(&document, &mut mistakes);
        flag_file::check(&document, &mut mistakes);
        let keyring = Arc::new(Keyring::read_as_far_as_possible(&document.clients, secret, &mut mistakes));
        let plans = check_tenancy(&document, &keyring, &mut mistakes);
        let mut flag_uses = flag_file::of_plans(&document);
        let rules = rules(&document, plans, &keyring, &mut flag_uses, &mut mistakes);
        flag_file::check_uses(&document, &flag_uses, &mut mistakes);
        let everywhere = everywhere(&document, plans, &keyring, &mut mistakes);
        let paths = path::paths(&document, &mut mistakes);
        let preflights = preflights(&document, plans, &keyring);
        if mistakes.is_empty() {
            // A module has nobody to warn.
            let warnings =
                if cfg!(target_family = "wasm") { Vec::new() } else { warnings(&document, &paths) };
            let flag_file = document.flags.as_ref().map(|source| Arc::new(source.value.clone()));
            Ok(Self {
                document,
                rules,
                everywhere,
                paths,
                preflights,
                keyring,
                flag_file,
                flag_uses,
                warnings,
            })
        } else {
            Err(Box::new((document, mistakes)))
        }
    }

    /// The document as a module reads it, JSON: what it means, not how it is written. In YAML `version: 2` is a text where
    /// a text belongs; in JSON it would be a number.
    pub fn compiled(&self) -> serde_json::Result<String> {
        let mut document = serde_json::to_value(&self.document)?;
        without_nulls(&mut document);
        Ok(document.to_string())
    }

    pub fn document(&self) -> &Document {
        &self.document
    }

    /// Where feature flags come from.
    pub(crate) fn flag_file(&self) -> Option<&Arc<FlagFile>> {
        self.flag_file.as_ref()
    }

    /// The feature flags that the policy counts on.
    pub fn flag_uses(&self) -> &[FlagUse] {
        &self.flag_uses
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

    /// What Envoy cannot do of it, in the order of the file.
    pub fn beyond_envoy(&self) -> Vec<Mistake> {
        envoy::beyond(&self.document)
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

    /// Finds the rule for a request. The path is [decoded](crate::shape::decode); the version is
    /// the one that the request [asks for](super::version).
    pub fn route(&self, method: &str, path: &str, version: Option<&str>) -> Match<'_> {
        self.paths.find(method, path, version)
    }

    /// Who decides on a preflight that names no version, for a request of this method.
    pub(crate) fn preflight(&self, method: &str, path: &str) -> Option<Preflight<'_>> {
        self.preflights.of(&self.paths.rules_of(method, path))
    }
}

fn rules(
    document: &Document,
    plans: &Plans,
    keyring: &Arc<Keyring>,
    flag_uses: &mut Vec<FlagUse>,
    mistakes: &mut Vec<Mistake>,
) -> Vec<RouteRule> {
    if document.routes.is_empty() {
        mistakes.push(Mistake::whole("`routes` is empty: nothing could be called"));
    }
    let nonces = nonces(document);
    let mut names = HashSet::new();
    let mut rules = Vec::new();
    let mut shared: HashMap<(&str, String), (String, &str)> = HashMap::new();
    for at in &document.routes {
        let At { value: route, location } = at;
        if !names.insert(&route.name) {
            mistakes.push(Mistake::at(*location, format!("two routes are named `{}`", route.name)));
        }
        let upstreams = routes::shares(document, route, *location, mistakes);
        let deprecation =
            route.deprecated.as_ref().map(|told| routes::deprecation(told, mistakes)).unwrap_or_default();
        let except = except(document, route, mistakes);
        let filters = document.filters.value.inherited(&route.filters.value, &except);
        let filters = tenancy::with_plans(filters, plans, &except);
        routes::check(document, route, *location, &filters, mistakes);
        if !cfg!(target_family = "wasm") {
            streaming::check(route, *location, &filters, mistakes);
            nobody::check(document, at, &filters, mistakes);
        }
        flag_uses.extend(flag_file::of_route(document, at, &filters));
        let site = Site {
            route: &route.name,
            issuers: &document.issuers,
            clients: &document.clients,
            keyring,
            tenancy: Tenancy::of(document, plans, &filters, &except),
            nonces,
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
        let compression = filters.compression.clone();
        let streams = filters.shape.as_ref().and_then(shape::Config::streams);
        match filters.build(&site) {
            Ok(mut filters) => {
                let websocket = route.websocket.as_ref().map(|websocket| websocket.value);
                if let Some(bounds) = websocket {
                    filters.push(Box::new(websocket::Limits::new(&route.name, bounds)));
                }
                rules.push(RouteRule {
                    name: route.name.clone(),
                    timeouts_ms: route
                        .upstreams_of(document)
                        .map(|(_, at)| route.timeout_ms(&at.value))
                        .collect(),
                    upstreams,
                    sticky: route.sticky.as_ref().map(|by| by.value),
                    experiment: route.experiment.as_ref().map(|name| name.value.clone()),
                    flag: route.flag.as_ref().map(|flag| flag.value.clone()),
                    deprecation,
                    mirror: route.mirror.as_ref().map(|mirror| mirror.value.clone()),
                    rewrite: route.rewrite.as_ref().map(|rewrite| rewrite.value.clone()),
                    retries: route.retries,
                    websocket,
                    streams,
                    idle_timeout_ms: route.idle_timeout_ms,
                    compression,
                    chain: Chain::new(filters),
                    except: except.into_iter().map(str::to_owned).collect(),
                });
            }
            Err(why) => {
                mistakes.push(Mistake::at(place(why.filter), format!("route `{}`: {why}", route.name)));
            }
        }
    }
    rules
}

/// Tenants and plans, seen from no route at all.
fn check_tenancy<'d>(
    document: &'d Document,
    keyring: &Arc<Keyring>,
    mistakes: &mut Vec<Mistake>,
) -> &'d Plans {
    let Document { issuers, clients, .. } = document;
    let tenancy = Tenancy::of(document, &document.plans, &FilterSet::default(), &[]);
    let nonces = nonces(document);
    let site = Site { route: "", issuers, clients, keyring, tenancy, nonces };
    tenancy::check(document, &site, mistakes)
}

/// Who decides on preflights of several versions, seen from no route at all.
fn preflights(document: &Document, plans: &Plans, keyring: &Arc<Keyring>) -> Preflights {
    let Document { issuers, clients, .. } = document;
    let tenancy = Tenancy::of(document, plans, &FilterSet::default(), &[]);
    let nonces = nonces(document);
    let site = Site { route: "", issuers, clients, keyring, tenancy, nonces };
    Preflights::new(document, &site)
}

/// The filters of every route, on no route at all.
fn everywhere(
    document: &Document,
    plans: &Plans,
    keyring: &Arc<Keyring>,
    mistakes: &mut Vec<Mistake>,
) -> Chain {
    let Document { issuers, clients, .. } = document;
    let filters = tenancy::with_plans(document.filters.value.clone(), plans, &[]);
    let tenancy = Tenancy::of(document, plans, &filters, &[]);
    let nonces = nonces(document);
    let site = Site { route: "", issuers, clients, keyring, tenancy, nonces };
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

/// Leaves out what is not said.
fn without_nulls(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(members) => {
            members.retain(|_, member| !member.is_null());
            members.values_mut().for_each(without_nulls);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(without_nulls),
        _ => {}
    }
}
