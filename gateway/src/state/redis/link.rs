//! The one connection to Redis: opened in the background, replaced when its node is the wrong one.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use certs::Live;
use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::cluster_async::ClusterConnection;
use redis::{AsyncConnectionConfig, Cmd, ConnectionAddr, Pipeline, RedisFuture, RedisResult, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::address::{Kind, MOST_IN_FLIGHT, Target, is_allowed};
use super::cause::{self, describe};

/// Between two tries to connect.
const RECONNECT: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// A try through Sentinels or a Cluster asks several nodes.
pub(super) const NODES_ASKED: u32 = 3;

/// A connection, as many requests share it. Clones are handles of the same connection.
#[derive(Clone)]
pub(super) struct Connection {
    kind: Connected,
    /// Tells connections apart.
    id: u64,
    pub(super) tls: bool,
}

#[cfg(test)]
impl Connection {
    pub(super) fn id(&self) -> u64 {
        self.id
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("id", &self.id).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Connected {
    Node(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        match &mut self.kind {
            Connected::Node(connection) => connection.req_packed_command(cmd),
            Connected::Cluster(connection) => connection.req_packed_command(cmd),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match &mut self.kind {
            Connected::Node(connection) => connection.req_packed_commands(pipeline, offset, count),
            Connected::Cluster(connection) => connection.req_packed_commands(pipeline, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match &self.kind {
            Connected::Node(connection) => connection.get_db(),
            Connected::Cluster(connection) => connection.get_db(),
        }
    }
}

/// How a new connection is made fit for use.
pub(super) trait Prepare: Send + Sync + 'static {
    /// Called before any request may use the connection. `moved`: the connection before was to another Redis.
    fn prepare(&self, connection: Connection, moved: bool)
    -> impl Future<Output = Result<(), String>> + Send;
}

/// Opens connections, one at a time. Clones are handles of the same link.
pub(super) struct Link<P>(Arc<Inner<P>>);

struct Inner<P> {
    target: Live<Target>,
    connect_timeout: Duration,
    config: AsyncConnectionConfig,
    prepare: P,
    slot: Mutex<Slot>,
    /// Changes with the slot.
    changes: watch::Sender<u64>,
}

#[derive(Default)]
struct Slot {
    open: Option<(Arc<Target>, Connection)>,
    /// The target that was connected last.
    last: Option<Arc<Target>>,
    is_connecting: bool,
    /// Why the last try failed; `None` while none has.
    failure: Option<Arc<str>>,
    opened: u64,
}

impl<P: Prepare> Link<P> {
    pub(super) fn new(target: Live<Target>, connect_timeout: Duration, prepare: P) -> Self {
        // Every call has a timeout of ours, which knows what it waited for.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_concurrency_limit(MOST_IN_FLIGHT);
        let (slot, changes) = (Mutex::default(), watch::channel(0).0);
        Self(Arc::new(Inner { target, connect_timeout, config, prepare, slot, changes }))
    }

    /// The connection, or why the last try to connect failed. Waits for a first try: its caller bounds the time.
    pub(super) async fn connection(&self) -> Result<Connection, Arc<str>> {
        loop {
            let mut changed = self.0.changes.subscribe();
            let failure = {
                let target = self.0.target.current();
                let mut slot = self.0.slot();
                match &slot.open {
                    Some((open, connection)) if Arc::ptr_eq(open, &target) => return Ok(connection.clone()),
                    // Only the password is another: the old connection serves until the new one is there.
                    Some((open, connection)) if target.is_same_place(open) => {
                        let connection = connection.clone();
                        self.connect(&mut slot);
                        return Ok(connection);
                    }
                    Some(_) | None => slot.open = None,
                }
                self.connect(&mut slot);
                slot.failure.clone()
            };
            if let Some(failure) = failure {
                return Err(failure);
            }
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// Why there is no connection.
    pub(super) fn failure(&self) -> Option<Arc<str>> {
        let slot = self.0.slot();
        match &slot.open {
            Some(_) => None,
            None => slot.failure.clone().or_else(|| Some("still connecting".into())),
        }
    }

    #[cfg(test)]
    pub(super) fn last_failure(&self) -> Option<Arc<str>> {
        self.0.slot().failure.clone()
    }

    /// Closes a connection whose node is the wrong one. Requests that already use it may finish.
    pub(super) fn close(&self, connection: &Connection) {
        let mut slot = self.0.slot();
        if slot.open.as_ref().is_some_and(|(_, open)| open.id == connection.id) {
            slot.open = None;
            self.connect(&mut slot);
        }
    }

    /// Closes whichever connection is open: it does not answer.
    pub(super) fn close_open(&self) {
        let mut slot = self.0.slot();
        if slot.open.take().is_some() {
            self.connect(&mut slot);
        }
    }

    /// Begins to connect, unless that is under way.
    fn connect(&self, slot: &mut Slot) {
        // Without a runtime the process is ending.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !slot.is_connecting {
            slot.is_connecting = true;
            let trying = Trying { inner: Arc::downgrade(&self.0), is_done: false };
            runtime.spawn(async move { trying.run().await });
        }
    }
}

/// Tries to connect, until it has or the link is dropped.
struct Trying<P> {
    inner: Weak<Inner<P>>,
    /// Whether the slot says already that nobody is connecting.
    is_done: bool,
}

impl<P: Prepare> Trying<P> {
    async fn run(mut self) {
        let [mut delay, longest] = RECONNECT;
        loop {
            let Some(inner) = self.inner.upgrade() else { return };
            let (target, mut targets) = {
                let targets = certs::Versioned::generations(&inner.target);
                (inner.target.current(), targets)
            };
            let opened = inner.open(&target).await;
            {
                let mut slot = inner.slot();
                match opened {
                    Ok(connection) => {
                        slot.failure = None;
                        slot.last = Some(Arc::clone(&target));
                        slot.open = Some((target, connection));
                        // Under the same lock: a request that finds the connection stale may connect again.
                        slot.is_connecting = false;
                        self.is_done = true;
                    }
                    Err(failure) => {
                        if slot.open.is_some() && slot.failure.as_deref() != Some(&*failure) {
                            tracing::error!(
                                error = failure,
                                "Redis refuses the new login; the connection with the one before stays"
                            );
                        }
                        slot.failure = Some(failure.into());
                    }
                }
            }
            inner.changes.send_modify(|changes| *changes += 1);
            if self.is_done {
                return;
            }
            drop(inner);
            // Another login may work at once.
            let _ = tokio::time::timeout(delay, targets.changed()).await;
            delay = longest.min(delay * 2);
        }
    }
}

impl<P> Drop for Trying<P> {
    /// Also runs when the runtime ends: another one may then try.
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade().filter(|_| !self.is_done) {
            inner.slot().is_connecting = false;
        }
    }
}

impl<P> Inner<P> {
    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a server that was asked for TLS answers without. Redis waits for the end of a line, which a TLS handshake does
/// not have: only a timeout shows. Sends no secret.
async fn answers_in_plain_text(target: &Target) -> bool {
    const WITHIN: Duration = Duration::from_secs(1);
    let Kind::Single(client) = &target.kind else { return false };
    let ConnectionAddr::TcpTls { host, port, .. } = client.get_connection_info().addr() else { return false };
    let asked = async {
        let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.set_nodelay(true)?;
        stream.write_all(b"PING\r\n").await?;
        stream.read_u8().await
    };
    matches!(tokio::time::timeout(WITHIN, asked).await, Ok(Ok(b'+' | b'-')))
}

impl<P: Prepare> Inner<P> {
    async fn open(&self, target: &Target) -> Result<Connection, String> {
        let within = match target.kind {
            Kind::Single(_) => self.connect_timeout,
            Kind::Sentinel(_) | Kind::Cluster(_) => self.connect_timeout * NODES_ASKED,
        };
        let moved = self.slot().last.as_ref().is_some_and(|last| !target.is_same_place(last));
        let opened = async {
            let kind = self.connected(target).await?;
            let id = {
                let mut slot = self.slot();
                slot.opened += 1;
                slot.opened
            };
            let connection = Connection { kind, id, tls: target.tls };
            self.prepare.prepare(connection.clone(), moved).await?;
            Ok(connection)
        };
        match tokio::time::timeout(within, opened).await {
            Ok(opened) => opened,
            Err(_) => {
                let late = format!("not connected within {} ms", within.as_millis());
                match answers_in_plain_text(target).await {
                    true => Err(format!("{late} ({})", cause::NO_TLS)),
                    false => Err(late),
                }
            }
        }
    }

    async fn connected(&self, target: &Target) -> Result<Connected, String> {
        let told = |error| describe(&error, target.tls);
        let node = async |client: &redis::Client| -> RedisResult<Connected> {
            let opened = client.get_multiplexed_async_connection_with_config(&self.config).await?;
            Ok(Connected::Node(opened))
        };
        match &target.kind {
            Kind::Single(client) => node(client).await.map_err(told),
            Kind::Sentinel(client) => {
                let mut sentinels = client().map_err(told)?;
                let client = sentinels.async_get_client().await.map_err(told)?;
                is_allowed(client.get_connection_info())
                    .map_err(|why| format!("Sentinel's primary: {why}"))?;
                node(&client).await.map_err(told)
            }
            Kind::Cluster(client) => {
                client.get_async_connection().await.map(Connected::Cluster).map_err(told)
            }
        }
    }
}
