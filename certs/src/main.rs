//! `certs`: issue, renew and revoke certificates, put them in place, and prove what is served.

mod command;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    certs::install_crypto_provider();
    command::run(command::Cli::parse())
}
