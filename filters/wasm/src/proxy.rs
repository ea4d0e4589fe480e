//! The adapter: Envoy's callbacks in, its host calls out. No other file knows the proxy-wasm interface.
//!
//! Header values travel as bytes only: the interface's text calls trap on a byte that is no text.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, UNIX_EPOCH};

use proxy_wasm::hostcalls;
use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, BufferType, ContextType, LogLevel, MapType, MetricType, Status};

use crate::envoy::{Answered, Call, Envoy, MOST_ANSWER_BYTES};
use crate::plugin::Plugin;
use crate::stream::answering::Opened;
use crate::stream::{Flow, Stream};
use crate::verify::Foreign;

#[allow(unsafe_code, reason = "Envoy finds the module's entry by its name")]
mod entry {
    proxy_wasm::main! {{
        proxy_wasm::set_log_level(proxy_wasm::types::LogLevel::Info);
        proxy_wasm::set_root_context(|_| Box::new(super::Root::default()));
    }}
}

/// The time until keys are first asked for, and between two asks.
const FIRST_TICK: Duration = Duration::from_millis(20);
const TICK: Duration = Duration::from_secs(1);
/// Until places that requests have left are given back when no other request tells of them.
const SOON: Duration = Duration::from_millis(5);

/// A worker's root: one for each configuration.
#[derive(Default)]
struct Root {
    plugin: Option<Rc<Plugin>>,
    /// The call that asked for keys.
    asking: RefCell<Option<u32>>,
    /// The call that asked for the clients' secrets.
    asking_clients: RefCell<Option<u32>>,
    /// The call that asked for feature flags.
    asking_flags: RefCell<Option<u32>>,
    /// The call that asked for what is revoked.
    asking_revoked: RefCell<Option<u32>>,
    websockets: WebSockets,
    ticks: u64,
}

/// Those that are open, by the context of their request, and the tokens that opened them.
type WebSockets = Rc<RefCell<BTreeMap<u32, Opened>>>;

impl Context for Root {
    fn on_http_call_response(&mut self, token: u32, _fields: usize, length: usize, _trailers: usize) {
        if *self.asking.borrow() == Some(token)
            && let Some(plugin) = &self.plugin
        {
            self.asking.replace(None);
            plugin.keys_told(&answered(length), &Host);
        }
        if *self.asking_clients.borrow() == Some(token)
            && let Some(plugin) = &self.plugin
        {
            self.asking_clients.replace(None);
            plugin.client_keys_told(&answered(length), &Host);
        }
        if *self.asking_flags.borrow() == Some(token)
            && let Some(plugin) = &self.plugin
        {
            self.asking_flags.replace(None);
            plugin.flags_told(&answered(length), &Host);
        }
        if *self.asking_revoked.borrow() == Some(token)
            && let Some(plugin) = &self.plugin
        {
            self.asking_revoked.replace(None);
            plugin.revocations_told(&answered(length), &Host);
        }
    }
}

impl RootContext for Root {
    fn on_configure(&mut self, _length: usize) -> bool {
        let configuration = hostcalls::get_buffer(BufferType::PluginConfiguration, 0, usize::MAX);
        let configuration = configuration.ok().flatten().unwrap_or_default();
        match Plugin::new(&configuration, &|name| std::env::var(name).ok(), &Host) {
            Ok(plugin) => {
                self.plugin = Some(Rc::new(plugin));
                let _ = hostcalls::set_tick_period(FIRST_TICK);
                true
            }
            Err(why) => {
                let _ = hostcalls::log(LogLevel::Critical, &why.0);
                false
            }
        }
    }

