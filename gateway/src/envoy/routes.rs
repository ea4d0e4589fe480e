//! Routes: who serves what the module has let in, how long it may take, and who gets a copy.

use anyhow::Context as _;
use filters::policy::{RouteRule, Share, WebSocket};
use serde_json::{Value, json};

use super::clusters::Carries;
use super::{MIRROR_FIELD, ROUTE_FIELD, SHARE_FIELD, Source, compression, listener, ms};

/// Envoy's answer to what no route serves is never seen: the module has answered before.
pub(super) const NO_ROUTE_BYTES: u32 = 4_096;

impl Source {
    pub(super) fn routes(&self) -> anyhow::Result<Value> {
        let mut routes = Vec::new();
        for rule in self.loaded.policy.rules() {
            for (position, share) in rule.upstreams.iter().enumerate() {
                let route = self.route(rule, position, share)?;
                if let Some(bounds) = rule.websocket {
                    let cluster = self.cluster(&share.upstream, Carries::WebSockets)?;
                    routes.push(of_websocket(route.clone(), bounds, &cluster));
                }
                routes.push(route);
            }
        }
        Ok(listener::route_config(routes))
    }

    /// The way of a rule to one of its upstreams. Of several the module has chosen one.
    fn route(&self, rule: &RouteRule, position: usize, share: &Share) -> anyhow::Result<Value> {
        let upstream = self.loaded.policy.upstream(&share.upstream).context("a share is of no upstream")?;
        let mut action = json!({ "cluster": self.cluster(&share.upstream, Carries::Requests)? });
        // Envoy gives a copy the time of its original, and so does the gateway.
        action["timeout"] = json!(ms(*rule.timeouts_ms.get(position).context("a share has no time")?));
        let total_ms = *rule.timeouts_ms.get(position).context("a share has no time")?;
        if rule.streams.is_some() {
            // `timeout` begins only when the whole request has arrived.
            action["timeout"] = json!("0s");
            if total_ms > 0 {
                action["max_stream_duration"] = json!({ "max_stream_duration": ms(total_ms) });
            }
        }
        if let Some(idle_ms) = rule.idle_timeout_ms {
            action["idle_timeout"] = json!(ms(idle_ms));
        }
        // A connection that could not be made has carried nothing; of what it has carried nothing is sent twice that is
        // not safe.
        action["retry_policy"] = match (rule.retries, upstream.retry_budget_percent) {
            (0, _) | (_, 0) => json!({ "retry_on": "connect-failure", "num_retries": 2 }),
            (times, _) => json!({ "retry_on": "connect-failure,reset", "num_retries": times }),
        };
        if let Some(path) = &rule.rewrite {
            // All of the path, whatever it is, and nothing of the query.
            action["regex_rewrite"] =
                json!({ "pattern": { "regex": "^/[^?]*" }, "substitution": path.replace('\\', "\\\\") });
        }
        if let Some(mirror) = &rule.mirror {
            action["request_mirror_policies"] = json!([{
                "cluster": self.cluster(&mirror.upstream, Carries::Copies)?,
                "runtime_fraction": { "default_value": { "numerator": mirror.percent, "denominator": "HUNDRED" } },
                "trace_sampled": false,
                "disable_shadow_host_suffix_append": true,
                "request_headers_mutations": [{
                    "append": {
                        "header": { "key": MIRROR_FIELD, "value": "1" },
                        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                    },
                }],
            }]);
        }
        let mut fields = vec![json!({ "name": ROUTE_FIELD, "string_match": { "exact": rule.name } })];
        if rule.upstreams.len() > 1 {
            fields.push(json!({ "name": SHARE_FIELD, "string_match": { "exact": position.to_string() } }));
        }
        Ok(json!({
            "name": rule.name,
            "match": { "prefix": "/", "headers": fields },
            "route": action,
            "typed_per_filter_config": compression::of_route(rule),
        }))
    }
}

/// The same route for those who ask for a WebSocket.
fn of_websocket(mut route: Value, bounds: WebSocket, cluster: &str) -> Value {
    let WebSocket { idle_timeout_ms, most_s, .. } = bounds;
    let asks = json!({ "name": "upgrade", "string_match": { "exact": "websocket", "ignore_case": true } });
    if let Some(fields) = route["match"]["headers"].as_array_mut() {
        fields.push(asks);
    }
    route["route"]["cluster"] = json!(cluster);
    // Of the answer that opens it and of what passes then alike.
    route["route"]["timeout"] = json!("0s");
    route["route"]["idle_timeout"] = json!(ms(idle_timeout_ms));
    route["route"]["max_stream_duration"] = json!({ "max_stream_duration": format!("{most_s}s") });
    route
}
