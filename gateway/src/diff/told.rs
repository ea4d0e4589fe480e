//! Differences in words.

use std::fmt::Write as _;

use ipnet::IpNet;
use serde_json::Value;

use super::networks::{NOBODY, Networks};
use super::{Change, Difference, Effect, What};

pub(super) fn text(difference: &Difference) -> String {
    let Difference { old, new, restart, changes, warnings, warnings_gone } = difference;
    let mut text = format!("{} ({}) -> {} ({})", old.file, old.version, new.file, new.version);
    if changes.is_empty() {
        return text + ": both mean the same\n";
    }
    text.push('\n');
    for (effect, title, mark) in [
        (Effect::Looser, "lets more in", '!'),
        (Effect::Other, "changes otherwise", '~'),
        (Effect::Stricter, "lets less in", '-'),
    ] {
        let of_effect: Vec<&Change> = changes.iter().filter(|change| change.effect == effect).collect();
        if !of_effect.is_empty() {
            let _ = writeln!(text, "{title}:");
        }
        for change in of_effect {
            let file =
                if change.after.is_none() && change.what == What::Route { &old.file } else { &new.file };
            let place = if change.line == 0 { String::new() } else { format!("  [{file}:{}]", change.line) };
            let _ = writeln!(text, "  {mark} {}{}{place}", subject(change), said(change));
        }
    }
    for (title, lines) in [("warnings that are new", warnings), ("warnings that are gone", warnings_gone)] {
        if !lines.is_empty() {
            let _ = writeln!(text, "{title}:");
        }
        for line in lines {
            let _ = writeln!(text, "  {line}");
        }
    }
    for part in restart {
        let _ =
            writeln!(text, "`{part}` changes: a running gateway refuses this policy and must be restarted");
    }
    text
}

/// Whom it concerns.
fn subject(change: &Change) -> String {
    let mut whom = Vec::new();
    if change.every_route {
        whom.push("every route".to_owned());
    } else {
        whom.extend(several("route", &change.routes));
    }
    whom.extend(several("copies of route", &change.copied_routes));
    whom.extend(several("tenant", &change.tenants));
    if change.unnamed_tenants {
        whom.push("tenants that the policy does not name".to_owned());
    }
    let nobody = || match change.path.split('.').next() {
        Some("upstreams") => "no route: ".to_owned(),
        Some("plans") => "no tenant: ".to_owned(),
        Some(_) | None => String::new(),
    };
    if whom.is_empty() { nobody() } else { whom.join(" and ") + ": " }
}

fn several(what: &str, names: &[String]) -> Option<String> {
    match names {
        [] => None,
        [name] => Some(format!("{what} {name}")),
        names => Some(format!("{what}s {}", names.join(", "))),
    }
}

fn said(change: &Change) -> String {
    let Change { path, before, after, .. } = change;
    match (change.what, before, after) {
        (What::Opened, _, Some(route)) => format!("is new and anybody may call it: {}", flow(route)),
        (What::Opened, _, None) => "anybody may call it now".to_owned(),
        (What::Closed, ..) => "who calls must say who they are now".to_owned(),
        (What::Route, None, Some(route)) => format!("is new: {}", flow(route)),
        (What::Route, ..) => "is gone".to_owned(),
        (What::TakenOver, old, new) => {
            let looser = new.as_ref().and_then(|route| route["looser"].as_array());
            let looser = looser.into_iter().flatten().map(flow);
            // A whole filter is named by one word, a setting by its path.
            let (settings, filters): (Vec<String>, Vec<String>) = looser.partition(|path| path.contains('.'));
            let mut less = String::new();
            for (how, paths) in [(", so without ", filters), (", and asks for less: ", settings)] {
                if !paths.is_empty() {
                    less.push_str(how);
                    less.push_str(&paths.join(", "));
                }
            }
            let before = old.as_ref().map(|route| flow(&route["route"])).unwrap_or_default();
            format!("{path} comes here now, to route {before} before{less}")
        }
        (What::Filter, Some(settings), _) => format!("{path} is gone; it was {}", flow(settings)),
        (What::Filter, None, settings) => {
            format!("{path} is required now: {}", flow(settings.as_ref().unwrap_or(&Value::Null)))
        }
        (What::Field, before, after) => {
            format!("{path}: {}{}", from_to(before.as_ref(), after.as_ref()), beside(change))
        }
    }
}

fn from_to(before: Option<&Value>, after: Option<&Value>) -> String {
    match (before, after) {
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            if let (Some(was), Some(is)) = (Networks::of(old), Networks::of(new)) {
                let gained = was.lack(new).into_iter().map(|lacked| network('+', lacked, "before"));
                let lost = is.lack(old).into_iter().map(|lacked| network('-', lacked, "left"));
                return gained_and_lost(gained.chain(lost), old, new);
            }
            let gained =
                new.iter().filter(|entry| !old.contains(entry)).map(|entry| format!("+ {}", flow(entry)));
            let lost =
                old.iter().filter(|entry| !new.contains(entry)).map(|entry| format!("- {}", flow(entry)));
            gained_and_lost(gained.chain(lost), old, new)
        }
        (Some(old), Some(new)) => format!("{} -> {}", flow(old), flow(new)),
        (None, Some(new)) => format!("is new: {}", flow(new)),
        (Some(old), None) => format!("is gone; it was {}", flow(old)),
        (None, None) => String::new(),
    }
}

fn gained_and_lost(entries: impl Iterator<Item = String>, old: &[Value], new: &[Value]) -> String {
    let mut told: Vec<String> = entries.collect();
    let is_nobody = |list: &[Value]| matches!(list, [only] if only == NOBODY);
    for (is_so, words) in [
        (new.is_empty(), "none is left"),
        (is_nobody(new), "no address is left"),
        (old.is_empty(), "none before"),
        (is_nobody(old), "no address before"),
    ] {
        told.extend(is_so.then(|| words.to_owned()));
    }
    told.join(", ")
}

/// A network that came or went, and what of it was there before or is left.
fn network(sign: char, (entry, parts): (&Value, Vec<IpNet>), when: &str) -> String {
    let parts: Vec<String> = parts.iter().map(ToString::to_string).collect();
    match parts.is_empty() {
        true => format!("{sign} {}", flow(entry)),
        false => format!("{sign} {} ({when}: {})", flow(entry), parts.join(", ")),
    }
}

fn beside(change: &Change) -> String {
    let beside: Vec<String> =
        change.beside.iter().map(|(name, value)| format!("{name} {}", flow(value))).collect();
    if beside.is_empty() { String::new() } else { format!(" ({})", beside.join(", ")) }
}

/// A value on one line, as YAML would have it, without what is absent.
fn flow(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => format!("[{}]", list.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Object(fields) => {
            let there = fields.iter().filter(|(_, value)| !value.is_null());
            let there: Vec<String> = there.map(|(name, value)| format!("{name}: {}", flow(value))).collect();
            if there.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", there.join(", ")) }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}
