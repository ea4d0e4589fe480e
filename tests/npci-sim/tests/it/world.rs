//! npci-proxy, npci-sim and a txn-core that only remembers, on loopback over real mutual TLS.

use std::{
    collections::HashSet,
    future::Future,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, extract::State, response::IntoResponse, routing::post};
use certs::{ClientAuth, TlsFiles, Versions, client::ClientLimits, serve};
use http::{HeaderMap, StatusCode};
use npci_proxy::{
    clock::Clock,
    seal::{Mark, Signer, Verifier},
    secret::SecretRef,
    wire::Stamp,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

pub struct World {
    pub pki: tempfile::TempDir,
    pub core: Core,
    pub inside: String,
    pub outside: String,
    pub proxy_admin: String,
    pub sim_front: String,
    pub sim_admin: String,
    /// txn-core's client.
    pub client: reqwest::Client,
    plain: reqwest::Client,
    ahead_ms: Arc<AtomicI64>,
    clock: Clock,
    proxy_config: npci_proxy::config::Config,
    proxy: JoinHandle<()>,
    tasks: Vec<JoinHandle<()>>,
}

/// Changes to the usual settings.
pub struct Settings {
    pub pay_timeout_ms: u64,
    pub status_first_after_ms: i64,
    pub pins: Vec<String>,
    pub network_url: Option<String>,
    pub peak_hours: bool,
    pub nonces: usize,
    /// The network's and the provider's, as both sides are configured with them.
    pub network_keys: String,
    pub psp_keys: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            pay_timeout_ms: 5_000,
            status_first_after_ms: 0,
            pins: Vec::new(),
            network_url: None,
            peak_hours: false,
            nonces: 10_000,
            network_keys: r#"{ key_id: npci, key: "file:network-signing.key" }"#.to_owned(),
            psp_keys: r#"{ key_id: torana-psp, key: "file:psp-signing.key" }"#.to_owned(),
        }
    }
}

/// What txn-core would have made durable.
#[derive(Clone, Default)]
pub struct Core {
    pub away: Arc<AtomicBool>,
    msg_ids: Arc<Mutex<HashSet<String>>>,
    events: Arc<Mutex<Vec<(Value, bool)>>>,
}

impl Core {
    /// Every callback that came through, and whether it was the first of its message id.
    pub fn events(&self) -> Vec<(Value, bool)> {
        self.events.lock().unwrap().clone()
    }

    /// `STAGE RESULT CODE` of each callback about this payment that was not a repetition.
    pub fn told(&self, txn_id: &str) -> Vec<String> {
        let text = |event: &Value, name: &str| event[name].as_str().unwrap().to_owned();
        let applied = self.events().into_iter().filter(|(event, first)| *first && event["txnId"] == txn_id);
        applied
            .map(|(event, _)| ["stage", "result", "code"].map(|name| text(&event, name)).join(" "))
            .collect()
    }
}

async fn network_event(State(core): State<Core>, Json(event): Json<Value>) -> impl IntoResponse {
    if core.away.load(Ordering::SeqCst) {
        return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({"code": "unavailable"})));
    }
    if event["txnId"].as_str().is_some_and(|txn_id| txn_id.starts_with("XXX")) {
        return (StatusCode::NOT_FOUND, Json(json!({"code": "unknown_transaction"})));
    }
    let msg_id = event["msgId"].as_str().unwrap().to_owned();
    let applied = core.msg_ids.lock().unwrap().insert(msg_id.clone());
    core.events.lock().unwrap().push((event, applied));
    (StatusCode::OK, Json(json!({"msgId": msg_id, "applied": applied})))
}

