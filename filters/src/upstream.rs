//! What passes between the edge and an upstream: the request as it will be sent, and the answer as it came.

use std::borrow::Cow;

use crate::filter::{Headers, Request};
use crate::signature::message::{Fields, Message};

/// The longest answer that is read whole before any of it leaves the edge, bytes: as long as the longest body of a
/// request. Only answers that the policy has verified or signed are; all others are passed on as they come.
pub const MOST_ANSWER_BYTES: usize = crate::shape::Config::MOST_BODY_BYTES;

/// What becomes of a request's fields on their way to the upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamFields {
    /// Fields of the client that the upstream must not see.
    pub remove: Vec<String>,
    /// Fields to set, in place of any of that name.
    pub set: Vec<(Cow<'static, str>, String)>,
    /// The path in place of the client's, if it is another.
    pub path: Option<String>,
}

/// A request on its way to the upstream, everything decided but what it will be signed with.
#[derive(Clone, Copy, Debug)]
pub struct Outgoing<'a> {
    pub(crate) request: &'a Request<'a>,
    pub(crate) fields: &'a UpstreamFields,
    /// A name that no other request has: 32 hexadecimal digits.
    pub nonce: &'a str,
}

impl Outgoing<'_> {
    /// The message to sign. Its authority is the client's, which no upstream can rely on: it is not to be covered.
    pub(crate) fn message(&self) -> Message<'_> {
        let Request { method, scheme, authority, path, query, .. } = self.request;
        let path = self.fields.path.as_deref().unwrap_or(path);
        Message::request(method, scheme, authority, path, *query, self)
    }

    /// Whether a field is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        let mut found = false;
        self.each(&mut |field, _| found |= field == name);
        found
    }
}

impl Fields for Outgoing<'_> {
    fn each(&self, visit: &mut dyn FnMut(&str, &[u8])) {
        let UpstreamFields { remove, set, .. } = self.fields;
        for (name, value) in self.request.headers.iter() {
            if !remove.iter().any(|gone| gone == name) && !set.iter().any(|(new, _)| *new == name) {
                visit(name, value);
            }
        }
        set.iter().for_each(|(name, value)| visit(name, value.as_bytes()));
    }
}

/// An upstream's answer, whole.
#[derive(Clone, Debug)]
pub struct UpstreamAnswer<'a> {
    pub status: u16,
    pub headers: Headers<'a>,
    pub body: &'a [u8],
    /// The path of the request as the upstream got it.
    pub path: &'a str,
    /// The [`Outgoing::nonce`] of the request that it answers.
    pub nonce: &'a str,
}
