//! Bad days of an issuer's endpoint for keys, over the wire, for both data planes: who has a valid token passes all the
//! while, no unknown key gets in, and keys that were rotated meanwhile count once they are published. An hour of each day
//! is lived through in `gateway/src/jwks/tests.rs`, by a clock of its own; here a refresh is due every second. The same
//! where the issuer's metadata say where its keys are.

use std::cell::Cell;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use certs::{ClientAuth, Identity, Versions};
use parity::case::{Named, Step};
use parity::mint::{Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::world::World;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

const CASE: &str = r#"
name: t
routes: [{ name: r, methods: [GET], path: /a, upstream: u, filters: { jwt: {} } }]
requests: []
"#;
const LONGEST: Duration = Duration::from_secs(30);
/// Where the keys are.
const KEYS: &str = "/keys";
/// How long keys serve that cannot be refreshed.
const STALE_S: u64 = 20;

/// How the keys are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    ByAddress,
    /// By the issuer's metadata: what the policy calls it, and where they are.
    Discovered {
        how: &'static str,
        metadata: &'static str,
    },
}

impl Found {
    const OPENID: Self = Self::Discovered { how: "openid", metadata: "/.well-known/openid-configuration" };
    const OAUTH: Self =
        Self::Discovered { how: "oauth", metadata: "/.well-known/oauth-authorization-server" };
}

/// What the endpoint answers with.
#[derive(Clone, Debug)]
enum Day {
    /// Nothing listens.
    Away,
    Publishes(Value),
    /// Keys, but the metadata that lead to them are another issuer's.
    OfAnother(Value),
    /// An error, with keys that do not count.
    Fails(Value),
    /// 200, with what is no key set.
    Says(String),
    /// Never.
    Silent,
}

struct Endpoint {
    port: u16,
    found: Found,
    day: Arc<Mutex<Day>>,
    tls: Arc<rustls::ServerConfig>,
    served: Option<JoinHandle<()>>,
}

impl Endpoint {
    async fn start(world: &World, found: Found, day: Day) -> Self {
        let at = |ending: &str| world.folder().join(format!("issuer.{ending}"));
        let identity = Identity::load(&at("pem"), &at("key")).unwrap();
        let tls = certs::server_config(&identity, ClientAuth::Off, Versions::Tls12And13, &[b"http/1.1"]);
        let port = engines::ports::v4().unwrap().port();
        let mut endpoint =
            Self { port, found, day: Arc::new(Mutex::new(Day::Away)), tls: tls.unwrap(), served: None };
        endpoint.set(day).await;
        endpoint
    }

