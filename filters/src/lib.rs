//! The policy document and every decision of the edge.
//!
//! Owns what a request must satisfy to pass: who may call, how often, signed how, replayed or not, routed
//! where. The gateway runs it natively and Envoy as WASM; both get the same answers because everything that
//! differs between them is an argument. It must never perform IO, read a clock, draw randomness or panic,
//! whatever bytes a client sends.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod admission;
pub mod calendar;
pub mod certificate;
pub mod chain;
mod client_address;
pub mod compiled;
pub mod crypto;
pub mod failure;
pub mod filter;
pub mod flags;
mod plan;
pub mod policy;
mod sharing;
pub mod state;
pub mod subject;
pub mod trace;
pub mod upstream;
pub mod validity;
mod websocket;

/// The one list of filters, in the order in which they decide: what is cheap and needs no identity first,
/// what needs shared state last. To add a filter, add its folder and its name here.
macro_rules! filters {
    ($($name:ident),* $(,)?) => {
        $(pub mod $name;)*

        /// Settings of the filters of one place in the policy: of every route, or of one.
        #[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(deny_unknown_fields, default)]
        pub struct FilterSet {
            $(#[serde(skip_serializing_if = "Option::is_none")] pub $name: Option<$name::Config>,)*
        }

        impl FilterSet {
            /// Every filter's name, in the order in which they decide.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// What holds for a child of `self`: what `self` requires, less what `except` names, and what
            /// the child requires on top. Security adds up; it is never replaced.
            #[must_use]
            pub fn inherited(&self, child: &Self, except: &[&str]) -> Self {
                Self {
                    $($name: {
                        let parent = self.$name.clone().filter(|_| !except.contains(&stringify!($name)));
                        match (parent, child.$name.clone()) {
                            (Some(parent), Some(child)) => Some(policy::Settings::and(parent, child)),
                            (parent, child) => parent.or(child),
                        }
                    },)*
                }
            }

            pub(crate) fn build(
                self,
                site: &policy::Site<'_>,
            ) -> Result<Vec<Box<dyn filter::Filter>>, policy::Unusable> {
                let mut chain: Vec<Box<dyn filter::Filter>> = Vec::new();
                $(if let Some(config) = self.$name {
                    chain.push(policy::Settings::build(config, site).map_err(|why| why.of(stringify!($name)))?);
                })*
                Ok(chain)
            }

            /// What routes share, by filter.
            pub(crate) fn shared(&self) -> Vec<(&'static str, policy::Shared)> {
                let mut all = Vec::new();
                $(if let Some(config) = &self.$name {
                    let shared = policy::Settings::shared(config).into_iter();
                    all.extend(shared.map(|shared| (stringify!($name), shared)));
                })*
                all
            }

            /// What of these counts on feature flags, by filter.
            pub(crate) fn flags(&self) -> Vec<(&'static str, &flags::When)> {
                let mut all = Vec::new();
                $(if let Some(config) = &self.$name {
                    all.extend(policy::Settings::flags(config).into_iter().map(|when| (stringify!($name), when)));
                })*
                all
            }

            /// The filter without which nobody passes but with a client certificate, if there is one.
            pub(crate) fn needs_certificate(&self) -> Option<&'static str> {
                let client_cert = self.client_cert.as_ref().is_some_and(client_cert::Config::needs_certificate);
                let jwt = self.jwt.as_ref().is_some_and(jwt::Config::needs_certificate);
                client_cert.then_some("client_cert").or(jwt.then_some("jwt"))
            }

            /// Whether the set names a filter.
            pub fn has(&self, filter: &str) -> bool {
                $((filter == stringify!($name) && self.$name.is_some()) ||)* false
            }
        }
    };
}

filters! {
    cors,
    ip_access,
    shape,
    client_cert,
    api_key,
    idempotency,
    jwt,
    signature,
    tenant,
    feature,
    nonce,
    rate_limit,
    quota,
    concurrency,
    signing,
    compression,
    headers,
}
