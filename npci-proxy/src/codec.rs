//! How messages look on the network's wire. Everything outside this file deals in the values of
//! [`wire`](crate::wire); a network that speaks XML gets a second variant here and nothing else changes.

use serde::{Serialize, de::DeserializeOwned};

use crate::wire::{
    Callback, CallbackAck, Pay, PayAck, Stamp, StatusAnswer, StatusInquiry, ValidateAnswer, ValidateVpa,
};

/// The calls of the façade.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Api {
    Pay,
    Status,
    Validate,
}

impl Api {
    pub const ALL: [Api; 3] = [Api::Pay, Api::Status, Api::Validate];

    pub fn path(self) -> &'static str {
        match self {
            Api::Pay => "/v1/initiateTransaction",
            Api::Status => "/v1/statusInquiry",
            Api::Validate => "/v1/validateVPA",
        }
    }

    /// In metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Api::Pay => "pay",
            Api::Status => "status",
            Api::Validate => "validate",
        }
    }
}

pub const CALLBACK_PATH: &str = "/v1/callback";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Codec {
    #[default]
    Json,
}

/// The bytes are not the message they should be. Says where, without quoting them: they may be private.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("not a valid message at line {line}, column {column}")]
    Shape { line: usize, column: usize },
    #[error("the answer is about another message")]
    OtherMessage,
}

/// A request and the answer that belongs to it.
pub trait Exchange: Serialize {
    const API: Api;
    type Answer: DeserializeOwned;
    /// Whether the answer names the same message as the request.
    fn answered_by(&self, answer: &Self::Answer) -> bool;
    /// When it was asked for, if it must not go out long after.
    fn asked_at(&self) -> Option<Stamp> {
        None
    }
}

impl Exchange for Pay {
    const API: Api = Api::Pay;
    type Answer = PayAck;
    fn asked_at(&self) -> Option<Stamp> {
        Some(self.initiated_at)
    }
    fn answered_by(&self, answer: &PayAck) -> bool {
        (&self.txn_id, &self.msg_id) == (&answer.txn_id, &answer.msg_id)
    }
}

impl Exchange for StatusInquiry {
    const API: Api = Api::Status;
    type Answer = StatusAnswer;
    fn answered_by(&self, answer: &StatusAnswer) -> bool {
        (&self.txn_id, &self.msg_id) == (&answer.txn_id, &answer.msg_id)
    }
}

impl Exchange for ValidateVpa {
    const API: Api = Api::Validate;
    type Answer = ValidateAnswer;
    fn answered_by(&self, answer: &ValidateAnswer) -> bool {
        self.vpa == answer.vpa
    }
}

impl From<serde_json::Error> for CodecError {
    fn from(error: serde_json::Error) -> Self {
        CodecError::Shape { line: error.line(), column: error.column() }
    }
}

impl Codec {
    pub fn request<E: Exchange>(self, request: &E) -> Result<Vec<u8>, CodecError> {
        match self {
            Codec::Json => Ok(serde_json::to_vec(request)?),
        }
    }

    pub fn answer<E: Exchange>(self, request: &E, body: &[u8]) -> Result<E::Answer, CodecError> {
        let answer = match self {
            Codec::Json => serde_json::from_slice(body)?,
        };
        if request.answered_by(&answer) { Ok(answer) } else { Err(CodecError::OtherMessage) }
    }

    pub fn callback(self, body: &[u8]) -> Result<Callback, CodecError> {
        match self {
            Codec::Json => Ok(serde_json::from_slice(body)?),
        }
    }

    pub fn callback_ack(self, ack: &CallbackAck) -> Result<Vec<u8>, CodecError> {
        match self {
            Codec::Json => Ok(serde_json::to_vec(ack)?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_must_name_the_request() {
        let id = |end: char| format!("TOR{}{end}", "0".repeat(31));
        let (txn, msg) = (id('1'), id('2'));
        let inquiry: StatusInquiry = serde_json::from_str(&format!(
            r#"{{"txnId":"{txn}","msgId":"{msg}","originalAt":"2026-01-01T00:00:00.000Z"}}"#
        ))
        .unwrap();
        for (txn, msg, rest, holds) in [
            (id('1'), id('2'), r#""stage":"FINAL","result":"SUCCESS","code":"00""#, true),
            (id('1'), id('2'), r#""stage":"FINAL","result":"SUCCESS","code":"00","more":1"#, true),
            (id('3'), id('2'), r#""stage":"FINAL","result":"SUCCESS","code":"00""#, false),
            (id('1'), id('3'), r#""stage":"FINAL","result":"SUCCESS","code":"00""#, false),
            (id('1'), id('2'), r#""stage":"END","result":"SUCCESS","code":"00""#, false),
            (id('1'), id('2'), r#""stage":"FINAL","result":"SUCCESS""#, false),
        ] {
            let answer = format!(r#"{{"txnId":"{txn}","msgId":"{msg}",{rest}}}"#);
            assert_eq!(Codec::Json.answer(&inquiry, answer.as_bytes()).is_ok(), holds, "{answer}");
        }
    }
}
