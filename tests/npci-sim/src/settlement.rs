//! Lets payments settle in their time and tells the payment service provider, again and again until it
//! acknowledges or the attempts are used up.

use std::{sync::Arc, time::Duration};

use certs::{Live, Versions, Watch, client::ClientLimits};
use http::HeaderMap;
use npci_proxy::{
    codec::CALLBACK_PATH,
    network::{base_url, tls_to},
    seal::{Asked, Mark},
    wire::{Ack, Callback, CallbackAck, Id},
};
use tokio::sync::Semaphore;

use crate::{calls::Call, fault::Fault, sim::Sim};

const CALLBACKS_AT_ONCE: usize = 128;

#[derive(Debug)]
pub struct Settler {
    sim: Arc<Sim>,
    client: Live<reqwest::Client>,
    url: String,
    slots: Semaphore,
}

#[derive(Debug, thiserror::Error)]
pub enum SettlerError {
    #[error("callback.url must be https://host:port and nothing after it")]
    Url,
    #[error("callback.tls: {0}")]
    Certificates(#[from] certs::CertError),
}

/// A signed callback, as bytes: what a replay sends again.
#[derive(Clone)]
struct Sealed {
    headers: HeaderMap,
    mark: Mark,
}

impl Settler {
    pub fn new(sim: Arc<Sim>, watch: &Watch) -> Result<Settler, SettlerError> {
        let config = &sim.config.callback;
        let tls = tls_to("callback", &config.url, &config.tls, watch)?;
        let limits =
            ClientLimits { timeout: Duration::from_millis(config.timeout_ms), ..ClientLimits::default() };
        Ok(Settler {
            client: tls.client(watch, Versions::Tls13Only, limits)?,
            url: format!("{}{CALLBACK_PATH}", base_url(&config.url).ok_or(SettlerError::Url)?),
            slots: Semaphore::new(CALLBACKS_AT_ONCE),
            sim,
        })
    }

    pub fn sim(&self) -> &Sim {
        &self.sim
    }

    /// Takes the payment through its steps. The number of payments is bounded by the network's limit.
    pub fn settle(self: &Arc<Self>, txn_id: Id, after_ms: u64) {
        let settler = Arc::clone(self);
        tokio::spawn(async move {
            let fault = settler.sim.network().fault_of_txn(&txn_id);
            let mut after_ms = Some(after_ms);
            while let Some(wait_ms) = after_ms {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                let Ok(msg_id) = format!("NPC{}", uuid::Uuid::new_v4().simple()).parse() else { return };
                let advanced = settler.sim.network().advance(&txn_id, msg_id, settler.sim.clock.now_ms());
                if let Some(news) = advanced.news {
                    // Settlement does not wait for the provider to listen.
                    let (settler, fault) = (Arc::clone(&settler), fault.clone());
                    tokio::spawn(async move { settler.tell(news, fault).await });
                }
                after_ms = advanced.next_after_ms;
            }
        });
    }

    async fn tell(&self, news: Callback, fault: Option<Fault>) {
        let Ok(body) = serde_json::to_vec(&news) else { return };
        let config = &self.sim.config.callback;
        let mut wait_ms = config.retry_ms;
        for attempt in 1..=config.attempts {
            let Some(sealed) = self.seal(&body, fault.as_ref()) else { return };
            if self.send(&news, &body, &sealed).await {
                match fault {
                    Some(Fault::DuplicateCallback) => {
                        if let Some(again) = self.seal(&body, None) {
                            self.send(&news, &body, &again).await;
                        }
                    }
                    Some(Fault::ReplayedCallback) => {
                        self.send(&news, &body, &sealed).await;
                    }
                    _ => {}
                }
                return;
            }
            if attempt < config.attempts {
                tokio::time::sleep(Duration::from_millis(wait_ms)).await;
                wait_ms = wait_ms.saturating_mul(2).min(config.retry_max_ms);
            }
        }
        tracing::warn!(txn_id = %news.txn_id, msg_id = %news.msg_id, "callback given up");
    }

    fn seal(&self, body: &[u8], fault: Option<&Fault>) -> Option<Sealed> {
        let signer = if fault == Some(&Fault::BadSignature) { &self.sim.forger } else { &self.sim.signer };
        let (mut headers, mark) = (HeaderMap::new(), Mark::fresh(self.sim.clock.now_ms()));
        match signer.sign_request(("POST", CALLBACK_PATH), &mut headers, body, &mark) {
            Ok(()) => Some(Sealed { headers, mark }),
            Err(error) => {
                tracing::error!(%error, "a callback could not be signed");
                None
            }
        }
    }

    /// Whether the provider acknowledged, in an answer that it signed for this very callback.
    async fn send(&self, news: &Callback, body: &[u8], sealed: &Sealed) -> bool {
        let Ok(_slot) = self.slots.acquire().await else { return false };
        self.sim.calls().count(Call::CallbackAttempt, Some(news.txn_id.as_str()));
        let request =
            self.client.current().post(&self.url).headers(sealed.headers.clone()).body(body.to_vec());
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => {
                tracing::debug!(txn_id = %news.txn_id, error = %error.without_url(), "callback not answered");
                self.sim.calls().callback_answered(None);
                return false;
            }
        };
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        self.sim.calls().callback_answered(Some(status));
        let Ok(answer) = response.bytes().await else { return false };
        if status != 200 {
            tracing::debug!(txn_id = %news.txn_id, status, "callback not acknowledged");
            return false;
        }
        let asked = Asked { method: "POST", path: CALLBACK_PATH, nonce: &sealed.mark.nonce };
        let now_ms = self.sim.clock.now_ms();
        if let Err(broken) = self.sim.verifier.verify_answer(asked, status, &headers, &answer, now_ms) {
            tracing::warn!(txn_id = %news.txn_id, %broken, "the acknowledgement is not the provider's");
            return false;
        }
        serde_json::from_slice::<CallbackAck>(&answer)
            .is_ok_and(|ack| ack.msg_id == news.msg_id && ack.ack == Ack::Accepted)
    }
}
