use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use certs::report::KeyKind;
use filters::policy::{Algorithm, Discovery, Issuer, Jwks, Reference};

use super::source::MOST_BYTES;
use super::*;

fn keys(kid: &str) -> String {
    // The public key of RFC 7517 appendix A.1.
    format!(
        r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"{kid}","alg":"ES256",
        "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}}]}}"#
    )
}

fn store(folder: &Path, unknown_kid_refresh_s: u64, stale_s: u64) -> KeyStore {
    let jwks = Jwks {
        url: None,
        discovery: None,
        file: Some(At::nowhere(Reference::File("jwks.json".into()))),
        ca: None,
        crl: None,
        stale_crl: filters::policy::StaleCrl::Refuse,
        refresh_s: 3_600,
        stale_s,
        unknown_kid_refresh_s,
        timeout_ms: 1_000,
    };
    let issuer = Issuer {
        issuer: "https://issuer.test".into(),
        audiences: vec!["a".into()],
        algorithms: vec![Algorithm::ES256],
        jwks: Some(jwks),
        introspection: None,
        leeway_s: 0,
    };
    let issuers = BTreeMap::from([("main".to_owned(), At::nowhere(issuer))]);
    KeyStore::new(&issuers, folder, Metrics::new().unwrap(), &Watch::new("test")).unwrap()
}

impl KeyStore {
    async fn refetches(&self, issuer: &str) -> bool {
        self.refresh_unknown(issuer).await == Refetch::Current
    }
}

/// Puts a file in the place of another, at once.
fn replace(file: &Path, text: &str) {
    let next = file.with_extension("next");
    std::fs::write(&next, text).unwrap();
    std::fs::rename(next, file).unwrap();
}

fn has(store: &KeyStore, kid: &str) -> bool {
    store.keys("main").is_some_and(|keys| keys.find(Some(kid), Algorithm::ES256).is_some())
}

#[tokio::test]
async fn unknown_keys_are_looked_for_at_a_bounded_rate() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, keys("old")).unwrap();
    let store = store(folder.path(), 3_600, 3_600);
    assert_eq!(store.missing(), ["main"]);
    assert!(store.refetches("main").await);
    assert!(store.missing().is_empty() && has(&store, "old"));

    assert!(store.refetches("main").await, "the file is unchanged");
    let read = store.metrics.jwks_fetches.with_label_values(&["main", "ok"]).get();
    assert_eq!(read, 1, "an unchanged file is not read again");
    replace(&file, &keys("new"));
    let refetched = store.refresh_unknown("main").await;
    assert_eq!(refetched, Refetch::NotNow { retry_after_s: 3_600 }, "asked again within the bound");
    assert!(has(&store, "old") && !has(&store, "new"));
    assert!(!store.refetches("nobody").await);
}

#[tokio::test]
async fn the_last_good_keys_serve_while_a_refresh_fails_but_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    for garbage in ["", "{}", "<html>", &"x".repeat(MOST_BYTES + 1)] {
        std::fs::write(&file, keys("good")).unwrap();
        let store = store(folder.path(), 0, 3_600);
        assert!(store.refetches("main").await);
        std::fs::write(&file, garbage).unwrap();
        assert!(!store.refetches("main").await, "{} bytes were keys", garbage.len());
        assert!(has(&store, "good"));
        std::fs::remove_file(&file).unwrap();
        assert!(!store.refetches("main").await);
        assert!(has(&store, "good"));
    }
    // Endless, and of no size.
    std::os::unix::fs::symlink("/dev/zero", &file).unwrap();
    let endless = store(folder.path(), 0, 3_600);
    assert!(!endless.refetches("main").await);
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, keys("good")).unwrap();
    let store = store(folder.path(), 0, 0);
    assert!(store.refetches("main").await);
    assert!(!has(&store, "good"), "stale at once");
}

