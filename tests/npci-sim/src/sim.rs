//! What the listeners share: the network's books behind a lock, its keys, and the counts.

use std::sync::{Mutex, MutexGuard, PoisonError};

use certs::Watch;
use npci_proxy::{
    clock::Clock,
    expiring::Expiring,
    freshness,
    seal::{CannotSign, Signer, Verifier},
    secret::Secret,
};

use crate::{calls::Calls, config::Config, network::Network, pin::PinError};

#[derive(Debug)]
pub struct Sim {
    pub config: Config,
    pub clock: Clock,
    pub signer: Signer,
    /// The right key id and a wrong key, for faults.
    pub forger: Signer,
    pub verifier: Verifier,
    pub freshness: freshness::Rules,
    network: Mutex<Network>,
    calls: Mutex<Calls>,
    pub seen: Mutex<Expiring<String, ()>>,
}

#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error("sign or verify: {0}")]
    Keys(#[from] certs::CertError),
    #[error(transparent)]
    Key(#[from] CannotSign),
    #[error(transparent)]
    Pin(#[from] PinError),
}

impl Sim {
    /// `watch` follows its keys.
    pub fn new(config: Config, clock: Clock, watch: &Watch) -> Result<Sim, SimError> {
        let ours = config.sign.follow("ours", config.folder(), watch)?;
        let providers = config.verify.follow("provider", config.folder(), watch)?;
        let forged = Secret::random();
        let freshness = freshness::Rules {
            window_ms: config.front.window_ms,
            nonces: config.front.nonces,
            ..freshness::Rules::default()
        };
        Ok(Sim {
            signer: Signer::new(&ours),
            forger: Signer::hmac(config.sign.first_id(), &forged)?,
            verifier: Verifier::new(&providers),
            freshness,
            network: Mutex::new(Network::new(
                &config.accounts,
                &config.faults,
                config.settlement,
                config.limits,
            )?),
            calls: Mutex::new(Calls::default()),
            seen: Mutex::new(Expiring::new(freshness.remember_ms(), freshness.nonces)),
            clock,
            config,
        })
    }

    // A panic while one of these is held fails the test that caused it; the others may go on.
    pub fn network(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything as at the beginning.
    pub fn reset(&self) {
        self.network().reset(&self.config.accounts, &self.config.faults);
        *self.calls() = Calls::default();
    }
}
