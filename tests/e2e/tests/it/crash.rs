//! `kill -9` of each service in turn, under load: what was accepted ends, as the banks' books say.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use e2e::{Answer, Ledger, end_of, options, start};
use stack::{Edge, Payment, Service, Stack};

const CLIENTS: usize = 8;
/// Load before the kill, while the service is away, and after it is back.
const PHASE: Duration = Duration::from_millis(1_500);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_accepted_ends_whoever_dies() -> anyhow::Result<()> {
    let stack = Arc::new(start(options("crash")?).await?);
    let mut accepted = BTreeSet::new();
    let state = (stack.edge() == Edge::Envoy).then_some(Service::State);
    for victim in [Service::TxnCore, Service::NpciProxy, Service::Edge].into_iter().chain(state) {
        let over = Arc::new(AtomicBool::new(false));
        let mut clients = tokio::task::JoinSet::new();
        for client in 0..CLIENTS {
            clients.spawn(load(Arc::clone(&stack), client, Arc::clone(&over)));
        }
        tokio::time::sleep(PHASE).await;
        stack.kill(victim);
        tokio::time::sleep(PHASE).await;
        stack.restart(victim).await?;
        tokio::time::sleep(PHASE).await;
        over.store(true, Ordering::Relaxed);
        let before = accepted.len();
        while let Some(ids) = clients.join_next().await {
            accepted.extend(ids??);
        }
        assert!(accepted.len() > before, "nothing was accepted around the death of {}", victim.name());
    }

    let alice = stack.alice()?;
    let mut ends = Vec::new();
    for id in &accepted {
        ends.push((id, end_of(&stack, alice, id).await?.status));
    }
    let ledger = Ledger::of(&stack).await?;
    ledger.check()?;
    let moved = ledger.moved();
    let mut counts = std::collections::BTreeMap::<_, u32>::new();
    for (id, status) in ends {
        let books = moved.get(id.as_str()).map_or("FAILED", e2e::Moved::status);
        assert_eq!(status, books, "{id}");
        *counts.entry(status).or_default() += 1;
    }
    println!("{} payments accepted, all ended as the books say: {counts:?}", accepted.len());
    assert!(counts.get("COMPLETED") > counts.get("FAILED"), "most were lost on the way: {counts:?}");
    Ok(())
}

/// Sends payment after payment and remembers which were accepted. One without an answer is sent again under
/// the same idempotency key, as a careful client does.
async fn load(stack: Arc<Stack>, client: usize, over: Arc<AtomicBool>) -> anyhow::Result<Vec<String>> {
    let user = &stack.users()[client % stack.users().len()];
    let to = &stack.users()[(client + 1) % stack.users().len()];
    let mut accepted = Vec::new();
    for number in 1_u32.. {
        if over.load(Ordering::Relaxed) {
            break;
        }
        let payment = Payment::new(&user.vpa, &to.vpa, &format!("{}.{:02}", 1 + number % 90, number % 100));
        for _ in 0..50 {
            let sent = stack.payment(user, &payment)?.send(stack.http()).await;
            match sent {
                Ok(response) if response.status().as_u16() == 200 => {
                    accepted.push(Answer::read(response).await?.text("txnId").to_owned());
                    break;
                }
                // Away, overloaded or still in flight: nothing is known, so ask again.
                // 401: signed before the edge was started again.
                Ok(response) if matches!(response.status().as_u16(), 401 | 409 | 429 | 502..=504) => {}
                Ok(response) => anyhow::bail!("{:?}", Answer::read(response).await?),
                Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(accepted)
}
