//! What stays while policies come and go, and the policy that serves now.
//!
//! A request is decided on by the one [`Edge`] that it finds when its header has been read, whatever becomes of the
//! policy meanwhile.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use certs::Watch;
use filters::policy::Policy;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::edge::Edge;
use crate::flags::Audited;
use crate::framing::Memory;
use crate::load::{ListenerFiles, Loaded};
use crate::metrics::Metrics;
use crate::reload::Snapshot;
use crate::state::State;
use crate::upstream::deadline::Sockets;
use crate::upstream::{probe, resolve};
use crate::whole::Connections;

/// The gateway's one entrance: every listener leads here.
#[derive(Debug)]
pub(crate) struct Gate {
    standing: Standing,
    edge: ArcSwap<Edge>,
    /// True once nothing may go on.
    stopped: watch::Sender<bool>,
}

/// What every policy of this process shares.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) metrics: Metrics,
    pub(crate) state: Arc<State>,
    pub(crate) connections: Arc<Connections>,
    /// Of Pingora's connections to upstreams and of ours.
    pub(crate) sockets: Arc<Sockets>,
    /// What clients' unfinished headers hold.
    pub(crate) headers: Arc<Memory>,
    draining: Arc<AtomicBool>,
    /// What was told of changes of flags.
    pub(crate) flags_audited: Audited,
    /// Follows the files of the state.
    pub(crate) watch: Arc<Watch>,
}

impl Standing {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

impl Gate {
    /// The gate with its first policy, and the files of that one's listeners in its order.
    pub(crate) fn new(loaded: Loaded) -> anyhow::Result<(Arc<Self>, Vec<ListenerFiles>)> {
        let metrics = Metrics::new()?;
        let watch = Watch::new("gateway");
        let settings = &loaded.policy.document().state;
        let state = Arc::new(State::new(settings, &loaded.folder, &metrics, &watch)?);
        let (connections, draining) = (Arc::new(Connections::new()), Arc::default());
        let (sockets, headers, flags_audited) = (Arc::default(), Arc::default(), Audited::default());
        let standing =
            Standing { metrics, state, connections, sockets, headers, draining, flags_audited, watch };
        let (edge, listeners) = Edge::new(loaded, &standing, None)?;
        let gate =
            Arc::new(Self { standing, edge: ArcSwap::from_pointee(edge), stopped: watch::channel(false).0 });
        let told = Arc::clone(&gate);
        gate.standing.metrics.tell_of(move || vec![told.edge().watch()])?;
        Ok((gate, listeners))
    }

    /// What clients' unfinished headers hold.
    pub(crate) fn headers(&self) -> Arc<Memory> {
        Arc::clone(&self.standing.headers)
    }

    /// The policy that serves now.
    pub(crate) fn edge(&self) -> Arc<Edge> {
        self.edge.load_full()
    }

    /// From now on requests are decided on by this one; those under way stay with theirs.
    pub(crate) fn pass_to(&self, edge: Arc<Edge>) {
        self.edge.store(edge);
    }

    pub(crate) fn standing(&self) -> &Standing {
        &self.standing
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.standing.metrics
    }

    pub(crate) fn in_flight(&self) -> i64 {
        self.metrics().in_flight.get()
    }

    /// From now on connections are closed after their answer, and the gateway is not ready.
    pub(crate) fn drain(&self) {
        self.standing.draining.store(true, Ordering::Relaxed);
    }

    /// Cuts off whatever is still in flight.
    pub(crate) fn stop(&self) {
        self.stopped.send_replace(true);
    }

    /// Tells those who wait when everything is cut off.
    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.stopped.subscribe()
    }
}

impl Snapshot for Edge {
    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn version(&self) -> &str {
        Self::version(self)
    }

    fn disabled(&self) -> BTreeSet<String> {
        Self::disabled(self).keys().cloned().collect()
    }

    fn upstreams(&self) -> Option<serde_json::Value> {
        Some(Self::upstreams(self))
    }

    fn begin(&self) -> JoinSet<()> {
        self.flags().audit(&self.watch(), &self.standing.flags_audited);
        let mut work = JoinSet::new();
        work.spawn(self.watch().run());
        work.spawn(Arc::clone(&self.issuers.keys).keep_fresh());
        for upstream in self.with_names() {
            work.spawn(resolve::keep_resolving(upstream, resolve::System));
        }
        for (name, upstream) in self.probed() {
            work.spawn(probe::keep_probing(name, upstream, self.metrics().healthy.clone()));
        }
        work
    }
}
