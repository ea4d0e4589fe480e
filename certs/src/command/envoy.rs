//! What an Envoy serves, as a report: what it was handed, as the gateway wrote it down beside its configuration, held
//! against what its admin address says that it has loaded.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, ensure};
use certs::report::{Failure, Leaf, Reloads, Report};
use serde_json::Value;
use time::{Duration, OffsetDateTime};

/// What is known of a running Envoy.
struct Envoy {
    /// Serials of all certificates and CAs that it has loaded.
    loaded: BTreeSet<String>,
    started: OffsetDateTime,
    /// How long a connection to an upstream takes requests.
    longest_connection: Duration,
}

/// Reads what lies beside `envoy.json`, and asks the Envoy that runs on it.
///
/// # Errors
/// When the files are not as `gateway envoy --out` writes them, or Envoy does not answer.
pub(super) async fn report(http: &reqwest::Client, bootstrap: &Path) -> anyhow::Result<Report> {
    let folder = bootstrap.parent().context("envoy.json lies in a folder")?;
    let told = folder.join("gateway/report.json");
    let mut report: Report = serde_json::from_value(json(&told)?)
        .with_context(|| format!("{} is not as `gateway envoy --out` writes it", told.display()))?;
    ensure!(!report.listeners.is_empty(), "{} has no listener", told.display());
    let admin = address(&json(bootstrap)?["admin"]["address"])?;
    let envoy = Envoy::ask(http, admin, &json(&folder.join("clusters.json"))?).await?;
    for listener in &mut report.listeners {
        envoy.judge(&mut listener.reloads, &listener.serving);
    }
    for client in &mut report.clients {
        client.trusted.retain(|ca| envoy.has(ca));
        if let Some(leaf) = &client.serving {
            envoy.judge(&mut client.reloads, leaf);
        }
        let earlier = envoy.earlier(handed(folder, &client.name)?);
        client.reloads.last_failure = client.reloads.last_failure.take().or(earlier);
    }
    Ok(report)
}

impl Envoy {
    async fn ask(http: &reqwest::Client, admin: SocketAddr, clusters: &Value) -> anyhow::Result<Envoy> {
        let get = async |path: &str| -> anyhow::Result<Value> {
            let url = format!("http://{admin}/{path}");
            let answer = http.get(&url).send().await.with_context(|| format!("{url} does not answer"))?;
            Ok(answer.error_for_status()?.json().await?)
        };
        let certificates = get("certs").await?;
        let each = certificates["certificates"].as_array().into_iter().flatten();
        let told = each.flat_map(|one| ["ca_cert", "cert_chain"].map(|kind| &one[kind]));
        let serials =
            told.filter_map(Value::as_array).flatten().filter_map(|one| one["serial_number"].as_str());
        let loaded = serials.map(serial).collect();
        // In whole seconds: `12s`.
        let info = get("server_info").await?;
        let uptime: Option<i64> =
            info["uptime_current_epoch"].as_str().and_then(|text| text.strip_suffix('s')?.parse().ok());
        // It takes both ends as whole seconds, so it may say up to one more than it has run.
        let uptime = Duration::seconds(uptime.unwrap_or_default() - 1);
        let started = OffsetDateTime::now_utc() - uptime;
        Ok(Envoy { loaded, started, longest_connection: longest_connection(clusters) })
    }

    fn has(&self, leaf: &Leaf) -> bool {
        self.loaded.contains(&serial(&leaf.serial_hex))
    }

    /// What Envoy was handed, and does not have.
    fn judge(&self, reloads: &mut Reloads, handed: &Leaf) {
        if reloads.last_failure.is_none() && !self.has(handed) {
            let reason = format!("Envoy's /certs does not have the serial {}", handed.serial_hex);
            reloads.last_failure = Some(Failure { at: OffsetDateTime::now_utc(), reason });
        }
    }

    /// Connections that were made with the certificate before take new requests until they are too old, and break
    /// when whoever is at the other end hears that it is revoked. Envoy cannot be asked for them, but they have a
    /// bound.
    fn earlier(&self, handed: OffsetDateTime) -> Option<Failure> {
        let (until, at) = (handed + self.longest_connection, OffsetDateTime::now_utc());
        (self.started < handed && at < until).then(|| {
            let ms = (until - at).whole_milliseconds();
            Failure {
                at,
                reason: format!("connections made with the certificate before may be used for {ms} ms more"),
            }
        })
    }
}

/// When Envoy was handed the certificate that it shows there: what stays in the copy keeps its time.
fn handed(folder: &Path, client: &str) -> anyhow::Result<OffsetDateTime> {
    let copy = folder.join("served/now");
    let stem: String = client.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let mut newest = OffsetDateTime::UNIX_EPOCH;
    for entry in std::fs::read_dir(&copy).with_context(|| format!("cannot read {}", copy.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.strip_prefix(&stem).is_some_and(|rest| rest.starts_with('~') && rest.ends_with(".pem")) {
            newest = newest.max(entry.metadata()?.modified()?.into());
        }
    }
    Ok(newest)
}

/// Of all clusters.
fn longest_connection(clusters: &Value) -> Duration {
    const HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let each = clusters["resources"].as_array().into_iter().flatten();
    let seconds = each.filter_map(|cluster| {
        let options = &cluster["typed_extension_protocol_options"][HTTP]["common_http_protocol_options"];
        options["max_connection_duration"].as_str()?.strip_suffix('s')?.parse::<f64>().ok()
    });
    Duration::seconds_f64(seconds.fold(0.0, f64::max))
}

/// Envoy leaves out the zero that a serial may begin with.
fn serial(hex: &str) -> String {
    hex.trim_start_matches('0').to_ascii_lowercase()
}

fn json(file: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", file.display()))
}

fn address(value: &Value) -> anyhow::Result<SocketAddr> {
    let socket = &value["socket_address"];
    let port = socket["port_value"].as_u64().and_then(|port| u16::try_from(port).ok());
    let (Some(host), Some(port)) = (socket["address"].as_str(), port) else {
        anyhow::bail!("{value} is no address");
    };
    Ok(SocketAddr::new(host.parse()?, port))
}
