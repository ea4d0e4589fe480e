//! Routes: who serves what the module has let in, how long it may take, and who gets a copy.

use filters::policy::RouteRule;
use serde_json::{Value, json};

use super::{MIRROR_FIELD, ROUTE_FIELD, Source, listener, ms};

/// Envoy's answer to what no route serves is never seen: the module has answered before.
pub(super) const NO_ROUTE_BYTES: u32 = 4_096;

impl Source {
    pub(super) fn routes(&self) -> anyhow::Result<Value> {
        let routes =
            self.loaded.policy.rules().iter().map(|rule| self.route(rule)).collect::<anyhow::Result<_>>();
        Ok(listener::route_config(routes?))
    }

    fn route(&self, rule: &RouteRule) -> anyhow::Result<Value> {
        let mut action = match rule.upstreams.as_slice() {
            [only] => json!({ "cluster": self.cluster(&only.upstream)? }),
            several => {
                let mut shares = Vec::new();
                for share in several {
                    shares.push(json!({ "name": self.cluster(&share.upstream)?, "weight": share.weight }));
                }
                json!({ "weighted_clusters": { "clusters": shares } })
            }
        };
        action["timeout"] = json!(ms(rule.timeout_ms));
        // A connection that could not be made has carried nothing; nothing else is ever sent twice.
        action["retry_policy"] = json!({ "retry_on": "connect-failure", "num_retries": 2 });
        if let Some(path) = &rule.rewrite {
            // All of the path, whatever it is, and nothing of the query.
            action["regex_rewrite"] =
                json!({ "pattern": { "regex": "^/[^?]*" }, "substitution": path.replace('\\', "\\\\") });
        }
        if let Some(mirror) = &rule.mirror {
            action["request_mirror_policies"] = json!([{
                "cluster": self.cluster(&mirror.upstream)?,
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
        Ok(json!({
            "name": rule.name,
            "match": {
                "prefix": "/",
                "headers": [{ "name": ROUTE_FIELD, "string_match": { "exact": rule.name } }],
            },
            "route": action,
        }))
    }
}
