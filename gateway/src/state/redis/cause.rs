//! Why Redis does not answer, in the operator's terms.

use redis::{ErrorKind, RedisError};

/// Answers that mean: this node cannot run batches, though it accepts connections. Its connection is closed, and the
/// address is resolved again: a failover or a changed password is only seen by a new connection.
const WRONG_NODE: [&str; 14] = [
    "READONLY",
    "MASTERDOWN",
    "LOADING",
    "MISCONF",
    "NOREPLICAS",
    "MOVED",
    "ASK",
    "TRYAGAIN",
    "CROSSSLOT",
    "CLUSTERDOWN",
    "NOAUTH",
    "WRONGPASS",
    "NOPERM",
    "UNKILLABLE",
];

/// Of a server that was asked for TLS.
pub(super) const NO_TLS: &str =
    "the server does not answer with TLS: check the port, or write redis:// on this host";

/// Whether the connection that gave this answer must be replaced.
pub(super) fn means_another_connection(error: &RedisError) -> bool {
    error.code().is_some_and(is_wrong_node) || error.is_unrecoverable_error()
}

/// Whether an error with this code says that the node is the wrong one.
pub(super) fn is_wrong_node(code: &str) -> bool {
    WRONG_NODE.contains(&code)
}

/// An error with its causes, and what it usually means. `tls`: whether we speak TLS.
pub(super) fn describe(error: &RedisError, tls: bool) -> String {
    let text = certs::causes(error);
    match hint(error, &text, tls) {
        Some(hint) => format!("{text} ({hint})"),
        None => text,
    }
}

fn hint(error: &RedisError, text: &str, tls: bool) -> Option<&'static str> {
    let code = error.code().unwrap_or_default();
    Some(match code {
        "READONLY" | "MASTERDOWN" => "the node is a replica; the address is resolved again",
        "MOVED" | "ASK" | "CROSSSLOT" if !text.contains("redirect") => {
            "this is a Redis Cluster: write `cluster: true` in `state.redis`"
        }
        "NOAUTH" => "Redis asks for a password: write it in the address of `state.redis.url`",
        "WRONGPASS" => "the user or the password in `state.redis.url` is wrong",
        "NOPERM" => "the user in `state.redis.url` lacks a permission",
        "OOM" => "Redis has reached its `maxmemory`: give it more",
        _ if error.kind() == ErrorKind::AuthenticationFailed => {
            "the user or the password in `state.redis.url` is wrong"
        }
        _ if text.contains("UnknownIssuer") => {
            "the CA in `state.redis.ca` did not sign the server's certificate"
        }
        _ if text.contains("not valid for name") || text.contains("NotValidForName") => {
            "the server's certificate lacks the host name in `state.redis.url`"
        }
        _ if tls && (text.contains("InvalidContentType") || text.contains("corrupt message")) => NO_TLS,
        _ if !tls && (error.is_unrecoverable_error() && is_early_end(text)) => {
            "the server closed the connection; if its port is for TLS, write rediss://"
        }
        _ => return None,
    })
}

fn is_early_end(text: &str) -> bool {
    ["reset", "end of file", "eof", "terminated", "closed", "unexpected"]
        .iter()
        .any(|word| text.to_ascii_lowercase().contains(word))
}
