//! Phones under a bad sky: each sends payment after payment and, where no answer or none of substance comes, the same
//! payment again under its key, signed anew, at the other edge.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use e2e::Answer;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use stack::{EdgeRequest, Instance, Payment, Service, Stack, Twin, User};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// What was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Send,
    Find,
}

/// One request and what became of it.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) call: Call,
    pub(crate) began: Instant,
    pub(crate) ended: Instant,
    /// None: no answer came.
    pub(crate) answer: Option<Said>,
}

/// What matters of an answer.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) status: u16,
    /// Of a refusal.
    pub(crate) code: String,
    pub(crate) retry_after: Option<u64>,
}

/// What one key brought.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) key: String,
    pub(crate) amount_paise: i64,
    /// Of every 200; one, or something is wrong.
    pub(crate) txn_ids: BTreeSet<String>,
    /// A refusal that trying again does not change.
    pub(crate) refused: Option<Said>,
}

/// Everything that the clients saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) wanted: Vec<Wanted>,
}

const CLIENTS: u32 = 32;
/// Longer than the edge waits for the core.
const PATIENCE: Duration = Duration::from_secs(8);
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// After the load and the last fault: nobody tries for longer.
const GIVES_UP_AFTER: Duration = Duration::from_secs(60);
/// Of a hundred payments so many are asked for once, and so many sent again although they were answered.
const ASKED: u32 = 30;
const REPEATED: u32 = 10;
/// The network treats each of these in its own way; the first ones well.
const PAYEES: [&str; 16] = [
    "carol@okbank",
    "carol@okbank",
    "chai@okbank",
    "chai@okbank",
    "books@okbank",
    "books@okbank",
    "slow@okbank",
    "lazy@okbank",
    "silent@okbank",
    "duplicate@okbank",
    "replay@okbank",
    "credittimeout@okbank",
    "deemed@okbank",
    "reversal@okbank",
    "decline@okbank",
    "reject@okbank",
];

/// Pays at this rate until `over` turns true.
pub(crate) async fn load(
    stack: Arc<Stack>,
    seed: u64,
    rate: f64,
    over: watch::Receiver<bool>,
) -> anyhow::Result<Seen> {
    let every = Duration::from_secs_f64(f64::from(CLIENTS) / rate);
    let began = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        let client = Client {
            stack: Arc::clone(&stack),
            random: StdRng::seed_from_u64(seed ^ (u64::from(number) << 32)),
            edge: if number % 2 == 0 { Twin::First } else { Twin::Second },
            over: over.clone(),
            seen: Seen::default(),
        };
        clients.spawn(client.run(began + every / CLIENTS * number, every));
    }
    let mut all = Seen::default();
    while let Some(seen) = clients.join_next().await {
        let Seen { attempts, wanted } = seen??;
        all.attempts.extend(attempts);
        all.wanted.extend(wanted);
    }
    Ok(all)
}

struct Client {
    stack: Arc<Stack>,
    random: StdRng,
    edge: Twin,
    over: watch::Receiver<bool>,
    seen: Seen,
}

impl Client {
    async fn run(mut self, first: Instant, every: Duration) -> anyhow::Result<Seen> {
        let mut due = first;
        let mut over = self.over.clone();
        loop {
            tokio::select! {
                biased;
                _ = over.wait_for(|over| *over) => return Ok(self.seen),
                () = sleep_until(due) => {}
            }
            self.pay().await?;
            // Who waited for long does not hurry afterwards.
            due = (due + every).max(Instant::now());
        }
    }

    async fn pay(&mut self) -> anyhow::Result<()> {
        let stack = Arc::clone(&self.stack);
        let user = stack.users().choose(&mut self.random).context("the stack has users")?;
        let to = PAYEES.choose(&mut self.random).context("there are payees")?;
        let amount_paise = self.random.random_range(100..9_000);
        let amount = format!("{}.{:02}", amount_paise / 100, amount_paise % 100);
        let payment = Payment::new(&user.vpa, to, &amount);
        let key = payment.idempotency_key.clone();
        let mut wanted = Wanted { key, amount_paise, txn_ids: BTreeSet::new(), refused: None };
        self.send(user, &payment, &mut wanted).await?;
        if let Some(txn_id) = wanted.txn_ids.first().cloned() {
            if self.random.random_range(0..100) < REPEATED {
                self.turn_to_the_other_edge();
                self.send(user, &payment, &mut wanted).await?;
            }
            if self.random.random_range(0..100) < ASKED {
                let url = format!("{}/v1/transactions/{txn_id}", self.edge_url());
                let request = stack.http().get(url).bearer_auth(&user.token);
                self.attempt(Call::Find, request.send()).await;
            }
        }
        self.seen.wanted.push(wanted);
        Ok(())
    }

    /// Until there is an answer of substance.
    async fn send(&mut self, user: &User, payment: &Payment, wanted: &mut Wanted) -> anyhow::Result<()> {
        let stack = Arc::clone(&self.stack);
        let mut over_since = None;
        loop {
            let request = EdgeRequest::payment(self.edge_url(), &user.token, &user.device, payment)?;
            let request = request.signed(&user.device)?;
            let answer = self.attempt(Call::Send, request.send(stack.http())).await;
            let said = self.seen.attempts.last().and_then(|attempt| attempt.answer.as_ref());
            match (said.map(|said| said.status), answer) {
                (Some(200), Some(answer)) => {
                    wanted.txn_ids.insert(answer.text("txnId").to_owned());
                    return Ok(());
                }
                // Away, overloaded or still being answered; 401: signed before the memory of nonces began.
                (None | Some(401 | 409 | 429 | 500..), _) | (_, None) => {}
                (Some(status), Some(answer)) => {
                    let code = answer.code().to_owned();
                    wanted.refused = Some(Said { status, code, retry_after: None });
                    return Ok(());
                }
            }
            let wait = said.and_then(|said| said.retry_after).map_or(AGAIN_AFTER, Duration::from_secs);
            if *self.over.borrow() && over_since.get_or_insert_with(Instant::now).elapsed() > GIVES_UP_AFTER {
                return Ok(());
            }
            sleep(wait).await;
            self.turn_to_the_other_edge();
        }
    }

    async fn attempt(
        &mut self,
        call: Call,
        request: impl Future<Output = reqwest::Result<reqwest::Response>>,
    ) -> Option<Answer> {
        let began = Instant::now();
        let answer = timeout(PATIENCE, async { Answer::read(request.await?).await }).await;
        let answer = answer.ok().and_then(Result::ok);
        let said = answer.as_ref().map(|answer| Said {
            status: answer.status,
            code: answer.code().to_owned(),
            retry_after: answer.header("retry-after").parse().ok(),
        });
        self.seen.attempts.push(Attempt { call, began, ended: Instant::now(), answer: said });
        answer
    }

    fn edge_url(&self) -> &str {
        self.stack.url(Instance { service: Service::Edge, twin: self.edge })
    }

    fn turn_to_the_other_edge(&mut self) {
        self.edge = match self.edge {
            Twin::First => Twin::Second,
            Twin::Second => Twin::First,
        };
    }
}
