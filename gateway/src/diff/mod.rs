//! What changes for whom when one policy takes over from another.
//!
//! Reads the two files and nothing that they refer to, so that who reviews a policy needs none of its keys. What a
//! route requires is compared as it is in effect, with what it inherits; every setting is compared by its serialized
//! form, so that a new one needs no line here. Which way a setting goes is in `effect.rs`, whom what is
//! not of routes concerns in `rest.rs`.

mod delta;
mod effect;
mod networks;
mod rest;
mod taken_over;
mod told;

use std::path::Path;

use filters::FilterSet;
use filters::policy::{At, Mistake, Policy, Route, RouteRule};
use serde::Serialize;
use serde_json::{Value, json};

use self::delta::{Delta, Step, deltas};
pub use self::effect::Effect;
use self::networks::join_allowed;
use self::rest::of_the_rest;
use self::taken_over::taken_over;
use crate::load::{self, PolicyFile};
use crate::reload::FIXED;

/// What is different between two policies.
#[derive(Debug, Serialize)]
pub struct Difference {
    old: Side,
    new: Side,
    /// Parts of the new policy that a running gateway does not take: it must be restarted.
    restart: Vec<&'static str>,
    /// The loosest first.
    changes: Vec<Change>,
    /// What `check` warns of now and did not before.
    warnings: Vec<String>,
    /// What it warned of before and does not now.
    warnings_gone: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Side {
    file: String,
    /// The first digits of its SHA-256.
    version: String,
}

/// One change.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    pub effect: Effect,
    /// Names of the routes that it concerns, or whose requests go to the upstream that changes.
    pub routes: Vec<String>,
    /// Whether these are all routes there are in both policies, and several.
    pub every_route: bool,
    /// Names of the routes of whose requests that upstream gets copies.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub copied_routes: Vec<String>,
    /// Names of the tenants that have the plan that changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<String>,
    /// Whether tenants that the policy does not name have it too.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unnamed_tenants: bool,
    pub what: What,
    /// The field that changes: `jwt.scopes`, `upstreams.core.max_in_flight`.
    pub path: String,
    pub before: Option<Value>,
    pub after: Option<Value>,
    /// What tells a reader which entry it is: by whom a limit counts, say.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub beside: serde_json::Map<String, Value>,
    /// Where the new file has the route, or the old one if it is gone; 0: not of one route.
    pub line: u64,
}

/// What kind of thing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Nobody is asked who they are any more.
    Opened,
    /// Who calls is asked who they are now.
    Closed,
    /// A route.
    Route,
    /// Requests that another route decided on before.
    TakenOver,
    /// A whole filter of a route.
    Filter,
    /// Any other field.
    Field,
}

impl Difference {
    /// Compares two policy files.
    ///
    /// # Errors
    /// The mistakes of either.
    pub fn between(old: &Path, new: &Path) -> anyhow::Result<Self> {
        let read =
            |path: &Path| load::read_without_secrets(path).map_err(|mistakes| load::told(&mistakes, path));
        let (before, after) = match (read(old), read(new)) {
            (Ok(before), Ok(after)) => (before, after),
            (Err(why), Ok(_)) | (Ok(_), Err(why)) => anyhow::bail!(why),
            (Err(one), Err(other)) => anyhow::bail!("{one}\n{other}"),
        };
        let side = |path: &Path, file: &PolicyFile| Side {
            file: path.display().to_string(),
            version: load::version(&file.text),
        };
        let (old, new) = (side(old, &before), side(new, &after));
        let (before, after) = (before.policy, after.policy);
        let changed = FIXED.iter().filter(|(_, same)| !same(before.document(), after.document()));
        let restart = changed.map(|(name, _)| *name).collect();
        let mut changes = of_routes(&before, &after);
        changes.extend(of_the_rest(&before, &after));
        changes.sort_by_key(|change| (change.effect, change.what != What::Opened));
        let (warnings, warnings_gone) = (
            only_in(after.warnings(), before.warnings(), &new.file),
            only_in(before.warnings(), after.warnings(), &old.file),
        );
        Ok(Self { old, new, restart, changes, warnings, warnings_gone })
    }

    /// Whether both policies mean the same.
    pub fn is_none(&self) -> bool {
        self.changes.is_empty()
    }

    /// For a person, the loosest first.
    pub fn text(&self) -> String {
        told::text(self)
    }

