//! `GET /v1/transactions/{id}`: how a payment stands, for whoever pays or is paid.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::value::RawValue;

use super::{Api, Caller, Problem};
use crate::store::HistoryRow;
use crate::txn::{Status, Txn};

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    txn_id: String,
    status: Status,
    #[serde(rename = "fromVPA")]
    from_vpa: &'a str,
    #[serde(rename = "toVPA")]
    to_vpa: &'a str,
    /// Rupees, written from paise: no floating-point number is ever made.
    amount: Box<RawValue>,
    txn_note: &'a str,
    created_at: String,
    updated_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rrn: Option<&'a str>,
    history: Vec<Line<'a>>,
}

#[derive(Debug, Serialize)]
struct Line<'a> {
    status: Status,
    at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

pub(super) async fn find(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let caller = Caller::from_headers(&headers)?;
    let (txn, history) = visible(&api, &caller, &id).await?;
    let answer = answer(&txn, &history).ok_or_else(|| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "Cannot be shown")
    })?;
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)).into_response())
}

/// A payment and its history, if the caller may see it.
pub(super) async fn visible(api: &Api, caller: &Caller, id: &str) -> Result<(Txn, Vec<HistoryRow>), Problem> {
    let not_found = || Problem::new(StatusCode::NOT_FOUND, "transaction_not_found", "No such transaction");
    let id = id.parse().map_err(|_| not_found())?;
    let (txn, history) = api.store.find(&caller.tenant, id).await?.ok_or_else(not_found)?;
    // Others in the tenant must not even learn that it exists.
    if txn.subject != caller.subject && !caller.owns(&txn.from) && !caller.owns(&txn.to) {
        return Err(not_found());
    }
    Ok((txn, history))
}

fn answer<'a>(txn: &'a Txn, history: &'a [HistoryRow]) -> Option<Answer<'a>> {
    Some(Answer {
        txn_id: txn.id.to_string(),
        status: txn.state.status(),
        from_vpa: txn.from.as_str(),
        to_vpa: txn.to.as_str(),
        amount: RawValue::from_string(txn.amount.to_string()).ok()?,
        txn_note: &txn.note,
        created_at: txn.created_at.to_string(),
        updated_at: txn.updated_at.to_string(),
        code: txn.code.as_deref(),
        rrn: txn.rrn.as_deref(),
        history: lines(history),
    })
}

/// One line for each public status in its turn; what changed nothing outside is for the audit.
fn lines(history: &[HistoryRow]) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for row in history.iter().filter(|row| row.applied) {
        let status = row.state.status();
        if lines.last().is_none_or(|last| last.status != status) {
            lines.push(Line { status, at: row.at.to_string(), reason: row.reason.as_deref() });
        }
    }
    lines
}
