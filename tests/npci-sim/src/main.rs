use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use npci_proxy::{clock::Clock, process};
use npci_sim::{
    config::Config,
    service::{self, Listeners},
};

/// The payment network and its banks, for development and tests.
///
/// The front takes POST /v1/initiateTransaction, /v1/statusInquiry and /v1/validateVPA over mutual TLS,
/// signed; it acknowledges at once, settles in double-entry ledgers and calls back, signed, until it is
/// acknowledged. Everything is in memory and gone with the process.
///
/// On the admin address (plain HTTP):
///   GET  /ledger            accounts, entries, totals, and whether the books balance
///   GET  /ledger/{txnId}    one payment: what the network says of it and its entries
///   GET  /faults            the rules in force; PUT {"rules":[{"match":{"vpa":"bob@torana"},
///                           "fault":{"kind":"slow","ms":500}}]} replaces them
///   GET  /keys              each bank's public key for PINs
///   GET  /calls             counts by call and transaction
///   POST /reset             balances, payments, faults and counts as at the beginning
#[derive(Debug, Parser)]
#[command(
    version,
    verbatim_doc_comment,
    after_help = "Fault kinds: slow{ms}, slow_settlement{ms}, silent, silent_unsettled, duplicate_callback,\n\
    replayed_callback, bad_signature, bad_answer_signature, debit_timeout,\n\
    debit_then_credit_timeout{ends: deemed|reversed}, deemed, reversal, decline{code}, reject{code, reason}, unreachable.\n\
    Matches: {vpa} (payer or payee, `*` at one end), {amount: \"13.37\"}, {any: true}; the first that fits counts.\n\
    Logs are JSON lines on standard output; RUST_LOG sets the level (default info)."
)]
struct Arguments {
    /// The configuration file (YAML). Relative paths in it are seen from its folder.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    process::run("npci-sim", async |shutdown| {
        let config = Config::load(&arguments.config)?;
        let listeners = Listeners::bind(&config).await?;
        service::run(config, listeners, Clock::system(), shutdown).await
    })
    .await
}
