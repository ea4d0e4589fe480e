//! `POST /v1/transactions/send`: parse to what is meant, make it durable, answer.

use std::sync::{Arc, PoisonError};

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::{Api, Caller, Problem, note, text, whole};
use crate::config::{Config, Duplicates};
use crate::store::{Accepted, CredBlock, IdempotencyKey, NewTxn};
use crate::txn::{AmountPaise, PspCode, State as TxnState, Status, Txn, TxnId, UnixMs, Vpa, Wake, WakeKind};

const ROUTE: &str = "/v1/transactions/send";
const MAX_CRED_BLOCK: usize = 4096;
const MAX_KEY: usize = 128;
const MAX_DEVICE_ID: usize = 128;

/// What the client wrote. Unknown and repeated members are errors; the amount keeps its very digits.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Written<'a> {
    #[serde(rename = "fromVPA")]
    from_vpa: String,
    #[serde(rename = "toVPA")]
    to_vpa: String,
    #[serde(borrow)]
    amount: &'a RawValue,
    txn_note: String,
    device_id: String,
    idempotency_key: String,
    cred_block: Option<String>,
}

/// What the client means.
#[derive(Debug)]
struct Meant {
    from: Vpa,
    to: Vpa,
    amount: AmountPaise,
    note: String,
    device_id: String,
    key: String,
    cred_block: Option<CredBlock>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    txn_id: String,
    status: Status,
    poll_uri: String,
}

pub(super) async fn send(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let result = accept(&api, &headers, body).await;
    let label = match &result {
        Ok((_, Accepted::New)) => "new",
        Ok((_, Accepted::Replayed(_))) => "replayed",
        Ok((_, Accepted::KeyReused)) => "idempotency_key_reused",
        Err(problem) => problem.code(),
    };
    api.metrics.sends.with_label_values(&[label]).inc();
    let (txn_id, accepted) = result?;
    // The first answer again: a payment is always pending when it is accepted.
    let answer = |txn_id: TxnId| {
        Json(Answer {
            txn_id: txn_id.to_string(),
            status: Status::Pending,
            poll_uri: format!("/v1/transactions/{txn_id}"),
        })
    };
    match accepted {
        Accepted::New => Ok(answer(txn_id).into_response()),
        Accepted::Replayed(first) => Ok(([("idempotency-replayed", "true")], answer(first)).into_response()),
        Accepted::KeyReused => Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency_key_reused",
            "This idempotency key was used for something else",
        )),
    }
}

async fn accept(api: &Api, headers: &HeaderMap, body: Body) -> Result<(TxnId, Accepted), Problem> {
    let caller = Caller::from_headers(headers)?;
    let meant = read(&whole(body).await?)?;
    check(&api.config, &caller, headers, &meant)?;
    let fingerprint = fingerprint(&caller, &meant);
    let txn = new_txn(api.psp, &api.config, &caller, &meant, UnixMs::now());
    let txn_id = txn.id;
    let idempotency = IdempotencyKey { tenant: caller.tenant.clone(), route: ROUTE, key: meant.key };
    let _first = InFlight::enter(api, &idempotency)?;
    let trace = caller.trace.clone();
    let new = NewTxn { txn, cred_block: meant.cred_block, idempotency, fingerprint, trace };
    let accepted = api.store.accept(new).await?;
    tracing::info!(
        %txn_id,
        tenant = caller.tenant,
        request_id = caller.trace.request_id,
        traceparent = caller.trace.traceparent,
        ?accepted,
        "send"
    );
    if matches!(accepted, Accepted::Replayed(_) | Accepted::KeyReused)
        && api.config.duplicates(&caller.tenant) == Duplicates::Conflict
    {
        return Err(Problem::new(StatusCode::CONFLICT, "duplicate_transaction", "Duplicate Transaction"));
    }
    Ok((txn_id, accepted))
}

