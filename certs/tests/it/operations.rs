//! `certs status`, `rotate`, `wait` and `rollover`, as an operator runs them against processes that follow their
//! files and against some that do not.

use std::path::{Path, PathBuf};
use std::process::Output;

use crate::fake::{Fake, Files, hmac_key};
use certs::pki;
use certs::pki::files::Pair;
use serde_json::Value;
use time::{Duration, OffsetDateTime};

struct Pki(tempfile::TempDir);

impl Pki {
    fn new() -> Pki {
        certs::install_crypto_provider();
        let pki = Pki(tempfile::tempdir().unwrap());
        pki::init(pki.0.path(), false).unwrap();
        pki
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

/// Runs the command with `--json`; its status and what it says.
async fn certs(arguments: &[&str], more: &[&Path], admins: &[String]) -> (i32, Value, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_certs"));
    command.arg("--json").args(arguments).args(more);
    for admin in admins {
        command.args(["--admin", admin]);
    }
    let Output { status, stdout, stderr } = command.output().await.unwrap();
    let said = serde_json::from_slice(&stdout).unwrap_or_default();
    (status.code().unwrap(), said, String::from_utf8(stderr).unwrap())
}

fn serial(file: &Path) -> String {
    certs::inspect_pem(&std::fs::read(file).unwrap()).unwrap().remove(0).serial_hex
}

#[tokio::test]
async fn status_tells_what_is_served_and_what_differs() {
    let pki = Pki::new();
    let now = OffsetDateTime::now_utc();
    let [follows, lies, once, odd] = [Files::Followed, Files::LiedAbout, Files::ReadOnce, Files::Followed]
        .map(|files| Fake::new(pki.path(), "txn-core", files));
    let odd = Fake { key: Some(hmac_key(now + Duration::days(3), now - Duration::days(1))), ..odd };
    let [follows, lies, once, odd] =
        [follows.start().await, lies.start().await, once.start().await, odd.start().await];

    let (status, said, _) = certs(&["status"], &[], std::slice::from_ref(&follows)).await;
    assert_eq!((status, &said["problems"]), (0, &Value::from(0)), "{said:#}");
    let served = &said["services"][0]["listeners"][0]["served"];
    assert_eq!(served["serial_hex"], Value::from(serial(&pki.file("txn-core.pem"))));
    assert_eq!(
        (&served["protocol"], &served["cipher"]),
        (&"TLSv1_3".into(), &"TLS13_AES_256_GCM_SHA384".into())
    );

    let pair = Pair::beside(&pki.file("txn-core.pem"));
    let internal =
        || pki::Authority::load(&pki.file("internal-ca.pem"), &pki.file("internal-ca.key")).unwrap();
    let issue = |name| internal().issue(&pki::Leaf::new(name, &[name])).unwrap();
    pair.replace(&issue("txn-core.torana.internal")).unwrap();
    let nobody = "http://127.0.0.1:1".to_owned();
    for (admin, expected) in [
        (&follows, &[][..]),
        (&once, &["the file has", "the file has"]),
        (&lies, &["the process says that it serves", "the file has"]),
        (&odd, &["the key ends soon", "its rotation was due"]),
        (&nobody, &["does not answer"]),
    ] {
        let (status, said, _) = certs(&["status"], &[], std::slice::from_ref(admin)).await;
        assert_eq!(status, i32::from(!expected.is_empty()), "{said:#}");
        let text = said.to_string();
        assert_eq!(said["problems"], expected.len(), "{said:#}");
        assert!(expected.iter().all(|problem| text.contains(problem)), "{said:#}");
    }
    let soon = ["status", "--expiring-days", "91"];
    let (status, said, _) = certs(&soon, &[], std::slice::from_ref(&follows)).await;
    assert_eq!(
        (status, &said["problems"]),
        (1, &Value::from(3)),
        "the listener's, its list's and the client's: {said:#}"
    );
    // A list ends before the certificates do; signed anew, it outlives the month after which that is done again.
    let ca = pki.file("internal-ca.pem");
    let within = |days| ["status", "--expiring-days", days];
    for (list_days, expiring_days, expected) in
        [(&["--days", "3"][..], "14", Some("the revocation list ends soon")), (&[], "44", None)]
    {
        let (status, _, why) = certs(&[&["revoke"], list_days, &["--ca"]].concat(), &[&ca], &[]).await;
        assert_eq!(status, 0, "{why}");
        let (status, said, _) = certs(&within(expiring_days), &[], std::slice::from_ref(&follows)).await;
        assert_eq!(status, i32::from(expected.is_some()), "{said:#}");
        assert!(expected.is_none_or(|problem| said.to_string().contains(problem)), "{said:#}");
    }
    let (status, _, why) = certs(&["status"], &[], &[]).await;
    assert!(status == 2 && why.contains("nobody to ask"), "{why}");
}

#[tokio::test]
async fn a_rotation_is_done_when_everybody_serves_it() {
    let pki = Pki::new();
    let admin = Fake::new(pki.path(), "txn-core", Files::Followed).start().await;
    let lies = Fake::new(pki.path(), "npci-proxy", Files::LiedAbout).start().await;
    let ca = pki.file("internal-ca.pem");
    let mut before = serial(&pki.file("txn-core.pem"));
    for _ in 0..3 {
        let certificate = pki.file("txn-core.pem");
        let (status, said, why) =
            certs(&["rotate", "--ca"], &[&ca, &certificate], std::slice::from_ref(&admin)).await;
        assert_eq!(status, 0, "{said:#} {why}");
        assert_eq!((&said["before"], said["users"].as_array().unwrap().len()), (&Value::from(before), 2));
        before = serial(&certificate);
        assert_eq!(said["serial_hex"], Value::from(before.as_str()));
    }

    // One that goes on with what it has is found out, whatever it says; the old pair comes back.
    let certificate = pki.file("npci-proxy.pem");
    let old = serial(&certificate);
    let rotate = ["rotate", "--timeout-s", "1", "--ca"];
    let (status, said, _) = certs(&rotate, &[&ca, &certificate], std::slice::from_ref(&lies)).await;
    assert_eq!(
        (status, &said["users"][0]["proven"], &said["users"][0]["found"]),
        (1, &false.into(), &old.as_str().into())
    );
    assert!(said["hint"].as_str().unwrap().contains("certs restore"), "{said:#}");
    assert_eq!(certs(&["restore"], &[&certificate], &[]).await.0, 0);
    assert_eq!(serial(&certificate), old);
    assert_eq!(certs(&["wait"], &[&certificate], std::slice::from_ref(&lies)).await.0, 0);

    // Nothing is changed when it could not be proven, or by a CA that is not the certificate's.
    let nobody = vec![lies, "http://127.0.0.1:1".to_owned()];
    let (status, _, why) = certs(&["rotate", "--ca"], &[&ca, &certificate], &nobody).await;
    assert!(status == 2 && why.contains("nothing was changed"), "{why}");
    let edge = pki.file("edge-ca.pem");
    let (status, _, why) = certs(&["renew", "--ca"], &[&edge, &certificate], &[]).await;
    assert!(status == 2 && why.contains("was not issued by"), "{why}");
    assert_eq!(serial(&certificate), old);
    // A file that nobody uses is not proven.
    let wait = ["wait", "--timeout-s", "0"];
    let (status, said, _) = certs(&wait, &[&pki.file("issuer.pem")], &[admin]).await;
    assert!(status == 1 && said["hint"].as_str().unwrap().contains("nobody"), "{said:#}");
}

/// Others fill the folder: a mounted Kubernetes secret, where `..data` is swapped.
#[tokio::test]
async fn what_others_put_there_is_waited_for() {
    let pki = Pki::new();
    let secret = tempfile::tempdir().unwrap();
    let ca = pki::Authority::load(&pki.file("internal-ca.pem"), &pki.file("internal-ca.key")).unwrap();
    let fill = |version: &str| {
        let issued = ca.issue(&pki::Leaf::new("svc", &["localhost"])).unwrap();
        let folder = secret.path().join(version);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("tls.crt"), &issued.certificate_pem).unwrap();
        std::fs::write(folder.join("tls.key"), issued.key_pem.as_bytes()).unwrap();
        let link = secret.path().join("..data_tmp");
        std::os::unix::fs::symlink(version, &link).unwrap();
        std::fs::rename(link, secret.path().join("..data")).unwrap();
    };
    fill("..one");
    for name in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(name), secret.path().join(name)).unwrap();
    }
    let certificate = secret.path().join("tls.crt");
    let fake = Fake::new(pki.path(), "txn-core", Files::Followed);
    let admin = Fake { certificate: certificate.clone(), ..fake }.start().await;
    fill("..two");
    let (status, said, why) = certs(&["wait"], &[&certificate], std::slice::from_ref(&admin)).await;
    assert_eq!(status, 0, "{said:#} {why}");
    let (status, _, why) =
        certs(&["rotate", "--ca"], &[&pki.file("internal-ca.pem"), &certificate], &[admin]).await;
    assert!(status == 2 && why.contains("somebody else fills this folder"), "{why}");
}

