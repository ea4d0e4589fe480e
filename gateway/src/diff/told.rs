//! Differences in words.

use std::fmt::Write as _;

use serde_json::Value;

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
    match change.routes.as_slice() {
        [] => String::new(),
        _ if change.every_route => "every route: ".to_owned(),
        [route] => format!("route {route}: "),
        several => format!("routes {}: ", several.join(", ")),
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
            let gained =
                new.iter().filter(|entry| !old.contains(entry)).map(|entry| format!("+ {}", flow(entry)));
            let lost =
                old.iter().filter(|entry| !new.contains(entry)).map(|entry| format!("- {}", flow(entry)));
            let entries: Vec<String> = gained.chain(lost).collect();
            match new.is_empty() {
                true => format!("{}, none is left", entries.join(", ")),
                false if old.is_empty() => format!("{}, none before", entries.join(", ")),
                false => entries.join(", "),
            }
        }
        (Some(old), Some(new)) => format!("{} -> {}", flow(old), flow(new)),
        (None, Some(new)) => format!("is new: {}", flow(new)),
        (Some(old), None) => format!("is gone; it was {}", flow(old)),
        (None, None) => String::new(),
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