fn read(body: &[u8]) -> Result<Meant, Problem> {
    let written: Written<'_> = serde_json::from_slice(body)
        .map_err(|error| Problem::bad_request("body_invalid", "The body is not a payment").detail(error))?;
    let vpa = |member: &str, text: &str| {
        text.parse::<Vpa>().map_err(|error| {
            Problem::bad_request("vpa_invalid", "Not a payment address").detail(format!("{member}: {error}"))
        })
    };
    let from = vpa("fromVPA", &written.from_vpa)?;
    let to = vpa("toVPA", &written.to_vpa)?;
    let amount = written
        .amount
        .get()
        .parse()
        .map_err(|error| Problem::bad_request("amount_invalid", "Not an amount").detail(error))?;
    if !note::is_valid(&written.txn_note) {
        return Err(Problem::bad_request(
            "note_invalid",
            "A note is 1 to 50 characters, none of them invisible",
        ));
    }
    let body_invalid = |what| Problem::bad_request("body_invalid", "The body is not a payment").detail(what);
    if !(1..=MAX_DEVICE_ID).contains(&written.device_id.len()) {
        return Err(body_invalid("deviceId: 1 to 128 bytes"));
    }
    if !(1..=MAX_KEY).contains(&written.idempotency_key.len())
        || !written.idempotency_key.bytes().all(|b| b.is_ascii_graphic())
    {
        return Err(body_invalid("idempotencyKey: 1 to 128 visible ASCII characters"));
    }
    if written.cred_block.as_deref().is_some_and(|block| !is_cred_block(block)) {
        return Err(body_invalid("credBlock: 1 to 4096 characters of base64"));
    }
    Ok(Meant {
        from,
        to,
        amount,
        note: written.txn_note,
        device_id: written.device_id,
        key: written.idempotency_key,
        cred_block: written.cred_block.map(CredBlock),
    })
}

/// What npci-proxy takes, and nothing else: a payment that it can't read could never be sent.
fn is_cred_block(text: &str) -> bool {
    (1..=MAX_CRED_BLOCK).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'=' | b'-' | b'_'))
}

fn check(config: &Config, caller: &Caller, headers: &HeaderMap, meant: &Meant) -> Result<(), Problem> {
    let header_key = text(headers, "idempotency-key").unwrap_or_default();
    // The draft writes a key as a quoted string; plain ones are common.
    let bare = header_key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(&header_key);
    if bare != meant.key {
        return Err(Problem::bad_request(
            "idempotency_key_mismatch",
            "The header Idempotency-Key and the member idempotencyKey must be the same",
        ));
    }
    if !caller.owns(&meant.from) {
        return Err(Problem::new(StatusCode::FORBIDDEN, "vpa_not_owned", "fromVPA is not the caller's"));
    }
    if caller.device != meant.device_id {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "device_mismatch",
            "deviceId is not the caller's device",
        ));
    }
    if meant.from == meant.to {
        return Err(Problem::bad_request("same_vpa", "fromVPA and toVPA are the same"));
    }
    if meant.amount.paise() > config.amount_max_paise(&caller.tenant) {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "amount_above_limit",
            "More than may be paid at once",
        ));
    }
    Ok(())
}

/// What makes two requests the same: who pays whom how much, and why. The PIN block is left out: a client
/// that tries again may have encrypted the PIN afresh.
fn fingerprint(caller: &Caller, meant: &Meant) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [
        caller.subject.as_str(),
        &meant.from.as_str().to_ascii_lowercase(),
        &meant.to.as_str().to_ascii_lowercase(),
        &meant.amount.to_string(),
        &meant.note,
        &meant.device_id,
    ] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

fn new_txn(psp: PspCode, config: &Config, caller: &Caller, meant: &Meant, now: UnixMs) -> Txn {
    let send_by = now.plus(config.rules.send_within_ms);
    Txn {
        id: TxnId::fresh(psp, now),
        tenant: caller.tenant.clone(),
        subject: caller.subject.clone(),
        device_id: meant.device_id.clone(),
        from: meant.from.clone(),
        to: meant.to.clone(),
        amount: meant.amount,
        note: meant.note.clone(),
        state: TxnState::Created,
        version: 1,
        code: None,
        rrn: None,
        created_at: now,
        updated_at: now,
        send_by,
        dispatched_at: None,
        sends: 0,
        checks: 0,
        flagged_at: None,
        wake: Some(Wake { kind: WakeKind::Send, at: send_by }),
    }
}

/// Holds a key while its request has no answer.
struct InFlight<'a> {
    api: &'a Api,
    key: IdempotencyKey,
}

impl<'a> InFlight<'a> {
    fn enter(api: &'a Api, key: &IdempotencyKey) -> Result<Self, Problem> {
        let mut keys = api.in_flight.lock().unwrap_or_else(PoisonError::into_inner);
        if !keys.insert(key.clone()) {
            return Err(Problem::new(
                StatusCode::CONFLICT,
                "idempotency_in_flight",
                "A request with this idempotency key is being answered",
            ));
        }
        Ok(InFlight { api, key: key.clone() })
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.api.in_flight.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
