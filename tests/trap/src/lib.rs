//! A module for Envoy that lets every request pass, but traps on one with the field `x-trap`, and on its answer when
//! the field is `x-trap-answer` or `x-trap-body`. It stands in for the real module in tests of the failure policy: a
//! module that dies must let nothing pass.

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
        Some(Box::new(Request { dies: Dies::Never }))
    }

    fn get_type(&self) -> Option<ContextType> {
        Some(ContextType::HttpContext)
    }
}

/// When the module dies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dies {
    Never,
    OnTheAnswer,
    OnItsBody,
}

struct Request {
    dies: Dies,
}

impl Context for Request {}

impl HttpContext for Request {
    fn on_http_response_headers(&mut self, _fields: usize, _end_of_stream: bool) -> Action {
        match self.dies {
            Dies::Never => Action::Continue,
            Dies::OnTheAnswer => std::process::abort(),
            // Held, as an answer is that is to be decided on.
            Dies::OnItsBody => Action::Pause,
        }
    }

    fn on_http_response_body(&mut self, _length: usize, _end_of_stream: bool) -> Action {
        if self.dies == Dies::OnItsBody {
            std::process::abort();
        }
        Action::Continue
    }

    fn on_http_request_headers(&mut self, _fields: usize, _end_of_stream: bool) -> Action {
        let has = |name| self.get_http_request_header_bytes(name).is_some();
        if has("x-trap") {
            std::process::abort();
        }
        self.dies = match (has("x-trap-answer"), has("x-trap-body")) {
            (true, _) => Dies::OnTheAnswer,
            (false, true) => Dies::OnItsBody,
            (false, false) => Dies::Never,
        };
        self.set_http_request_header_bytes("x-torana-route", Some(b"r"));
        Action::Continue
    }
}
