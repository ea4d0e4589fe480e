//! Who serves a request: by share, by version, and by who is there to serve it; and what a copy is.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc, oneshot};

use crate::running::issuer::Issuer;
use crate::running::{Gateway, Recorder, TLS, free_port, pki, raw_upstream, serve, until};

#[tokio::test]
async fn requests_are_shared_by_weight_and_chosen_by_version() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let (u, v) = (Recorder::start(folder.path(), "u").await, Recorder::start(folder.path(), "v").await);
    let policy = format!(
        r#"
upstreams:
  u: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
  v: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
routes:
  - {{ name: shared, methods: [GET], path: /shared, upstreams: [{{ upstream: u, weight: 3 }}, {{ upstream: v, weight: 1 }}] }}
  - {{ name: v1, methods: [GET], path: /things, version: "1", upstream: u }}
  - {{ name: v2, methods: [GET], path: /things, version: "2", upstream: v }}
"#,
        u.port, v.port
    );
    let gateway = serve(folder.path(), &policy).await;
    for (fields, expected) in [
        (&[("x-api-version", "1")][..], (200, "u")),
        (&[("x-api-version", "2")], (200, "v")),
        (&[("accept", "application/vnd.torana.v2+json")], (200, "v")),
        (&[], (400, "version_unknown")),
    ] {
        let (status, told) = gateway.get("/things", fields).await;
        assert_eq!((status, told.as_str()), expected, "{fields:?}");
    }
    let before = (u.seen(), v.seen());
    for _ in 0..400 {
        assert_eq!(gateway.get("/shared", &[]).await.0, 200);
    }
    let (u, v) = (u.seen() - before.0, v.seen() - before.1);
    // Of 400 some 100; fewer than 50 or more than 160 come once in 10^8.
    assert!(u + v == 400 && (50..=160).contains(&v), "{u} and {v}");
}

/// Two gateways that know nothing of each other send a sender to the same upstream, whatever else is another.
#[tokio::test]
async fn who_sticks_is_served_alike_by_every_gateway_and_counted_by_variant() {
    const SENDERS: usize = 40;
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let issuer = Issuer::new(folder.path());
    let (u, v) = (Recorder::start(folder.path(), "u").await, Recorder::start(folder.path(), "v").await);
    let tried = |by: &str, filters: &str| {
        format!(
            "  - name: by-{by}\n    methods: [GET]\n    path: /by-{by}\n    \
             upstreams: [{{ upstream: u, weight: 1, variant: control }}, {{ upstream: v, weight: 1, variant: fast }}]\n    \
             sticky: {by}\n    experiment: speed-{by}\n    filters: {{ {filters} }}\n"
        )
    };
    let policy = format!(
        r#"
upstreams:
  u: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
  v: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
trusted_proxies: [127.0.0.0/8]
issuers: {{ main: {{ issuer: "https://i", audiences: [a], algorithms: [ES256], jwks: {{ file: "file:jwks.json" }} }} }}
tenants: {{ {} }}
routes:
{}{}{}"#,
        u.port,
        v.port,
        (0..=SENDERS).map(|number| format!("tenant-{number}: {{}}")).collect::<Vec<_>>().join(", "),
        tried("ip", "ip_access: {}"),
        tried("user", "ip_access: {}, jwt: {}"),
        tried("tenant", "ip_access: {}, jwt: {}, tenant: {}"),
    );
    let first = serve(folder.path(), &policy).await;
    let second = serve(folder.path(), &policy).await;
    for by in ["ip", "user", "tenant"] {
        let path = format!("/by-{by}");
        let mut served = [0, 0];
        for sender in 0..SENDERS {
            let mut told: Option<(u16, String)> = None;
            for (other, gateway) in [&first, &second, &first].into_iter().enumerate() {
                // The one by whom it sticks is the same each time, and of the others each is another.
                let of = |what: &str| if what == by { sender } else { SENDERS - other };
                // A user is one of a tenant.
                let tenant = format!("tenant-{}", if by == "user" { 0 } else { of("tenant") });
                let bearer = issuer.bearer(&format!("user-{}", of("user")), &tenant);
                let address = format!("192.0.2.{}", of("ip"));
                let fields = [("x-forwarded-for", address.as_str()), ("authorization", bearer.as_str())];
                let fields = if by == "ip" { &fields[..1] } else { &fields[..] };
                let now = gateway.get(&path, fields).await;
                let before = told.get_or_insert_with(|| now.clone());
                assert_eq!((200, &now), (now.0, &*before), "{by} {sender}");
            }
            served[usize::from(told.unwrap().1 == "v")] += 1;
        }
        assert!(!served.contains(&0), "{by}: all stick to one");
        let of = async |gateway: &Gateway, variant: &str| {
            let line = format!(
                r#"gateway_experiment_requests_total{{experiment="speed-{by}",status="200",variant="{variant}"}}"#
            );
            gateway.metric(&line).await
        };
        for (variant, served) in ["control", "fast"].into_iter().zip(served) {
            let counted = (of(&first, variant).await, of(&second, variant).await);
            assert_eq!(counted, (2.0 * f64::from(served), f64::from(served)), "{by}: {variant}");
        }
    }
}

