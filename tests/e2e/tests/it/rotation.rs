//! Certificates are rotated while requests flow: nothing fails, and what is shown is the new one.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use certs::pki::crl::{self, Reason};
use certs::pki::{Authority, Leaf};
use certs::report::Report;
use certs::{Identity, Trust, Versions, client_config};
use e2e::load::{Load, Outcome, PER_S, Target, ask, shown};
use e2e::{calls, options, start};
use serde_json::json;
use stack::{Edge, Service, Stack};
use time::ext::NumericalDuration as _;
use tokio::io::AsyncReadExt as _;

const ROTATIONS: usize = 10;
/// What the least machine that others use too must reach with a development build.
const LEAST_PER_S: f64 = 100.0;
/// Within which what was written must be in use: the second that is promised, and one for a machine that has others to
/// serve.
const PROMISED: Duration = Duration::from_secs(2);
/// More than long enough for anything here; the figures that are printed say how long it took.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_edge_and_its_upstream_are_renewed_under_load() -> anyhow::Result<()> {
    let options = options("rotation-edge")?;
    if options.edge == Edge::Envoy {
        return Ok(());
    }
    let stack = start(options).await?;
    let mut load = Load::of_questions(&stack).await?;

    let mut rounds = Vec::new();
    for _ in 0..ROTATIONS {
        // Both sides of the way to the upstream, too.
        issue(&stack, "internal-ca", "gateway")?;
        issue(&stack, "internal-ca", "txn-core")?;
        let (written, serial) = (Instant::now(), issue(&stack, "edge-ca", "edge")?);
        let first = until("the new certificate is shown", async || {
            load.check()?;
            Ok(load.first_shown(&serial))
        })
        .await?;
        rounds.push((serial, written, first));
        until("others connect after that", async || {
            load.check()?;
            Ok((load.connected_since(first) >= 3).then_some(()))
        })
        .await?;
    }
    let outcome = load.stop().await?;

    let mut slowest = Duration::ZERO;
    for (index, (serial, written, first)) in rounds.iter().enumerate() {
        slowest = slowest.max(first.duration_since(*written));
        let end = rounds.get(index + 1).map(|(_, written, _)| *written);
        let later: Vec<_> = outcome.shown.iter().filter(|shown| shown.is_within(*first, end)).collect();
        assert!(!later.is_empty(), "round {index}: nobody connected");
        assert!(later.iter().all(|shown| shown.serial_hex == *serial), "round {index}: {later:?}");
    }
    assert_eq!(outcome.closed, 0, "no connection was closed");
    tell("edge", &outcome, slowest);
    for (service, sets) in [(Service::Edge, 2), (Service::TxnCore, 1)] {
        let report = report(&stack, service).await?;
        let failures = report.listeners.iter().map(|listener| &listener.reloads);
        let failures = failures.chain(report.clients.iter().map(|client| &client.reloads));
        assert!(failures.clone().count() >= sets, "{report:?}");
        assert!(failures.into_iter().all(|reloads| reloads.last_failure.is_none()), "{report:?}");
    }
    stack.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_networks_client_certificate_is_renewed_under_load() -> anyhow::Result<()> {
    let stack = start(options("rotation-network")?).await?;
    let body = json!({ "vpa": "bob@torana", "msgId": format!("TOR{:032}", 1) }).to_string();
    let request = format!(
        "POST /v1/validateVPA HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let port = port(stack.url(Service::NpciProxy))?;
    let folder = pki(&stack);
    let load = Load::start(PER_S, move || {
        let trust = Trust::load(&folder.join("internal-ca.pem"))?;
        let identity = Identity::load(&folder.join("txn-core.pem"), &folder.join("txn-core.key"))?;
        let tls = Arc::new(client_config(&trust, Some(&identity), Versions::Tls13Only)?);
        Ok(Target { port, tls, request: request.clone() })
    });
    let mut load = load.await?;

    let mut slowest = Duration::ZERO;
    let mut serials: Vec<String> = Vec::new();
    for _ in 0..ROTATIONS {
        let (written, serial) = (Instant::now(), issue(&stack, "network-ca", "psp")?);
        until("the network sees the new certificate", async || {
            load.check()?;
            Ok((came_with(&stack, &serial).await? > 0).then_some(()))
        })
        .await?;
        slowest = slowest.max(written.elapsed());
        // What was in flight on the old connection ends; nothing new goes out on it.
        tokio::time::sleep(Duration::from_millis(250)).await;
        let old = count(&stack, &serials).await?;
        tokio::time::sleep(Duration::from_millis(250)).await;
        assert_eq!(count(&stack, &serials).await?, old, "a retired connection was used");
        serials.push(serial);
    }
    let outcome = load.stop().await?;
    tell("network", &outcome, slowest);
    let report = report(&stack, Service::NpciProxy).await?;
    let network = report.clients.iter().find(|client| client.name == "network").context("no network")?;
    assert_eq!(network.serving.as_ref().map(|leaf| &leaf.serial_hex), serials.last());
    stack.stop().await;
    Ok(())
}

/// Partners come with certificates. One of them is revoked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_client_is_refused_by_the_edge_and_cut_off() -> anyhow::Result<()> {
    let options = options("rotation-revoked")?;
    if options.edge == Edge::Envoy {
        return Ok(());
    }
    let folder = options.dir.join("pki");
    let stack = start(options).await?;

    let target = |name: Option<&str>| -> anyhow::Result<Target> {
        let at = |name: &str, ending: &str| folder.join(format!("{name}.{ending}"));
        let trust = Trust::load(&at("edge-ca", "pem"))?;
        let identity = name.map(|name| Identity::load(&at(name, "pem"), &at(name, "key"))).transpose()?;
        let tls = Arc::new(client_config(&trust, identity.as_ref(), Versions::Tls12And13)?);
        let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned();
        Ok(Target { port: port(stack.edge_url())?, tls, request })
    };
    issue_as(&stack, "partner-ca", "partner", "other")?;
    let (lost, other, phone) = (target(Some("partner"))?, target(Some("other"))?, target(None)?);
    let (mut open, mut stays, mut anonymous) =
        (lost.connect().await?, other.connect().await?, phone.connect().await?);
    ask(&mut open, &lost.request).await?;

    let (_, serial) = serial_of(&folder.join("partner.pem"))?;
    let written = Instant::now();
    let ca = authority(&stack, "partner-ca")?;
    crl::revoke(&folder.join("partner-ca.crl"), &ca, &[serial], Reason::KeyCompromise, 1.days())?;
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(PATIENCE, open.read_to_end(&mut rest)).await;
    closed.context("its open connection was not closed")?.ok();
    let after = written.elapsed();
    eprintln!("revoked: its open connection was closed after {after:?}");
    assert!(after < PROMISED, "its open connection was closed after {after:?}");

    let refused = async {
        let mut connection = lost.connect().await?;
        ask(&mut connection, &lost.request).await
    };
    let told = format!("{:#}", refused.await.unwrap_err());
    assert!(told.contains("CertificateRevoked"), "{told}");
    ask(&mut stays, &other.request).await.context("another partner")?;
    ask(&mut anonymous, &phone.request).await.context("who has no certificate")?;
    assert_eq!(shown(&other.connect().await?)?.serial_hex, serial_of(&folder.join("edge.pem"))?.0);
    stack.stop().await;
    Ok(())
}

