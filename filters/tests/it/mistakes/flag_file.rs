//! Of `flags` and what counts on them.

use super::{GOOD, read};

/// What counts on feature flags.
#[test]
fn flags_that_cannot_be_meant() {
    let flags = "flags: { file: \"file:flags.json\" }\n";
    let two = "    upstreams: [{ upstream: txn-core, variant: a }, { upstream: txn-core, variant: b }]\n";
    let with = |above: &str, route: &str| {
        format!("{GOOD}{route}").replace("filters:\n  shape", &format!("{above}filters:\n  shape"))
    };
    let by_flag = |route: &str| with(flags, route).replace("    upstream: txn-core\n", "");
    let feature = |settings: &str| format!("    filters: {{ feature: {settings} }}\n");
    let limit = |when: &str| {
        format!(
            "    filters: {{ rate_limit: {{ limits: [{{ name: l, by: ip, requests: 1, per_s: 1, when: {when} }}] }} }}\n"
        )
    };
    let file = |settings: &str| with(&format!("flags: {settings}\n"), "");
    for (text, expected) in [
        (with(flags, &feature("{ when: [{ flag: f, is: [a] }] }")), ""),
        (with(flags, &limit("{ flag: f, is: [a], default: b }")), ""),
        (by_flag(&format!("{two}    flag: f\n")), ""),
        (file("{ file: \"file:f.yaml\", fields: { app: x-app-version } }"), ""),
        (file("{ file: \"env:FLAGS\" }"), "flags are in a file, so that they can change: write `file:PATH`"),
        (
            file("{ file: \"file:f\", fields: { user: x-user } }"),
            "`fields`: `user` is a name of the edge's own, or none: use another",
        ),
        (
            file("{ file: \"file:f\", fields: { app: X-App } }"),
            "`fields`: `X-App` is not the name of a field, in lower-case letters",
        ),
        (file("{ file: \"file:f\", fields: { app: cookie } }"), "`fields`: `cookie` is not for flags to see"),
        (
            with("", &feature("{ when: [{ flag: f, is: [a] }] }")),
            "flag `f`: there are no flags: name their file in `flags`",
        ),
        (with(flags, &feature("{ when: [] }")), "`when` needs one flag at least"),
        (
            with(flags, &feature("{ when: [{ flag: f, is: [] }] }")),
            "flag `f`: `is` needs one variant at least",
        ),
        (with(flags, &limit("{ flag: f, is: [] }")), "limit `l`: flag `f`: `is` needs one variant at least"),
        (with(flags, &limit("{ flag: 'a b', is: [a] }")), "`a b` cannot be the name of a flag or a variant"),
        (with(flags, &limit("{ flag: f, is: [a], defualt: b }")), "did you mean `default`?"),
        (
            by_flag(&format!("{two}    flag: f\n    sticky: user\n")),
            "a `flag` decides alone: drop `sticky` and `experiment`",
        ),
        (by_flag(&format!("{two}    flag: 'a b'\n")), "`flag` cannot be the name of one"),
        (with(flags, "    flag: f\n"), "`flag` needs several `upstreams` to choose from"),
        (
            by_flag(&format!("{}    flag: f\n", two.replace("variant: a", "variant: a, weight: 2"))),
            "a `flag` decides alone: drop `weight`",
        ),
        (
            by_flag(&format!("{}    flag: f\n", two.replace(", variant: a", ""))),
            "route `send`: each upstream of a `flag` has its `variant`",
        ),
        (
            by_flag(&format!("{}    flag: f\n", two.replace("variant: b", "variant: a"))),
            "two variants are named `a`",
        ),
        (
            by_flag(&format!("{}    flag: f\n", two.replace("variant: b", "variant: 'b c'"))),
            "`b c` cannot be the name of a variant",
        ),
    ] {
        let told = read(&text).err().unwrap_or_default();
        assert!(
            told.contains(expected) && told.is_empty() == expected.is_empty(),
            "{expected}: {told}\n{text}"
        );
    }
}
