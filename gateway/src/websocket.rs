//! WebSockets (RFC 6455): the edge itself asks the upstream for one, and carries what then passes.
//!
//! Pingora would, but when the upstream answers at once it takes the end of the request, which has no body, for the end of
//! what passes (its issue 946).

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use filters::failure::Failure;
use filters::policy::WebSocket;
use http::{StatusCode, header};
use pingora::Result as Answered;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v1::client::HttpSession as Upstream;
use pingora::proxy::Session;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use crate::connection::Connection;
use crate::edge::Edge;
use crate::exchange::{Cut, Exchange};
use crate::extended_connect::{accepts_key, into_ok, is_extended_connect};
use crate::now_ms;
use crate::response::{Framing, defect, named_by_connection, strip_hop_by_hop};
use crate::whole::{NotAnswered, Reached, TRIES, alone};

/// Read from an upstream at once.
const CHUNK_BYTES: usize = 16 << 10;

/// Between two looks at what is revoked, while a WebSocket is open.
const LOOK_FOR_REVOCATIONS: Duration = Duration::from_secs(1);

/// For the upstream to be told that it is over.
const GOODBYE: Duration = Duration::from_secs(1);

/// An upstream that has answered whether it opens the WebSocket.
pub(crate) struct Answer(Upstream);

impl Edge {
    /// Asks the upstream for the WebSocket that the client has asked for.
    pub(crate) async fn ask_for_websocket(
        &self,
        mut header: RequestHeader,
        exchange: &mut Exchange,
        WebSocket { idle_timeout_ms, .. }: WebSocket,
    ) -> Result<Answer, Failure> {
        let is_extended_connect = is_extended_connect(&header);
        let dressed = exchange.dress(&mut header).and_then(|()| {
            alone(&mut header, 0)?;
            header.insert_header(header::CONNECTION, "Upgrade")?;
            header.insert_header(header::UPGRADE, "websocket")
        });
        dressed.map_err(|_| Failure::Malformed)?;
        let idle_timeout = Duration::from_millis(idle_timeout_ms);
        let mut tries = 0;
        loop {
            let Reached { session: HttpSession::H1(mut upstream), reused, .. } = self.reach(exchange).await?
            else {
                return Err(Failure::UpstreamFailed);
            };
            (upstream.read_timeout, upstream.write_timeout) = (Some(idle_timeout), Some(idle_timeout));
            let asked = timeout(idle_timeout, ask(&mut upstream, header.clone())).await;
            let (failure, broke) = match asked {
                Ok(Ok(())) => {
                    self.answered(exchange);
                    let fields = upstream.resp_header().map(|answer| &answer.headers);
                    if is_extended_connect
                        && upstream.was_upgraded()
                        && !fields.is_some_and(|fields| accepts_key(&header.headers, fields))
                    {
                        tracing::warn!(
                            "an upstream's answer is not passed on: its Sec-WebSocket-Accept is wrong"
                        );
                        return Err(Failure::UpstreamFailed);
                    }
                    return Ok(Answer(upstream));
                }
                Ok(Err(NotAnswered { failure, broke, error })) => {
                    if let Some(error) = error {
                        self.broke(exchange, &error);
                    }
                    (failure, broke)
                }
                Err(_) => (Failure::UpstreamTimeout, false),
            };
            tries += 1;
            // An old connection may have been closed just then, which says nothing of the upstream.
            let was_old = broke && reused && tries < TRIES;
            if was_old {
                continue;
            }
            self.failed(exchange);
            if !broke || !self.repeats(exchange) {
                return Err(failure);
            }
        }
    }

    /// Waits until the token that a request came with is revoked, or has expired; for ever if it came without.
    async fn token_ends(&self, exchange: &Exchange, outlives_token: bool) -> Cut {
        let token = exchange.admission.as_ref().and_then(|admission| admission.context().token.as_ref());
        let Some(token) = token else { return std::future::pending().await };
        loop {
            if self.standing.state.revoked().list().revokes(token, now_ms()) {
                return Cut::TokenRevoked;
            }
            if !outlives_token && token.is_over(now_ms()) {
                return Cut::TokenExpired;
            }
            sleep(LOOK_FOR_REVOCATIONS).await;
        }
    }

