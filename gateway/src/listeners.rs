//! Every listener of the policy that serves now: opened, led to another policy and closed while connections are there.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use certs::Watch;
use filters::policy::{At, Document, Mistake};
use pingora::server::configuration::ServerConf;
use pingora::server::{ListenFds, ShutdownWatch};
use tokio::sync::Notify;

use crate::edge::Edge;
use crate::gate::Gate;
use crate::listener::{Listener, Way};
use crate::load::{ListenerFiles, Loaded};
use crate::metrics::Metrics;
use crate::reload::Serving;

/// The open listeners. Which one is which is told by the address.
pub(crate) struct Listeners {
    gate: Arc<Gate>,
    conf: Arc<ServerConf>,
    open: Mutex<Vec<Arc<Listener>>>,
    opened: Notify,
}

/// What a policy's listeners will be once they are [put to use](Listeners::put_to_use). Dropped, it has changed nothing.
pub(crate) struct Prepared {
    kept: Vec<(Arc<Listener>, Way)>,
    opened: Vec<Arc<Listener>>,
}

impl Listeners {
    pub(crate) fn new(gate: &Arc<Gate>, conf: &Arc<ServerConf>) -> Arc<Self> {
        let (gate, conf) = (Arc::clone(gate), Arc::clone(conf));
        Arc::new(Self { gate, conf, open: Mutex::default(), opened: Notify::new() })
    }

    /// Opens the addresses of a policy that are not open yet, and reads everything that its listeners need.
    pub(crate) fn prepare(
        &self,
        document: &Document,
        files: Vec<ListenerFiles>,
        watch: &Watch,
    ) -> anyhow::Result<Prepared> {
        let mut prepared = Prepared { kept: Vec::new(), opened: Vec::new() };
        for (At { value: settings, .. }, files) in document.listeners.iter().zip(files) {
            let before = self.at(settings.address);
            let old_way = before.as_ref().map(|before| before.way());
            let way = Way::new(settings, files, watch, &self.gate, &self.conf, old_way.as_deref())?;
            match before {
                Some(listener) => prepared.kept.push((listener, way)),
                None => prepared.opened.push(Arc::new(Listener::open(way)?)),
            }
        }
        Ok(prepared)
    }

    /// The listeners of a policy that has taken over; those that it does not name are closed.
    pub(crate) fn put_to_use(&self, Prepared { kept, opened }: Prepared) {
        let mut all: Vec<Arc<Listener>> = opened;
        for (listener, way) in kept {
            listener.lead(way);
            all.push(listener);
        }
        let before = std::mem::replace(&mut *self.open(), all);
        for listener in before {
            if self.at(listener.address).is_none() {
                listener.close();
            }
        }
        self.opened.notify_one();
    }

    fn at(&self, address: SocketAddr) -> Option<Arc<Listener>> {
        self.open().iter().find(|listener| listener.address == address).cloned()
    }

    fn open(&self) -> MutexGuard<'_, Vec<Arc<Listener>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Serving for Listeners {
    type Snapshot = Edge;

    const NAME: &str = "gateway";

    fn metrics(&self) -> &Metrics {
        self.gate.metrics()
    }

    fn snapshot(&self) -> Arc<Edge> {
        self.gate.edge()
    }

    async fn take_over(&self, loaded: Loaded) -> Result<Arc<Edge>, Vec<Mistake>> {
        let failed = |error: anyhow::Error| vec![Mistake::whole(format!("{error:#}"))];
        let before = self.gate.edge();
        let (edge, files) = Edge::new(loaded, self.gate.standing(), Some(&before)).map_err(failed)?;
        let missing = edge.issuers.fetch_missing(&before.issuers).await;
        if !missing.is_empty() {
            return Err(missing);
        }
        let prepared = self.prepare(edge.policy.document(), files, &edge.watch()).map_err(failed)?;
        let edge = Arc::new(edge);
        // Requests first: a connection that arrives the old way is decided on by the new policy, never the reverse.
        self.gate.pass_to(Arc::clone(&edge));
        self.put_to_use(prepared);
        Ok(edge)
    }
}

/// Accepts on all of them.
pub(crate) struct Accepting(pub(crate) Arc<Listeners>);

#[async_trait]
impl pingora::services::Service for Accepting {
    async fn start_service(&mut self, _: Option<ListenFds>, mut shutdown: ShutdownWatch, _: usize) {
        while !*shutdown.borrow_and_update() {
            for listener in self.0.open().iter() {
                tokio::spawn(Arc::clone(listener).accept_all());
            }
            tokio::select! {
                () = self.0.opened.notified() => {}
                _ = shutdown.changed() => {}
            }
        }
        // Idle HTTP/1.1 connections stay: a request may be on its way on one of them.
        self.0.open().iter().for_each(|listener| listener.close());
    }

    fn name(&self) -> &'static str {
        "listeners"
    }
}
