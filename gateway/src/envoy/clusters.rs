//! Clusters: how upstreams and the state service are reached, known, and left out when they fail.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use anyhow::Context as _;
use filters::policy::{Address, At, Protocol, StateService, Upstream, UpstreamTls};
use serde_json::{Value, json};

use super::handed::metadata;
use super::{STATE_CLUSTER, Source, ms, socket};
use crate::load::UpstreamFiles;
use crate::upstream::{LEAST_REPEATS, MOST_COPIES, MOST_STREAMS, first_retry_ms, resolve_interval_ms};

/// A connection to an upstream takes no new request after so long. Envoy keeps those that were made with a certificate
/// before: this is how soon nobody shows that any more, and it can be revoked. `certs` waits for it.
const LONGEST_CONNECTION_MS: u64 = 5_000;

/// Where a cluster says how it speaks HTTP.
const HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What a cluster carries to its upstream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Carries {
    Requests,
    /// WebSockets, which stay: they must take no room from requests.
    WebSockets,
    /// Copies of requests, which must take no room from those. What becomes of a copy says nothing of an address.
    Copies,
}

impl Source {
    pub(super) fn clusters(&self) -> anyhow::Result<Vec<Value>> {
        let document = self.document();
        let mut clusters = Vec::new();
        let rules = self.loaded.policy.rules();
        for (name, At { value, .. }) in &document.upstreams {
            let mut mirrors = rules.iter().filter_map(|rule| rule.mirror.as_ref());
            let copies = mirrors.any(|mirror| mirror.upstream == *name).then_some(Carries::Copies);
            let mut opening = rules.iter().filter(|rule| rule.websocket.is_some());
            let opens = opening.any(|rule| rule.upstreams.iter().any(|share| share.upstream == *name));
            let websockets = opens.then_some(Carries::WebSockets);
            for carries in [Some(Carries::Requests), websockets, copies].into_iter().flatten() {
                let mut cluster = self.upstream(name, &self.cluster(name, carries)?, value, carries)?;
                // No part of its name, which stays when somebody is revoked.
                if let Some(trust) = &self.files(name)?.trust {
                    cluster["metadata"] = metadata(trust, self.now);
                }
                clusters.push(cluster);
            }
        }
        if let Some(At { value, .. }) = &document.state.service {
            let mut cluster = self.state(value)?;
            if let Some(trust) = self.state.as_ref().and_then(|files| files.trust.as_ref()) {
                cluster["metadata"] = metadata(trust, self.now);
            }
            clusters.push(cluster);
        }
        Ok(clusters)
    }

    /// What Envoy calls an upstream: its name, and a mark of what it is. A connection that still serves by the policy
    /// before finds that policy's upstream, or none, and never another one under the same name.
    pub(super) fn cluster(&self, name: &str, carries: Carries) -> anyhow::Result<String> {
        let upstream = self
            .loaded
            .policy
            .upstream(name)
            .context("the policy names an upstream that it does not have")?;
        let mut hasher = DefaultHasher::new();
        self.upstream(name, "", upstream, carries)?.to_string().hash(&mut hasher);
        let mark = hasher.finish();
        Ok(match carries {
            Carries::Requests => format!("{name}~{mark:016x}"),
            Carries::WebSockets => format!("{name}~websockets~{mark:016x}"),
            Carries::Copies => format!("{name}~copies~{mark:016x}"),
        })
    }

    fn files(&self, name: &str) -> anyhow::Result<&UpstreamFiles> {
        self.loaded.upstreams.get(name).context("an upstream's files were not loaded")
    }

