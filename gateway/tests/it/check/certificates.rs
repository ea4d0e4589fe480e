//! Certificates, keys, CAs and revocation lists that cannot be used: bad file in, its whole text out.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use certs::pki::{Authority, KeyAlgorithm, Leaf, crl};
use filters::crypto::SigningKey;
use tempfile::TempDir;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::{POLICY, check, first_line, gateway};

fn pki() -> TempDir {
    certs::install_crypto_provider();
    let folder = tempfile::tempdir().unwrap();
    certs::pki::init(folder.path(), false).unwrap();
    folder
}

fn authority(folder: &Path, name: &str) -> Authority {
    let at = |ending: &str| folder.join(format!("{name}.{ending}"));
    Authority::load(&at("pem"), &at("key")).unwrap()
}

fn list(file: &Path, ca: &Authority) {
    crl::revoke(file, ca, &[], crl::Reason::Unspecified, Duration::DAY).unwrap();
}

/// Where a text is written in a policy, as mistakes tell it.
fn place(policy: &str, written: &str) -> String {
    let (before, _) = policy.split_once(written).unwrap();
    let line = before.rsplit('\n').next().unwrap();
    format!("edge.yaml:{}:{}", before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// What is told of a policy with one thing in place of another: the whole of it stands where `written` does.
fn expect(folder: &Path, (from, to): (&str, &str), written: &str, expected: &str) {
    assert!(POLICY.contains(from), "{from}");
    let policy = POLICY.replacen(from, to, 1);
    let (status, told) = check(folder, &policy);
    // Files are told by their whole paths.
    let told = told.replace(&format!("{}/", folder.display()), "");
    assert_eq!(first_line(&told), format!("error: {}: {expected}", place(&policy, written)), "with {to}");
    assert!(told.ends_with("\n\n1 error in edge.yaml\n"), "with {to}: {told}");
    assert_eq!(status, 1);
}

/// What the first section of a PEM file holds.
fn der(file: &Path) -> Vec<u8> {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().skip(1).take_while(|line| !line.starts_with('-'));
    STANDARD.decode(lines.collect::<String>()).unwrap()
}

fn pem(kind: &str, der: &[u8]) -> String {
    format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der))
}

/// A value of DER, of fewer than 256 bytes.
fn value(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let inside = parts.concat();
    let length = u8::try_from(inside.len()).unwrap();
    let head = if length < 128 { vec![tag, length] } else { vec![tag, 0x81, length] };
    [head, inside].concat()
}

/// A list as CAs wrote them before RFC 2459: without a version, and so without extensions.
fn old_list(folder: &Path, ca: &str, name: &str) -> Vec<u8> {
    let common_name = value(0x30, &[&value(0x06, &[&[0x55, 0x04, 0x03]]), &value(0x0c, &[name.as_bytes()])]);
    let issuer = value(0x30, &[&value(0x31, &[&common_name])]);
    let ecdsa_with_sha256 =
        value(0x30, &[&value(0x06, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02]])]);
    let times = [&b"260101000000Z"[..], b"491231235959Z"].map(|time| value(0x17, &[time]));
    let list = value(0x30, &[&ecdsa_with_sha256, &issuer, &times[0], &times[1]]);
    let key = SigningKey::ecdsa_p256_pkcs8(&der(&folder.join(format!("{ca}.key")))).unwrap();
    let signature = key.sign(&list).unwrap();
    // Positive, as short as it can be.
    let number = |bytes: &[u8]| {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let sign: &[u8] = if bytes[zeros] < 0x80 { &[] } else { &[0] };
        value(0x02, &[sign, &bytes[zeros..]])
    };
    let (r, s) = signature.split_at(32);
    let signature = value(0x03, &[&[0], &value(0x30, &[&number(r), &number(s)])]);
    value(0x30, &[&list, &ecdsa_with_sha256, &signature])
}

/// How the files of the listener are changed.
const CERTIFICATE: &str = "\"file:edge.pem\"";
const KEY: &str = "\"file:edge.key\"";
const CA: &str = "\"file:internal-ca.pem\"";

