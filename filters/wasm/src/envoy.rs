//! What the module asks of Envoy.

/// The data plane, as one request or one worker sees it. Fields have lower-case names and any bytes.
pub trait Envoy {
    /// Milliseconds since the Unix epoch.
    fn now_ms(&self) -> u64;

    /// Fills it with fresh random bytes; `false` when there are none.
    fn random(&self, bytes: &mut [u8]) -> bool;

    /// The other end of the connection, as Envoy writes addresses: `127.0.0.1:4711`, `[::1]:4711`.
    fn peer(&self) -> Option<String>;

    /// The request's fields, pseudo fields included.
    fn request_fields(&self) -> Vec<(String, Vec<u8>)>;

    /// Sets a field of the request in place of any of that name, or removes it, and has the route chosen anew.
    fn set_request_field(&self, name: &str, value: Option<&str>);

    /// The body as far as it has come, at most so many bytes.
    fn request_body(&self, most: usize) -> Vec<u8>;

    /// Lets a paused request go on.
    fn resume(&self);

    /// Answers in place of the upstream.
    fn answer(&self, status: u16, fields: &[(&str, &str)], body: &[u8]);

    /// The answer's fields, pseudo fields included.
    fn answer_fields(&self) -> Vec<(String, Vec<u8>)>;

    /// The answer's body as far as it has come, at most so many bytes.
    fn answer_body(&self, most: usize) -> Vec<u8>;

    /// What Envoy says of the answer: `via_upstream`, or why it answers itself.
    fn answer_details(&self) -> Option<Vec<u8>>;

    /// Puts these fields, pseudo fields included, in place of the answer's.
    fn set_answer_fields(&self, fields: Vec<(&str, &[u8])>);

    /// One field of the response's header, or a pseudo field; `None`: it is not there.
    fn answer_field(&self, name: &str) -> Option<Vec<u8>>;

    /// Sets a field of the response in place of any of that name; `None`: removes it.
    fn set_answer_field(&self, name: &str, value: Option<&str>);

    /// Calls a service; its answer comes later and carries the token. `None`: it cannot be called.
    fn call(&self, call: &Call<'_>) -> Option<u32>;

    /// What all workers, and the next incarnation of this one, remember under a name.
    fn shared(&self, name: &str) -> Option<Vec<u8>>;

    /// Remembers it.
    fn share(&self, name: &str, value: &[u8]);

    /// A counter of Envoy's own, which is the same whenever it is asked for; `None`: there is none.
    fn counter(&self, name: &str) -> Option<u32>;

    /// Counts one.
    fn count(&self, counter: u32);

    /// Keeps a word about the request, for Envoy's access log.
    fn note(&self, name: &str, value: &str);

    /// Has the worker's housekeeping done soon, rather than with its usual next tick.
    fn tick_soon(&self);

    /// Tells the operators.
    fn warn(&self, message: &str);
}

/// A request to a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call<'c> {
    pub cluster: &'c str,
    pub method: &'c str,
    pub path: &'c str,
    pub if_none_match: Option<&'c str>,
    pub body: &'c [u8],
    pub timeout_ms: u64,
}

/// What a service answered; a call that failed or took too long has no status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answered {
    pub status: Option<u16>,
    pub etag: Option<String>,
    pub body: Vec<u8>,
}

/// The longest answer of a service that is read, bytes.
pub const MOST_ANSWER_BYTES: usize = 1024 * 1024;
