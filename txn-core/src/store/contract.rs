//! What every store must hold to, whatever its engine.

use std::collections::HashSet;
use std::sync::Arc;

use super::*;
use crate::txn::{
    AmountPaise, Effect, Ignored, Report, ReportResult, Source, Stage, State, Status, UnixMs, Wake,
};

const NOW: UnixMs = UnixMs(1_800_000_000_000);

/// A request that nobody made before.
pub(crate) fn request(key: &str) -> NewTxn {
    let id = TxnId::fresh("TOR".parse().unwrap(), NOW);
    NewTxn {
        txn: Txn {
            id,
            tenant: "acme".into(),
            subject: "user-1".into(),
            device_id: "device-1".into(),
            from: "alice@torana".parse().unwrap(),
            to: "bob@torana".parse().unwrap(),
            amount: AmountPaise::from_paise(15_075).unwrap(),
            note: "Tea \"and\" चाय".into(),
            state: State::Created,
            version: 1,
            code: None,
            rrn: None,
            created_at: NOW,
            updated_at: NOW,
            send_by: NOW.plus(120_000),
            dispatched_at: None,
            sends: 0,
            checks: 0,
            flagged_at: None,
            wake: Some(Wake { kind: WakeKind::Send, at: NOW.plus(120_000) }),
        },
        cred_block: None,
        idempotency: IdempotencyKey {
            tenant: "acme".into(),
            route: "/v1/transactions/send",
            key: key.into(),
        },
        fingerprint: [7; 32],
        trace: Trace { request_id: Some("r-1".into()), traceparent: None },
    }
}

pub(crate) fn callback(stage: Stage, result: ReportResult, code: &str) -> Event {
    Event::Reported(Report {
        source: Source::Callback,
        msg_id: "TOR1".into(),
        stage,
        result,
        code: code.into(),
        payer_code: None,
        payee_code: None,
        reversal_code: None,
        rrn: Some("123456789012".into()),
    })
}

fn apply(id: TxnId, event: Event) -> Apply {
    Apply { txn_id: id, event, at: NOW.plus(10), inbox: None }
}

async fn stepped(store: &impl Store, input: Apply) -> (Txn, Vec<Effect>, Option<CredBlock>) {
    match store.apply(input).await.unwrap() {
        Applied::Stepped { txn, effects, cred_block } => (*txn, effects, cred_block),
        other => panic!("{other:?}"),
    }
}

/// A payment's events that wait for publication.
async fn waiting(store: &impl Store, lease: &LaneLease, id: TxnId) -> Vec<OutboxRow> {
    let mut rows = store.unpublished(lease, 32_000).await.unwrap();
    rows.retain(|row| row.txn_id == id.to_string());
    rows
}

/// `open` opens the same place again and again; the place is empty at first.
pub(crate) async fn holds<S: Store>(open: impl AsyncFn() -> S) {
    let store = open().await;
    keys_mean_one_thing(&store).await;
    events_move_payments_and_are_recorded(&store).await;
    an_inbox_entry_has_one_effect(&store).await;
    what_changes_nothing_leaves_a_claimed_timer_alone(&store).await;
    pin_blocks_go_out_once_and_are_forgotten(&store).await;
    many_at_once(Arc::new(open().await)).await;
    store.close().await;
    assert!(matches!(store.accept(request("late")).await, Err(StoreError::Closed)));
    what_was_answered_survives(open).await;
}

async fn keys_mean_one_thing(store: &impl Store) {
    let first = request("k-1");
    assert_eq!(store.accept(first.clone()).await.unwrap(), Accepted::New);
    let again = NewTxn { idempotency: first.idempotency.clone(), ..request("") };
    assert_eq!(store.accept(again.clone()).await.unwrap(), Accepted::Replayed(first.txn.id));
    let other = NewTxn { fingerprint: [8; 32], ..again.clone() };
    assert_eq!(store.accept(other).await.unwrap(), Accepted::KeyReused);
    let mut other_tenant = request("k-1");
    other_tenant.idempotency.tenant = "other".into();
    assert_eq!(store.accept(other_tenant).await.unwrap(), Accepted::New);
    let mut other_route = request("k-1");
    other_route.idempotency.route = "/v1/transactions/refund";
    assert_eq!(store.accept(other_route).await.unwrap(), Accepted::New);

    let (txn, history) = store.find("acme", first.txn.id).await.unwrap().unwrap();
    assert_eq!(txn, first.txn);
    assert_eq!(history.len(), 1);
    assert_eq!(store.find("other", first.txn.id).await.unwrap(), None, "another tenant's");
    assert_eq!(store.find("acme", again.txn.id).await.unwrap(), None, "a replay makes no payment");
    let other_psp = TxnId::from_parts("ABC".parse().unwrap(), first.txn.id.uuid());
    assert_eq!(store.find("acme", other_psp).await.unwrap(), None);
}