#[tokio::test]
async fn a_file_that_changes_is_read_again_and_old_keys_go() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    std::fs::write(&file, keys("old")).unwrap();
    let store = Arc::new(store(folder.path(), 3_600, 3_600));
    let running = tokio::spawn(Arc::clone(&store).keep_fresh());
    while !has(&store, "old") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let told = store.report();
    assert_eq!((told.len(), told[0].id.as_str(), told[0].kind), (1, "old", KeyKind::Jwks));
    let both = keys("old").replace("]}", &format!(",{}", keys("new").trim_start_matches(r#"{"keys":["#)));
    std::fs::write(folder.path().join("next"), both).unwrap();
    std::fs::rename(folder.path().join("next"), &file).unwrap();
    while !has(&store, "new") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(has(&store, "old"), "both while one takes over");
    let since = |id: &str| store.report().into_iter().find(|key| key.id == id).and_then(|key| key.first_seen);
    assert_eq!(since("old"), told[0].first_seen, "an old key does not become a new one");
    std::fs::write(&file, keys("new")).unwrap();
    while has(&store, "old") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(since("old"), None);
    running.abort();
}

#[tokio::test]
async fn keys_are_kept_fresh_in_the_background() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("jwks.json");
    let store = Arc::new(store(folder.path(), 3_600, 3_600));
    let running = tokio::spawn(Arc::clone(&store).keep_fresh());
    // The source fails at first and is asked again soon.
    while store.metrics.jwks_fetches.with_label_values(&["main", "error"]).get() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    std::fs::write(&file, keys("late")).unwrap();
    while !has(&store, "late") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    running.abort();
}

/// A clock that a test moves.
#[derive(Debug, Default)]
struct Told(AtomicU64);

impl Told {
    fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
    }
}

impl Clock for Told {
    fn now(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }
}

/// What an issuer's endpoint does.
#[derive(Clone, Debug)]
enum Day {
    /// Nothing listens.
    Away,
    /// Publishes a key of this id.
    Publishes(&'static str),
    /// Answers so, with a key set in which there is the key `evil`.
    Status(u16),
    /// Sends whoever asks to a key set in which there is the key `evil`.
    Elsewhere,
    /// Answers so, with 200.
    Says(String),
    /// Accepts, and never answers.
    Silent,
    /// Begins to answer, and never ends.
    Trickles,
    /// Never stops answering.
    Endless,
}

/// An issuer's endpoint for keys and metadata, over TLS.
struct Endpoint {
    folder: tempfile::TempDir,
    port: u16,
    /// How long whoever looks for keys waits.
    timeout_ms: u64,
    day: Arc<std::sync::Mutex<Day>>,
    /// What the metadata name, in place of the issuer itself.
    named: Arc<std::sync::Mutex<Option<String>>>,
    served: tokio::task::JoinHandle<()>,
}

impl Endpoint {
    async fn start() -> Self {
        certs::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        certs::pki::init(folder.path(), false).unwrap();
        // One that stays its own while nobody listens there.
        let listener = tokio::net::TcpListener::bind(engines::ports::v4().unwrap()).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let day = Arc::new(std::sync::Mutex::new(Day::Publishes("old")));
        let named = Arc::default();
        let served = Self::serve(listener, folder.path(), "edge", Arc::clone(&day), Arc::clone(&named));
        Self { folder, port, timeout_ms: 5_000, day, named, served }
    }

    fn serve(
        listener: tokio::net::TcpListener,
        folder: &Path,
        identity: &str,
        day: Arc<std::sync::Mutex<Day>>,
        named: Arc<std::sync::Mutex<Option<String>>>,
    ) -> tokio::task::JoinHandle<()> {
        let at = |ending: &str| folder.join(format!("{identity}.{ending}"));
        let identity = certs::Identity::load(&at("pem"), &at("key")).unwrap();
        let off = certs::ClientAuth::Off;
        let tls = certs::server_config(&identity, off, certs::Versions::Tls12And13, &[b"http/1.1"]).unwrap();
        let port = listener.local_addr().unwrap().port();
        let published = axum::routing::get(move || {
            let day = day.lock().unwrap().clone();
            answer(day)
        });
        let metadata = axum::routing::get(async move || {
            let issuer = named.lock().unwrap().clone().unwrap_or_else(|| format!("https://localhost:{port}"));
            let uri = format!("https://localhost:{port}/keys");
            axum::Json(serde_json::json!({ "issuer": issuer, "jwks_uri": uri }))
        });
        let evil = axum::routing::get(async || keys("evil"));
        let app = Router::new()
            .route("/keys", published)
            .route("/evil", evil)
            .route("/.well-known/openid-configuration", metadata.clone())
            .route("/.well-known/oauth-authorization-server", metadata);
        tokio::spawn(async move {
            let limits = certs::serve::Limits::default();
            let _ = certs::serve::serve(listener, tls, app, limits, std::future::pending()).await;
        })
    }

