//! `GET /v1/transactions/{id}/events`: a WebSocket on which a payment's status is pushed, for whoever may ask for it.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::find::visible;
use super::{Api, Caller, Problem};
use crate::notify::{Subscriber, Update};

/// After this a client polls, or connects again: tokens and devices change.
const LIVES_FOR: Duration = Duration::from_secs(600);
const PING_EVERY: Duration = Duration::from_secs(20);
/// A peer that answers no ping for so long is gone.
const SILENT_FOR: Duration = Duration::from_secs(50);
const SEND_WITHIN: Duration = Duration::from_secs(5);
/// Nothing is expected from the client but control frames.
const MAX_MESSAGE: usize = 1024;

pub(super) async fn events(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    headers: HeaderMap,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let caller = Caller::from_headers(&headers)?;
    let upgrade = upgrade.map_err(|_| {
        Problem::new(StatusCode::UPGRADE_REQUIRED, "upgrade_required", "This is for WebSocket clients")
    })?;
    let (txn, _) = visible(&api, &caller, &id).await?;
    // Before the status that stands is read (again): nothing that happens in between is missed.
    let subscriber = api.hub.subscribe(txn.id).map_err(|_| {
        Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Too many wait; poll, or try again")
            .retry_after(5)
    })?;
    let (txn, _) = visible(&api, &caller, &id).await?;
    let upgrade = upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
    Ok(upgrade.on_upgrade(move |socket| push(socket, Update::from(&txn), subscriber)))
}

async fn push(mut socket: WebSocket, stands: Update, mut subscriber: Subscriber) {
    let mut version = stands.version;
    if send(&mut socket, text(&stands)).await.is_none() {
        return;
    }
    let ends_at = Instant::now() + LIVES_FOR;
    let mut heard_at = Instant::now();
    let mut ping = interval(PING_EVERY);
    let reason = loop {
        tokio::select! {
            update = subscriber.next() => match update {
                // What was on its way when the status was read.
                Some(update) if update.version <= version => {}
                Some(update) => {
                    version = update.version;
                    if send(&mut socket, text(&update)).await.is_none() {
                        return;
                    }
                }
                None => break "poll, or connect again",
            },
            said = socket.recv() => match said {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(_)) => heard_at = Instant::now(),
            },
            _ = ping.tick() => {
                let ping = Message::Ping(axum::body::Bytes::new());
                if heard_at.elapsed() > SILENT_FOR || send(&mut socket, ping).await.is_none() {
                    return;
                }
            }
            () = sleep_until(ends_at) => break "long enough; connect again",
        }
    };
    let close = CloseFrame { code: close_code::AGAIN, reason: reason.into() };
    // Whoever does not hear it finds the connection closed.
    let _gone = send(&mut socket, Message::Close(Some(close))).await;
}

fn text(update: &Update) -> Message {
    // Strings and numbers: nothing in it can fail to be written as JSON.
    Message::text(serde_json::to_string(update).unwrap_or_default())
}

/// None when the client is gone, or takes nothing in.
async fn send(socket: &mut WebSocket, message: Message) -> Option<()> {
    timeout(SEND_WITHIN, socket.send(message)).await.ok()?.ok()
}
