//! The `certs` command, as an operator runs it.

use std::process::{Command, Output};

fn certs(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_certs")).args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_pki_is_made_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let made = certs(&["init", dir]);
    assert!(made.status.success(), "{}", text(&made.stderr));
    assert!(text(&made.stdout).contains("/edge.pem"));

    let again = certs(&["init", dir]);
    assert!(!again.status.success() && text(&again.stderr).contains("--force"), "{}", text(&again.stderr));
    assert!(certs(&["init", dir, "--force"]).status.success());

    let shown = certs(&["show", &format!("{dir}/edge.pem")]);
    let shown = text(&shown.stdout);
    for part in ["CN=edge.torana.test", "DNS:localhost, IP:127.0.0.1, IP:::1", "89 days left", "sha256/"] {
        assert!(shown.contains(part), "{part} in:\n{shown}");
    }

    let certificate = certs(&["show", "--json", &format!("{dir}/psp.pem")]);
    let key = certs(&["show", "--json", &format!("{dir}/psp.key")]);
    let secret = std::fs::read_to_string(format!("{dir}/psp.key")).unwrap();
    assert!(!text(&key.stdout).contains(secret.lines().nth(1).unwrap()));
    let certificate: serde_json::Value = serde_json::from_slice(&certificate.stdout).unwrap();
    let key: serde_json::Value = serde_json::from_slice(&key.stdout).unwrap();
    assert_eq!(certificate["certificates"][0]["spki_sha256"], key["key"]["spki_sha256"]);
    assert_eq!(certificate["certificates"][0]["days_left"], 89);
}

#[test]
fn what_cannot_be_shown_is_named() {
    let missing = certs(&["show", "/nowhere/edge.pem"]);
    assert!(!missing.status.success() && text(&missing.stderr).contains("/nowhere/edge.pem"));
}

#[test]
fn a_certificate_is_issued_renewed_put_back_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let pki = dir.path().join("pki");
    assert!(certs(&["init", pki.to_str().unwrap()]).status.success());
    let file = |name: &str| pki.join(name).to_str().unwrap().to_owned();
    let (ca, acme) = (file("partner-ca.pem"), file("acme.pem"));
    let json = |args: &[&str]| -> serde_json::Value {
        let said = certs(&[&["--json"], args].concat());
        assert!(said.status.success(), "{args:?}: {}", text(&said.stderr));
        serde_json::from_slice(&said.stdout).unwrap()
    };
    let names = ["--name", "spiffe://torana/partner/acme", "--name", "ops@acme.test", "--days", "30"];
    let issue = [&["issue", "--ca", &ca, "--out", &acme, "--purpose", "client"][..], &names].concat();
    let issued = json(&issue);
    assert_eq!(issued["sans"][1], serde_json::json!({"type": "email", "value": "ops@acme.test"}));
    let again = certs(&issue);
    assert_eq!(again.status.code(), Some(2), "{}", text(&again.stderr));
    assert!(text(&again.stderr).contains("certs renew"));

    let renewed = json(&["renew", "--ca", &ca, &acme]);
    assert_eq!((&renewed["before"], &renewed["sans"]), (&issued["serial_hex"], &issued["sans"]));
    assert_ne!(renewed["spki_sha256"], issued["spki_sha256"]);
    let restored = json(&["restore", &acme]);
    assert_eq!(restored["serial_hex"], issued["serial_hex"]);

    let list = json(&["revoke", "--ca", &ca, &acme, "--reason", "key-compromise"]);
    assert_eq!(list["serials"], serde_json::json!([issued["serial_hex"]]));
    let serial = renewed["serial_hex"].as_str().unwrap();
    let list = json(&["revoke", "--ca", &ca, serial]);
    assert_eq!(
        (&list["number"], list["serials"].as_array().unwrap().len()),
        (&3.into(), 2),
        "after the empty list of the beginning"
    );
    assert_eq!(json(&["revoke", "--ca", &ca])["serials"].as_array().unwrap().len(), 2, "signed anew");
    for (wrong, says) in
        [(file("edge.pem"), "did not issue it"), ("nonsense".into(), "neither a file nor a serial")]
    {
        let refused = certs(&["revoke", "--ca", &ca, &wrong]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(text(&refused.stderr).contains(says), "{}", text(&refused.stderr));
    }
}

#[test]
fn an_intermediate_gives_its_chain_to_every_leaf() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut root = rcgen::CertificateParams::default();
    root.distinguished_name.push(rcgen::DnType::CommonName, "root");
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let root_pem = root.self_signed(&key).unwrap().pem();
    let issuer = rcgen::Issuer::new(root.clone(), key);
    let middle_key = rcgen::KeyPair::generate().unwrap();
    let mut middle = root;
    middle.distinguished_name.push(rcgen::DnType::CommonName, "middle");
    let middle_pem = middle.signed_by(&middle_key, &issuer).unwrap().pem();
    std::fs::write(at("middle.pem"), format!("{middle_pem}{root_pem}")).unwrap();
    std::fs::write(at("middle.key"), middle_key.serialize_pem()).unwrap();
    let only_ours = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(at("middle.key"), only_ours).unwrap();

    let (ca, out) = (at("middle.pem"), at("svc.pem"));
    let said =
        certs(&["issue", "--ca", ca.to_str().unwrap(), "--name", "svc.test", "--out", out.to_str().unwrap()]);
    assert!(said.status.success(), "{}", text(&said.stderr));
    let chain = certs::inspect_pem(&std::fs::read(&out).unwrap()).unwrap();
    let subjects: Vec<&str> = chain.iter().map(|one| one.subject.as_str()).collect();
    assert_eq!(subjects, ["CN=svc.test", "CN=middle"], "the root is left out");
    certs::Identity::load(&out, &at("svc.key")).unwrap();
}
