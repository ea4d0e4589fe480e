//! One line a request, and the masking that keeps people out of it.

use std::borrow::Cow;

use crate::exchange::Exchange;

/// Writes the line. The query is never written; addresses of payers and payees in the path are masked.
pub(crate) fn write(exchange: &Exchange, method: &str, path: &str, status: u16, in_flight_ms: f64) {
    let context = exchange.context.as_ref();
    tracing::info!(
        target: "access",
        request_id = %exchange.request_id,
        trace_id = exchange.trace.trace_id(),
        method,
        path = %masked(path),
        route = exchange.route.as_deref(),
        status,
        code = exchange.refusal.map(|(code, _)| code),
        filter = exchange.refusal.and_then(|(_, filter)| filter),
        duration_ms = in_flight_ms,
        client_ip = context.map(|context| context.client_ip.to_string()),
        tenant = context.and_then(|c| c.identity.as_ref()).and_then(|who| who.tenant.as_deref()),
        subject = context.and_then(|c| c.identity.as_ref()).map(|who| who.subject.as_str()),
    );
}

/// Masks everything that looks like a VPA: of `alice@torana` the log keeps `a***@torana`.
pub(crate) fn masked(text: &str) -> Cow<'_, str> {
    let decoded =
        if text.contains("%40") { Cow::Owned(text.replace("%40", "@")) } else { Cow::Borrowed(text) };
    if !decoded.contains('@') {
        return decoded;
    }
    let parts: Vec<&str> = decoded.split('@').collect();
    let mut out = String::with_capacity(decoded.len());
    for (position, part) in parts.iter().enumerate() {
        if position > 0 {
            out.push('@');
        }
        if position + 1 == parts.len() {
            out.push_str(part);
            break;
        }
        let name_at = part
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)))
            .map_or(0, |at| at + part[at..].chars().next().map_or(1, char::len_utf8));
        let (before, name) = part.split_at(name_at);
        out.push_str(before);
        out.extend(name.chars().next());
        out.push_str("***");
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::masked;

    #[test]
    fn no_whole_vpa_is_written() {
        for (path, expected) in [
            ("/v1/transactions/send", "/v1/transactions/send"),
            ("/v1/vpa/alice@torana", "/v1/vpa/a***@torana"),
            ("/v1/vpa/alice%40torana", "/v1/vpa/a***@torana"),
            ("/x/a.b-c_9@bank/bob@upi", "/x/a***@bank/b***@upi"),
            ("/x/@bank", "/x/***@bank"),
            ("/x/\u{e9}bob@bank", "/x/\u{e9}b***@bank"),
        ] {
            assert_eq!(masked(path), expected);
        }
    }
}
