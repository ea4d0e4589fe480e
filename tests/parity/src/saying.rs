//! How an upstream words an answer where a case says so: its status, some of its fields, and whether it tells its length.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use http_body::Frame;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc};

/// The field in which a case tells the upstream how to word its answer.
pub const SAYS: &str = "x-says";

/// How an answer is worded.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Says {
    pub status: u16,
    /// In place of those of every answer; an empty value: the field is left out.
    pub fields: BTreeMap<String, String>,
    pub length: Length,
}

/// How long an answer is, as it says itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    #[default]
    Told,
    Untold,
    /// Untold, and the second half comes only when [`Upstream::go_on`](crate::upstream::Upstream::go_on) is called.
    InHalves,
}

impl Default for Says {
    fn default() -> Self {
        Self { status: 200, fields: BTreeMap::new(), length: Length::Told }
    }
}

impl Says {
    /// What the request says, if anything.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(fields: &[(String, Vec<u8>)]) -> anyhow::Result<Self> {
        let told = fields.iter().find(|(name, _)| name == SAYS);
        told.map_or(Ok(Self::default()), |(_, told)| Ok(serde_json::from_slice(told)?))
    }

    /// Whether the answer has a body at all.
    pub fn has_body(&self, method: &str) -> bool {
        method != "HEAD" && !matches!(self.status, 204 | 304)
    }

    pub(crate) fn word(&self, fields: &mut Vec<(String, Vec<u8>)>) {
        for (name, value) in &self.fields {
            fields.retain(|(known, _)| known != name);
            if !value.is_empty() {
                fields.push((name.clone(), value.clone().into_bytes()));
            }
        }
    }
}

impl Length {
    pub(crate) fn body(self, bytes: Vec<u8>, go_on: &Arc<Notify>) -> Body {
        let halves = match self {
            Self::Told => return Body::from(bytes),
            Self::Untold => [bytes, Vec::new()],
            Self::InHalves => {
                let (first, second) = bytes.split_at(bytes.len() / 2);
                [first.to_vec(), second.to_vec()]
            }
        };
        let (send, pieces) = mpsc::channel(1);
        let go_on = Arc::clone(go_on);
        tokio::spawn(async move {
            let [first, second] = halves.map(Bytes::from);
            let _ = send.send(first).await;
            if !second.is_empty() {
                go_on.notified().await;
                let _ = send.send(second).await;
            }
        });
        Body::new(Pieces(pieces))
    }
}

/// A body of no known length.
struct Pieces(mpsc::Receiver<Bytes>);

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}
