//! Why a request was decided as it was, from its line in the access log.
//!
//! A log has no header field, no query and no body, so this tells what was decided and where the policy says so, never
//! why a token or a signature did not do.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context as _, bail};
use filters::FilterSet;
use filters::chain::Refused;
use filters::failure::Failure;
use filters::filter::LimitName;
use filters::policy::RouteRule;
use serde::Deserialize;

use crate::exchange::Cut;
use crate::explain::Explained;
use crate::load::{self, PolicyFile};
use crate::places::Places;
use crate::upstream::failure::Cause;

/// A line of the access log, the gateway's or Envoy's, which has fewer fields.
#[derive(Debug, Deserialize)]
pub struct Line {
    request_id: String,
    timestamp: String,
    method: String,
    /// With addresses masked.
    path: Option<String>,
    route: Option<String>,
    /// The first digits of the policy's SHA-256.
    policy: Option<String>,
    status: u16,
    /// Why the exchange ended before its answer did.
    cut_off: Option<String>,
    /// Of a refusal.
    code: Option<String>,
    filter: Option<String>,
    /// Which limit refused.
    limit: Option<String>,
    /// Who answered, or was to; in Envoy's log its cluster.
    upstream: Option<String>,
    /// Why no connection to it could be made; in Envoy's log its own words.
    upstream_failure: Option<String>,
    client_ip: Option<String>,
    client: Option<String>,
    tenant: Option<String>,
    subject: Option<String>,
    /// The filter, the code and the route in Envoy's log, `jwt/token_expired/send`.
    refused: Option<String>,
    /// What Envoy says of where an answer came from.
    details: Option<String>,
    /// What Envoy says went wrong.
    flags: Option<String>,
}

impl Line {
    /// Finds a request in a log; `-`: standard input. Of several lines it is the last.
    ///
    /// # Errors
    /// When it cannot be read or does not have the request.
    pub fn find(log: &Path, request_id: &str) -> anyhow::Result<Self> {
        let name = log.display();
        // As a refusal tells it.
        let request_id = request_id.strip_prefix("urn:uuid:").unwrap_or(request_id);
        let found = match log == Path::new("-") {
            true => find(std::io::stdin().lock(), request_id),
            false => find(std::fs::File::open(log).with_context(|| name.to_string())?, request_id),
        };
        match found.with_context(|| name.to_string())? {
            Some(line) => Ok(line),
            None => bail!("{name}: no line of the access log has the request id {request_id}"),
        }
    }
}

/// Longest line that is looked at; ours are shorter.
const MOST_BYTES: u64 = 64 * 1024;

fn find(log: impl Read, request_id: &str) -> anyhow::Result<Option<Line>> {
    let mut log = BufReader::new(log);
    let mut found = None;
    let mut bytes = Vec::new();
    let mut goes_on = false;
    loop {
        bytes.clear();
        if log.by_ref().take(MOST_BYTES).read_until(b'\n', &mut bytes)? == 0 {
            return Ok(found);
        }
        let is_rest = std::mem::replace(&mut goes_on, !bytes.ends_with(b"\n"));
        let text = String::from_utf8_lossy(&bytes);
        if is_rest || !text.contains(request_id) {
            continue;
        }
        // Whoever collects logs may have put something in front.
        let object = text.find('{').and_then(|at| text.get(at..)).unwrap_or_default();
        let line = serde_json::from_str::<Line>(object).map(Line::of_envoy).ok();
        found = line.filter(|line| line.request_id == request_id).or(found);
    }
}

/// What became of the request, told for a person. `passes` when no filter and nothing else at the edge refused it.
///
/// # Errors
/// The mistakes of the policy.
pub fn explain(file: &Path, line: &Line) -> anyhow::Result<Explained> {
    let read = load::read_without_secrets(file);
    let read = read.map_err(|mistakes| anyhow::anyhow!(load::told(&mistakes, file)))?;
    let PolicyFile { text: policy_text, policy, .. } = read;
    let mut told = String::new();
    line.request(&mut told);
    let rule = line.route.as_ref().and_then(|name| policy.rules().iter().find(|rule| rule.name == *name));
    match (rule, &line.route) {
        (Some(rule), _) => line.decision(rule, &Places::new(file, &policy, &policy_text), &mut told),
        (None, Some(name)) => {
            let _ = writeln!(told, "route {name}, which this policy does not have");
        }
        (None, None) => told.push_str("no route\n"),
    }
    line.learned(&mut told);
    line.outcome(rule, &mut told);
    if let Some(cause) = line.upstream_failure.as_deref().filter(|cause| !cause.is_empty()) {
        let known = Cause::ALL.into_iter().find(|known| known.name() == cause);
        let meaning = known.map(|known| format!(": {}", known.meaning())).unwrap_or_default();
        let _ = writeln!(told, "no connection to the upstream ({cause}){meaning}");
    }
    for bound in line.bounds(rule, &Places::new(file, &policy, &policy_text)) {
        let _ = writeln!(told, "{bound}");
    }
    let version = load::version(&policy_text);
    match &line.policy {
        Some(decided) if *decided != version => {
            let _ = writeln!(
                told,
                "note: the policy {decided} decided, and {} is {version}: filters and lines may be others now",
                file.display()
            );
        }
        None => told.push_str("note: this log does not say which policy decided\n"),
        Some(_) => {}
    }
    if line.decided() == Decided::Refused {
        let _ = writeln!(
            told,
            "note: a log has no header fields, no query and no body; with the request in a file, `gateway explain {} \
             request.http --at {}` tells why, unless it is for what had been sent or revoked before",
            file.display(),
            line.timestamp
        );
    }
    Ok(Explained { passes: line.decided() == Decided::Passed, text: told })
}