    /// Passes the upstream's answer on and, if that opens the WebSocket, carries what passes until one side ends it,
    /// nothing has passed for too long, or it is cut off.
    pub(crate) async fn pass_websocket(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        Answer(mut upstream): Answer,
        WebSocket { idle_timeout_ms, most_s, outlives_token, .. }: WebSocket,
    ) -> Answered<()> {
        let is_extended_connect = is_extended_connect(session.req_header());
        let Some(mut answer) = upstream.resp_header().cloned() else {
            return Ok(());
        };
        let opens = upstream.was_upgraded();
        if opens {
            if let Some(connection) = Connection::of(session.digest()) {
                connection.messages.are_of_websocket();
            }
            // Of the upstream's connection, but for what opens the WebSocket.
            for name in named_by_connection(&answer.headers).iter().filter(|name| *name != "upgrade") {
                answer.remove_header(name);
            }
            answer.remove_header("keep-alive");
            answer.insert_header(header::CONNECTION, "Upgrade")?;
            if is_extended_connect {
                into_ok(&mut answer)?;
            }
        } else {
            let length = answer.headers.get(header::CONTENT_LENGTH).cloned();
            strip_hop_by_hop(&mut answer, Framing::Goes);
            match (answer.status, length) {
                (StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED, _) => {}
                (_, Some(length)) => answer.insert_header(header::CONTENT_LENGTH, length)?,
                (_, None) => answer.insert_header(header::TRANSFER_ENCODING, "chunked")?,
            }
        }
        self.answer(session, &mut answer, exchange)?;
        session.write_response_header(Box::new(answer), false).await.map_err(|error| error.into_down())?;
        if opens {
            let cut = tokio::select! {
                cut = carry(session, upstream, Duration::from_millis(idle_timeout_ms)) => cut,
                cut = self.token_ends(exchange, outlives_token) => Some(cut),
                // Over HTTP/1.1 the connection has this bound.
                () = sleep(Duration::from_secs(most_s)), if is_extended_connect => Some(Cut::TimeOver),
            };
            let cut = exchange.cut.get().copied().or(cut);
            if let Some(told) = exchange.end(cut) {
                let _ = told.await;
            }
            return Ok(());
        }
        while let Some(chunk) = upstream.read_body_bytes().await.map_err(|error| error.into_up())? {
            session.write_response_body(Some(chunk), false).await.map_err(|error| error.into_down())?;
        }
        session.write_response_body(None, true).await.map_err(|error| error.into_down())
    }
}

/// Sends the request, and reads the header of the answer that counts.
async fn ask(upstream: &mut Upstream, asked: RequestHeader) -> Result<(), NotAnswered> {
    let failed = NotAnswered::by;
    upstream.write_request_header(Box::new(asked)).await.map_err(failed)?;
    loop {
        upstream.read_response().await.map_err(failed)?;
        let names_it = upstream.get_header_bytes(header::UPGRADE).eq_ignore_ascii_case(b"websocket");
        match upstream.get_status() {
            Some(StatusCode::SWITCHING_PROTOCOLS) if names_it && upstream.was_upgraded() => return Ok(()),
            // To something else, or to nothing that it names.
            Some(StatusCode::SWITCHING_PROTOCOLS) | None => {
                return Err(Failure::UpstreamFailed.into());
            }
            Some(status) if status.is_informational() => {}
            Some(_) => {
                return match upstream.resp_header().and_then(|header| defect(header.status, &header.headers))
                {
                    Some(why) => {
                        tracing::warn!(why, "an upstream's answer is not passed on");
                        Err(Failure::UpstreamFailed.into())
                    }
                    None => Ok(()),
                };
            }
        }
    }
}

/// Carries what passes, and tells what cut it off. While a client does not take what it is sent, nothing is read of it.
async fn carry(session: &mut Session, mut upstream: Upstream, idle_timeout: Duration) -> Option<Cut> {
    // What came right behind the header of the answer is not on the connection any more.
    let first = tokio::select! {
        biased;
        first = upstream.read_body_bytes() => first,
        () = std::future::ready(()) => Ok(Some(Bytes::new())),
    };
    match first {
        Ok(Some(first)) if first.is_empty() => {}
        Ok(Some(first)) => {
            if session.write_response_body(Some(first), false).await.is_err() {
                return Some(Cut::ClientGone);
            }
        }
        Ok(None) => return None,
        Err(_) => return Some(Cut::UpstreamBroke),
    }
    let (mut from_upstream, mut to_upstream) = tokio::io::split(upstream.into_inner());
    // An upstream that does not read until what it says is read must not keep us from reading it.
    let (says, mut said) = mpsc::channel::<Bytes>(1);
    let tells = async move {
        while let Some(bytes) = said.recv().await {
            to_upstream.write_all(&bytes).await?;
            to_upstream.flush().await?;
        }
        to_upstream.shutdown().await
    };
    tokio::pin!(tells);
    let mut heard = BytesMut::new();
    let cut = loop {
        heard.reserve(CHUNK_BYTES);
        let ended = {
            let client = async {
                let room = says.reserve().await;
                (room, session.read_request_body().await)
            };
            tokio::select! {
                (room, said) = client => match (room, said) {
                    (Ok(room), Ok(Some(bytes))) => {
                        room.send(bytes);
                        None
                    }
                    (_, Ok(None)) => Some(None),
                    (Ok(_), Err(_)) => Some(Some(Cut::ClientGone)),
                    (Err(_), _) => Some(Some(Cut::UpstreamBroke)),
                },
                read = from_upstream.read_buf(&mut heard) => match read {
                    Ok(0) => Some(None),
                    Ok(_) => None,
                    Err(_) => Some(Some(Cut::UpstreamBroke)),
                },
                _ = &mut tells => Some(Some(Cut::UpstreamBroke)),
                () = sleep(idle_timeout) => Some(Some(Cut::TimeOver)),
            }
        };
        if let Some(cut) = ended {
            break cut;
        }
        if !heard.is_empty()
            && session.write_response_body(Some(heard.split().freeze()), false).await.is_err()
        {
            break Some(Cut::ClientGone);
        }
    };
    drop(says);
    if cut != Some(Cut::UpstreamBroke) {
        let _ = timeout(GOODBYE, tells).await;
    }
    cut
}
