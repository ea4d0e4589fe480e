//! What a policy's writer is told: every mistake with its place and, where it can be guessed, its mending; and
//! what is no mistake but worth a second look. A file for each section of the policy, as in `filters/src/policy/`.

mod clients;
mod document;
mod flag_file;
mod issuers;
mod listeners;
mod nobody;
mod routes;
mod settings;
mod syntax;
mod tenancy;

use filters::policy::Policy;

const GOOD: &str = r#"
listeners:
  - name: edge
    address: 127.0.0.1:8443
    tls: { certificate: "file:edge.pem", key: "file:edge.key" }
admin: { address: 127.0.0.1:9100 }
upstreams:
  txn-core:
    addresses: ["127.0.0.1:9001"]
    tls: { server_name: txn-core.internal, ca: "file:ca.pem", certificate: "file:gw.pem", key: "file:gw.key" }
clients:
  acme: { hmac_keys: [{ id: acme-1, secret: "file:acme.secret" }] }
filters:
  shape: {}
routes:
  - name: send
    methods: [POST]
    path: /v1/transactions/send
    upstream: txn-core
"#;

fn read(text: &str) -> Result<Policy, String> {
    Policy::read(text, &|_| Ok(vec![7; 32].into())).map_err(|mistakes| {
        mistakes.iter().map(|mistake| mistake.in_file("p.yaml")).collect::<Vec<_>>().join("\n")
    })
}

const ASKS: &str = "key: \"file:edge.key\", client_certificates: { ca: \"file:clients.pem\" } }";

/// [`GOOD`] with a client `bank` of these certificates, filters of its route, and a listener that asks, or does not.
fn with_certificates(certificates: &str, filters: &str, asks: bool) -> String {
    let text =
        GOOD.replace("clients:\n", &format!("clients:\n  bank: {{ certificates: [{certificates}] }}\n"));
    let text = format!("{text}    filters: {filters}\n");
    if asks { text.replace("key: \"file:edge.key\" }", ASKS) } else { text }
}
