use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::response::IntoResponse as _;
use axum::routing::post;

use super::*;

#[test]
fn texts_are_encoded_for_a_form() {
    for (text, expected) in [("abc-._~9", "abc-._~9"), ("a b&c=d+é", "a%20b%26c%3Dd%2B%C3%A9"), ("", "")] {
        assert_eq!(encoded(text), expected);
    }
}

const SECRET: &str = "a secret of the edge, at the issuer";

/// What an issuer is asked, and the field that tells who asks.
type Question = (String, Option<String>);

/// An issuer over TLS: of tokens that begin with `bad` it says that they do not count, of those with `slow` nothing for
/// long, and some others it fails; the rest count.
struct House {
    folder: tempfile::TempDir,
    port: u16,
    asked: Arc<Mutex<Vec<Question>>>,
    most_under_way: Arc<AtomicUsize>,
    served: tokio::task::JoinHandle<()>,
}

impl House {
    async fn start(clients: Option<&str>) -> Self {
        certs::install_crypto_provider();
        let folder = tempfile::tempdir().unwrap();
        certs::pki::init(folder.path(), false).unwrap();
        certs::file::write_secret(&folder.path().join("secret"), SECRET).unwrap();
        let at = |name: &str| folder.path().join(name);
        let identity = certs::Identity::load(&at("edge.pem"), &at("edge.key")).unwrap();
        let clients = match clients {
            Some(ca) => certs::ClientAuth::Required(certs::Trust::load(&at(ca)).unwrap()),
            None => certs::ClientAuth::Off,
        };
        let tls = certs::server_config(&identity, clients, Versions::Tls12And13, &[b"http/1.1"]).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<Question>>> = Arc::default();
        let (under_way, most_under_way) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (noted, now, most) = (Arc::clone(&asked), under_way, Arc::clone(&most_under_way));
        let app = Router::new().route(
            "/introspect",
            post(async move |headers: HeaderMap, body: String| {
                let authorization =
                    headers.get("authorization").map(|sent| sent.to_str().unwrap().to_owned());
                noted.lock().unwrap().push((body.clone(), authorization));
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(50)).await;
                now.fetch_sub(1, Ordering::SeqCst);
                let token =
                    body.strip_prefix("token=").and_then(|rest| rest.split('&').next()).unwrap_or_default();
                let exp = now_ms() / 1_000 + 3_600;
                match token {
                    bad if bad.starts_with("bad") => "{\"active\":false}".to_owned().into_response(),
                    "lies" => (StatusCode::FOUND, "{\"active\":true}").into_response(),
                    "fails" => (StatusCode::INTERNAL_SERVER_ERROR, "{\"active\":true}").into_response(),
                    "nonsense" => "active".to_owned().into_response(),
                    "text" => "{\"active\":\"true\"}".to_owned().into_response(),
                    "nobody" => "{\"sub\":\"u\"}".to_owned().into_response(),
                    "huge" => {
                        format!("{{\"active\":true,\"x\":\"{}\"}}", "x".repeat(MOST_BYTES)).into_response()
                    }
                    slow if slow.starts_with("slow") => {
                        tokio::time::sleep(Duration::from_secs(30)).await;
                        "{\"active\":true}".to_owned().into_response()
                    }
                    _ => format!("{{\"active\":true,\"sub\":\"u\",\"exp\":{exp}}}").into_response(),
                }
            }),
        );
        let served = tokio::spawn(async move {
            let limits = certs::serve::Limits::default();
            let _ = certs::serve::serve(listener, tls, app, limits, std::future::pending()).await;
        });
        Self { folder, port, asked, most_under_way, served }
    }

    fn settings(&self) -> Settings {
        let file = |name: &str| At::nowhere(Reference::File(name.into()));
        Settings {
            url: format!("https://localhost:{}/introspect", self.port),
            ca: file("edge-ca.pem"),
            crl: None,
            stale_crl: filters::policy::StaleCrl::Refuse,
            client_id: "edge 1".into(),
            client_secret: Some(file("secret")),
            certificate: None,
            key: None,
            timeout_ms: 500,
            cache_s: 30,
            negative_cache_s: 5,
            cache_entries: 3,
            max_in_flight: 2,
        }
    }

    fn introspection(&self, settings: Settings) -> Introspection {
        self.after(None, settings)
    }

    fn after(&self, before: Option<&Introspection>, settings: Settings) -> Introspection {
        let issuer = Issuer {
            issuer: "https://issuer.test".into(),
            audiences: vec!["a".into()],
            algorithms: Vec::new(),
            jwks: None,
            introspection: Some(At::nowhere(settings)),
            leeway_s: 0,
        };
        let issuers = [("main".to_owned(), At::nowhere(issuer))].into();
        let metrics = Metrics::new().unwrap();
        Introspection::new(&issuers, self.folder.path(), metrics, &Watch::new("test"), before).unwrap()
    }

    fn times_asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.served.abort();
    }
}

