//! Measures, prints, asserts nothing: machines are shared and noisy.

mod clients;
mod core;
mod cost;
mod edge;
mod kafka;
mod pgbench;
mod planes;
mod slice;
mod soak;
mod steady;
mod store;
mod whole;

use std::io::Write as _;

use clap::{Parser, Subcommand};

/// As the services have it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measure the stack as it would be deployed (release build) and print the figures.
#[derive(Debug, Parser)]
#[command(name = "tests/bench", version)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// A payment's way from the edge to the disk: start-up, memory when idle, latency of `send` at a steady rate.
    Slice(slice::Arguments),
    /// CPU time of Envoy for each request, with the module and with Envoy's own filters, in one run.
    Edge(edge::Arguments),
    /// CPU time of the gateway for each request, beside an Envoy with the module under the same policy.
    Planes(planes::Arguments),
    /// Memory of Envoy and of the state service over very many tokens and nonces.
    Soak(soak::Arguments),
    /// The core on PostgreSQL beside what pgbench gets from the same PostgreSQL; SQLite, the relay; then what `kafka`
    /// and `whole` measure.
    Core(core::Arguments),
    /// Payments that the embedded store makes durable a second.
    Store(store::Arguments),
    /// A payment's whole life on PostgreSQL, Kafka and Redis at a steady rate: what is left behind, and what it costs.
    Whole(whole::Arguments),
    /// From COMMIT to a consumer through a real Kafka at a steady rate, and how fast the relay empties an outbox.
    Kafka(kafka::Arguments),
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    certs::install_crypto_provider();
    match Arguments::parse().what {
        What::Slice(arguments) => slice::run(arguments).await,
        What::Edge(arguments) => edge::run(arguments).await,
        What::Planes(arguments) => planes::run(arguments).await,
        What::Soak(arguments) => soak::run(arguments).await,
        What::Core(arguments) => core::run(arguments).await,
        What::Store(arguments) => store::run(arguments).await,
        What::Kafka(arguments) => kafka::run(&arguments).await,
        What::Whole(arguments) => whole::run(&arguments).await,
    }
}

fn say(line: &str) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{line}")?)
}
