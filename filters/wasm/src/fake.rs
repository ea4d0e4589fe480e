//! An Envoy in memory, for tests: it tells what it is told to, and notes what it is asked.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use crate::envoy::{Call, Envoy};

#[derive(Debug, Default)]
pub struct Fake {
    pub now_ms: Cell<u64>,
    pub peer: Option<String>,
    pub fields: RefCell<Vec<(String, Vec<u8>)>>,
    pub body: RefCell<Vec<u8>>,
    pub set: RefCell<BTreeMap<String, Option<String>>>,
    pub answer_body: RefCell<Vec<u8>>,
    /// The answer's fields, on top of the usual ones or in their place.
    pub answer_told: RefCell<Vec<(String, Vec<u8>)>>,
    /// What Envoy says of the answer.
    pub details: RefCell<Option<Vec<u8>>>,
    pub answer_set: RefCell<BTreeMap<String, String>>,
    pub resumed: Cell<u32>,
    /// Status and body.
    pub answered: RefCell<Vec<(u16, Vec<u8>)>>,
    /// The last answer's `Retry-After`.
    pub retry_after: RefCell<Option<String>>,
    /// Path and body.
    pub calls: RefCell<Vec<(String, Vec<u8>)>>,
    /// Whether calls can be made.
    pub unreachable: Cell<bool>,
    pub no_randomness: Cell<bool>,
    pub shared: RefCell<BTreeMap<String, Vec<u8>>>,
    /// Every counter that was asked for, by name, and what it counts.
    pub counters: RefCell<Vec<(String, u32)>>,
    pub notes: RefCell<Vec<(String, String)>>,
    /// How often the operators were warned.
    pub warned: Cell<u32>,
}

impl Fake {
    /// The code of the only refusal, empty when there is none.
    pub fn code(&self) -> String {
        let answered = self.answered.borrow();
        let Some((_, body)) = answered.first() else { return String::new() };
        assert_eq!(answered.len(), 1, "answered more than once");
        let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        problem["code"].as_str().unwrap_or("-").to_owned()
    }
}

impl Envoy for Fake {
    fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }
    fn random(&self, bytes: &mut [u8]) -> bool {
        bytes.fill(7);
        !self.no_randomness.get()
    }
    fn peer(&self) -> Option<String> {
        self.peer.clone()
    }
    fn request_fields(&self) -> Vec<(String, Vec<u8>)> {
        self.fields.borrow().clone()
    }
    fn set_request_field(&self, name: &str, value: Option<&str>) {
        self.set.borrow_mut().insert(name.to_owned(), value.map(str::to_owned));
    }
    fn request_body(&self, most: usize) -> Vec<u8> {
        self.body.borrow().iter().copied().take(most).collect()
    }
    fn resume(&self) {
        self.resumed.set(self.resumed.get() + 1);
    }
    fn answer(&self, status: u16, fields: &[(&str, &str)], body: &[u8]) {
        let retry_after = fields.iter().find(|(name, _)| *name == "retry-after");
        *self.retry_after.borrow_mut() = retry_after.map(|(_, value)| (*value).to_owned());
        self.answered.borrow_mut().push((status, body.to_vec()));
    }
    fn answer_fields(&self) -> Vec<(String, Vec<u8>)> {
        let more = self.answer_told.borrow();
        let usual = [(":status", b"200".as_slice()), ("x-frame-options", b"none")];
        let usual = usual.into_iter().filter(|(name, _)| !more.iter().any(|(told, _)| told == name));
        usual.map(|(name, value)| (name.to_owned(), value.to_vec())).chain(more.iter().cloned()).collect()
    }
    fn answer_body(&self, most: usize) -> Vec<u8> {
        self.answer_body.borrow().iter().copied().take(most).collect()
    }
    fn answer_details(&self) -> Option<Vec<u8>> {
        self.details.borrow().clone()
    }
    fn set_answer_fields(&self, fields: Vec<(&str, &[u8])>) {
        let mut set = self.answer_set.borrow_mut();
        for (name, value) in fields {
            let before = set.insert(name.to_owned(), String::from_utf8_lossy(value).into_owned());
            assert!(before.is_none(), "{name} was set twice");
        }
    }
    fn answer_field(&self, name: &str) -> Option<Vec<u8>> {
        self.answer_fields().into_iter().find(|(told, _)| told == name).map(|(_, value)| value)
    }
    fn set_answer_field(&self, name: &str, value: Option<&str>) {
        match value {
            Some(value) => drop(self.answer_set.borrow_mut().insert(name.to_owned(), value.to_owned())),
            None => self.answer_told.borrow_mut().retain(|(told, _)| told != name),
        }
    }
    fn call(&self, call: &Call<'_>) -> Option<u32> {
        if self.unreachable.get() {
            return None;
        }
        self.calls.borrow_mut().push((call.path.to_owned(), call.body.to_vec()));
        u32::try_from(self.calls.borrow().len()).ok()
    }
    fn shared(&self, name: &str) -> Option<Vec<u8>> {
        self.shared.borrow().get(name).cloned()
    }
    fn share(&self, name: &str, value: &[u8]) {
        self.shared.borrow_mut().insert(name.to_owned(), value.to_vec());
    }
    fn counter(&self, name: &str) -> Option<u32> {
        let mut counters = self.counters.borrow_mut();
        counters.push((name.to_owned(), 0));
        u32::try_from(counters.len()).ok()
    }
    fn count(&self, counter: u32) {
        self.counters.borrow_mut()[usize::try_from(counter).unwrap() - 1].1 += 1;
    }
    fn note(&self, name: &str, value: &str) {
        self.notes.borrow_mut().push((name.to_owned(), value.to_owned()));
    }
    fn tick_soon(&self) {}
    fn warn(&self, _message: &str) {
        self.warned.set(self.warned.get() + 1);
    }
}
