//! A payment that goes well, and the same request again.

use e2e::{Answer, Ledger, end_of, options, pay, start};
use stack::Payment;

#[tokio::test]
async fn accepted_completed_and_replayed() -> anyhow::Result<()> {
    let stack = start(options("payment")?).await?;
    let alice = stack.alice()?;
    let before = Ledger::of(&stack).await?;

    let payment = Payment::new("alice@torana", "bob@torana", "150.75");
    let first = Answer::to(&stack, &stack.payment(alice, &payment)?).await?;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.text("status"), "PENDING");
    let id = first.text("txnId").to_owned();
    assert_eq!((id.len(), first.text("pollUri")), (35, format!("/v1/transactions/{id}").as_str()));
    assert!(first.header("idempotency-replayed").is_empty());
    for field in ["x-request-id", "ratelimit", "ratelimit-policy", "strict-transport-security"] {
        assert!(!first.header(field).is_empty(), "{field} is missing: {:?}", first.headers);
    }

    let end = end_of(&stack, alice, &id).await?;
    assert_eq!(end.status, "COMPLETED", "{end:?}");

    // The same request again, signed anew as a client that never saw the answer would.
    let again = Answer::to(&stack, &stack.payment(alice, &payment)?).await?;
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.header("idempotency-replayed"), "true");

    let other = Payment { amount: "150.76".into(), ..payment.clone() };
    let reused = Answer::to(&stack, &stack.payment(alice, &other)?).await?;
    assert_eq!((reused.status, reused.code()), (422, "idempotency_key_reused"), "{reused:?}");

    let after = Ledger::of(&stack).await?;
    after.check()?;
    assert_eq!(before.balance("alice@torana") - after.balance("alice@torana"), 15_075);
    assert_eq!(after.balance("bob@torana") - before.balance("bob@torana"), 15_075);
    assert_eq!(after.moved().len(), 1, "one payment, whatever was sent: {:?}", after.moved());

    // Twenty at once with one key: one payment, and everybody who is answered 200 gets the same answer.
    let payment = Payment::new("alice@torana", "bob@torana", "1");
    let mut sent = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let (request, http) = (stack.payment(alice, &payment)?, stack.http().clone());
        sent.spawn(async move { Answer::read(request.send(&http).await?).await });
    }
    let mut ids = std::collections::BTreeSet::new();
    while let Some(answer) = sent.join_next().await {
        let answer = answer??;
        match answer.status {
            200 => drop(ids.insert(answer.text("txnId").to_owned())),
            409 => assert_eq!(answer.code(), "idempotency_in_flight"),
            _ => panic!("{answer:?}"),
        }
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    let id = ids.first().map(String::as_str).unwrap_or_default();
    assert_eq!(end_of(&stack, alice, id).await?.status, "COMPLETED");
    assert_eq!(Ledger::of(&stack).await?.moved().len(), 2);

    what_others_may_see(&stack, id).await?;
    stack.stop().await;
    Ok(())
}

/// A payment is its tenant's business; whose it is, others are not told even that it exists.
async fn what_others_may_see(stack: &stack::Stack, id: &str) -> anyhow::Result<()> {
    let alice = stack.alice()?;
    let url = format!("{}/v1/transactions/{id}", stack.edge_url());
    let mut claims = stack.claims("mallory", &["mallory@torana"], &alice.device)?;
    claims.tenant = "other".into();
    let stranger = stack.issuer().mint(&claims)?;
    for (token, expected) in [(alice.token.as_str(), (200, "")), (&stranger, (404, "transaction_not_found"))]
    {
        let answer = Answer::read(stack.http().get(&url).bearer_auth(token).send().await?).await?;
        assert_eq!((answer.status, answer.code()), expected, "{answer:?}");
    }
    let (_, end) = pay(stack, alice, &Payment::new("alice@torana", "bob@torana", "2.50")).await?;
    assert_eq!(end.status, "COMPLETED");
    Ok(())
}
