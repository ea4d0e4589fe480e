//! The network on its bad days: payments end as the banks' books say, and nobody else can end them.

use std::path::Path;
use std::time::Duration;

use e2e::{Answer, Ledger, end_of, options, start};
use filters::signature::digest::content_digest;
use filters::signature::message::{Algorithm, Message, Params, SigningKey, sign};
use serde_json::{Value, json};
use stack::{Payment, Service, Stack};

/// What the network does to a payment of this amount, how it must end, and what the books must say.
struct Fault {
    amount: &'static str,
    fault: Value,
    status: &'static str,
    books: &'static str,
}

fn faults() -> Vec<Fault> {
    let fault = |amount, fault, status, books| Fault { amount, fault, status, books };
    vec![
        fault(SILENT, json!({"kind": "silent"}), "COMPLETED", "COMPLETED"),
        fault("66.02", json!({"kind": "duplicate_callback"}), "COMPLETED", "COMPLETED"),
        fault("66.03", json!({"kind": "replayed_callback"}), "COMPLETED", "COMPLETED"),
        fault("66.04", json!({"kind": "bad_signature"}), "COMPLETED", "COMPLETED"),
        fault("66.05", json!({"kind": "bad_answer_signature"}), "COMPLETED", "COMPLETED"),
        fault("66.06", json!({"kind": "slow", "ms": 6000}), "COMPLETED", "COMPLETED"),
        fault("66.07", json!({"kind": "slow_settlement", "ms": 1500}), "COMPLETED", "COMPLETED"),
        fault("66.08", json!({"kind": "debit_timeout"}), "REVERSED", "REVERSED"),
        fault(
            "66.09",
            json!({"kind": "debit_then_credit_timeout", "ends": "reversed"}),
            "REVERSED",
            "REVERSED",
        ),
        fault("66.10", json!({"kind": "debit_then_credit_timeout", "ends": "deemed"}), "DEEMED", "COMPLETED"),
        fault("66.11", json!({"kind": "deemed"}), "DEEMED", "COMPLETED"),
        fault("66.12", json!({"kind": "reversal"}), "REVERSED", "REVERSED"),
        fault("66.13", json!({"kind": "decline", "code": "Z9"}), "FAILED", "FAILED"),
        fault("66.14", json!({"kind": "decline", "code": "ZA"}), "DECLINED", "FAILED"),
        fault("66.15", json!({"kind": "reject", "code": "U09"}), "FAILED", "FAILED"),
    ]
}

/// Settled by the network, which never says so: a status check must find out.
const SILENT: &str = "66.01";

/// Accepted by the network and then nothing, ever.
const UNSETTLED: &str = "66.99";

