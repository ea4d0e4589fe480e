//! What proves a step: clients say whom they trust, listeners are tried with a client of each root and asked for
//! the leaf that they serve.

use certs::pki::{Authority, Issued, Leaf};
use certs::report::Report;
use serde::Serialize;
use std::path::PathBuf;
use time::OffsetDateTime;

use super::Steps;
use crate::command::fleet::same_file;
use crate::command::status::name_of;
use crate::command::{causes, probe};

#[derive(Debug, Serialize)]
pub(super) struct Part {
    pub(super) service: String,
    pub(super) part: String,
    pub(super) proven: bool,
    pub(super) found: String,
}

/// Whom everybody is expected to believe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Believed {
    Both,
    NewAlone,
}

impl Steps {
    /// Whether everybody who trusts the CA's file believes whom they should: clients say so, listeners are tried with
    /// a certificate of each root.
    pub(super) async fn trust(
        &self,
        reports: &[Report],
        old: &Authority,
        new: &Authority,
        believed: Believed,
    ) -> anyhow::Result<Vec<Part>> {
        let ours = |file: &Option<PathBuf>| file.as_deref().is_some_and(|file| same_file(file, &self.ca.ca));
        let wanted = [(old, believed == Believed::Both), (new, true)];
        let mut parts: Vec<Part> = self.nobody(reports).into_iter().collect();
        for report in reports {
            for client in report.clients.iter().filter(|client| ours(&client.ca)) {
                let has = |root: &Authority| {
                    client.trusted.iter().any(|ca| ca.serial_hex == root.facts().serial_hex)
                };
                let trusted: Vec<&str> = client.trusted.iter().map(|ca| ca.subject.as_str()).collect();
                parts.push(Part {
                    service: report.service.clone(),
                    part: format!("client {}", client.name),
                    proven: wanted.iter().all(|(root, wanted)| has(root) == *wanted),
                    found: format!("trusts {}", trusted.join(", ")),
                });
            }
            for listener in report.listeners.iter().filter(|listener| ours(&listener.client_ca)) {
                let (mut proven, mut found) = (true, Vec::new());
                for (root, wanted) in wanted {
                    let said =
                        probe::lets_in(listener.address, name_of(listener), &probe_client(root)?).await?;
                    proven &= said.is_ok() == wanted;
                    let said = said.map_or_else(|why| format!("refuses it: {why}"), |()| "lets it in".into());
                    found.push(format!("{} {said}", root.facts().subject));
                }
                parts.push(Part {
                    service: report.service.clone(),
                    part: format!("listener {} on {}, with a client of", listener.name, listener.address),
                    proven,
                    found: found.join(", of "),
                });
            }
        }
        Ok(parts)
    }

    /// What stands in the way when nobody who was asked trusts the CA's file: then nothing would be proven.
    pub(super) fn nobody(&self, reports: &[Report]) -> Option<Part> {
        let ours = |file: &Option<PathBuf>| file.as_deref().is_some_and(|file| same_file(file, &self.ca.ca));
        let trusts = |report: &Report| {
            report.clients.iter().any(|client| ours(&client.ca))
                || report.listeners.iter().any(|listener| ours(&listener.client_ca))
        };
        let found = format!(
            "trusts {}; compare the paths in `certs status`, or say --believed-elsewhere",
            self.ca.ca.display()
        );
        (!self.believed_elsewhere && !reports.iter().any(trusts)).then(|| Part {
            service: "nobody".into(),
            part: "who was asked".into(),
            proven: false,
            found,
        })
    }

    /// Whether everybody who served a leaf of the old root serves one of the new.
    pub(super) async fn serve(
        &self,
        reports: &[Report],
        old: &Authority,
        new: &Authority,
    ) -> anyhow::Result<Vec<Part>> {
        let (old, new) = (&old.facts().subject, &new.facts().subject);
        let ours = |issuer: &String| issuer == old || issuer == new;
        let mut parts = Vec::new();
        for report in reports {
            for listener in report.listeners.iter().filter(|listener| ours(&listener.serving.issuer)) {
                let served = probe::served(listener.address, name_of(listener)).await;
                let issuer = served.map_or_else(|error| causes(&error), |served| served.leaf.issuer);
                parts.push(Part {
                    service: report.service.clone(),
                    part: format!("listener {} on {}", listener.name, listener.address),
                    proven: issuer == *new,
                    found: format!("serves a leaf of {issuer}"),
                });
            }
            for client in &report.clients {
                let Some(leaf) = client.serving.as_ref().filter(|leaf| ours(&leaf.issuer)) else { continue };
                parts.push(Part {
                    service: report.service.clone(),
                    part: format!("client {}", client.name),
                    proven: leaf.issuer == *new && client.reloads.last_failure.is_none(),
                    found: format!("shows a leaf of {}", leaf.issuer),
                });
            }
        }
        Ok(parts)
    }
}

/// A certificate that a root issues to try a listener with: valid for minutes, and nobody's name.
fn probe_client(root: &Authority) -> anyhow::Result<Issued> {
    let not_after = OffsetDateTime::now_utc() + time::Duration::minutes(5);
    Ok(root.issue(&Leaf { not_after, ..Leaf::new("certs-probe", &["certs-probe.invalid"]) })?)
}