#[test]
fn files_that_are_none_of_what_they_should_be() {
    let folder = pki();
    let at = |name: &str| folder.path().join(name);
    let section = |kind: &str| format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
    let secret = |name: &str, text: &str| certs::file::write_secret(&at(name), text).unwrap();
    fs::create_dir(at("folder")).unwrap();
    let certificate = der(&at("edge.pem"));
    // The list of its names is said to be a set.
    let mut unnamed = certificate.clone();
    let names = unnamed.windows(5).position(|bytes| bytes == [0x06, 0x03, 0x55, 0x1d, 0x11]).unwrap();
    let list = names + 5 + unnamed[names + 5..].iter().position(|byte| *byte == 0x30).unwrap();
    unnamed[list] = 0x31;
    for (name, text) in [
        ("empty.pem", ""),
        ("open.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n"),
        ("begin.pem", "-----BEGIN CERTIFICATE\nAAAA\n-----END CERTIFICATE-----\n"),
        ("words.pem", "-----BEGIN CERTIFICATE-----\n*words*\n-----END CERTIFICATE-----\n"),
        ("junk.pem", &section("CERTIFICATE")),
        ("large.pem", &" ".repeat(1024 * 1024 + 1)),
        ("longer.pem", &pem("CERTIFICATE", &[&certificate[..], &[0, 0]].concat())),
        ("unnamed.pem", &pem("CERTIFICATE", &unnamed)),
    ] {
        fs::write(at(name), text).unwrap();
    }
    fs::write(at("loose.key"), fs::read(at("edge.key")).unwrap()).unwrap();
    secret("junk.key", &section("PRIVATE KEY"));
    secret("encrypted.key", &section("ENCRYPTED PRIVATE KEY"));
    secret("empty.key", "");
    let swapped =
        |which: [&str; 2]| format!("certificate: \"file:{}\", key: \"file:{}\"", which[0], which[1]);
    secret("words.key", "-----BEGIN PRIVATE KEY-----\n*words*\n-----END PRIVATE KEY-----\n");
    for (from, name, expected) in [
        (
            CERTIFICATE,
            "none.pem",
            "cannot read none.pem: No such file or directory (os error 2); check that the file exists and that this user may read it",
        ),
        (CERTIFICATE, "folder", "folder is not a file; name a file, not a folder, a pipe or a device"),
        (
            CERTIFICATE,
            "large.pem",
            "large.pem is larger than 1048576 bytes; no certificate, key or list that can be used is",
        ),
        (
            KEY,
            "loose.key",
            "loose.key has mode 644: others may read this key, or its group may change it; set mode 0600, or 0440 with a group of the service's own (in a Kubernetes volume: `defaultMode: 0440` and `fsGroup`)",
        ),
        (
            CERTIFICATE,
            "open.pem",
            "open.pem is not well-formed PEM: a section has no END line; copy the file again, in full",
        ),
        (
            CERTIFICATE,
            "begin.pem",
            "begin.pem is not well-formed PEM: a BEGIN line is malformed; copy the file again, in full",
        ),
        (
            CERTIFICATE,
            "words.pem",
            "words.pem is not well-formed PEM: a section is not base64; copy the file again, in full",
        ),
        (
            KEY,
            "words.key",
            "words.key is not well-formed PEM: a section is not base64; copy the file again, in full",
        ),
        (
            CERTIFICATE,
            "empty.pem",
            "empty.pem holds no certificate; it needs at least one 'BEGIN CERTIFICATE' section, the leaf first",
        ),
        (
            CA,
            "empty.pem",
            "empty.pem holds no certificate; it needs at least one 'BEGIN CERTIFICATE' section, the leaf first",
        ),
        (
            KEY,
            "empty.key",
            "empty.key holds no private key; it needs one unencrypted 'BEGIN PRIVATE KEY' section (PKCS#8)",
        ),
        (
            KEY,
            "encrypted.key",
            "the private key in encrypted.key is encrypted; decrypt it first (openssl pkcs8 -in FILE -out PLAIN) and protect the file with mode 0600",
        ),
        (
            CERTIFICATE,
            "junk.pem",
            "certificate 1 in junk.pem cannot be parsed: its section holds something else; issue it again",
        ),
        (
            CERTIFICATE,
            "longer.pem",
            "certificate 1 in longer.pem cannot be parsed: 2 bytes follow the certificate; issue it again",
        ),
        (
            CERTIFICATE,
            "unnamed.pem",
            "certificate 1 in unnamed.pem cannot be parsed: its names cannot be read; issue it again",
        ),
        (
            KEY,
            "junk.key",
            "the private key in junk.key cannot be used: it is of no such kind, or damaged; use ECDSA P-256, Ed25519 or RSA of 2048 bits or more",
        ),
    ] {
        let to = format!("\"file:{name}\"");
        expect(folder.path(), (from, &to), &to, expected);
    }
    for (from, to, at, expected) in [
        (
            swapped(["edge.pem", "edge.key"]),
            swapped(["edge.key", "edge.pem"]),
            "\"file:edge.key\"",
            "the two files are swapped: edge.key holds a private key, and edge.pem holds a certificate; exchange them",
        ),
        (
            swapped(["gateway.pem", "gateway.key"]),
            swapped(["gateway.key", "gateway.pem"]),
            "\"file:gateway.key\"",
            "the two files are swapped: gateway.key holds a private key, and gateway.pem holds a certificate; exchange them",
        ),
        (
            swapped(["edge.pem", "edge.key"]),
            swapped(["edge.key", "edge.key"]),
            "\"file:edge.key\"",
            "edge.key holds a private key where a certificate belongs; name the file of the certificate",
        ),
        (
            swapped(["edge.pem", "edge.key"]),
            swapped(["edge.pem", "gateway.pem"]),
            "\"file:gateway.pem\" }\nadmin",
            "gateway.pem holds a certificate where a private key belongs; name the file of the key",
        ),
        (
            CA.to_owned(),
            "\"file:edge.key\"".to_owned(),
            "\"file:edge.key\", certificate",
            "edge.key holds a private key where a certificate belongs; name the file of the certificate",
        ),
    ] {
        expect(folder.path(), (&from, &to), at, expected);
    }
}

