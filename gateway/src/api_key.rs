//! `gateway api-key`: keys for partners, of which the policy keeps the hash alone.

use anyhow::ensure;
use filters::api_key::Minted;

/// What is done with keys.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Print a new key, for its client alone, and what the policy says of it.
    ///
    /// The key is printed once and kept nowhere: who loses it gets another.
    New {
        /// Its name among people, unique among all clients.
        id: String,
    },
}

/// Runs the command.
///
/// # Errors
/// An id that is none.
pub fn run(command: &Command) -> anyhow::Result<String> {
    let Command::New { id } = command;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    ensure!(
        (1..=64).contains(&id.len()) && id.bytes().all(plain),
        "an id has at most 64 letters, digits, '-', '_' and '.'"
    );
    let key = Minted::new(&rand::random());
    Ok(format!(
        "key, for the client: {}\nfor the policy, under clients.NAME.api_keys:\n  - {{ id: {id}, sha256: {} }}",
        key.secret(),
        key.sha256_hex()
    ))
}
