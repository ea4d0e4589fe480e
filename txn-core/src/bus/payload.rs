//! What a message says.

use bytes::Bytes;

/// An event, or bytes that nobody here can read.
///
/// Two payloads are equal when they say the same, whatever they looked like on the wire.
#[derive(Debug, Clone)]
pub struct Payload {
    event: Result<String, String>,
    /// As it came, where that was not JSON: it is passed on unchanged, with what we could not read of it.
    wire: Option<Bytes>,
}

impl Payload {
    /// An event that came over a wire in another form.
    pub fn read(json: String, wire: Bytes) -> Payload {
        Payload { event: Ok(json), wire: Some(wire) }
    }

    /// What could not be read, and why.
    pub fn unreadable(why: String, wire: Bytes) -> Payload {
        Payload { event: Err(why), wire: Some(wire) }
    }

    /// The event: an [`Envelope`](crate::store::record::Envelope) as JSON.
    ///
    /// # Errors
    /// Why it cannot be read. It never will be.
    pub fn event(&self) -> Result<&str, &str> {
        self.event.as_deref().map_err(String::as_str)
    }

    pub fn wire(&self) -> Option<&Bytes> {
        self.wire.as_ref()
    }
}

impl From<String> for Payload {
    fn from(json: String) -> Payload {
        Payload { event: Ok(json), wire: None }
    }
}

impl PartialEq for Payload {
    fn eq(&self, other: &Self) -> bool {
        self.event == other.event
    }
}

impl Eq for Payload {}
