//! The admin address: the ledger, faults, keys, counts. Plain HTTP, for loopback.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use certs::Watch;
use http::{StatusCode, header};
use npci_proxy::{problem::Problem, wire::Id};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    fault::Rule,
    ledger::{Account, Entry},
    sim::Sim,
};

pub fn router(sim: Arc<Sim>, certificates: certs::metrics::Metrics, watch: Arc<Watch>) -> Router {
    let certificates = Arc::new(certificates);
    Router::new()
        .route("/health", get(|| async { Json(json!({"status": "up"})) }))
        .route("/readiness", get(|| async { Json(json!({"ready": true, "missing": []})) }))
        .route("/metrics", get(async move |sim| metrics(sim, &certificates)))
        .route("/certificates", get(async move || Json(watch.report())))
        .route("/ledger", get(ledger))
        .route("/ledger/{txn_id}", get(ledger_of))
        .route("/faults", get(faults).put(set_faults))
        .route("/keys", get(keys))
        .route("/calls", get(calls))
        .route("/reset", post(reset))
        .layer(DefaultBodyLimit::max(1024 * 1024))
        .with_state(sim)
}

#[derive(Serialize)]
struct Books {
    accounts: Vec<Account>,
    entries: Vec<Entry>,
    total_paise: i64,
    opening_total_paise: i64,
    balanced: bool,
}

async fn ledger(State(sim): State<Arc<Sim>>) -> impl IntoResponse {
    let books = {
        let network = sim.network();
        let ledger = network.ledger();
        Books {
            accounts: ledger.accounts().to_vec(),
            entries: ledger.entries().to_vec(),
            total_paise: ledger.total_paise(),
            opening_total_paise: ledger.opening_total_paise(),
            balanced: ledger.balanced(),
        }
    };
    Json(books)
}

async fn ledger_of(State(sim): State<Arc<Sim>>, Path(txn_id): Path<String>) -> Response {
    let known = txn_id.parse::<Id>().ok().and_then(|txn_id| {
        let network = sim.network();
        let payment = network.payment(&txn_id)?;
        let entries: Vec<Entry> = network.ledger().entries_of(&txn_id).cloned().collect();
        Some(json!({"payment": payment, "entries": entries}))
    });
    match known {
        Some(known) => Json(known).into_response(),
        None => Problem::new(StatusCode::NOT_FOUND, "transaction_not_found").into_response(),
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    rules: Vec<Rule>,
}

async fn faults(State(sim): State<Arc<Sim>>) -> impl IntoResponse {
    Json(Rules { rules: sim.network().faults().to_vec() })
}

/// Replaces every rule, those of the configuration file included; `/reset` brings them back.
async fn set_faults(State(sim): State<Arc<Sim>>, body: String) -> Response {
    match serde_json::from_str::<Rules>(&body) {
        Ok(rules) => {
            sim.network().set_faults(rules.rules.clone());
            Json(rules).into_response()
        }
        Err(error) => {
            Problem::new(StatusCode::BAD_REQUEST, "bad_request").detail(error.to_string()).into_response()
        }
    }
}

async fn keys(State(sim): State<Arc<Sim>>) -> impl IntoResponse {
    let network = sim.network();
    let banks: BTreeMap<&str, Value> = network
        .keys()
        .map(|(bank, key)| (bank, json!({"alg": "ECDH-P256+HKDF-SHA256+A256GCM", "public_key": key})))
        .collect();
    Json(json!({"banks": banks}))
}

async fn calls(State(sim): State<Arc<Sim>>) -> impl IntoResponse {
    Json(serde_json::to_value(&*sim.calls()).unwrap_or_default())
}

async fn reset(State(sim): State<Arc<Sim>>) -> impl IntoResponse {
    sim.reset();
    Json(json!({"reset": true}))
}

fn metrics(State(sim): State<Arc<Sim>>, certificates: &certs::metrics::Metrics) -> impl IntoResponse + use<> {
    let entries = sim.network().ledger().entries().len();
    let text = format!(
        "# HELP npci_sim_ledger_entries Entries in the banks' books\n\
         # TYPE npci_sim_ledger_entries gauge\nnpci_sim_ledger_entries {entries}\n{}",
        certificates.text()
    );
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)
}
