//! Which state follows which: the whole life of a payment as one table.
//!
//! Pure, and without a wildcard: a new state or input does not compile until every pair has been thought
//! about. `STATES.md` is printed from here.

use super::{Outcome, State};

/// What happened, as the table sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Time to send it to the network.
    Dispatch,
    /// It could not be sent in time.
    SendingExpired,
    /// Certainly not sent: a later try is safe.
    NotSent,
    /// Certainly not sent, and it never can be.
    Unsendable,
    /// Sent or not, nobody knows.
    OutcomeUnknown,
    /// The network took it.
    Acknowledged,
    /// A status check is due.
    CheckDue,
    /// The last status check has been made, without an end.
    ChecksExhausted,
    /// The status check was not made; it does not count.
    CheckNotMade,
    /// The status check was made and brought nothing.
    CheckUnanswered,
    /// The network does not know it, and there are status checks left: a sending that was held up on its way may
    /// still arrive.
    NotFoundYet,
    /// The network says how it stands (callback, status answer, refusal at once).
    Reported(Outcome),
}

/// What an input does to a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// Moves on.
    To(State),
    /// Stays where it is; the step may still set a timer or ask the network.
    Stay,
    /// Said before.
    Duplicate,
    /// True once, or harmless now.
    Late,
    /// Contradicts what we know about the money: nothing changes and somebody is told.
    Conflict,
}

impl Input {
    /// Every input, for tables and tests.
    pub const ALL: [Input; 22] = [
        Input::Dispatch,
        Input::SendingExpired,
        Input::NotSent,
        Input::Unsendable,
        Input::OutcomeUnknown,
        Input::Acknowledged,
        Input::Reported(Outcome::Debited),
        Input::Reported(Outcome::Succeeded),
        Input::Reported(Outcome::StillPending),
        Input::Reported(Outcome::Unclear),
        Input::Reported(Outcome::Declined),
        Input::Reported(Outcome::Expired),
        Input::Reported(Outcome::Failed),
        Input::Reported(Outcome::Deemed),
        Input::Reported(Outcome::Reversed),
        Input::Reported(Outcome::ReversalRefused),
        Input::NotFoundYet,
        Input::Reported(Outcome::NotFound),
        Input::CheckDue,
        Input::ChecksExhausted,
        Input::CheckNotMade,
        Input::CheckUnanswered,
    ];

    /// The input's name in tables and diagrams.
    pub fn name(self) -> &'static str {
        match self {
            Input::Dispatch => "dispatch",
            Input::SendingExpired => "sending expired",
            Input::NotSent => "not sent",
            Input::Unsendable => "unsendable",
            Input::OutcomeUnknown => "outcome unknown",
            Input::Acknowledged => "acknowledged",
            Input::Reported(Outcome::Debited) => "debited",
            Input::Reported(Outcome::Succeeded) => "succeeded",
            Input::Reported(Outcome::StillPending) => "still pending",
            Input::Reported(Outcome::Unclear) => "unclear",
            Input::Reported(Outcome::Declined) => "declined by user",
            Input::Reported(Outcome::Expired) => "expired at network",
            Input::Reported(Outcome::Failed) => "failed, nothing moved",
            Input::Reported(Outcome::Deemed) => "deemed",
            Input::Reported(Outcome::Reversed) => "reversed",
            Input::Reported(Outcome::ReversalRefused) => "nothing to reverse",
            Input::NotFoundYet => "unknown to network, checks left",
            Input::Reported(Outcome::NotFound) => "unknown to network",
            Input::CheckDue => "check due",
            Input::ChecksExhausted => "checks exhausted",
            Input::CheckNotMade => "check not made",
            Input::CheckUnanswered => "check unanswered",
        }
    }
}

