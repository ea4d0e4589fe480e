//! Another policy is rolled out to an Envoy and its state service while both run: whatever is new in it counts at every
//! worker, whichever of the two has it first, and a policy that cannot be served changes nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use engines::{Program, Signal, ports};
use filters::crypto::SigningKey;
use filters::signature::message::{Message, Params, sign};
use parity::case::{Named, Step};
use parity::clock::Clock;
use parity::document::{Places, policy};
use parity::mint::{AUTHORITY, PARTNER_SECRET, Sent, Times};
use parity::plane::Programs;
use parity::wire::{bytes, exchange};
use parity::world::World;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const LONGEST: Duration = Duration::from_secs(30);
/// How long the state service has remembered when a test begins.
const RUN_UP_MS: u64 = 240_000;

/// An Envoy with two workers, and its state service on a socket, until it is dropped.
struct Edge<'w> {
    world: &'w World,
    folder: PathBuf,
    programs: Programs,
    places: Places,
    clock: Clock,
    document: Value,
    state: Program,
    _envoy: Program,
}

/// Who has the new policy first.
#[derive(Clone, Copy)]
enum First {
    State,
    Envoy,
}

impl<'w> Edge<'w> {
    async fn start(world: &'w World, case: &str) -> Self {
        let programs = Programs::beside_test().unwrap();
        let folder = world.case_folder("edge").unwrap();
        let places = Places {
            listeners: [ports::v4().unwrap(), ports::v4().unwrap()],
            admin: ports::v4().unwrap(),
            state: ports::v4().unwrap(),
            upstreams: [world.upstreams[0].address, world.upstreams[1].address],
            introspection: world.introspection.address,
        };
        let named = Named::parse(case).unwrap();
        let document = policy(&named, &places, world.folder(), &world.keys, world.epoch_ms).unwrap();
        let clock = Clock::new(&world.library, &folder.join("now"), world.epoch_ms - RUN_UP_MS).unwrap();
        let file = folder.join("policy.yaml");
        std::fs::write(&file, document.to_string()).unwrap();
        let out = folder.join("envoy");
        configure(&programs, &file, &out);
        let spawn = |name: &'static str, program: &Path, arguments: &[&std::ffi::OsStr]| {
            let mut command = Command::new(program);
            command.args(arguments).envs(clock.variables());
            Program::spawn(name, &mut command, &folder.join(format!("{name}.log"))).unwrap()
        };
        let served = ["state".as_ref(), file.as_os_str(), "--envoy".as_ref(), out.as_os_str()];
        let state = spawn("state", &programs.gateway, &served);
        let configuration = out.join("envoy.json");
        let quiet = [
            "--concurrency",
            "2",
            "--log-level",
            "error",
            "--disable-hot-restart",
            "--drain-time-s",
            "1",
            "--drain-strategy",
            "immediate",
        ];
        let mut arguments = vec!["-c".as_ref(), configuration.as_os_str()];
        arguments.extend(quiet.map(std::ffi::OsStr::new));
        let envoy = spawn("envoy", &programs.envoy, &arguments);
        let edge = Self { world, folder, programs, places, clock, document, state, _envoy: envoy };
        edge.until("the state service serves", async || edge.state_says("/readiness").await.is_some()).await;
        edge.clock.set(world.epoch_ms).unwrap();
        edge
    }

    /// Rolls out the policy with these changes, and waits until the state service has it.
    async fn roll_out(&mut self, first: First, change: impl FnOnce(&mut Value)) {
        change(&mut self.document);
        let reloads = self.config().await["reloads"].as_u64().unwrap();
        let (next, file, out) =
            (self.folder.join("next.yaml"), self.folder.join("policy.yaml"), self.folder.join("envoy"));
        std::fs::write(&next, self.document.to_string()).unwrap();
        match first {
            First::State => {
                std::fs::rename(&next, &file).unwrap();
                self.taken(reloads + 1).await;
                configure(&self.programs, &file, &out);
            }
            First::Envoy => {
                configure(&self.programs, &next, &out);
                std::fs::rename(&next, &file).unwrap();
                self.taken(reloads + 1).await;
            }
        }
    }

    async fn taken(&self, reloads: u64) {
        self.until("the state service takes the policy", async || self.config().await["reloads"] == reloads)
            .await;
    }

    async fn config(&self) -> Value {
        self.state_says("/config").await.unwrap()
    }

    /// What the state service tells, JSON.
    async fn state_says(&self, path: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(self.folder.join("state.sock")).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    async fn verdict(&self, sent: &Sent) -> String {
        match exchange(self.places.listeners[0], LOOPBACK, &self.world.client, &bytes(sent)).await {
            Ok(Some(raw)) if raw.status == 200 => "pass".to_owned(),
            Ok(Some(raw)) => raw.code(),
            Ok(None) => "closed".to_owned(),
            Err(why) => format!("{why:#}"),
        }
    }

    /// Waits until every worker says that of the request. Every connection is another one.
    async fn every_worker_says(&self, expected: &str, sent: impl Fn(u32) -> Sent) {
        let (mut in_a_row, mut number) = (0, 0);
        let mut last = String::new();
        let began = Instant::now();
        while in_a_row < 6 {
            assert!(began.elapsed() < LONGEST, "{last}, not {expected}: {}", self.last_words());
            last = self.verdict(&sent(number)).await;
            number += 1;
            in_a_row = if last == expected { in_a_row + 1 } else { 0 };
            if in_a_row == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    async fn until(&self, what: &str, mut so: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !so().await {
            assert!(began.elapsed() < LONGEST, "never: {what}: {}", self.last_words());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn last_words(&self) -> String {
        let log = |name: &str| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        let text = log("state.log") + &log("envoy.log");
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// A request with a token with these claims.
    fn with_token(&self, target: &str, claims: &Value) -> Sent {
        let step = json!({ "target": target, "token": { "claims": claims }, "verdict": "" });
        self.sent(&step, 0)
    }

    fn sent(&self, step: &Value, at_ms: u64) -> Sent {
        let step: Step = serde_json::from_value(step.clone()).unwrap();
        Sent::new(&step, &self.world.keys, Times::new(self.world.epoch_ms, at_ms).unwrap()).unwrap()
    }

    /// A request to the target that was signed with a client's key so long after the test began.
    fn signed(&self, target: &str, keyid: &str, nonce: Option<&str>, at_ms: u64) -> Sent {
        let mut sent = self.sent(&json!({ "target": target, "verdict": "" }), at_ms);
        let params = Params {
            created: Some(i64::try_from((self.world.epoch_ms + at_ms) / 1_000).unwrap()),
            keyid: Some(keyid.to_owned()),
            nonce: nonce.map(str::to_owned),
            ..Params::covering(&["@method", "@path", "@query"]).unwrap()
        };
        let message = Message::request(&sent.method, "https", AUTHORITY, &sent.target, None, &sent.headers);
        let made = sign(&message, "sig1", &params, &SigningKey::hmac(PARTNER_SECRET).unwrap()).unwrap();
        sent.headers.push(("signature-input".to_owned(), made.signature_input.into_bytes()));
        sent.headers.push(("signature".to_owned(), made.signature.into_bytes()));
        sent
    }
}

/// Writes what Envoy serves by.
fn configure(programs: &Programs, file: &Path, out: &Path) {
    let made = Command::new(&programs.gateway)
        .arg("envoy")
        .arg(file)
        .arg("--module")
        .arg(&programs.module)
        .arg("--out")
        .arg(out)
        .stdout(Stdio::null())
        .status();
    assert!(made.unwrap().success());
}

const CASE: &str = r#"
name: policies
state_socket: true
requests: []
tenants: { acme: {} }
routes:
  - { name: token, methods: [GET], path: /token, upstream: u, filters: { jwt: {}, tenant: {} } }
  - { name: signed, methods: [GET], path: /signed, upstream: u, filters: { signature: { signer: client } } }
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_new_in_a_policy_counts_at_every_worker() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let mut edge = Edge::start(&world, CASE).await;
    let file = |name: &str| world.folder().join(name);
    let main = edge.with_token("/token", &json!({}));
    edge.every_worker_says("pass", |_| edge.with_token("/token", &json!({}))).await;

    // An issuer, and another name for the one that was there: with the name that it had comes somebody else.
    let late = edge.with_token("/token", &json!({ "iss": "https://late.test" }));
    assert_eq!(edge.verdict(&late).await, "token_issuer");
    std::fs::copy(file("jwks.json"), file("late.json")).unwrap();
    for first in [First::State, First::Envoy] {
        let keys = format!("file:{}", file("late.json").display());
        edge.roll_out(first, |policy| {
            let mut late = policy["issuers"]["main"].clone();
            late["issuer"] = json!("https://late.test");
            late["jwks"]["file"] = json!(keys);
            match first {
                First::State => policy["issuers"]["late"] = late,
                First::Envoy => {
                    let main = policy["issuers"]["main"].take();
                    policy["issuers"] = json!({ "main": late, "late": main });
                }
            }
        })
        .await;
        let late = || edge.with_token("/token", &json!({ "iss": "https://late.test" }));
        edge.every_worker_says("pass", |_| late()).await;
        assert_eq!(edge.verdict(&main).await, "pass");
    }

    // A client, whose secret the state service alone tells.
    for (first, name) in [(First::State, "first-bank"), (First::Envoy, "second-bank")] {
        let key = format!("{name}-1");
        assert_eq!(edge.verdict(&edge.signed("/signed", &key, None, 0)).await, "signature_key_unknown");
        let secret = file(&format!("{name}.key"));
        certs::file::write_secret(&secret, std::str::from_utf8(PARTNER_SECRET).unwrap()).unwrap();
        edge.roll_out(first, |policy| {
            let secret = format!("file:{}", secret.display());
            policy["clients"][name] = json!({ "hmac_keys": [{ "id": key, "secret": secret }] });
        })
        .await;
        edge.every_worker_says("pass", |_| edge.signed("/signed", &key, None, 0)).await;
    }

    // A tenant.
    let of_globex = || edge.with_token("/token", &json!({ "tenant": "globex" }));
    assert_eq!(edge.verdict(&of_globex()).await, "tenant_unknown");
    edge.roll_out(First::State, |policy| policy["tenants"]["globex"] = json!({})).await;
    let of_globex = || edge.with_token("/token", &json!({ "tenant": "globex" }));
    edge.every_worker_says("pass", |_| of_globex()).await;
    let used = edge.state_says("/usage").await.unwrap();
    assert!(used["tenants"]["globex"]["month"]["requests"].as_u64().unwrap() >= 6, "{used}");

    // Flags, from a file that was not there before; and then from another.
    for (first, name, default, expected) in [
        (First::Envoy, "first", "on", "pass"),
        (First::State, "second", "off", "route_not_found"),
        (First::Envoy, "third", "on", "pass"),
    ] {
        let flags = json!({ "flags": { "open": {
            "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": default,
        } } });
        std::fs::write(file(&format!("flags-{name}.json")), flags.to_string()).unwrap();
        let flags = format!("file:{}", file(&format!("flags-{name}.json")).display());
        edge.roll_out(first, |policy| {
            policy["flags"] = json!({ "file": flags });
            let routes = policy["routes"].as_array_mut().unwrap();
            if name == "first" {
                routes.push(json!({
                    "name": "flagged", "methods": ["GET"], "path": "/flagged", "upstream": "u",
                    "filters": { "feature": { "when": [{ "flag": "open", "is": ["on"] }] } },
                }));
            }
        })
        .await;
        edge.every_worker_says(expected, |_| edge.sent(&json!({ "target": "/flagged", "verdict": "" }), 0))
            .await;
    }

    // What cannot be served changes nothing, and is told of.
    let good = edge.document.to_string();
    let version = edge.config().await["version"].clone();
    std::fs::write(edge.folder.join("policy.yaml"), good.replace("\"tenants\"", "\"tenant\"")).unwrap();
    edge.until("the policy is refused", async || !edge.config().await["refused"].is_null()).await;
    let refused = edge.config().await;
    assert!(refused["refused"]["mistakes"][0].as_str().unwrap().contains("tenants"), "{refused}");
    assert_eq!(refused["version"], version);
    edge.every_worker_says("pass", |_| edge.with_token("/token", &json!({ "tenant": "globex" }))).await;
    // Asked to, it reads the file again at once.
    std::fs::write(edge.folder.join("policy.yaml"), good).unwrap();
    let reloads = refused["reloads"].as_u64().unwrap();
    edge.state.signal(Signal::SIGHUP);
    edge.taken(reloads + 1).await;
    assert!(edge.config().await["refused"].is_null());
}

/// What a narrow window took, and what has been forgotten since, a wide one does not take once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_grew_takes_nothing_twice() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let route = |window_s: u64| {
        json!({
            "name": "once", "methods": ["GET"], "path": "/once", "upstream": "u", "filters": {
                "signature": { "signer": "client", "max_age_s": window_s }, "nonce": { "window_s": window_s },
            },
        })
    };
    let case = format!("name: windows\nstate_socket: true\nrequests: []\nroutes: [{}]", route(10));
    let mut edge = Edge::start(&world, &case).await;
    let nonce = |number: u32| format!("a-nonce-of-many-letters-{number}");
    edge.every_worker_says("pass", |number| edge.signed("/once", "partner-1", Some(&nonce(number)), 0)).await;
    let taken = edge.signed("/once", "partner-1", Some(&nonce(0)), 0);
    edge.every_worker_says("nonce_replayed", |_| edge.signed("/once", "partner-1", Some(&nonce(0)), 0)).await;

    edge.roll_out(First::Envoy, |policy| policy["routes"][0] = route(300)).await;
    edge.clock.set(world.epoch_ms + 20_000).unwrap();
    // Signed when the narrow window took what it takes no more: that may be among what it has taken.
    edge.every_worker_says("created_before_start", |number| {
        edge.signed("/once", "partner-1", Some(&nonce(1_000 + number)), 0)
    })
    .await;
    assert_eq!(edge.verdict(&edge.signed("/once", "partner-1", Some(&nonce(2_000)), 15_000)).await, "pass");
    // By now the memory has nothing of the narrow window left.
    edge.clock.set(world.epoch_ms + 150_000).unwrap();
    assert_eq!(edge.verdict(&taken).await, "created_before_start");
    assert_eq!(edge.verdict(&edge.signed("/once", "partner-1", Some(&nonce(2_001)), 145_000)).await, "pass");
}
