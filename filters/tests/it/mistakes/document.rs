//! Of the document as a whole, and of any part of it that is misspelt.

use super::{GOOD, read};

#[test]
fn a_good_policy_is_accepted() {
    let policy = read(GOOD).unwrap();
    assert_eq!(policy.rules().len(), 1);
}

#[test]
fn every_mistake_has_a_place_and_a_message() {
    for (from, to, expected) in [
        ("admin:", "admn:", "p.yaml:6:1: unknown field `admn`; did you mean `admin`?"),
        ("admin:", "admn:", "did you mean `admin`?"),
        (
            "upstream: txn-core",
            "upstream: txn-cor",
            "p.yaml:19:15: there is no upstream `txn-cor`; did you mean `txn-core`?",
        ),
        ("upstream: txn-core", "upstream: zzz", "p.yaml:19:15: there is no upstream `zzz`; known: txn-core"),
        ("127.0.0.1:8443", "localhost", "p.yaml:4:14: "),
        ("127.0.0.1:8443", "127.0.0.1:9100", "p.yaml:3:5: 127.0.0.1:9100 is used twice"),
        (
            "\"file:edge.pem\"",
            "inline",
            "p.yaml:5:25: keys, certificates and secrets are references: write `file:PATH` or `env:NAME`, never the thing itself",
        ),
        ("server_name: txn-core.internal", "server_name: ''", "p.yaml:10:25: `server_name` is empty"),
        (
            "server_name: txn-core.internal",
            "server_name: '*.internal'",
            "p.yaml:10:25: `server_name` is a whole DNS name or an IP address, and `*.internal` is neither",
        ),
        (
            "server_name: txn-core.internal",
            "server_name: a b",
            "p.yaml:10:25: `server_name` is a whole DNS name",
        ),
        ("[\"127.0.0.1:9001\"]", "[]", "p.yaml:9:5: upstream `txn-core` has no address"),
        (
            "upstream: txn-core\n",
            "upstream: txn-core\n    rewrite: /{id}\n",
            "p.yaml:20:14: `/{id}` is not a path; `rewrite` is one, without parameters",
        ),
        (
            "acme.secret\"",
            "acme.secret\", encoding: hex",
            "file:acme.secret: it is not pairs of hexadecimal digits",
        ),
        ("acme.secret\"", "acme.secret\", encoding: base64", "file:acme.secret: it is not padded base64"),
        (
            "upstream: txn-core\n",
            "upstream: txn-core\n    filters: { signature: { clients: [acme, other] } }\n",
            "signature: `clients`: there is no client `other` that has a key",
        ),
        (
            "upstream: txn-core\n",
            "upstream: txn-core\n    mirror: { upstream: txn-core }\n    filters: { signing: { to_upstream: { key: acme-1 } } }\n",
            "route `send`: `mirror` would hand somebody else requests that are signed as ours",
        ),
        ("[POST]", "[post]", "p.yaml:16:5: route `send`: `post` is not an HTTP method; did you mean `POST`?"),
        ("[POST]", "[PSOT]", "route `send`: `PSOT` is not an HTTP method; did you mean `POST`?"),
        ("[POST]", "[PROPFIND]", "`PROPFIND` is not an HTTP method; known: GET, HEAD, POST, PUT, PATCH"),
        ("admin:", "default_plan: gold\nadmin:", "p.yaml:6:15: there is no plan `gold`, nor any other"),
        ("[POST]", "[]", "p.yaml:16:5: route `send` names no method"),
        ("[POST]", "[POST, POST]", "route `send`: POST /v1/transactions/send is served by a route above"),
        ("shape: {}", "shap: {}", "did you mean `shape`?"),
        ("shape: {}", "shape: { max_body_byte: 1 }", "did you mean `max_body_bytes`?"),
        (
            "shape: {}",
            "shape: { max_body_bytes: 1999999999 }",
            "p.yaml:14:3: route `send`: shape: `max_body_bytes` is at most 1073741824",
        ),
        ("shape: {}", "ip_access: { allow: [10.0.0.0/40] }", "p.yaml:14:"),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    except: [shap]",
            "p.yaml:20:14: there is no filter `shap`; did you mean `shape`?",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    except: [headers]",
            "p.yaml:20:14: `headers` is not a filter of every route, so there is nothing to except",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    timeout_ms: 0",
            "p.yaml:16:5: route `send`: `timeout_ms` is between 1 and 3600000, and not 0",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    filters: { rate_limit: { limits: [{ name: A, by: ip, requests: 1, per_s: 1 }] } }",
            "p.yaml:20:14: route `send`: rate_limit: limit name `A`: use lower-case letters, digits, '-' and '_', at most 64",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    filters: { rate_limit: { limits: [{ name: a, by: usr, requests: 1, per_s: 1 }] } }",
            "did you mean `user`?",
        ),
        (
            "    upstream: txn-core",
            "    upstream: txn-core\n    filters: { rate_limit: { limits: [{ name: a, by: user, requests: 0, per_s: 1 }] } }",
            "limit `a`: `requests` must be between 1 and 1000000",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [], algorithms: [ES256], jwks: { url: 'http://i' } }\nfilters:\n",
            "p.yaml:14:8: issuer `dev` needs `audiences`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { url: 'http://i' } }\nfilters:\n",
            "issuer `dev`: `jwks.url` must begin with https://",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { url: 'https://' } }\nfilters:\n",
            "issuer `dev`: `jwks.url` names no host: write https://host/path",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { url: 'https:///keys' } }\nfilters:\n",
            "issuer `dev`: `jwks.url` names no host",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { url: 'https://i/a b' } }\nfilters:\n",
            "issuer `dev`: `jwks.url` has spaces or other letters than visible ASCII: write them as %20 and the like",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [HS256], jwks: { file: 'file:j' } }\nfilters:\n",
            "`algorithms`: `HS256` is none of ES256, ES384, RS256, PS256, EdDSA, Ed25519",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: {} }\nfilters:\n",
            "issuer `dev` needs exactly one of `jwks.url`, `jwks.file` and `jwks.discovery`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { discovery: openid, url: 'https://i' } }\nfilters:\n",
            "issuer `dev` needs exactly one of `jwks.url`, `jwks.file` and `jwks.discovery`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'http://i', audiences: [a], algorithms: [ES256], jwks: { discovery: openid } }\nfilters:\n",
            "issuer `dev`: `jwks.discovery` needs an `issuer` that is an https:// address without query and fragment",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i/?t=1', audiences: [a], algorithms: [ES256], jwks: { discovery: oauth } }\nfilters:\n",
            "issuer `dev`: `jwks.discovery` needs an `issuer` that is an https:// address",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a], algorithms: [ES256], jwks: { discovery: oidc } }\nfilters:\n",
            "`discovery`: `oidc` is none of openid, oauth",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: 'https://i', audiences: [a] }\nfilters:\n",
            "p.yaml:14:8: issuer `dev` needs `jwks` or `introspection`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], introspection: { url: 'http://i', ca: 'file:c', client_id: e, client_secret: 'file:s' } }\nfilters:\n",
            "issuer `dev`: introspection: `url` must begin with https://",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], introspection: { url: 'https://i', ca: 'file:c', client_id: e } }\nfilters:\n",
            "introspection: the edge is known there by a `client_secret`, or by a `certificate` and its `key`",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], introspection: { url: 'https://i', ca: 'file:c', client_id: e, client_secret: inline } }\nfilters:\n",
            "keys, certificates and secrets are references",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], algorithms: [ES256], introspection: { url: 'https://i', ca: 'file:c', client_id: e, client_secret: 'file:s' } }\nfilters:\n",
            "issuer `dev`: `algorithms` are of `jwks`, which is not there",
        ),
        (
            "filters:\n",
            "issuers:\n  dev: { issuer: i, audiences: [a], introspection: { url: 'https://i', ca: 'file:c', client_id: e, client_secret: 'file:s', cache_s: 301 } }\nfilters:\n",
            "introspection: `cache_s` is between 1 and 300",
        ),
        (
            "secret: \"file:acme.secret\" }]",
            "secret: \"file:acme.secret\" }, { id: acme-1, secret: 'env:B' }]",
            "key id `acme-1` is used twice",
        ),
        ("acme: {", "acme: { tenant: '',", "p.yaml:12:19: client `acme`: `tenant` is empty"),
        ("routes:", "routes: []\nx:", "unknown field `x`"),
        ("  - name: send", "  name: send", "p.yaml:17:12: a `:` stands where no key can be"),
    ] {
        assert!(GOOD.contains(from), "the case for {to:?} changes nothing");
        let text = GOOD.replacen(from, to, 1);
        match read(&text) {
            Ok(_) => panic!("accepted with {to:?}"),
            Err(told) => {
                assert!(told.contains(expected), "with {to:?}\nexpected {expected:?}\ntold     {told}")
            }
        }
    }
}