/// Sound, each for itself, and of no use where they are.
#[test]
fn certificates_that_do_not_belong_where_they_are() {
    let folder = pki();
    let edge_ca = authority(folder.path(), "edge-ca");
    let issue = |name: &str, leaf: Leaf| edge_ca.issue(&leaf).unwrap().write(folder.path(), name).unwrap();
    let leaf = || Leaf::new("shop.test", &["shop.test"]);
    let tomorrow = (OffsetDateTime::now_utc() + Duration::DAY).replace_nanosecond(0).unwrap();
    issue("early", Leaf { not_before: tomorrow, ..leaf() });
    let (not_before, not_after) = (datetime!(2020-01-01 0:00 UTC), datetime!(2020-01-02 0:00 UTC));
    issue("late", Leaf { not_before, not_after, ..leaf() });
    issue("shop", leaf());
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    fs::write(folder.path().join("chain.pem"), read("edge.pem") + &read("internal-ca.pem")).unwrap();
    let both = "\"file:edge.pem\", key: \"file:edge.key\"";
    let pair = |name: &str| format!("\"file:{name}.pem\", key: \"file:{name}.key\"");
    let named = |name: &str| {
        format!(
            "{both}, certificates: [{{ server_names: [{name}], certificate: \"file:shop.pem\", key: \"file:shop.key\" }}]"
        )
    };
    let upstreams = "\"file:gateway.pem\", key: \"file:gateway.key\"";
    let early = format!(
        "CN=shop.test in early.pem is not valid before {tomorrow}; check this machine's clock, or wait"
    );
    for (from, to, file, expected) in [
        (
            KEY,
            "\"file:gateway.key\"".to_owned(),
            "edge.pem",
            "the private key in gateway.key does not belong to the first certificate in edge.pem; deploy the two files that were issued together",
        ),
        (
            both,
            pair("edge-ca"),
            "edge-ca.pem",
            "the first certificate in edge-ca.pem (CN=Torana development edge CA) is a CA; put the leaf first, then the CA that issued it",
        ),
        (
            CERTIFICATE,
            "\"file:chain.pem\"".to_owned(),
            "chain.pem",
            "certificate 2 in chain.pem (CN=Torana development internal CA) did not issue the one before it, which names CN=Torana development edge CA as its issuer; order the chain leaf first, each followed by its issuer",
        ),
        (both, pair("early"), "early.pem", &early),
        (
            both,
            pair("late"),
            "late.pem",
            "CN=shop.test in late.pem expired at 2020-01-02 0:00:00.0 +00:00:00; issue a new certificate",
        ),
        (
            CA,
            "\"file:gateway.pem\"".to_owned(),
            "gateway.pem",
            "CN=gateway.torana.internal in gateway.pem is not a CA and cannot be trusted as a root; name the file of the CA that issues certificates",
        ),
        (
            both,
            format!("{both}, ca: \"file:partner-ca.pem\""),
            "edge.pem",
            "CN=edge.torana.test in edge.pem does not come from a CA that is trusted here, and what is in use does; trust its CA first, or take a certificate of a trusted one",
        ),
        (
            both,
            named("other.test"),
            "shop.pem",
            "CN=shop.test in shop.pem does not name DNS:other.test, which is served; issue it with that name too",
        ),
        (
            both,
            pair("partner"),
            "partner.pem",
            "CN=partner-acme.partner.test in partner.pem is not for TLS servers (extended key usage); issue it for that",
        ),
        (
            upstreams,
            pair("edge"),
            "edge.pem\", key: \"file:edge.key\" }\nclients",
            "CN=edge.torana.test in edge.pem is not for TLS clients (extended key usage); issue it for that",
        ),
    ] {
        expect(folder.path(), (from, &to), &format!("\"file:{file}"), expected);
    }
    let policy = POLICY.replacen(both, &named("shop.test"), 1);
    let (status, told) = check(folder.path(), &policy);
    assert_eq!(status, 0, "{told}");
}