#[tokio::test]
async fn a_copy_is_marked_and_costs_the_original_nothing() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let u = Recorder::start(folder.path(), "u").await;
    let (copy, copied) = oneshot::channel();
    let copy = Arc::new(Mutex::new(Some(copy)));
    let shadow = raw_upstream(folder.path(), move |asked, mut stream| {
        let copy = Arc::clone(&copy);
        async move {
            copy.lock().unwrap().take()?.send(asked).ok()?;
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok()?;
            stream.flush().await.ok()
        }
    })
    .await;
    let (heard, mut hears) = mpsc::unbounded_channel();
    let silent = raw_upstream(folder.path(), move |asked, stream| {
        let heard = heard.clone();
        async move { heard.send((asked, stream)).ok() }
    })
    .await;
    let policy = format!(
        r#"
upstreams:
  u: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
  shadow: {{ addresses: ["127.0.0.1:{shadow}"], tls: {TLS} }}
  silent: {{ addresses: ["127.0.0.1:{silent}"], tls: {TLS} }}
  dead: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
routes:
  - {{ name: copied, methods: [GET], path: /copied, upstream: u, mirror: {{ upstream: shadow }} }}
  - {{ name: unheard, methods: [GET], path: /unheard, upstream: u, timeout_ms: 600000, mirror: {{ upstream: silent }} }}
  - {{ name: lost, methods: [GET], path: /lost, upstream: u, mirror: {{ upstream: dead }} }}
"#,
        u.port,
        free_port(),
    );
    let gateway = serve(folder.path(), &policy).await;
    for path in ["/copied", "/lost"] {
        assert_eq!(gateway.get(path, &[]).await, (200, "u".to_owned()));
    }
    let copied = copied.await.unwrap();
    assert!(copied.starts_with("GET /copied ") && copied.contains("\r\nx-torana-mirror: 1\r\n"), "{copied}");
    until("its answer is read", async || {
        gateway.metric("gateway_mirrored_total{outcome=\"sent\"}").await == 1.0
    })
    .await;
    until("the lost one is counted", async || {
        gateway.metric("gateway_mirrored_total{outcome=\"failed\"}").await == 1.0
    })
    .await;
    assert_eq!(u.seen(), 2);
    // Whoever gets the copy holds on to it, and the answer is there all the same.
    assert_eq!(gateway.get("/unheard", &[]).await, (200, "u".to_owned()));
    let (copy, _held) = hears.recv().await.unwrap();
    assert!(copy.contains("\r\nx-torana-mirror: 1\r\n"), "{copy}");
    let original: serde_json::Value =
        gateway.http.get(format!("{}/unheard", gateway.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(original["x-torana-mirror"], serde_json::Value::Null, "only the copy is marked");
}

/// Nobody hears it, so nobody keeps it, and it does not go on for ever.
#[tokio::test]
async fn whoever_answers_a_copy_without_end_is_hung_up_on() {
    // Much more than is read, and than is on its way between the two.
    const MOST_BYTES: usize = 128 << 20;
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let u = Recorder::start(folder.path(), "u").await;
    let (said, mut says) = mpsc::unbounded_channel();
    let endless = raw_upstream(folder.path(), move |_, mut stream| {
        let said = said.clone();
        async move {
            let piece = vec![b'x'; 64 << 10];
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
            let mut bytes = 0;
            while bytes < MOST_BYTES && stream.write_all(&piece).await.is_ok() {
                bytes += piece.len();
            }
            said.send(bytes).ok()
        }
    })
    .await;
    let policy = format!(
        r#"
upstreams:
  u: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
  endless: {{ addresses: ["127.0.0.1:{endless}"], tls: {TLS} }}
routes:
  - {{ name: copied, methods: [GET], path: /copied, upstream: u, timeout_ms: 600000, mirror: {{ upstream: endless }} }}
"#,
        u.port,
    );
    let gateway = serve(folder.path(), &policy).await;
    for copies in 1..=3 {
        assert_eq!(gateway.get("/copied", &[]).await, (200, "u".to_owned()));
        let bytes = says.recv().await.unwrap();
        assert!(bytes < MOST_BYTES, "all {bytes} bytes were taken");
        until("it has been sent for all that", async || {
            gateway.metric("gateway_mirrored_total{outcome=\"sent\"}").await == f64::from(copies)
        })
        .await;
    }
}

#[tokio::test]
async fn an_address_that_does_not_serve_is_left_out_and_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let (u, dead) = (Recorder::start(folder.path(), "u").await, free_port());
    let policy = format!(
        r#"
upstreams:
  half: {{ addresses: ["127.0.0.1:{dead}", "127.0.0.1:{}"], tls: {TLS}, outlier: {{ failures: 2, eject_ms: 60000 }} }}
  none: {{ addresses: ["127.0.0.1:{dead}"], tls: {TLS}, outlier: {{ failures: 1, eject_ms: 60000 }} }}
  probed:
    addresses: ["127.0.0.1:{}"]
    tls: {TLS}
    health: {{ path: /health, interval_ms: 20, unhealthy_after: 2, healthy_after: 2 }}
routes:
  - {{ name: half, methods: [GET], path: /half, upstream: half }}
  - {{ name: none, methods: [GET], path: /none, upstream: none }}
  - {{ name: probed, methods: [GET], path: /probed, upstream: probed }}
"#,
        u.port, u.port
    );
    let gateway = serve(folder.path(), &policy).await;
    // A connection that cannot be made carries nothing, so another address is tried.
    for _ in 0..10 {
        assert_eq!(gateway.get("/half", &[]).await, (200, "u".to_owned()));
    }
    let ejected = format!("gateway_ejections_total{{address=\"127.0.0.1:{dead}\",upstream=\"half\"}}");
    assert_eq!(gateway.metric(&ejected).await, 1.0, "left out once, and not tried again");
    for _ in 0..3 {
        assert_eq!(gateway.get("/none", &[]).await, (503, "upstream_unreachable".to_owned()));
    }

    let status = async || gateway.get("/probed", &[]).await.0;
    assert_eq!(status().await, 200);
    u.health.store(503, Ordering::Relaxed);
    until("probes find it unhealthy", async || status().await == 503).await;
    u.health.store(200, Ordering::Relaxed);
    until("probes find it healthy again", async || status().await == 200).await;
}

