//! Envoy on bad days: the state service away, slow, or talking nonsense, a module that dies, a policy that changes
//! under load, a client that stops half-way. Nothing that must be refused passes, and the next request is served.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use certs::client::ClientLimits;
use engines::{Program, ports};
use parity::case::Named;
use parity::document::{Places, policy};
use parity::mint::{AUTHORITY, Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::wire::{Raw, bytes, exchange};
use parity::world::World;
use tokio::io::AsyncWriteExt as _;

const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Requests, by their position: a signed one each, then a limited one.
const CASE: &str = r#"
name: bad days
state_timeout_ms: 500
routes:
  - { name: signed, methods: [GET], path: /signed, upstream: u, filters: { signature: { signer: client }, nonce: { max_skew_s: 0 } } }
  - { name: limited, methods: [GET], path: /limited, upstream: u, filters: { rate_limit: { limits: [{ name: each, by: ip, requests: 2, per_s: 600 }] } } }
  - { name: open, methods: [GET, POST], path: /open, upstream: u }
requests:
  - { target: /signed, sign: { key: partner, created: 0, nonce: 0123456789abcde0, digest: false, components: ["@method", "@path", "@query"] }, verdict: pass }
  - { target: /signed, sign: { key: partner, created: 0, nonce: 0123456789abcde1, digest: false, components: ["@method", "@path", "@query"] }, verdict: pass }
  - { target: /limited, verdict: pass }
  - { target: /open, verdict: pass }
"#;
const SIGNED: usize = 0;
const SIGNED_ANEW: usize = 1;
const LIMITED: usize = 2;
const OPEN: usize = 3;

fn programs() -> Programs {
    Programs::beside_test().unwrap()
}

async fn verdict(world: &World, plane: &Plane<'_>, named: &Named, request: usize) -> String {
    verdict_at(world.epoch_ms, world, plane, named, request).await
}

/// Of a request that is made at that time.
async fn verdict_at(now_ms: u64, world: &World, plane: &Plane<'_>, named: &Named, request: usize) -> String {
    let times = Times::new(now_ms, 0).unwrap();
    let sent = Sent::new(&named.case.requests[request], &world.keys, times).unwrap();
    plane.decide(&sent, None).await.unwrap().verdict
}

/// Away, slow or talking nonsense: limits hold in the worker, nonces are refused, and what needs no state is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_state_service_on_bad_days() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let named = Named::parse(CASE).unwrap();
    for (day, answer) in [
        ("away", None),
        ("slow", Some((200, "[\"remembered\"]", Duration::from_secs(20)))),
        ("nonsense", Some((200, "<html>", Duration::ZERO))),
        ("too many answers", Some((200, "[\"remembered\",\"remembered\"]", Duration::ZERO))),
        ("an answer to something else", Some((200, "[\"released\"]", Duration::ZERO))),
        ("failing", Some((500, "[\"remembered\"]", Duration::ZERO))),
    ] {
        let folder = world.case_folder(day).unwrap();
        let mut plane = Plane::start(&world, &programs(), Kind::Envoy, &named, &folder).await.unwrap();
        plane.at(world.epoch_ms).unwrap();
        assert_eq!(verdict(&world, &plane, &named, SIGNED).await, "pass", "{day}");
        plane.stop_state();
        let other = match answer {
            None => None,
            Some((status, body, wait)) => Some(stand_in(plane.state_address(), status, body, wait).await),
        };
        let refused = "503 state_unavailable";
        assert_eq!(verdict(&world, &plane, &named, SIGNED_ANEW).await, refused, "{day}");
        assert_eq!(verdict(&world, &plane, &named, OPEN).await, "pass", "{day}");
        for expected in ["pass", "pass", "429 rate_limited"] {
            assert_eq!(verdict(&world, &plane, &named, LIMITED).await, expected, "{day}");
        }
        // Back again by itself. What may have been signed before the memory began is refused, so it is signed later.
        if let Some(other) = other {
            other.abort();
            let _ = other.await;
        }
        plane.start_state().unwrap();
        let mut last = String::new();
        for second in 1..=200 {
            let now_ms = world.epoch_ms + 1_000 * second;
            plane.at(now_ms).unwrap();
            last = verdict_at(now_ms, &world, &plane, &named, SIGNED_ANEW).await;
            if last != refused && last != "401 created_before_start" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert_eq!(last, "pass", "{day}");
    }
}

/// Somebody else at the state service's address.
async fn stand_in(
    address: SocketAddr,
    status: u16,
    body: &'static str,
    wait: Duration,
) -> tokio::task::JoinHandle<()> {
    let listener = loop {
        match tokio::net::TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    let status = axum::http::StatusCode::from_u16(status).unwrap();
    let app = Router::new().route(
        "/v1/state",
        axum::routing::post(move || async move {
            tokio::time::sleep(wait).await;
            (status, body)
        }),
    );
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() })
}

