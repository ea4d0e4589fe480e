//! The table of states and its diagram as text: for `txn-core states`, `STATES.md` and the README.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Edge, Input, State, edge};

/// The page `STATES.md`.
pub fn states_page() -> String {
    format!(
        "# The states of a payment\n\nPrinted by `UPDATE=1 cargo test -p txn-core`; a test fails when it is stale. \
         The table itself is `src/txn/edges.rs`.\n\n{}\n{}",
        diagram(),
        table()
    )
}

fn diagram() -> String {
    let mut out = "```mermaid\nstateDiagram-v2\n    [*] --> created: accepted\n".to_owned();
    for from in State::ALL {
        let mut ways: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for input in Input::ALL {
            if let Edge::To(to) = edge(from, input) {
                ways.entry(to.name()).or_default().push(input.name());
            }
        }
        for to in State::ALL {
            if let Some(inputs) = ways.get(to.name()) {
                _ = writeln!(out, "    {} --> {}: {}", from.name(), to.name(), inputs.join(" / "));
            }
        }
        if from.is_final() && from != State::Deemed {
            _ = writeln!(out, "    {} --> [*]", from.name());
        }
    }
    out + "```\n"
}

fn table() -> String {
    let mut out = "| input | ".to_owned();
    out += &State::ALL.map(State::name).join(" | ");
    out += " |\n|---|";
    out += &"---|".repeat(State::ALL.len());
    out += "\n| *public status* | ";
    out += &State::ALL.map(|state| state.status().name()).join(" | ");
    out += " |\n| *money* | ";
    out += &State::ALL.map(|state| format!("{:?}", state.money())).join(" | ");
    out += " |\n";
    for input in Input::ALL {
        let cells = State::ALL.map(|state| match edge(state, input) {
            Edge::To(to) => format!("**{}**", to.name()),
            Edge::Stay => "stays".to_owned(),
            Edge::Duplicate => "duplicate".to_owned(),
            Edge::Late => "late".to_owned(),
            Edge::Conflict => "conflict!".to_owned(),
        });
        _ = writeln!(out, "| {} | {} |", input.name(), cells.join(" | "));
    }
    out + "\nBold: the state that follows. *stays*: the state stands, a timer or an inquiry may follow. *duplicate*, \
           *late*: recorded, nothing changes. *conflict!*: nothing changes, and a `TransactionConflict` event is \
           raised.\n"
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const BEGIN: &str = "<!-- states:begin -->";
    const END: &str = "<!-- states:end -->";

    #[test]
    fn the_committed_table_and_diagram_are_fresh() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let update = std::env::var_os("UPDATE").is_some();
        let states = states_page();
        check(&root.join("STATES.md"), |_| Some(states.clone()), update);
        check(&root.join("../README.md"), |old| between_markers(old, &diagram()), update);
    }

    fn check(path: &Path, fresh: impl Fn(&str) -> Option<String>, update: bool) {
        let old = std::fs::read_to_string(path).unwrap_or_default();
        let Some(fresh) = fresh(&old) else { return };
        if update && old != fresh {
            std::fs::write(path, &fresh).unwrap();
            return;
        }
        assert!(old == fresh, "{} is stale: run `UPDATE=1 cargo test -p txn-core`", path.display());
    }

    /// The page with the text between the markers replaced; none if it has no markers.
    fn between_markers(page: &str, text: &str) -> Option<String> {
        let (before, rest) = page.split_once(BEGIN)?;
        let (_, after) = rest.split_once(END)?;
        Some(format!("{before}{BEGIN}\n{text}{END}{after}"))
    }
}