    async fn set(&mut self, day: Day) {
        let is_away = matches!(day, Day::Away);
        *self.day.lock().unwrap() = day;
        if is_away {
            self.served.abort();
            // Over, so that the port is free.
            let _ = (&mut self.served).await;
        } else if self.served.is_finished() {
            let listener = std::net::TcpListener::bind(("127.0.0.1", self.port)).unwrap();
            listener.set_nonblocking(true).unwrap();
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let (day, named) = (Arc::clone(&self.day), Arc::clone(&self.named));
            self.served = Self::serve(listener, self.folder.path(), "edge", day, named);
        }
    }

    /// Whose keys are looked for here, and how.
    fn store(&self, stale_s: u64, discovery: Option<Discovery>) -> (KeyStore, Arc<Told>) {
        let url = format!("https://localhost:{}", self.port);
        let jwks = Jwks {
            url: discovery.is_none().then(|| format!("{url}/keys")),
            discovery,
            file: None,
            ca: Some(At::nowhere(Reference::File("edge-ca.pem".into()))),
            crl: None,
            stale_crl: filters::policy::StaleCrl::Refuse,
            refresh_s: 300,
            stale_s,
            unknown_kid_refresh_s: 10,
            timeout_ms: self.timeout_ms,
        };
        let issuer = Issuer {
            issuer: url,
            audiences: vec!["a".into()],
            algorithms: vec![Algorithm::ES256],
            jwks: Some(jwks),
            introspection: None,
            leeway_s: 0,
        };
        let issuers = BTreeMap::from([("main".to_owned(), At::nowhere(issuer))]);
        let clock = Arc::new(Told::default());
        let (metrics, watch) = (Metrics::new().unwrap(), Watch::new("test"));
        let store = KeyStore::with_clock(
            &issuers,
            self.folder.path(),
            metrics,
            &watch,
            Arc::clone(&clock) as Arc<dyn Clock>,
        );
        (store.unwrap(), clock)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn answer(day: Day) -> Response {
    let json = |text: String| ([("content-type", "application/json")], text);
    let pieces = |first: &'static [u8], then: &'static [u8], every: Duration| {
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let mut next = first;
            while sender.send(next).await.is_ok() {
                tokio::time::sleep(every).await;
                next = then;
            }
        });
        axum::body::Body::new(Pieces(receiver)).into_response()
    };
    match day {
        Day::Away => StatusCode::SERVICE_UNAVAILABLE.into_response(),
        Day::Publishes(kid) => json(keys(kid)).into_response(),
        Day::Status(status) => (StatusCode::from_u16(status).unwrap(), json(keys("evil"))).into_response(),
        Day::Elsewhere => (StatusCode::FOUND, [("location", "/evil")], json(keys("evil"))).into_response(),
        Day::Says(text) => json(text).into_response(),
        Day::Silent => std::future::pending().await,
        Day::Trickles => pieces(b"{\"keys\":[", b" ", Duration::from_millis(20)),
        Day::Endless => pieces(b"{\"keys\":[", PADDING, Duration::ZERO),
    }
}

const PADDING: &[u8] = &[b' '; 64 * 1024];

/// A body of what comes out of a channel.
struct Pieces(tokio::sync::mpsc::Receiver<&'static [u8]>);

impl http_body::Body for Pieces {
    type Data = bytes::Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Self::Error>>> {
        let piece = |piece: &'static [u8]| Ok(http_body::Frame::data(bytes::Bytes::from_static(piece)));
        self.0.poll_recv(context).map(|next| next.map(piece))
    }
}

/// Lives through so much time as the process would: refreshes when they are due, and a token with an unknown key every
/// minute. Tells how often the endpoint was asked.
async fn live(store: &KeyStore, clock: &Told, time: Duration, mut always: impl FnMut(Duration)) -> u32 {
    const STEP: Duration = Duration::from_secs(10);
    let keys = &store.issuers["main"];
    let (mut failures, mut asked) = (0, 0);
    let began = clock.now();
    let mut due = began;
    while clock.now() < began + time {
        if clock.now() >= due {
            due = clock.now() + store.refresh("main", keys, &mut failures).await;
            asked += 1;
        }
        if (clock.now() - began).as_secs().is_multiple_of(60) {
            store.refetches("main").await;
        }
        always(clock.now() - began);
        clock.advance(STEP.min(due.saturating_sub(clock.now()).max(Duration::from_millis(250))));
    }
    asked
}

/// An hour of such days, of an endpoint that has published `old`: the keys that were good serve through all of it, nothing
/// of what it says meanwhile counts, and the keys that it publishes afterwards, others than before, count at once.
async fn an_hour_of(day: Day) {
    const HOUR: Duration = Duration::from_secs(3_600);
    let mut endpoint = Endpoint::start().await;
    // Short, for an hour of waiting; who is asked in good health is asked until there was time enough.
    endpoint.timeout_ms = 100;
    let (store, clock) = endpoint.store(2 * 3_600, None);
    let publishes = async |store: &KeyStore, kid: &str| {
        for _ in 0..20 {
            clock.advance(Duration::from_secs(10));
            if store.refetches("main").await {
                break;
            }
        }
        assert!(has(store, kid), "{day:?}: {kid} is published");
    };
    publishes(&store, "old").await;
    endpoint.set(day.clone()).await;
    let asked = live(&store, &clock, HOUR, |at| {
        assert!(has(&store, "old"), "{day:?}: locked out after {at:?}");
        assert!(!has(&store, "evil") && !has(&store, "new"), "{day:?}: let in after {at:?}");
    })
    .await;
    assert!(
        (12..=80).contains(&asked),
        "{day:?}: asked {asked} times, never less often than when all is well"
    );
    // It was rotated meanwhile: a token with the new key finds it, without waiting for the next refresh.
    endpoint.set(Day::Publishes("new")).await;
    publishes(&store, "new").await;
    assert!(!has(&store, "old"), "{day:?}: what is no longer published counts no longer");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_of_a_bad_endpoint_locks_nobody_out_and_lets_nobody_in() {
    let evil = keys("evil");
    let days = [
        Day::Away,
        Day::Silent,
        Day::Trickles,
        Day::Status(503),
        Day::Status(404),
        Day::Elsewhere,
        Day::Says(String::new()),
        Day::Says("{}".into()),
        Day::Says(r#"{"keys":[]}"#.into()),
        Day::Says("<html>".into()),
        Day::Says(evil[..evil.len() - 2].to_owned()),
        Day::Says(evil.replace(r#""kty":"EC""#, r#""kty":"oct","k":"AAAA""#)),
        Day::Says(format!("{evil}{}", " ".repeat(MOST_BYTES))),
        Day::Says(evil.replace("]}", &format!(",{}]}}", &evil[9..evil.len() - 2]))),
        Day::Endless,
    ];
    // Side by side: of an hour of answers that do not come most is waiting.
    let hours: tokio::task::JoinSet<()> = days.into_iter().map(an_hour_of).collect();
    hours.join_all().await;
}

/// Clients hear when the next fetch is allowed, and no sooner does a token cause one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_token_may_cause_the_next_fetch() {
    let mut endpoint = Endpoint::start().await;
    let (store, clock) = endpoint.store(3_600, None);
    let fetches = |outcome| store.metrics.jwks_fetches.with_label_values(&["main", outcome]).get();
    for (later_ms, day, expected, fetched) in [
        (0, Day::Publishes("old"), Refetch::Current, (1, 0)),
        (1, Day::Publishes("new"), Refetch::NotNow { retry_after_s: 10 }, (1, 0)),
        (999, Day::Publishes("new"), Refetch::NotNow { retry_after_s: 9 }, (1, 0)),
        (8_999, Day::Publishes("new"), Refetch::NotNow { retry_after_s: 1 }, (1, 0)),
        (1, Day::Status(503), Refetch::NotNow { retry_after_s: 10 }, (1, 1)),
        (4_000, Day::Publishes("new"), Refetch::NotNow { retry_after_s: 6 }, (1, 1)),
        (6_000, Day::Publishes("new"), Refetch::Current, (2, 1)),
    ] {
        clock.advance(Duration::from_millis(later_ms));
        endpoint.set(day.clone()).await;
        assert_eq!(store.refresh_unknown("main").await, expected, "{later_ms} ms later: {day:?}");
        assert_eq!((fetches("ok"), fetches("error")), fetched, "{later_ms} ms later: {day:?}");
    }
    assert!(has(&store, "new"));
}

/// A fetch in the background does not use up the rate: the next token with an unknown key is decided on at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refresh_in_the_background_leaves_the_rate_alone() {
    let mut endpoint = Endpoint::start().await;
    let (store, clock) = endpoint.store(3_600, None);
    store.fetch_missing().await;
    store.refresh("main", &store.issuers["main"], &mut 0).await;
    assert!(has(&store, "old"));
    clock.advance(Duration::from_millis(1));
    endpoint.set(Day::Publishes("new")).await;
    assert!(store.refetches("main").await && has(&store, "new"));
    clock.advance(Duration::from_millis(1));
    assert!(!store.refetches("main").await, "one token after another");
}

/// Requests that wait are bounded, so that unknown keys cannot hold every connection while an issuer is silent.
#[tokio::test]
async fn waiting_requests_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("jwks.json"), keys("old")).unwrap();
    let store = store(folder.path(), 3_600, 3_600);
    let all = store.issuers["main"].waiting.acquire_many(u32::try_from(MOST_WAITING).unwrap()).await.unwrap();
    assert_eq!(store.refresh_unknown("main").await, Refetch::NotNow { retry_after_s: 1 });
    drop(all);
    assert_eq!(store.refresh_unknown("main").await, Refetch::Current);
}

/// Keys that cannot be refreshed serve until their stale limit, and not a moment longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_serve_until_their_stale_limit() {
    let mut endpoint = Endpoint::start().await;
    let (store, clock) = endpoint.store(1_800, None);
    assert!(store.refetches("main").await);
    endpoint.set(Day::Status(503)).await;
    live(&store, &clock, Duration::from_secs(3_600), |at| {
        assert_eq!(has(&store, "old"), at < Duration::from_secs(1_800), "after {at:?}");
    })
    .await;
    assert_eq!(store.missing(), ["main"], "readiness tells");
}

/// Somebody else at the endpoint's address, with a certificate of another CA, is not believed; nor is nobody at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_impostor_publishes_nothing() {
    let mut endpoint = Endpoint::start().await;
    let other = tempfile::tempdir().unwrap();
    certs::pki::init(other.path(), false).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let day = Arc::new(std::sync::Mutex::new(Day::Publishes("evil")));
    let impostor = Endpoint::serve(listener, other.path(), "edge", day, Arc::default());
    // Whoever looks for our keys finds the other one.
    endpoint.port = port;
    let (store, clock) = endpoint.store(3_600, None);
    for _ in 0..2 {
        clock.advance(Duration::from_secs(10));
        assert!(!store.refetches("main").await);
        assert!(!has(&store, "evil"));
        impostor.abort();
    }
}

/// The issuer's own metadata say where its keys are, and those of another issuer say nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_discovered() {
    let mut endpoint = Endpoint::start().await;
    for discovery in [Discovery::Openid, Discovery::Oauth] {
        endpoint.set(Day::Publishes("old")).await;
        *endpoint.named.lock().unwrap() = None;
        let (store, clock) = endpoint.store(3_600, Some(discovery));
        assert!(store.refetches("main").await, "{discovery:?}");
        assert!(has(&store, "old"));
        endpoint.set(Day::Publishes("evil")).await;
        *endpoint.named.lock().unwrap() = Some("https://evil.test".to_owned());
        clock.advance(Duration::from_secs(10));
        assert!(!store.refetches("main").await, "{discovery:?}: metadata of another issuer");
        assert!(has(&store, "old") && !has(&store, "evil"));
        *endpoint.named.lock().unwrap() = None;
        endpoint.set(Day::Publishes("new")).await;
        clock.advance(Duration::from_secs(10));
        assert!(store.refetches("main").await && has(&store, "new"));
    }
}
