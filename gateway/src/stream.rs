//! Requests whose body is forwarded as it arrives.

use std::time::Duration;

use pingora::Result as Answered;
use pingora::proxy::Session;

use crate::edge::Edge;
use crate::exchange::Exchange;
use crate::message::invite_body;

impl Edge {
    /// Prepares a request, which nothing refuses, for its body to be forwarded.
    pub(crate) async fn begin_stream(&self, session: &mut Session, exchange: &Exchange) -> Answered<()> {
        if let Some(idle_ms) = self.rule(exchange).and_then(|rule| rule.idle_timeout_ms) {
            // The upstream's connection is shut after silence of both sides; the client alone may be silent as long.
            session.set_read_timeout(Some(Duration::from_millis(idle_ms).saturating_mul(2)));
            session.set_write_timeout(Some(Duration::from_millis(idle_ms)));
        }
        let invited = invite_body(session).await;
        invited.map_err(|_| {
            pingora::Error::explain(pingora::ErrorType::WriteError, "the client is gone").into_down()
        })
    }
}
