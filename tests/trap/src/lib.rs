//! A module for Envoy that lets every request pass, but traps on one with the field `x-trap`. It stands in for the
//! real module in tests of the failure policy: a module that dies must let nothing pass.

#![cfg(target_family = "wasm")]

use proxy_wasm::traits::{Context, HttpContext, RootContext};
use proxy_wasm::types::{Action, ContextType};

#[allow(unsafe_code, reason = "Envoy finds the module's entry by its name")]
mod entry {
    proxy_wasm::main! {{
        proxy_wasm::set_root_context(|_| Box::new(super::Trap));
    }}
}

struct Trap;

impl Context for Trap {}

impl RootContext for Trap {
    fn create_http_context(&self, _context_id: u32) -> Option<Box<dyn HttpContext>> {
        Some(Box::new(Self))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

impl HttpContext for Trap {
    fn on_http_request_headers(&mut self, _fields: usize, _end_of_stream: bool) -> Action {
        if self.get_http_request_header_bytes("x-trap").is_some() {
            std::process::abort();
        }
        self.set_http_request_header_bytes("x-torana-route", Some(b"r"));
        Action::Continue
    }
}
