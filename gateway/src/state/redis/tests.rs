//! Redis and memory give the same answers, whatever they are asked; and what becomes of requests while Redis is away.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use filters::policy::State as Settings;
use filters::policy::{At, Reference};
use filters::state::{
    Batch, Cells, Counted, LimitsWhenAway, Memory, Mode, Rate, UsageByTenant, Windows, run,
};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::state::State;

pub(super) const T0_MS: u64 = 1_800_000_000_000;

pub(in super::super) fn write_settings(
    url: &str,
    prefix: &str,
    limits: LimitsWhenAway,
) -> (tempfile::TempDir, Settings) {
    let folder = tempfile::tempdir().unwrap();
    certs::file::write_secret(&folder.path().join("redis.url"), &format!("{url}\n")).unwrap();
    let redis = Settings {
        redis: Some(At::nowhere(filters::policy::Redis {
            url: At::nowhere(Reference::File("redis.url".into())),
            ca: None,
            sentinel: None,
            cluster: false,
            prefix: prefix.to_owned(),
            connect_timeout_ms: 1_000,
            timeout_ms: 2_000,
        })),
        limits_when_away: limits,
        ..Settings::default()
    };
    (folder, redis)
}

pub(super) fn redis(url: &str, prefix: &str) -> Redis {
    let (folder, settings) = write_settings(url, prefix, LimitsWhenAway::Local);
    let settings = settings.redis.unwrap().value;
    Redis::new(&settings, folder.path(), &Metrics::new().unwrap(), &certs::Watch::new("test")).unwrap()
}

fn take(key: &str, requests: u32, per_ms: u64, burst: u32, cost: u32) -> Op {
    let rate = Rate::new(requests, per_ms, burst).unwrap();
    Op::Take { key: key.into(), rate, cost, mode: Mode::Enforce }
}

/// A batch in the making: its keys are few, so that they meet, and distinct within a batch. A release gives back a
/// place that was held before, or one that never was.
#[derive(Clone, Debug)]
enum Step {
    Take { key: u8, rate: usize, cost: u32, mode: Mode },
    Spend { key: u8, most: u64, cost: u32, ends_ms: u64, mode: Mode },
    Remember { key: u8, ttl_ms: u64, age_s: i64, ahead_s: u32, window_s: Option<u64> },
    Hold { key: u8, most: u32, lease_ms: u64, mode: Mode },
    Release { held: usize },
    Tally { day: u8, tenant: u8, cost: u32 },
}

/// Days of tallies.
const DAYS: [&str; 2] = ["usage/1", "usage/2"];

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![2 => Just(Mode::Enforce), 1 => Just(Mode::Shadow)]
}

/// From [`T0_MS`] on: the ends of periods, some of which lie in the past of most batches.
fn ends_ms() -> impl Strategy<Value = u64> {
    let soon = prop_oneof![Just(0), Just(1_000), Just(5_000), 1..100_000u64];
    // An hour after its end a period is over for good.
    prop_oneof![2 => soon, 1 => Just(200_000_000)].prop_map(|later| T0_MS + later)
}

const RATES: [(u32, u64, u32); 6] = [
    (1, 1_000, 1),
    (3, 1_000, 2),
    (7, 60_000, 5),
    (1_000_000, 1_000, 1_000_000),
    (1, Rate::MAX_PER_MS, 3),
    (100, 86_400_000, 100),
];

/// Times that meet each other: what ends just when something else begins is where mistakes are.
fn span_ms() -> impl Strategy<Value = u64> {
    let often = prop_oneof![Just(1), Just(100), Just(500), Just(1_000), Just(2_000)];
    prop_oneof![4 => often, 1 => 1..5_000u64]
}

/// Until the next batch.
fn later_ms() -> impl Strategy<Value = i64> {
    prop_oneof![3 => Just(0), 6 => span_ms().prop_map(u64::cast_signed), 1 => 1..100_000_000i64]
}

/// The same of a clock that steps back now and then.
fn unsteady_ms() -> impl Strategy<Value = i64> {
    prop_oneof![4 => later_ms(), 1 => -600..0i64]
}

type Batches = Vec<(i64, Vec<Step>)>;

