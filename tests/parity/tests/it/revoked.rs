//! Tokens that are revoked while data planes run: two gateways, and an Envoy with its state service, that share one
//! Redis; and what becomes of the list while that is away, and after it has lost everything.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use engines::{Program, Redis, ports};
use parity::case::{Named, Step};
use parity::document::{Places, policy};
use parity::mint::{Sent, Times};
use parity::plane::{Kind, Programs};
use parity::wire::{bytes, exchange};
use parity::world::World;
use serde_json::{Value, json};

const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const LONGEST: Duration = Duration::from_secs(30);

fn programs() -> Programs {
    Programs::beside_test().unwrap()
}

fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// An edge, until it is dropped.
struct Edge {
    name: &'static str,
    file: PathBuf,
    places: Places,
    _programs: Vec<Program>,
}

impl Edge {
    /// Starts a data plane of its own on the shared Redis.
    async fn start(world: &World, kind: Kind, name: &'static str, redis: SocketAddr) -> Self {
        let folder = world.case_folder(name).unwrap();
        let programs = programs();
        let [u, v] = &world.upstreams;
        let places = Places {
            listeners: [ports::v4().unwrap(), ports::v4().unwrap()],
            admin: ports::v4().unwrap(),
            state: ports::v4().unwrap(),
            upstreams: [u.address, v.address],
            introspection: world.introspection.address,
        };
        let named = Named::parse(
            "name: t\neverywhere: { jwt: {} }\nroutes: [{ name: r, methods: [GET], path: '/{*rest}', upstream: u }]\n\
             requests: []",
        )
        .unwrap();
        let mut document = policy(&named, &places, world.folder(), &world.keys, world.epoch_ms).unwrap();
        certs::file::write_secret(&folder.join("redis.url"), &format!("redis://{redis}/0")).unwrap();
        document["state"]["redis"] = json!({ "url": "file:redis.url", "timeout_ms": 1_000 });
        let file = folder.join("policy.yaml");
        std::fs::write(&file, document.to_string()).unwrap();
        let spawn = |name: &'static str, program: &Path, arguments: &[&std::ffi::OsStr]| {
            let log = folder.join(format!("{name}.log"));
            Program::spawn(name, Command::new(program).args(arguments), &log).unwrap()
        };
        let gateway = |verb: &'static str| spawn(verb, &programs.gateway, &[verb.as_ref(), file.as_os_str()]);
        let running = match kind {
            Kind::Gateway => vec![gateway("serve")],
            Kind::Envoy => {
                let out = folder.join("envoy");
                let made = Command::new(&programs.gateway)
                    .arg("envoy")
                    .arg(&file)
                    .arg("--module")
                    .arg(&programs.module)
                    .arg("--out")
                    .arg(&out)
                    .stdout(Stdio::null())
                    .status();
                assert!(made.unwrap().success());
                let configuration = out.join("envoy.json");
                let quiet = ["--concurrency", "2", "--log-level", "error", "--disable-hot-restart"];
                let mut arguments = vec!["-c".as_ref(), configuration.as_os_str()];
                arguments.extend(quiet.map(std::ffi::OsStr::new));
                vec![gateway("state"), spawn("envoy", &programs.envoy, &arguments)]
            }
        };
        Self { name, file, places, _programs: running }
    }

    /// What becomes of a request with a token of these claims.
    async fn verdict(&self, world: &World, claims: &Value) -> String {
        let step: Step =
            serde_json::from_value(json!({ "token": { "claims": claims }, "verdict": "" })).unwrap();
        let times = Times::new(now_ms(), 0).unwrap();
        let sent = bytes(&Sent::new(&step, &world.keys, times).unwrap());
        match exchange(self.places.listeners[0], LOOPBACK, &world.client, &sent).await {
            Ok(Some(raw)) if raw.status == 200 => "pass".to_owned(),
            Ok(Some(raw)) => raw.code(),
            Ok(None) => "closed".to_owned(),
            Err(why) => format!("{why:#}"),
        }
    }

    /// How long until that becomes of it.
    async fn until(&self, world: &World, claims: &Value, expected: &str) -> Duration {
        let began = Instant::now();
        let mut last = String::new();
        // Every connection is another one, so that each of Envoy's workers is asked.
        let mut in_a_row = 0;
        while in_a_row < 6 {
            assert!(began.elapsed() < LONGEST, "{}: {last}, not {expected}", self.name);
            last = self.verdict(world, claims).await;
            in_a_row = if last == expected { in_a_row + 1 } else { 0 };
            if in_a_row == 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        began.elapsed()
    }

    /// Status and body of `/revocations`.
    async fn revocations(&self, wanted: Option<&Value>) -> (u16, Value) {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let url = format!("http://{}/revocations", self.places.admin);
        let request = match wanted {
            Some(wanted) => http.post(url).json(wanted),
            None => http.get(url),
        };
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// `gateway revoke POLICY …`.
    fn command(&self, arguments: &[&str]) -> (bool, String) {
        let mut command = Command::new(programs().gateway);
        let output = command.arg("revoke").arg(&self.file).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text.into_owned())
    }
}

