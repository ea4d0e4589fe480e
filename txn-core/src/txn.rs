//! The payment: its states, what can happen to it, and what follows. Pure: no clock, no IO, no randomness.
//!
//! Owns every decision about a payment's state. An unknown outcome is never a failure; a final state never
//! changes (DEEMED alone may still become COMPLETED or REVERSED); late and repeated news changes nothing and
//! is recorded.

mod amount;
mod clock;
mod edges;
mod id;
mod rules;
mod state;
mod states_doc;
#[cfg(test)]
mod step_tests;
mod vpa;

use serde::{Deserialize, Serialize};

pub use amount::{AmountError, AmountPaise};
pub use clock::UnixMs;
pub use edges::{Edge, Input, edge};
pub use id::{IdError, PspCode, TxnId};
pub use rules::Rules;
pub use states_doc::states_page;
pub use vpa::{Vpa, VpaError, mask_vpas};

use crate::codes;

/// One payment as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Txn {
    pub id: TxnId,
    pub tenant: String,
    /// Who pays: the `sub` of the token that the edge verified.
    pub subject: String,
    pub device_id: String,
    pub from: Vpa,
    pub to: Vpa,
    pub amount: AmountPaise,
    pub note: String,
    pub state: State,
    /// Counts what was recorded; orders a payment's history and events.
    pub version: u32,
    /// The network's last code.
    pub code: Option<String>,
    /// The customer reference number, 12 digits.
    pub rrn: Option<String>,
    pub created_at: UnixMs,
    pub updated_at: UnixMs,
    /// Not sent by then: given up.
    pub send_by: UnixMs,
    /// When it was last handed to the network; kept over a definite "not sent".
    pub dispatched_at: Option<UnixMs>,
    pub sends: u32,
    /// Status checks made.
    pub checks: u32,
    /// Since when it waits for reconciliation.
    pub flagged_at: Option<UnixMs>,
    /// What happens next if nobody says anything.
    pub wake: Option<Wake>,
}

/// Where a payment is. [`State::status`] is what the outside sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Durable; certainly not with the network.
    Created,
    /// Handed to the network, or about to be: may be there.
    Dispatched,
    /// The network took it.
    Accepted,
    /// The payer has paid.
    Debited,
    Completed,
    Failed,
    Declined,
    Expired,
    Deemed,
    Reversed,
}

/// The public status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Status {
    Pending,
    Debited,
    Completed,
    Failed,
    Deemed,
    Reversed,
    Declined,
    Expired,
}

/// What a state says about the money.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Money {
    /// Nothing moved.
    Still,
    /// May have moved.
    Unknown,
    /// Left the payer, not yet known to have arrived.
    LeftPayer,
    /// Arrived, or is taken to have arrived.
    Arrived,
    /// Went and came back.
    Returned,
}

/// A row in `timers`: what to do, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wake {
    pub kind: WakeKind,
    pub at: UnixMs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WakeKind {
    /// Send it (again), or give it up if it is too late.
    Send,
    /// Ask the network how it stands.
    Check,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The orchestrator takes it up; the answer to it carries [`Effect::Send`] if it may be sent now.
    Dispatch,
    /// Certainly not sent. `sending` here and below is the [`Txn::sends`] of the sending that it is about: the
    /// result of an older one says nothing about the one under way.
    NotSent { sending: u32, reason: String, retry_after_ms: Option<u64> },
    /// Certainly not sent, and no later sending would be taken either: the proxy can't read it.
    Unsendable { sending: u32, reason: String },
    /// The call ended and nobody knows whether the network has it.
    OutcomeUnknown { sending: u32, reason: String },
    /// The network took it; the outcome comes later.
    Acknowledged { sending: u32 },
    /// The network says how it stands.
    Reported(Report),
    /// A timer says: ask the network. The answer to it carries [`Effect::Inquire`] if that is allowed now.
    CheckDue,
    /// The status check was not made (budget, peak hours, no way to the network): it does not count. `check` is
    /// its number, [`Txn::checks`] while it was under way.
    CheckNotMade { check: u32, reason: String, retry_after_ms: Option<u64> },
    /// The status check was made and brought nothing usable.
    CheckUnanswered { reason: String },
}

/// The network's word on a payment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub source: Source,
    pub msg_id: String,
    pub stage: Stage,
    pub result: ReportResult,
    pub code: String,
    pub payer_code: Option<String>,
    pub payee_code: Option<String>,
    pub reversal_code: Option<String>,
    pub rrn: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Refused at once, in the answer to this sending.
    Ack {
        sending: u32,
    },
    Callback,
    /// The answer to this status check.
    Inquiry {
        check: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Stage {
    Debit,
    Final,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum ReportResult {
    Success,
    Failure,
    Pending,
    Deemed,
}

/// What a report means; see [`codes::outcome`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Debited,
    Succeeded,
    StillPending,
    /// Money may have moved, or the report contradicts itself: to be reconciled.
    Unclear,
    Declined,
    Expired,
    /// Final, and nothing moved.
    Failed,
    Deemed,
    Reversed,
    /// A reversal found nothing to undo.
    ReversalRefused,
    /// The network does not know it.
    NotFound,
}

/// What has to follow once the new state is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Write this event to the outbox (same transaction).
    Publish(EventType),
    /// Forget the PIN block (same transaction).
    EraseCredBlock,
    /// Hand it to the network, once, after the commit.
    Send,
    /// Ask the network how it stands, after the commit.
    Inquire,
}

