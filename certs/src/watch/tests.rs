use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use tempfile::TempDir;
use time::ext::NumericalDuration as _;

use super::*;
use crate::pki::crl::{self, Reason};
use crate::pki::{Authority, Issued, Leaf, Purpose};
use crate::{Issuer, Reader, StaleCrl};

const NAMES: [&str; 2] = ["svc.test", "127.0.0.1"];

/// A service's identity from a CA that it trusts, and its watch.
struct House {
    dir: TempDir,
    ca: Authority,
    watch: Arc<Watch>,
    trust: Set<Trust>,
    identity: Set<Identity>,
    now: OffsetDateTime,
}

impl House {
    fn new() -> House {
        crate::install_crypto_provider();
        let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::create("one").unwrap());
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("ca.pem"), ca.certificate_pem()).unwrap();
        crl::revoke(&at("ca.crl"), &ca, &[], Reason::Unspecified, 1.days()).unwrap();
        issue(&ca, &NAMES).write(dir.path(), "svc").unwrap();
        let watch = Watch::new("test");
        let files = TrustFiles { ca: at("ca.pem"), crl: Some(at("ca.crl")), stale: StaleCrl::Refuse };
        let trust = watch.trust("svc/ca".into(), files).unwrap();
        let files = IdentityFiles { certificate: at("svc.pem"), key: at("svc.key") };
        let must = Must {
            purpose: Purpose::Server,
            names: Vec::new(),
            issuer: Issuer::AsBefore(trust.clone()),
            reader: Reader::Ours,
        };
        let identity = watch.identity("svc".into(), files, must).unwrap();
        House { dir, ca, watch, trust, identity, now: OffsetDateTime::now_utc() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, issued: &Issued) {
        issued.write(self.dir.path(), "svc").unwrap();
    }

    fn look(&self) {
        self.watch.look(self.now);
    }

    fn serial(&self) -> String {
        self.identity.current().facts().serial_hex.clone()
    }

    /// In all sets.
    fn failures(&self) -> BTreeMap<&'static str, u64> {
        self.watch.sets().iter().flat_map(|set| set.failures()).collect()
    }
}

fn issue(ca: &Authority, names: &[&str]) -> Issued {
    ca.issue(&Leaf::new("svc", names)).unwrap()
}

#[test]
fn what_cannot_be_used_changes_nothing_and_is_told_of_once() {
    type Spoil = fn(&House);
    let cases: [(&str, Spoil); 18] = [
        ("key_mismatch", |house| {
            // Half-written: the certificate is new, the key is not yet.
            std::fs::write(house.at("svc.pem"), issue(&house.ca, &NAMES).certificate_pem).unwrap();
        }),
        ("bad_pem", |house| {
            let pem = issue(&house.ca, &NAMES).certificate_pem;
            std::fs::write(house.at("svc.pem"), &pem[..pem.len() / 2]).unwrap();
        }),
        ("expired", |house| {
            let dates = (house.now - 9.days(), house.now - 1.days());
            let leaf = Leaf { not_before: dates.0, not_after: dates.1, ..Leaf::new("svc", &NAMES) };
            house.put(&house.ca.issue(&leaf).unwrap());
        }),
        ("not_yet_valid", |house| {
            let leaf = Leaf { not_before: house.now + 1.hours(), ..Leaf::new("svc", &NAMES) };
            house.put(&house.ca.issue(&leaf).unwrap());
        }),
        ("name_missing", |house| house.put(&issue(&house.ca, &["svc.test", "127.0.0.2"]))),
        ("untrusted", |house| house.put(&issue(&Authority::create("two").unwrap(), &NAMES))),
        ("untrusted", |house| house.put(&issue(&Authority::create("one").unwrap(), &NAMES))),
        ("wrong_purpose", |house| {
            let leaf = Leaf { purpose: Purpose::Client, ..Leaf::new("svc", &NAMES) };
            house.put(&house.ca.issue(&leaf).unwrap());
        }),
        ("no_certificate", |house| std::fs::write(house.at("svc.pem"), "").unwrap()),
        ("no_key", |house| std::fs::write(house.at("svc.key"), "").unwrap()),
        ("leaf_is_ca", |house| std::fs::write(house.at("svc.pem"), house.ca.certificate_pem()).unwrap()),
        ("unreadable", |house| std::fs::remove_file(house.at("svc.pem")).unwrap()),
        ("not_a_file", |house| {
            std::fs::remove_file(house.at("svc.pem")).unwrap();
            std::fs::create_dir(house.at("svc.pem")).unwrap();
        }),
        ("too_large", |house| {
            std::fs::File::create(house.at("svc.key")).unwrap().set_len(1 << 30).unwrap();
        }),
        ("loose_key", |house| {
            house.put(&issue(&house.ca, &NAMES));
            std::fs::set_permissions(house.at("svc.key"), std::fs::Permissions::from_mode(0o644)).unwrap();
        }),
        ("not_a_ca", |house| {
            std::fs::write(house.at("ca.pem"), issue(&house.ca, &NAMES).certificate_pem).unwrap();
        }),
        // A root without a list: nobody could tell who of its clients is revoked.
        ("bad_crl", |house| {
            let both =
                house.ca.certificate_pem().to_owned() + Authority::create("two").unwrap().certificate_pem();
            std::fs::write(house.at("ca.pem"), both).unwrap();
        }),
        ("bad_crl", |house| {
            let impostor = Authority::create("one").unwrap();
            std::fs::remove_file(house.at("ca.crl")).unwrap();
            crl::revoke(&house.at("ca.crl"), &impostor, &[], Reason::Unspecified, 1.days()).unwrap();
        }),
    ];
    for (kind, spoil) in cases {
        let house = House::new();
        let (serial, generations) = (house.serial(), (house.identity.generation(), house.trust.generation()));
        spoil(&house);
        house.look();
        assert!(house.failures().is_empty(), "{kind}: somebody may still be writing");
        for _ in 0..25 {
            house.look();
        }
        assert_eq!(house.failures(), BTreeMap::from([(kind, 1)]), "{kind}: counted once");
        assert_eq!(house.serial(), serial, "{kind}");
        assert_eq!((house.identity.generation(), house.trust.generation()), generations, "{kind}");
        let failed = [house.identity.reloads(), house.trust.reloads()];
        let told: Vec<_> = failed.into_iter().filter_map(|reloads| reloads.last_failure).collect();
        assert!(
            matches!(told.as_slice(), [one] if one.reason.contains(house.dir.path().to_str().unwrap())),
            "{told:?}"
        );
    }
}