    /// For a program.
    pub fn json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Lines move, so warnings are the same when they say the same.
fn only_in(some: &[Mistake], others: &[Mistake], file: &str) -> Vec<String> {
    let new = some.iter().filter(|warning| others.iter().all(|other| other.message != warning.message));
    new.map(|warning| warning.in_file(file)).collect()
}

/// A route with all that is in effect there.
struct Effective<'p> {
    route: &'p At<Route>,
    rule: &'p RouteRule,
    filters: FilterSet,
}

impl<'p> Effective<'p> {
    fn all(policy: &'p Policy) -> Vec<Self> {
        let document = policy.document();
        let of = |(route, rule): (&'p At<Route>, &'p RouteRule)| {
            let except: Vec<&str> = route.value.except.iter().map(|filter| filter.value.as_str()).collect();
            let filters = document.filters.value.inherited(&route.value.filters.value, &except);
            Self { route, rule, filters }
        };
        document.routes.iter().zip(policy.rules()).map(of).collect()
    }

    /// What is not a filter, and not its name.
    fn settings(&self) -> Value {
        let mut settings = serde_json::to_value(&self.route.value).unwrap_or_default();
        if let Some(settings) = settings.as_object_mut() {
            for other in ["name", "filters", "except", "upstreams"] {
                settings.remove(other);
            }
            settings.insert("upstream".to_owned(), load::served_by(self.rule).into());
            settings.insert("timeout_ms".to_owned(), self.timeout_ms());
        }
        settings
    }

    /// Of its upstreams, which may state it themselves: one number if all have the same, and `core 900, next 300` if not.
    fn timeout_ms(&self) -> Value {
        let RouteRule { upstreams, timeouts_ms, .. } = self.rule;
        match timeouts_ms.as_slice() {
            [first, rest @ ..] if rest.iter().all(|other| other == first) => json!(first),
            several => {
                let each = upstreams.iter().zip(several);
                let each: Vec<_> = each.map(|(share, ms)| format!("{} {ms}", share.upstream)).collect();
                each.join(", ").into()
            }
        }
    }

    /// Whether both serve one path, method and version.
    fn serves_what(&self, other: &Self) -> bool {
        let (one, other) = (&self.route.value, &other.route.value);
        let version = |route: &Route| route.version.as_ref().map(|version| version.value.clone());
        one.path == other.path
            && version(one) == version(other)
            && one.methods.iter().any(|method| other.methods.contains(method))
    }

    /// One request for each method.
    fn requests(&self) -> impl Iterator<Item = (&str, String, Option<&str>)> {
        let route = &self.route.value;
        // Any text fits a parameter.
        let segments = route.path.split('/').map(|segment| match segment.split_once('{') {
            Some((begin, rest)) => format!("{begin}x{}", rest.split_once('}').map_or("", |(_, end)| end)),
            None => segment.to_owned(),
        });
        let path = segments.collect::<Vec<_>>().join("/");
        let version = route.version.as_ref().map(|version| version.value.as_str());
        route.methods.iter().map(move |method| (method.as_str(), path.clone(), version))
    }

    fn change(&self, effect: Effect, what: What, path: &str) -> Change {
        Change {
            effect,
            routes: vec![self.rule.name.clone()],
            every_route: false,
            copied_routes: Vec::new(),
            tenants: Vec::new(),
            unnamed_tenants: false,
            what,
            path: path.to_owned(),
            before: None,
            after: None,
            beside: serde_json::Map::new(),
            line: self.route.line(),
        }
    }

    /// What a reader needs to know of a route that comes or goes.
    fn outline(&self) -> Value {
        let mut outline = self.settings();
        if let Some(outline) = outline.as_object_mut() {
            outline.retain(|_, value| !value.is_null());
            let filters: Vec<_> = self.rule.chain.names().collect();
            outline.insert("filters".to_owned(), filters.into());
        }
        outline
    }
}

