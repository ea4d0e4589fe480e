//! What an edge makes of an answer on its way to the client: of the upstream's, and of its own refusals.

use bytes::Bytes;
use filters::admission::{Admission, JOINED};
use filters::chain::Refused;
use filters::compression::Coding;
use filters::filter::Headers;
use http::{StatusCode, Version};
use pingora::Result as Answered;
use pingora::http::ResponseHeader;
use pingora::prelude::*;
use pingora::proxy::Session;

use crate::compression::Compression;
use crate::edge::Edge;
use crate::exchange::Exchange;
use crate::extended_connect::is_extended_connect;
use crate::message::{Sender, drain, is_small, request};
use crate::response::{Framing, strip_hop_by_hop};

impl Edge {
    fn note_refusal(&self, exchange: &mut Exchange, refused: &Refused) {
        let Refused { filter, refusal } = refused;
        if !refusal.refuses() {
            return;
        }
        exchange.refusal = Some((refusal.code, filter));
        exchange.limit.clone_from(&refusal.limit);
        self.metrics().refusals.with_label_values(&[*filter, refusal.code]).inc();
    }

    /// Sends a refusal and everything that belongs on an answer of this route.
    pub(crate) async fn refuse(
        &self,
        session: &mut Session,
        exchange: &mut Exchange,
        refused: Refused,
    ) -> Answered<()> {
        self.note_refusal(exchange, &refused);
        let Some(admission) = &exchange.admission else {
            return Error::e_explain(ErrorType::InternalError, "a refusal without a request");
        };
        let (fields, body) = admission.problem(&refused.refusal);
        let body = Bytes::from(body);
        let mut header = ResponseHeader::build(refused.refusal.status, Some(16))?;
        if !body.is_empty() {
            header.insert_header("content-length", body.len())?;
        }
        self.dress(&mut header, exchange)?;
        for (name, value) in fields {
            header.insert_header(name, value)?;
        }
        // A small body is read first, so that the connection can be kept. A large one is answered at once and
        // read a little longer: closing on a client that still writes would cost it the answer.
        let whole = session.is_body_done()
            // It ends with the response.
            || is_extended_connect(session.req_header())
            || (is_small(session.req_header()) && drain(session).await);
        if !whole {
            session.set_keepalive(None);
        }
        exchange.status = refused.refusal.status;
        send(session, header, body).await?;
        if !whole {
            drain(session).await;
        }
        Ok(())
    }

    /// Makes of the upstream's answer the one that the client gets as it comes.
    pub(crate) fn answer(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        exchange: &mut Exchange,
    ) -> Answered<()> {
        // A WebSocket's own has been looked at, and its fields are for the client.
        if answer.status != StatusCode::SWITCHING_PROTOCOLS {
            strip_hop_by_hop(answer, Framing::Stays);
        }
        Compression::decide(session, self.coding(session, answer, exchange));
        exchange.status = answer.status.as_u16();
        self.dress(answer, exchange)
    }

    /// Whether the upstream's answer is compressed.
    fn coding(&self, session: &Session, answer: &ResponseHeader, exchange: &Exchange) -> Coding {
        let compresses = |admission: &&Admission| admission.compresses(&self.policy);
        let (Some(admission), Some(sender)) =
            (exchange.admission.as_ref().filter(compresses), Sender::of(session))
        else {
            return Coding::AsItComes;
        };
        let fields: Headers<'_> =
            answer.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let header = session.req_header();
        let told = (answer.status.as_u16(), &fields);
        let coding = admission.coding(&self.policy, &request(header, &sender), told);
        // Its length is not known in advance, and an older client is told the end in no other way.
        if header.version < Version::HTTP_11 { coding.of_nothing() } else { coding }
    }

    /// The fields of every answer, whoever gives it.
    pub(crate) fn dress(&self, header: &mut ResponseHeader, exchange: &Exchange) -> Answered<()> {
        if let Some(admission) = &exchange.admission {
            let hidden = |name: &&http::HeaderName| admission.hides(&self.policy, name.as_str());
            let hidden: Vec<http::HeaderName> = header.headers.keys().filter(hidden).cloned().collect();
            hidden.iter().for_each(|name| drop(header.remove_header(name)));
            for (name, value) in admission.answer_fields(&self.policy) {
                match JOINED.contains(&&*name) {
                    true => header.append_header(name.into_owned(), value)?,
                    false => header.insert_header(name.into_owned(), value).map(|()| true)?,
                };
            }
        }
        Ok(())
    }
}

/// Sends a whole answer. If it cannot be sent the client is gone.
pub(crate) async fn send(session: &mut Session, header: ResponseHeader, body: Bytes) -> Answered<()> {
    let gone = |error: Box<Error>| error.into_down();
    session.write_response_header(Box::new(header), false).await.map_err(gone)?;
    session.write_response_body(Some(body), true).await.map_err(gone)
}
