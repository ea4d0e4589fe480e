//! The table of differences in `envoy/README.md` is what the cases say, and the tests of upstreams.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use parity::case::all;
use parity::forced::{ALL, Forced};

const BEGIN: &str = "<!-- differences -->\n";
const END: &str = "<!-- /differences -->\n";

#[test]
fn the_table_is_what_the_cases_say() {
    let mut rows: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for named in all().unwrap() {
        for step in &named.case.requests {
            for (plane, difference) in &step.differs {
                let row = rows.entry((plane.clone(), difference.because.clone())).or_default();
                row.insert(format!("`{}` for `{}`", difference.verdict, step.verdict));
            }
        }
    }
    for Forced { kind, because, verdict, instead_of } in ALL {
        let row = rows.entry((kind.name().to_owned(), because.to_owned())).or_default();
        row.insert(format!("`{verdict}` for `{instead_of}`"));
    }
    let mut table = String::from("| data plane | because | it answers |\n|---|---|---|\n");
    for ((plane, because), answers) in rows {
        let answers: Vec<String> = answers.into_iter().collect();
        let _ = writeln!(table, "| {plane} | {because} | {} |", answers.join(", "));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../envoy/README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let fresh = format!("{before}{BEGIN}{table}{END}{after}");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, fresh).unwrap();
    } else {
        assert!(fresh == text, "envoy/README.md is stale: UPDATE=1 cargo test -p parity differences");
    }
}
