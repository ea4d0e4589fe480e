//! What the state service knows of one policy: whose tokens it believes, the clients' keys, the flags, the tenants.
//!
//! Another policy is another one of these. What is remembered between requests outlives them all.

use std::sync::Arc;

use certs::Watch;
use filters::policy::{Mistake, Policy};
use tokio::task::JoinSet;

use super::{Service, Standing};
use crate::client_keys::ClientKeys;
use crate::flags::{Audited, FeatureFlags};
use crate::issuers::Issuers;
use crate::load::Loaded;
use crate::metrics::Metrics;
use crate::reload::{Serving, Snapshot};
use crate::revoke::Operators;

/// Everything that depends on the policy.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) policy: Policy,
    pub(super) issuers: Issuers,
    /// `None`: whoever asks is not known, and is told no secret.
    pub(super) client_keys: Option<ClientKeys>,
    pub(super) flags: FeatureFlags,
    flags_audited: Audited,
    pub(super) operators: Operators,
    pub(super) watch: Arc<Watch>,
    version: String,
    /// Of this policy in this process, and no other.
    pub(super) life: u64,
}

impl Known {
    /// What the one `before` it knows of issuers' keys, and since when it holds keys, it knows too.
    pub(super) fn new(loaded: Loaded, standing: &Standing, before: Option<&Self>) -> anyhow::Result<Self> {
        // What the edge's listeners and upstreams show is followed as Envoy was told of it.
        let Loaded { policy, folder, version, .. } = loaded;
        let watch = Watch::new("gateway state");
        watch.include(Arc::clone(&standing.watch));
        let document = policy.document();
        let issuers_before = before.map(|before| &before.issuers);
        let issuers = Issuers::new(document, &folder, &standing.metrics, &watch, issuers_before)?;
        let service = document.state.service.as_ref();
        let client_keys = match service.is_some_and(|service| service.value.knows_its_clients()) {
            true => {
                let keys_before = before.and_then(|before| before.client_keys.clone());
                Some(ClientKeys::follow(document, &folder, &watch, keys_before)?)
            }
            false => None,
        };
        // On loopback, on a socket, or known by its certificate.
        let operators = Operators::new(document, &folder, true)?;
        let flags = FeatureFlags::follow(&policy, &folder, &watch)?;
        let flags_audited = standing.flags_audited.clone();
        let life = rand::random();
        Ok(Self { policy, issuers, client_keys, flags, flags_audited, operators, watch, version, life })
    }
}

impl Snapshot for Known {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn begin(&self) -> JoinSet<()> {
        self.flags.audit(&self.watch, &self.flags_audited);
        let mut work = JoinSet::new();
        work.spawn(Arc::clone(&self.watch).run());
        work.spawn(Arc::clone(&self.issuers.keys).keep_fresh());
        work
    }
}

impl Serving for Service {
    type Snapshot = Known;

    const NAME: &str = "state service";

    fn metrics(&self) -> &Metrics {
        &self.standing.metrics
    }

    fn snapshot(&self) -> Arc<Known> {
        self.known()
    }

    async fn take_over(&self, loaded: Loaded) -> Result<Arc<Known>, Vec<Mistake>> {
        let before = self.known();
        let known = Known::new(loaded, &self.standing, Some(&before));
        let known = known.map_err(|error| vec![Mistake::whole(format!("{error:#}"))])?;
        let missing = known.issuers.fetch_missing(&before.issuers).await;
        if !missing.is_empty() {
            return Err(missing);
        }
        let known = Arc::new(known);
        self.known.store(Arc::clone(&known));
        Ok(known)
    }
}