#[tokio::test]
async fn a_root_is_replaced_in_steps_that_are_proven() {
    let pki = Pki::new();
    let ca = pki.file("internal-ca.pem");
    certs(&["revoke", "--ca"], &[&ca, &pki.file("issuer.pem")], &[]).await;
    let core = Fake::new(pki.path(), "txn-core", Files::Followed).start().await;
    let proxy = Fake::new(pki.path(), "npci-proxy", Files::Followed).start().await;
    let everybody = [core, proxy];
    let step = async |step: &str, admins: &[String]| {
        certs(&["rollover", step, "--timeout-s", "2", "--ca"], &[&ca], admins).await
    };
    let issuer_of =
        |name: &str| certs::inspect_pem(&std::fs::read(pki.file(name)).unwrap()).unwrap().remove(0).issuer;

    // A root that has nothing to do with it, and stays.
    let third = pki::Authority::create("third").unwrap();
    std::fs::write(&ca, std::fs::read_to_string(&ca).unwrap() + third.certificate_pem()).unwrap();
    pki::crl::revoke(
        &pki.file("internal-ca.crl"),
        &third,
        &[],
        pki::crl::Reason::Unspecified,
        pki::crl::VALID,
    )
    .unwrap();
    // Where nobody trusts the file, nothing is proven and nothing is done, unless somebody answers for it.
    let nobody =
        Fake { client_ca: pki.file("network-ca.pem"), ..Fake::new(pki.path(), "gateway", Files::Followed) };
    let nobody = [nobody.start().await];
    let (status, said, _) = step("begin", &nobody).await;
    assert!(status == 1 && said["parts"][0]["service"] == "nobody", "{said:#}");
    assert!(!pki.file("internal-ca.next.pem").exists(), "nothing was changed");

    // Not in this order.
    for early in ["move", "finish"] {
        let (status, _, why) = step(early, &everybody).await;
        assert!(status == 2 && why.contains("has begun"), "{why}");
    }
    let (status, said, why) = step("begin", &everybody).await;
    assert_eq!((status, said["roots"].as_array().unwrap().len()), (0, 3), "{said:#} {why}");
    assert_eq!(said["parts"].as_array().unwrap().len(), 4, "two listeners and two clients: {said:#}");
    let (status, said, _) = step("move", &nobody).await;
    assert!(status == 1 && said["refused"].as_str().unwrap().contains("nothing was changed"), "{said:#}");
    let (status, said, _) = step("finish", &everybody).await;
    assert!(status == 1 && said["refused"].as_str().unwrap().contains("rollover move"), "{said:#}");
    assert_eq!(issuer_of("txn-core.pem"), "CN=Torana development internal CA", "nothing was moved");

    // Somebody who does not follow holds up what comes next.
    let stubborn = Fake::new(pki.path(), "gateway", Files::ReadOnce);
    let roots = std::fs::read(&ca).unwrap();
    std::fs::write(&ca, std::fs::read(pki.file("network-ca.pem")).unwrap()).unwrap();
    let with_stubborn = [everybody.as_slice(), &[stubborn.start().await]].concat();
    std::fs::write(&ca, roots).unwrap();
    let (status, said, _) = step("move", &with_stubborn).await;
    assert!(status == 1 && said["refused"].as_str().unwrap().contains("nothing was changed"), "{said:#}");
    assert_eq!(issuer_of("txn-core.pem"), "CN=Torana development internal CA");

    // A key that is not the leaf's is not replaced, nor anything else.
    let key = pki.file("issuer.key");
    let own = std::fs::read(&key).unwrap();
    std::fs::write(&key, std::fs::read(pki.file("edge.key")).unwrap()).unwrap();
    let (status, _, why) = step("move", &everybody).await;
    assert!(status == 2 && why.contains("is not the key of"), "{why}");
    assert_eq!(issuer_of("gateway.pem"), "CN=Torana development internal CA");
    std::fs::write(&key, own).unwrap();

    let (status, said, why) = step("move", &everybody).await;
    assert_eq!(status, 0, "{said:#} {why}");
    assert_eq!(said["moved"].as_array().unwrap().len(), 4, "used or beside the CA: {said:#}");
    assert_eq!(issuer_of("txn-core.pem"), "CN=Torana development internal CA G2");
    let (status, said, _) = step("status", &everybody).await;
    assert!(
        status == 0 && said["stage"] == "both" && said["left"].as_array().unwrap().is_empty(),
        "{said:#}"
    );

    // `finish` dies between its two files: the pairs before are kept, and the new key is in place.
    for file in ["internal-ca.pem", "internal-ca.key"] {
        std::fs::hard_link(pki.file(file), pki.file(&format!("{file}.previous"))).unwrap();
    }
    std::fs::copy(pki.file("internal-ca.next.key"), pki.file("new")).unwrap();
    std::fs::rename(pki.file("new"), pki.file("internal-ca.key")).unwrap();
    for other in ["begin", "move", "status"] {
        let (status, _, why) = step(other, &everybody).await;
        assert!(status == 2 && why.contains("`certs rollover finish` died"), "{other}: {why}");
    }

    // Repeated. Somebody keeps the old root: the step stays open, goes nowhere else, and is repeated.
    let late =
        [everybody.as_slice(), &[Fake::new(pki.path(), "gateway", Files::ReadOnce).start().await]].concat();
    let (status, said, why) = step("finish", &late).await;
    assert_eq!((status, &said["stage"]), (1, &"both".into()), "{said:#} {why}");
    let (status, _, why) = step("begin", &everybody).await;
    assert!(status == 2 && why.contains("repeat `certs rollover finish`"), "{why}");
    let (status, said, why) = step("finish", &everybody).await;
    assert_eq!((status, said["roots"].as_array().unwrap().len()), (0, 2), "{said:#} {why}");
    assert_eq!(said["roots"][1]["subject"], "CN=third");
    assert_eq!(said["stage"], "settled");
    assert_eq!(certs(&["status"], &[], &everybody).await.0, 0);
    // The new root renews and revokes what the old one did.
    let certificate = pki.file("txn-core.pem");
    let (status, said, why) = certs(&["rotate", "--ca"], &[&ca, &certificate], &everybody).await;
    assert_eq!(status, 0, "{said:#} {why}");
    let (status, said, why) = certs(&["revoke", "--ca"], &[&ca, &pki.file("issuer.pem")], &[]).await;
    assert_eq!((status, said["serials"].as_array().unwrap().len()), (0, 1), "{said:#} {why}");
}
