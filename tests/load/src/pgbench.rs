//! What pgbench gets from a PostgreSQL: a payment, its key and its outgoing event as one prepared statement.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, ensure};
use engines::Postgres;
use tokio::process::Command;

/// Ids count up for each client, which is the kindest order for the indexes; keys are random, as hashes are.
const SCRIPT: &str = r#"
\set n :n + 1
\set k random(1, 9000000000000000000)
WITH id AS (
    SELECT ('00000000-0000-7000-' || lpad(to_hex(:client_id::int + 32768), 4, '0') || '-' || lpad(to_hex(:n::int), 12, '0'))::uuid AS id
), key AS (
    INSERT INTO idempotency (key_hash, fingerprint, txn_id, created_at)
    SELECT int8send(:k::bigint) || int8send(:k::bigint) || int8send(:k::bigint) || int8send(:k::bigint), '\x0707070707070707070707070707070707070707070707070707070707070707', id, now()
    FROM id ON CONFLICT DO NOTHING RETURNING txn_id
), txn AS (
    INSERT INTO transactions (txn_id, created_at, updated_at, send_by, amount_paise, version, sends, checks, psp,
        tenant, subject, device_id, from_vpa, to_vpa, note, state, status)
    SELECT txn_id, now(), now(), now(), 15075, 1, 0, 0, 'TOR', 'acme', 'user-1', 'device-1', 'alice@torana',
        'bob@torana', 'Lunch', 'created', 'PENDING' FROM key
)
INSERT INTO outbox_events (event_id, aggregate_id, created_at, lane, psp, event_type, payload)
SELECT txn_id, txn_id, now(), :client_id::int % 32, 'TOR', 'TransactionInitiated',
    '{"v":1,"eventId":"0198c0de-0000-7000-8000-000000000000","type":"TransactionInitiated","txnId":"TOR0198c0de0000700080000000000000ff","tenant":"acme","at":"2026-11-24T12:00:00.000Z","trace":{},"data":{"version":1,"status":"PENDING","fromVPA":"alice@torana","toVPA":"bob@torana","amount":"150.75"}}'
FROM key;
"#;

/// Payments a second with so many clients.
pub(crate) async fn run(postgres: &Postgres, dir: &Path, clients: u32, seconds: u32) -> anyhow::Result<f64> {
    let script = dir.join("payment.sql");
    std::fs::write(&script, SCRIPT)?;
    let output = Command::new(postgres.binaries().join("pgbench"))
        .args(["--no-vacuum", "--protocol=prepared", "--jobs=2", "--define=n=0"])
        .arg(format!("--client={clients}"))
        .arg(format!("--time={seconds}"))
        .arg("--file")
        .arg(&script)
        .args(["-h", &postgres.address().ip().to_string(), "-p", &postgres.address().port().to_string()])
        .args(["-U", "postgres", "bench"])
        .stdin(Stdio::null())
        .output()
        .await
        .context("pgbench")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "pgbench: {}{said}", String::from_utf8_lossy(&output.stderr));
    let tps = said.lines().find_map(|line| line.strip_prefix("tps = ")).context("pgbench gave no tps")?;
    Ok(tps.split(' ').next().unwrap_or_default().parse()?)
}