impl World {
    pub async fn new() -> World {
        World::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> World {
        certs::install_crypto_provider();
        let pki = tempfile::tempdir().unwrap();
        certs::pki::init(pki.path(), false).unwrap();
        certs::file::write_secret(&pki.path().join("psp-signing.key"), &"ab".repeat(32)).unwrap();
        certs::file::write_secret(&pki.path().join("network-signing.key"), &"cd".repeat(32)).unwrap();
        for (name, digits) in [("psp-signing-2", "ba"), ("network-signing-2", "dc")] {
            certs::file::write_secret(&pki.path().join(format!("{name}.key")), &digits.repeat(32)).unwrap();
        }
        let ahead_ms = Arc::new(AtomicI64::new(0));
        let clock = {
            let (ahead_ms, system) = (Arc::clone(&ahead_ms), Clock::system());
            Clock::new(move || system.now_ms() + ahead_ms.load(Ordering::SeqCst))
        };
        let mut tasks = Vec::new();

        let core = Core::default();
        let core_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let core_port = core_listener.local_addr().unwrap().port();
        let (id, trust) = files(pki.path(), "txn-core", "internal-ca").load().unwrap();
        let tls = certs::server_config(
            &id,
            ClientAuth::Required(trust),
            Versions::Tls13Only,
            &[b"h2", b"http/1.1"],
        )
        .unwrap();
        let app = npci_proxy::peer::only(
            Router::new().route("/internal/v1/network-events", post(network_event)).with_state(core.clone()),
            &["npci-proxy.torana.internal".to_owned()],
        );
        tasks.push(tokio::spawn(async move {
            serve::serve(core_listener, tls, app, serve::Limits::default(), std::future::pending())
                .await
                .unwrap();
        }));

        let sim_listeners = npci_sim::service::Listeners {
            admin: TcpListener::bind("127.0.0.1:0").await.unwrap(),
            front: TcpListener::bind("127.0.0.1:0").await.unwrap(),
        };
        let (sim_front, sim_admin) = (port(&sim_listeners.front), port(&sim_listeners.admin));
        let proxy_listeners = proxy_listeners().await;
        let outside = port(&proxy_listeners.outside);

        let sim_config = format!(
            r#"
admin: {{ listen: 127.0.0.1:0 }}
front: {{ listen: 127.0.0.1:0, tls: {{ certificate: network.pem, key: network.key, ca: network-ca.pem }}, allowed_clients: [psp.torana.test] }}
callback: {{ url: "https://localhost:{outside}", tls: {{ certificate: network.pem, key: network.key, ca: network-ca.pem }}, attempts: 8, retry_ms: 50, retry_max_ms: 200 }}
sign: {network_keys}
verify: {psp_keys}
settlement: {{ debit_after_ms: 5, credit_after_ms: 5, reversal_after_ms: 5 }}
accounts:
  - {{ vpa: alice@torana, holder: Alice, balance_paise: 1000000 }}
  - {{ vpa: bob@torana, holder: Bob }}
  - {{ vpa: pinned@torana, holder: Pinned, balance_paise: 1000, pin: "1234" }}
"#,
            network_keys = settings.network_keys,
            psp_keys = settings.psp_keys,
        );
        let sim_config = npci_sim::config::Config::parse(&sim_config, pki.path().into()).unwrap();
        let network_url = settings.network_url.clone().unwrap_or(format!("https://localhost:{sim_front}"));
        let network_url = network_url.replace("{core}", &core_port.to_string());
        let proxy_config = format!(
            r#"
admin: {{ listen: 127.0.0.1:0 }}
inside: {{ listen: 127.0.0.1:0, tls: {{ certificate: npci-proxy.pem, key: npci-proxy.key, ca: internal-ca.pem }}, allowed_clients: [txn-core.torana.internal] }}
outside: {{ listen: 127.0.0.1:0, tls: {{ certificate: psp.pem, key: psp.key, ca: network-ca.pem }}, allowed_clients: [npci.network.test], body_max_bytes: 4096 }}
network:
  url: "{network_url}"
  tls: {{ certificate: psp.pem, key: psp.key, ca: network-ca.pem }}
  spki_pins: {pins:?}
  sign: {psp_keys}
  verify: {network_keys}
  pay: {{ timeout_ms: {pay_timeout_ms} }}
core: {{ url: "https://localhost:{core_port}", tls: {{ certificate: npci-proxy.pem, key: npci-proxy.key, ca: internal-ca.pem }} }}
freshness: {{ nonces: {nonces} }}
status_checks: {{ first_after_ms: {first_after_ms} }}
{peak_hours}
"#,
            pins = settings.pins,
            network_keys = settings.network_keys,
            psp_keys = settings.psp_keys,
            pay_timeout_ms = settings.pay_timeout_ms,
            nonces = settings.nonces,
            first_after_ms = settings.status_first_after_ms,
            peak_hours =
                if settings.peak_hours { "peak_hours: { windows: [[\"00:00\", \"23:59\"]] }" } else { "" },
        );
        let proxy_config = npci_proxy::config::Config::parse(&proxy_config, pki.path().into()).unwrap();
        let sim_clock = clock.clone();
        tasks.push(tokio::spawn(async move {
            npci_sim::service::run(sim_config, sim_listeners, sim_clock, std::future::pending())
                .await
                .unwrap();
        }));
        let mut world = World {
            client: https(pki.path(), "internal-ca", Some("txn-core")),
            plain: reqwest::Client::new(),
            pki,
            core,
            inside: String::new(),
            outside: String::new(),
            proxy_admin: String::new(),
            sim_front: format!("https://localhost:{sim_front}"),
            sim_admin: format!("http://127.0.0.1:{sim_admin}"),
            ahead_ms,
            clock,
            proxy_config,
            proxy: tokio::spawn(async {}),
            tasks,
        };
        world.start_proxy(proxy_listeners).await;
        world
    }

    /// A new process in the place of the proxy; the simulator goes on calling the old one back.
    pub async fn restart_proxy(&mut self) {
        self.proxy.abort();
        self.start_proxy(proxy_listeners().await).await;
    }

    async fn start_proxy(&mut self, listeners: npci_proxy::service::Listeners) {
        self.inside = format!("https://localhost:{}", port(&listeners.inside));
        self.outside = format!("https://localhost:{}", port(&listeners.outside));
        self.proxy_admin = format!("http://127.0.0.1:{}", port(&listeners.admin));
        let (config, clock) = (self.proxy_config.clone(), self.clock.clone());
        self.proxy = tokio::spawn(async move {
            npci_proxy::service::run(&config, listeners, clock, std::future::pending()).await.unwrap();
        });
        self.plain.get(format!("{}/health", self.proxy_admin)).send().await.unwrap();
        // What was created in the second of the start is refused.
        self.pass_ms(1_000);
    }

    /// Puts every clock forward.
    pub fn pass_ms(&self, ms: i64) {
        self.ahead_ms.fetch_add(ms, Ordering::SeqCst);
    }

    pub fn now_ms(&self) -> i64 {
        Clock::system().now_ms() + self.ahead_ms.load(Ordering::SeqCst)
    }

    /// Status and body of a façade call.
    pub async fn call(&self, path: &str, body: &Value) -> (u16, Value) {
        answer(self.request(path, body).send().await.unwrap()).await
    }

    /// The same, of which txn-core says who started it.
    pub async fn call_of(&self, initiated_by: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = self.request(path, body).header("x-initiated-by", initiated_by);
        answer(request.send().await.unwrap()).await
    }

    fn request(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.inside)).json(body)
    }

    pub async fn pay(&self, number: u32, amount: &str) -> (u16, Value) {
        self.pay_asked(number, amount, 0).await
    }

    /// A payment that was asked for so long ago.
    pub async fn pay_asked(&self, number: u32, amount: &str, ago_ms: i64) -> (u16, Value) {
        let initiated_at = Stamp { unix_ms: self.now_ms() - ago_ms };
        self.call(
            "/v1/initiateTransaction",
            &json!({
                "txnId": txn(number), "msgId": txn(number), "type": "PAY", "payerVpa": "alice@torana",
                "payeeVpa": "bob@torana", "amount": amount, "note": "tea", "deviceId": "d",
                "initiatedAt": initiated_at,
            }),
        )
        .await
    }

    /// The present, as messages say it.
    pub fn now(&self) -> Stamp {
        Stamp { unix_ms: self.now_ms() }
    }

    pub async fn status(&self, number: u32) -> (u16, Value) {
        let original_at = self.now();
        self.call(
            "/v1/statusInquiry",
            &json!({"txnId": txn(number), "msgId": txn(number + 1_000), "originalAt": original_at}),
        )
        .await
    }

    pub async fn faults(&self, rules: Value) {
        let answer =
            self.plain.put(format!("{}/faults", self.sim_admin)).body(json!({ "rules": rules }).to_string());
        assert_eq!(answer.send().await.unwrap().status(), 200);
    }

    pub async fn every_call(&self, fault: Value) {
        self.faults(json!([{"match": {"any": true}, "fault": fault}])).await;
    }

    /// JSON at the simulator's admin address.
    pub async fn sim(&self, path: &str) -> Value {
        self.plain.get(format!("{}{path}", self.sim_admin)).send().await.unwrap().json().await.unwrap()
    }

    pub async fn metric(&self, name: &str) -> f64 {
        let url = format!("{}/metrics", self.proxy_admin);
        let text = self.plain.get(url).send().await.unwrap().text().await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok()).unwrap_or(0.0)
    }

    /// What the proxy serves and holds.
    pub async fn proxy_report(&self) -> certs::report::Report {
        let answer = self.plain.get(format!("{}/certificates", self.proxy_admin)).send().await.unwrap();
        answer.json().await.unwrap()
    }

    pub async fn readiness(&self) -> (u16, Value) {
        answer(self.plain.get(format!("{}/readiness", self.proxy_admin)).send().await.unwrap()).await
    }

    /// Nothing was made or lost, and each payment was debited at most once.
    pub async fn assert_books(&self) {
        let books = self.sim("/ledger").await;
        assert_eq!(books["balanced"], true, "{books}");
        assert_eq!(books["total_paise"], books["opening_total_paise"]);
        let mut debited = HashSet::new();
        for entry in books["entries"].as_array().unwrap() {
            if entry["leg"] == "DEBIT" && entry["account"] == "alice@torana" {
                assert!(debited.insert(entry["txnId"].clone()), "debited twice: {entry}");
            }
        }
    }

    pub fn secret(&self, name: &str) -> npci_proxy::secret::Secret {
        SecretRef::File(name.into()).load(self.pki.path()).unwrap()
    }

    /// A callback as the network signs it.
    pub fn signed_callback(&self, body: &str, created_s: i64) -> HeaderMap {
        let signer = Signer::hmac("npci", &self.secret("network-signing.key")).unwrap();
        let mark = Mark { created_s, ..Mark::fresh(0) };
        let mut headers = HeaderMap::new();
        signer.sign_request(("POST", "/v1/callback"), &mut headers, body.as_bytes(), &mark).unwrap();
        headers
    }

    pub fn psp_verifier(&self) -> Verifier {
        Verifier::hmac("torana-psp", &self.secret("psp-signing.key")).unwrap()
    }

    pub async fn post_callback(&self, who: &reqwest::Client, headers: HeaderMap, body: &str) -> (u16, Value) {
        let request =
            who.post(format!("{}/v1/callback", self.outside)).headers(headers).body(body.to_owned());
        answer(request.send().await.unwrap()).await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.proxy.abort();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

async fn proxy_listeners() -> npci_proxy::service::Listeners {
    let bind = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
    npci_proxy::service::Listeners { admin: bind().await, inside: bind().await, outside: bind().await }
}

fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().unwrap().port()
}

