//! What a decision looks like as rows. Every engine writes exactly this.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{IdempotencyKey, NewTxn, Trace};
use crate::txn::{Effect, Event, EventType, Ignored, State, Step, Txn, UnixMs, WakeKind};

/// Rows that one payment's new version brings.
#[derive(Debug, Clone)]
pub struct Record {
    /// The payment as it has to be stored, timer included.
    pub txn: Txn,
    pub history: History,
    pub events: Vec<OutgoingEvent>,
    pub erase_cred_block: bool,
}

#[derive(Debug, Clone)]
pub struct History {
    pub at: UnixMs,
    pub state: State,
    pub event: &'static str,
    pub reason: Option<String>,
    pub applied: bool,
}

#[derive(Debug, Clone)]
pub struct OutgoingEvent {
    pub event_id: Uuid,
    pub event_type: EventType,
    /// An [`Envelope`] as JSON.
    pub payload: String,
}

/// What every message on the bus looks like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Envelope {
    /// The version of this shape.
    pub v: u32,
    pub event_id: Uuid,
    #[serde(rename = "type")]
    pub event_type: EventType,
    pub txn_id: String,
    pub tenant: String,
    /// RFC 3339.
    pub at: String,
    #[serde(default)]
    pub trace: Trace,
    pub data: EventData,
}

/// The payment as it stood when the event was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventData {
    /// Orders a payment's events.
    pub version: u32,
    pub status: String,
    #[serde(rename = "fromVPA")]
    pub from_vpa: String,
    #[serde(rename = "toVPA")]
    pub to_vpa: String,
    /// Rupees with two decimals.
    pub amount: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rrn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
}

/// History stops growing here, so that a network that repeats itself can't fill the disk.
const MAX_RECORDED_VERSIONS: u32 = 500;

/// The rows of a new payment.
pub fn accepted(new: &NewTxn) -> Record {
    let txn = &new.txn;
    Record {
        txn: txn.clone(),
        history: History {
            at: txn.created_at,
            state: txn.state,
            event: "accepted",
            reason: None,
            applied: true,
        },
        events: vec![event(EventType::TransactionInitiated, txn, None, &new.trace, txn.created_at)],
        erase_cred_block: false,
    }
}

/// The rows of an event that was applied.
pub fn stepped(step: &Step, said: &Event, at: UnixMs) -> Record {
    let events = step
        .effects
        .iter()
        .filter_map(|effect| match effect {
            Effect::Publish(kind) => {
                Some(event(*kind, &step.txn, step.reason.clone(), &Trace::default(), at))
            }
            Effect::EraseCredBlock | Effect::Send | Effect::Inquire => None,
        })
        .collect();
    Record {
        txn: step.txn.clone(),
        history: History {
            at,
            state: step.txn.state,
            event: said.name(),
            reason: step.reason.clone(),
            applied: true,
        },
        events,
        erase_cred_block: step.effects.contains(&Effect::EraseCredBlock),
    }
}

/// The rows of an event that changed nothing; none if it is not worth one.
pub fn ignored(txn: &Txn, why: Ignored, said: &Event, at: UnixMs) -> Option<Record> {
    if txn.version >= MAX_RECORDED_VERSIONS {
        return None;
    }
    let kinds: &[EventType] = match why {
        Ignored::NotDue => return None,
        Ignored::Duplicate | Ignored::Late => &[],
        Ignored::Conflict => &[EventType::TransactionConflict],
    };
    let code = match said {
        Event::Reported(report) => format!(":{}", report.code),
        Event::Dispatch
        | Event::NotSent { .. }
        | Event::Unsendable { .. }
        | Event::OutcomeUnknown { .. }
        | Event::Acknowledged { .. }
        | Event::CheckDue
        | Event::CheckNotMade { .. }
        | Event::CheckUnanswered { .. } => String::new(),
    };
    let reason = Some(format!("{}{code}", why.name()));
    let next = Txn { version: txn.version + 1, ..txn.clone() };
    Some(Record {
        history: History { at, state: txn.state, event: said.name(), reason: reason.clone(), applied: false },
        events: kinds.iter().map(|kind| event(*kind, &next, reason.clone(), &Trace::default(), at)).collect(),
        txn: next,
        erase_cred_block: false,
    })
}

fn event(
    event_type: EventType,
    txn: &Txn,
    reason: Option<String>,
    trace: &Trace,
    at: UnixMs,
) -> OutgoingEvent {
    let event_id = Uuid::now_v7();
    let envelope = Envelope {
        v: 1,
        event_id,
        event_type,
        txn_id: txn.id.to_string(),
        tenant: txn.tenant.clone(),
        at: at.to_string(),
        trace: trace.clone(),
        data: EventData {
            version: txn.version,
            status: txn.state.status().name().to_owned(),
            from_vpa: txn.from.as_str().to_owned(),
            to_vpa: txn.to.as_str().to_owned(),
            amount: txn.amount.to_string(),
            code: txn.code.clone(),
            rrn: txn.rrn.clone(),
            reason,
        },
    };
    // Strings, numbers and names: nothing in an envelope can fail to be written as JSON.
    let payload = serde_json::to_string(&envelope).unwrap_or_default();
    OutgoingEvent { event_id, event_type, payload }
}

/// The key of the table `idempotency`: of fixed length, and nothing in it that a client wrote.
pub(super) fn key_hash(key: &IdempotencyKey) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [key.tenant.as_str(), key.route, &key.key] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

pub(super) fn wake_name(kind: WakeKind) -> &'static str {
    match kind {
        WakeKind::Send => "send",
        WakeKind::Check => "check",
    }
}

pub(super) fn wake_from_name(name: &str) -> Option<WakeKind> {
    [WakeKind::Send, WakeKind::Check].into_iter().find(|kind| wake_name(*kind) == name)
}
