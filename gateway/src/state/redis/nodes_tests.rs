//! Against real servers: failovers, Sentinels, a Cluster, changed passwords, eviction, and what a fault is called.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use filters::policy::{At, Reference, Sentinel};
use filters::state::LimitsWhenAway;
use tokio::net::{TcpListener, TcpStream};

use super::tests::write_settings;
use super::*;

/// A Redis with its settings in a folder, as an edge has it.
struct Edge {
    redis: Redis,
    watch: Arc<Watch>,
    folder: tempfile::TempDir,
}

impl Edge {
    fn new(url: &str, change: impl FnOnce(&mut Settings)) -> Edge {
        certs::install_crypto_provider();
        let (folder, settings) = write_settings(url, "nodes:", LimitsWhenAway::Refuse);
        let mut settings = settings.redis.unwrap().value;
        change(&mut settings);
        let watch = Watch::new("test");
        let redis = Redis::new(&settings, folder.path(), &Metrics::new().unwrap(), &watch).unwrap();
        Edge { redis, watch, folder }
    }

    /// Probes until the faults are the wanted ones.
    async fn until(&self, what: &str, wanted: impl Fn(&Faults) -> bool) -> Faults {
        for _ in 0..1_000 {
            let _ = self.redis.probe().await;
            let faults = self.redis.faults();
            if wanted(&faults) {
                return faults;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{what}: never; now {:?}", self.redis.faults())
    }

    async fn until_well(&self, what: &str) {
        self.until(what, |faults| *faults == Faults::default()).await;
    }

    /// A nonce that was signed in a minute, which no beginning of a memory refuses.
    async fn takes(&self, name: &str) -> Result<Vec<Answer>, Unanswered> {
        self.redis.run(&[nonce(name, 60)]).await
    }
}

fn nonce(name: &str, later_s: i64) -> Op {
    let now_s = i64::try_from(crate::now_ms() / 1_000).unwrap();
    Op::Remember { key: name.into(), ttl_ms: 60_000, made_s: now_s + later_s, ahead_s: 0, window_s: None }
}

/// An address that leads to another server from one moment on: connections that it has stay where they are.
struct Address {
    at: SocketAddr,
    leads_to: Arc<Mutex<SocketAddr>>,
}

impl Address {
    async fn of(server: &engines::Redis) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let leads_to = Arc::new(Mutex::new(server.address()));
        let now = Arc::clone(&leads_to);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let to = *now.lock().unwrap_or_else(PoisonError::into_inner);
                tokio::spawn(async move {
                    let mut server = TcpStream::connect(to).await?;
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Address { at, leads_to }
    }

    fn lead_to(&self, server: &engines::Redis) {
        *self.leads_to.lock().unwrap_or_else(PoisonError::into_inner) = server.address();
    }
}

fn url_of(address: SocketAddr) -> String {
    format!("redis://{address}/0")
}

async fn replicate(replica: &engines::Redis, primary: &engines::Redis) {
    let (ip, port) = (primary.address().ip().to_string(), primary.address().port().to_string());
    let _: String = replica.ask(&["REPLICAOF", &ip, &port]).await.unwrap();
    for _ in 0..1_000 {
        let info: String = replica.ask(&["INFO", "replication"]).await.unwrap();
        if info.contains("master_link_status:up") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the replica does not follow");
}

/// Waits until every replica has all that the primary has written so far. `WAIT` would not do: it waits for what its own
/// connection has written, which is nothing.
async fn replicas_caught_up(primary: &engines::Redis) {
    let offsets = async || -> (u64, Vec<u64>) {
        let info: String = primary.ask(&["INFO", "replication"]).await.unwrap();
        let written = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
        let replicas = info.lines().filter(|line| line.starts_with("slave") && line.contains("state=online"));
        let offset = |line: &str| line.split_once("offset=")?.1.split(',').next()?.parse().ok();
        (written.unwrap().trim().parse().unwrap(), replicas.filter_map(offset).collect())
    };
    let (written, _) = offsets().await;
    for _ in 0..1_000 {
        let (_, replicas) = offsets().await;
        if !replicas.is_empty() && replicas.iter().all(|offset| *offset >= written) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the replicas fall behind");
}

/// The demoted primary keeps its connections open and answers `READONLY`.
#[tokio::test]
async fn a_demoted_primary_is_left_for_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let first = engines::Redis::start(&dir.path().join("1")).await.unwrap();
    let second = engines::Redis::start(&dir.path().join("2")).await.unwrap();
    replicate(&second, &first).await;
    let address = Address::of(&first).await;
    let edge = Edge::new(&url_of(address.at), |_| ());
    edge.until_well("connected").await;
    assert_eq!(edge.takes("before").await, Ok(vec![Answer::Remembered]));

    // The replica has the nonce before it is promoted.
    replicas_caught_up(&first).await;
    let _: String = second.ask(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    replicate(&first, &second).await;
    let faults = edge.until("demoted", |faults| faults.unavailable.is_some()).await;
    assert!(faults.unavailable.as_ref().unwrap().contains("READONLY"), "{faults:?}");
    assert_eq!(edge.takes("refused").await, Err(Unanswered::Away));

    address.lead_to(&second);
    edge.until_well("the new primary is found").await;
    assert_eq!(edge.takes("before").await, Ok(vec![Answer::Seen]));
    assert_eq!(edge.takes("after").await, Ok(vec![Answer::Remembered]));
    // Replication is asynchronous: nonces from before the failover may be missing.
    assert_eq!(edge.redis.run(&[nonce("old", -1)]).await, Ok(vec![Answer::TooOld]));

    // Back again: the first one knows the scripts and keys, but perhaps not the last nonces.
    let since = |server: &engines::Redis| {
        let url = server.url();
        async move {
            let client = redis::Client::open(url).unwrap();
            let mut connection = client.get_multiplexed_async_connection().await.unwrap();
            let since: u64 = redis::cmd("GET").arg("nodes:since").query_async(&mut connection).await.unwrap();
            since
        }
    };
    let before = since(&second).await;
    let _: String = first.ask(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
    replicate(&second, &first).await;
    address.lead_to(&first);
    edge.until_well("the first one serves again").await;
    assert!(since(&first).await > before, "its memory began anew");
}

/// The answer to a batch, and not only a probe, closes the connection.
#[tokio::test]
async fn a_batch_finds_the_new_primary_without_a_probe() {
    let dir = tempfile::tempdir().unwrap();
    let first = engines::Redis::start(&dir.path().join("1")).await.unwrap();
    let second = engines::Redis::start(&dir.path().join("2")).await.unwrap();
    let address = Address::of(&first).await;
    let edge = Edge::new(&url_of(address.at), |_| ());
    assert_eq!(edge.takes("before").await, Ok(vec![Answer::Remembered]));
    replicate(&first, &second).await;
    address.lead_to(&second);
    for attempt in 0..1_000 {
        if edge.takes(&format!("after-{attempt}")).await == Ok(vec![Answer::Remembered]) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the new primary was not found");
}

/// A host that is gone closes nothing.
#[tokio::test]
async fn a_silent_node_is_left_for_the_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let first = engines::Redis::start(&dir.path().join("1")).await.unwrap();
    let second = engines::Redis::start(&dir.path().join("2")).await.unwrap();
    let address = Address::of(&first).await;
    let edge = Edge::new(&url_of(address.at), |settings| settings.timeout_ms = 200);
    edge.until_well("connected").await;
    first.freeze();
    let faults = edge.until("silent", |faults| faults.unavailable.is_some()).await;
    assert_eq!(faults.unavailable.as_deref(), Some("no answer within 200 ms"));
    address.lead_to(&second);
    edge.until_well("the new one is found").await;
    first.thaw();
}

#[tokio::test]
async fn each_fault_has_its_cause() {
    let dir = tempfile::tempdir().unwrap();
    certs::pki::init(dir.path(), false).unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let start = async |name: &str, more: &[&str]| {
        engines::Redis::start_with(&dir.path().join(name), more).await.unwrap()
    };
    let tls = async |name: &str| {
        let (certificate, key, ca) =
            (file(&format!("{name}.pem")), file(&format!("{name}.key")), file("internal-ca.pem"));
        let more = ["--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
        let more: Vec<&str> = more.into_iter().chain(["--tls-auth-clients", "no"]).collect();
        start(&format!("tls-{name}"), &more).await
    };
    let plain = start("plain", &[]).await;
    let locked = start("locked", &["--requirepass", "right"]).await;
    let full = start("full", &["--maxmemory", "1"]).await;
    let limited =
        start("limited", &["--user", "default", "on", "nopass", "~*", "+@all", "-@scripting"]).await;
    let replica = start("replica", &[]).await;
    replicate(&replica, &plain).await;
    let (named, nameless) = (tls("txn-core").await, tls("gateway").await);
    let gone = {
        let mut gone = start("gone", &[]).await;
        gone.stop().await.unwrap();
        gone.address()
    };
    let wrong_login = "the user or the password in `state.redis.url` is wrong";
    for (what, url, ca, expected) in [
        ("a wrong password", format!("redis://:wrong@{}/0", locked.address()), None, wrong_login),
        ("an unknown user", format!("redis://nobody:right@{}/0", locked.address()), None, wrong_login),
        ("no password", locked.url(), None, "NOAUTH"),
        (
            "another CA",
            format!("rediss://{}/0", named.address()),
            Some("partner-ca.pem"),
            "the CA in `state.redis.ca` did not sign the server's certificate",
        ),
        (
            "another name",
            format!("rediss://{}/0", nameless.address()),
            Some("internal-ca.pem"),
            "the server's certificate lacks the host name in `state.redis.url`",
        ),
        ("plain text to TLS", named.url(), None, "if its port is for TLS, write rediss://"),
        (
            "TLS to plain text",
            format!("rediss://{}/0", plain.address()),
            Some("internal-ca.pem"),
            "the server does not answer with TLS: check the port, or write redis:// on this host",
        ),
        ("nobody", url_of(gone), None, "Connection refused"),
        ("a replica", replica.url(), None, "READONLY"),
        ("no permission", limited.url(), None, "the user in `state.redis.url` lacks a permission"),
        ("no room", full.url(), None, "OOM"),
    ] {
        let edge = Edge::new(&url, |settings| {
            settings.ca = ca.map(|ca| At::nowhere(Reference::File(file(ca).into())));
        });
        let faults = edge.until(what, |faults| *faults != Faults::default()).await;
        let told = match what {
            "no room" => faults.full.clone(),
            _ => faults.unavailable.clone(),
        };
        let told = told.unwrap_or_default();
        assert!(told.contains(expected), "{what}: expected {expected}; told {faults:?}");
        assert!(!told.contains(":wrong") && !told.contains("right@"), "{what}: {told}");
        if what != "no room" {
            assert_eq!(edge.takes("any").await, Err(Unanswered::Away), "{what}");
        } else {
            assert_eq!(edge.takes("any").await, Err(Unanswered::Full));
            let _: String = full.ask(&["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
            edge.until_well("room again").await;
        }
    }
    let well = Edge::new(&format!("rediss://{}/0", named.address()), |settings| {
        settings.ca = Some(At::nowhere(Reference::File(file("internal-ca.pem").into())));
    });
    well.until_well("TLS").await;
}

#[tokio::test]
async fn nonces_are_refused_while_redis_may_evict_them() {
    let dir = tempfile::tempdir().unwrap();
    let server =
        engines::Redis::start_with(dir.path(), &["--maxmemory-policy", "allkeys-lru"]).await.unwrap();
    let policy = async |policy: &str| {
        let _: String = server.ask(&["CONFIG", "SET", "maxmemory-policy", policy]).await.unwrap();
    };
    policy("allkeys-lru").await;
    let edge = Edge::new(&server.url(), |_| ());
    let limit = Op::Take {
        key: "limit".into(),
        rate: filters::state::Rate::new(100, 1_000, 100).unwrap(),
        cost: 1,
        mode: Mode::Enforce,
    };
    // Without a probe: a connection is checked before the first nonce.
    assert_eq!(edge.takes("first").await, Err(Unanswered::Away));
    assert!(edge.redis.run(std::slice::from_ref(&limit)).await.is_ok(), "limits are counted");
    let faults = edge.redis.faults();
    let told = "maxmemory-policy is allkeys-lru: set it to noeviction";
    assert_eq!(faults, Faults { evicts: Some(told.to_owned()), ..Faults::default() });
    assert!(!edge.redis.breaker.answered(), "it is no outage");

    policy("noeviction").await;
    edge.until_well("noeviction").await;
    assert_eq!(edge.takes("second").await, Ok(vec![Answer::Remembered]));
    // What was taken before may have been evicted.
    assert_eq!(edge.redis.run(&[nonce("old", -2)]).await, Ok(vec![Answer::TooOld]));
    for changed in ["volatile-ttl", "allkeys-random"] {
        policy(changed).await;
        edge.until(changed, |faults| faults.evicts.as_ref().is_some_and(|told| told.contains(changed))).await;
        assert_eq!(edge.takes("third").await, Err(Unanswered::Away), "{changed}");
    }
    // A user that may not ask is warned of, and served.
    policy("allkeys-lru").await;
    let _: String =
        server.ask(&["ACL", "SETUSER", "edge", "on", ">secret", "~*", "+@all", "-info"]).await.unwrap();
    let unread = Edge::new(&format!("redis://edge:secret@{}/0", server.address()), |_| ());
    assert_eq!(unread.takes("fourth").await, Ok(vec![Answer::Remembered]));
    unread.until_well("unread").await;
}

/// What the documentation says that the user must be allowed is enough.
#[tokio::test]
async fn the_documented_permissions_are_enough() {
    let dir = tempfile::tempdir().unwrap();
    let user = ["--user", "edge", "on", ">secret", "~nodes:*", "-@all", "+@read", "+@write", "+@scripting"];
    let user: Vec<&str> =
        user.into_iter().chain(["+@connection", "+info", "+time", "+cluster", "+role"]).collect();
    let server = engines::Redis::start_with(dir.path(), &user).await.unwrap();
    let edge = Edge::new(&format!("redis://edge:secret@{}/0", server.address()), |_| ());
    edge.until_well("connected").await;
    let hold = Op::Hold { key: "places".into(), most: 1, lease_ms: 60_000, mode: Mode::Enforce };
    let said = edge.redis.run(&[nonce("nonce", 60), hold]).await.unwrap();
    assert!(matches!(said[..], [Answer::Remembered, Answer::Held(_)]), "{said:?}");
    assert_eq!(edge.redis.usage(&["usage/day".to_owned()]).await, Ok(vec![UsageByTenant::new()]));
    let _: String = server.ask(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).await.unwrap();
    edge.until("the policy is read", |faults| faults.evicts.is_some()).await;
}

#[test]
fn its_sockets_wait_for_nothing() {
    let (folder, settings) = write_settings("redis://127.0.0.1:1/0", "p:", LimitsWhenAway::Local);
    let target = target(&settings.redis.unwrap().value, folder.path(), &Watch::new("test")).unwrap();
    let target = target.current();
    let address::Kind::Single(client) = &target.kind else { panic!("one address") };
    assert!(client.get_connection_info().tcp_settings().nodelay(), "TCP_NODELAY");
}

/// The file changes while requests are in flight, and none of them is lost.
#[tokio::test]
async fn a_rotated_password_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let user = ["--user", "edge", "on", ">one", "~*", "+@all"];
    let server = engines::Redis::start_with(dir.path(), &user).await.unwrap();
    let url = |password: &str| format!("redis://edge:{password}@{}/0", server.address());
    let edge = Edge::new(&url("one"), |_| ());
    edge.until_well("connected").await;
    assert_eq!(edge.takes("before").await, Ok(vec![Answer::Remembered]));
    let connections = async |name: &str| {
        let list: String = server.ask(&["CLIENT", "LIST"]).await.unwrap();
        list.lines().filter(|line| line.contains(&format!("user={name} "))).count()
    };
    assert_eq!(connections("edge").await, 1);
    let write = |url: &str| {
        certs::file::write_secret(&edge.folder.path().join("redis.url"), url).unwrap();
        // Files that are written in place are looked at twice.
        edge.watch.look(time::OffsetDateTime::now_utc());
        edge.watch.look(time::OffsetDateTime::now_utc());
    };
    let id = edge.redis.link.connection().await.unwrap().id();

    // A wrong one is logged, and what is connected goes on.
    write(&url("wrong"));
    for attempt in 0..20 {
        assert_eq!(edge.takes(&format!("wrong-{attempt}")).await, Ok(vec![Answer::Remembered]));
    }
    let failure = async || {
        for _ in 0..1_000 {
            if let Some(failure) = edge.redis.link.last_failure() {
                return failure;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the wrong password was not tried")
    };
    assert!(failure().await.contains("the user or the password in `state.redis.url` is wrong"));
    assert_eq!(edge.redis.link.connection().await.unwrap().id(), id);

    let _: String = server.ask(&["ACL", "SETUSER", "edge", "resetpass", ">two"]).await.unwrap();
    write(&url("two"));
    // Requests under way all the while, until the new connection serves.
    let mut taken = 0;
    while edge.redis.link.connection().await.unwrap().id() == id {
        let [one, two, three] = ["one", "two", "three"].map(|name| [nonce(&format!("{taken}-{name}"), 60)]);
        let run = |ops| edge.redis.run(ops);
        let (one, two, three) = tokio::join!(run(&one), run(&two), run(&three));
        for answered in [one, two, three] {
            assert_eq!(answered, Ok(vec![Answer::Remembered]));
        }
        taken += 1;
        assert!(taken < 10_000, "the new password was not used");
    }
    assert_eq!(edge.takes("before").await, Ok(vec![Answer::Seen]), "it is the same memory");
    assert_eq!(edge.takes("after").await, Ok(vec![Answer::Remembered]));
    // Without the old connection the new password is all that there is.
    let _: i64 = server.ask(&["CLIENT", "KILL", "USER", "edge"]).await.unwrap();
    edge.until_well("with the new password").await;
}

#[tokio::test]
async fn sentinels_name_the_primary() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let mut first = engines::Redis::start(&at("first")).await.unwrap();
    let second = engines::Redis::start(&at("second")).await.unwrap();
    replicate(&second, &first).await;
    let mut sentinels = Vec::new();
    for number in 0..3 {
        let folder = at(&format!("sentinel-{number}"));
        sentinels.push(engines::Redis::sentinel(&folder, "torana", &first, 2).await.unwrap());
    }
    let urls: Vec<String> = sentinels.iter().map(engines::Redis::url).collect();
    let edge = Edge::new(&urls.join("\n"), |settings| {
        let sentinel = Sentinel { master: "torana".to_owned(), user: None, password: None };
        settings.sentinel = Some(At::nowhere(sentinel));
    });
    edge.until_well("connected").await;
    assert_eq!(edge.takes("before").await, Ok(vec![Answer::Remembered]));
    // Sentinels know each other and the replica.
    for sentinel in &sentinels {
        for attempt in 0.. {
            let info: String = sentinel.ask(&["INFO", "sentinel"]).await.unwrap();
            if info.contains("slaves=1,sentinels=3") {
                break;
            }
            assert!(attempt < 1_000, "{info}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    first.stop().await.unwrap();
    edge.until("stopped", |faults| faults.unavailable.is_some()).await;
    edge.until_well("promoted").await;
    assert_eq!(edge.takes("before").await, Ok(vec![Answer::Seen]));
    assert_eq!(edge.takes("after").await, Ok(vec![Answer::Remembered]));
    assert_eq!(edge.redis.run(&[nonce("old", -1)]).await, Ok(vec![Answer::TooOld]));

    let unknown = Edge::new(&urls.join("\n"), |settings| {
        let sentinel = Sentinel { master: "other".to_owned(), user: None, password: None };
        settings.sentinel = Some(At::nowhere(sentinel));
    });
    let faults = unknown.until("unknown", |faults| faults.unavailable.is_some()).await;
    assert!(faults.unavailable.as_ref().unwrap().contains("Master with given name not found"), "{faults:?}");
}

/// How often a server gave an answer of this kind.
async fn errors(server: &engines::Redis, code: &str) -> u64 {
    let info: String = server.ask(&["INFO", "errorstats"]).await.unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix(&format!("errorstat_{code}:count=")));
    line.map_or(0, |count| count.trim().parse().unwrap())
}

#[tokio::test]
async fn a_cluster_keeps_all_keys_in_one_slot() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = engines::Redis::cluster(dir.path()).await.unwrap();
    let urls: Vec<String> = nodes.iter().take(2).map(engines::Redis::url).collect();
    let edge = Edge::new(&urls.join("\n"), |settings| settings.cluster = true);
    edge.until_well("connected").await;
    let hold = Op::Hold { key: "places".into(), most: 2, lease_ms: 60_000, mode: Mode::Enforce };
    let batch = [nonce("before", 60), hold];
    assert!(matches!(edge.redis.run(&batch).await.unwrap()[..], [Answer::Remembered, Answer::Held(_)]));
    let count = Script::new("redis.call('INCR', KEYS[2]) return redis.call('EXISTS', KEYS[1], KEYS[2])");
    assert_eq!(edge.redis.call::<u8>(&count, &["since", "other"], &[]).await.unwrap(), 2, "any other script");
    assert_eq!(edge.redis.usage(&["usage/day".to_owned()]).await, Ok(vec![UsageByTenant::new()]));

    // Of the three primaries one has all keys.
    let slot: u16 = nodes[0].ask(&["CLUSTER", "KEYSLOT", "{nodes:}since"]).await.unwrap();
    let slot = slot.to_string();
    let mut primaries = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        let info: String = node.ask(&["INFO", "replication"]).await.unwrap();
        if info.contains("role:master") {
            let id: String = node.ask(&["CLUSTER", "MYID"]).await.unwrap();
            let keys: Vec<String> = node.ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await.unwrap();
            primaries.push((at, id, keys));
        }
    }
    primaries.sort_by_key(|(.., keys)| std::cmp::Reverse(keys.len()));
    let [(from, from_id, keys), (to, to_id, none), ..] = primaries.as_slice() else {
        panic!("{primaries:?}")
    };
    assert!(keys.len() >= 5 && none.is_empty(), "{primaries:?}");
    let (from, to) = (*from, *to);

    // The slot is on its way, its keys are there: `ASK`.
    let set_slot = async |node: usize, how: &[&str]| {
        let command: Vec<&str> =
            ["CLUSTER", "SETSLOT", &*slot].into_iter().chain(how.iter().copied()).collect();
        let _: String = nodes[node].ask(&command).await.unwrap();
    };
    set_slot(to, &["IMPORTING", from_id]).await;
    set_slot(from, &["MIGRATING", to_id]).await;
    let (ip, port) = (nodes[to].address().ip().to_string(), nodes[to].address().port().to_string());
    let migrate = ["MIGRATE", &*ip, &*port, "", "0", "5000", "KEYS"].into_iter();
    let migrate: Vec<&str> = migrate.chain(keys.iter().map(String::as_str)).collect();
    let _: String = nodes[from].ask(&migrate).await.unwrap();
    edge.redis.probe().await.unwrap();
    assert!(errors(&nodes[from], "ASK").await > 0);

    // It has arrived: `MOVED`, and there `NOSCRIPT`.
    let moved = errors(&nodes[from], "MOVED").await;
    for (at, ..) in [&primaries[1], &primaries[0], &primaries[2]] {
        set_slot(*at, &["NODE", to_id]).await;
    }
    edge.until_well("moved").await;
    assert_eq!(edge.takes("before").await, Ok(vec![Answer::Seen]));
    assert!(errors(&nodes[from], "MOVED").await > moved);
    assert!(errors(&nodes[to], "NOSCRIPT").await > 0);
    assert_eq!(edge.redis.run(&[nonce("old", -1)]).await, Ok(vec![Answer::TooOld]));
    let _: String = nodes[to].ask(&["SCRIPT", "FLUSH"]).await.unwrap();
    assert_eq!(edge.takes("flushed").await, Ok(vec![Answer::Remembered]));

    // The replica has all of it before its primary ends.
    replicas_caught_up(&nodes[to]).await;
    nodes[to].stop().await.unwrap();
    edge.until("stopped", |faults| faults.unavailable.is_some()).await;
    edge.until_well("promoted").await;
    assert_eq!(edge.takes("before").await, Ok(vec![Answer::Seen]));
    assert_eq!(edge.redis.run(&[nonce("old", -1)]).await, Ok(vec![Answer::TooOld]));

    // Without `cluster: true` the cause says what to write.
    let other =
        nodes.iter().enumerate().find(|(at, _)| primaries.iter().skip(2).any(|(p, ..)| p == at)).unwrap();
    let single = Edge::new(&other.1.url(), |_| ());
    let faults = single.until("single", |faults| faults.unavailable.is_some()).await;
    assert!(faults.unavailable.as_ref().unwrap().contains("write `cluster: true`"), "{faults:?}");
}
