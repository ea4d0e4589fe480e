//! Answers compressed, by Envoy's own compressor: one for each settings that a route has, off but on those routes.
//!
//! It sees the client's `Accept-Encoding` as it came, and the answer as the module leaves it; what it would compress and
//! the policy would not, the module has marked. Where it leaves a tag weak, or finds `Vary` said, the module has been too.

use std::collections::BTreeMap;

use filters::compression::Config;
use filters::policy::RouteRule;
use serde_json::{Value, json};

use crate::compression::LEVEL;

/// The compressors that the routes need.
pub(super) fn filters(rules: &[RouteRule]) -> Vec<Value> {
    let configs = rules.iter().filter_map(|rule| rule.compression.as_ref());
    let by_name: BTreeMap<String, &Config> = configs.map(|config| (name(config), config)).collect();
    by_name.into_iter().map(|(name, config)| filter(&name, config)).collect()
}

/// What a route says of compressors: which is its own.
pub(super) fn of_route(rule: &RouteRule) -> Value {
    let Some(config) = &rule.compression else { return json!({}) };
    json!({
        name(config): {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.CompressorPerRoute",
            "overrides": { "response_direction_config": {} },
        },
    })
}

/// Equal for equal settings alone.
fn name(Config { least_bytes, types }: &Config) -> String {
    format!("torana.compression/{least_bytes}/{}", types.join(","))
}

fn filter(name: &str, Config { least_bytes, types }: &Config) -> Value {
    let types: Vec<Value> = types.iter().map(|name| json!({ "exact": name, "ignore_case": true })).collect();
    json!({
        "name": name,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor",
            "response_direction_config": {
                "common_config": {
                    "enabled": { "default_value": false, "runtime_key": "torana.compression" },
                    "min_content_length": least_bytes,
                    "content_type_matcher": types,
                },
                // Parts are of what the upstream has.
                "uncompressible_response_codes": [206],
            },
            // Of two codings that a client likes as much.
            "choose_first": true,
            "compressor_library": {
                "name": "gzip",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip",
                    "compression_level": format!("COMPRESSION_LEVEL_{LEVEL}"),
                },
            },
        },
    })
}