/// An address that was left out is tried by one request: what becomes of it is what the others get.
#[tokio::test]
async fn one_request_tries_an_address_that_was_left_out() {
    const EJECTED: Duration = Duration::from_secs(2);
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let (asked, release) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (count, released) = (Arc::clone(&asked), Arc::clone(&release));
    let port = raw_upstream(folder.path(), move |header, mut stream| {
        let (count, released) = (Arc::clone(&count), Arc::clone(&released));
        async move {
            count.fetch_add(1, Ordering::Relaxed);
            if header.starts_with("GET /held") {
                released.notified().await;
            } else if header.starts_with("GET /fails") {
                return None;
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
            stream.write_all(answer).await.ok()?;
            stream.shutdown().await.ok()
        }
    })
    .await;
    let policy = format!(
        r#"
upstreams: {{ u: {{ addresses: ["127.0.0.1:{port}"], tls: {TLS}, outlier: {{ failures: 1, eject_ms: {} }} }} }}
routes: [{{ name: all, methods: [GET], path: "/{{*rest}}", upstream: u }}]
"#,
        EJECTED.as_millis()
    );
    let gateway = serve(folder.path(), &policy).await;
    let left_out = (503, "upstream_unreachable".to_owned());
    let status = async |path: &str| gateway.get(path, &[]).await.0;
    assert_eq!(status("/fails").await, 502);
    assert_eq!(gateway.get("/other", &[]).await, left_out);

    until("the trial fails", async || status("/fails").await == 502).await;
    let before = asked.load(Ordering::Relaxed);
    let trial = until("the trial is answered", async || status("/held").await == 200);
    let others = async {
        until("the trial is there", async || asked.load(Ordering::Relaxed) > before).await;
        let began = Instant::now();
        for _ in 0..10 {
            let told = gateway.get("/other", &[]).await;
            // One that takes as long as an address is left out gives its turn to another.
            assert!(told == left_out || began.elapsed() >= EJECTED, "nobody else is sent there: {told:?}");
        }
        release.notify_one();
    };
    tokio::join!(trial, others);
    for _ in 0..4 {
        assert_eq!(status("/other").await, 200);
    }
}

/// An upstream that takes requests, and hangs up before it answers.
async fn hangs_up(folder: &std::path::Path) -> (u16, Arc<AtomicUsize>) {
    let pem = |name: &str| folder.join(name);
    let identity = certs::Identity::load(&pem("txn-core.pem"), &pem("txn-core.key")).unwrap();
    let clients = certs::ClientAuth::Required(certs::Trust::load(&pem("internal-ca.pem")).unwrap());
    let tls = certs::server_config(&identity, clients, certs::Versions::Tls13Only, &[b"http/1.1"]).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let taken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&taken);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = tokio_rustls::TlsAcceptor::from(Arc::clone(&tls)).accept(stream).await
            else {
                continue;
            };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            count.fetch_add(usize::from(!head.is_empty()), Ordering::Relaxed);
        }
    });
    (port, taken)
}

