//! How many WebSockets may be open at once: of a user, of a tenant and of a route.
//!
//! A WebSocket stays for an hour where a request stays for milliseconds, so it takes no place of the requests', and has
//! limits of its own on every route that serves WebSockets. The places are held in shared state, and are free again when the
//! WebSocket ends.

use crate::admission::asks_for_websocket;
use crate::filter::{Context, Filter, Host, Refusal, Request, Verdict, state_unavailable};
use crate::plan::Scope;
use crate::policy::WebSocket;
use crate::state::{Answer, Counted, Mode, Op};
use crate::subject::{By, counter_key};

/// Seconds that a place outlives the longest WebSocket: the time in which it opens and closes.
const LEASE_MARGIN_S: u64 = 30;

/// The limits of one route.
#[derive(Debug)]
pub(crate) struct Limits {
    route: String,
    bounds: WebSocket,
}

impl Limits {
    pub(crate) fn new(route: &str, bounds: WebSocket) -> Self {
        Self { route: route.to_owned(), bounds }
    }

    fn limits(&self) -> [(By, u32, &'static str); 3] {
        let WebSocket { max_per_user, max_per_tenant, max, .. } = self.bounds;
        [
            (By::User, max_per_user, "This user has as many WebSockets open here as one may."),
            (By::Tenant, max_per_tenant, "This tenant has as many WebSockets open here as one may."),
            (By::Route, max, "As many WebSockets are open here as may be."),
        ]
    }

    fn key(&self, by: By, context: &Context) -> Option<String> {
        // Each route's own, whoever is counted.
        counter_key("websocket", &self.route, by, Scope::Route, &self.route, context)
    }
}

impl Filter for Limits {
    fn name(&self) -> &'static str {
        "websocket"
    }

    fn head(&self, request: &Request<'_>, _host: &dyn Host, context: &mut Context) -> Verdict {
        if !asks_for_websocket(request) {
            return Verdict::Pass;
        }
        let lease_ms = self.bounds.most_s.saturating_add(LEASE_MARGIN_S).saturating_mul(1_000);
        for (by, most, _) in self.limits() {
            // A route without tokens knows no user. The limit of the route holds everywhere.
            if let Some(key) = self.key(by, context) {
                context.ask_of(Counted::Shared, Op::Hold { key, most, lease_ms, mode: Mode::Enforce });
            }
        }
        Verdict::Pass
    }

    fn answered(&self, op: &Op, answer: &Answer, context: &mut Context) -> Verdict {
        match answer {
            Answer::Held(place) => {
                context.held.push(Op::Release { key: op.key().to_owned(), place: *place });
                Verdict::Pass
            }
            Answer::Busy { .. } => {
                let mut limits = self.limits().into_iter();
                let full = limits.find(|(by, ..)| self.key(*by, context).as_deref() == Some(op.key()));
                let detail = full.map_or("", |(_, _, detail)| detail);
                let detail = format!("{detail} Close one, or try again later.");
                Refusal::new(429, "websockets_limited", detail).header("retry-after", "30").into()
            }
            Answer::NotAsked | Answer::NotCounted | Answer::WouldRefuse => Verdict::Pass,
            Answer::Away
            | Answer::Taken(_)
            | Answer::Exhausted { .. }
            | Answer::Spent(_)
            | Answer::Overspent(_)
            | Answer::Remembered
            | Answer::Seen
            | Answer::TooOld
            | Answer::Released
            | Answer::Tallied => state_unavailable(),
        }
    }
}