fn batches(later: impl Strategy<Value = i64>) -> impl Strategy<Value = Batches> {
    proptest::collection::vec((later, proptest::collection::vec(step(), 0..4)), 1..40)
}

fn step() -> impl Strategy<Value = Step> {
    let rate = prop_oneof![2 => 0..2usize, 1 => 0..RATES.len()];
    prop_oneof![
        (0..2u8, rate, 1..3u32, mode()).prop_map(|(key, rate, cost, mode)| Step::Take {
            key,
            rate,
            cost,
            mode
        }),
        (0..2u8, 0..6u64, 1..4u32, ends_ms(), mode())
            .prop_map(|(key, most, cost, ends_ms, mode)| Step::Spend { key, most, cost, ends_ms, mode }),
        (0..2u8, 0..3u8, 0..4u32).prop_map(|(day, tenant, cost)| Step::Tally { day, tenant, cost }),
        (0..3u8, span_ms(), -3..4i64, 0..3u32, proptest::option::of(1..4u64)).prop_map(
            |(key, ttl_ms, age_s, ahead_s, window_s)| Step::Remember {
                key,
                ttl_ms,
                age_s,
                ahead_s,
                window_s
            }
        ),
        (0..2u8, 0..4u32, span_ms(), mode()).prop_map(|(key, most, lease_ms, mode)| Step::Hold {
            key,
            most,
            lease_ms,
            mode
        }),
        (0..4usize).prop_map(|held| Step::Release { held }),
    ]
}

fn ops(steps: &[Step], now_ms: u64, held: &[Op]) -> Vec<Op> {
    let mut ops: Vec<Op> = Vec::new();
    for step in steps {
        let op = match *step {
            Step::Take { key, rate, cost, mode } => {
                let (requests, per_ms, burst) = RATES[rate];
                let rate_of = Rate::new(requests, per_ms, burst).unwrap();
                Op::Take { key: format!("t{key}/{rate}"), rate: rate_of, cost: cost.min(burst), mode }
            }
            Step::Spend { key, most, cost, ends_ms, mode } => {
                Op::Spend { key: format!("s{key}@{ends_ms}"), most, cost, ends_ms, mode }
            }
            Step::Tally { day, tenant, cost } => Op::Tally {
                key: DAYS[usize::from(day)].into(),
                tenant: format!("tenant {tenant}"),
                usage: Usage::of_request(cost),
                until_ms: T0_MS + 10_000_000_000,
            },
            Step::Remember { key, ttl_ms, age_s, ahead_s, window_s } => {
                let made_s = i64::try_from(now_ms / 1_000).unwrap() - age_s;
                Op::Remember { key: format!("n{key}"), ttl_ms, made_s, ahead_s, window_s }
            }
            Step::Hold { key, most, lease_ms, mode } => {
                Op::Hold { key: format!("h{key}"), most, lease_ms, mode }
            }
            Step::Release { held: at } => match held.get(at) {
                Some(release) => release.clone(),
                None => Op::Release { key: "h0".into(), place: Place { number: 0, until_us: 1 } },
            },
        };
        if ops.iter().all(|seen| seen.key() != op.key()) {
            ops.push(op);
        }
    }
    ops
}

/// Asks one Redis, and for each run of batches what `expected` makes, the same at the same times. What it makes began to
/// remember at [`T0_MS`].
fn answers_are<P: Arithmetic>(later: impl Strategy<Value = i64>, expected: impl Fn() -> P) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    // Ends with this function: a static would leave it behind.
    let server = runtime.block_on(engines::Redis::start(dir.path())).unwrap();
    // Another prefix for each run, also while a failure is made smaller.
    let runs = AtomicU64::new(0);
    let config = Config { cases: 100, failure_persistence: None, ..Config::default() };
    let held = TestRunner::new(config).run(&batches(later), |batches| {
        let run = runs.fetch_add(1, Ordering::Relaxed);
        let redis = redis(&server.url(), &format!("{run}:"));
        runtime.block_on(compare(&redis, batches, expected()));
        Ok(())
    });
    held.unwrap();
}

/// What Redis is held to.
trait Arithmetic {
    fn answers(&mut self, ops: &[Op], now_ms: u64) -> Vec<Answer>;
    fn used(&self, day: &str) -> UsageByTenant;
}