/// What is safe is sent again, as often as the policy says and as the budget lets it; nothing else is.
#[tokio::test]
async fn what_is_safe_is_repeated_within_the_budget() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let good = Recorder::start(folder.path(), "good").await;
    let (bad, taken) = hangs_up(folder.path()).await;
    let policy = format!(
        r#"
upstreams:
  both: {{ addresses: ["127.0.0.1:{bad}", "127.0.0.1:{}"], tls: {TLS}, outlier: {{ failures: 0 }} }}
  bad: {{ addresses: ["127.0.0.1:{bad}"], tls: {TLS}, outlier: {{ failures: 0 }} }}
routes:
  - {{ name: once, methods: [GET, POST], path: /once, upstream: both }}
  - {{ name: again, methods: [GET], path: /again, upstream: both, retries: 1 }}
  - {{ name: vain, methods: [GET], path: /vain, upstream: bad, retries: 2 }}
"#,
        good.port
    );
    let gateway = serve(folder.path(), &policy).await;
    let failed = (502, "upstream_failed".to_owned());
    for _ in 0..4 {
        assert_eq!(gateway.get("/again", &[]).await, (200, "good".to_owned()));
    }
    let (before, repeats) = (taken.load(Ordering::Relaxed), gateway.metric("gateway_repeats_total").await);
    assert!(before >= 2 && repeats == before as f64, "{before} were cut off, {repeats} repeated");

    assert_eq!(gateway.get("/vain", &[]).await, failed);
    assert_eq!(taken.load(Ordering::Relaxed), before + 3, "sent, and sent again twice");

    let (mut answered, mut cut_off) = (0, 0);
    for _ in 0..4 {
        for request in [
            gateway.http.get(format!("{}/once", gateway.url)),
            gateway.http.post(format!("{}/once", gateway.url)),
        ] {
            match request.send().await.unwrap().status().as_u16() {
                200 => answered += 1,
                502 => cut_off += 1,
                other => panic!("{other}"),
            }
        }
    }
    assert_eq!((answered, cut_off), (4, 4), "each address in turn, and nothing is repeated");
}

/// `curl --http1.0` offers no other protocol in its handshake.
#[tokio::test]
async fn a_client_of_http_1_0_reads_which_version_to_send() {
    let folder = tempfile::tempdir().unwrap();
    pki(folder.path());
    let policy = format!(
        r#"
upstreams: {{ u: {{ addresses: ["127.0.0.1:1"], tls: {TLS} }} }}
routes: [{{ name: r, methods: [GET], path: /, upstream: u }}]
"#
    );
    let gateway = serve(folder.path(), &policy).await;
    let mut client = crate::running::connect(folder.path(), &gateway, None, b"http/1.0").await;
    client.write_all(b"GET / HTTP/1.0\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut response = String::new();
    client.read_to_string(&mut response).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 426 "), "{response}");
    assert!(response.contains("http_version_unsupported"), "{response}");
}
