//! Listeners: TLS, the bounds on connections and requests, and the module.

use certs::{Certificates, Clients};
use filters::admission::HIDDEN_FROM_CLIENTS;
use filters::policy::{At, Listener};
use filters::shape::{self, TRANSFER_CODING};
use serde_json::{Value, json};

use super::handed::metadata;
use super::{REFUSED_FIELD, Source, access_log, compression, local_reply, ms, routes, socket};
use crate::framing::MOST_HEADER_KIB;
use crate::load::ListenerFiles;

/// What Envoy holds of a request's body. More than the module does, so that the module answers first.
const BUFFER_BYTES: usize = 4 * shape::Config::MOST_BODY_BYTES;
/// Envoy's own bounds on a header, beyond those of the filter `shape`, which answers with a problem.
const MOST_HEADERS: u32 = 256;

impl Source {
    pub(super) fn listeners(&self) -> anyhow::Result<Vec<Value>> {
        let listeners = self.document().listeners.iter().zip(&self.loaded.listeners);
        listeners.map(|(At { value, .. }, files)| self.listener(value, files)).collect()
    }

    fn listener(&self, listener: &Listener, files: &ListenerFiles) -> anyhow::Result<Value> {
        Ok(json!({
            "metadata": files.clients.trust().map_or(json!({}), |trust| metadata(trust, self.now)),
            "name": listener.name,
            "address": socket(listener.address),
            "per_connection_buffer_limit_bytes": BUFFER_BYTES,
            "listener_filters": [{
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector",
                },
            }],
            "listener_filters_timeout": ms(listener.handshake_timeout_ms),
            "filter_chains": [{
                "transport_socket_connect_timeout": ms(listener.handshake_timeout_ms),
                "transport_socket": self.downstream_tls(files),
                "filters": [self.connection_limit(listener), self.http(listener)?],
            }],
        }))
    }

    fn downstream_tls(&self, files: &ListenerFiles) -> Value {
        // The first is for those who ask for a name that none bears.
        let Certificates { default, others } = &files.certificates;
        let own: Vec<_> =
            std::iter::once(default).chain(others.iter().map(|named| &named.identity)).collect();
        let mut common = json!({
            "tls_params": { "tls_minimum_protocol_version": "TLSv1_2" },
            "alpn_protocols": ["h2", "http/1.1"],
        });
        let peers = files.clients.trust();
        self.delivery.fill(&mut common, &own, peers.map(|trust| (trust, json!({}))));
        json!({
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": common,
                "require_client_certificate": matches!(files.clients, Clients::Required(_)),
                // A resumed session skips the verifier: a client that lost its CA would keep coming in.
                "disable_stateless_session_resumption": peers.is_some(),
                "disable_stateful_session_resumption": peers.is_some(),
            },
        })
    }

    fn connection_limit(&self, listener: &Listener) -> Value {
        json!({
            "name": "envoy.filters.network.connection_limit",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit",
                "stat_prefix": listener.name,
                "max_connections": listener.max_connections,
            },
        })
    }

    fn http(&self, listener: &Listener) -> anyhow::Result<Value> {
        // The module reads the certificate itself, so that it finds in it what the gateway finds.
        let (forward, details) = match listener.tls.client_certificates {
            Some(_) => ("SANITIZE_SET", json!({ "cert": true })),
            None => ("SANITIZE", json!({})),
        };
        // The module refuses those that the policy does not let through.
        let upgrades = match self.loaded.policy.rules().iter().any(|rule| rule.websocket.is_some()) {
            true => json!([{ "upgrade_type": "websocket" }]),
            false => json!([]),
        };
        Ok(json!({
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": listener.name,
                "codec_type": "AUTO",
                "access_log": [access_log::json_lines(&self.loaded.version)],
                "route_config": self.routes()?,
                "http_filters": self.filters()?,
                "early_header_mutation_extensions": [early_mutations()],
                // The module is told the address at the other end and what the client wrote, and makes of both
                // what the policy says.
                "use_remote_address": true,
                // An empty list would mean the private networks: one address that nobody has means nobody.
                "internal_address_config": {
                    "cidr_ranges": [{ "address_prefix": "255.255.255.255", "prefix_len": 32 }],
                },
                "skip_xff_append": true,
                "forward_client_cert_details": forward,
                "set_current_client_cert_details": details,
                "generate_request_id": false,
                "server_header_transformation": "PASS_THROUGH",
                // The path is decided on, signed and sent on exactly as it came.
                "normalize_path": false,
                "merge_slashes": false,
                "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
                "max_request_headers_kb": MOST_HEADER_KIB,
                "common_http_protocol_options": {
                    "max_headers_count": MOST_HEADERS,
                    "idle_timeout": ms(listener.idle_timeout_ms),
                    "max_requests_per_connection": listener.max_requests_per_connection,
                    "headers_with_underscores_action": "ALLOW",
                },
                "http2_protocol_options": {
                    "max_concurrent_streams": 100,
                    "initial_stream_window_size": 65_536,
                    "initial_connection_window_size": 1_048_576,
                    // Go's client resets every second stream that has ended, if it has a timeout. So only the number of requests
                    // bounds resets: Envoy's default, 1000 and 33 a second, ends such a connection in the middle. Streams that
                    // are reset before their response have another bound (`overload.premature_reset_total_stream_count`).
                    "stream_reset_burst": listener.max_requests_per_connection,
                    "stream_reset_rate": 33,
                    // WebSockets over HTTP/2 (RFC 8441). No route serves any other CONNECT.
                    "allow_connect": true,
                    // A malformed request ends its own stream, and no other stream of the connection.
                    "override_stream_error_on_invalid_http_message": true,
                },
                "request_headers_timeout": ms(listener.request_timeout_ms),
                "request_timeout": ms(self.request_timeout_ms(listener)),
                "stream_idle_timeout": ms(self.longest_route_ms().saturating_add(listener.request_timeout_ms)),
                "delayed_close_timeout": "1s",
                "drain_timeout": "5s",
                "upgrade_configs": upgrades,
                "local_reply_config": local_reply::problems(),
            },
        }))
    }

    /// In the order in which they see a request; they see its answer in the other one. So those that compress come first,
    /// and the module sees every answer plain.
    fn filters(&self) -> anyhow::Result<Vec<Value>> {
        let router = json!({
            "name": "envoy.filters.http.router",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                "suppress_envoy_headers": true,
            },
        });
        let mut filters = compression::filters(self.loaded.policy.rules());
        filters.extend([self.module()?, router]);
        Ok(filters)
    }

    /// Milliseconds for a whole request to arrive; 0: any time. Envoy has no such time of a route, so it must be long enough
    /// for every body that is forwarded as it arrives.
    fn request_timeout_ms(&self, listener: &Listener) -> u64 {
        let rules = self.loaded.policy.rules().iter().filter(|rule| rule.streams.is_some());
        let times = || rules.clone().flat_map(|rule| rule.timeouts_ms.iter().copied());
        match times().any(|ms| ms == 0) {
            true => 0,
            false => times().max().unwrap_or_default().max(listener.request_timeout_ms),
        }
    }

    fn longest_route_ms(&self) -> u64 {
        self.loaded
            .policy
            .rules()
            .iter()
            .flat_map(|rule| &rule.timeouts_ms)
            .max()
            .copied()
            .unwrap_or_default()
    }

    /// The module. When it dies its requests are refused, and it is started again; it is never left out.
    fn module(&self) -> anyhow::Result<Value> {
        let mut vm = json!({
            "vm_id": "torana",
            "runtime": "envoy.wasm.runtime.v8",
            "code": { "local": { "filename": self.module } },
            "allow_precompiled": false,
        });
        if !self.variables.is_empty() {
            vm["environment_variables"] = json!({ "host_env_keys": self.variables });
        }
        Ok(json!({
            "name": "envoy.filters.http.wasm",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
                "config": {
                    "name": "torana",
                    "root_id": "torana",
                    "vm_config": vm,
                    "failure_policy": "FAIL_RELOAD",
                    "reload_config": { "backoff": { "base_interval": "0.050s", "max_interval": "1s" } },
                    // The body goes on arriving while the header is held back.
                    "allow_on_headers_stop_iteration": true,
                    "configuration": {
                        "@type": "type.googleapis.com/google.protobuf.StringValue",
                        "value": serde_json::to_string(&self.compiled)?,
                    },
                },
            },
        }))
    }
}

/// The name that routes live under.
pub(super) fn route_config(routes: Vec<Value>) -> Value {
    json!({
        "name": "torana",
        // What Envoy adds is told nobody; nor is what is behind it.
        "response_headers_to_remove": HIDDEN_FROM_CLIENTS,
        "request_headers_to_remove": [super::ROUTE_FIELD, super::SHARE_FIELD, super::PEER_FIELD, super::CERTIFICATE_FIELD],
        "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes, "require_tls": "NONE" }],
        "max_direct_response_body_size_bytes": routes::NO_ROUTE_BYTES,
    })
}

/// Envoy removes `Transfer-Encoding` before the module sees the request. This tells the module what the client sent.
fn early_mutations() -> Value {
    json!({
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [
                // It marks the module's refusals. A client that wrote it would get Envoy's own words.
                { "remove": REFUSED_FIELD },
                { "remove": TRANSFER_CODING },
                {
                    "append": {
                        "header": { "key": TRANSFER_CODING, "value": "%REQ(TRANSFER-ENCODING)%" },
                        "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
                    },
                },
            ],
        },
    })
}