async fn compare(redis: &Redis, batches: Batches, mut expected: impl Arithmetic) {
    // The script is there, and the memory begins when the other one does.
    redis.ask(&[], None).await.unwrap();
    let mut set = redis::cmd("SET");
    set.arg(&redis.check.since).arg(T0_MS * 1_000);
    let () = set.query_async(&mut redis.link.connection().await.unwrap()).await.unwrap();
    let mut held: Vec<Op> = Vec::new();
    let mut now_ms = T0_MS;
    for (later_ms, steps) in batches {
        now_ms = now_ms.saturating_add_signed(later_ms).max(T0_MS);
        let ops = ops(&steps, now_ms, &held);
        let answers = redis.ask(&ops, Some(now_ms * 1_000)).await.unwrap();
        assert_eq!(answers, expected.answers(&ops, now_ms), "{ops:?} at {} ms", now_ms - T0_MS);
        for (op, answer) in ops.iter().zip(&answers) {
            if let Answer::Held(place) = answer
                && !answers.iter().any(Answer::refuses)
            {
                held.push(Op::Release { key: op.key().to_owned(), place: *place });
            }
        }
    }
    let used = redis.usage(&DAYS.map(str::to_owned)).await.unwrap();
    assert_eq!(used, DAYS.map(|day| expected.used(day)), "what tenants have used");
}

impl Arithmetic for Memory {
    fn answers(&mut self, ops: &[Op], now_ms: u64) -> Vec<Answer> {
        self.run(ops, now_ms).unwrap()
    }
    fn used(&self, day: &str) -> UsageByTenant {
        self.usage(day)
    }
}

/// Forgets nothing, so that a clock may step back.
#[derive(Default)]
struct Everything(HashMap<String, (u64, u64)>, HashMap<String, UsageByTenant>, Windows);

impl Cells for Everything {
    fn get(&self, key: &str, now_us: u64) -> Option<u64> {
        self.0.get(key).filter(|(_, expires_us)| *expires_us > now_us).map(|(value, _)| *value)
    }
    fn put(&mut self, key: &str, value: u64, expires_us: u64) {
        self.0.insert(key.to_owned(), (value, expires_us));
    }
    fn tally(&mut self, day: &str, tenant: &str, usage: Usage, _until_us: u64) {
        *self.1.entry(day.to_owned()).or_default().entry(tenant.to_owned()).or_default() += usage;
    }
    fn since_us(&self) -> u64 {
        T0_MS * 1_000
    }
    fn windows(&self) -> &Windows {
        &self.2
    }
    fn windows_mut(&mut self) -> &mut Windows {
        &mut self.2
    }
}

impl Arithmetic for Everything {
    fn answers(&mut self, ops: &[Op], now_ms: u64) -> Vec<Answer> {
        run(ops, now_ms, self)
    }
    fn used(&self, day: &str) -> UsageByTenant {
        self.1.get(day).cloned().unwrap_or_default()
    }
}

#[test]
fn redis_and_memory_answer_alike() {
    answers_are(later_ms(), || Memory::new(10_000, T0_MS));
}

#[test]
fn redis_does_the_arithmetic_whatever_the_clock() {
    answers_are(unsteady_ms(), Everything::default);
}

fn batch(ops: &[Op]) -> Batch {
    ops.iter().map(|op| (op.clone(), Counted::Shared)).collect()
}

fn now_s() -> i64 {
    i64::try_from(crate::now_ms() / 1_000).unwrap()
}

fn nonce(name: &str) -> Op {
    Op::Remember { key: name.into(), ttl_ms: 60_000, made_s: now_s() + 60, ahead_s: 0, window_s: None }
}

