//! Rows on their way out of an engine, checked like anything else that comes from outside.

use std::fmt::Display;

use sqlx::Row as _;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::record::wake_from_name;
use super::{CredBlock, HistoryRow, OutboxRow, StoreError};
use crate::txn::{AmountPaise, EventType, PspCode, State, Txn, TxnId, UnixMs, Wake};

/// A row's values by the names of its columns, in our own types.
pub(super) trait Cells {
    fn optional_text(&self, column: &str) -> Result<Option<String>, StoreError>;
    fn small(&self, column: &str) -> Result<i32, StoreError>;
    fn big(&self, column: &str) -> Result<i64, StoreError>;
    fn flag(&self, column: &str) -> Result<bool, StoreError>;
    fn uuid(&self, column: &str) -> Result<Uuid, StoreError>;
    fn bytes(&self, column: &str) -> Result<Vec<u8>, StoreError>;
    fn optional_time(&self, column: &str) -> Result<Option<UnixMs>, StoreError>;

    fn text(&self, column: &str) -> Result<String, StoreError> {
        self.optional_text(column)?.ok_or_else(|| odd(column))
    }
    fn time(&self, column: &str) -> Result<UnixMs, StoreError> {
        self.optional_time(column)?.ok_or_else(|| odd(column))
    }
    fn count(&self, column: &str) -> Result<u32, StoreError> {
        self.small(column)?.try_into().map_err(odd)
    }
}

/// What both engines' rows have in common: each asks its row in its own words.
macro_rules! plain_cells {
    ($get:ident) => {
        fn optional_text(&self, column: &str) -> Result<Option<String>, StoreError> {
            Ok(self.$get(column)?)
        }
        fn small(&self, column: &str) -> Result<i32, StoreError> {
            Ok(self.$get(column)?)
        }
        fn big(&self, column: &str) -> Result<i64, StoreError> {
            Ok(self.$get(column)?)
        }
        fn flag(&self, column: &str) -> Result<bool, StoreError> {
            Ok(self.$get(column)?)
        }
        fn uuid(&self, column: &str) -> Result<Uuid, StoreError> {
            Ok(self.$get(column)?)
        }
        fn bytes(&self, column: &str) -> Result<Vec<u8>, StoreError> {
            Ok(self.$get(column)?)
        }
    };
}

/// Times are milliseconds.
impl Cells for rusqlite::Row<'_> {
    plain_cells!(get);

    fn optional_time(&self, column: &str) -> Result<Option<UnixMs>, StoreError> {
        Ok(self.get::<_, Option<i64>>(column)?.map(UnixMs))
    }
}

/// Times are `TIMESTAMPTZ`.
impl Cells for PgRow {
    plain_cells!(try_get);

    fn optional_time(&self, column: &str) -> Result<Option<UnixMs>, StoreError> {
        let at: Option<OffsetDateTime> = self.try_get(column)?;
        at.map(|at| i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map(UnixMs).map_err(odd)).transpose()
    }
}

/// A payment as whoever changes it needs it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub txn: Txn,
    pub cred_block: Option<CredBlock>,
}

pub(super) fn loaded(row: &impl Cells) -> Result<Loaded, StoreError> {
    Ok(Loaded { txn: txn(row)?, cred_block: row.optional_text("cred_block")?.map(CredBlock) })
}

pub(super) fn txn(row: &impl Cells) -> Result<Txn, StoreError> {
    let wake = match (row.optional_text("wake_kind")?, row.optional_time("wake_at")?) {
        (Some(kind), Some(at)) => {
            Some(Wake { kind: wake_from_name(&kind).ok_or_else(|| odd("wake_kind"))?, at })
        }
        (None, _) | (_, None) => None,
    };
    Ok(Txn {
        id: txn_id(row, "txn_id")?,
        tenant: row.text("tenant")?,
        subject: row.text("subject")?,
        device_id: row.text("device_id")?,
        from: row.text("from_vpa")?.parse().map_err(odd)?,
        to: row.text("to_vpa")?.parse().map_err(odd)?,
        amount: AmountPaise::from_paise(row.big("amount_paise")?.try_into().map_err(odd)?).map_err(odd)?,
        note: row.text("note")?,
        state: state(row)?,
        version: row.count("version")?,
        code: row.optional_text("code")?,
        rrn: row.optional_text("rrn")?,
        created_at: row.time("created_at")?,
        updated_at: row.time("updated_at")?,
        send_by: row.time("send_by")?,
        dispatched_at: row.optional_time("dispatched_at")?,
        sends: row.count("sends")?,
        checks: row.count("checks")?,
        flagged_at: row.optional_time("flagged_at")?,
        wake,
    })
}

/// The id whose digits are in `column`, and its prefix in `psp`.
pub(super) fn txn_id(row: &impl Cells, column: &str) -> Result<TxnId, StoreError> {
    let psp: PspCode = row.text("psp")?.parse().map_err(odd)?;
    Ok(TxnId::from_parts(psp, row.uuid(column)?))
}

pub(super) fn history(row: &impl Cells) -> Result<HistoryRow, StoreError> {
    Ok(HistoryRow {
        version: row.count("version")?,
        at: row.time("at")?,
        state: state(row)?,
        event: row.text("event")?,
        reason: row.optional_text("reason")?,
        applied: row.flag("applied")?,
    })
}

/// Where it is and how it names its payment differ from engine to engine.
pub(super) fn outbox(
    row: &impl Cells,
    (lane, xact): (i16, i64),
    txn_id: String,
) -> Result<OutboxRow, StoreError> {
    Ok(OutboxRow {
        lane,
        xact,
        position: row.big("position")?,
        event_id: row.uuid("event_id")?,
        txn_id,
        event_type: EventType::from_name(&row.text("event_type")?).ok_or_else(|| odd("event_type"))?,
        payload: row.text("payload")?,
    })
}

fn state(row: &impl Cells) -> Result<State, StoreError> {
    State::from_name(&row.text("state")?).ok_or_else(|| odd("state"))
}

/// The database holds something that we never wrote.
pub(super) fn odd(what: impl Display) -> StoreError {
    StoreError::Engine(format!("unreadable row: {what}"))
}