/// A bad day: what an operator's mistakes put beside a running edge.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_files_change_nothing_at_the_gateway_and_are_counted() -> anyhow::Result<()> {
    bad_files(Edge::Gateway, Service::Edge, "rotation-bad-files").await
}

/// The state service refuses them, and Envoy is handed nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_files_change_nothing_at_envoy_and_are_counted() -> anyhow::Result<()> {
    bad_files(Edge::Envoy, Service::State, "rotation-bad-files-envoy").await
}

/// `follows` is who follows the files of `edge`.
async fn bad_files(edge: Edge, follows: Service, folder: &str) -> anyhow::Result<()> {
    let stack = start(options(folder)?.edge(edge)).await?;
    let at = |name: &str| pki(&stack).join(name);
    let (certificate, key, list) = (at("edge.pem"), at("edge.key"), at("partner-ca.crl"));
    let files = [&certificate, &key, &list];
    let kept = files.map(std::fs::read);
    let kept = kept.into_iter().collect::<Result<Vec<_>, _>>()?;
    let (serial, _) = serial_of(&certificate)?;
    let ca = authority(&stack, "edge-ca")?;
    let like = || Leaf::new("edge.torana.test", &["edge.torana.test", "localhost", "127.0.0.1", "::1"]);
    let now = time::OffsetDateTime::now_utc();
    let put =
        |leaf: &Leaf| Ok(ca.issue(leaf).and_then(|issued| issued.write(&pki(&stack), "edge")).map(drop)?);
    let half = |index: usize| kept[index][..kept[index].len() / 2].to_vec();
    type Spoil<'s> = Box<dyn Fn() -> anyhow::Result<()> + 's>;
    // The set, the reason, and what is done.
    let cases: [(&str, &str, Spoil<'_>); 12] = [
        (
            "public",
            "key_mismatch",
            Box::new(|| Ok(std::fs::write(&certificate, ca.issue(&like())?.certificate_pem)?)),
        ),
        ("public", "bad_pem", Box::new(|| Ok(std::fs::write(&certificate, half(0))?))),
        (
            "public",
            "expired",
            Box::new(|| put(&Leaf { not_before: now - 9.days(), not_after: now - 1.days(), ..like() })),
        ),
        ("public", "not_yet_valid", Box::new(|| put(&Leaf { not_before: now + 1.hours(), ..like() }))),
        ("public", "name_missing", Box::new(|| put(&Leaf::new("edge.torana.test", &["edge.torana.test"])))),
        ("public", "no_certificate", Box::new(|| Ok(std::fs::write(&certificate, "")?))),
        (
            "public",
            "not_a_file",
            Box::new(|| {
                std::fs::remove_file(&certificate)?;
                Ok(std::fs::create_dir(&certificate)?)
            }),
        ),
        ("public", "too_large", Box::new(|| Ok(std::fs::File::create(&certificate)?.set_len(1 << 30)?))),
        // Whoever runs as root is refused nothing, so the file is not there instead.
        ("public", "unreadable", Box::new(|| Ok(std::fs::remove_file(&key)?))),
        (
            "public",
            "loose_key",
            Box::new(|| Ok(std::fs::set_permissions(&key, Permissions::from_mode(0o644))?)),
        ),
        ("public/clients", "bad_pem", Box::new(|| Ok(std::fs::write(&list, half(2))?))),
        (
            "public/clients",
            "bad_crl",
            // Of a CA that signs no clients here.
            Box::new(|| Ok(std::fs::copy(at("internal-ca.crl"), &list).map(drop)?)),
        ),
    ];
    let trust = Trust::load(&at("edge-ca.pem"))?;
    let target = |identity: Option<&Identity>| -> anyhow::Result<Target> {
        let tls = Arc::new(client_config(&trust, identity, Versions::Tls12And13)?);
        let request = "GET /openapi.json HTTP/1.1\r\nhost: localhost\r\n\r\n".to_owned();
        Ok(Target { port: port(stack.edge_url())?, tls, request })
    };
    let partner = Identity::load(&at("partner.pem"), &at("partner.key"))?;
    let (edge, partner) = (target(None)?, target(Some(&partner))?);
    for (set, reason, spoil) in cases {
        spoil()?;
        let line = format!(r#"cert_reload_failures_total{{name="listener/{set}",reason="{reason}"}} 1"#);
        until(reason, async || Ok(metrics(&stack, follows).await?.contains(&line).then_some(()))).await?;
        assert_eq!(shown(&edge.connect().await?)?.serial_hex, serial, "{reason}");
        ask(&mut partner.connect().await?, &partner.request).await.context(reason)?;
        let report = report(&stack, follows).await?;
        let failure = public(&report)?.reloads.last_failure.clone().context("no failure is told")?;
        let named =
            ["edge.pem", "edge.key", "partner-ca.crl"].iter().any(|file| failure.reason.contains(file));
        assert!(named, "{reason}: {failure:?}");
        let log = std::fs::read_to_string(stack.dir().join(format!("logs/{}.log", follows.name())))?;
        let told = log.lines().rfind(|line| line.contains("new files are refused"));
        assert!(told.is_some_and(|line| line.contains(&format!("\"listener/{set}\""))), "{reason}: {told:?}");

        if certificate.is_dir() {
            std::fs::remove_dir(&certificate)?;
        }
        for (file, bytes) in files.into_iter().zip(&kept) {
            std::fs::write(file, bytes)?;
        }
        std::fs::set_permissions(&key, Permissions::from_mode(0o600))?;
        until("the old files are back", async || {
            let report = self::report(&stack, follows).await?;
            Ok(public(&report)?.reloads.last_failure.is_none().then_some(()))
        })
        .await?;
    }
    stack.stop().await;
    Ok(())
}

fn public(report: &Report) -> anyhow::Result<&certs::report::Listener> {
    report.listeners.iter().find(|listener| listener.name == "public").context("no listener")
}

fn pki(stack: &Stack) -> PathBuf {
    stack.dir().join("pki")
}

fn authority(stack: &Stack, name: &str) -> anyhow::Result<Authority> {
    let at = |ending: &str| pki(stack).join(format!("{name}.{ending}"));
    Ok(Authority::load(&at("pem"), &at("key"))?)
}

/// Renews a certificate in its place, with a new key; gives the serial.
fn issue(stack: &Stack, ca: &str, name: &str) -> anyhow::Result<String> {
    issue_as(stack, ca, name, name)
}

fn issue_as(stack: &Stack, ca: &str, like: &str, name: &str) -> anyhow::Result<String> {
    let pem = std::fs::read(pki(stack).join(format!("{like}.pem")))?;
    let facts = certs::inspect_pem(&pem)?.into_iter().next().context("no certificate")?;
    let names: Vec<_> = facts.sans.iter().map(|san| san.to_string()).collect();
    let names: Vec<_> = names.iter().filter_map(|name| name.split_once(':')).map(|(_, name)| name).collect();
    let issued = authority(stack, ca)?.issue(&Leaf::new(facts.subject.trim_start_matches("CN="), &names))?;
    issued.write(&pki(stack), name)?;
    let facts = certs::inspect_pem(issued.certificate_pem.as_bytes())?.into_iter().next();
    Ok(facts.context("no certificate")?.serial_hex)
}

/// As text, and as bytes.
fn serial_of(pem: &Path) -> anyhow::Result<(String, Vec<u8>)> {
    let facts = certs::inspect_pem(&std::fs::read(pem)?)?;
    let serial = facts.first().context("no certificate")?.serial_hex.clone();
    let bytes = (0..serial.len()).step_by(2).map(|at| u8::from_str_radix(&serial[at..at + 2], 16));
    let bytes = bytes.collect::<Result<_, _>>()?;
    Ok((serial, bytes))
}

fn port(url: &str) -> anyhow::Result<u16> {
    Ok(url.rsplit(':').next().context("a port")?.parse()?)
}

async fn report(stack: &Stack, service: Service) -> anyhow::Result<Report> {
    let url = format!("{}/certificates", stack.admin_url(service));
    Ok(stack.plain().get(url).send().await?.error_for_status()?.json().await?)
}

async fn metrics(stack: &Stack, service: Service) -> anyhow::Result<String> {
    let url = format!("{}/metrics", stack.admin_url(service));
    Ok(stack.plain().get(url).send().await?.text().await?)
}

/// Requests that the network has had with a certificate.
async fn came_with(stack: &Stack, serial_hex: &str) -> anyhow::Result<u64> {
    Ok(calls(stack).await?["certificates"][serial_hex].as_u64().unwrap_or_default())
}

async fn count(stack: &Stack, serials: &[String]) -> anyhow::Result<u64> {
    let mut all = 0;
    for serial in serials {
        all += came_with(stack, serial).await?;
    }
    Ok(all)
}

async fn until<T>(what: &str, mut so: impl AsyncFnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = so().await? {
            return Ok(value);
        }
        anyhow::ensure!(begun.elapsed() < PATIENCE, "{what}: it did not come to pass");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn tell(what: &str, outcome: &Outcome, slowest: Duration) {
    let Outcome { answered, per_s, closed: _, shown } = outcome;
    eprintln!(
        "{what}: {answered} requests, {per_s:.0} a second, {} new connections, none failed; a new certificate was \
         shown at the latest after {slowest:?}",
        shown.len()
    );
    // A load that hardly asks would prove nothing.
    assert!(*answered > 500 && *per_s >= LEAST_PER_S, "{answered} requests, {per_s:.0} a second");
    // From then on every new one was: that is looked at where they are.
    assert!(slowest < PROMISED, "a new certificate was shown after {slowest:?}");
}
