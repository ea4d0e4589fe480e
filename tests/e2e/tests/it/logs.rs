//! Services go on when their log cannot be written.

use std::os::unix::fs::symlink;

use anyhow::Context as _;
use e2e::{Answer, end_of, options, start};
use stack::{Payment, Service};

/// On a full disk every write fails. Each service starts and works all the same, and counts the lines that it lost.
#[tokio::test]
async fn payments_complete_while_the_disk_under_the_logs_is_full() -> anyhow::Result<()> {
    let stack = start(options("logs")?).await?;
    for &instance in stack.instances() {
        stack.kill(instance);
        let log = stack.dir().join("logs").join(format!("{}.log", instance.name()));
        std::fs::remove_file(&log)?;
        symlink("/dev/full", &log)?;
        stack.resume(instance)?;
    }
    for &instance in stack.instances() {
        stack.ready(instance).await?;
    }
    engines::next_second().await;

    let alice = stack.alice()?;
    for _ in 0..3 {
        let payment = Payment::new("alice@torana", "bob@torana", "1");
        let accepted = Answer::to(&stack, &stack.payment(alice, &payment)?).await?;
        assert_eq!(accepted.status, 200, "{accepted:?}");
        assert_eq!(end_of(&stack, alice, accepted.text("txnId")).await?.status, "COMPLETED");
    }
    stack.check()?;
    for service in [Service::Edge, Service::TxnCore, Service::NpciProxy] {
        let url = format!("{}/metrics", stack.admin_url(service));
        let metrics = stack.plain().get(&url).send().await?.text().await?;
        let lost = metrics.lines().find_map(|line| line.strip_prefix("log_lines_lost_total "));
        let lost: u64 = lost.with_context(|| format!("{url} has no log_lines_lost_total"))?.parse()?;
        assert!(lost > 0, "{service:?} has lost no line");
    }
    stack.stop().await;
    Ok(())
}