/// Of a path one thing is told.
#[test]
fn paths_that_nothing_could_be_matched_with() {
    const BRACE: &str = "has a brace that makes no parameter: write `{id}`, or `{*rest}` at the end";
    for (path, expected) in [
        ("/v1/*", "route `send`: write `{*rest}` for `*` in `path`".to_owned()),
        ("/v1/**/x", "route `send`: write `{*rest}` for `**` in `path`".to_owned()),
        ("/v1/*all", "route `send`: write `{*rest}` for `*all` in `path`".to_owned()),
        ("/v1/:id/receipt", "route `send`: write `{id}` for `:id` in `path`".to_owned()),
        ("/v1/{a}{b}", "route `send`: `/v1/{a}{b}` has two parameters with no `/` between them: write one".to_owned()),
        (
            "/v1/{id",
            "route `send`: `/v1/{id` has a brace that makes no parameter: write `{id}`, or `{*rest}` at the end".to_owned(),
        ),
        ("/v1/id}", format!("route `send`: `/v1/id}}` {BRACE}")),
        ("/v1/{}", format!("route `send`: `/v1/{{}}` {BRACE}")),
        ("/v1/{*}", format!("route `send`: `/v1/{{*}}` {BRACE}")),
        ("/v1/{a/b}", format!("route `send`: `/v1/{{a/b}}` {BRACE}")),
        (
            "/v1/{*rest}/x",
            "route `send`: `/v1/{*rest}/x` goes on where `{*rest}` has taken all that is left: put it at the end"
                .to_owned(),
        ),
        ("/v1//send", "route `send`: `/v1//send` is not a path that a request could have".to_owned()),
        ("v1", "route `send`: `v1` is not a path that a request could have".to_owned()),
        ("", "route `send`: `` is not a path that a request could have".to_owned()),
        ("/v1/%2e%2e", "route `send`: `/v1/%2e%2e` is not a path that a request could have".to_owned()),
        (
            "/v1/alice%40torana",
            "route `send`: `/v1/alice%40torana` has percent-encodings, and requests are decoded before they are \
             matched: write `/v1/alice@torana`"
                .to_owned(),
        ),
    ] {
        let text = GOOD.replacen("/v1/transactions/send", &format!("\"{path}\""), 1);
        let told = read(&text).err();
        assert_eq!(told, Some(format!("p.yaml:16:5: {expected}")), "{path}");
    }
    let twice = GOOD.replacen("/v1/transactions/send", "/v1/{one}", 1)
        + "  - { name: other, methods: [GET], path: \"/v1/{two}\", upstream: txn-core }\n";
    let expected = "p.yaml:20:5: route `other`: whatever fits `/v1/{two}` fits `/v1/{one}`, the path of another route: write the same in both, or another";
    assert_eq!(read(&twice).err().as_deref(), Some(expected));
}
