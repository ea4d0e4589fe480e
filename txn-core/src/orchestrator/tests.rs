//! What must hold between the mark and the call, whatever happens to this process.

use std::path::Path;
use std::sync::Mutex;

use tokio::sync::{Notify, watch};

use super::*;
use crate::bus::consume::{Consumer, Retry};
use crate::bus::{Bus, LocalBus, Retention, Topic};
use crate::relay::Relay;
use crate::store::contract::request;
use crate::store::{SqliteStore, WriterLimits};
use crate::timers::{self, TimerConfig};
use crate::txn::{Rules, State, Wake, WakeKind};

/// Remembers who was sent and asked about.
#[derive(Debug, Default)]
struct Recorder {
    sent: Mutex<Vec<TxnId>>,
    asked: Mutex<Vec<TxnId>>,
    called: Notify,
    /// Sendings never come back.
    stuck: bool,
}

#[async_trait]
impl Network for Recorder {
    async fn initiate(&self, txn: &Txn, _: Option<&CredBlock>, _: &Trace) -> Event {
        self.sent.lock().unwrap().push(txn.id);
        self.called.notify_one();
        if self.stuck {
            std::future::pending::<()>().await;
        }
        Event::Acknowledged { sending: txn.sends }
    }

    async fn inquire(&self, txn: &Txn) -> Event {
        self.asked.lock().unwrap().push(txn.id);
        Event::CheckUnanswered { reason: "network_timeout".into() }
    }
}

struct Core {
    store: Arc<dyn Store>,
    network: Arc<Recorder>,
    orchestrator: Orchestrator,
    metrics: Arc<Metrics>,
}

const BOUNDS: Bounds = Bounds { sends: 64, inquiries: 4, send_starts_within_ms: 60_000 };

