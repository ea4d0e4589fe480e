//! The command `txn-core`.

mod dlq;
mod partitions;
mod topics;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use txn_core::config::Config;
use txn_core::roles::Roles;
use txn_core::server::{Server, migrate, open_store_to_look};
use txn_core::store::HistoryRow;
use txn_core::txn::{Txn, TxnId};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Owns every payment: takes it, makes it durable, sends it to the network, and finds out how it ended.
///
/// Payments come from the gateway over mutual TLS (POST /v1/transactions/send), leave through npci-proxy, and
/// end by the network's callback or a status check. A payment is durable before it is answered; an unknown
/// outcome is never a failure.
#[derive(Debug, Parser)]
#[command(
    version,
    after_help = "EXAMPLES:
  txn-core serve --config txn-core.yaml
  txn-core show TOR0198c0de0000700080000000000000ff --config txn-core.yaml
  txn-core states
  txn-core codes Z9
  txn-core partitions list --config txn-core.yaml
  txn-core partitions drop --keep-months 24 --config txn-core.yaml        # says what it would do; --yes does it
  txn-core serve --roles relay,audit --config txn-core.yaml               # the others run elsewhere
  txn-core topics --replication-factor 3 --dry-run --config txn-core.yaml
  txn-core dlq list --group orchestrator --config txn-core.yaml
  txn-core dlq replay 3-17 --config txn-core.yaml

Without a subcommand, `txn-core --config FILE` serves. A commented configuration is in
config.example.yaml. Logs are JSON lines on stdout; RUST_LOG=debug says more."
)]
struct Command {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    config: OptionalConfig,
}

#[derive(Debug, Args)]
struct OptionalConfig {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ConfigFile {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run the service until SIGTERM or SIGINT; then finish what is in flight and exit 0.
    Serve {
        /// What this instance does, with commas: api, orchestrator, relay, notify, audit. Counts more than the
        /// configuration; all by default.
        #[arg(long, value_name = "ROLES")]
        roles: Option<Roles>,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Bring the tables up to date and exit. With SQLite, `serve` does it too; PostgreSQL's tables change only
    /// here.
    Migrate(ConfigFile),
    /// The months in which payments are kept (PostgreSQL).
    Partitions {
        #[command(subcommand)]
        what: partitions::What,
    },
    /// Make the topics that are missing on Kafka, and report those that are not as they should be.
    Topics(topics::Arguments),
    /// The dead letters: messages that nobody could handle.
    Dlq {
        #[command(subcommand)]
        what: dlq::What,
    },
    /// Print one payment and everything that was said about it.
    Show {
        txn_id: String,
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Print every state and what each input does to it.
    States,
    /// Print the network's response codes and what each means to a customer.
    Codes {
        /// Only this code, such as Z9.
        code: Option<String>,
    },
}

fn main() -> ExitCode {
    let command = Command::parse();
    certs::install_crypto_provider();
    let ended = run(command);
    logging::flush();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if stderr is closed.
            let _closed = writeln!(std::io::stderr(), "txn-core: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    match (command.what, command.config.config) {
        (Some(What::Serve { roles, config }), _) => runtime.block_on(serve(config.config, roles)),
        (None, Some(file)) => runtime.block_on(serve(file, None)),
        (None, None) => anyhow::bail!("say what to do: `txn-core serve --config FILE`, or `txn-core --help`"),
        (Some(What::Migrate(file)), _) => runtime.block_on(migrate(&Config::load(&file.config)?)),
        (Some(What::Partitions { what }), _) => runtime.block_on(partitions::run(what)),
        (Some(What::Topics(arguments)), _) => runtime.block_on(topics::run(arguments)),
        (Some(What::Dlq { what }), _) => runtime.block_on(dlq::run(what)),
        (Some(What::Show { txn_id, config }), _) => runtime.block_on(show(&txn_id, config.config)),
        (Some(What::Codes { code }), _) => {
            let page = txn_core::codes::page(code.as_deref());
            if let (Some(code), true) = (code, page.is_empty()) {
                anyhow::bail!("{code} is not in the table: a payment that ends with it has to be reconciled");
            }
            std::io::stdout().lock().write_all(page.as_bytes()).context("stdout")
        }
        (Some(What::States), _) => {
            std::io::stdout().lock().write_all(txn_core::txn::states_page().as_bytes()).context("stdout")
        }
    }
}

async fn serve(file: PathBuf, roles: Option<Roles>) -> anyhow::Result<()> {
    logging::init("info");
    let mut config = Config::load(&file)?;
    if let Some(roles) = roles {
        config = config.with_roles(roles)?;
    }
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let shutdown = async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        tracing::info!("shutting down");
    };
    Server::bind(config).await?.run(shutdown).await
}

async fn show(txn_id: &str, file: PathBuf) -> anyhow::Result<()> {
    let txn_id: TxnId = txn_id.parse()?;
    let store = open_store_to_look(&Config::load(&file)?).await?;
    let found = store.inspect(txn_id).await?;
    store.close().await;
    let (txn, history) = found.with_context(|| format!("{txn_id}: no such transaction"))?;
    write!(std::io::stdout().lock(), "{}", page(&txn, &history)).context("stdout")
}

/// Addresses are masked: what is printed ends up in tickets.
fn page(txn: &Txn, history: &[HistoryRow]) -> String {
    let mut page = format!(
        "{}  {}  ({})\n{} -> {}  ₹{}  tenant {}\nsent {} times, {} status checks{}{}\n",
        txn.id,
        txn.state.status().name(),
        txn.state.name(),
        txn.from,
        txn.to,
        txn.amount,
        txn.tenant,
        txn.sends,
        txn.checks,
        txn.code.as_ref().map(|code| format!(", last code {code}")).unwrap_or_default(),
        txn.flagged_at.map(|at| format!(", waits for reconciliation since {at}")).unwrap_or_default(),
    );
    for row in history {
        page += &format!(
            "{:>4}  {}  {:<16} {:<10} {}\n",
            row.version,
            row.at,
            row.event,
            if row.applied { row.state.name() } else { "-" },
            row.reason.as_deref().unwrap_or_default()
        );
    }
    page
}