#[test]
fn a_set_that_is_completed_is_used_however_it_is_written() {
    type Write = fn(&House, &Issued);
    let ways: [(&str, usize, Write); 4] = [
        ("renamed over", 1, |house, issued| house.put(issued)),
        ("written in place", 2, |house, issued| {
            std::fs::write(house.at("svc.pem"), &issued.certificate_pem).unwrap();
            std::fs::write(house.at("svc.key"), issued.key_pem.as_bytes()).unwrap();
        }),
        ("removed first", 1, |house, issued| {
            std::fs::remove_file(house.at("svc.pem")).unwrap();
            std::fs::remove_file(house.at("svc.key")).unwrap();
            house.look();
            house.put(issued);
        }),
        ("half by half", 2, |house, issued| {
            std::fs::write(house.at("svc.pem"), &issued.certificate_pem).unwrap();
            house.look();
            std::fs::write(house.at("svc.key"), issued.key_pem.as_bytes()).unwrap();
        }),
    ];
    for (way, looks, write) in ways {
        let house = House::new();
        for round in 1..=3 {
            let issued = issue(&house.ca, &NAMES);
            write(&house, &issued);
            (0..looks).for_each(|_| house.look());
            let facts = crate::inspect_pem(issued.certificate_pem.as_bytes()).unwrap();
            assert_eq!(house.serial(), facts[0].serial_hex, "{way}, round {round}");
            assert_eq!(house.identity.generation(), round);
        }
        assert_eq!(house.failures(), BTreeMap::new(), "{way}");
    }
}

#[test]
fn half_a_file_that_can_be_read_is_not_taken_for_the_whole() {
    let house = House::new();
    let pem = |name: &str| Authority::create(name).unwrap().certificate_pem().to_owned();
    let (half, rest) = (house.ca.certificate_pem().to_owned(), pem("two"));
    let trust = |name: &str| {
        let path = house.at(name);
        std::fs::write(&path, format!("{half}{rest}")).unwrap();
        let set = house.watch.trust(name.into(), TrustFiles { ca: path, crl: None, stale: StaleCrl::Refuse });
        set.unwrap()
    };
    let set = trust("both.pem");
    let count = || (set.generation(), set.current().ders().len());
    // Somebody rewrites it with a third CA, and is not done at the first look, nor at the second.
    for (text, expected) in [
        (half.clone(), (0, 2)),
        (format!("{half}{rest}"), (0, 2)),
        (format!("{half}{rest}{}", pem("three")), (0, 2)),
    ] {
        std::fs::write(house.at("both.pem"), text).unwrap();
        house.look();
        assert_eq!(count(), expected);
    }
    house.look();
    assert_eq!(count(), (1, 3), "the same at two looks: this is all of it");
    std::fs::write(house.at("next"), &half).unwrap();
    std::fs::rename(house.at("next"), house.at("both.pem")).unwrap();
    house.look();
    assert_eq!(count(), (2, 1), "what is renamed over it is whole");
}