    fn on_tick(&mut self) {
        let Some(plugin) = &self.plugin else { return };
        self.ticks = self.ticks.wrapping_add(1);
        let without_keys = plugin.lacks_keys(Host.now_ms());
        // Quickly until there are keys, but not for ever when there are none to be had.
        let quick = without_keys && self.ticks < 100;
        let _ = hostcalls::set_tick_period(if quick { FIRST_TICK } else { TICK });
        if self.asking.borrow().is_none() {
            self.asking.replace(plugin.ask_for_keys(&Host));
        }
        if self.asking_clients.borrow().is_none() {
            self.asking_clients.replace(plugin.ask_for_client_keys(&Host));
        }
        if self.asking_flags.borrow().is_none() {
            self.asking_flags.replace(plugin.ask_for_flags(&Host));
        }
        if self.asking_revoked.borrow().is_none() {
            self.asking_revoked.replace(plugin.ask_for_revocations(&Host));
        }
        plugin.flush_releases(&Host);
        let now_ms = Host.now_ms();
        let ends = |(_, opened): &(&u32, &Opened)| {
            plugin.revocations.revokes(&opened.token, now_ms)
                || !opened.outlives_token && opened.token.is_over(now_ms)
        };
        let ended: Vec<u32> = self.websockets.borrow().iter().filter(ends).map(|(id, _)| *id).collect();
        for id in ended {
            // Until this tick is over Envoy takes what is said for that request's.
            if hostcalls::set_effective_context(id).is_ok() {
                let _ = hostcalls::reset_http_request();
            }
        }
    }

