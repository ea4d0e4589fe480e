//! Fields that say who sends a request, or through whom it came. Only the edge may say that to an upstream.

/// Families of names. A client's own field is removed when its name is one of these, or begins with one and a hyphen.
///
/// Upstreams and frameworks read them as the word of a proxy that they trust, so each is one of three things: a field that
/// the edge sets itself, one of Envoy's, or one with which other proxies tell the same.
const FAMILIES: &[&str] = &[
    // The edge's own, and Envoy's.
    "x-torana",
    "x-envoy",
    // The address, the host and the scheme (RFC 7239, and what came before it).
    "cf-connecting-ip",
    "cf-connecting-ipv6",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "remote-addr",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-host",
    "x-original",
    "x-originating-ip",
    "x-real-ip",
    "x-remote-addr",
    "x-remote-ip",
    "x-rewrite",
    // The certificate (RFC 9440, and what came before it).
    "client-cert",
    "ssl-client",
    "ssl-cert",
    "x-client-cert",
    "x-client-certificate",
    "x-client-dn",
    "x-client-verify",
    "x-ssl",
    "x-arr-clientcert",
    "x-amzn-mtls",
    // The user and the tenant.
    "auth-user",
    "remote-groups",
    "remote-user",
    "x-auth-request",
    "x-authenticated",
    "x-goog-authenticated-user",
    "x-goog-iap",
    "x-amzn-oidc",
    "x-ms-client-principal",
    "x-remote-groups",
    "x-remote-user",
    "x-tenant-id",
    "x-user-id",
    "x-userinfo",
    "x-webauth",
    // CGI hands it to programs as `HTTP_PROXY`, which names a proxy for their own requests.
    "proxy",
];

/// Whether a client's field must be removed before the request goes on. Some upstreams read `_` and `.` as `-`.
pub fn edge_only(name: &str) -> bool {
    let plain = name.replace(['_', '.'], "-");
    FAMILIES.iter().any(|family| {
        plain.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_cannot_say_who_they_are() {
        for (name, expected) in [
            ("x-torana-subject", true),
            ("x-envoy-original-path", true),
            ("x-forwarded-for", true),
            ("x_forwarded_for", true),
            ("x-forwarded-client-cert", true),
            ("forwarded", true),
            ("client-cert", true),
            ("client-cert-chain", true),
            ("client_cert", true),
            ("x-ssl-client-cert", true),
            ("x-ssl-client-s-dn", true),
            ("ssl-client-verify", true),
            ("remote-user", true),
            ("remote_user", true),
            ("true-client-ip", true),
            ("proxy", true),
            ("proxy-connection", true),
            ("proxy-authorization", true),
            ("x-original-url", true),
            ("x-tenant-id", true),
            ("x.real.ip", true),
            ("x-request-id", false),
            ("user-agent", false),
            ("x-user-ideas", false),
            ("client-certainty", false),
            ("x-proxy-hint", false),
            ("idempotency-key", false),
        ] {
            assert_eq!(edge_only(name), expected, "{name}");
        }
    }
}