    /// Its own address, where its metadata are.
    fn issuer(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// What a policy says of it.
    fn jwks(&self, world: &World) -> Value {
        let mut jwks = json!({
            "ca": format!("file:{}", world.folder().join("ca.pem").display()),
            "refresh_s": 1, "stale_s": STALE_S, "unknown_kid_refresh_s": 1, "timeout_ms": 1_000,
        });
        match self.found {
            Found::ByAddress => jwks["url"] = json!(format!("{}{KEYS}", self.issuer())),
            Found::Discovered { how, .. } => jwks["discovery"] = json!(how),
        }
        jwks
    }

    async fn set(&mut self, day: Day) {
        let is_away = matches!(day, Day::Away);
        *self.day.lock().unwrap() = day;
        if is_away {
            let Some(served) = self.served.take() else { return };
            served.abort();
            let _ = served.await;
        } else if self.served.is_none() {
            let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
            let (day, tls) = (Arc::clone(&self.day), Arc::clone(&self.tls));
            let (found, issuer) = (self.found, self.issuer());
            let app = Router::new().fallback(async move |asked: Request| {
                let day = day.lock().unwrap().clone();
                answer(day, found, &issuer, asked.uri().path()).await
            });
            self.served = Some(tokio::spawn(async move {
                let limits = certs::serve::Limits::default();
                let _ = certs::serve::serve(listener, tls, app, limits, std::future::pending()).await;
            }));
        }
    }
}

async fn answer(day: Day, found: Found, issuer: &str, path: &str) -> Response {
    let reply = |status: StatusCode, body: String| {
        (status, [("content-type", "application/json")], Body::from(body)).into_response()
    };
    // Its keys are at their place, and its metadata at the one where they are looked for.
    let publishes = |keys: Value, named: &str| match found {
        _ if path == KEYS => reply(StatusCode::OK, keys.to_string()),
        Found::Discovered { metadata, .. } if path == metadata => {
            let metadata = json!({ "issuer": named, "jwks_uri": format!("{issuer}{KEYS}") });
            reply(StatusCode::OK, metadata.to_string())
        }
        Found::Discovered { .. } | Found::ByAddress => StatusCode::NOT_FOUND.into_response(),
    };
    match day {
        Day::Away => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Day::Publishes(keys) => publishes(keys, issuer),
        Day::OfAnother(keys) => publishes(keys, &format!("{issuer}/another")),
        Day::Fails(keys) => reply(StatusCode::SERVICE_UNAVAILABLE, keys.to_string()),
        Day::Says(text) => reply(StatusCode::OK, text),
        Day::Silent => std::future::pending().await,
    }
}

/// What becomes of requests with tokens of the two keys, the one first that is published before a bad day.
struct Asked<'w> {
    world: &'w World,
    plane: Plane<'w>,
    kind: Kind,
    issuer: String,
    began: Instant,
    /// How far ahead the data plane's clock is.
    ahead: Cell<Duration>,
}

