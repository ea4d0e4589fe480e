use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use npci_proxy::{
    clock::Clock,
    config::Config,
    process,
    service::{self, Listeners},
};

/// The only door to and from the payment network.
///
/// Inside (mutual TLS, our CA) it offers txn-core three calls: POST /v1/initiateTransaction,
/// /v1/statusInquiry and /v1/validateVPA. Each goes out once, over mutual TLS and signed (RFC 9421,
/// HMAC-SHA256), and its answer counts only if the network signed it for that very call. A failure
/// says whether the network may have seen the call: "sent": "no" or "unknown".
///
/// Outside (mutual TLS, the network's CA) it takes POST /v1/callback: certificate, digest, signature,
/// freshness, nonce, in this order; acknowledged once txn-core has made it durable.
///
/// On the admin address: /health, /readiness (503 and what is missing), /metrics, /certificates
/// (what is served, presented and trusted).
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "Logs are JSON lines on standard output; RUST_LOG sets the level (default info).\n\
    SIGTERM and SIGINT stop accepting, finish what is in flight and exit with 0.\n\
    config.example.yaml in the source folder explains every setting."
)]
struct Arguments {
    /// The configuration file (YAML). Relative paths in it are seen from its folder.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    process::run("npci-proxy", async |shutdown| {
        let config = Config::load(&arguments.config)?;
        let listeners = Listeners::bind(&config).await?;
        service::run(&config, listeners, Clock::system(), shutdown).await
    })
    .await
}
