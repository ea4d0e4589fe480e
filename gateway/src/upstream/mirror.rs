//! Copies of requests to another upstream, whose answers nobody hears.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use prometheus::IntCounterVec;
use tokio::sync::Semaphore;

use super::{HOP, Upstream};

/// Most copies in flight to one upstream. More are not made: a mirror never costs the original anything.
pub(crate) const MOST_COPIES: u32 = 256;

/// Most of an answer that is read, a piece at a time, so that its connection can be used again. Nobody hears it, so an
/// upstream that has more to say is hung up on.
const MOST_UNHEARD_BYTES: usize = 1 << 20;

/// A copy, as its upstream gets it.
#[derive(Debug)]
pub(crate) struct Copy {
    pub(crate) method: Method,
    /// Path and query, as they were sent.
    pub(crate) target: String,
    pub(crate) fields: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) timeout: Duration,
}

/// Sends a copy, if there is room for one.
pub(crate) fn send(upstream: &Arc<Upstream>, copy: Copy, outcomes: &IntCounterVec) {
    let Ok(place) = Arc::clone(&upstream.copies).try_acquire_owned() else {
        outcomes.with_label_values(&["dropped"]).inc();
        return;
    };
    let (upstream, outcomes) = (Arc::clone(upstream), outcomes.clone());
    tokio::spawn(async move {
        let outcome = if deliver(&upstream, copy).await { "sent" } else { "failed" };
        outcomes.with_label_values(&[outcome]).inc();
        drop(place);
    });
}

async fn deliver(upstream: &Upstream, copy: Copy) -> bool {
    let Some((client, origin)) = upstream.client() else { return false };
    let mut fields = copy.fields;
    HOP.iter().for_each(|name| drop(fields.remove(*name)));
    fields.insert("x-torana-mirror", http::HeaderValue::from_static("1"));
    let url = format!("{origin}{}", copy.target);
    let sent = client.request(copy.method, url).headers(fields).body(copy.body).timeout(copy.timeout).send();
    match sent.await {
        Ok(answer) => let_speak(answer).await,
        Err(error) => {
            tracing::debug!(error = %error.without_url(), "a copy was not delivered");
            false
        }
    }
}

/// Reads an answer and keeps nothing of it. Whether it came to its end, or to the most that is read.
async fn let_speak(mut answer: reqwest::Response) -> bool {
    let mut left = MOST_UNHEARD_BYTES;
    loop {
        match answer.chunk().await {
            Ok(Some(piece)) if piece.len() < left => left -= piece.len(),
            Ok(Some(_) | None) => return true,
            Err(_) => return false,
        }
    }
}

/// Room for copies.
pub(super) fn room() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MOST_COPIES as usize))
}