/// The kinds of domain events that leave the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum EventType {
    TransactionInitiated,
    TransactionDebited,
    TransactionCompleted,
    TransactionFailed,
    TransactionDeclined,
    TransactionExpired,
    TransactionDeemed,
    TransactionReversed,
    /// Status checks brought no end: somebody has to reconcile it.
    TransactionUnresolved,
    /// The network contradicted a state that stands: somebody has to look.
    TransactionConflict,
}

/// What became of an event that was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub txn: Txn,
    pub effects: Vec<Effect>,
    /// Why, for the history: the network's code or a reason of ours.
    pub reason: Option<String>,
}

/// What became of an event that changed nothing. It is recorded all the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    #[error("said before")]
    Duplicate,
    #[error("too late to matter")]
    Late,
    #[error("a timer that is not due any more")]
    NotDue,
    /// Contradicts what is known about the money: raises [`EventType::TransactionConflict`].
    #[error("contradicts the state that stands")]
    Conflict,
}

/// Applies one event at `now`.
///
/// # Errors
/// [`Ignored`] says that the state stands and why; it is an answer, not a fault.
pub fn step(txn: &Txn, event: &Event, now: UnixMs, rules: &Rules) -> Result<Step, Ignored> {
    let input = input_of(txn, event, now, rules)?;
    let state = match edge(txn.state, input) {
        Edge::To(state) => state,
        Edge::Stay => txn.state,
        Edge::Duplicate => return Err(Ignored::Duplicate),
        Edge::Late => return Err(Ignored::Late),
        Edge::Conflict => return Err(Ignored::Conflict),
    };
    let mut next = Txn { state, version: txn.version + 1, updated_at: now, ..txn.clone() };
    let mut effects = Vec::with_capacity(3);
    let reason = note_what_was_said(&mut next, event, input);

    match input {
        Input::Dispatch => {
            next.dispatched_at = Some(now);
            next.sends += 1;
            next.wake = Some(Wake { kind: WakeKind::Check, at: rules.first_check_unanswered(now) });
            effects.push(Effect::Send);
        }
        Input::NotSent => {
            let at = now.plus(rules.resend_after_ms(txn.sends, retry_after_ms(event)));
            next.wake = Some(Wake { kind: WakeKind::Send, at: at.min(txn.send_by) });
        }
        Input::OutcomeUnknown => effects.push(Effect::EraseCredBlock),
        Input::CheckDue => {
            next.checks += 1;
            next.wake = rules.wake_after_check(&next, now);
            effects.push(Effect::Inquire);
        }
        Input::ChecksExhausted => {
            next.flagged_at = Some(now);
            next.wake = None;
            effects.push(Effect::Publish(EventType::TransactionUnresolved));
        }
        Input::CheckNotMade => {
            next.checks = next.checks.saturating_sub(1);
            next.wake = rules.wake_after_check_not_made(&next, now, retry_after_ms(event));
        }
        Input::SendingExpired
        | Input::Unsendable
        | Input::Acknowledged
        | Input::CheckUnanswered
        | Input::NotFoundYet
        | Input::Reported(_) => {}
    }
    if state != txn.state {
        entered(&mut next, now, rules, &mut effects);
    }
    Ok(Step { txn: next, effects, reason })
}

/// What entering a state brings with it, whichever way it was reached.
fn entered(next: &mut Txn, now: UnixMs, rules: &Rules, effects: &mut Vec<Effect>) {
    match next.state {
        State::Created | State::Dispatched => return,
        State::Accepted | State::Debited => next.wake = rules.next_check(next, now),
        State::Completed | State::Failed | State::Declined | State::Expired | State::Reversed => {
            next.wake = None
        }
        State::Deemed => {
            next.flagged_at = next.flagged_at.or(Some(now));
            next.wake = None;
        }
    }
    effects.push(Effect::EraseCredBlock);
    effects.extend(next.state.announcement().map(Effect::Publish));
}

