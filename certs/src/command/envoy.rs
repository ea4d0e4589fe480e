//! What an Envoy serves, as a report: where it listens and what it reads from its generated configuration, what it
//! has loaded from its admin address.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use certs::report::{Client, Failure, Leaf, Listener, Reloads, Report};
use certs::{Facts, San, inspect_pem};
use serde_json::Value;
use time::{Duration, OffsetDateTime};

use super::{causes, probe};

/// What is known of a running Envoy.
struct Envoy {
    /// Serials of all certificates and CAs that it has loaded.
    loaded: BTreeSet<String>,
    started: OffsetDateTime,
    /// `sds.NAME.key_rotation_failed` and the like.
    stats: Vec<(String, u64)>,
}

/// The files of a context's certificate and CAs, and the names of their secrets.
#[derive(Debug, Default, PartialEq, Eq)]
struct Files {
    certificate: Option<PathBuf>,
    ca: Option<PathBuf>,
    crl: Option<PathBuf>,
    secrets: Vec<String>,
}

/// Reads `envoy.json` and the files beside it, and asks the Envoy that runs on them.
///
/// # Errors
/// When the files are not as `gateway envoy --out` writes them, or Envoy does not answer.
pub(super) async fn report(http: &reqwest::Client, bootstrap: &Path) -> anyhow::Result<Report> {
    let folder = bootstrap.parent().context("envoy.json lies in a folder")?;
    let admin = address(&json(bootstrap)?["admin"]["address"])?;
    let envoy = Envoy::ask(http, admin).await?;
    let mut report = Report { service: "envoy".into(), ..Report::default() };
    for listener in resources(&folder.join("listeners.json"))? {
        let tls = &listener["filter_chains"][0]["transport_socket"]["typed_config"];
        let address = address(&listener["address"])?;
        let Some(name) = listener["name"].as_str() else { continue };
        for files in Files::of(&tls["common_tls_context"])? {
            let Some(certificate) = files.certificate.clone() else { continue };
            // Envoy tells serials, but not which listener has which: the listener itself is asked for that, by a name
            // of the certificate if there are many.
            let leaf = leaf(&certificate);
            let names = match &leaf {
                Ok(leaf) if several(tls) => leaf.sans.iter().filter_map(dns).collect(),
                Ok(_) | Err(_) => Vec::new(),
            };
            let serving = match &leaf {
                Ok(leaf) => leaf.clone(),
                Err(_) => probe::served(address, None).await?.leaf,
            };
            report.listeners.push(Listener {
                name: name.to_owned(),
                address,
                server_names: names,
                serving,
                certificate,
                client_ca: files.ca.clone(),
                crl: files.crl.clone(),
                crl_next_update: files.crl_next_update()?,
                requires_client: tls["require_client_certificate"] == true,
                reloads: envoy.reloads(&files, &leaf),
            });
        }
    }
    for cluster in resources(&folder.join("clusters.json"))? {
        let tls = &cluster["transport_socket"]["typed_config"];
        let Some(files) = Files::of(&tls["common_tls_context"])?.into_iter().next() else { continue };
        let (Some(certificate), Some(name)) = (files.certificate.clone(), cluster["name"].as_str()) else {
            continue;
        };
        let leaf = leaf(&certificate);
        let mut reloads = envoy.reloads(&files, &leaf);
        reloads.last_failure = reloads.last_failure.or_else(|| envoy.earlier(&certificate, &cluster));
        let trusted = files.ca.as_deref().map(|ca| envoy.loaded_of(ca)).transpose()?;
        report.clients.push(Client {
            name: name.to_owned(),
            server_name: tls["sni"].as_str().map(str::to_owned),
            reloads,
            serving: leaf.ok(),
            certificate: Some(certificate),
            trusted: trusted.unwrap_or_default(),
            crl_next_update: files.crl_next_update()?,
            ca: files.ca,
            crl: files.crl,
        });
    }
    ensure!(
        !report.listeners.is_empty(),
        "{} has no listener with certificates from files",
        folder.display()
    );
    Ok(report)
}

impl Files {
    /// Envoy tells nothing of the lists that it has: what is said of them is said of their file.
    fn crl_next_update(&self) -> anyhow::Result<Option<OffsetDateTime>> {
        Ok(self.crl.as_deref().map(certs::pki::crl::next_update).transpose()?.flatten())
    }
}

impl Envoy {
    async fn ask(http: &reqwest::Client, admin: SocketAddr) -> anyhow::Result<Envoy> {
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
        let stats = get("stats?format=json&filter=^sds").await?;
        let stats = stats["stats"].as_array().into_iter().flatten();
        let stats =
            stats.filter_map(|stat| Some((stat["name"].as_str()?.to_owned(), stat["value"].as_u64()?)));
        Ok(Envoy { loaded, started, stats: stats.collect() })
    }