fn is_active(answer: Option<Answer>) -> Option<bool> {
    answer.map(|answer| matches!(answer.said, Introspected::Active(_)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_issuers_say() {
    let house = House::start(None).await;
    let introspection = house.introspection(house.settings());
    for (token, expected, times) in [
        ("good", Some(true), 1),
        ("bad", Some(false), 1),
        // What says nothing is not remembered: the next request asks again.
        ("lies", None, 2),
        ("fails", None, 2),
        ("nonsense", None, 2),
        ("text", None, 2),
        ("nobody", None, 2),
        ("huge", None, 2),
        ("slow", None, 2),
    ] {
        let before = house.times_asked();
        for _ in 0..2 {
            assert_eq!(is_active(introspection.ask("main", token).await), expected, "{token}");
        }
        assert_eq!(house.times_asked() - before, times, "{token}");
    }
    assert!(introspection.ask("nobody", "good").await.is_none());
    let (asked, authorization) = house.asked.lock().unwrap()[0].clone();
    assert_eq!(asked, "token=good&token_type_hint=access_token");
    let pair = format!("edge%201:{}", encoded(SECRET));
    assert_eq!(authorization, Some(format!("Basic {}", STANDARD.encode(pair))));

    // Three are remembered; the oldest went.
    for token in ["t1", "t2", "t3"] {
        assert_eq!(is_active(introspection.ask("main", token).await), Some(true));
    }
    assert!(introspection.known("main", "good").is_none() && introspection.known("main", "t1").is_some());
}

/// Another policy takes over: nobody's token is asked about again for that.
#[tokio::test]
async fn what_was_said_counts_while_the_policy_says_the_same() {
    let house = House::start(None).await;
    let settings = house.settings();
    let before = house.introspection(settings.clone());
    assert_eq!(is_active(before.ask("main", "good").await), Some(true));
    let after = house.after(Some(&before), settings.clone());
    assert!(after.known("main", "good").is_some(), "the same is said of the issuer");
    assert_eq!(is_active(after.ask("main", "bad").await), Some(false));
    assert!(before.known("main", "bad").is_some(), "a request under way knows it too");
    assert_eq!(house.times_asked(), 2);
    let other = house.after(Some(&after), Settings { client_id: "edge 2".into(), ..settings });
    assert!(other.known("main", "good").is_none(), "another client may be told something else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_one_token_wait_for_one_question() {
    let house = House::start(None).await;
    let introspection = Arc::new(house.introspection(house.settings()));
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let introspection = Arc::clone(&introspection);
        asked.spawn(async move { is_active(introspection.ask("main", "good").await) });
    }
    assert!(asked.join_all().await.into_iter().all(|active| active == Some(true)));
    assert_eq!(house.times_asked(), 1);
    // More tokens than may be asked about at once: some have no answer, and the issuer sees no more than that.
    let mut asked = tokio::task::JoinSet::new();
    for number in 0..20 {
        let introspection = Arc::clone(&introspection);
        asked.spawn(async move { introspection.ask("main", &format!("t{number}")).await.is_some() });
    }
    let answered = asked.join_all().await.into_iter().filter(|answered| *answered).count();
    assert!((2..20).contains(&answered), "{answered}");
    assert!(house.most_under_way.load(Ordering::SeqCst) <= 2);
    assert!(introspection.issuers["main"].asking().is_empty(), "nothing is left of questions");
    // Who asks and goes away takes nobody's answer along.
    let gone = introspection.ask("main", "late");
    let waits = introspection.ask("main", "late");
    let first = tokio::time::timeout(Duration::from_millis(10), gone);
    let (first, second) = tokio::join!(first, waits);
    assert!(first.is_err());
    assert_eq!(is_active(second), Some(true));
    let gone = tokio::time::timeout(Duration::from_millis(10), introspection.ask("main", "never"));
    assert!(gone.await.is_err());
    assert!(introspection.issuers["main"].asking().is_empty(), "nobody waits for it any more");
}

/// Whoever sends tokens that do not count takes no room and no question from whoever sends good ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_count_nothing_take_nothing_from_others() {
    let house = House::start(None).await;
    let settings = Settings {
        max_in_flight: 4,
        timeout_ms: 20_000,
        cache_s: 300,
        negative_cache_s: 60,
        ..house.settings()
    };
    let introspection = Arc::new(house.introspection(settings));
    assert_eq!(is_active(introspection.ask("main", "good").await), Some(true));
    for number in 0..10 {
        let bad = format!("bad{number}");
        assert_eq!(is_active(introspection.ask("main", &bad).await), Some(false));
    }
    assert!(introspection.known("main", "good").is_some(), "ten others that do not count drove it out");
    assert!(matches!(introspection.known("main", "bad0"), Some(Introspected::Inactive)));

    // What was said of it is over, and all who are not known ask at once.
    let asked = &introspection.issuers["main"];
    let hash = sha256(b"good");
    asked.remembered().active.entries.get_mut(&hash).unwrap().until_ms = 0;
    assert!(introspection.known("main", "good").is_none());
    let before = house.times_asked();
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..10 {
        let introspection = Arc::clone(&introspection);
        flood.spawn(async move { introspection.ask("main", &format!("slow{number}")).await.is_some() });
    }
    // Seven find no place, and the issuer is asked about the other three.
    for _ in 0..7 {
        assert!(!flood.join_next().await.unwrap().unwrap());
    }
    while house.times_asked() < before + 3 {
        tokio::task::yield_now().await;
    }
    assert!(introspection.ask("main", "stranger").await.is_none());
    assert_eq!(is_active(introspection.ask("main", "good").await), Some(true));
    assert_eq!(house.times_asked(), before + 4);
}

#[test]
fn a_memory_that_is_full_forgets_the_oldest() {
    let mut bounded = Bounded::new(2);
    for (hash, entry) in [(1, "a"), (2, "b"), (1, "c"), (3, "d")] {
        bounded.put([hash; 32], entry);
    }
    let mut left: Vec<_> = bounded.entries.into_iter().map(|(hash, entry)| (hash[0], entry)).collect();
    left.sort_unstable();
    assert_eq!(left, [(2, "b"), (3, "d")]);
    assert_eq!(bounded.order.len(), 2);
}

/// The edge is known by its certificate instead of a secret; with none of the right CA it is nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_edge_is_known_by_its_certificate() {
    let house = House::start(Some("internal-ca.pem")).await;
    let file = |name: &str| Some(At::nowhere(Reference::File(name.into())));
    let with_certificate = Settings {
        client_secret: None,
        certificate: file("gateway.pem"),
        key: file("gateway.key"),
        ..house.settings()
    };
    assert_eq!(is_active(house.introspection(with_certificate).ask("main", "good").await), Some(true));
    let (asked, authorization) = house.asked.lock().unwrap()[0].clone();
    assert_eq!(asked, "token=good&token_type_hint=access_token&client_id=edge%201");
    assert_eq!(authorization, None);
    assert_eq!(is_active(house.introspection(house.settings()).ask("main", "good").await), None);
}
