//! Tokens.

/// The keys of an issuer.
#[derive(Debug)]
pub struct KeySet;