#[test]
fn lists_of_what_is_revoked() {
    let folder = pki();
    let at = |name: &str| folder.path().join(name);
    let section = |kind: &str| format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
    fs::write(at("junk.crl"), section("X509 CRL")).unwrap();
    fs::write(at("words.crl"), "-----BEGIN X509 CRL-----\n*words*\n-----END X509 CRL-----\n").unwrap();
    fs::write(at("large.crl"), " ".repeat(16 * 1024 * 1024 + 1)).unwrap();
    // In DER, and one byte too many behind it.
    let list_of_ca = der(&at("internal-ca.crl"));
    fs::write(at("der.crl"), &list_of_ca).unwrap();
    fs::write(at("longer.crl"), [&list_of_ca[..], &[0]].concat()).unwrap();
    let old = old_list(folder.path(), "internal-ca", "Torana development internal CA");
    fs::write(at("old.crl"), pem("X509 CRL", &old)).unwrap();
    // Of another CA of the same name.
    let namesake = Authority::create("Torana development internal CA").unwrap();
    list(&at("namesake.crl"), &namesake);
    for (name, expected) in [
        (
            "junk.crl",
            "junk.crl cannot be used as a revocation list: list 1 cannot be parsed: its section holds something else",
        ),
        ("longer.crl", "longer.crl cannot be used as a revocation list: list 1 is followed by 1 bytes"),
        (
            "namesake.crl",
            "namesake.crl cannot be used as a revocation list: list 1 bears the name of CN=Torana development internal CA, which did not sign it",
        ),
        (
            "edge-ca.crl",
            "edge-ca.crl cannot be used as a revocation list: it has no list of CN=Torana development internal CA; add one, an empty one if nobody is revoked",
        ),
        (
            "old.crl",
            "old.crl cannot be used as a revocation list: provided CRL could not be parsed: ParseError",
        ),
        (
            "words.crl",
            "words.crl is not well-formed PEM: a section is not base64; copy the file again, in full",
        ),
        (
            "large.crl",
            "large.crl is larger than 16777216 bytes; no certificate, key or list that can be used is",
        ),
    ] {
        let to = format!("{CA}, crl: \"file:{name}\"");
        expect(folder.path(), (CA, &to), &format!("\"file:{name}\""), expected);
    }
    for good in ["internal-ca.crl", "der.crl"] {
        let policy = POLICY.replacen(CA, &format!("{CA}, crl: \"file:{good}\""), 1);
        let (status, told) = check(folder.path(), &policy);
        assert_eq!(status, 0, "{good}: {told}");
    }
}

/// Envoy's library signs with no such key.
#[test]
fn keys_that_envoy_cannot_use_are_told_where_it_would_serve() {
    let folder = pki();
    let leaf = Leaf { key: KeyAlgorithm::Ed25519, ..Leaf::new("shop.test", &["shop.test"]) };
    authority(folder.path(), "edge-ca").issue(&leaf).unwrap().write(folder.path(), "shop").unwrap();
    let policy = POLICY.replacen("edge.pem", "shop.pem", 1).replacen("edge.key", "shop.key", 1);
    let policy = format!("{policy}state: {{ service: {{ address: \"127.0.0.1:3\" }} }}\n");
    fs::write(folder.path().join("edge.yaml"), &policy).unwrap();
    let made = gateway(folder.path(), &["envoy", "edge.yaml"]);
    assert!(!made.status.success());
    let told = String::from_utf8(made.stderr).unwrap().replace(&format!("{}/", folder.path().display()), "");
    let expected = "the private key in shop.key is of a kind that Envoy cannot use, Ed25519; issue the certificate with ECDSA P-256 or RSA";
    assert_eq!(told, format!("{}: {expected}\n", place(&policy, "\"file:shop.key\"")));
}