fn of_routes(before: &Policy, after: &Policy) -> Vec<Change> {
    let (old, new) = (Effective::all(before), Effective::all(after));
    let named = |all: &[Effective<'_>], name: &str| all.iter().position(|route| route.rule.name == name);
    let mut changes = Vec::new();
    let (mut renamed, mut in_both, mut pairs) = (Vec::new(), Vec::new(), Vec::new());
    for (position, route) in new.iter().enumerate() {
        let same_name = named(&old, &route.rule.name);
        let before = same_name.or_else(|| {
            old.iter().position(|other| named(&new, &other.rule.name).is_none() && route.serves_what(other))
        });
        pairs.extend(before.map(|before| (before, position)));
        let Some(before) = before.and_then(|position| old.get(position)) else {
            let opened = route.filters.lets_anybody_in();
            let change = route.change(Effect::Looser, if opened { What::Opened } else { What::Route }, "");
            changes.push(Change { after: Some(route.outline()), ..change });
            continue;
        };
        if same_name.is_none() {
            renamed.push(before.rule.name.as_str());
        }
        in_both.push(route.rule.name.as_str());
        changes.extend(of_route(before, route));
    }
    let mut changes = merged(changes);
    for change in &mut changes {
        let is_of = |name: &&str| change.routes.iter().any(|route| route == name);
        change.every_route = in_both.len() > 1 && in_both.iter().all(is_of);
    }
    let gone = old.iter().filter(|route| {
        named(&new, &route.rule.name).is_none() && !renamed.contains(&route.rule.name.as_str())
    });
    changes.extend(gone.map(|route| Change {
        before: Some(route.outline()),
        ..route.change(Effect::Stricter, What::Route, "")
    }));
    changes.extend(taken_over(before, after, (&old, &new), &pairs));
    changes
}

/// What differs in the filters in effect, and which way each goes.
fn filter_deltas(
    before: &Effective<'_>,
    after: &Effective<'_>,
) -> impl Iterator<Item = (What, Effect, Delta)> + use<> {
    let filters = |route: &Effective<'_>| {
        let mut filters = serde_json::to_value(&route.filters).unwrap_or_default();
        join_allowed(&mut filters);
        filters
    };
    deltas(&filters(before), &filters(after)).into_iter().map(|delta| {
        let (what, effect) = match (delta.path.as_slice(), &delta.before, &delta.after) {
            // It requires nothing: it lets pages call.
            ([Step::Field(name)], None, Some(_)) if name == "cors" => (What::Filter, Effect::Looser),
            ([Step::Field(name)], Some(_), None) if name == "cors" => (What::Filter, Effect::Stricter),
            // Nor does this, whoever passes.
            ([Step::Field(name)], None, Some(_)) | ([Step::Field(name)], Some(_), None)
                if name == "compression" =>
            {
                (What::Filter, Effect::Other)
            }
            ([_], None, Some(_)) => (What::Filter, Effect::Stricter),
            ([_], Some(_), None) => (What::Filter, Effect::Looser),
            (..) => (What::Field, Effect::of(&delta)),
        };
        (what, effect, delta)
    })
}

fn of_route(before: &Effective<'_>, after: &Effective<'_>) -> Vec<Change> {
    let mut changes = Vec::new();
    match (before.filters.lets_anybody_in(), after.filters.lets_anybody_in()) {
        (false, true) => changes.push(after.change(Effect::Looser, What::Opened, "")),
        (true, false) => changes.push(after.change(Effect::Stricter, What::Closed, "")),
        (true, true) | (false, false) => {}
    }
    if before.rule.name != after.rule.name {
        let change = after.change(Effect::Other, What::Field, "name");
        let (before, after) = (before.rule.name.as_str().into(), after.rule.name.as_str().into());
        changes.push(Change { before: Some(before), after: Some(after), ..change });
    }
    let filters = filter_deltas(before, after).map(|(what, effect, delta)| (what, effect, 0, delta));
    let settings = deltas(&json!({ "routes": before.settings() }), &json!({ "routes": after.settings() }));
    let settings = settings.into_iter().map(|delta| (What::Field, Effect::of(&delta), 1, delta));
    for (what, effect, skip, delta) in filters.chain(settings) {
        let path = path(delta.path.iter().skip(skip));
        let change = after.change(effect, what, &path);
        changes.push(with(change, delta));
    }
    changes
}

fn path<'s>(steps: impl Iterator<Item = &'s Step>) -> String {
    steps.map(Step::text).collect::<Vec<_>>().join(".")
}

fn with(change: Change, delta: Delta) -> Change {
    let Delta { before, after, beside, .. } = delta;
    Change { before, after, beside: beside.into_iter().collect(), ..change }
}

/// One change for all routes that it is of.
fn merged(changes: Vec<Change>) -> Vec<Change> {
    let mut merged: Vec<Change> = Vec::new();
    for change in changes {
        let same = |other: &&mut Change| {
            other.what == change.what
                && (&other.path, &other.before, &other.after) == (&change.path, &change.before, &change.after)
        };
        match merged.iter_mut().find(same) {
            Some(other) => {
                other.routes.extend(change.routes);
                other.line = 0;
            }
            None => merged.push(change),
        }
    }
    merged
}