#[test]
fn a_root_that_expires_is_not_believed_any_more() {
    let mut house = House::new();
    let root = |name: &str| Authority::create(name).unwrap();
    let (old, new) = (root("old"), root("new"));
    std::fs::write(house.at("roots.pem"), format!("{}{}", old.certificate_pem(), new.certificate_pem()))
        .unwrap();
    let files = TrustFiles { ca: house.at("roots.pem"), crl: None, stale: StaleCrl::Refuse };
    let set = house.watch.trust("roots".into(), files).unwrap();
    let leaf = issue(&new, &NAMES);
    leaf.write(house.dir.path(), "of-new").unwrap();
    let identity = Identity::load(&house.at("of-new.pem"), &house.at("of-new.key")).unwrap();
    house.look();
    assert_eq!((set.generation(), set.current().ders().len()), (0, 2));
    let verdict = |set: &Set<Trust>| {
        let verifier = set.current().client_verifier(crate::Anonymous::Allowed).unwrap();
        let (leaf, rest) = identity.chain().split_first().unwrap();
        verifier.verify_client_cert(leaf, rest, rustls_pki_types::UnixTime::now()).is_ok()
    };
    assert!(verdict(&set));

    // Both expire. Nobody is believed then, and those who have come without a certificate stay.
    house.now = new.facts().not_after.max(old.facts().not_after) + 1.days();
    house.look();
    assert_eq!((set.generation(), set.current().ders().len()), (1, 0));
    assert!(!verdict(&set));
    assert!(!set.current().client_verifier(crate::Anonymous::Allowed).unwrap().client_auth_mandatory());
    assert!(set.current().client_verifier(crate::Anonymous::Refused).unwrap().client_auth_mandatory());
    let [(kind, last)] = set.current().expiries()[..] else { panic!("the metric is gone") };
    assert_eq!((kind, last), ("ca", old.facts().not_after.max(new.facts().not_after)));
    (0..50).for_each(|_| house.look());
    assert_eq!(set.generation(), 1, "once");
}

#[test]
fn the_swap_of_a_link_as_kubernetes_does_it() {
    let mut house = House::new();
    let volume = house.at("volume");
    std::fs::create_dir(&volume).unwrap();
    let fill = |house: &House, version: &str| {
        let folder = volume.join(version);
        std::fs::create_dir(&folder).unwrap();
        issue(&house.ca, &NAMES).write(&folder, "tls").unwrap();
        symlink(version, volume.join("..data.new")).unwrap();
        std::fs::rename(volume.join("..data.new"), volume.join("..data")).unwrap();
    };
    fill(&house, "..1");
    for name in ["tls.pem", "tls.key"] {
        symlink(format!("..data/{name}"), volume.join(name)).unwrap();
    }
    let files = IdentityFiles { certificate: volume.join("tls.pem"), key: volume.join("tls.key") };
    let must =
        Must { purpose: Purpose::Server, names: Vec::new(), issuer: Issuer::Any, reader: Reader::Ours };
    house.identity = house.watch.identity("volume".into(), files, must).unwrap();
    for round in 2..5_u64 {
        let before = house.serial();
        fill(&house, &format!("..{round}"));
        house.look();
        assert_ne!(house.serial(), before);
        assert_eq!(house.identity.generation(), round - 1);
    }
    assert_eq!(house.failures(), BTreeMap::new());
}

#[test]
fn what_is_not_valid_yet_is_used_once_it_is() {
    let mut house = House::new();
    let leaf = Leaf { not_before: house.now + 1.hours(), ..Leaf::new("svc", &NAMES) };
    house.put(&house.ca.issue(&leaf).unwrap());
    (0..5).for_each(|_| house.look());
    assert_eq!((house.identity.generation(), house.failures().len()), (0, 1));
    house.now += 2.hours();
    (0..25).for_each(|_| house.look());
    assert_eq!(house.identity.generation(), 1);
    assert_eq!(house.identity.reloads().last_failure, None);
}

