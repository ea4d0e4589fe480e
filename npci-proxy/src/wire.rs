//! The messages of the façade, inside and outside, as values that are already valid.
//!
//! `Debug` is what logs get: no message of these prints a whole VPA, a credential block, a device or text that
//! somebody wrote freely (a note, a reason, a name). Whoever adds such a field writes `Debug` by hand.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

mod values;

pub use values::{Amount, Code, CredBlock, Id, Invalid, Rrn, Stamp, Vpa};

/// A payment to start (`POST /v1/initiateTransaction`).
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pay {
    pub txn_id: Id,
    pub msg_id: Id,
    #[serde(rename = "type")]
    pub kind: PayKind,
    pub payer_vpa: Vpa,
    pub payee_vpa: Vpa,
    pub amount: Amount,
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "note")]
    pub note: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cred_block: Option<CredBlock>,
    pub initiated_at: Stamp,
}

impl fmt::Debug for Pay {
    // Note and device are personal data, the credential block is a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pay")
            .field("txn_id", &self.txn_id)
            .field("msg_id", &self.msg_id)
            .field("kind", &self.kind)
            .field("payer_vpa", &self.payer_vpa)
            .field("payee_vpa", &self.payee_vpa)
            .field("amount", &self.amount)
            .field("initiated_at", &self.initiated_at)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PayKind {
    Pay,
}

/// The network's immediate answer to [`Pay`]: it says that the payment was taken in, not how it ended.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PayAck {
    pub txn_id: Id,
    pub msg_id: Id,
    pub ack: Ack,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    /// The network's own words, for people; at most 120 characters of them are kept.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "reason")]
    pub reason: Option<String>,
}