/// The table.
pub fn edge(state: State, input: Input) -> Edge {
    use Edge::{Conflict, Duplicate, Late, Stay, To};
    use Input as I;
    use Outcome as O;
    use State as S;
    match (state, input) {
        // Not with the network yet, or certainly not sent. If the network reports on it all the same, the
        // network is believed: from then on it counts as sent.
        (S::Created, I::Dispatch) => To(S::Dispatched),
        (S::Created, I::SendingExpired) => To(S::Failed),
        (S::Created, I::Reported(O::StillPending | O::Unclear | O::ReversalRefused)) => To(S::Accepted),
        (S::Created, I::NotSent) => Duplicate,
        (S::Created, I::Unsendable) => Late,
        (S::Created, I::OutcomeUnknown | I::Acknowledged) => To(S::Accepted),
        (S::Created, I::CheckDue | I::ChecksExhausted | I::CheckNotMade | I::CheckUnanswered) => Late,
        (S::Created, I::NotFoundYet | I::Reported(O::NotFound)) => Late,

        // May be with the network.
        (S::Dispatched, I::Dispatch) => Duplicate,
        (S::Dispatched, I::SendingExpired) => Late,
        (S::Dispatched, I::NotSent) => To(S::Created),
        (S::Dispatched, I::Unsendable) => To(S::Failed),
        (S::Dispatched, I::OutcomeUnknown | I::NotFoundYet) => Stay,
        (S::Dispatched, I::Acknowledged | I::Reported(O::StillPending | O::Unclear)) => To(S::Accepted),
        (S::Dispatched, I::Reported(O::ReversalRefused | O::NotFound)) => To(S::Failed),

        // With the network; nothing is known about a debit.
        (S::Accepted, I::Dispatch | I::Acknowledged) => Duplicate,
        (S::Accepted, I::SendingExpired | I::NotSent | I::Unsendable | I::OutcomeUnknown) => Late,
        (S::Accepted, I::Reported(O::StillPending | O::Unclear)) => Stay,
        (S::Accepted, I::Reported(O::ReversalRefused)) => To(S::Failed),
        (S::Accepted, I::NotFoundYet | I::Reported(O::NotFound)) => Conflict,

        // The three states before a debit end alike.
        (S::Created | S::Dispatched | S::Accepted, I::Reported(O::Debited)) => To(S::Debited),
        (S::Created | S::Dispatched | S::Accepted, I::Reported(O::Declined)) => To(S::Declined),
        (S::Created | S::Dispatched | S::Accepted, I::Reported(O::Expired)) => To(S::Expired),
        (S::Created | S::Dispatched | S::Accepted, I::Reported(O::Failed)) => To(S::Failed),

        // The payer has paid: nothing but a success, a reversal or a deemed end closes it.
        (S::Debited, I::Reported(O::Debited) | I::Dispatch) => Duplicate,
        (
            S::Debited,
            I::SendingExpired | I::NotSent | I::Unsendable | I::OutcomeUnknown | I::Acknowledged,
        ) => Late,
        (S::Debited, I::Reported(O::StillPending | O::Unclear)) => Stay,
        (
            S::Debited,
            I::Reported(O::Declined | O::Expired | O::Failed | O::ReversalRefused | O::NotFound),
        ) => Conflict,

        (S::Created | S::Dispatched | S::Accepted | S::Debited | S::Deemed, I::Reported(O::Succeeded)) => {
            To(S::Completed)
        }
        (S::Created | S::Dispatched | S::Accepted | S::Debited | S::Deemed, I::Reported(O::Reversed)) => {
            To(S::Reversed)
        }
        (S::Created | S::Dispatched | S::Accepted | S::Debited, I::Reported(O::Deemed)) => To(S::Deemed),
        (
            S::Dispatched | S::Accepted | S::Debited,
            I::CheckDue | I::ChecksExhausted | I::CheckNotMade | I::CheckUnanswered,
        ) => Stay,

        // Deemed: only reconciliation moves it, and only to one of two ends.
        (S::Deemed, I::Reported(O::Deemed)) => Duplicate,
        (S::Deemed, I::Reported(O::Debited | O::StillPending | O::Unclear)) => Late,
        (S::Deemed, I::Reported(O::Declined | O::Expired | O::Failed | O::ReversalRefused | O::NotFound)) => {
            Conflict
        }

        (S::Debited | S::Completed | S::Deemed, I::NotFoundYet) => Conflict,
        (S::Failed | S::Declined | S::Expired | S::Reversed, I::NotFoundYet) => Late,

        (S::Completed, I::Reported(O::Succeeded)) => Duplicate,
        (S::Completed, I::Reported(O::Debited | O::StillPending | O::Unclear | O::Deemed)) => Late,
        (
            S::Completed,
            I::Reported(
                O::Declined | O::Expired | O::Failed | O::Reversed | O::ReversalRefused | O::NotFound,
            ),
        ) => Conflict,

        (S::Reversed, I::Reported(O::Reversed)) => Duplicate,
        (S::Reversed, I::Reported(O::Debited | O::StillPending | O::Unclear)) => Late,
        (
            S::Reversed,
            I::Reported(O::Declined | O::Expired | O::Failed | O::ReversalRefused | O::NotFound),
        ) => Late,
        (S::Reversed, I::Reported(O::Succeeded | O::Deemed)) => Conflict,

        // Nothing moved: whoever says that money did contradicts it.
        (S::Failed, I::Reported(O::Failed)) => Duplicate,
        (S::Declined, I::Reported(O::Declined)) => Duplicate,
        (S::Expired, I::Reported(O::Expired)) => Duplicate,
        (S::Failed, I::Reported(O::Declined | O::Expired)) => Late,
        (S::Declined, I::Reported(O::Failed | O::Expired)) => Late,
        (S::Expired, I::Reported(O::Failed | O::Declined)) => Late,
        (
            S::Failed | S::Declined | S::Expired,
            I::Reported(O::StillPending | O::Unclear | O::ReversalRefused | O::NotFound),
        ) => Late,
        (
            S::Failed | S::Declined | S::Expired,
            I::Reported(O::Debited | O::Succeeded | O::Deemed | O::Reversed),
        ) => Conflict,

        (
            S::Completed | S::Failed | S::Declined | S::Expired | S::Deemed | S::Reversed,
            I::Dispatch
            | I::SendingExpired
            | I::NotSent
            | I::Unsendable
            | I::OutcomeUnknown
            | I::Acknowledged,
        ) => Late,
        (
            S::Completed | S::Failed | S::Declined | S::Expired | S::Deemed | S::Reversed,
            I::CheckDue | I::ChecksExhausted | I::CheckNotMade | I::CheckUnanswered,
        ) => Late,
    }
}
