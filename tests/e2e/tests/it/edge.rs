//! The edge as a network peer: protocols, traces, and what its logs and its neighbours' must never hold.

use std::sync::Arc;

use anyhow::Context as _;
use e2e::{Answer, Ledger, end_of, options, start};
use rustls::ProtocolVersion;
use stack::{Edge, Payment, Service, Stack};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

#[tokio::test]
async fn protocols_traces_logs_and_a_planned_stop() -> anyhow::Result<()> {
    let stack = start(options("edge")?).await?;
    protocols(&stack).await?;
    let openapi = stack.http().get(format!("{}/openapi.json", stack.edge_url())).send().await?;
    let openapi = Answer::read(openapi).await?;
    assert!(
        openapi.status == 200 && openapi.body["paths"]["/v1/transactions/send"].is_object(),
        "{openapi:?}"
    );
    trace_and_logs(&stack).await?;
    a_planned_stop_loses_nothing(&stack).await?;
    a_restart_forgets_no_nonce(&stack).await?;
    stack.stop().await;
    Ok(())
}

/// TLS 1.2 and 1.3, HTTP/1.1 and HTTP/2, in every combination, and nothing that is not encrypted.
async fn protocols(stack: &Stack) -> anyhow::Result<()> {
    let trust = certs::Trust::load(&stack.dir().join("pki/edge-ca.pem"))?;
    let port: u16 = stack.edge_url().rsplit(':').next().context("a port")?.parse()?;
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        for alpn in ["h2", "http/1.1"] {
            let mut tls = rustls::ClientConfig::builder_with_protocol_versions(&[version])
                .with_root_certificates(trust.roots())
                .with_no_client_auth();
            tls.alpn_protocols = vec![alpn.into()];
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
            let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
            let stream = connector.connect("localhost".try_into()?, stream).await?;
            let (_, session) = stream.get_ref();
            let expected = (Some(version.version), Some(alpn.as_bytes()));
            assert_eq!((session.protocol_version(), session.alpn_protocol()), expected);
            assert!(matches!(
                session.protocol_version(),
                Some(ProtocolVersion::TLSv1_2 | ProtocolVersion::TLSv1_3)
            ));
        }
    }
    let plain = stack.plain().get(format!("http://localhost:{port}/v1/transactions/x")).send().await;
    assert!(plain.is_err(), "plain HTTP was answered: {plain:?}");
    Ok(())
}

/// A caller's trace goes through every service; nobody's address, token or secret goes into a log.
async fn trace_and_logs(stack: &Stack) -> anyhow::Result<()> {
    let alice = stack.alice()?;
    let mut request = stack.payment(alice, &Payment::new("alice@torana", "bob@torana", "3.00"))?;
    let trace_id = "0af7651916cd43dd8448eb211c80319c";
    request.headers.push(("traceparent".into(), format!("00-{trace_id}-b7ad6b7169203331-01")));
    request.headers.push(("x-request-id".into(), "forged-by-the-client".into()));
    let answer = Answer::to(stack, &request).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    end_of(stack, alice, answer.text("txnId")).await?;
    // Paths are logged: this one holds an address, both plainly and encoded.
    for path in ["alice@torana", "alice%40torana"] {
        let url = format!("{}/v1/transactions/{path}", stack.edge_url());
        let answer = Answer::read(stack.http().get(url).bearer_auth(&alice.token).send().await?).await?;
        assert!(matches!(answer.status, 400 | 404), "{answer:?}");
    }

    let request_id = answer.header("x-request-id");
    let secrets = ["keys/psp-signing.key", "keys/network-signing.key"]
        .map(|file| std::fs::read_to_string(stack.dir().join(file)).unwrap());
    for service in Service::of(stack.edge()).iter().copied() {
        let log = std::fs::read_to_string(stack.dir().join(format!("logs/{}.log", service.name())))?;
        assert!(!log.is_empty(), "{} logs nothing", service.name());
        for line in log.lines() {
            serde_json::from_str::<serde_json::Value>(line)
                .with_context(|| format!("{} logs what is not JSON: {line}", service.name()))?;
        }
        for private in
            ["alice@torana", "alice%40torana", "bob@torana", "forged-by-the-client", alice.token.as_str()]
                .into_iter()
                .chain(secrets.iter().map(|secret| secret.trim()))
        {
            assert!(!log.contains(private), "the log of {} holds {private}", service.name());
        }
    }
    // What no route serves is answered and logged like anything else.
    let nothing =
        Answer::read(stack.http().get(format!("{}/nothing", stack.edge_url())).send().await?).await?;
    assert_eq!((nothing.status, nothing.header("x-content-type-options")), (404, "nosniff"), "{nothing:?}");
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let gateway = std::fs::read_to_string(stack.dir().join("logs/edge.log"))?;
    let line = gateway.lines().find(|line| line.contains(nothing.header("x-request-id")));
    assert!(line.is_some_and(|line| line.contains("127.0.0.1")), "who asked is not logged: {line:?}");
    let line =
        gateway.lines().find(|line| line.contains(request_id)).context("the request was not logged")?;
    assert!(line.contains(trace_id), "{line}");
    // Envoy cannot mask, so it is not told the path.
    let masked = stack.edge() == Edge::Envoy || gateway.contains("a***@torana");
    assert!(masked, "the address was not masked but lost");
    let core = std::fs::read_to_string(stack.dir().join("logs/txn-core.log"))?;
    assert!(core.contains(request_id) && core.contains(trace_id), "the trace ends at the core's door");
    Ok(())
}

