//! Starts the whole stack on loopback: behind `cargo dev`, and under every end-to-end test.
//!
//! Owns the development PKI, the services' configuration files, their processes and the development
//! token issuer. It knows the services only as a client and an operator do: their configuration files,
//! signals and HTTP. It must never leave a process behind, however it ends.

mod addresses;
mod binaries;
mod config;
mod device;
mod fleet;
mod issuer;
mod options;
mod payment;
mod process;
mod running;
mod token;
mod vpas;
mod wire;

pub use addresses::Between;
pub use binaries::{Binaries, workspace};
pub use config::Setting;
pub use device::Device;
pub use fleet::{Engines, Fleet};
pub use issuer::{AUDIENCE, ISSUER, Issuer};
pub use options::Options;
pub use payment::{COVERED, EdgeRequest, Payment, Progress, follow, signature_params};
pub use process::{Edge, Instance, Service, Twin};
pub use running::{RunningService, Stack, StackFile, User, default_dir};
pub use token::{Claims, Forgery, device_of};
pub use vpas::vpas;
pub use wire::{Line, Wire};
