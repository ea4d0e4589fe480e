//! Signatures over requests and responses: RFC 9421 over the message, RFC 9530 over its body.

mod component;
pub mod digest;
pub mod message;
mod query;