pub fn txn(number: u32) -> String {
    format!("TOR{number:032x}")
}

pub fn https(pki: &Path, ca: &str, identity: Option<&str>) -> reqwest::Client {
    let trust = certs::Trust::load(&pki.join(format!("{ca}.pem"))).unwrap();
    let id = identity.map(|name| {
        certs::Identity::load(&pki.join(format!("{name}.pem")), &pki.join(format!("{name}.key"))).unwrap()
    });
    let tls = certs::client_config(&trust, id.as_ref(), Versions::Tls13Only).unwrap();
    certs::client::https(tls, ClientLimits::default()).unwrap()
}

/// Polls until it holds; how long that takes is nobody's business.
pub async fn until<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..1_000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never: {what}");
}

pub async fn answer(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let retry_after =
        response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let mut body: Value = response.json().await.unwrap_or_default();
    if let (Some(seconds), Value::Object(body)) = (retry_after, &mut body) {
        body.insert("retry_after".into(), seconds.into());
    }
    (status, body)
}

fn files(pki: &Path, name: &str, ca: &str) -> TlsFiles {
    TlsFiles {
        certificate: format!("{name}.pem").into(),
        key: format!("{name}.key").into(),
        ca: format!("{ca}.pem").into(),
        crl: None,
        stale_crl: certs::StaleCrl::Refuse,
    }
    .relative_to(pki)
}
