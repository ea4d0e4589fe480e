//! Redis stopped and started while requests come.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::*;

/// An upstream that takes its time, and knows the most requests that it has had at once.
#[derive(Clone, Default)]
struct Slow {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl Slow {
    async fn start(&self, folder: &Path) -> u16 {
        let this = self.clone();
        let app = Router::new().fallback(async move |_: Request| {
            let now = this.now.fetch_add(1, Ordering::Relaxed) + 1;
            this.most.fetch_max(now, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(100)).await;
            this.now.fetch_sub(1, Ordering::Relaxed);
            axum::Json(json!({ ":name": "slow" }))
        });
        upstream(folder, app).await
    }
}

/// How it is with Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Up,
    Going,
    Away,
    Coming,
    UpAgain,
}

/// Requests that were sent at once, after all before them had been answered.
#[derive(Debug)]
struct Round {
    began: Phase,
    ended: Phase,
    most_at_once: usize,
    passed: usize,
}

impl Round {
    /// The most that may be in flight: all places there are, and once more in this process if the shared state went or
    /// came meanwhile.
    fn bound(&self) -> usize {
        match (self.began, self.ended) {
            (Phase::Up, Phase::Up) | (Phase::Away, Phase::Away) | (Phase::UpAgain, Phase::UpAgain) => PLACES,
            (_, _) => 2 * PLACES,
        }
    }
}

/// Of the tenant `flight`.
const PLACES: usize = 3;

/// None is answered oddly, limits stay bounded, nonces closed, and all is well again by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_goes_and_comes_under_load() {
    const MOST: usize = 10;
    let (folder, redis_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    pki(folder.path());
    let mut redis = engines::Redis::start(redis_folder.path()).await.unwrap();
    certs::file::write_secret(&folder.path().join("redis.url"), &redis.url()).unwrap();
    let quick = Recorder::start(folder.path(), "u").await.port;
    let slow = Slow::default();
    let policy = format!(
        r#"{TENANTS}
state: {{ redis: {{ url: "file:redis.url", timeout_ms: 5000 }} }}
upstreams:
  u: {{ addresses: ["127.0.0.1:{quick}"], tls: {TLS} }}
  slow: {{ addresses: ["127.0.0.1:{}"], tls: {TLS} }}
clients: {{ acme: {{ hmac_keys: [{{ id: acme-1, secret: "env:ACME_SECRET" }}] }} }}
routes:
  - {{ name: plan, methods: [GET], path: /plan, upstream: u, filters: {{ tenant: {{ from: [host] }} }} }}
  - {{ name: slow, methods: [GET], path: /slow, upstream: slow, filters: {{ tenant: {{ from: [host] }} }} }}
  - name: signed
    methods: [POST]
    path: /signed
    upstream: u
    filters: {{ signature: {{ signer: client }}, nonce: {{ max_skew_s: 0 }} }}
"#,
        slow.start(folder.path()).await
    );
    let gateway = Arc::new(serve_hosts(folder.path(), &policy).await);
    let signed = async |nonce: &str, now_s: u64| {
        gateway.send_signed_at("/signed", ("acme-1", SECRET), nonce, now_s).await
    };
    let now_s = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let nonces = AtomicUsize::new(0);
    let anew = async || {
        let nonce = format!("nonce-0123456789-{}", nonces.fetch_add(1, Ordering::Relaxed));
        let now_s = now_s();
        (signed(&nonce, now_s).await, nonce, now_s)
    };
    // What is signed from the second on in which the memory began.
    until("signed requests pass", async || anew().await.0.0 == 200).await;

    let over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for tenant in ["calls", "volume", "calls", "volume"] {
        let (gateway, over) = (Arc::clone(&gateway), Arc::clone(&over));
        clients.spawn(async move {
            let mut answers = Vec::new();
            while !over.load(Ordering::Relaxed) {
                answers.extend(at_once(from_ref(&gateway), tenant, "/plan", 1).await);
            }
            (tenant, answers)
        });
    }
    let (phase, rounds) = (Arc::new(Mutex::new(Phase::Up)), Arc::new(Mutex::new(Vec::<Round>::new())));
    let in_rounds = {
        let (gateway, over) = (Arc::clone(&gateway), Arc::clone(&over));
        let (phase, rounds, slow) = (Arc::clone(&phase), Arc::clone(&rounds), slow.clone());
        tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let began = *phase.lock().unwrap();
                slow.most.store(0, Ordering::Relaxed);
                let answers = at_once(from_ref(&gateway), "flight", "/slow", 4 * PLACES).await;
                let most_at_once = slow.most.load(Ordering::Relaxed);
                let passed = passed(&answers, "concurrency_limited");
                let ended = *phase.lock().unwrap();
                rounds.lock().unwrap().push(Round { began, ended, most_at_once, passed });
            }
        })
    };
    let has_served = |wanted: Phase| {
        let rounds = rounds.lock().unwrap();
        rounds.iter().any(|round| (round.began, round.ended) == (wanted, wanted) && round.passed > 0)
    };
    let becomes = |next: Phase| *phase.lock().unwrap() = next;

    until("requests are in flight", async || has_served(Phase::Up)).await;
    let (answer, taken, taken_s) = anew().await;
    assert_eq!(answer.0, 200);
    assert_eq!(signed(&taken, taken_s).await, (401, "nonce_replayed".to_owned()));
    becomes(Phase::Going);
    redis.stop().await.unwrap();
    for _ in 0..20 {
        assert_eq!(anew().await.0, (503, "state_unavailable".to_owned()));
        assert_eq!(signed(&taken, taken_s).await, (503, "state_unavailable".to_owned()));
    }
    becomes(Phase::Away);
    assert_eq!(gateway.usage("").await.0, 503);
    until("what is in no bill is told", async || gateway.metric("gateway_uncounted_total").await > 0.0).await;
    until("requests pass meanwhile", async || has_served(Phase::Away)).await;
    becomes(Phase::Coming);
    redis.resume().await.unwrap();
    until("signed requests pass again", async || {
        let told = signed(&taken, taken_s).await;
        assert!(told.0 == 503 || told.0 == 401, "what was taken is taken again: {told:?}");
        anew().await.0.0 == 200
    })
    .await;
    until("usage is told again", async || gateway.usage("").await.0 == 200).await;
    becomes(Phase::UpAgain);
    // Redis has forgotten it, and knows since when it has not.
    for _ in 0..5 {
        assert_eq!(signed(&taken, taken_s).await, (401, "created_before_start".to_owned()));
    }
    until("requests pass as before", async || has_served(Phase::UpAgain)).await;
    over.store(true, Ordering::Relaxed);

    in_rounds.await.unwrap();
    for round in rounds.lock().unwrap().iter() {
        assert!(round.most_at_once <= round.bound(), "{round:?}");
    }
    let mut by_tenant = BTreeMap::new();
    for (tenant, answers) in clients.join_all().await {
        by_tenant.entry(tenant).or_insert_with(Vec::new).extend(answers);
    }
    // Once in Redis, once here while it was away, once in a Redis that had forgotten.
    let calls = passed(&by_tenant["calls"], "rate_limited");
    assert!((1..=3 * MOST).contains(&calls), "{calls} of {}", by_tenant["calls"].len());
    let volume = passed(&by_tenant["volume"], "quota_exceeded");
    assert!((1..=3 * 25).contains(&volume), "{volume} of {}", by_tenant["volume"].len());
}