async fn events_move_payments_and_are_recorded(store: &impl Store) {
    let bell = store.outbox_bell();
    let new = request("k-2");
    let id = new.txn.id;
    store.accept(new).await.unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(5), bell.notified()).await.expect("the bell rings");

    let (txn, effects, _) = stepped(store, apply(id, Event::Dispatch)).await;
    assert_eq!(
        (txn.state, effects, txn.dispatched_at),
        (State::Dispatched, vec![Effect::Send], Some(NOW.plus(10)))
    );
    let debited = callback(Stage::Debit, ReportResult::Success, "00");
    stepped(store, apply(id, debited.clone())).await;
    let again = store.apply(apply(id, debited)).await.unwrap();
    assert!(matches!(again, Applied::Ignored { why: Ignored::Duplicate, .. }), "{again:?}");
    stepped(store, apply(id, callback(Stage::Final, ReportResult::Success, "00"))).await;
    let conflict = store.apply(apply(id, callback(Stage::Final, ReportResult::Failure, "Z9"))).await.unwrap();
    assert!(matches!(conflict, Applied::Ignored { why: Ignored::Conflict, .. }), "{conflict:?}");

    let (txn, history) = store.find("acme", id).await.unwrap().unwrap();
    assert_eq!((txn.state.status(), txn.wake), (Status::Completed, None));
    assert_eq!(txn.rrn.as_deref(), Some("123456789012"));
    let told: Vec<_> = history.iter().map(|h| (h.event.as_str(), h.state.name(), h.applied)).collect();
    assert_eq!(
        told,
        [
            ("accepted", "created", true),
            ("dispatch", "dispatched", true),
            ("callback", "debited", true),
            ("callback", "debited", false),
            ("callback", "completed", true),
            ("callback", "completed", false),
        ]
    );
    assert_eq!(history[5].reason.as_deref(), Some("conflict:Z9"));

    let lease = store.lease_lanes(Uuid::nil(), 60_000).await.unwrap();
    let mine = waiting(store, &lease, id).await;
    assert_eq!(
        mine.iter().map(|row| row.event_type).collect::<Vec<_>>(),
        [
            EventType::TransactionInitiated,
            EventType::TransactionDebited,
            EventType::TransactionCompleted,
            EventType::TransactionConflict,
        ]
    );
    let envelope: record::Envelope = serde_json::from_str(&mine[0].payload).unwrap();
    assert_eq!(
        (envelope.v, envelope.event_id, envelope.data.amount.as_str()),
        (1, mine[0].event_id, "150.75")
    );
    assert_eq!(envelope.trace.request_id.as_deref(), Some("r-1"));

    store.published(&lease, &[mine[0].clone(), mine[2].clone()]).await.unwrap();
    let left = waiting(store, &lease, id).await;
    assert_eq!(left, [mine[1].clone(), mine[3].clone()], "a gap does not hide what comes after it");
    store.published(&lease, &mine).await.unwrap();
    assert_eq!(waiting(store, &lease, id).await, [], "what is gone already is no error");
    store.return_lanes(lease.relay).await.unwrap();

    let nobody = TxnId::fresh("TOR".parse().unwrap(), NOW);
    assert!(matches!(store.apply(apply(nobody, Event::Dispatch)).await.unwrap(), Applied::UnknownTxn));
}

async fn what_changes_nothing_leaves_a_claimed_timer_alone(store: &impl Store) {
    let new = request("k-timer");
    let id = new.txn.id;
    store.accept(new).await.unwrap();
    stepped(store, apply(id, Event::Dispatch)).await;
    let debited = callback(Stage::Debit, ReportResult::Success, "00");
    let (txn, ..) = stepped(store, apply(id, debited.clone())).await;
    let wake = txn.wake.unwrap();
    let claim = async || store.claim_due(wake.kind, wake.at.plus(1), 60_000, 1_000).await.unwrap();
    assert!(claim().await.contains(&id));
    let again = store.apply(apply(id, debited)).await.unwrap();
    assert!(matches!(again, Applied::Ignored { why: Ignored::Duplicate, .. }), "{again:?}");
    assert!(!claim().await.contains(&id), "whoever claimed it has it still");
    let (found, _) = store.inspect(id).await.unwrap().unwrap();
    assert_eq!((found.wake, found.version), (Some(wake), txn.version + 1));
}

