//! One line a request, and the masking that keeps people out of it.

use std::borrow::Cow;

use filters::admission::Admission;

use crate::exchange::{Cut, Exchange};
use crate::flags;
use crate::upstream::failure::Cause;

/// Writes the line. The query is never written; the path is as it may be [`told`].
pub(crate) fn write(
    exchange: &Exchange,
    route: Option<&str>,
    (method, path): (&str, &str),
    cut: Option<Cut>,
    in_flight_ms: f64,
) {
    let admission = exchange.admission.as_ref();
    let context = admission.map(Admission::context);
    let identity = context.and_then(|context| context.identity());
    let tenant = context.and_then(|context| context.tenant.as_ref());
    let would_refuse = context.map(|context| context.would_refuse.as_slice()).unwrap_or_default();
    let would_refuse: Vec<String> = would_refuse.iter().map(ToString::to_string).collect();
    let client = context.and_then(|context| context.client.as_ref());
    // Who was refused before has none.
    let turned = admission.filter(|_| exchange.upstream.is_some());
    let upstream = turned.and_then(|admission| admission.share(&exchange.edge.policy));
    let admitted = admission.filter(|_| exchange.admitted);
    let experiment = admitted.and_then(|admission| admission.variant(&exchange.edge.policy));
    tracing::info!(
        target: "access",
        request_id = admission.map(Admission::request_id),
        trace_id = admission.map(|admission| admission.trace().trace_id()),
        method,
        path,
        route,
        policy = exchange.edge.version(),
        experiment = experiment.map(|(experiment, variant)| format!("{experiment}={variant}")),
        feature_flags = context.and_then(flags::told),
        status = exchange.status,
        cut_off = cut.map(Cut::name),
        code = exchange.refusal.map(|(code, _)| code),
        filter = exchange.refusal.map(|(_, filter)| filter),
        limit = exchange.limit.as_ref().map(ToString::to_string),
        upstream = upstream.map(|(_, share)| share.upstream.as_str()),
        upstream_failure = exchange.upstream_failure.map(Cause::name),
        duration_ms = in_flight_ms,
        client_ip = context.map(|context| context.client_ip.to_string()),
        client = client.map(|client| &*client.name),
        tenant = context.and_then(|context| context.tenant_name()),
        plan = tenant.and_then(|tenant| tenant.plan.as_deref()),
        would_refuse = (!would_refuse.is_empty()).then(|| would_refuse.join(" ")),
        subject = identity.map(|who| who.subject.as_str()),
    );
}

/// A request's path for the log: decoded, VPAs masked, at most 256 bytes. Nothing of an ambiguous path is logged, because
/// any of its readings may contain a VPA.
pub(crate) fn told(path: &str) -> Cow<'_, str> {
    const LONGEST: usize = 256;
    let Some(decoded) = filters::shape::decode(path) else { return Cow::Borrowed("(ambiguous)") };
    // It is ASCII, so every cut is between two characters.
    match decoded {
        Cow::Borrowed(path) => masked(path.get(..LONGEST).unwrap_or(path)),
        Cow::Owned(path) => Cow::Owned(masked(path.get(..LONGEST).unwrap_or(&path)).into_owned()),
    }
}

/// Masks everything that looks like a VPA: of `alice@torana` the log keeps `a***@torana`.
pub(crate) fn masked(path: &str) -> Cow<'_, str> {
    if !path.contains('@') {
        return Cow::Borrowed(path);
    }
    let segments = path.split('/').map(|segment| match segment.rsplit_once('@') {
        Some((name, handle)) => {
            let first: String = name.chars().take(1).collect();
            Cow::Owned(format!("{first}***@{handle}"))
        }
        None => Cow::Borrowed(segment),
    });
    Cow::Owned(segments.collect::<Vec<_>>().join("/"))
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn no_whole_vpa_is_written() {
        for (path, expected) in [
            ("/v1/transactions/send", "/v1/transactions/send"),
            ("/v1/vpa/alice@torana", "/v1/vpa/a***@torana"),
            ("/x/a.b-c_9@bank/bob@upi", "/x/a***@bank/b***@upi"),
            ("/x/alice@torana@upi", "/x/a***@upi"),
            ("/x/@bank", "/x/***@bank"),
            ("/v1/vpa/alice%40torana", "/v1/vpa/a***@torana"),
            ("/x/%61lice%40torana%40upi", "/x/a***@upi"),
            ("/v1/vpa/alice%2540torana", "(ambiguous)"),
            ("/v1/vpa/alice%u0040torana/x", "(ambiguous)"),
            ("/x/\u{e9}bob@bank", "(ambiguous)"),
        ] {
            assert_eq!(told(path), expected);
        }
        assert_eq!(told(&format!("/{}", "x".repeat(9_000))).len(), 256);
        assert_eq!(told(&format!("/{}", "%78".repeat(3_000))).len(), 256);
    }
}