#[test]
fn old_files_put_back_end_a_failure() {
    let house = House::new();
    let old = std::fs::read(house.at("svc.pem")).unwrap();
    std::fs::write(house.at("svc.pem"), "").unwrap();
    (0..3).for_each(|_| house.look());
    assert!(house.identity.reloads().last_failure.is_some());
    std::fs::write(house.at("svc.pem"), old).unwrap();
    house.look();
    assert_eq!((house.identity.reloads().last_failure, house.identity.generation()), (None, 0));
}

#[test]
fn a_list_is_never_replaced_by_an_older_one() {
    let house = House::new();
    let old = std::fs::read(house.at("ca.crl")).unwrap();
    // Lists tell their age in seconds.
    std::thread::sleep(Duration::from_millis(1_100));
    crl::revoke(&house.at("ca.crl"), &house.ca, &[vec![7]], Reason::KeyCompromise, 1.days()).unwrap();
    house.look();
    assert_eq!(house.trust.generation(), 1);
    std::fs::write(house.at("ca.crl"), old).unwrap();
    (0..3).for_each(|_| house.look());
    assert_eq!(house.trust.generation(), 1);
    assert_eq!(house.failures(), BTreeMap::from([("bad_crl", 1)]));
}

#[test]
fn what_is_derived_is_made_anew_when_its_parts_change_and_not_otherwise() {
    let house = House::new();
    let (identity, trust) = (house.identity.clone(), house.trust.clone());
    let both = house.watch.derive(&[&house.identity, &house.trust], move || {
        Ok::<_, CertError>((identity.current().facts().serial_hex.clone(), trust.generation()))
    });
    let both = both.unwrap();
    for _ in 0..3 {
        house.look();
    }
    assert_eq!((both.generation(), both.current().0.clone()), (0, house.serial()));
    house.put(&issue(&house.ca, &NAMES));
    house.look();
    assert_eq!((both.generation(), both.current().0.clone()), (1, house.serial()));
    let more = house.ca.certificate_pem().to_owned() + "\n# a remark\n";
    std::fs::write(house.at("ca.pem"), more).unwrap();
    (0..2).for_each(|_| house.look());
    assert_eq!((both.generation(), both.current().1), (2, 1));
}

#[test]
fn metrics_and_report_tell_what_is_in_use() {
    let house = House::new();
    house.watch.serves(
        "public",
        "127.0.0.1:1".parse().unwrap(),
        Certificates::one(house.identity.clone()),
        Clients::Required(house.trust.clone()),
    );
    house.watch.connects(Client {
        name: "core".into(),
        server_name: Some("core.test".into()),
        identity: Some(house.identity.clone()),
        trust: house.trust.clone(),
    });
    std::fs::write(house.at("svc.key"), "").unwrap();
    (0..3).for_each(|_| house.look());

    let report = house.watch.report();
    let [listener] = report.listeners.as_slice() else { panic!("{report:?}") };
    assert_eq!((&listener.certificate, &listener.crl), (&house.at("svc.pem"), &Some(house.at("ca.crl"))));
    assert_eq!((&listener.serving.serial_hex, listener.requires_client), (&house.serial(), true));
    assert_eq!(listener.reloads.reload_failures, 1);
    let [client] = report.clients.as_slice() else { panic!("{report:?}") };
    assert_eq!(client.trusted.len(), 1);
    assert_eq!(client.serving, Some(listener.serving.clone()));

    let text = crate::metrics::Metrics::new(Arc::clone(&house.watch)).unwrap().text();
    let value = |line: &str| -> f64 {
        let told = text.lines().find_map(|told| told.strip_prefix(line));
        told.unwrap_or_else(|| panic!("no {line} in {text}")).trim().parse().unwrap()
    };
    let days = |count: f64| count * 86_400.0;
    let left = value(r#"certs_expiry_seconds{kind="certificate",name="svc"}"#);
    assert!(left > days(89.0) && left < days(91.0), "{left}");
    let left = value(r#"certs_expiry_seconds{kind="crl",name="svc/ca"}"#);
    assert!(left > days(0.9) && left < days(1.1), "{left}");
    assert!(value(r#"certs_expiry_seconds{kind="ca",name="svc/ca"}"#) > days(3_000.0));
    assert_eq!(value(r#"cert_reload_failures_total{name="svc",reason="no_key"}"#), 1.0);
    assert_eq!(value(r#"certs_reload_refused{name="svc"}"#), 1.0);
    assert!(value(r#"certs_last_reload_timestamp_seconds{name="svc"}"#) > 1.7e9);
}
