//! Calls to npci-proxy, the only door to the payment network. Every answer becomes an [`Event`]; nothing here
//! is ever sent twice by itself.

use async_trait::async_trait;
use certs::Live;
use reqwest::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::store::{CredBlock, Trace};
use crate::txn::{Event, Report, ReportResult, Source, Stage, Txn};

/// The network as the orchestrator sees it. What it gives carries the number of the sending or check that it is
/// the result of, the payment's `sends` or `checks` as they were when the call was made.
#[async_trait]
pub trait Network: std::fmt::Debug + Send + Sync + 'static {
    /// Hands a payment over, once. Gives what is known afterwards: acknowledged, refused, certainly not
    /// sent, or unknown.
    async fn initiate(&self, txn: &Txn, cred_block: Option<&CredBlock>, trace: &Trace) -> Event;

    /// Asks how a payment stands.
    async fn inquire(&self, txn: &Txn) -> Event;
}

/// npci-proxy over mutual TLS.
#[derive(Debug, Clone)]
pub struct NpciProxy {
    http: Live<reqwest::Client>,
    base: String,
}

/// What the network says about a payment: the body of a callback, and of a status answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkEvent {
    pub msg_id: String,
    pub txn_id: String,
    pub stage: Stage,
    pub result: ReportResult,
    pub code: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer_code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payee_code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reversal_code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rrn: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Initiate<'a> {
    txn_id: String,
    msg_id: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "payerVpa")]
    payer_vpa: &'a str,
    #[serde(rename = "payeeVpa")]
    payee_vpa: &'a str,
    amount: String,
    note: &'a str,
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    cred_block: Option<&'a str>,
    initiated_at: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Ack {
    txn_id: String,
    ack: AckResult,
    code: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum AckResult {
    Accepted,
    Rejected,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Inquiry {
    txn_id: String,
    msg_id: String,
    original_at: String,
}

/// npci-proxy's refusals: problem+json with the member `sent`.
#[derive(Debug, Deserialize)]
struct Refusal {
    code: String,
    #[serde(default)]
    sent: Option<String>,
}

/// The header `x-initiated-by` of every call, status checks too. In peak hours the network takes no call that no
/// user started (UPI.md, "Times and limits"). A check of a payment's own schedule belongs to the payment that a
/// user has just made and waits for; checks that nobody waits for (batches, reconciliation) are not made here and
/// would have to say `system`.
const BY_USER: &str = "user";

/// No answer of the proxy is longer.
const MAX_ANSWER: usize = 64 * 1024;

/// A call that brought no usable answer.
#[derive(Debug)]
struct NoAnswer {
    reason: String,
    sent: Sent,
    retry_after_ms: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    No,
    /// And the same request never will be: the proxy can't read it.
    Never,
    Unknown,
}

impl NpciProxy {
    /// `base` is `https://host:port`.
    pub fn new(http: Live<reqwest::Client>, base: &str) -> Self {
        NpciProxy { http, base: base.trim_end_matches('/').to_owned() }
    }

    /// `host:port`.
    pub fn authority(&self) -> String {
        let host = self.base.trim_start_matches("https://").split('/').next().unwrap_or_default();
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port { host.to_owned() } else { format!("{host}:443") }
    }

    async fn call<T: for<'de> Deserialize<'de>>(
        &self,
        path: &str,
        body: &impl Serialize,
        initiated_by: &'static str,
        trace: &Trace,
    ) -> Result<T, NoAnswer> {
        let mut request = self.http.current().post(format!("{}{path}", self.base)).json(body);
        request = request.header("x-initiated-by", initiated_by);
        if let Some(id) = &trace.request_id {
            request = request.header("x-request-id", id);
        }
        if let Some(traceparent) = &trace.traceparent {
            request = request.header("traceparent", traceparent);
        }
        let response = request.send().await.map_err(|error| {
            let is_connect = error.is_connect();
            let (request_id, cause) = (trace.request_id.as_deref(), certs::client::cause(error));
            tracing::warn!(path, request_id, cause, "no answer from npci-proxy");
            NoAnswer {
                // No connection to our own proxy, so nobody can have got it.
                sent: if is_connect { Sent::No } else { Sent::Unknown },
                reason: if is_connect { "proxy_unreachable" } else { "proxy_no_answer" }.to_owned(),
                retry_after_ms: None,
            }
        })?;
        let status = response.status();
        let retry_after_ms = retry_after_ms(&response);
        let unusable =
            |reason: &str| NoAnswer { reason: reason.to_owned(), sent: Sent::Unknown, retry_after_ms };
        let body = read(response).await.ok_or_else(|| unusable("proxy_answer_cut"))?;
        if status == StatusCode::OK {
            return serde_json::from_slice(&body).map_err(|_| unusable("proxy_answer_invalid"));
        }
        let refusal: Refusal = serde_json::from_slice(&body).map_err(|_| unusable("proxy_refused"))?;
        // Only these two letters are a definite word; everything else may have been sent.
        let sent = match (refusal.sent.as_deref(), status, refusal.code.as_str()) {
            (Some("no"), StatusCode::BAD_REQUEST, "bad_request") => Sent::Never,
            (Some("no"), _, _) => Sent::No,
            (_, _, _) => Sent::Unknown,
        };
        Err(NoAnswer { reason: refusal.code, sent, retry_after_ms })
    }
}

#[async_trait]
impl Network for NpciProxy {
    async fn initiate(&self, txn: &Txn, cred_block: Option<&CredBlock>, trace: &Trace) -> Event {
        let request = Initiate {
            txn_id: txn.id.to_string(),
            msg_id: msg_id(txn),
            kind: "PAY",
            payer_vpa: txn.from.as_str(),
            payee_vpa: txn.to.as_str(),
            amount: txn.amount.to_string(),
            note: &txn.note,
            device_id: &txn.device_id,
            cred_block: cred_block.map(|block| block.0.as_str()),
            // Of this sending, not of the acceptance: the proxy refuses what was held up for too long.
            initiated_at: txn.dispatched_at.unwrap_or(txn.created_at).to_string(),
        };
        let sending = txn.sends;
        match self.call::<Ack>("/v1/initiateTransaction", &request, BY_USER, trace).await {
            Ok(ack) if ack.txn_id != request.txn_id => {
                Event::OutcomeUnknown { sending, reason: "proxy_answer_invalid".to_owned() }
            }
            Ok(Ack { ack: AckResult::Accepted, .. }) => Event::Acknowledged { sending },
            Ok(Ack { ack: AckResult::Rejected, code, .. }) => Event::Reported(Report {
                source: Source::Ack { sending },
                msg_id: request.msg_id,
                stage: Stage::Final,
                result: ReportResult::Failure,
                code: code.unwrap_or_default(),
                payer_code: None,
                payee_code: None,
                reversal_code: None,
                rrn: None,
            }),
            Err(NoAnswer { sent: Sent::Never, reason, .. }) => Event::Unsendable { sending, reason },
            Err(NoAnswer { sent: Sent::No, reason, retry_after_ms }) => {
                Event::NotSent { sending, reason, retry_after_ms }
            }
            Err(NoAnswer { sent: Sent::Unknown, reason, .. }) => Event::OutcomeUnknown { sending, reason },
        }
    }

    async fn inquire(&self, txn: &Txn) -> Event {
        let request = Inquiry {
            txn_id: txn.id.to_string(),
            msg_id: msg_id(txn),
            original_at: txn.dispatched_at.unwrap_or(txn.created_at).to_string(),
        };
        let check = txn.checks;
        let answer =
            self.call::<NetworkEvent>("/v1/statusInquiry", &request, BY_USER, &Trace::default()).await;
        match answer {
            Ok(event) if event.txn_id == request.txn_id => {
                Event::Reported(event.report(Source::Inquiry { check }))
            }
            Ok(_) => Event::CheckUnanswered { reason: "proxy_answer_invalid".to_owned() },
            Err(NoAnswer { sent: Sent::No | Sent::Never, reason, retry_after_ms }) => {
                Event::CheckNotMade { check, reason, retry_after_ms }
            }
            Err(NoAnswer { sent: Sent::Unknown, reason, .. }) => Event::CheckUnanswered { reason },
        }
    }
}

impl NetworkEvent {
    pub fn report(self, source: Source) -> Report {
        Report {
            source,
            msg_id: self.msg_id,
            stage: self.stage,
            result: self.result,
            code: self.code,
            payer_code: self.payer_code,
            payee_code: self.payee_code,
            reversal_code: self.reversal_code,
            rrn: self.rrn,
        }
    }
}

/// 35 letters and digits, fresh for every message.
fn msg_id(txn: &Txn) -> String {
    format!("{}{}", txn.id.psp().as_str(), Uuid::now_v7().simple())
}

fn retry_after_ms(response: &Response) -> Option<u64> {
    let seconds: u64 = response.headers().get("retry-after")?.to_str().ok()?.parse().ok()?;
    Some(seconds.saturating_mul(1000))
}

/// The whole body, if it is whole and not too long.
async fn read(mut response: Response) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.ok()? {
        if body.len() + chunk.len() > MAX_ANSWER {
            return None;
        }
        body.extend_from_slice(&chunk);
    }
    Some(body)
}
