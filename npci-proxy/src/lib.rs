//! The only door to and from the payment network.

pub mod breaker;
pub mod budget;
pub mod expiring;
pub mod peak_hours;
pub mod secret;
pub mod wire;