/// A client that stops in the middle of its body is nobody's loss.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_stops_half_way() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let named = Named::parse(CASE).unwrap();
    let folder = world.case_folder("half").unwrap();
    let plane = Plane::start(&world, &programs(), Kind::Envoy, &named, &folder).await.unwrap();
    for _ in 0..5 {
        let stream = tokio::net::TcpStream::connect(plane.address()).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&world.client));
        let mut stream = connector.connect(AUTHORITY.try_into().unwrap(), stream).await.unwrap();
        let half =
            format!("POST /open HTTP/1.1\r\nhost: {AUTHORITY}\r\ncontent-length: 1000\r\n\r\nhalf of it");
        stream.write_all(half.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        drop(stream);
        assert_eq!(verdict(&world, &plane, &named, OPEN).await, "pass");
    }
}

fn envoy(programs: &Programs, configuration: &Path) -> Program {
    let quiet = ["--concurrency", "2", "--log-level", "error", "--disable-hot-restart"];
    let mut command = Command::new(&programs.envoy);
    let log = configuration.with_extension("log");
    Program::spawn("envoy", command.arg("-c").arg(configuration).args(quiet), &log).unwrap()
}

fn state(programs: &Programs, folder: &Path) -> Program {
    let mut command = Command::new(&programs.gateway);
    let command = command.arg("state").arg(folder.join("policy.yaml"));
    Program::spawn("state", command, &folder.join("state.log")).unwrap()
}

async fn get(world: &World, to: SocketAddr, path: &str, field: &str) -> anyhow::Result<Option<Raw>> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {AUTHORITY}\r\n{field}\r\n");
    exchange(to, LOOPBACK, &world.client, request.as_bytes()).await
}

fn places(world: &World) -> Places {
    let [u, v] = &world.upstreams;
    Places {
        listeners: [ports::v4().unwrap(), ports::v4().unwrap()],
        admin: ports::v4().unwrap(),
        state: ports::v4().unwrap(),
        upstreams: [u.address, v.address],
        introspection: world.introspection.address,
    }
}

/// Waits until requests are served; an Envoy that has ended, or does not come to serve, is quoted.
async fn until_served(world: &World, to: SocketAddr, envoy: &mut Program) {
    let serves = async || matches!(get(world, to, "/open", "").await, Ok(Some(raw)) if raw.status == 200);
    envoy.ready(Duration::from_secs(60), serves).await.unwrap();
}

/// A module that traps, on a request or on an answer that it holds: neither goes through, and the next one is served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_module_that_dies_lets_nothing_through() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let folder = world.case_folder("trap").unwrap();
    let programs = programs();
    let trap = programs.module.with_file_name("trap.wasm");
    assert!(trap.exists(), "{} is missing; filters/wasm/build --trap makes it", trap.display());
    let named = Named::parse(
        "name: t\nroutes: [{ name: r, methods: [GET], path: '/{*rest}', upstream: u }]\nrequests: []",
    )
    .unwrap();
    let places = places(&world);
    let configuration = generate(&world, &programs, &named, &places, &folder, &trap);
    let mut envoy = envoy(&programs, &configuration);
    until_served(&world, places.listeners[0], &mut envoy).await;
    let days = ["x-trap", "x-trap-answer", "x-trap-body", "x-trap", "x-trap-body", "x-trap-answer"];
    for day in days {
        let died = get(&world, places.listeners[0], "/open", &format!("{day}: 1\r\n")).await;
        let refused = match died {
            Ok(Some(raw)) => raw.status >= 500,
            Ok(None) | Err(_) => true,
        };
        assert!(refused, "{day}: what a dead module had not decided on went through");
        // The module is started again within its backoff; until then requests are refused, none let through.
        until_served(&world, places.listeners[0], &mut envoy).await;
    }
}

