//! What the end-to-end cases share: a stack of their own each, and the bank's books to hold it against.

pub mod command;
pub mod load;
pub mod raw;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::Value;
use stack::{Binaries, Edge, EdgeRequest, Engines, Options, Payment, Progress, Service, Stack, User, follow};

/// No payment of a test takes longer than this to come to its end.
pub const LONGEST: Duration = Duration::from_secs(60);

/// Options for a stack of this test alone, under `target/e2e`. With `TORANA_EDGE=envoy` its edge is Envoy,
/// with `TORANA_ENGINES=fleet` it runs on PostgreSQL, Kafka and Redis.
pub fn options(test: &str) -> anyhow::Result<Options> {
    let target = stack::default_dir();
    let target = target.parent().context("the development folder lies in target")?;
    let (edge, folder) = match std::env::var("TORANA_EDGE").as_deref() {
        Ok("envoy") => (Edge::Envoy, "e2e-envoy"),
        Ok("gateway") | Err(_) => (Edge::Gateway, "e2e"),
        Ok(other) => anyhow::bail!("TORANA_EDGE is `gateway` or `envoy`, not `{other}`"),
    };
    let engines = match std::env::var("TORANA_ENGINES").as_deref() {
        Ok("fleet") => Engines::Fleet,
        Ok("embedded") | Err(_) => Engines::Embedded,
        Ok(other) => anyhow::bail!("TORANA_ENGINES is `embedded` or `fleet`, not `{other}`"),
    };
    Ok(Options::new(target.join(folder).join(test)).edge(edge).engines(engines))
}

/// Starts a stack for one test. The services were built before the tests: building takes but a moment.
pub async fn start(options: Options) -> anyhow::Result<Stack> {
    Stack::start(&Binaries::build().await?, options).await
}

/// An answer of the edge, read whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    /// Sends a request and reads its answer, which must be JSON.
    pub async fn to(stack: &Stack, request: &EdgeRequest) -> anyhow::Result<Self> {
        Self::read(request.send(stack.http()).await?).await
    }

    pub async fn read(response: reqwest::Response) -> anyhow::Result<Self> {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).with_context(|| format!("{status} with the body {text:?}"))?;
        Ok(Self { status, headers, body })
    }

    /// A header field's text, empty when it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The stable code of a refusal, empty when it is none.
    pub fn code(&self) -> &str {
        match self.header("content-type") {
            "application/problem+json" => self.text("code"),
            _ => "",
        }
    }

    pub fn text(&self, member: &str) -> &str {
        self.body.get(member).and_then(Value::as_str).unwrap_or_default()
    }
}

/// Sends a payment of this user and follows it to its end.
pub async fn pay(stack: &Stack, user: &User, payment: &Payment) -> anyhow::Result<(String, Progress)> {
    let answer = Answer::to(stack, &stack.payment(user, payment)?).await?;
    anyhow::ensure!(answer.status == 200, "{answer:?}");
    let id = answer.text("txnId").to_owned();
    let end = end_of(stack, user, &id).await?;
    Ok((id, end))
}

/// Follows a payment to its end.
pub async fn end_of(stack: &Stack, user: &User, id: &str) -> anyhow::Result<Progress> {
    let url = format!("{}/v1/transactions/{id}", stack.edge_url());
    follow(stack.http(), &url, &user.token, LONGEST, |_| ()).await
}

/// The simulated banks' books.
#[derive(Debug, Deserialize)]
pub struct Ledger {
    pub accounts: Vec<Account>,
    pub entries: Vec<Entry>,
    pub total_paise: i64,
    pub opening_total_paise: i64,
    pub balanced: bool,
}

#[derive(Debug, Deserialize)]
pub struct Account {
    pub vpa: String,
    pub balance_paise: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    pub txn_id: String,
    pub leg: String,
    #[serde(rename = "amount_paise")]
    pub amount_paise: i64,
}

impl Ledger {
    pub async fn of(stack: &Stack) -> anyhow::Result<Self> {
        Ok(stack.plain().get(stack.ledger_url()).send().await?.error_for_status()?.json().await?)
    }

    pub fn balance(&self, vpa: &str) -> i64 {
        self.accounts.iter().find(|account| account.vpa == vpa).map_or(0, |account| account.balance_paise)
    }

    /// What each payment moved out of the payer's account, into the payee's, and back, in paise. The other
    /// entry of each movement is the settlement account's and has the other sign.
    pub fn moved(&self) -> BTreeMap<&str, Moved> {
        let mut moved: BTreeMap<&str, Moved> = BTreeMap::new();
        for entry in &self.entries {
            let of_payment = moved.entry(entry.txn_id.as_str()).or_default();
            match (entry.leg.as_str(), entry.amount_paise > 0) {
                ("DEBIT", false) => of_payment.debits.push(-entry.amount_paise),
                ("CREDIT", true) => of_payment.credits.push(entry.amount_paise),
                ("REVERSAL_DEBIT", true) => of_payment.reversals.push(entry.amount_paise),
                (_, _) => {}
            }
        }
        moved
    }

    /// # Errors
    /// When money came from nowhere or went there, or a payment was debited twice.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.balanced, "the books do not balance");
        anyhow::ensure!(self.total_paise == self.opening_total_paise, "money is not conserved");
        for (id, moved) in self.moved() {
            anyhow::ensure!(moved.debits.len() <= 1, "{id} was debited {} times", moved.debits.len());
            anyhow::ensure!(moved.credits.len() <= 1, "{id} was credited {} times", moved.credits.len());
        }
        Ok(())
    }
}

/// The amounts that one payment moved.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moved {
    pub debits: Vec<i64>,
    pub credits: Vec<i64>,
    pub reversals: Vec<i64>,
}

impl Moved {
    /// The status that these books stand for, once everything has settled.
    pub fn status(&self) -> &'static str {
        match (self.debits.is_empty(), self.credits.is_empty(), self.reversals.is_empty()) {
            (false, false, true) => "COMPLETED",
            (false, true, false) => "REVERSED",
            (false, true, true) => "DEBITED",
            (true, true, true) => "FAILED",
            (_, _, _) => "a payment that no bank would book",
        }
    }
}

/// How often the network was called about payments, by API.
pub async fn calls(stack: &Stack) -> anyhow::Result<Value> {
    let url = format!("{}/calls", stack.admin_url(Service::NpciSim));
    Ok(stack.plain().get(url).send().await?.error_for_status()?.json().await?)
}

/// How many payments the core has made durable since it started.
pub async fn accepted(stack: &Stack) -> anyhow::Result<u64> {
    let url = format!("{}/metrics", stack.admin_url(Service::TxnCore));
    let text = stack.plain().get(url).send().await?.text().await?;
    let line = text.lines().find(|line| line.starts_with("txn_sends_total{result=\"new\"}"));
    Ok(line.and_then(|line| line.rsplit(' ').next()).map(str::parse).transpose()?.unwrap_or_default())
}
