//! The command `gateway`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use filters::policy::Mistake;
use gateway::envoy::drain::Timing;
use gateway::explain::Explained;
use gateway::{api_key, check, load, revoke, schema, server, state_service};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Torana's edge: authenticates, limits, verifies and routes what clients send, as one policy file says.
///
/// Write a policy, check it, serve it:
///
///   gateway check edge.yaml
///   gateway serve edge.yaml
///
/// see what another one changes for whom before it takes over, and ask why a request was refused:
///
///   gateway diff edge.yaml edge.new.yaml
///   gateway explain edge.yaml --log gateway.log --request-id ID
///
/// or have Envoy decide the same, with the module that `filters/wasm/build` makes:
///
///   gateway envoy edge.yaml > envoy.json
///   gateway state edge.yaml
///
/// Logs are JSON lines on standard output; RUST_LOG sets how much is told (RUST_LOG=info,access=off silences
/// the access log). Lines that cannot be written are lost and counted (log_lines_lost_total). Metrics, health, readiness and the certificates in use (/certificates) are on the policy's
/// admin address, and which policy serves since when (/config).
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a policy until SIGTERM or SIGINT, then finish what is in flight and leave.
    ///
    /// The file is followed: what changes in it takes over within a second or two, whole, and requests under way stay
    /// with the policy that they began with. SIGHUP has it read at once. A policy with mistakes, or one that needs what is
    /// not there, changes nothing; the log, /config on the admin address and gateway_policy_refused in the metrics tell.
    Serve {
        /// The policy file.
        policy: PathBuf,
        /// Worker threads.
        #[arg(long, env = "GATEWAY_THREADS", default_value_t = cores())]
        threads: usize,
        /// Seconds from SIGTERM until the listeners close: as long as a load balancer needs to notice that /readiness
        /// fails. SIGINT does not wait.
        #[arg(long, env = "GATEWAY_DRAIN_DELAY_S", default_value_t = 5)]
        drain_delay_s: u64,
        /// Seconds that requests in flight may then take to finish.
        #[arg(long, env = "GATEWAY_DRAIN_S", default_value_t = 30)]
        drain_s: u64,
    },
    /// Serve nonces, limits and keys to the Envoy workers of a policy, until SIGTERM or SIGINT.
    ///
    /// Envoy's module asks it once a request at most, so that a nonce is taken once and a limit holds across all
    /// workers. It listens where the policy says, `state.service`: on loopback, on a Unix socket, or anywhere with
    /// mutual TLS. There also are /health, /readiness (503 while an issuer's keys are missing; it says what is refused because of Redis), /config and /metrics.
    ///
    /// The file is followed as `serve` follows it, SIGHUP included: issuers, clients, tenants and flags of another policy
    /// count at Envoy's workers within a second or two, what was asked before is answered by the policy before, and a
    /// policy with mistakes changes nothing. /config tells which one serves and what is wrong with the other. `state` and
    /// `admin` need a restart. Write Envoy's configuration for it too: either may come first.
    ///
    /// What it remembers is gone when it ends: requests that were signed before it started are then refused. Another
    /// policy leaves it as it is.
    ///
    /// It and Envoy's module speak one version's language: upgrade both together.
    ///
    /// With --envoy it also keeps what Envoy serves up to date: it follows certificates, keys, CAs and revocation lists
    /// as the gateway does, and hands on what it has accepted; whatever it refuses changes nothing, is logged and is
    /// counted. /metrics and /certificates tell of it. While it is away Envoy keeps what it has.
    State {
        /// The policy file.
        policy: PathBuf,
        /// The folder that `gateway envoy --out` writes.
        #[arg(long, value_name = "FOLDER")]
        envoy: Option<PathBuf>,
    },
    /// Print a whole Envoy configuration that enforces the policy: listeners, routes, clusters and the module.
    ///
    ///   gateway envoy edge.yaml --module /etc/envoy/torana.wasm --out /etc/envoy/torana
    ///   gateway state edge.yaml --envoy /etc/envoy/torana &
    ///   envoy -c /etc/envoy/torana/envoy.json
    ///
    /// Without --out it is one document, for a look or a try: its certificates are read when Envoy starts, and never
    /// again. The policy must have `state.service`. Paths of certificates and keys become absolute. Secrets that the
    /// policy takes from `env:` stay in the environment of Envoy. Those from `file:` the state service tells while Envoy
    /// runs, on a socket or over mutual TLS; where it listens on a plain address they are written into the
    /// configuration, which then is a secret itself.
    #[command(verbatim_doc_comment)]
    Envoy {
        /// The policy file.
        policy: PathBuf,
        /// The module, where Envoy will find it; `filters/wasm/build` makes it.
        #[arg(long, default_value = "/etc/envoy/torana.wasm")]
        module: PathBuf,
        /// Write envoy.json, listeners.json, clusters.json, secrets/ and served/, a copy of certificates, keys and CAs,
        /// into this folder instead, readable by their owner alone. Writing them again changes the policy of an Envoy
        /// that runs on them, without a dropped connection; `gateway state --envoy` has certificates, keys and CAs
        /// followed without that.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Have the Envoy of a policy drain, before it is sent SIGTERM: for a preStop hook.
    ///
    /// Envoy itself ends at once on SIGTERM. This fails Envoy's /ready, waits until a load balancer has noticed, closes
    /// the listeners and waits for requests in flight. Exit status 0 when none is left, 1 when some are left.
    DrainEnvoy {
        /// The policy file.
        policy: PathBuf,
        /// Seconds until the listeners close: as long as a load balancer needs to notice that /ready fails.
        #[arg(long, env = "GATEWAY_DRAIN_DELAY_S", default_value_t = 5)]
        drain_delay_s: u64,
        /// Seconds that requests in flight may then take to finish.
        #[arg(long, env = "GATEWAY_DRAIN_S", default_value_t = 30)]
        drain_s: u64,
    },
    /// Read a policy as `serve` would, keys and certificates included, and say what is wrong with it.
    ///
    /// All mistakes are reported in one run, each as `error: FILE:LINE:COLUMN: what is wrong and what to write`, with the
    /// line of the file and a caret under the place. The last line counts them. Colours are used on a terminal only, and
    /// never with NO_COLOR. --format json is for programs.
    ///
    /// Warnings are of what may be meant and is worth a second look: routes that anybody may call, filters that a route
    /// does without, paths that fit two routes, upstreams, issuers and clients that nothing uses. They are given for a
    /// policy without errors. Exit status 0 when the policy can be served, 1 when not.
    ///
    /// For a pipeline, where what has been meant once is not to be told for ever:
    ///
    ///   gateway check edge.yaml --without-files --deny-warnings --accept edge.accepted
    #[command(verbatim_doc_comment)]
    Check(check::Options),
    /// Say what changes for whom when NEW takes over from OLD.
    ///
    ///   gateway diff edge.yaml edge.new.yaml
    ///
    /// What lets in what was refused before comes first, each with the routes that it concerns, the tenants that have the
    /// plan, or the routes whose requests the upstream gets. Compared is what is in effect, not what is written: a route's
    /// filters with those it inherits, fields with their defaults, networks as the addresses in them. Nothing that the policies refer to is read, so a
    /// reviewer needs none of their keys. Exit status 0 when both mean the same, 1 when not, 2 when one has mistakes.
    #[command(verbatim_doc_comment)]
    Diff {
        /// The policy that serves.
        old: PathBuf,
        /// The one that is to serve.
        new: PathBuf,
        /// Tell it as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Say what would become of a request, filter by filter, and which line of the policy decides it.
    ///
    ///   gateway explain edge.yaml request.http
    ///   gateway explain edge.yaml request.http --at 2026-11-24T12:00:00Z --from 203.0.113.7
    ///
    /// The request stands in the file as HTTP/1.1 has it: `POST /path HTTP/1.1`, its fields, an empty line, its body
    /// (`-`: standard input). It is decided on as the first of its kind: limits are full, no nonce is taken and
    /// nothing is revoked. Keys are fetched from the policy's issuers; nothing is sent to an upstream. Exit status 0 when it would pass, 1
    /// when it would be refused.
    ///
    /// One that was decided already is found in a log, by the id that its answer bears as X-Request-Id and a refusal as
    /// `instance`:
    ///
    ///   gateway explain edge.yaml --log gateway.log --request-id 0193f0b2-7c7e-7cc3-98c4-dc0c0c07398f
    ///
    /// That tells which filter decided, by which limit, and where the policy says so, or which bound of an upstream ended
    /// the request, and warns when another policy did; a log has no header fields and no body. The log of an Envoy with
    /// this policy does as well. Exit status 0 when it passed, 1 when it was refused, or was cut off before anybody can
    /// tell.
    #[command(verbatim_doc_comment)]
    Explain {
        /// The policy file.
        policy: PathBuf,
        /// The file with the request.
        #[arg(required_unless_present = "log", conflicts_with = "log")]
        request: Option<PathBuf>,
        /// A log of `gateway serve` or Envoy, JSON lines (`-`: standard input).
        #[arg(long, value_name = "FILE", requires = "request_id")]
        log: Option<PathBuf>,
        /// The id of a request in the log.
        #[arg(long, value_name = "ID", requires = "log")]
        request_id: Option<String>,
        /// The address that it comes from.
        #[arg(long, default_value = "127.0.0.1")]
        from: std::net::IpAddr,
        /// The client's certificate, PEM, as if its connection had shown it and it had been verified.
        #[arg(long, value_name = "FILE")]
        certificate: Option<PathBuf>,
        /// When it is decided on (RFC 3339); now without it. Signatures and tokens are fresh for a while only.
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
    },
    /// Take a token, a session, a device or a user out of use at every edge, within seconds.
    ///
    ///   gateway revoke edge.yaml --user u-1 --tenant acme
    ///   gateway revoke edge.yaml --token 0192f0c1 --for 1h
    ///   gateway revoke edge.yaml --token 0192f0c1 --undo
    ///   gateway revoke edge.yaml --list
    ///
    /// Tokens of a device or a user count again when they were issued after it; a token or a session never does. Where
    /// the policy shares a Redis it is told, and every gateway and state service of the fleet hears of it; otherwise the
    /// gateway and the state service of this policy on this host are told, and know it until they end. Identity services
    /// send the same over HTTP: `POST /revocations` with {"user": "u-1", "tenant": "acme", "for_s": 3600} on the admin
    /// address. Who asked is told in the log of the edge that was asked (`target: audit`), and on standard error where
    /// Redis was told. Exit status 0 when it is revoked.
    #[command(verbatim_doc_comment)]
    Revoke(revoke::Options),
    /// Make an API key for a client, for the filter `api_key`.
    ///
    ///   gateway api-key new acme-1
    ApiKey {
        #[command(subcommand)]
        command: api_key::Command,
    },
    /// Print the policy's JSON Schema, for editors that complete and check YAML.
    Schema,
}

/// Pingora tells of every client that hangs up; what concerns a request is in the access log.
const DEFAULT_LOG: &str =
    "info,pingora_core=warn,pingora_core::apps=off,pingora_core::protocols=off,pingora_proxy=off";

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn main() -> ExitCode {
    certs::install_crypto_provider();
    match Arguments::parse().command {
        Command::Serve { policy, threads, drain_delay_s, drain_s } => {
            let options = server::Options { threads: threads.max(1), drain_delay_s, drain_s };
            logging::init(DEFAULT_LOG);
            logged(&policy, load::load_at_start(&policy), |loaded| server::run(&policy, loaded, options))
        }
        Command::State { policy, envoy } => state(&policy, envoy.as_deref()),
        Command::Envoy { policy, module, out } => envoy(&policy, module, out.as_deref()),
        Command::DrainEnvoy { policy, drain_delay_s, drain_s } => drain_envoy(
            &policy,
            Timing { delay: Duration::from_secs(drain_delay_s), limit: Duration::from_secs(drain_s) },
        ),
        Command::Check(options) => check(&options),
        Command::Diff { old, new, json } => diff(&old, &new, json),
        Command::Explain { policy, request, log, request_id, from, certificate, at } => {
            told(match (request, log, request_id) {
                (None, Some(log), Some(request_id)) => logged_request(&policy, &log, &request_id),
                (request, _, _) => {
                    let request = request.unwrap_or_else(|| PathBuf::from("-"));
                    explain(&policy, &request, (from, certificate.as_deref(), at.as_deref()))
                }
            })
        }
        Command::Revoke(options) => {
            // What the audit wants to know of it, where no edge is asked.
            let audit = tracing_subscriber::EnvFilter::new("off,audit=info");
            let lines = tracing_subscriber::fmt().json().flatten_event(true).with_env_filter(audit);
            lines.with_writer(std::io::stderr).init();
            outcome(revoke::run(&options))
        }
        Command::ApiKey { command } => outcome(api_key::run(&command)),
        Command::Schema => print(&schema::text()),
    }
}

fn state(policy: &Path, envoy: Option<&Path>) -> ExitCode {
    logging::init(DEFAULT_LOG);
    logged(policy, load::load(policy), |loaded| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        let stopped = async {
            gateway::stop_signal().await;
        };
        runtime.block_on(state_service::run(policy, loaded, envoy, stopped))
    })
}

