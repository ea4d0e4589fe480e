//! What a policy says of upstreams, in the gateway and in Envoy side by side: how long they may take, how much they are
//! given, which of their addresses are left out, what is sent again, who gets a copy, and WebSockets.

mod failing;
mod fitness;
mod ordinary;
mod passing;

use std::fmt::Debug;
use std::time::{Duration, Instant};

use parity::case::{Named, Step};
use parity::mint::{Sent, Times};
use parity::outcome::{FieldMap, answer_fields};
use parity::plane::{Kind, Plane, Programs};
use parity::scripted::Scripted;
use parity::wire::{Raw, bytes, exchange};
use parity::world::World;
use serde_json::{Value, json};

const LOOPBACK: std::net::IpAddr = std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
const LONGEST: Duration = Duration::from_secs(30);

/// A data plane with two upstreams of its own.
struct Edge<'w> {
    world: &'w World,
    kind: Kind,
    plane: Plane<'w>,
    a: Scripted,
    b: Scripted,
}

/// What a client is told, but for what differs from one time to the next.
#[derive(Debug, PartialEq)]
struct Told {
    /// The status, and the code of the refusal or the name of the upstream.
    verdict: String,
    fields: FieldMap,
    body: Value,
}

/// Serves the upstreams and routes, with `$A` and `$B` for the addresses, by each data plane. The check is of both, and
/// what it has been told must be the same.
async fn on_both<T: PartialEq + Debug>(policy: &str, check: impl AsyncFn(&mut Edge<'_>) -> T) {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let on = async |kind: Kind| {
        let mut edge = Edge::start(&world, kind, policy).await;
        let checked = tokio::time::timeout(3 * LONGEST, check(&mut edge)).await;
        checked.unwrap_or_else(|_| panic!("{}: something never comes", kind.name()))
    };
    let (gateway, envoy) = tokio::join!(on(Kind::Gateway), on(Kind::Envoy));
    assert_eq!(envoy, gateway, "Envoy tells something else");
}

impl<'w> Edge<'w> {
    async fn start(world: &'w World, kind: Kind, policy: &str) -> Self {
        let programs = Programs::beside_test().unwrap();
        let tls = world.upstream_tls().unwrap();
        let (a, b) = (Scripted::start("a", tls.clone()).await, Scripted::start("b", tls).await);
        let (a, b) = (a.unwrap(), b.unwrap());
        let policy =
            policy.replace("$A", &format!("\"{}\"", a.address)).replace("$B", &format!("\"{}\"", b.address));
        let named = Named::parse(&format!("name: upstreams\nrequests: []\n{policy}")).unwrap();
        let folder = world.case_folder(kind.name()).unwrap();
        let plane = Plane::start(world, &programs, kind, &named, &folder).await.unwrap();
        plane.at(world.epoch_ms).unwrap();
        Self { world, kind, plane, a, b }
    }

    fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// The bytes of a request, as a case says it.
    fn bytes(&self, step: &Value) -> Vec<u8> {
        let mut step = step.clone();
        step["verdict"] = json!("");
        let step: Step = serde_json::from_value(step).unwrap();
        let times = Times::new(self.world.epoch_ms, 0).unwrap();
        bytes(&Sent::new(&step, &self.world.keys, times).unwrap())
    }

    /// What becomes of a request, on a connection of its own.
    async fn send(&self, step: Value) -> Told {
        let sent = self.bytes(&step);
        let raw = exchange(self.plane.address(), LOOPBACK, &self.world.client, &sent).await;
        let raw = raw.unwrap_or_else(|why| panic!("{}: {step}: {why:#}", self.name()));
        Told::new(raw.unwrap_or_else(|| panic!("{}: {step}: it was closed", self.name())))
    }

    async fn get(&self, path: &str) -> Told {
        self.send(json!({ "target": path })).await
    }

    async fn post(&self, path: &str) -> Told {
        let fields = json!({ "content-type": "application/json" });
        self.send(json!({ "method": "POST", "target": path, "headers": fields, "body": "{}" })).await
    }

    /// Who answers each of some requests: with two upstreams in turn, both do.
    async fn served_by(&self, path: &str) -> Vec<String> {
        let mut verdicts = Vec::new();
        for _ in 0..4 {
            verdicts.push(self.get(path).await.verdict);
        }
        verdicts.sort_unstable();
        verdicts.dedup();
        verdicts
    }

    async fn until(&self, what: &str, mut so: impl AsyncFnMut() -> bool) {
        let began = Instant::now();
        while !so().await {
            assert!(began.elapsed() < LONGEST, "{}: never: {what}: {}", self.name(), self.plane.last_words());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until so many requests wait at the first upstream.
    async fn wait_at_a(&self, count: usize) {
        self.until("they wait", async || self.a.requests.waiting() == count).await;
    }
}

impl Told {
    fn new(raw: Raw) -> Self {
        let mut body: Value = serde_json::from_slice(&raw.body).unwrap_or_default();
        let said = body["upstream"].as_str().map_or_else(|| raw.code(), str::to_owned);
        let fields = raw.fields.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        let id = raw.fields.iter().find(|(name, _)| name == "x-request-id");
        let id = id.map(|(_, id)| String::from_utf8_lossy(id).into_owned());
        if let Some(instance) = body.get_mut("instance") {
            assert_eq!(instance.as_str(), id.map(|id| format!("urn:uuid:{id}")).as_deref());
            *instance = json!("(the request's id)");
        }
        Self { verdict: format!("{} {said}", raw.status), fields: answer_fields(fields), body }
    }

    #[track_caller]
    fn is(self, expected: &str) -> Self {
        assert_eq!(self.verdict, expected);
        self
    }
}
