//! The order of decisions: local checks first, then at most one trip to shared state.
//!
//! A [`Chain`] drives the filters of one route. It owns no request: the data plane keeps the [`Context`] and
//! calls the steps in order. Steps after a refusal are not called, except [`Chain::response`].

use std::borrow::Cow;

use crate::compression::Coding;
use crate::failure::Failure;
use crate::filter::{Context, Filter, Headers, Host, Refusal, Request, Verdict};
use crate::jwt;
use crate::state::{Answer, Batch};
use crate::upstream::{Outgoing, UpstreamAnswer};

/// The filters of one route, in order.
#[derive(Debug)]
pub struct Chain(Vec<Box<dyn Filter>>);

/// A refusal and the filter that decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// [`Refused::EDGE`] when no filter did.
    pub filter: &'static str,
    pub refusal: Refusal,
}

impl Refused {
    /// Stands for the edge itself, in metrics and logs too.
    pub const EDGE: &'static str = "edge";

    /// The same refusal once it is known that the keys it rests on cannot be fetched now. A token whose key is not known
    /// gets 503 then, because its key may be a new one; 401 would make clients log their users out. `retry_after_s`:
    /// seconds until the next fetch is allowed.
    #[must_use]
    pub fn without_new_keys(self, retry_after_s: u64) -> Self {
        match &self.refusal.stale_keys {
            Some(stale) if !stale.refuses_anyway => {
                Self { refusal: jwt::keys_unavailable(retry_after_s), ..self }
            }
            Some(_) | None => self,
        }
    }
}

impl Chain {
    pub(crate) fn new(filters: Vec<Box<dyn Filter>>) -> Self {
        Self(filters)
    }

    /// Decides on the request line and headers.
    pub fn head(&self, request: &Request<'_>, host: &dyn Host, context: &mut Context) -> Result<(), Refused> {
        self.each(context, |filter, context| filter.head(request, host, context))
    }

    /// Decides on the whole body.
    pub fn body(
        &self,
        request: &Request<'_>,
        body: &[u8],
        host: &dyn Host,
        context: &mut Context,
    ) -> Result<(), Refused> {
        self.each(context, |filter, context| filter.body(request, body, host, context))
    }

    /// Decides on a body that is forwarded as it arrives, before any of it.
    pub fn body_begins(&self, request: &Request<'_>, context: &mut Context) -> Result<(), Refused> {
        self.each(context, |filter, _| filter.body_begins(request))
    }

    /// The one batch for shared state; empty when no trip is needed.
    pub fn batch(&self, context: &Context) -> Batch {
        context.ops.iter().map(|asked| (asked.op.clone(), asked.counted)).collect()
    }

    /// Decides on what shared state said, answer for operation. Every filter hears its answers, so that the
    /// limits' fields are told even when another filter refuses; the first refusal in the chain counts.
    pub fn answered(&self, answers: &[Answer], context: &mut Context) -> Result<(), Refused> {
        let asked = std::mem::take(&mut context.ops);
        let mut first = Ok(());
        if answers.len() != asked.len() {
            return Err(Failure::StateUnavailable.into());
        }
        for (asked, answer) in asked.iter().zip(answers) {
            let Some(filter) = self.0.get(asked.filter) else { continue };
            if let Verdict::Refuse(refusal) = filter.answered(&asked.op, answer, context)
                && first.is_ok()
            {
                first = Err(Refused { filter: filter.name(), refusal: *refusal });
            }
        }
        let refused = answers.iter().any(Answer::refuses);
        if refused {
            // Nothing of a refused batch happened: its places are nobody's, or another request's.
            context.held.clear();
        }
        // Whatever a filter makes of an answer, none that refuses lets the request pass.
        if first.is_ok() && refused {
            return Err(Failure::StateUnavailable.into());
        }
        first
    }

    /// Whether [`forward`](Self::forward) would do anything.
    pub fn forwards(&self) -> bool {
        self.0.iter().any(|filter| filter.forwards())
    }

    /// Adds what the request to the upstream must carry.
    pub fn forward(
        &self,
        outgoing: &Outgoing<'_>,
        host: &dyn Host,
        context: &mut Context,
    ) -> Result<(), Refused> {
        self.each(context, |filter, context| filter.forward(outgoing, host, context))
    }

    /// Whether the upstream's answer must be whole before any of it leaves.
    pub fn reads_answer(&self) -> bool {
        self.0.iter().any(|filter| filter.reads_answer())
    }

    /// Decides on the upstream's whole answer.
    pub fn answer(
        &self,
        request: &Request<'_>,
        answer: &UpstreamAnswer<'_>,
        host: &dyn Host,
        context: &mut Context,
    ) -> Result<(), Refused> {
        self.each(context, |filter, context| filter.answer(request, answer, host, context))
    }

    /// Whether the upstream's answer is compressed, by its header.
    pub fn coding(&self, request: &Request<'_>, status: u16, fields: &Headers<'_>) -> Coding {
        let codings = self.0.iter().map(|filter| filter.coding(request, status, fields));
        codings.into_iter().find(|coding| *coding != Coding::AsItComes).unwrap_or(Coding::AsItComes)
    }

    /// Whether [`coding`](Self::coding) could be anything but [`Coding::AsItComes`].
    pub fn compresses(&self) -> bool {
        self.names().any(|name| name == "compression")
    }

    /// The fields to add to an answer of this route, whoever gives it.
    pub fn response(&self, context: &Context) -> Vec<(Cow<'static, str>, String)> {
        let mut fields: Vec<_> =
            context.answer.iter().map(|(name, value)| (Cow::Borrowed(*name), value.clone())).collect();
        for filter in &self.0 {
            filter.response(context, &mut fields);
        }
        fields
    }

    /// The names of the filters that decide here, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.iter().map(|filter| filter.name())
    }

    fn each(
        &self,
        context: &mut Context,
        decide: impl Fn(&dyn Filter, &mut Context) -> Verdict,
    ) -> Result<(), Refused> {
        for (position, filter) in self.0.iter().enumerate() {
            context.asking = position;
            match decide(filter.as_ref(), context) {
                Verdict::Pass => {}
                Verdict::Refuse(refusal) => return Err(Refused { filter: filter.name(), refusal: *refusal }),
            }
        }
        Ok(())
    }
}
