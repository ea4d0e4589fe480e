//! `cargo dev`: the whole stack on this machine, with one payment to show that it works.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use stack::{
    Binaries, Device, Edge, EdgeRequest, Engines, Options, Payment, Stack, StackFile, default_dir, follow,
};
use tokio::signal::unix::{SignalKind, signal};

/// A payment that takes longer than this is not going to complete by itself.
const PAYMENT_WITHIN: Duration = Duration::from_secs(60);
const RENEW_TOKENS_EVERY: Duration = Duration::from_secs(6 * 3600);

/// Start the whole stack on free loopback ports, send one payment through it, and stay up.
#[derive(Debug, Parser)]
#[command(
    name = "cargo dev",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  cargo dev\n  cargo dev -- --once\n  cargo dev -- --edge envoy\n  cargo dev -- --engines fleet\n  cargo dev pay --from alice@torana --to bob@torana --amount 150.75"
)]
struct Cli {
    /// Stop after the payment; exit status 0 when it is COMPLETED.
    #[arg(long)]
    once: bool,
    /// Who is the edge: the gateway, or Envoy with the module, both under the same policy. Envoy and the module
    /// come from `tests/run install` and `filters/wasm/build`.
    #[arg(long, value_enum, default_value = "gateway")]
    edge: EdgeName,
    /// What is under the services: files and memory; a PostgreSQL, a Kafka and a Redis of the stack's own, which
    /// `tests/run install` brings; or those that `docker compose --file tests/stack/compose.yaml up --wait` started.
    #[arg(long, value_enum, default_value = "embedded")]
    engines: EnginesName,
    /// Delete the payments of an earlier stack in the same folder. Those on engines of the stack's own (fleet) never
    /// outlive it.
    #[arg(long)]
    fresh: bool,
    /// Where the stack keeps its files [default: target/dev].
    #[arg(long)]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum EdgeName {
    Gateway,
    Envoy,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum EnginesName {
    Embedded,
    Fleet,
    Containers,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send a payment through a running stack, signed as the device does, and follow it to its end.
    Pay(Pay),
    /// List the VPAs of the simulated network, and what each does to a payment.
    Vpas,
    /// Start a service of a running stack again that was killed.
    Restart {
        #[arg(value_parser = ["npci-sim", "txn-core", "npci-proxy", "state", "edge"])]
        service: String,
        /// The folder of the running stack [default: target/dev].
        #[arg(long)]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Pay {
    /// Who pays: alice@torana or bob@torana; anybody else's payment is refused.
    #[arg(long)]
    from: String,
    #[arg(long)]
    to: String,
    /// Rupees, such as 150.75.
    #[arg(long)]
    amount: String,
    #[arg(long, default_value = "Lunch")]
    note: String,
    /// Print a curl command that sends this payment instead of sending it. It works once and for a few
    /// minutes: the signature is fresh and its nonce is good for one use.
    #[arg(long)]
    curl: bool,
    /// The folder of the running stack [default: target/dev].
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    certs::install_crypto_provider();
    let Cli { once, edge, engines, fresh, dir, command } = Cli::parse();
    let edge = match edge {
        EdgeName::Gateway => Edge::Gateway,
        EdgeName::Envoy => Edge::Envoy,
    };
    let engines = match engines {
        EnginesName::Embedded => Engines::Embedded,
        EnginesName::Fleet => Engines::Fleet,
        EnginesName::Containers => Engines::Containers,
    };
    let outcome = match command {
        Some(Command::Pay(pay)) => pay.run().await,
        Some(Command::Vpas) => list_vpas(),
        Some(Command::Restart { service, dir }) => restart(&dir.unwrap_or_else(default_dir), &service).await,
        None => {
            let mut options = Options::new(dir.unwrap_or_else(default_dir)).edge(edge).engines(engines);
            options.keep_payments = !fresh;
            run(options, once).await
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options, once: bool) -> anyhow::Result<()> {
    let mut stopped = std::pin::pin!(stop_signal()?);
    // Dropped by a signal, what has been started so far is killed.
    let (stack, paid) = tokio::select! {
        started = start_and_pay(options) => started?,
        name = &mut stopped => bail!("stopped by {name}"),
    };
    if once {
        say("stopping")?;
        stack.stop().await;
        return paid;
    }
    if let Err(error) = paid {
        say(&format!("the payment did not complete: {error:#}"))?;
    }
    say(&how_to_go_on(&stack)?)?;
    let ended = tokio::select! {
        ended = stay_up(&stack) => ended,
        name = &mut stopped => say(&format!("{name}: stopping")),
    };
    stack.stop().await;
    ended
}

async fn start_and_pay(options: Options) -> anyhow::Result<(Stack, anyhow::Result<()>)> {
    let binaries = Binaries::build().await?;
    let stack = Stack::start(&binaries, options).await?;
    say(&format!("ready after {} ms", stack.ready_after().as_millis()))?;
    let alice = stack.alice()?;
    let payment = Payment::new(&alice.vpa, "bob@torana", "150.75");
    let request = stack.payment(alice, &payment)?;
    let paid = pay(stack.http(), &request, stack.edge_url(), &alice.token, &payment).await;
    let paid = paid.and_then(|end| match end.as_str() {
        "COMPLETED" => Ok(()),
        other => bail!("the payment ended {other}"),
    });
    Ok((stack, paid))
}

/// Sends the payment, prints each state with what its code means, and returns the last one.
async fn pay(
    http: &reqwest::Client,
    request: &EdgeRequest,
    edge_url: &str,
    token: &str,
    payment: &Payment,
) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Accepted {
        txn_id: String,
        poll_uri: String,
    }
    say(&format!("{} pays {} ₹{}", payment.from, payment.to, payment.amount))?;
    let answer =
        request.send(http).await.with_context(|| format!("no answer from {edge_url}; is `cargo dev` up?"))?;
    let (status, body) = (answer.status(), answer.text().await?);
    if !status.is_success() {
        bail!("the edge refused the payment: {status} {body}");
    }
    let Accepted { txn_id, poll_uri } = serde_json::from_str(&body).with_context(|| body.clone())?;
    say(&format!("  accepted as {txn_id}"))?;
    let last = follow(http, &format!("{edge_url}{poll_uri}"), token, PAYMENT_WITHIN, |progress| {
        let reason = progress.reason.as_deref().map(|reason| format!("  {reason}")).unwrap_or_default();
        let _ = say(&format!("  {}  {}{reason}", progress.at, progress.status));
    })
    .await?;
    if let Some(reason) = &last.reason {
        reason
            .split([' ', '/', ':', ','])
            .filter_map(code_meaning)
            .try_for_each(|line| say(&format!("  {line}")))?;
    }
    say(&format!("  {}", status_meaning(&last.status)))?;
    Ok(last.status)
}

/// What txn-core's table says of a response code.
fn code_meaning(code: &str) -> Option<String> {
    let txn_core = std::env::current_exe().ok()?.with_file_name("txn-core");
    let said = std::process::Command::new(txn_core).args(["codes", code]).output().ok()?;
    let line = String::from_utf8(said.stdout).ok()?.lines().next()?.to_owned();
    said.status.success().then_some(line)
}

/// What a final status means to the customer.
fn status_meaning(status: &str) -> &'static str {
    match status {
        "COMPLETED" => "The payee has the money.",
        "DEEMED" => {
            "Taken for a success until the network's reconciliation, which may still reverse it. Do not pay again."
        }
        "REVERSED" => "The payer was debited and has the money back.",
        "DECLINED" => "The customer declined. No money moved.",
        "EXPIRED" => "The request expired. No money moved.",
        "FAILED" => "The payment failed. No money moved.",
        _ => "The payment is under way.",
    }
}

fn list_vpas() -> anyhow::Result<()> {
    for (vpa, about) in stack::vpas()? {
        say(&format!("{vpa:26} {about}"))?;
    }
    say("\nAn amount of ₹13.37 is never answered, whoever is paid.")
}

/// Asks the running stack to start a service again, and waits until it runs.
async fn restart(dir: &Path, service: &str) -> anyhow::Result<()> {
    const WITHIN: Duration = Duration::from_secs(30);
    let runs = || -> anyhow::Result<bool> {
        let services = StackFile::read(&dir.join("stack.json"))?.services;
        Ok(services.iter().any(|running| running.name == service))
    };
    if runs()? {
        bail!("{service} runs already; kill it first to see how the others take it");
    }
    StackFile::request_restart(dir, service)?;
    let began = Instant::now();
    while !runs()? {
        if began.elapsed() > WITHIN {
            bail!(
                "{service} does not run after {} s; is `cargo dev` up, and is that its name?",
                WITHIN.as_secs()
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    say(&format!("{service} runs again"))
}

impl Pay {
    async fn run(self) -> anyhow::Result<()> {
        let dir = self.dir.unwrap_or_else(default_dir);
        let stack = StackFile::read(&dir.join("stack.json"))?;
        // The token beside the default one that belongs to the payer, when there is one.
        let name = self.from.split('@').next().unwrap_or_default();
        let theirs = |file: &Path, ending: &str| {
            let own = file.with_file_name(format!("{name}.{ending}"));
            if own.is_file() { own } else { file.to_owned() }
        };
        let token_file = theirs(&stack.token_file, "jwt");
        let device_key_file = theirs(&stack.device_key_file, "device.pem");
        let token = std::fs::read_to_string(&token_file).with_context(|| token_file.display().to_string())?;
        let device = Device::load(&stack::device_of(&token)?, &device_key_file)?;
        let payment = Payment { note: self.note, ..Payment::new(&self.from, &self.to, &self.amount) };
        let request = EdgeRequest::payment(&stack.edge_url, &token, &device, &payment)?.signed(&device)?;
        if self.curl {
            return say(&request.curl(&stack.ca_file, &token_file));
        }
        let trust = certs::Trust::load(&stack.ca_file)?;
        let tls = certs::client_config(&trust, None, certs::Versions::Tls12And13)?;
        let http = certs::client::https(tls, certs::client::ClientLimits::default())?;
        match pay(&http, &request, &stack.edge_url, &token, &payment).await?.as_str() {
            "COMPLETED" | "DEEMED" => Ok(()),
            other => bail!("the payment ended {other}"),
        }
    }
}

async fn stay_up(stack: &Stack) -> anyhow::Result<()> {
    let mut renewed = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        for (instance, status) in stack.ended()? {
            say(&format!(
                "\n{name} ended ({status}); its log is {log}. Pay meanwhile to see what the others do. Start it again with:\n\n\
                 cargo dev restart {name}{dir}\n",
                name = instance.name(),
                log = stack.dir().join(format!("logs/{}.log", instance.name())).display(),
                dir = dir_option(stack.dir()),
            ))?;
        }
        for instance in stack.wanted() {
            stack.resume(instance)?;
            say(&format!("{} was started again", instance.name()))?;
        }
        if renewed.elapsed() > RENEW_TOKENS_EVERY {
            stack.renew_tokens()?;
            renewed = Instant::now();
        }
    }
}

fn how_to_go_on(stack: &Stack) -> anyhow::Result<String> {
    let alice = stack.alice()?;
    let request = stack.payment(alice, &Payment::new(&alice.vpa, "bob@torana", "150.75"))?;
    let curl = request.curl(&stack.dir().join("pki/edge-ca.pem"), &alice.token_file);
    Ok(format!(
        "
edge    {edge}
ledger  {ledger}
logs    {logs}
more    {more}

Send another payment, signed as the device does:

cargo dev pay --from alice@torana --to bob@torana --amount 150.75{dir}

`cargo dev vpas` lists payees that make a payment fail, hang or come back.

The same with curl. It works once and for a few minutes, for the signature has a nonce and a time;
`cargo dev pay … --curl` prints a fresh one:

{curl}

Ctrl-C stops everything.",
        edge = stack.edge_url(),
        ledger = stack.ledger_url(),
        logs = stack.dir().join("logs").display(),
        more = stack.dir().join("stack.json").display(),
        dir = dir_option(stack.dir()),
    ))
}

/// What commands for this stack need when it is not in the default folder.
fn dir_option(dir: &Path) -> String {
    match default_dir().canonicalize().is_ok_and(|default| default == dir) {
        true => String::new(),
        false => format!(" --dir {}", dir.display()),
    }
}

/// Completes with the name of the first signal that asks this process to end.
fn stop_signal() -> anyhow::Result<impl Future<Output = &'static str>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            _ = hangup.recv() => "SIGHUP",
        }
    })
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}")?;
    Ok(out.flush()?)
}
