//! The page for a security team, `certs/README.md`: every command in it that says so is run, in its order, against a
//! stack under traffic. No request may fail, the rollover of a CA among them.

use std::path::Path;

use e2e::load::Load;
use e2e::options;
use stack::{Binaries, Edge, Stack};

/// The blocks that begin with ```` ```sh run ````.
fn blocks(page: &str) -> Vec<&str> {
    let after = page.split("\n```sh run\n").skip(1);
    after.map(|rest| rest.split_once("\n```").unwrap().0).collect()
}

#[test]
fn only_what_says_so_is_run() {
    assert_eq!(blocks("a\n```sh run\nb\nc\n```\n```sh\nd\n```\n```sh run\ne\n```\n"), ["b\nc", "e"]);
}

async fn run(edge: Edge, folder: &str) -> anyhow::Result<()> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../certs/README.md"))?;
    let blocks = blocks(&page);
    assert!(blocks.len() >= 8, "{} blocks to run", blocks.len());
    let binaries = Binaries::build().await?;
    let stack = Stack::start(&binaries, options(folder)?.edge(edge)).await?;
    let path = format!("{}:{}", binaries.folder().display(), std::env::var("PATH")?);
    let load = Load::of_questions(&stack).await?;
    for block in blocks {
        let began = load.ms();
        let mut command = tokio::process::Command::new("bash");
        command.args(["-euo", "pipefail", "-c", block]).current_dir(stack.dir()).env("PATH", &path);
        let output = command.kill_on_drop(true).output().await?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{block}\n{out}\n{err}");
        eprintln!("from {began} to {} ms: {}", load.ms(), block.lines().next().unwrap());
    }
    // Whoever keeps to the routine is never late with a list: who is let in depends on it.
    for ca in ["internal", "edge", "network", "partner"] {
        let list = stack.dir().join(format!("pki/{ca}-ca.crl"));
        let ends = certs::pki::crl::next_update(&list)?;
        let month = time::OffsetDateTime::now_utc() + time::Duration::days(30);
        assert!(ends.is_some_and(|at| at > month), "{} ends at {ends:?}", list.display());
    }
    let sent = load.stop().await?;
    eprintln!("{} answered, {:.0} a second, {} connections drained", sent.answered, sent.per_s, sent.closed);
    // Envoy drains all of a listener's when a client of it is revoked; the gateway knows whose to close.
    assert_eq!(sent.closed > 0, edge == Edge::Envoy, "{} connections drained", sent.closed);
    stack.check()?;
    stack.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_holds_with_the_gateway() -> anyhow::Result<()> {
    run(Edge::Gateway, "security-page").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_holds_with_envoy() -> anyhow::Result<()> {
    run(Edge::Envoy, "security-page-envoy").await
}