fn generate(
    world: &World,
    programs: &Programs,
    named: &Named,
    places: &Places,
    folder: &Path,
    module: &Path,
) -> PathBuf {
    let file = folder.join("policy.yaml");
    std::fs::write(
        &file,
        policy(named, places, world.folder(), &world.keys, world.epoch_ms).unwrap().to_string(),
    )
    .unwrap();
    let out = folder.join("envoy");
    let status = Command::new(&programs.gateway)
        .arg("envoy")
        .arg(&file)
        .arg("--module")
        .arg(module)
        .arg("--out")
        .arg(&out)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    out.join("envoy.json")
}

/// What one worker took no other takes again: of many who send one signed request at once, one passes; a limit lets
/// through just what it says, however the connections are spread.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_share_nonces_and_limits() {
    const CONNECTIONS: usize = 40;
    const LIMIT: usize = 10;
    certs::install_crypto_provider();
    let world = Arc::new(World::new().await.unwrap());
    let folder = world.case_folder("workers").unwrap();
    let programs = programs();
    let named = Named::parse(&CASE.replace("requests: 2, per_s: 600", "requests: 10, per_s: 36000")).unwrap();
    let places = places(&world);
    let configuration = generate(&world, &programs, &named, &places, &folder, &programs.module);
    let _state = state(&programs, &folder);
    // Signatures tell whole seconds: what is signed from the next second on is younger than the memory of nonces.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut envoy = envoy(&programs, &configuration);
    until_served(&world, places.listeners[0], &mut envoy).await;

    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let times = Times::new(u64::try_from(now_ms).unwrap(), 0).unwrap();
    for (request, most, refusal) in [(SIGNED, 1, "nonce_replayed"), (LIMITED, LIMIT, "rate_limited")] {
        let sent = bytes(&Sent::new(&named.case.requests[request], &world.keys, times).unwrap());
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (world, to, sent) = (Arc::clone(&world), places.listeners[0], sent.clone());
            clients.spawn(async move { exchange(to, LOOPBACK, &world.client, &sent).await });
        }
        let answers = clients.join_all().await;
        let codes: Vec<String> = answers.into_iter().map(|raw| raw.unwrap().unwrap().code()).collect();
        let passed = codes.iter().filter(|code| *code == "-").count();
        let refused = codes.iter().filter(|code| *code == refusal).count();
        assert_eq!((passed, refused), (most, CONNECTIONS - most), "{codes:?}");
    }
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let stats = http.get(format!("http://{}/stats?filter=worker_.*downstream_cx_total", places.admin));
    let stats = stats.send().await.unwrap().text().await.unwrap();
    let busy =
        stats.lines().filter(|line| line.contains("listener.127.0.0.1") && !line.ends_with(": 0")).count();
    assert_eq!(busy, 2, "both workers had connections: {stats}");
}

