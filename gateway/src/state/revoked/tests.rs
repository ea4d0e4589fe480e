//! What edges know of what is revoked, with a real Redis that comes back with an older copy, and that is asked for the
//! same again.

use filters::jwt::revocation::Kind;
use filters::policy::{At, Reference, State as Settings};
use redis::Commands as _;

use super::*;
use crate::state::State;

const KEYS: [&str; 4] = ["t/revoked", "t/revoked/changes", "t/revoked/until", "t/revoked/head"];

/// An edge that pulls when it is told to.
fn edge(server: &engines::Redis) -> State {
    let folder = tempfile::tempdir().unwrap();
    certs::file::write_secret(&folder.path().join("redis.url"), &server.url()).unwrap();
    let redis = filters::policy::Redis {
        url: At::nowhere(Reference::File("redis.url".into())),
        ca: None,
        sentinel: None,
        cluster: false,
        prefix: "t/".to_owned(),
        connect_timeout_ms: 5_000,
        timeout_ms: 5_000,
    };
    let settings = Settings { redis: Some(At::nowhere(redis)), ..Settings::default() };
    State::new(&settings, folder.path(), &Metrics::new().unwrap(), &certs::Watch::new("test")).unwrap()
}

fn asker(server: &engines::Redis) -> redis::Connection {
    let client = redis::Client::open(server.url()).unwrap();
    client.get_connection().unwrap()
}

/// The first tries after a start of Redis may meet its last connection.
async fn pull(edge: &State) {
    for _ in 0..200 {
        if edge.pull_revocations().await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    edge.pull_revocations().await.unwrap();
}

fn copied(server: &engines::Redis) -> Vec<Vec<u8>> {
    let mut asker = asker(server);
    KEYS.map(|key| redis::cmd("DUMP").arg(key).query(&mut asker).unwrap()).to_vec()
}

fn restore(server: &engines::Redis, copy: &[Vec<u8>]) {
    let mut asker = asker(server);
    let () = asker.del(&KEYS[..]).unwrap();
    for (key, value) in KEYS.iter().zip(copy) {
        let () = redis::cmd("RESTORE").arg(key).arg(0).arg(value).query(&mut asker).unwrap();
    }
}

/// Of the user, `issued_until_ms` from a moment on, kept for `kept_ms`.
fn of_user(id: &str, issued_until_ms: Option<u64>, kept_ms: u64) -> Revocation {
    Revocation {
        kind: Kind::User,
        id: id.to_owned(),
        tenant: None,
        issued_until_ms: issued_until_ms.map(|ms| 1_700_000_000_000 + ms),
        until_ms: 4_000_000_000_000 + kept_ms,
        undone: false,
    }
}

/// How Redis loses its last changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lost {
    /// By a start from an older copy.
    Restarted,
    /// An older copy takes the place of what was there.
    Replaced,
}

/// When something is revoked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    BeforeAnybodyPulls,
    AfterEverybodyPulled,
}