    fn upstream(
        &self,
        name: &str,
        cluster: &str,
        upstream: &Upstream,
        carries: Carries,
    ) -> anyhow::Result<Value> {
        let endpoints: Vec<Value> = upstream
            .addresses
            .iter()
            .map(|address| match address {
                Address::Ip(at) => endpoint(&socket(*at)),
                Address::Name(host, port) => {
                    endpoint(&json!({ "socket_address": { "address": host, "port_value": port } }))
                }
            })
            .collect();
        let (told, most) = match carries {
            Carries::Requests => (name.to_owned(), upstream.max_in_flight),
            Carries::WebSockets => (format!("{name}~websockets"), upstream.max_websockets),
            Carries::Copies => (format!("{name}~copies"), MOST_COPIES),
        };
        let mut cluster = json!({
            "name": cluster,
            "alt_stat_name": told,
            "lb_policy": "ROUND_ROBIN",
            "connect_timeout": ms(upstream.connect_timeout_ms),
            "load_assignment": { "cluster_name": cluster, "endpoints": [{ "lb_endpoints": endpoints }] },
            "typed_extension_protocol_options": http(upstream.idle_timeout_ms, upstream.protocol.value),
            "circuit_breakers": { "thresholds": [{
                "max_requests": most,
                // Those that wait for a connection. If there were no more connections than requests, they would wait for
                // one that another request has, where they are to be refused.
                "max_pending_requests": most,
                "max_connections": u32::MAX,
            }] },
            "common_lb_config": {
                // When every address is left out, requests are refused rather than sent to one that fails.
                "healthy_panic_threshold": { "value": 0 },
                // What is found of an address counts at once; by default Envoy gathers it for a second.
                "update_merge_window": "0s",
            },
        });
        if let Some(tls) = upstream.tls.tls() {
            cluster["transport_socket"] = self.upstream_tls(tls, self.files(name)?, upstream.protocol.value);
        }
        if upstream.addresses.iter().any(Address::is_name) {
            let interval = ms(resolve_interval_ms(upstream));
            // Each address of a name is an endpoint. While lookups fail, the last result stays.
            cluster["cluster_type"] = json!({
                "name": "envoy.cluster.dns",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.clusters.dns.v3.DnsCluster",
                    "dns_lookup_family": "ALL",
                    "dns_refresh_rate": interval,
                    "dns_failure_refresh_rate": {
                        "base_interval": ms(first_retry_ms(upstream)),
                        "max_interval": interval,
                    },
                },
            });
        } else {
            cluster["type"] = json!("STATIC");
        }
        let room = &mut cluster["circuit_breakers"]["thresholds"][0];
        match upstream.retry_budget_percent {
            // Nothing is repeated there: what is tried again are connections that could not be made, which are nobody's
            // load.
            0 => room["max_retries"] = json!(most),
            percent => {
                room["retry_budget"] = json!({
                    "budget_percent": { "value": percent },
                    "min_retry_concurrency": LEAST_REPEATS,
                });
            }
        }
        if let (1.., Carries::Requests | Carries::WebSockets) = (upstream.outlier.failures, carries) {
            let eject = ms(upstream.outlier.eject_ms);
            // Split, a connection that stands would be a success, and no number of requests without an answer failures in
            // a row. Not split, whatever Envoy finds is a 5xx of its own; those of the upstream are answers like others.
            cluster["typed_extension_protocol_options"][HTTP]["outlier_detection"] =
                json!({ "error_matcher": { "not_match": { "any_match": true } } });
            cluster["outlier_detection"] = json!({
                "split_external_local_origin_errors": false,
                "consecutive_5xx": upstream.outlier.failures,
                "enforcing_consecutive_5xx": 100,
                "enforcing_consecutive_gateway_failure": 0,
                "enforcing_success_rate": 0,
                "base_ejection_time": eject,
                "max_ejection_time": eject,
                "max_ejection_percent": 100,
                "interval": "1s",
            });
        }
        if let Some(health) = &upstream.health {
            let first = upstream.addresses.first().map(ToString::to_string).unwrap_or_default();
            let authority = upstream.tls.tls().map_or(first, |tls| tls.server_name.value.clone());
            cluster["health_checks"] = json!([{
                "timeout": ms(health.timeout_ms),
                "interval": ms(health.interval_ms),
                "no_traffic_interval": ms(health.interval_ms),
                "unhealthy_threshold": health.unhealthy_after,
                "healthy_threshold": health.healthy_after,
                "http_health_check": {
                    "codec_client_type": if upstream.protocol.value.multiplexes() { "HTTP2" } else { "HTTP1" },
                    "path": health.path,
                    "host": authority,
                    // Otherwise one answer other than 200 would do, whatever the threshold.
                    "retriable_statuses": [{ "start": 100, "end": 600 }],
                },
            }]);
        }
        Ok(cluster)
    }

    /// TLS, with the upstream's name in its certificate to the letter.
    fn upstream_tls(&self, tls: &UpstreamTls, files: &UpstreamFiles, protocol: Protocol) -> Value {
        let name = &tls.server_name.value;
        let san_type = if name.parse::<std::net::IpAddr>().is_ok() { "IP_ADDRESS" } else { "DNS" };
        let called = json!({
            "match_typed_subject_alt_names": [{ "san_type": san_type, "matcher": { "exact": name } }],
        });
        let mut common = json!({
            // As a client Envoy would stop at 1.2.
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_2",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "alpn_protocols": match protocol {
                Protocol::Http1 | Protocol::H2c => ["http/1.1"],
                Protocol::H2 => ["h2"],
            },
        });
        let own: Vec<_> = files.identity.iter().collect();
        self.delivery.fill(&mut common, &own, files.trust.as_ref().map(|trust| (trust, called)));
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": name,
                "common_tls_context": common,
            },
        })
    }

    fn state(&self, service: &StateService) -> anyhow::Result<Value> {
        const IDLE_MS: u64 = 20_000;
        const MOST: u32 = 1_024;
        let address = match (&service.socket, service.address) {
            (Some(path), _) => json!({ "pipe": { "path": self.loaded.folder.join(path) } }),
            (None, Some(address)) => socket(address),
            (None, None) => anyhow::bail!("the state service has neither `address` nor `socket`"),
        };
        let mut cluster = json!({
            "name": STATE_CLUSTER,
            "type": "STATIC",
            "connect_timeout": ms(service.timeout_ms),
            "load_assignment": {
                "cluster_name": STATE_CLUSTER,
                "endpoints": [{ "lb_endpoints": [endpoint(&address)] }],
            },
            "typed_extension_protocol_options": http(IDLE_MS, Protocol::Http1),
            "circuit_breakers": { "thresholds": [{
                "max_connections": MOST, "max_pending_requests": MOST, "max_requests": MOST,
            }] },
        });
        if let (Some(tls), Some(files)) = (&service.tls, &self.state) {
            cluster["transport_socket"] = self.upstream_tls(&(&tls.client).into(), files, Protocol::Http1);
        }
        Ok(cluster)
    }
}

fn endpoint(address: &Value) -> Value {
    json!({ "endpoint": { "address": address } })
}

fn http(idle_ms: u64, protocol: Protocol) -> Value {
    let speaks = match protocol {
        Protocol::Http1 => json!({ "http_protocol_options": {} }),
        Protocol::H2 | Protocol::H2c => {
            json!({ "http2_protocol_options": { "max_concurrent_streams": MOST_STREAMS } })
        }
    };
    json!({
        HTTP: {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": speaks,
            "common_http_protocol_options": {
                "idle_timeout": ms(idle_ms),
                "max_connection_duration": ms(LONGEST_CONNECTION_MS),
            },
        },
    })
}
