//! Every case, decided by the crate `filters` alone: quick, and what the data planes are compared with.

use std::time::{SystemTime, UNIX_EPOCH};

use filters::crypto::{CryptoError, Verify, VerifyingKey};
use parity::case::{Named, all};
use parity::in_process::InProcess;
use parity::mint::{Keys, Sent, Times};
use parity::replay::unexpected;

fn epoch_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() * 1_000
}

fn check(named: &Named, keys: &Keys) -> Result<(), String> {
    let epoch_ms = epoch_ms();
    let mut plane = InProcess::new(named, keys, epoch_ms).map_err(|why| format!("{why:#}"))?;
    for (step, number) in named.case.requests.iter().zip(1..) {
        let now_ms = epoch_ms + step.at_ms;
        let sent = Sent::new(step, keys, Times::new(epoch_ms, step.at_ms).unwrap()).unwrap();
        if step.raw.is_some() {
            continue;
        }
        if let Some(wanted) = &step.revoke {
            plane.revoke(wanted, now_ms).unwrap();
        }
        let mut outcomes = Vec::new();
        for _ in 0..step.times {
            let (outcome, held) = plane.begin(&sent, now_ms);
            if outcome.verdict.starts_with("429 ") && !held.is_empty() {
                return Err(format!("request {number}: refused, and gives back {held:?}"));
            }
            if !step.stays {
                plane.end(&held, now_ms);
            }
            outcomes.push(outcome);
        }
        let last = outcomes.last().ok_or("`times` is 0")?;
        if let Some(why) = unexpected(step, last) {
            return Err(format!("request {number}: {why}"));
        }
    }
    Ok(())
}

#[test]
fn every_case_of_every_filter_and_policy() {
    let keys = Keys::new().unwrap();
    let cases = all().unwrap();
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|named| {
            check(named, &keys).err().map(|why| format!("{}: {}: {why}", named.family, named.case.name))
        })
        .collect();
    assert!(failures.is_empty(), "{} of {} cases:\n{}", failures.len(), cases.len(), failures.join("\n"));
}

/// A data plane that can verify nothing.
#[derive(Debug)]
struct Unable;

impl Verify for Unable {
    fn verify(&self, key: &VerifyingKey, _message: &[u8], _signature: &[u8]) -> Result<(), CryptoError> {
        Err(CryptoError::Unsupported(key.algorithm()))
    }
}

/// Tokens and signatures are verified by the data plane's cryptography, not past it.
#[test]
fn the_data_plane_verifies() {
    let keys = Keys::new().unwrap();
    let epoch_ms = epoch_ms();
    for (filter, expected) in
        [("jwt", "503 token_not_verifiable"), ("signature", "503 signature_not_verifiable")]
    {
        let cases = all().unwrap();
        let passes = |named: &&Named| {
            let first = &named.case.requests[0];
            named.family == filter
                && first.verdict == "pass"
                && (first.token.is_some() || first.sign.is_some())
        };
        let named = cases.iter().find(passes).unwrap();
        let mut plane = InProcess::new(named, &keys, epoch_ms).unwrap().verified_by(&Unable);
        let sent = Sent::new(&named.case.requests[0], &keys, Times::new(epoch_ms, 0).unwrap()).unwrap();
        let verdict = plane.decide(&sent, epoch_ms).verdict;
        assert!(verdict == expected || verdict == "503 token_not_verifiable", "{filter}: {verdict}");
    }
}
