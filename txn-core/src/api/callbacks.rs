//! `POST /internal/v1/network-events`: the network's word, from npci-proxy and nobody else. Answered once it
//! is durable; the proxy answers the network only then.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use super::{Api, Problem, whole};
use crate::network::NetworkEvent;
use crate::store::{Applied, Apply};
use crate::txn::{Event, Source, TxnId, UnixMs};

/// The name of its inbox.
const INBOX: &str = "network-callback";
const ACCEPTED: &str = "ACCEPTED";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Answer {
    msg_id: String,
    /// The network's own word for "taken": where Envoy stands at the network's door, it passes this answer on.
    ack: &'static str,
    /// Whether it changed anything. Recorded it is in any case.
    applied: bool,
}

pub(super) async fn network_event(State(api): State<Arc<Api>>, body: Body) -> Result<Json<Answer>, Problem> {
    let body = whole(body).await?;
    let event: NetworkEvent = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_request("body_invalid", "Not a network event").detail(error))?;
    check(&event)?;
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "unknown_transaction", "No such transaction");
    let txn_id: TxnId = event.txn_id.parse().map_err(|_| unknown())?;
    let msg_id = event.msg_id.clone();
    let input = Apply {
        txn_id,
        at: UnixMs::now(),
        inbox: Some((INBOX, format!("{msg_id}:{txn_id}"))),
        event: Event::Reported(event.report(Source::Callback)),
    };
    match api.orchestrator.apply(input).await? {
        Applied::Stepped { .. } => Ok(Json(Answer { msg_id, ack: ACCEPTED, applied: true })),
        Applied::Ignored { .. } | Applied::SeenBefore => {
            Ok(Json(Answer { msg_id, ack: ACCEPTED, applied: false }))
        }
        Applied::UnknownTxn => Err(unknown()),
    }
}

/// The proxy has verified the signature; this bounds what is stored.
fn check(event: &NetworkEvent) -> Result<(), Problem> {
    let id_ok =
        (1..=35).contains(&event.msg_id.len()) && event.msg_id.bytes().all(|b| b.is_ascii_alphanumeric());
    let code_ok = |code: &str| code.len() <= 8 && code.bytes().all(|b| b.is_ascii_alphanumeric());
    let codes = [&event.payer_code, &event.payee_code, &event.reversal_code];
    let codes_ok = code_ok(&event.code) && codes.into_iter().flatten().all(|code| code_ok(code));
    let rrn_ok =
        event.rrn.as_ref().is_none_or(|rrn| rrn.len() == 12 && rrn.bytes().all(|b| b.is_ascii_digit()));
    if id_ok && codes_ok && rrn_ok {
        return Ok(());
    }
    Err(Problem::bad_request("body_invalid", "Not a network event")
        .detail("msgId, a code or rrn is out of bounds"))
}
