//! `gateway revoke`: in the fleet's Redis, or at the processes of the policy on this host.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use certs::client::ClientLimits;
use certs::pki::Purpose;
use certs::{IdentityFiles, Must, Reader, TrustFiles, Versions, Watch};
use filters::jwt::Revocation;
use filters::policy::{At, Document, MutualTls, Reference};
use http::StatusCode;
use serde_json::Value;

use super::{Wanted, audit};
use crate::load;
use crate::metrics::Metrics;
use crate::now_ms;
use crate::state::State;

/// What `gateway revoke` is told.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The policy file.
    pub policy: PathBuf,
    /// Print what is revoked now.
    #[arg(long, conflicts_with_all = ["token", "session", "device", "user", "undo"])]
    pub list: bool,
    #[command(flatten)]
    pub wanted: Wanted,
}

/// Runs the command: in the fleet's Redis, or where none is shared, in the memory of the processes that serve the policy.
///
/// # Errors
/// With what is wrong with the policy or the request, or why nothing was revoked.
pub fn run(options: &Options) -> anyhow::Result<String> {
    let read = load::read(&options.policy)
        .map_err(|mistakes| anyhow::anyhow!(load::told(&mistakes, &options.policy)))?;
    let document = read.policy.document();
    let asked = match options.list {
        true => None,
        false => Some((options.wanted.revocation(now_ms()).map_err(anyhow::Error::msg)?, &options.wanted)),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(1).build()?;
    let told = runtime.block_on(async {
        match document.state.redis {
            Some(_) => in_redis(document, &read.folder, asked).await,
            None => over_http(document, &read.folder, asked.map(|(_, wanted)| wanted)).await,
        }
    })?;
    Ok(match options.wanted.tenant.as_deref().and_then(|tenant| stranger(document, tenant)) {
        Some(note) => format!("{told}\n{note}"),
        None => told,
    })
}

/// A word on a tenant that may be mistyped. It is revoked all the same: a route without `tenant` takes tokens of any.
fn stranger(document: &Document, tenant: &str) -> Option<String> {
    let may_be = document.tenants.is_empty()
        || document.tenants.contains_key(tenant)
        || document.default_plan.is_some();
    (!may_be).then(|| format!("note: the policy has no tenant `{tenant}`"))
}

async fn in_redis(
    document: &Document,
    folder: &Path,
    asked: Option<(Revocation, &Wanted)>,
) -> anyhow::Result<String> {
    let watch = Watch::new("gateway revoke");
    let state = State::new(&document.state, folder, &Metrics::new()?, &watch)?;
    if let Some((revocation, wanted)) = asked {
        let outcome = state.revoke(revocation).await?;
        audit::commanded(wanted);
        return Ok(match outcome.was_revoked || !outcome.counts.undone {
            true => format!("{}; every edge knows within seconds", told(&outcome.counts)),
            false => never_was(&outcome.counts),
        });
    }
    state.pull_revocations().await?;
    Ok(told_all(&state.revoked().list().all()))
}

/// The processes of this policy on this host: each has a list of its own.
async fn over_http(document: &Document, folder: &Path, wanted: Option<&Wanted>) -> anyhow::Result<String> {
    const WITHIN: Duration = Duration::from_secs(5);
    let secret = match &document.admin.revocation_secret {
        Some(At { value: reference, .. }) => {
            Some(load::secret(folder, reference).map_err(anyhow::Error::msg)?)
        }
        None => None,
    };
    let plain = || reqwest::Client::builder().no_proxy().timeout(WITHIN).user_agent(audit::agent());
    let (mut answers, mut taken, mut missed) = (Vec::new(), false, false);
    let mut places = vec![("gateway", format!("http://{}", document.admin.address), plain().build()?)];
    if let Some(At { value: service, .. }) = &document.state.service {
        match (&service.address, &service.socket, &service.tls) {
            (Some(address), None, None) => {
                places.push(("state service", format!("http://{address}"), plain().build()?));
            }
            (_, Some(socket), _) => {
                let client = plain().unix_socket(folder.join(socket)).build()?;
                places.push(("state service", "http://localhost".to_owned(), client));
            }
            (Some(address), None, Some(tls)) => match over_tls(&tls.client, folder, *address, WITHIN) {
                Ok(client) => {
                    let url = format!("https://{}:{}", tls.client.server_name.value, address.port());
                    places.push(("state service", url, client));
                }
                Err(why) => {
                    missed = true;
                    answers.push(format!("state service: not told: `state.service.tls.client`: {why:#}"));
                }
            },
            (None, None, _) => {}
        }
    }
    for (name, url, client) in places {
        let url = format!("{url}/revocations");
        let mut request = match wanted {
            Some(wanted) => client.post(&url).json(wanted),
            None => client.get(&url),
        };
        if let Some(secret) = &secret {
            request = request.bearer_auth(std::str::from_utf8(secret).context("the secret is no text")?);
        }
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(why) if nobody_listens(&why) => {
                answers.push(format!("{name}: does not run"));
                continue;
            }
            // It runs, and may or may not have taken it.
            Err(why) => {
                missed = true;
                answers.push(format!("{name}: no answer: {:#}", anyhow::Error::from(why)));
                continue;
            }
        };
        let (status, body) = (answer.status(), answer.text().await.unwrap_or_default());
        // The policy's admin address is then Envoy's own, which knows of no revocations.
        if status == StatusCode::NOT_FOUND && name == "gateway" && document.state.service.is_some() {
            answers.push(format!("{name}: does not run (Envoy has its address)"));
            continue;
        }
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        if !status.is_success() {
            missed = true;
            answers.push(format!("{name}: {status} {}", body["detail"].as_str().unwrap_or_default()));
            continue;
        }
        taken = true;
        answers.push(match wanted {
            Some(_) => format!("{name}: {}", told_outcome(body)?),
            None => {
                let all: Vec<Revocation> = serde_json::from_value(body["revocations"].clone())?;
                format!("{name}:\n{}", told_all(&all))
            }
        });
    }
    match (taken, missed) {
        (true, false) => Ok(answers.join("\n")),
        (true, true) => bail!("not everybody took it, and no Redis is shared: {}", answers.join("; ")),
        (false, _) => bail!("nobody took it, and no Redis is shared: {}", answers.join("; ")),
    }
}

