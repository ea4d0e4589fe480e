//! One policy, three data planes: every case is decided in process, by the gateway and by Envoy, and must come
//! out the same.
//!
//! Owns the cases' format, the clock that all planes share, and the comparison. The planes themselves are the
//! binaries that users run, over TLS, with nothing changed but the time that they are told.

pub mod answering;
pub mod case;
pub mod certificates;
pub mod clock;
pub mod document;
pub mod forced;
pub mod in_process;
pub mod introspection;
pub mod mint;
pub mod outcome;
pub mod plane;
pub mod replay;
pub mod saying;
pub mod scripted;
pub mod upstream;
pub mod wire;
pub mod world;