/// Whatever is revoked, at one edge or by the command, every edge refuses; whatever it was not revoked for passes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_edge_is_told_every_edge_knows() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let redis = Redis::start(&world.case_folder("redis").unwrap()).await.unwrap();
    let address = redis.address();
    let edges = [
        Edge::start(&world, Kind::Gateway, "one", address).await,
        Edge::start(&world, Kind::Gateway, "two", address).await,
        Edge::start(&world, Kind::Envoy, "envoy", address).await,
    ];
    let iat = i64::try_from(now_ms() / 1_000).unwrap() - 5;
    let claims = |n: usize| {
        json!({
            "jti": format!("t-{n}"), "sid": format!("s-{n}"), "device": format!("d-{n}"), "sub": format!("u-{n}"),
            "iat": iat, "exp": iat + 600,
        })
    };
    for edge in &edges {
        edge.until(&world, &claims(0), "pass").await;
    }
    let mut slowest = Duration::ZERO;
    for (n, kind) in ["token", "session", "device", "user"].into_iter().cycle().take(12).enumerate() {
        let id = format!("{}-{n}", if kind == "token" { "t" } else { &kind[..1] });
        for edge in &edges {
            assert_eq!(edge.verdict(&world, &claims(n)).await, "pass", "{}", edge.name);
        }
        let began = Instant::now();
        if n % 3 == 0 {
            let (done, told) = edges[0].command(&[&format!("--{kind}"), &id, "--tenant", "acme"]);
            assert!(done && told.contains("every edge knows within seconds"), "{told}");
            assert!(told.contains("\"credential\":\"command\""), "the audit is told who asked: {told}");
        } else {
            let (status, told) = edges[n % 2].revocations(Some(&json!({ kind: id }))).await;
            assert_eq!(status, 200, "{told}");
            assert_eq!(
                edges[n % 2].verdict(&world, &claims(n)).await,
                "token_revoked",
                "at once where it was told"
            );
        }
        for edge in &edges {
            edge.until(&world, &claims(n), "token_revoked").await;
        }
        slowest = slowest.max(began.elapsed());
        // Who logs in again is let in, unless it is the token or the session that has ended.
        let mut again = claims(n);
        again["iat"] = json!(now_ms() / 1_000 + 2);
        let expected = if matches!(kind, "token" | "session") { "token_revoked" } else { "pass" };
        for edge in &edges {
            assert_eq!(edge.verdict(&world, &again).await, expected, "{} {kind}", edge.name);
        }
    }
    eprintln!("revoked at two gateways and Envoy's workers, slowest of 12: {slowest:?}");

    let (done, listed) = edges[1].command(&["--list"]);
    assert!(
        done && listed.lines().count() == 12 && listed.contains("token t-0 of tenant acme: revoked"),
        "{listed}"
    );
    let (done, told) = edges[1].command(&["--token", "t-0", "--tenant", "acme", "--undo"]);
    assert!(done, "{told}");
    for edge in &edges {
        edge.until(&world, &claims(0), "pass").await;
    }
    for (wanted, status, code) in [
        (json!({}), 400, "revocation_malformed"),
        (json!({ "token": "a", "user": "b" }), 400, "revocation_malformed"),
        (json!({ "user": "x".repeat(5_000) }), 400, "body"),
    ] {
        let (got, told) = edges[0].revocations(Some(&wanted)).await;
        assert_eq!((got, told["code"].as_str()), (status, Some(code)));
    }
    let plain = reqwest::Client::builder().no_proxy().build().unwrap();
    let plain = plain.post(format!("http://{}/revocations", edges[0].places.admin)).body(r#"{"user":"u-1"}"#);
    assert_eq!(plain.send().await.unwrap().status(), 415, "a page in a browser can send that");
}

/// While Redis is away the last list counts and nobody can revoke; an edge that never had the list believes nobody; and
/// what Redis lost by its restart the edges tell it again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_list_outlives_its_redis() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let mut redis = Redis::start(&world.case_folder("redis").unwrap()).await.unwrap();
    let address = redis.address();
    let edges = [
        Edge::start(&world, Kind::Gateway, "one", address).await,
        Edge::start(&world, Kind::Envoy, "envoy", address).await,
    ];
    let (revoked, good) = (json!({ "jti": "gone" }), json!({ "jti": "good" }));
    for edge in &edges {
        edge.until(&world, &good, "pass").await;
    }
    assert_eq!(edges[0].revocations(Some(&json!({ "token": "gone" }))).await.0, 200);
    for edge in &edges {
        edge.until(&world, &revoked, "token_revoked").await;
    }
    redis.stop().await.unwrap();
    for edge in &edges {
        assert_eq!(edge.verdict(&world, &revoked).await, "token_revoked", "{}", edge.name);
        assert_eq!(edge.verdict(&world, &good).await, "pass", "{}", edge.name);
    }
    let (status, told) = edges[0].revocations(Some(&json!({ "token": "good" }))).await;
    assert_eq!((status, told["code"].as_str()), (503, Some("state_away")));
    assert!(!edges[0].command(&["--token", "good"]).0);
    assert_eq!(edges[0].verdict(&world, &good).await, "pass", "nothing was revoked");
    let age = async || edges[0].revocations(None).await.1["age_s"].as_f64().unwrap();
    let before = age().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(age().await > before, "it tells how old it is");

    let late = Edge::start(&world, Kind::Gateway, "late", address).await;
    late.until(&world, &good, "token_revocations_unavailable").await;
    redis.resume().await.unwrap();
    late.until(&world, &good, "pass").await;
    late.until(&world, &revoked, "token_revoked").await;
    for edge in &edges {
        edge.until(&world, &good, "pass").await;
        edge.until(&world, &revoked, "token_revoked").await;
    }
}
