//! What keeps the `path` of a route from being matched at all.

use std::collections::{BTreeMap, BTreeSet};

use matchit::InsertError;

use super::document::Document;
use super::mistake::Mistake;
use super::routes::Route;
use super::routing::Paths;

/// Every route by its path. Of one that cannot be matched it is told why not, once.
pub(super) fn paths(document: &Document, mistakes: &mut Vec<Mistake>) -> Paths {
    // A module gets what was checked.
    if cfg!(target_family = "wasm") {
        return Paths::new(document, mistakes);
    }
    let wrong = wrong(document);
    if wrong.is_empty() {
        return Paths::new(document, mistakes);
    }
    let (bad, good): (Vec<_>, Vec<_>) =
        document.routes.iter().partition(|route| wrong.contains_key(route.value.path.as_str()));
    for at in bad {
        let Route { name, path, .. } = &at.value;
        let why = wrong.get(path.as_str()).map(String::as_str).unwrap_or_default();
        mistakes.push(Mistake::of(at, format!("route `{name}`: {why}")));
    }
    let good = Document { routes: good.into_iter().cloned().collect(), ..document.clone() };
    Paths::new(&good, mistakes)
}

/// The paths that cannot be matched, and why.
fn wrong(document: &Document) -> BTreeMap<&str, String> {
    let paths: BTreeSet<&str> = document.routes.iter().map(|route| route.value.path.as_str()).collect();
    let mut router = matchit::Router::new();
    let wrong = paths.into_iter().filter_map(|path| {
        let why = router.insert(path, ()).err()?;
        Some((path, unmatched(path, &why)))
    });
    wrong.collect()
}

fn unmatched(path: &str, why: &InsertError) -> String {
    match why {
        InsertError::Conflict { with } => format!(
            "whatever fits `{path}` fits `{with}`, the path of another route: write the same in both, or another"
        ),
        InsertError::InvalidParamSegment => {
            format!("`{path}` has two parameters with no `/` between them: write one")
        }
        InsertError::InvalidCatchAll => {
            format!("`{path}` goes on where `{{*rest}}` has taken all that is left: put it at the end")
        }
        // A brace that opens or closes nothing, or holds nothing.
        InsertError::InvalidParam | _ => {
            format!("`{path}` has a brace that makes no parameter: write `{{id}}`, or `{{*rest}}` at the end")
        }
    }
}