    fn loaded_of(&self, file: &Path) -> anyhow::Result<Vec<Leaf>> {
        let all = leaves(file)?.into_iter();
        Ok(all.filter(|leaf| self.loaded.contains(&serial(&leaf.serial_hex))).collect())
    }

    fn reloads(&self, files: &Files, leaf: &anyhow::Result<Leaf>) -> Reloads {
        let sum = |what: &str| -> u64 { files.secrets.iter().map(|secret| self.stat(secret, what)).sum() };
        // In milliseconds; Envoy tells of its first reading only.
        let read =
            files.secrets.iter().map(|secret| self.stat(secret, "update_time")).max().unwrap_or_default();
        let read =
            i64::try_from(read / 1_000).ok().and_then(|at| OffsetDateTime::from_unix_timestamp(at).ok());
        let reason = match leaf {
            Err(error) => Some(causes(error)),
            Ok(leaf) if !self.loaded.contains(&serial(&leaf.serial_hex)) => {
                Some(format!("Envoy's /certs does not have the serial {}", leaf.serial_hex))
            }
            Ok(_) => None,
        };
        let last_failure = reason.map(|reason| Failure { at: OffsetDateTime::now_utc(), reason });
        Reloads {
            last_reload: read.unwrap_or(OffsetDateTime::UNIX_EPOCH),
            last_failure,
            reload_failures: sum("key_rotation_failed") + sum("update_rejected"),
        }
    }

    /// Connections that were made with the certificate before take new requests until they are too old, and break
    /// when whoever is at the other end hears that it is revoked. Envoy cannot be asked for them, but they have a
    /// bound.
    fn earlier(&self, certificate: &Path, cluster: &Value) -> Option<Failure> {
        const HTTP: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let options = &cluster["typed_extension_protocol_options"][HTTP]["common_http_protocol_options"];
        let longest =
            options["max_connection_duration"].as_str().and_then(|text| text.strip_suffix('s')?.parse().ok());
        let replaced = OffsetDateTime::from(std::fs::metadata(certificate).ok()?.modified().ok()?);
        let until = replaced + Duration::seconds_f64(longest.unwrap_or(0.0));
        let at = OffsetDateTime::now_utc();
        (self.started < replaced && at < until).then(|| {
            let ms = (until - at).whole_milliseconds();
            Failure {
                at,
                reason: format!("connections made with the certificate before may be used for {ms} ms more"),
            }
        })
    }

    fn stat(&self, secret: &str, what: &str) -> u64 {
        let name = format!("sds.{secret}.{what}");
        self.stats.iter().find(|(stat, _)| *stat == name).map_or(0, |(_, value)| *value)
    }
}

impl Files {
    /// Of each certificate of a context.
    fn of(context: &Value) -> anyhow::Result<Vec<Files>> {
        let peers = match &context["combined_validation_context"] {
            Value::Null => &context["validation_context_sds_secret_config"],
            combined => &combined["validation_context_sds_secret_config"],
        };
        let each = context["tls_certificate_sds_secret_configs"].as_array().into_iter().flatten();
        each.map(|own| {
            let mut files = Files::default();
            for config in [own, peers] {
                let Some(path) = config["sds_config"]["path_config_source"]["path"].as_str() else {
                    continue;
                };
                files.secrets.extend(config["name"].as_str().map(str::to_owned));
                let secret =
                    resources(Path::new(path))?.into_iter().next().context("a secret's file is empty")?;
                let file = |value: &Value| value["filename"].as_str().map(PathBuf::from);
                files.certificate =
                    files.certificate.or(file(&secret["tls_certificate"]["certificate_chain"]));
                files.ca = files.ca.or(file(&secret["validation_context"]["trusted_ca"]));
                files.crl = files.crl.or(file(&secret["validation_context"]["crl"]));
            }
            Ok(files)
        })
        .collect()
    }
}

fn several(tls: &Value) -> bool {
    let configs = &tls["common_tls_context"]["tls_certificate_sds_secret_configs"];
    configs.as_array().is_some_and(|all| all.len() > 1)
}

fn dns(san: &San) -> Option<String> {
    if let San::Dns(name) = san { Some(name.clone()) } else { None }
}

fn leaf(file: &Path) -> anyhow::Result<Leaf> {
    leaves(file)?.into_iter().next().with_context(|| format!("{} holds no certificate", file.display()))
}

fn leaves(file: &Path) -> anyhow::Result<Vec<Leaf>> {
    let pem = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let facts: Vec<Facts> = inspect_pem(&pem).with_context(|| file.display().to_string())?;
    Ok(facts.iter().map(Leaf::from).collect())
}

/// Envoy leaves out the zero that a serial may begin with.
fn serial(hex: &str) -> String {
    hex.trim_start_matches('0').to_ascii_lowercase()
}

fn resources(file: &Path) -> anyhow::Result<Vec<Value>> {
    let mut value = json(file)?;
    match value["resources"].take() {
        Value::Array(all) => Ok(all),
        _ => anyhow::bail!("{} is not as `gateway envoy --out` writes it", file.display()),
    }
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