fn envoy(policy: &Path, module: PathBuf, out: Option<&Path>) -> ExitCode {
    let options = gateway::envoy::Options { module };
    let made = match out {
        None => gateway::envoy::bootstrap(policy, &options),
        Some(folder) => gateway::envoy::folder(policy, &options, folder)
            .map(|files| files.iter().map(|file| format!("wrote {}\n", file.display())).collect()),
    };
    match made {
        Ok(text) => {
            if out.is_none() && gateway::envoy::holds_secrets(policy, &options).unwrap_or(true) {
                complain(
                    "note: this configuration holds secrets of the policy's clients; keep it as you keep them",
                );
            }
            print(&text)
        }
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn drain_envoy(policy: &Path, timing: Timing) -> ExitCode {
    match gateway::envoy::drain::drain(policy, timing) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(left) => {
            complain(&format!("{left} requests are still in flight after {} s", timing.limit.as_secs()));
            ExitCode::FAILURE
        }
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn complain(text: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Runs with a policy that was loaded. What is wrong goes into the log.
fn logged(
    policy: &Path,
    loaded: Result<load::Loaded, Vec<Mistake>>,
    run: impl FnOnce(load::Loaded) -> anyhow::Result<()>,
) -> ExitCode {
    let code = match loaded.map(run) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            tracing::error!(error = format!("{error:#}"), "cannot serve");
            ExitCode::FAILURE
        }
        Err(mistakes) => {
            for mistake in mistakes {
                tracing::error!(mistake = mistake.in_file(&policy.to_string_lossy()), "policy refused");
            }
            ExitCode::FAILURE
        }
    };
    logging::flush();
    code
}

fn check(options: &check::Options) -> ExitCode {
    use std::io::IsTerminal as _;
    // https://no-color.org: any text but the empty one.
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let check::Summary { text, errors, warnings } =
        check::run(options, std::io::stdout().is_terminal() && !is_plain);
    let printed = print(&text);
    if errors > 0 {
        return ExitCode::FAILURE;
    }
    if warnings > 0 && options.deny_warnings {
        complain("--deny-warnings: the warnings above are taken for mistakes");
        return ExitCode::FAILURE;
    }
    printed
}

fn diff(old: &Path, new: &Path, json: bool) -> ExitCode {
    match gateway::diff::Difference::between(old, new) {
        Ok(difference) => {
            let printed = print(&if json { difference.json() } else { difference.text() });
            match (printed == ExitCode::SUCCESS, difference.is_none()) {
                (true, true) => ExitCode::SUCCESS,
                (true, false) => ExitCode::from(1),
                (false, _) => ExitCode::from(2),
            }
        }
        Err(mistakes) => {
            complain(&format!("{mistakes:#}"));
            ExitCode::from(2)
        }
    }
}

fn explain(
    policy: &Path,
    request: &Path,
    (from, certificate, at): (std::net::IpAddr, Option<&Path>, Option<&str>),
) -> anyhow::Result<Explained> {
    let around = gateway::explain::Around::read(from, certificate, at)?;
    let written = gateway::explain::Written::read(request)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(gateway::explain::explain(policy, &written, &around))
}

fn logged_request(policy: &Path, log: &Path, request_id: &str) -> anyhow::Result<Explained> {
    let line = gateway::logged::Line::find(log, request_id)?;
    gateway::logged::explain(policy, &line)
}

fn told(explained: anyhow::Result<Explained>) -> ExitCode {
    match explained {
        Ok(explained) => {
            let printed = print(&explained.text);
            if explained.passes { printed } else { ExitCode::FAILURE }
        }
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn outcome(outcome: anyhow::Result<String>) -> ExitCode {
    match outcome {
        Ok(text) => print(&text),
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Prints a command's output. A reader that has read enough (`gateway schema | head`) is no failure; a full disk is.
fn print(text: &str) -> ExitCode {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            complain(&format!("the output cannot be written: {error}"));
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}
