//! The simulated network's accounts, and what each one does to a payment.

use anyhow::Context as _;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Network {
    accounts: Vec<Account>,
}

#[derive(Debug, Deserialize)]
struct Account {
    vpa: String,
    about: String,
}

/// VPA and behaviour of every account of the development stack's network.
///
/// # Errors
/// When the configuration of the development stack does not describe one.
pub fn vpas() -> anyhow::Result<Vec<(String, String)>> {
    let network: Network =
        serde_saphyr::from_str(include_str!("../config/npci-sim.yaml")).context("config/npci-sim.yaml")?;
    Ok(network.accounts.into_iter().map(|account| (account.vpa, account.about)).collect())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    /// `UPDATE=1 cargo test -p stack vpas` writes the page.
    #[test]
    fn the_page_of_vpas_is_fresh() {
        let mut page = String::from(
            "# VPAs of the simulated network\n\n\
             Pay to one of these to see how a payment ends. `cargo dev vpas` prints the same table.\n\n\
             ```sh\ncargo dev pay --from alice@torana --to credittimeout@okbank --amount 10.00\n```\n\n\
             An amount of ₹13.37 is never answered, whoever is paid.\n\n\
             | VPA | what happens |\n|---|---|\n",
        );
        for (vpa, about) in vpas().unwrap() {
            writeln!(page, "| `{vpa}` | {about} |").unwrap();
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/simulator-vpas.md");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(page == written, "docs/simulator-vpas.md is stale: UPDATE=1 cargo test -p stack vpas");
    }
}