impl fmt::Debug for PayAck {
    // The reason may name anybody; the code says enough.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PayAck")
            .field("txn_id", &self.txn_id)
            .field("msg_id", &self.msg_id)
            .field("ack", &self.ack)
            .field("code", &self.code)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Ack {
    Accepted,
    Rejected,
}

/// `POST /v1/statusInquiry`. `original_at` is when the payment was started.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusInquiry {
    pub txn_id: Id,
    pub msg_id: Id,
    pub original_at: Stamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusAnswer {
    pub txn_id: Id,
    pub msg_id: Id,
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Where a payment stands in the network's books.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    pub stage: Stage,
    pub result: NetworkResult,
    pub code: Code,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payer_code: Option<Code>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payee_code: Option<Code>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reversal_code: Option<Code>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rrn: Option<Rrn>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Stage {
    Debit,
    Final,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum NetworkResult {
    Success,
    Failure,
    Pending,
    Deemed,
}

/// `POST /v1/validateVPA`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidateVpa {
    pub vpa: Vpa,
    pub msg_id: Id,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ValidateAnswer {
    pub vpa: Vpa,
    pub valid: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    pub code: Code,
}

impl fmt::Debug for ValidateAnswer {
    // The holder's name is personal data and stays out of logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValidateAnswer")
            .field("vpa", &self.vpa)
            .field("valid", &self.valid)
            .field("code", &self.code)
            .finish_non_exhaustive()
    }
}

/// What the network tells us on its own (`POST /v1/callback`). `msg_id` names this piece of news:
/// a repeated callback carries the same one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Callback {
    pub msg_id: Id,
    pub txn_id: Id,
    #[serde(flatten)]
    pub outcome: Outcome,
    pub at: Stamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CallbackAck {
    pub msg_id: Id,
    pub ack: Ack,
}

/// An empty note is no note: the network knows 1 to 50 characters or none.
fn note<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let note = Option::<String>::deserialize(deserializer)?.filter(|note| !note.is_empty());
    match note {
        Some(note) if note.chars().count() > 50 => Err(D::Error::custom(Invalid::Note)),
        note => Ok(note),
    }
}

/// A longer reason is cut, not refused: what became of the payment does not hang on how it is put.
fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let mut reason = Option::<String>::deserialize(deserializer)?;
    if let Some(reason) = &mut reason
        && let Some((end, _)) = reason.char_indices().nth(120)
    {
        reason.truncate(end);
    }
    Ok(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "TOR0123456789abcdef0123456789abcdef";

    #[test]
    fn the_bytes_on_the_wire_are_these() {
        let check = |text: &str, again: Result<String, serde_json::Error>| assert_eq!(again.unwrap(), text);
        let pay = format!(
            r#"{{"txnId":"{ID}","msgId":"{ID}","type":"PAY","payerVpa":"alice@torana","payeeVpa":"bob@torana","amount":"150.75","note":"tea","deviceId":"d1","credBlock":"AAAA","initiatedAt":"2026-01-02T03:04:05.678Z"}}"#
        );
        check(&pay, serde_json::from_str::<Pay>(&pay).and_then(|m| serde_json::to_string(&m)));
        let ack = format!(r#"{{"txnId":"{ID}","msgId":"{ID}","ack":"REJECTED","code":"U09","reason":"no"}}"#);
        check(&ack, serde_json::from_str::<PayAck>(&ack).and_then(|m| serde_json::to_string(&m)));
        let status = format!(
            r#"{{"txnId":"{ID}","msgId":"{ID}","stage":"FINAL","result":"DEEMED","code":"RB","payerCode":"00","payeeCode":"BT","reversalCode":"96","rrn":"123456789012"}}"#
        );
        check(&status, serde_json::from_str::<StatusAnswer>(&status).and_then(|m| serde_json::to_string(&m)));
        let valid = r#"{"vpa":"bob@torana","valid":true,"name":"Bob","code":"00"}"#;
        check(valid, serde_json::from_str::<ValidateAnswer>(valid).and_then(|m| serde_json::to_string(&m)));
        let news = format!(
            r#"{{"msgId":"{ID}","txnId":"{ID}","stage":"DEBIT","result":"SUCCESS","code":"00","at":"2026-01-02T03:04:05.678Z"}}"#
        );
        check(&news, serde_json::from_str::<Callback>(&news).and_then(|m| serde_json::to_string(&m)));
    }

    #[test]
    fn a_reason_has_an_end() {
        for (written, kept) in [(0, 0), (1, 1), (120, 120), (121, 120), (50_000, 120)] {
            let reason = "é".repeat(written);
            let ack = format!(r#"{{"txnId":"{ID}","msgId":"{ID}","ack":"REJECTED","reason":"{reason}"}}"#);
            let ack: PayAck = serde_json::from_str(&ack).unwrap();
            assert_eq!(ack.reason.unwrap().chars().count(), kept, "{written}");
        }
    }

    #[test]
    fn what_debug_prints_names_nobody() {
        fn printed<T: serde::de::DeserializeOwned + fmt::Debug>(message: serde_json::Value) -> String {
            format!("{:?}", serde_json::from_value::<T>(message).unwrap())
        }
        let (id, at) = (ID, "2026-01-02T03:04:05.678Z");
        for text in [
            printed::<Pay>(serde_json::json!({
                "txnId": id, "msgId": id, "type": "PAY", "payerVpa": "alice@torana", "payeeVpa": "bob@torana",
                "amount": "150.75", "note": "for private", "deviceId": "private-4711",
                "credBlock": "private", "initiatedAt": at,
            })),
            printed::<PayAck>(serde_json::json!({
                "txnId": id, "msgId": id, "ack": "REJECTED", "code": "U09", "reason": "alice@torana private",
            })),
            printed::<ValidateAnswer>(serde_json::json!({
                "vpa": "alice@torana", "valid": true, "name": "A. private", "code": "00",
            })),
            printed::<ValidateVpa>(serde_json::json!({"vpa": "alice@torana", "msgId": id})),
        ] {
            assert!(!text.contains("private") && !text.contains("alice@"), "{text}");
            assert!(text.contains("a***@torana") || text.contains(ID), "{text}");
        }
    }
}