/// What the line tells of the edge's decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Decided {
    /// The upstream's answer went to the client.
    Passed,
    /// By a filter of the route, or by the edge.
    Refused,
    /// Envoy answered by itself: the upstream was away, say.
    ByEnvoy,
    /// Nobody can tell: the exchange ended before anybody answered.
    Unknown,
}

impl Line {
    fn decided(&self) -> Decided {
        // The gateway tells 0 of an answer that never began, and so does Envoy.
        match (&self.code, self.status, self.details.as_deref()) {
            (Some(_), ..) => Decided::Refused,
            (None, 0, _) => Decided::Unknown,
            (None, _, None | Some("via_upstream")) => Decided::Passed,
            (None, _, Some(_)) => Decided::ByEnvoy,
        }
    }

    /// As the gateway would have written it. What a client sent in that field means nothing where the upstream answered.
    fn of_envoy(mut self) -> Self {
        if self.details.as_deref().is_some_and(|details| details != "via_upstream")
            && let Some((filter, rest)) = self.refused.as_deref().and_then(|refused| refused.split_once('/'))
            && let Some((code, route)) = rest.split_once('/')
            && (FilterSet::NAMES.contains(&filter) || filter == Refused::EDGE)
        {
            (self.filter, self.code) = (Some(filter.to_owned()), Some(code.to_owned()));
            self.route = Some(route.to_owned()).filter(|route| !route.is_empty());
        }
        self
    }

    fn request(&self, told: &mut String) {
        let path = self.path.as_deref().unwrap_or("(path not logged)");
        let from = self.client_ip.as_deref().unwrap_or("nobody knows where");
        let _ = writeln!(told, "{} {path} from {from} at {}", self.method, self.timestamp);
    }

    fn decision(&self, rule: &RouteRule, places: &Places<'_>, told: &mut String) {
        let _ = writeln!(told, "route {}{}", rule.name, places.of_route(rule));
        let refused_by = self.filter.as_deref().filter(|_| self.decided() == Decided::Refused);
        // What the edge itself refuses, it may refuse before, between and after the filters.
        let by_edge = refused_by == Some(Refused::EDGE);
        let plan = self.tenant.as_deref().and_then(|tenant| places.plan_of(tenant));
        let mut before = true;
        for name in rule.chain.names() {
            let refuses = refused_by == Some(name);
            before &= !refuses;
            let says = match (self.decided(), refuses, before) {
                (Decided::Passed, ..) => "passed",
                _ if self.was_sent() => "passed",
                (Decided::Refused, true, _) => "REFUSED",
                (Decided::Refused, false, true) if !by_edge => "passed",
                (Decided::Refused, false, _) | (Decided::ByEnvoy | Decided::Unknown, ..) => "unknown",
            };
            let limit = self.limit.as_deref().filter(|_| refuses).map(LimitName::from);
            let place = places.of_refusal(rule, plan, name, limit.as_ref());
            let _ = writeln!(told, "  {name:<12} {says:<9}{place}");
        }
        for name in rule.except.iter().filter(|name| rule.chain.names().all(|used| used != *name)) {
            let _ = writeln!(told, "  {name:<12} left out by `except` of the route");
        }
        if refused_by.is_some_and(|filter| !by_edge && rule.chain.names().all(|name| name != filter)) {
            let filter = refused_by.unwrap_or_default();
            let _ = writeln!(told, "  {filter:<12} REFUSED, and is no filter of this route in this policy");
        }
    }

    fn learned(&self, told: &mut String) {
        for (what, fact) in [("subject", &self.subject), ("tenant", &self.tenant), ("client", &self.client)] {
            if let Some(fact) = fact {
                let _ = writeln!(told, "{what}: {fact}");
            }
        }
    }

