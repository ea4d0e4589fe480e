//! What each state means to the outside: its public status, its money, its announcement.

use super::{EventType, Money, State, Status};

impl State {
    /// Every state, in the order of a payment's life.
    pub const ALL: [State; 10] = [
        State::Created,
        State::Dispatched,
        State::Accepted,
        State::Debited,
        State::Completed,
        State::Failed,
        State::Declined,
        State::Expired,
        State::Deemed,
        State::Reversed,
    ];

    /// The name in rows, tables and diagrams.
    pub fn name(self) -> &'static str {
        match self {
            State::Created => "created",
            State::Dispatched => "dispatched",
            State::Accepted => "accepted",
            State::Debited => "debited",
            State::Completed => "completed",
            State::Failed => "failed",
            State::Declined => "declined",
            State::Expired => "expired",
            State::Deemed => "deemed",
            State::Reversed => "reversed",
        }
    }

    pub fn from_name(name: &str) -> Option<State> {
        State::ALL.into_iter().find(|state| state.name() == name)
    }

    pub fn status(self) -> Status {
        match self {
            State::Created | State::Dispatched | State::Accepted => Status::Pending,
            State::Debited => Status::Debited,
            State::Completed => Status::Completed,
            State::Failed => Status::Failed,
            State::Declined => Status::Declined,
            State::Expired => Status::Expired,
            State::Deemed => Status::Deemed,
            State::Reversed => Status::Reversed,
        }
    }

    pub fn money(self) -> Money {
        match self {
            State::Created | State::Failed | State::Declined | State::Expired => Money::Still,
            State::Dispatched | State::Accepted => Money::Unknown,
            State::Debited => Money::LeftPayer,
            State::Completed | State::Deemed => Money::Arrived,
            State::Reversed => Money::Returned,
        }
    }

    /// Nothing is expected any more (a deemed payment may still be reconciled).
    pub fn is_final(self) -> bool {
        match self {
            State::Created | State::Dispatched | State::Accepted | State::Debited => false,
            State::Completed
            | State::Failed
            | State::Declined
            | State::Expired
            | State::Deemed
            | State::Reversed => true,
        }
    }

    /// The event that tells the world about it.
    pub(super) fn announcement(self) -> Option<EventType> {
        match self {
            State::Created | State::Dispatched | State::Accepted => None,
            State::Debited => Some(EventType::TransactionDebited),
            State::Completed => Some(EventType::TransactionCompleted),
            State::Failed => Some(EventType::TransactionFailed),
            State::Declined => Some(EventType::TransactionDeclined),
            State::Expired => Some(EventType::TransactionExpired),
            State::Deemed => Some(EventType::TransactionDeemed),
            State::Reversed => Some(EventType::TransactionReversed),
        }
    }
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Status::Pending => "PENDING",
            Status::Debited => "DEBITED",
            Status::Completed => "COMPLETED",
            Status::Failed => "FAILED",
            Status::Deemed => "DEEMED",
            Status::Reversed => "REVERSED",
            Status::Declined => "DECLINED",
            Status::Expired => "EXPIRED",
        }
    }
}

impl EventType {
    pub fn name(self) -> &'static str {
        match self {
            EventType::TransactionInitiated => "TransactionInitiated",
            EventType::TransactionDebited => "TransactionDebited",
            EventType::TransactionCompleted => "TransactionCompleted",
            EventType::TransactionFailed => "TransactionFailed",
            EventType::TransactionDeclined => "TransactionDeclined",
            EventType::TransactionExpired => "TransactionExpired",
            EventType::TransactionDeemed => "TransactionDeemed",
            EventType::TransactionReversed => "TransactionReversed",
            EventType::TransactionUnresolved => "TransactionUnresolved",
            EventType::TransactionConflict => "TransactionConflict",
        }
    }

    pub fn from_name(name: &str) -> Option<EventType> {
        const ALL: [EventType; 10] = [
            EventType::TransactionInitiated,
            EventType::TransactionDebited,
            EventType::TransactionCompleted,
            EventType::TransactionFailed,
            EventType::TransactionDeclined,
            EventType::TransactionExpired,
            EventType::TransactionDeemed,
            EventType::TransactionReversed,
            EventType::TransactionUnresolved,
            EventType::TransactionConflict,
        ];
        ALL.into_iter().find(|event| event.name() == name)
    }
}