/// Two edges on one Redis: a nonce is taken once, a limit and the places in flight hold across both.
#[tokio::test]
async fn edges_share_what_they_remember() {
    let dir = tempfile::tempdir().unwrap();
    let server = engines::Redis::start(dir.path()).await.unwrap();
    let (folder, settings) = write_settings(&server.url(), "two:", LimitsWhenAway::Local);
    let edge = || {
        State::new(&settings, folder.path(), &Metrics::new().unwrap(), &certs::Watch::new("test")).unwrap()
    };
    let edges = [edge(), edge()];
    assert_eq!(edges[0].ask(batch(&[nonce("n")])).await, Ok(vec![Answer::Remembered]));
    assert_eq!(edges[1].ask(batch(&[nonce("n")])).await, Ok(vec![Answer::Seen]));

    let limit = take("limit", 5, 600_000, 5, 1);
    let mut taken = 0;
    for turn in 0..20 {
        let answers = edges[turn % 2].ask(batch(std::slice::from_ref(&limit))).await.unwrap();
        taken += usize::from(!answers[0].refuses());
    }
    assert_eq!(taken, 5);

    let spend = Op::Spend {
        key: "quota@day".into(),
        most: 7,
        cost: 2,
        ends_ms: crate::now_ms() + 60_000,
        mode: Mode::Enforce,
    };
    let usage = Usage::of_request(2);
    let tally = Op::Tally {
        key: "usage/day".into(),
        tenant: "acme".into(),
        usage,
        until_ms: crate::now_ms() + 60_000,
    };
    for turn in 0..10 {
        let answers = edges[turn % 2].ask(batch(&[tally.clone(), spend.clone()])).await.unwrap();
        assert_eq!(answers[1].refuses(), turn > 2, "{turn}: {answers:?}");
    }
    for edge in &edges {
        let used = Usage { requests: 3, cost: 6, refused: 7 };
        let days = ["usage/day".to_owned(), "usage/none".to_owned()];
        let expected = vec![UsageByTenant::from([("acme".to_owned(), used)]), UsageByTenant::new()];
        assert_eq!(edge.usage(&days).await, Ok(expected));
    }

    let hold = Op::Hold { key: "places".into(), most: 1, lease_ms: 60_000, mode: Mode::Enforce };
    let held = edges[0].ask(batch(std::slice::from_ref(&hold))).await.unwrap();
    let Answer::Held(place) = held[0] else { panic!("{held:?}") };
    assert!(matches!(
        edges[1].ask(batch(std::slice::from_ref(&hold))).await.unwrap()[0],
        Answer::Busy { .. }
    ));
    edges[0].release(vec![Op::Release { key: "places".into(), place }]).await;
    assert!(matches!(edges[1].ask(batch(&[hold])).await.unwrap()[0], Answer::Held(_)));

    // What is counted here is each edge's own, and no trip.
    let here: Batch = [(take("here", 1, 600_000, 1, 1), Counted::Here)].into_iter().collect();
    for edge in &edges {
        assert!(matches!(edge.ask(here.clone()).await.unwrap()[0], Answer::Taken(_)));
        assert_eq!(edge.entries(), 1);
    }
}