/// Reads the event against the payment: a timer may be stale, a sending too late, a check one too many.
fn input_of(txn: &Txn, event: &Event, now: UnixMs, rules: &Rules) -> Result<Input, Ignored> {
    let due = |kind| txn.wake.is_some_and(|wake| wake.kind == kind && wake.at <= now);
    if event.sending().is_some_and(|sending| sending < txn.sends) {
        return Err(Ignored::Late);
    }
    Ok(match event {
        Event::Dispatch if txn.state == State::Created && now >= txn.send_by => Input::SendingExpired,
        Event::Dispatch if txn.state == State::Created && txn.sends > 0 && !due(WakeKind::Send) => {
            return Err(Ignored::NotDue);
        }
        Event::Dispatch => Input::Dispatch,
        Event::NotSent { .. } => Input::NotSent,
        Event::Unsendable { .. } => Input::Unsendable,
        Event::OutcomeUnknown { .. } => Input::OutcomeUnknown,
        Event::Acknowledged { .. } => Input::Acknowledged,
        Event::Reported(report) => match (codes::outcome(report), report.source) {
            (Outcome::NotFound, Source::Inquiry { check }) if !rules.is_last_check(check) => {
                Input::NotFoundYet
            }
            (outcome, _) => Input::Reported(outcome),
        },
        Event::CheckDue if !due(WakeKind::Check) => return Err(Ignored::NotDue),
        Event::CheckDue if rules.checks_are_exhausted(txn, now) => Input::ChecksExhausted,
        Event::CheckDue => Input::CheckDue,
        // Given back already.
        Event::CheckNotMade { check, .. } if *check != txn.checks => return Err(Ignored::Late),
        Event::CheckNotMade { .. } => Input::CheckNotMade,
        Event::CheckUnanswered { .. } => Input::CheckUnanswered,
    })
}

fn note_what_was_said(next: &mut Txn, event: &Event, input: Input) -> Option<String> {
    match event {
        Event::Reported(report) => {
            next.code = Some(report.code.clone());
            next.rrn = report.rrn.clone().or(next.rrn.take());
            (report.code != "00").then(|| report.code.clone())
        }
        Event::NotSent { reason, .. }
        | Event::Unsendable { reason, .. }
        | Event::OutcomeUnknown { reason, .. }
        | Event::CheckNotMade { reason, .. }
        | Event::CheckUnanswered { reason } => Some(reason.clone()),
        Event::Dispatch | Event::Acknowledged { .. } | Event::CheckDue => match input {
            Input::SendingExpired => Some("not_sent_in_time".to_owned()),
            Input::ChecksExhausted => Some("status_checks_exhausted".to_owned()),
            Input::Dispatch
            | Input::NotSent
            | Input::Unsendable
            | Input::OutcomeUnknown
            | Input::Acknowledged
            | Input::CheckDue
            | Input::CheckNotMade
            | Input::CheckUnanswered
            | Input::NotFoundYet
            | Input::Reported(_) => None,
        },
    }
}

fn retry_after_ms(event: &Event) -> Option<u64> {
    match event {
        Event::NotSent { retry_after_ms, .. } | Event::CheckNotMade { retry_after_ms, .. } => *retry_after_ms,
        Event::Dispatch
        | Event::Unsendable { .. }
        | Event::OutcomeUnknown { .. }
        | Event::Acknowledged { .. }
        | Event::Reported(_)
        | Event::CheckDue
        | Event::CheckUnanswered { .. } => None,
    }
}

impl Event {
    /// Which sending it is the result of, if it is one's.
    fn sending(&self) -> Option<u32> {
        match self {
            Event::NotSent { sending, .. }
            | Event::Unsendable { sending, .. }
            | Event::OutcomeUnknown { sending, .. }
            | Event::Acknowledged { sending }
            | Event::Reported(Report { source: Source::Ack { sending }, .. }) => Some(*sending),
            Event::Dispatch
            | Event::Reported(Report { source: Source::Callback | Source::Inquiry { .. }, .. })
            | Event::CheckDue
            | Event::CheckNotMade { .. }
            | Event::CheckUnanswered { .. } => None,
        }
    }

    /// The event's name in the history.
    pub fn name(&self) -> &'static str {
        match self {
            Event::Dispatch => "dispatch",
            Event::NotSent { .. } => "not_sent",
            Event::Unsendable { .. } => "unsendable",
            Event::OutcomeUnknown { .. } => "outcome_unknown",
            Event::Acknowledged { .. } => "acknowledged",
            Event::Reported(Report { source: Source::Ack { .. }, .. }) => "refused",
            Event::Reported(Report { source: Source::Callback, .. }) => "callback",
            Event::Reported(Report { source: Source::Inquiry { .. }, .. }) => "status_answer",
            Event::CheckDue => "check_due",
            Event::CheckNotMade { .. } => "check_not_made",
            Event::CheckUnanswered { .. } => "check_unanswered",
        }
    }
}

impl Ignored {
    pub fn name(self) -> &'static str {
        match self {
            Ignored::Duplicate => "duplicate",
            Ignored::Late => "late",
            Ignored::NotDue => "not_due",
            Ignored::Conflict => "conflict",
        }
    }
}