/// SIGTERM: what is in flight is answered; what was answered ends. A client that is cut off asks again.
async fn a_planned_stop_loses_nothing(stack: &Stack) -> anyhow::Result<()> {
    let alice = stack.alice()?;
    for service in [Service::Edge, Service::TxnCore, Service::NpciProxy] {
        let mut sent = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let request = stack.payment(alice, &Payment::new("alice@torana", "bob@torana", "1.00"))?;
            let http = stack.http().clone();
            sent.spawn(async move { request.send(&http).await });
        }
        let restarted = stack.restart(service).await;
        let mut accepted = Vec::new();
        while let Some(answer) = sent.join_next().await {
            match answer? {
                Ok(response) if response.status().as_u16() == 200 => {
                    accepted.push(Answer::read(response).await?.text("txnId").to_owned());
                }
                Ok(response) => {
                    let answer = Answer::read(response).await?;
                    assert!(answer.status >= 500, "{answer:?}");
                }
                Err(_) => {}
            }
        }
        restarted?;
        for id in accepted {
            let end = end_of(stack, alice, &id).await?;
            assert_eq!(end.status, "COMPLETED", "{} was restarted", service.name());
        }
    }
    Ledger::of(stack).await?.check()
}

/// What was taken before the edge was restarted is not taken again, although its memory is gone.
async fn a_restart_forgets_no_nonce(stack: &Stack) -> anyhow::Result<()> {
    let payment = Payment::new("alice@torana", "bob@torana", "1.00");
    let request = loop {
        // Signed anew each time: the core was restarted a moment ago and may be left out for a second yet.
        let request = stack.payment(stack.alice()?, &payment)?;
        match Answer::to(stack, &request).await?.status {
            200 => break request,
            503 => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
            other => anyhow::bail!("{other}"),
        }
    };
    if stack.edge() == Edge::Envoy {
        stack.restart(Service::State).await?;
    }
    stack.restart(Service::Edge).await?;
    let replayed = Answer::to(stack, &request).await?;
    assert_eq!((replayed.status, replayed.code()), (401, "created_before_start"), "{replayed:?}");
    Ok(())
}

/// Nobody holds a connection for long without asking for something, and there are only so many of them.
#[tokio::test]
async fn connections_are_bounded() -> anyhow::Result<()> {
    let options = options("connections")?
        .set(Service::Edge, "/listeners/0/request_timeout_ms", 4_000.into())
        .set(Service::Edge, "/listeners/0/handshake_timeout_ms", 1_000.into())
        .set(Service::Edge, "/listeners/0/max_connections", 3.into());
    let stack = start(options).await?;
    let port: u16 = stack.edge_url().rsplit(':').next().context("a port")?.parse()?;
    let ca = stack.dir().join("pki/edge-ca.pem");

    // A header that comes byte by byte, and a client that says nothing at all: both are cut off.
    let mut dripping = e2e::raw::connect(port, &ca).await?;
    let drip = async {
        for byte in b"GET /v1/transactions/x HTTP/1.1\r\nx-slow: ".iter().chain(std::iter::repeat(&b'x')) {
            dripping.write_all(&[*byte]).await?;
            dripping.flush().await?;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        anyhow::Ok(())
    };
    let cut_off = tokio::time::timeout(e2e::LONGEST, drip).await;
    assert!(matches!(cut_off, Ok(Err(_))), "the edge waited for it");
    let mut silent = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    let said = tokio::time::timeout(e2e::LONGEST, silent.read(&mut [0; 1])).await?;
    assert!(matches!(said, Ok(0) | Err(_)), "the edge waited for a handshake: {said:?}");

    // Three hold their places; the fourth gets one when they are let go. Envoy lets nobody wait: it closes what is
    // too much.
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(e2e::raw::connect(port, &ca).await?);
    }
    let fourth = tokio::spawn({
        let ca = ca.clone();
        async move { e2e::raw::connect(port, &ca).await }
    });
    match stack.edge() {
        Edge::Gateway => {
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            assert!(!fourth.is_finished(), "the fourth of three connections was served");
            drop(held);
            fourth.await??;
        }
        Edge::Envoy => {
            let closed = match fourth.await? {
                Err(_) => true,
                Ok(mut stream) => {
                    let said = tokio::time::timeout(e2e::LONGEST, stream.read(&mut [0; 1])).await?;
                    matches!(said, Ok(0) | Err(_))
                }
            };
            assert!(closed, "the fourth of three connections was served");
        }
    }
    stack.stop().await;
    Ok(())
}