impl Asked<'_> {
    async fn verdict(&self, kid: &str) -> String {
        let key = if kid == "k1" { "issuer" } else { "stranger" };
        let token = json!({ "key": key, "header": { "kid": kid }, "claims": { "iss": self.issuer } });
        let step = json!({ "target": "/a", "token": token, "verdict": "" });
        let step: Step = serde_json::from_value(step).unwrap();
        let sent = Sent::new(&step, &self.world.keys, Times::new(self.world.epoch_ms, 0).unwrap()).unwrap();
        // A worker asks for keys by this clock, the state service by one that nothing sets.
        let passed = u64::try_from((self.began.elapsed() + self.ahead.get()).as_millis()).unwrap();
        self.plane.at(self.world.epoch_ms + passed).unwrap();
        self.plane.decide(&sent, None).await.unwrap().verdict
    }

    async fn until(&self, kid: &str, expected: &str, why: &str) {
        let began = Instant::now();
        loop {
            let verdict = self.verdict(kid).await;
            if verdict == expected {
                return;
            }
            assert!(began.elapsed() < LONGEST, "{}: {why}: {kid}: {verdict}", self.kind.name());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Refreshes fail, and so does looking for the key that nobody knows.
    async fn lives_through(&self, day: &Day, known: &str, unknown: &str) {
        let (name, began, before) = (self.kind.name(), Instant::now(), self.failures().await);
        while self.failures().await < before + 2 {
            assert_eq!(self.verdict(known).await, "pass", "{name}: {day:?}: locked out");
            let verdict = self.verdict(unknown).await;
            // Until the endpoint has failed, a last answer of the day before may have said that the key is unknown.
            let may_be_known_absent = verdict == "401 token_key_unknown" && self.failures().await == before;
            let is_unavailable = verdict == "503 token_keys_unavailable";
            assert!(is_unavailable || may_be_known_absent, "{name}: {day:?}: let in or out: {verdict}");
            assert!(began.elapsed() < LONGEST, "{name}: {day:?}: the endpoint is not asked");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn until_failed(&self, times: usize) {
        let began = Instant::now();
        while self.failures().await < times {
            assert!(began.elapsed() < LONGEST, "{}: the endpoint is not asked", self.kind.name());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// How often the keys could not be fetched.
    async fn failures(&self) -> usize {
        let line = "gateway_jwks_fetches_total{issuer=\"main\",outcome=\"error\"} ";
        self.plane.metric(line).await.unwrap_or(0)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_days_of_an_issuer_lock_nobody_out_and_let_nobody_in() {
    let days = |unknown: &Value| {
        vec![
            Day::Away,
            Day::Fails(unknown.clone()),
            Day::Says("<html>".to_owned()),
            Day::Says(unknown.to_string().replace("]}", "")),
            Day::Says("{\"keys\":[]}".to_owned()),
            Day::Silent,
        ]
    };
    live_through(Found::ByAddress, days).await;
}

/// Metadata that are away, nonsense or another issuer's are as bad a day as keys that are.
fn days_of_metadata(unknown: &Value) -> Vec<Day> {
    vec![Day::Away, Day::Says("{\"issuer\":".to_owned()), Day::OfAnother(unknown.clone())]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_days_of_openid_metadata_lock_nobody_out_and_let_nobody_in() {
    live_through(Found::OPENID, days_of_metadata).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_days_of_oauth_metadata_lock_nobody_out_and_let_nobody_in() {
    live_through(Found::OAUTH, days_of_metadata).await;
}

async fn live_through(found: Found, days: impl Fn(&Value) -> Vec<Day>) {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let programs = Programs::beside_test().unwrap();
    let (k1, k2) = (world.keys.jwks.clone(), world.keys.rotated().unwrap());
    let mut endpoint = Endpoint::start(&world, found, Day::Publishes(k1.clone())).await;
    let mut named = Named::parse(CASE).unwrap();
    (named.case.issuer, named.case.jwks) = (Some(endpoint.issuer()), Some(endpoint.jwks(&world)));
    let issuer = endpoint.issuer();
    let start = async |kind: Kind| {
        let folder = world.case_folder(kind.name()).unwrap();
        let plane = Plane::start(&world, &programs, kind, &named, &folder).await.unwrap();
        let (began, ahead) = (Instant::now(), Cell::default());
        let asked = Asked { world: &world, plane, kind, issuer: issuer.clone(), began, ahead };
        // Its clock stood before the case, and so did the time at which keys were fetched.
        asked.until("k1", "pass", "fetched anew").await;
        asked
    };
    let planes = [start(Kind::Gateway).await, start(Kind::Envoy).await];
    let (mut now, mut then) = (("k1", k1), ("k2", k2));
    for number in 0..days(&Value::Null).len() {
        let day = days(&then.1)[number].clone();
        endpoint.set(day.clone()).await;
        let [gateway, envoy] = &planes;
        tokio::join!(gateway.lives_through(&day, now.0, then.0), envoy.lives_through(&day, now.0, then.0));
        // Rotated meanwhile, which shows once it is back.
        std::mem::swap(&mut now, &mut then);
        endpoint.set(Day::Publishes(now.1.clone())).await;
        for asked in &planes {
            asked.until(now.0, "pass", "the new key counts").await;
            asked.until(then.0, "401 token_key_unknown", "the old key is gone").await;
        }
    }

    // Away for longer than keys may serve.
    endpoint.set(Day::Away).await;
    for asked in &planes {
        // Workers go by the time at which the keys were fetched, a few seconds ago at most.
        asked.ahead.set(Duration::from_secs(STALE_S / 2));
        assert_eq!(asked.verdict(now.0).await, "pass", "{}: not stale yet", asked.kind.name());
    }
    for asked in &planes {
        asked.ahead.set(Duration::from_secs(STALE_S + 1));
        asked.until(now.0, "503 token_keys_unavailable", "stale").await;
    }
    if found != Found::ByAddress {
        endpoint.set(Day::OfAnother(now.1.clone())).await;
        for asked in &planes {
            let before = asked.failures().await;
            asked.until_failed(before + 2).await;
            assert_eq!(asked.verdict(now.0).await, "503 token_keys_unavailable", "{}", asked.kind.name());
        }
    }
    endpoint.set(Day::Publishes(now.1.clone())).await;
    for asked in &planes {
        asked.until(now.0, "pass", "it is back").await;
    }
}