#[tokio::test]
async fn what_an_older_copy_lacks_is_told_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = engines::Redis::start(folder.path()).await.unwrap();
    for (lost, next) in [
        (Lost::Restarted, Next::BeforeAnybodyPulls),
        (Lost::Restarted, Next::AfterEverybodyPulled),
        (Lost::Replaced, Next::BeforeAnybodyPulls),
        (Lost::Replaced, Next::AfterEverybodyPulled),
    ] {
        let case = format!("{lost:?} {next:?}");
        let () = asker(&server).del(&KEYS[..]).unwrap();
        let [one, two] = [edge(&server), edge(&server)];
        one.revoke(of_user("kept", Some(1), 1)).await.unwrap();
        one.revoke(of_user("weaker", Some(1), 1)).await.unwrap();
        let copy = copied(&server);
        let again = [of_user("lost", Some(2), 2), of_user("weaker", Some(9), 9)];
        for revocation in &again {
            one.revoke(revocation.clone()).await.unwrap();
        }
        two.pull_revocations().await.unwrap();
        two.revoke(of_user("two", Some(3), 3)).await.unwrap();
        one.pull_revocations().await.unwrap();
        two.pull_revocations().await.unwrap();
        if lost == Lost::Restarted {
            server.stop().await.unwrap();
            server.resume().await.unwrap();
        }
        restore(&server, &copy);

        let third = edge(&server);
        // As many as were lost, and one more: numbers that only count would pass those that edges know.
        let new = ["new-1", "new-2", "new-3", "new-4"].map(|id| of_user(id, Some(4), 4));
        if next == Next::AfterEverybodyPulled {
            pull(&one).await;
            pull(&two).await;
        }
        for revocation in &new {
            third.revoke(revocation.clone()).await.unwrap();
        }
        for edge in [&one, &two, &third, &one, &two, &third] {
            pull(edge).await;
        }
        // Nothing shows it if the number was passed before anybody looked: edges keep what they know.
        let all_know = (lost, next) != (Lost::Replaced, Next::BeforeAnybodyPulls);
        for (name, edge, knows) in [("one", &one, true), ("two", &two, true), ("third", &third, all_know)] {
            let known = |revocation: &Revocation| edge.revoked().list().get(&revocation.key());
            for revocation in new.iter().chain(again.iter().filter(|_| knows)) {
                assert_eq!(known(revocation).as_ref(), Some(revocation), "{case}: {name}");
            }
            assert!(!knows || edge.revoked().list().len() == 8, "{case}: {name}");
        }
    }
}

#[tokio::test]
async fn no_later_revocation_takes_the_force_of_another_in_redis() {
    let folder = tempfile::tempdir().unwrap();
    let server = engines::Redis::start(folder.path()).await.unwrap();
    let undo = |kept_ms| Revocation { undone: true, ..of_user("u", Some(0), kept_ms) };
    let of = |issued, kept_ms| of_user("u", issued, kept_ms);
    for (before, after) in [
        (of(Some(9), 9), of(Some(5), 5)),
        (of(Some(5), 5), of(Some(9), 9)),
        (of(Some(9), 5), of(Some(5), 9)),
        (of(None, 5), of(Some(9), 9)),
        (of(Some(9), 9), of(None, 5)),
        (of(Some(9), 9), undo(5)),
        (undo(9), of(Some(5), 5)),
        (undo(9), undo(5)),
    ] {
        let case = format!("{before:?} {after:?}");
        let () = asker(&server).del(&KEYS[..]).unwrap();
        let [one, two, third] = [edge(&server), edge(&server), edge(&server)];
        let first = Outcome { counts: before.clone(), was_revoked: false };
        assert_eq!(one.revoke(before.clone()).await, Ok(first), "{case}");
        // It knows nothing of what the other did.
        let counts = after.clone().after(&before);
        let then = Outcome { counts: counts.clone(), was_revoked: !before.undone };
        assert_eq!(two.revoke(after).await, Ok(then), "{case}");
        for edge in [&one, &two, &third] {
            edge.pull_revocations().await.unwrap();
            let known = edge.revoked().list().get(&counts.key());
            assert_eq!(known, (!counts.undone).then(|| counts.clone()), "{case}");
        }
    }
}

/// Without a Redis, the same; and workers are told what counts.
#[tokio::test]
async fn workers_are_told_what_counts() {
    let metrics = Metrics::new().unwrap();
    let state = State::new(&Settings::default(), ".".as_ref(), &metrics, &certs::Watch::new("test")).unwrap();
    let (strong, weak) = (of_user("u", Some(9), 5), of_user("u", Some(5), 9));
    let both = of_user("u", Some(9), 9);
    for (asked, counts, was_revoked) in [(strong.clone(), &strong, false), (weak, &both, true)] {
        let outcome = Outcome { counts: counts.clone(), was_revoked };
        assert_eq!(state.revoke(asked).await, Ok(outcome));
    }
    assert_eq!(state.revoked().told("", 0).changes, std::slice::from_ref(&both));
    let undo = Revocation { undone: true, ..both };
    for was_revoked in [true, false] {
        let outcome = Outcome { counts: undo.clone(), was_revoked };
        assert_eq!(state.revoke(undo.clone()).await, Ok(outcome));
    }
}