async fn open(dir: &Path, network: Recorder, bounds: Bounds) -> Core {
    let metrics = Arc::new(Metrics::new().unwrap());
    let rules = Rules { resend_base_ms: 1, status_checks_ms: vec![0, 0, 0], ..Rules::default() };
    // Small batches: what is asked of the writer together is not answered together.
    let limits = WriterLimits { batch: 4, ..WriterLimits::default() };
    let store = SqliteStore::open(&dir.join("txn.db"), rules, &limits, metrics.clone()).await;
    let (store, network): (Arc<dyn Store>, _) = (Arc::new(store.unwrap()), Arc::new(network));
    let orchestrator = Orchestrator::new(store.clone(), network.clone(), metrics.clone(), bounds);
    Core { store, network, orchestrator, metrics }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_stop_leaves_nothing_marked_and_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let core = open(dir.path(), Recorder::default(), BOUNDS).await;
    let bus: Arc<dyn Bus> =
        Arc::new(LocalBus::open(&dir.path().join("bus.db"), Retention::default()).await.unwrap());
    let relay = Relay { store: core.store.clone(), bus: bus.clone(), metrics: core.metrics.clone() };
    let mut ids = Vec::new();
    for n in 0..200 {
        let new = request(&format!("k-{n}"));
        ids.push(new.txn.id);
        core.store.accept(new).await.unwrap();
    }
    let lease = relay.store.lease_lanes(uuid::Uuid::nil(), 60_000).await.unwrap();
    relay.relay_some(&lease, 100).await.unwrap();

    let consumer = Consumer {
        bus,
        group: GROUP,
        handler: Arc::new(core.orchestrator.clone()),
        retry: Retry::default(),
        metrics: core.metrics.clone(),
    };
    // Stopped under load again and again, and started anew, as in a rollout.
    for _ in 0..3 {
        let (stop, stopped) = watch::channel(false);
        let running = tokio::spawn(consumer.clone().run(Topic::Initiated, stopped));
        core.network.called.notified().await;
        stop.send(true).unwrap();
        running.await.unwrap();
        // As `drain` waits, but gives the permits back.
        let permits = core.orchestrator.sending.acquire_many(BOUNDS.sends).await.unwrap();
        for id in &ids {
            let (txn, _) = core.store.inspect(*id).await.unwrap().unwrap();
            let sent = core.network.sent.lock().unwrap().iter().filter(|sent| *sent == id).count();
            assert_eq!((txn.sends as usize, sent), (sent, sent.min(1)), "{} {id}", txn.state.name());
        }
        drop(permits);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_held_up_since_its_mark_is_not_sent_but_taken_up_again() {
    let dir = tempfile::tempdir().unwrap();
    let bounds = Bounds { send_starts_within_ms: 150, ..BOUNDS };
    let core = open(dir.path(), Recorder::default(), bounds).await;
    let new = request("k-1");
    let id = new.txn.id;
    core.store.accept(new).await.unwrap();

    // A disk that stalls: the commit of the mark has to wait.
    let disk = rusqlite::Connection::open(dir.path().join("txn.db")).unwrap();
    disk.execute_batch("BEGIN IMMEDIATE").unwrap();
    let orchestrator = core.orchestrator.clone();
    let dispatching = tokio::spawn(async move { orchestrator.dispatch(id, None, Trace::default()).await });
    sleep(Duration::from_millis(400)).await;
    disk.execute_batch("ROLLBACK").unwrap();
    dispatching.await.unwrap().unwrap();
    drop(core.orchestrator.sending.acquire_many(BOUNDS.sends).await.unwrap());
    let (txn, history) = core.store.inspect(id).await.unwrap().unwrap();
    assert_eq!((txn.state, txn.sends, core.network.sent.lock().unwrap().len()), (State::Created, 1, 0));
    let last = history.last().unwrap();
    assert_eq!((last.event.as_str(), last.reason.as_deref()), ("not_sent", Some("held_up")));
    assert_eq!(txn.wake.map(|wake| wake.kind), Some(WakeKind::Send));

    sleep(Duration::from_millis(20)).await;
    core.orchestrator.dispatch(id, None, Trace::default()).await.unwrap();
    drop(core.orchestrator.sending.acquire_many(BOUNDS.sends).await.unwrap());
    let (txn, _) = core.store.inspect(id).await.unwrap().unwrap();
    assert_eq!((txn.state, txn.sends), (State::Accepted, 2));
    assert_eq!(*core.network.sent.lock().unwrap(), [id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sendings_that_wait_hold_up_no_status_check() {
    let dir = tempfile::tempdir().unwrap();
    let stuck = Recorder { stuck: true, ..Recorder::default() };
    let core = open(dir.path(), stuck, Bounds { sends: 1, ..BOUNDS }).await;
    let now = UnixMs::now();
    // Three are due to be sent, and the one permit never comes back.
    for n in 0..3 {
        let mut new = request(&format!("k-{n}"));
        new.txn.wake = Some(Wake { kind: WakeKind::Send, at: now.minus(10_000) });
        core.store.accept(new).await.unwrap();
    }
    let asked = request("k-asked");
    let id = asked.txn.id;
    core.store.accept(asked).await.unwrap();
    for event in [Event::Dispatch, Event::Acknowledged { sending: 1 }] {
        core.store.apply(Apply { txn_id: id, event, at: now, inbox: None }).await.unwrap();
    }

    let (stop, stopped) = watch::channel(false);
    let mut loops = tokio::task::JoinSet::new();
    for kind in [WakeKind::Send, WakeKind::Check] {
        let config = TimerConfig { tick_ms: 10, ..TimerConfig::default() };
        loops.spawn(timers::run(
            core.store.clone(),
            core.orchestrator.clone(),
            config,
            kind,
            stopped.clone(),
        ));
    }
    timeout(Duration::from_secs(5), core.network.called.notified()).await.expect("one is being sent");
    for _ in 0..200 {
        if core.network.asked.lock().unwrap().contains(&id) {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    assert!(core.network.asked.lock().unwrap().contains(&id), "the check had to wait for the sendings");
    stop.send(true).unwrap();
    let stopped = timeout(Duration::from_secs(2), async { while loops.join_next().await.is_some() {} });
    stopped.await.expect("a stop waits for no permit");
}