#[tokio::test]
async fn payments_end_as_the_books_say() -> anyhow::Result<()> {
    let mut rules: Vec<Value> =
        faults().into_iter().map(|f| json!({"match": {"amount": f.amount}, "fault": f.fault})).collect();
    rules.push(json!({"match": {"amount": UNSETTLED}, "fault": {"kind": "silent_unsettled"}}));
    let stack = start(options("network")?.set(Service::NpciSim, "/faults", Value::Array(rules))).await?;
    let alice = stack.alice()?;

    let unsettled = Payment::new("alice@torana", "bob@torana", UNSETTLED);
    let unsettled = Answer::to(&stack, &stack.payment(alice, &unsettled)?).await?.text("txnId").to_owned();

    let mut sent = Vec::new();
    for fault in faults() {
        let payment = Payment::new("alice@torana", "bob@torana", fault.amount);
        let answer = Answer::to(&stack, &stack.payment(alice, &payment)?).await?;
        assert_eq!(answer.status, 200, "{answer:?}");
        sent.push((fault, answer.text("txnId").to_owned()));
    }
    let silent = sent.iter().find(|(fault, _)| fault.amount == SILENT).map(|(_, id)| id.clone());
    let silent = silent.expect("it is among them");
    assert_eq!(history(&stack, &silent).await?, ["PENDING"], "nobody has said anything yet");

    let mut wrong = Vec::new();
    let mut ends = Vec::new();
    for (fault, id) in sent {
        match end_of(&stack, alice, &id).await {
            Ok(end) => ends.push((fault, id, end.status)),
            Err(why) => wrong.push(format!("{}: {why:#}", fault.fault)),
        }
    }
    let ledger = Ledger::of(&stack).await?;
    ledger.check()?;
    let moved = ledger.moved();
    for (fault, id, status) in ends {
        let books = moved.get(id.as_str()).map_or("FAILED", e2e::Moved::status);
        if (status.as_str(), books) != (fault.status, fault.books) {
            wrong.push(format!("{}: ended {status}, the books say {books}", fault.fault));
        }
    }
    let calls = e2e::calls(&stack).await?;
    assert!(calls["transactions"][&silent]["status"].as_u64() >= Some(1), "{calls}");
    for (id, counts) in calls["transactions"].as_object().into_iter().flatten() {
        let count = |api: &str| counts[api].as_u64().unwrap_or_default();
        // The network's budget: three status checks of a payment, and one sending.
        if count("status") > 3 || count("initiate") > 1 {
            wrong.push(format!("{id} went over the budget: {counts}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));

    only_the_network_calls_back(&stack).await?;
    status_checks_end(&stack, &unsettled).await?;
    stack.stop().await;
    Ok(())
}

/// A payment that the network never settles: three checks and no more, and then it still is not known how it
/// ends. The development stack's checks are 3, 8 and 16 seconds after the sending.
async fn status_checks_end(stack: &Stack, id: &str) -> anyhow::Result<()> {
    let checks = async || {
        let calls = e2e::calls(stack).await?;
        anyhow::Ok(calls["transactions"][id]["status"].as_u64().unwrap_or_default())
    };
    let until = tokio::time::Instant::now() + e2e::LONGEST;
    while checks().await? < 3 && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let metric = "txn_unresolved_total";
    while !flagged(stack, metric).await? && tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(flagged(stack, metric).await?, "nobody is told that {id} must be reconciled");
    assert_eq!((checks().await?, history(stack, id).await?), (3, vec!["PENDING".to_owned()]));
    Ok(())
}

async fn flagged(stack: &Stack, metric: &str) -> anyhow::Result<bool> {
    let url = format!("{}/metrics", stack.admin_url(Service::TxnCore));
    let text = stack.plain().get(url).send().await?.text().await?;
    let line = text.lines().find(|line| line.starts_with(metric) && !line.starts_with('#'));
    Ok(line.is_some_and(|line| !line.ends_with(" 0")))
}

/// A payment that the network never settles: whoever claims that it is settled must be the network.
async fn only_the_network_calls_back(stack: &Stack) -> anyhow::Result<()> {
    let alice = stack.alice()?;
    let payment = Payment::new("alice@torana", "bob@torana", UNSETTLED);
    let answer = Answer::to(stack, &stack.payment(alice, &payment)?).await?;
    let id = answer.text("txnId").to_owned();
    let network = Caller::with(stack, "network-ca", Some("network"))?;

    for (who, ca, identity) in [
        ("nobody in particular", "network-ca", None),
        ("somebody of another CA", "network-ca", Some("partner")),
        ("a service of ours", "network-ca", Some("gateway")),
    ] {
        let caller = Caller::with(stack, ca, identity)?;
        let told = caller.call(&caller.callback(&id, "DEBIT", "m-forged", now_s())?).await;
        assert!(told.is_err(), "{who} was heard: {told:?}");
    }

    let callback = network.callback(&id, "DEBIT", "m-forged", now_s())?;
    let mut unsigned = callback.clone();
    unsigned.retain(|(name, _)| !name.starts_with("signature"));
    let mut changed = callback.clone();
    for (name, value) in &mut changed {
        if name == "body" {
            *value = value.replace("DEBIT", "FINAL");
        }
    }
    let other_key =
        Caller { key: SigningKey::hmac(&[9; 32])?, ..Caller::with(stack, "network-ca", Some("network"))? };
    for (what, request, code) in [
        ("unsigned", unsigned, "signature_missing"),
        ("changed after signing", changed, "digest_mismatch"),
        ("by another key", other_key.callback(&id, "DEBIT", "m-forged", now_s())?, "signature_invalid"),
        ("too old", network.callback(&id, "DEBIT", "m-forged", now_s() - 3_600)?, "created_too_old"),
        (
            "from the future",
            network.callback(&id, "DEBIT", "m-forged", now_s() + 3_600)?,
            "created_in_future",
        ),
    ] {
        let answer = network.call(&request).await?;
        assert_eq!((answer.status / 100, answer.code()), (4, code), "{what}: {answer:?}");
    }
    assert_eq!(history(stack, &id).await?, ["PENDING"], "a forged callback changed the payment");

    // The network's own: taken once, whether it repeats the bytes or the news.
    assert_eq!(network.call(&callback).await?.status, 200);
    let after = history(stack, &id).await?;
    assert_eq!(after, ["PENDING", "DEBITED"]);
    let replayed = network.call(&callback).await?;
    assert_eq!((replayed.status / 100, replayed.code()), (4, "nonce_replayed"), "{replayed:?}");
    let repeated = network.call(&network.callback(&id, "DEBIT", "m-forged", now_s())?).await?;
    assert_eq!(repeated.status, 200, "{repeated:?}");
    assert_eq!(history(stack, &id).await?, after, "news told twice had two effects");
    Ok(())
}

/// The public states that a payment went through.
async fn history(stack: &Stack, id: &str) -> anyhow::Result<Vec<String>> {
    let url = format!("{}/v1/transactions/{id}", stack.edge_url());
    let token = &stack.alice()?.token;
    let answer = Answer::read(stack.http().get(url).bearer_auth(token).send().await?).await?;
    let mut states: Vec<String> = answer.body["history"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|step| step["status"].as_str().map(str::to_owned))
        .collect();
    states.dedup();
    Ok(states)
}

/// Somebody who calls the network's door into Torana.
struct Caller {
    http: reqwest::Client,
    url: String,
    key: SigningKey,
}

/// Header fields, and under `body` the body.
type Fields = Vec<(String, String)>;

impl Caller {
    fn with(stack: &Stack, ca: &str, identity: Option<&str>) -> anyhow::Result<Self> {
        let pki = stack.dir().join("pki");
        let pem = |name: &str, ending: &str| pki.join(format!("{name}.{ending}"));
        let trust = certs::Trust::load(&pem(ca, "pem"))?;
        let identity =
            identity.map(|name| certs::Identity::load(&pem(name, "pem"), &pem(name, "key"))).transpose()?;
        let tls = certs::client_config(&trust, identity.as_ref(), certs::Versions::Tls13Only)?;
        let limits = certs::client::ClientLimits { timeout: Duration::from_secs(5), ..Default::default() };
        let secret = std::fs::read_to_string(stack.dir().join("keys/network-signing.key"))?;
        Ok(Self {
            http: certs::client::https(tls, limits)?,
            url: format!(
                "https://localhost:{}/v1/callback",
                outside_port(&stack.dir().join("config/npci-proxy.yaml"))?
            ),
            key: SigningKey::hmac(&hex(secret.trim()))?,
        })
    }

    fn callback(&self, id: &str, stage: &str, message: &str, created: i64) -> anyhow::Result<Fields> {
        let body = json!({
            "msgId": format!("NPC{:0>32}", message.replace('-', "")), "txnId": id, "stage": stage,
            "result": "SUCCESS", "code": "00", "rrn": "123456789012", "at": "2026-01-01T00:00:00.000Z",
        })
        .to_string();
        let mut fields: Fields = vec![
            ("content-type".into(), "application/json".into()),
            ("content-digest".into(), content_digest(body.as_bytes())),
        ];
        let mut params = Params::covering(&["@method", "@path", "@query", "content-digest", "content-type"])?;
        params.created = Some(created);
        params.nonce = Some(uuid::Uuid::new_v4().simple().to_string());
        params.keyid = Some("npci".into());
        params.alg = Some(Algorithm::HmacSha256);
        let message = Message::request("POST", "https", "localhost", "/v1/callback", None, &fields);
        let signed = sign(&message, "sig1", &params, &self.key)?;
        fields.push(("signature-input".into(), signed.signature_input));
        fields.push(("signature".into(), signed.signature));
        fields.push(("body".into(), body));
        Ok(fields)
    }

    async fn call(&self, fields: &Fields) -> anyhow::Result<Answer> {
        let mut request = self.http.post(&self.url);
        for (name, value) in fields {
            request = match name.as_str() {
                "body" => request.body(value.clone()),
                _ => request.header(name, value),
            };
        }
        Answer::read(request.send().await?).await
    }
}

fn outside_port(config: &Path) -> anyhow::Result<u16> {
    let text = std::fs::read_to_string(config)?;
    let listen = text.split("outside:").nth(1).and_then(|rest| rest.split("listen:").nth(1));
    let address = listen.and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    Ok(address.parse::<std::net::SocketAddr>()?.port())
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).filter_map(|at| u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()).collect()
}

fn now_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
