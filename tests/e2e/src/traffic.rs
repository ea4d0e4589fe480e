//! Steady traffic through the edge, on connections that stay and on new ones, and every answer that was none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use stack::Stack;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};

const PER_S: u64 = 500;
/// Clients, each with requests at a steady pace and one connection at a time.
const CLIENTS: u64 = 20;
/// Every other client takes a new connection after so many requests.
const A_CONNECTION: u64 = 10;

/// Traffic until it is ended.
#[derive(Debug)]
pub struct Traffic {
    over: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    began: Instant,
    clients: JoinSet<Vec<String>>,
}

/// What became of it.
#[derive(Debug)]
pub struct Sent {
    pub answered: u64,
    pub per_s: u64,
    /// Each request that got no answer, or another than it must, with its reason.
    pub failed: Vec<String>,
}

impl Traffic {
    /// 500 questions a second after a payment that does not exist: through the edge to the core and its store, and
    /// 404 back.
    pub fn start(stack: &Stack) -> anyhow::Result<Traffic> {
        let alice = stack.alice()?;
        let url = format!("{}/v1/transactions/{}", stack.edge_url(), "TOR0123456789ABCDEF0123456789ABCDEF");
        let ca = certs::Trust::load(&stack.dir().join("pki/edge-ca.pem"))?;
        let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut clients = JoinSet::new();
        let began = Instant::now();
        for client in 0..CLIENTS {
            let (over, answered) = (Arc::clone(&over), Arc::clone(&answered));
            let (url, token, ca) = (url.clone(), alice.token.clone(), ca.clone());
            let new = move || -> anyhow::Result<reqwest::Client> {
                let tls = certs::client_config(&ca, None, certs::Versions::Tls12And13)?;
                Ok(certs::client::https(tls, certs::client::ClientLimits::default())?)
            };
            let mut http = new()?;
            clients.spawn(async move {
                let mut failed = Vec::new();
                let mut fails =
                    |why: String| failed.push(format!("after {} ms: {why}", began.elapsed().as_millis()));
                let mut pace = interval(Duration::from_micros(1_000_000 * CLIENTS / PER_S));
                pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
                let mut sent = 0;
                while !over.load(Ordering::Relaxed) {
                    pace.tick().await;
                    sent += 1;
                    if client % 2 == 0 && sent % A_CONNECTION == 0 {
                        match new() {
                            Ok(client) => http = client,
                            Err(error) => fails(error.to_string()),
                        }
                    }
                    match http.get(&url).bearer_auth(&token).send().await {
                        Ok(answer) if answer.status() == reqwest::StatusCode::NOT_FOUND => {
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(answer) => {
                            let status = answer.status();
                            fails(format!("{status} {}", answer.text().await.unwrap_or_default()));
                        }
                        Err(error) => fails(format!("{error:?}")),
                    }
                }
                failed
            });
        }
        Ok(Traffic { over, answered, began, clients })
    }

    /// Milliseconds since it began, as failures are told.
    pub fn ms(&self) -> u128 {
        self.began.elapsed().as_millis()
    }

    /// How many requests were answered until now.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Ends it after what is in flight.
    pub async fn end(self) -> Sent {
        self.over.store(true, Ordering::Relaxed);
        let failed = self.clients.join_all().await.concat();
        let answered = self.answered.load(Ordering::Relaxed);
        let ms = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        Sent { answered, per_s: answered * 1_000 / ms, failed }
    }
}