/// Ten policies in turn under load: no request fails, and none sees half of two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_changes_as_a_whole_while_traffic_flows() {
    certs::install_crypto_provider();
    let world = Arc::new(World::new().await.unwrap());
    let folder = world.case_folder("change").unwrap();
    let programs = programs();
    // What the module adds to the answer and the address that Envoy's cluster leads to belong together: the one name
    // of the upstream means another address in every other policy.
    let policy_of = |age: u32| {
        Named::parse(&format!(
            "name: t\neverywhere: {{ headers: {{ hsts_max_age_s: {age} }} }}\n\
             routes: [{{ name: r, methods: [GET], path: '/{{*rest}}', upstream: u, timeout_ms: 60000 }}]\nrequests: []"
        ))
        .unwrap()
    };
    let first = places(&world);
    let second = Places { upstreams: [first.upstreams[1], first.upstreams[0]], ..first };
    let policies = [(policy_of(1111), first), (policy_of(2222), second)];
    let write = |policy: usize| {
        let (named, places) = &policies[policy % 2];
        generate(&world, &programs, named, places, &folder, &programs.module)
    };
    let places = first;
    let configuration = write(0);
    let _state = state(&programs, &folder);
    let mut envoy = envoy(&programs, &configuration);
    until_served(&world, places.listeners[0], &mut envoy).await;

    // Decided by the first policy, and under way while nine others take over.
    let to = places.listeners[0];
    let client = |world: &World| {
        let limits = ClientLimits { timeout: Duration::from_secs(60), ..ClientLimits::default() };
        certs::client::https_to((*world.client).clone(), limits, AUTHORITY, to).unwrap()
    };
    let url = format!("https://{AUTHORITY}:{}/open", to.port());
    let held = tokio::spawn(sent(client(&world).get(&url).header("x-stay", "1")));
    let kept = async || world.upstreams[0].kept() > 0;
    envoy.ready(Duration::from_secs(30), kept).await.unwrap();

    let over = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for sender in 0..10 {
        let (world, over, kept, url) = (Arc::clone(&world), Arc::clone(&over), client(&world), url.clone());
        clients.spawn(async move {
            let mut seen = Vec::new();
            // Each 50 a second, one of them on a connection of its own each time.
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            while !over.load(Ordering::Relaxed) {
                ticks.tick().await;
                let raw = if sender == 0 {
                    get(&world, to, "/open", "").await?.ok_or_else(|| anyhow::anyhow!("closed"))?
                } else {
                    sent(kept.get(&url)).await?
                };
                seen.push(decided_by_first(&raw)?);
            }
            anyhow::Ok(seen)
        });
    }
    for change in 1..=9 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        write(change);
    }
    let first_decides =
        async || decided_by_first(&get(&world, to, "/open", "").await.unwrap().unwrap()).unwrap();
    envoy.ready(Duration::from_secs(30), async || !first_decides().await).await.unwrap();
    world.upstreams[0].let_go();
    let held = held.await.unwrap().unwrap();
    assert!(decided_by_first(&held).unwrap(), "while the other policy decides");
    write(10);
    envoy.ready(Duration::from_secs(30), first_decides).await.unwrap();
    over.store(true, Ordering::Relaxed);
    let mut seen = Vec::new();
    while let Some(client) = clients.join_next().await {
        seen.extend(client.unwrap().unwrap());
    }
    let (by_first, a_second) = (seen.iter().filter(|first| **first).count(), began.elapsed().as_secs_f64());
    println!("{} requests, {:.0} a second, none failed", seen.len(), seen.len() as f64 / a_second);
    assert!(by_first > 0 && by_first < seen.len(), "{by_first} of {}: it never changed", seen.len());
}

async fn sent(request: reqwest::RequestBuilder) -> anyhow::Result<Raw> {
    let answer = request.send().await?;
    let fields = answer.headers().iter();
    let fields = fields.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let (status, fields) = (answer.status().as_u16(), fields.collect());
    Ok(Raw { status, fields, body: answer.bytes().await?.to_vec() })
}

/// Which of two policies decided, by the module and by Envoy's cluster alike.
fn decided_by_first(raw: &Raw) -> anyhow::Result<bool> {
    anyhow::ensure!(raw.status == 200, "{} {}", raw.status, raw.code());
    let hsts = raw.fields.iter().find(|(name, _)| name == "strict-transport-security");
    let age = hsts.map(|(_, value)| String::from_utf8_lossy(value).contains("1111"));
    let by_u = String::from_utf8_lossy(&raw.body).contains("\"upstream\":\"u\"");
    anyhow::ensure!(age == Some(by_u), "half of two policies: {hsts:?}, upstream u: {by_u}");
    Ok(by_u)
}