    fn create_http_context(&self, id: u32) -> Option<Box<dyn HttpContext>> {
        // Without a policy nothing passes: there is no context, and so no request.
        let stream = Stream::new(Rc::clone(self.plugin.as_ref()?));
        Some(Box::new(Http { stream, id, websockets: Rc::clone(&self.websockets) }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// One request.
struct Http {
    stream: Stream,
    id: u32,
    websockets: WebSockets,
}

impl Context for Http {
    fn on_http_call_response(&mut self, _token: u32, _fields: usize, length: usize, _trailers: usize) {
        self.stream.called(&answered(length), &Host);
    }

    fn on_done(&mut self) -> bool {
        self.websockets.borrow_mut().remove(&self.id);
        self.stream.ended(&Host);
        true
    }
}

impl HttpContext for Http {
    fn on_http_request_headers(&mut self, _fields: usize, end_of_stream: bool) -> Action {
        action(self.stream.header(end_of_stream, &Host))
    }

    fn on_http_request_body(&mut self, length: usize, end_of_stream: bool) -> Action {
        action(self.stream.body(length, end_of_stream, &Host))
    }

    fn on_http_request_trailers(&mut self, _fields: usize) -> Action {
        action(self.stream.trailers(&Host))
    }

    fn on_http_response_headers(&mut self, _fields: usize, end_of_stream: bool) -> Action {
        if let Some(opened) = self.stream.opens_websocket(&Host) {
            self.websockets.borrow_mut().insert(self.id, opened);
        }
        action(self.stream.answer(end_of_stream, &Host))
    }

    fn on_http_response_body(&mut self, length: usize, end_of_stream: bool) -> Action {
        action(self.stream.answer_body(length, end_of_stream, &Host))
    }

    fn on_http_response_trailers(&mut self, _fields: usize) -> Action {
        action(self.stream.answer_trailers(&Host))
    }
}

fn action(flow: Flow) -> Action {
    match flow {
        Flow::Continue => Action::Continue,
        Flow::Pause => Action::Pause,
    }
}

/// The answer to a call that has just come.
fn answered(length: usize) -> Answered {
    let field = |name| hostcalls::get_map_value_bytes(MapType::HttpCallResponseHeaders, name).ok().flatten();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).ok();
    let status = field(":status").and_then(text).and_then(|status| status.parse().ok());
    if status.is_none() || length > MOST_ANSWER_BYTES {
        return Answered::default();
    }
    let body = hostcalls::get_buffer(BufferType::HttpCallResponseBody, 0, length).ok().flatten();
    Answered { status, etag: field("etag").and_then(text), body: body.unwrap_or_default() }
}

/// Calls a function that Envoy offers besides the interface.
pub fn foreign(function: &str, arguments: &[u8]) -> Foreign {
    match hostcalls::call_foreign_function(function, Some(arguments)) {
        Ok(answer) => Foreign::Answer(answer.unwrap_or_default()),
        Err(Status::NotFound) => Foreign::Missing,
        Err(_) => Foreign::Failed,
    }
}

/// Envoy, through its host calls.
struct Host;

impl Envoy for Host {
    fn now_ms(&self) -> u64 {
        let now = hostcalls::get_current_time().ok();
        let since = now.and_then(|now| now.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn random(&self, bytes: &mut [u8]) -> bool {
        getrandom::fill(bytes).is_ok()
    }

    fn peer(&self) -> Option<String> {
        String::from_utf8(hostcalls::get_property(vec!["source", "address"]).ok()??).ok()
    }

    fn request_fields(&self) -> Vec<(String, Vec<u8>)> {
        hostcalls::get_map_bytes(MapType::HttpRequestHeaders).unwrap_or_default()
    }

    fn set_request_field(&self, name: &str, value: Option<&str>) {
        let _ = hostcalls::set_map_value_bytes(MapType::HttpRequestHeaders, name, value.map(str::as_bytes));
    }

    fn request_body(&self, most: usize) -> Vec<u8> {
        hostcalls::get_buffer(BufferType::HttpRequestBody, 0, most).ok().flatten().unwrap_or_default()
    }

    fn resume(&self) {
        let _ = hostcalls::resume_http_request();
    }

    fn answer(&self, status: u16, fields: &[(&str, &str)], body: &[u8]) {
        let _ = hostcalls::send_http_response(u32::from(status), fields.to_vec(), Some(body));
    }

    fn answer_fields(&self) -> Vec<(String, Vec<u8>)> {
        hostcalls::get_map_bytes(MapType::HttpResponseHeaders).unwrap_or_default()
    }

    fn answer_body(&self, most: usize) -> Vec<u8> {
        hostcalls::get_buffer(BufferType::HttpResponseBody, 0, most).ok().flatten().unwrap_or_default()
    }

    fn answer_details(&self) -> Option<Vec<u8>> {
        hostcalls::get_property(vec!["response", "code_details"]).ok().flatten()
    }

    fn set_answer_fields(&self, fields: Vec<(&str, &[u8])>) {
        let _ = hostcalls::set_map_bytes(MapType::HttpResponseHeaders, fields);
    }

    fn answer_field(&self, name: &str) -> Option<Vec<u8>> {
        hostcalls::get_map_value_bytes(MapType::HttpResponseHeaders, name).ok().flatten()
    }

    fn set_answer_field(&self, name: &str, value: Option<&str>) {
        let _ = hostcalls::set_map_value_bytes(MapType::HttpResponseHeaders, name, value.map(str::as_bytes));
    }

    fn call(&self, call: &Call<'_>) -> Option<u32> {
        let mut fields = vec![
            (":method", call.method),
            (":path", call.path),
            (":authority", call.cluster),
            (":scheme", "http"),
        ];
        if let Some(etag) = call.if_none_match {
            fields.push(("if-none-match", etag));
        }
        let body = if call.body.is_empty() { None } else { Some(call.body) };
        if body.is_some() {
            fields.push(("content-type", "application/json"));
        }
        let timeout = Duration::from_millis(call.timeout_ms);
        hostcalls::dispatch_http_call(call.cluster, fields, body, vec![], timeout).ok()
    }

    fn shared(&self, name: &str) -> Option<Vec<u8>> {
        hostcalls::get_shared_data(name).ok()?.0
    }

    fn share(&self, name: &str, value: &[u8]) {
        let _ = hostcalls::set_shared_data(name, Some(value), None);
    }

    fn counter(&self, name: &str) -> Option<u32> {
        hostcalls::define_metric(MetricType::Counter, name).ok()
    }

    fn count(&self, counter: u32) {
        let _ = hostcalls::increment_metric(counter, 1);
    }

    fn note(&self, name: &str, value: &str) {
        let _ = hostcalls::set_property(vec![name], Some(value.as_bytes()));
    }

    fn tick_soon(&self) {
        let _ = hostcalls::set_tick_period(SOON);
    }

    fn warn(&self, message: &str) {
        let _ = hostcalls::log(LogLevel::Warn, message);
    }
}