async fn an_inbox_entry_has_one_effect(store: &impl Store) {
    let new = request("k-3");
    let id = new.txn.id;
    store.accept(new).await.unwrap();
    let input = |consumer| Apply { inbox: Some((consumer, "m-1".into())), ..apply(id, Event::Dispatch) };
    stepped(store, input("orchestrator")).await;
    assert!(matches!(store.apply(input("orchestrator")).await.unwrap(), Applied::SeenBefore));
    assert!(matches!(store.apply(input("another")).await.unwrap(), Applied::Ignored { .. }), "its own inbox");
    // The second half of the purge: nothing is old enough, then everything is.
    assert_eq!(store.purge(UnixMs(0), UnixMs(0)).await.unwrap(), 0);
    assert!(store.purge(UnixMs(0), NOW.plus(1_000)).await.unwrap() >= 2);
    assert!(matches!(store.apply(input("orchestrator")).await.unwrap(), Applied::Ignored { .. }));
}

async fn pin_blocks_go_out_once_and_are_forgotten(store: &impl Store) {
    let block = CredBlock("ZW5jcnlwdGVk".into());
    let new = NewTxn { cred_block: Some(block.clone()), ..request("k-4") };
    let id = new.txn.id;
    store.accept(new).await.unwrap();
    assert_eq!(stepped(store, apply(id, Event::Dispatch)).await.2, Some(block.clone()));
    // Certainly not sent: the next sending needs it again.
    let not_sent = Event::NotSent { sending: 1, reason: "network_unavailable".into(), retry_after_ms: None };
    assert_eq!(stepped(store, apply(id, not_sent)).await.2, None);
    let later = Apply { at: NOW.plus(60_000), ..apply(id, Event::Dispatch) };
    assert_eq!(stepped(store, later).await.2, Some(block));
    let (_, effects, none) = stepped(store, apply(id, Event::Acknowledged { sending: 2 })).await;
    assert_eq!((effects, none), (vec![Effect::EraseCredBlock], None));
}

async fn many_at_once<S: Store>(store: Arc<S>) {
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..300 {
        let store = store.clone();
        // Every key comes three times.
        let new = request(&format!("many-{}", n % 100));
        tasks.spawn(async move { (new.txn.id, store.accept(new).await.unwrap()) });
    }
    let (mut new, mut replayed) = (HashSet::new(), HashSet::new());
    while let Some(done) = tasks.join_next().await {
        match done.unwrap() {
            (id, Accepted::New) => assert!(new.insert(id)),
            (_, Accepted::Replayed(first)) => {
                replayed.insert(first);
            }
            (_, Accepted::KeyReused) => panic!("the same request"),
        }
    }
    assert_eq!((new.len(), &new), (100, &replayed));

    // Due timers: each claimed once, and again when the lease has run out.
    let due_at = NOW.plus(200_000);
    let mut claimed = HashSet::new();
    loop {
        let some = store.claim_due(WakeKind::Send, due_at, 30_000, 7).await.unwrap();
        if some.is_empty() {
            break;
        }
        for txn_id in some {
            assert!(claimed.insert(txn_id), "claimed twice");
        }
    }
    assert!(new.is_subset(&claimed));
    assert_eq!(store.claim_due(WakeKind::Send, due_at.plus(29_000), 30_000, 1000).await.unwrap(), []);
    assert_eq!(
        store.claim_due(WakeKind::Send, due_at.plus(31_000), 30_000, 1000).await.unwrap().len(),
        claimed.len()
    );
    let figures = store.figures().await.unwrap();
    assert!(figures.timers as usize >= claimed.len());
    for txn_id in store.claim_due(WakeKind::Check, due_at.plus(1), 30_000, 1000).await.unwrap() {
        assert!(!claimed.contains(&txn_id), "a timer of the other kind");
    }
    store.close().await;
}

async fn what_was_answered_survives<S: Store>(open: impl AsyncFn() -> S) {
    let store = open().await;
    let new = request("k-9");
    store.accept(new.clone()).await.unwrap();
    stepped(&store, apply(new.txn.id, Event::Dispatch)).await;
    drop(store);
    let store = open().await;
    let (txn, _) = store.inspect(new.txn.id).await.unwrap().unwrap();
    assert_eq!(txn.state, State::Dispatched);
    let again = NewTxn { idempotency: new.idempotency.clone(), ..request("") };
    assert_eq!(store.accept(again).await.unwrap(), Accepted::Replayed(new.txn.id));
    let again = store.apply(apply(new.txn.id, Event::Dispatch)).await.unwrap();
    assert!(matches!(again, Applied::Ignored { .. }), "dispatched before the crash: never sent again");
    let lease = store.lease_lanes(Uuid::nil(), 60_000).await.unwrap();
    assert_eq!(waiting(&store, &lease, new.txn.id).await.len(), 1);
    assert!(store.purge(NOW.plus(1), UnixMs(0)).await.unwrap() > 0);
    let after_90_days = NewTxn { idempotency: new.idempotency, ..request("") };
    assert_eq!(store.accept(after_90_days).await.unwrap(), Accepted::New);
    store.close().await;
}