/// Redis stopped, frozen and emptied: limits stay bounded, nonces closed, and all is well again by itself.
#[tokio::test]
async fn an_outage_is_survived() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = engines::Redis::start(dir.path()).await.unwrap();
    let (folder, mut settings) = write_settings(&server.url(), "away:", LimitsWhenAway::Local);
    if let Some(redis) = &mut settings.redis {
        redis.value.timeout_ms = 100;
    }
    let state =
        State::new(&settings, folder.path(), &Metrics::new().unwrap(), &certs::Watch::new("test")).unwrap();
    let limit = take("limit", 3, 600_000, 3, 1);
    let ask = async |op: &Op| state.ask(batch(std::slice::from_ref(op))).await.unwrap()[0];
    let until = async |what: &str, op: &dyn Fn(u32) -> Op, wanted: fn(&Answer) -> bool| {
        for attempt in 0..600 {
            if wanted(&ask(&op(attempt)).await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{what}: never");
    };
    let remembered: fn(&Answer) -> bool = |answer| matches!(answer, Answer::Remembered);
    until("connected", &|n| nonce(&format!("first-{n}")), remembered).await;

    for outage in ["stopped", "frozen"] {
        match outage {
            "stopped" => server.stop().await.unwrap(),
            _ => server.freeze(),
        }
        let mut passed = 0;
        for turn in 0..12 {
            assert_eq!(ask(&nonce(&format!("{outage}-{turn}"))).await, Answer::Away, "{outage}");
            passed += usize::from(!ask(&limit).await.refuses());
        }
        // A place that was taken here is given back here.
        let place =
            Op::Hold { key: format!("place-{outage}"), most: 1, lease_ms: 600_000, mode: Mode::Enforce };
        for turn in 0..3 {
            let Answer::Held(held) = ask(&place).await else { panic!("{outage}: no place, turn {turn}") };
            state.release(vec![Op::Release { key: place.key().to_owned(), place: held }]).await;
        }
        // The first outage spends what this process lets pass, and the second finds it spent.
        assert_eq!(passed, if outage == "stopped" { 3 } else { 0 }, "{outage}");
        match outage {
            "stopped" => server.resume().await.unwrap(),
            _ => server.thaw(),
        }
        until(outage, &|n| nonce(&format!("after-{outage}-{n}")), remembered).await;
    }
    // It has lost its memory once: what was signed before that may have been taken before.
    let old =
        Op::Remember { key: "old".into(), ttl_ms: 60_000, made_s: now_s() - 60, ahead_s: 0, window_s: None };
    assert_eq!(ask(&old).await, Answer::TooOld);
}

/// A Redis that is started again from a file it once wrote has forgotten the last nonces and does not know it.
#[tokio::test]
async fn a_redis_that_was_started_again_begins_anew() {
    let dir = tempfile::tempdir().unwrap();
    let server = engines::Redis::start(dir.path()).await.unwrap();
    let shared = redis(&server.url(), "again:");
    shared.run(&[]).await.unwrap();
    let mut connection = shared.link.connection().await.unwrap();
    // As old as that file might say.
    let () = redis::cmd("SET").arg("again:since").arg(1).query_async(&mut connection).await.unwrap();
    let made = |name: &str| Op::Remember {
        key: name.into(),
        ttl_ms: 60_000,
        made_s: now_s() - 30,
        ahead_s: 0,
        window_s: None,
    };
    assert_eq!(shared.run(&[made("before")]).await, Ok(vec![Answer::Remembered]));
    // What a start empties, and nothing else does unasked: the scripts.
    let () = redis::cmd("SCRIPT").arg("FLUSH").query_async(&mut connection).await.unwrap();
    assert_eq!(shared.run(&[made("after")]).await, Ok(vec![Answer::TooOld]));
    assert_eq!(shared.run(&[nonce("now")]).await, Ok(vec![Answer::Remembered]));
}

#[tokio::test]
async fn with_no_room_left_nothing_is_forgotten_early() {
    let dir = tempfile::tempdir().unwrap();
    let server = engines::Redis::start(dir.path()).await.unwrap();
    let shared = redis(&server.url(), "full:");
    assert_eq!(shared.run(&[nonce("first")]).await, Ok(vec![Answer::Remembered]));
    let mut connection = shared.link.connection().await.unwrap();
    let _: () =
        redis::cmd("CONFIG").arg(&["SET", "maxmemory", "1"]).query_async(&mut connection).await.unwrap();
    assert_eq!(shared.run(&[nonce("second")]).await, Err(Unanswered::Full));
    let _: () =
        redis::cmd("CONFIG").arg(&["SET", "maxmemory", "0"]).query_async(&mut connection).await.unwrap();
    assert_eq!(shared.run(&[nonce("first")]).await, Ok(vec![Answer::Seen]));
}

#[test]
fn addresses() {
    for (url, expected) in [
        ("redis://127.0.0.1:6379/0", ""),
        ("redis://localhost:6379", ""),
        ("redis+unix:///run/redis.sock", ""),
        ("rediss://user:secret@redis.bank.test:6380/0", ""),
        ("redis://user:secret@10.0.0.1:6379/0", "off the host write rediss://"),
        ("rediss://user:secret@redis.bank.test:6380/0#insecure", "switches verification off"),
        ("secret", "its address is not one"),
    ] {
        let (folder, settings) = write_settings(url, "p:", LimitsWhenAway::Local);
        certs::install_crypto_provider();
        let error =
            State::new(&settings, folder.path(), &Metrics::new().unwrap(), &certs::Watch::new("test")).err();
        let told = error.map(|error| format!("{error:#}")).unwrap_or_default();
        assert!(told.contains(expected) && told.is_empty() == expected.is_empty(), "{url}: {told}");
        assert!(!told.contains("secret"), "{told}");
    }
}