    /// The route's upstreams, of which this was one; the one alone, if the log tells.
    fn upstreams<'r>(&self, rule: Option<&'r RouteRule>) -> Vec<&'r str> {
        let all = rule.into_iter().flat_map(|rule| &rule.upstreams).map(|share| share.upstream.as_str());
        // Envoy's clusters have a mark behind the name.
        let told = self.upstream.as_deref().map(|name| name.split_once('~').map_or(name, |(name, _)| name));
        match all.clone().find(|name| told == Some(*name)) {
            Some(one) => vec![one],
            None => all.collect(),
        }
    }

    /// What failed at the upstream, or on the way there.
    fn failure(&self) -> Option<Failure> {
        let by_edge = self.code.as_ref().filter(|_| self.filter.as_deref() == Some(Refused::EDGE));
        let told =
            by_edge.and_then(|code| Failure::ALL.into_iter().find(|failure| failure.refusal().code == code));
        let flagged = || crate::envoy::failure(self.flags.as_deref()?);
        // Before an answer it is the client that took too long.
        let over = self.status > 0 && self.cut_off.as_deref() == Some(Cut::TimeOver.name());
        let cut = || over.then_some(Failure::UpstreamTimeout);
        told.or_else(flagged).or_else(cut)
    }

    /// Whether it had passed every filter, whatever was answered then.
    fn was_sent(&self) -> bool {
        matches!(self.failure(), Some(Failure::UpstreamTimeout | Failure::UpstreamFailed))
    }

    /// The bounds of the route or of its upstream that ended it.
    fn bounds(&self, rule: Option<&RouteRule>, places: &Places<'_>) -> Vec<String> {
        let Some(rule) = rule else { return Vec::new() };
        match self.failure() {
            Some(Failure::UpstreamOverloaded) => {
                let upstreams = self.upstreams(Some(rule)).into_iter();
                upstreams.filter_map(|name| places.max_in_flight(name)).collect()
            }
            Some(Failure::UpstreamTimeout) => {
                let mut bounds: Vec<String> = self
                    .upstreams(Some(rule))
                    .into_iter()
                    .filter_map(|name| places.timeout_ms(rule, name))
                    .chain(places.websocket(rule))
                    .collect();
                bounds.dedup();
                bounds
            }
            Some(_) | None => Vec::new(),
        }
    }

    fn outcome(&self, rule: Option<&RouteRule>, told: &mut String) {
        let status = self.status;
        let _ = match (self.decided(), &self.code, &self.filter) {
            (Decided::Refused, Some(code), Some(filter)) if filter != Refused::EDGE => {
                writeln!(told, "=> {status} {code}, by {filter}")
            }
            (Decided::Refused, code, _) => {
                let by = if rule.is_some() { "the edge, by no filter" } else { "the edge" };
                writeln!(told, "=> {status} {}, by {by}", code.as_deref().unwrap_or_default())
            }
            (Decided::Passed, ..) => {
                let upstreams = self.upstreams(rule).join(" or ");
                match &self.cut_off {
                    Some(why) => writeln!(told, "=> {status}, answered by {upstreams}, cut off ({why})"),
                    None => writeln!(told, "=> {status}, answered by {upstreams}"),
                }
            }
            (Decided::Unknown, ..) => {
                let why = self.cut_off.as_ref().or(self.details.as_ref());
                let why = why.map(|why| format!(" ({why})")).unwrap_or_default();
                writeln!(told, "=> no answer: cut off before there was one{why}")
            }
            (Decided::ByEnvoy, ..) => {
                let details = self.details.as_deref().unwrap_or_default();
                writeln!(told, "=> {status}, by Envoy itself ({details})")
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"request_id":"b","timestamp":"2026-11-24T12:00:00Z","method":"GET","status":200}"#;

    #[test]
    fn a_line_is_found_among_others() {
        fn check(log: &str, request_id: &str, expected: Option<u16>) {
            let found = find(log.as_bytes(), request_id).unwrap_or_default();
            assert_eq!(found.map(|line| line.status), expected, "{log}");
        }
        check("", "b", None);
        check(LINE, "b", Some(200));
        check(LINE, "c", None);
        check(&format!("nonsense b\n{LINE}\n{{\"request_id\":\"b\"}}\n"), "b", Some(200));
        check(&format!("{LINE}\n{}\n", LINE.replace("200", "401")), "b", Some(401));
        check(&format!("edge-1 | {LINE}\n"), "b", Some(200));
        // What only quotes the id is another request.
        check(&LINE.replace("\"b\"", "\"a\",\"path\":\"/b\""), "b", None);
        let long = "x".repeat(200_000);
        check(&format!("{long}{LINE}\n{LINE}\n"), "b", Some(200));
        check(&format!("{long}{LINE}\n"), "b", None);
    }
}