/// As Envoy connects to the state service.
fn over_tls(
    files: &MutualTls,
    folder: &Path,
    address: SocketAddr,
    within: Duration,
) -> anyhow::Result<reqwest::Client> {
    let file = |reference: &At<Reference>| load::file(folder, reference).map_err(anyhow::Error::msg);
    let watch = Watch::new("gateway revoke");
    let crl = files.crl.as_ref().map(file).transpose()?;
    let trust = TrustFiles { ca: file(&files.ca)?, crl, stale: load::stale_crl(files.stale_crl.value) };
    let trust = watch.trust("state/ca".to_owned(), trust)?;
    let identity = IdentityFiles { certificate: file(&files.certificate)?, key: file(&files.key)? };
    let (names, issuer) = (Vec::new(), certs::Issuer::Any);
    let must = Must { purpose: Purpose::Client, names, issuer, reader: Reader::Ours };
    let identity = watch.identity("state".to_owned(), identity, must)?;
    let tls = certs::client_config(&trust.current(), Some(&*identity.current()), Versions::Tls12And13)?;
    let limits = ClientLimits { connect_timeout: within, timeout: within, ..ClientLimits::default() };
    Ok(certs::client::https_to(tls, limits, &files.server_name.value, address)?)
}

/// Whether the connection was refused, or its socket is not there. A handshake that fails is somebody who listens.
fn nobody_listens(why: &reqwest::Error) -> bool {
    let mut cause = why.source();
    while let Some(why) = cause {
        if let Some(why) = why.downcast_ref::<io::Error>() {
            return matches!(why.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
        }
        cause = why.source();
    }
    false
}

/// What a process of the policy says became of it. One of an earlier release does not say whether it was revoked before.
fn told_outcome(mut said: Value) -> anyhow::Result<String> {
    let was_revoked = said.as_object_mut().and_then(|said| said.remove("was_revoked"));
    let counts: Revocation = serde_json::from_value(said)?;
    Ok(match counts.undone && was_revoked == Some(Value::Bool(false)) {
        true => never_was(&counts),
        false => told(&counts),
    })
}

fn never_was(undone: &Revocation) -> String {
    let whose = match &undone.tenant {
        Some(tenant) => format!("tenant {tenant}"),
        None => "every tenant".to_owned(),
    };
    let Revocation { kind, id, .. } = undone;
    format!(
        "{} {id}: was not revoked for {whose}, so nothing is taken back (--list tells what is)",
        kind.name()
    )
}

fn told(revocation: &Revocation) -> String {
    let Revocation { kind, id, tenant, issued_until_ms, until_ms, undone } = revocation;
    let moment = |ms: &u64| {
        i64::try_from(ms / 1_000)
            .ok()
            .and_then(filters::validity::Moment::from_unix_s)
            .map_or_else(|| "later".to_owned(), |moment| moment.to_string())
    };
    let of = tenant.as_ref().map(|tenant| format!(" of tenant {tenant}")).unwrap_or_default();
    if *undone {
        return format!("{} {id}{of}: taken back", kind.name());
    }
    let issued = issued_until_ms.as_ref().map(|ms| format!(", tokens issued until {}", moment(ms)));
    format!(
        "{} {id}{of}: revoked{}, kept until {}",
        kind.name(),
        issued.unwrap_or_default(),
        moment(until_ms)
    )
}

fn told_all(all: &[Revocation]) -> String {
    if all.is_empty() {
        return "nothing is revoked".to_owned();
    }
    let mut lines: Vec<String> = all.iter().filter(|revocation| !revocation.undone).map(told).collect();
    lines.sort_unstable();
    lines.join("\n")
}
