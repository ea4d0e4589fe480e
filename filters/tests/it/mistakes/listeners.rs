//! Of `listeners`.

use super::{read, with_certificates};

#[test]
fn a_listener_that_asks_for_no_certificate_is_told_of() {
    let other = "admin:";
    let second = "  - { name: plain, address: \"127.0.0.1:8444\", tls: { certificate: \"file:c\", key: \"file:k\" } }\nadmin:";
    for (filters, expected) in [
        (
            "{ client_cert: {} }",
            Some(
                "route `send` requires a client certificate and refuses everybody who comes by `plain`, where none is asked for",
            ),
        ),
        ("{ client_cert: { mode: optional } }", None),
    ] {
        let policy =
            read(&with_certificates("{ dns: a.test }", filters, true).replacen(other, second, 1)).unwrap();
        let told: Vec<_> = policy.warnings().iter().map(|warning| warning.message.as_str()).collect();
        match expected {
            Some(expected) => assert!(told.iter().any(|told| told.contains(expected)), "{told:?}"),
            None => assert!(!told.iter().any(|told| told.contains("plain")), "{told:?}"),
        }
    }
}
