//! Keys that change while a data plane runs, and certificates over HTTP/2: over the wire, with both data planes.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use certs::client::{ClientLimits, https_to};
use certs::report::{KeyKind, Report};
use certs::{Identity, Trust, Versions};
use filters::crypto::SigningKey;
use filters::signature::message::{Message, Params, sign};
use parity::answering::Seen;
use parity::case::{Named, Step};
use parity::mint::{AUTHORITY, PARTNER_SECRET, Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::world::World;

const LONGEST: Duration = Duration::from_secs(30);
const NEXT_SECRET: &str = "the partner's next secret, 32 too";

fn programs() -> Programs {
    Programs::beside_test().unwrap()
}

/// What becomes of a request that is signed with this secret.
async fn verdict(world: &World, plane: &Plane<'_>, secret: &[u8]) -> String {
    verdict_by(world, plane, "partner-1", secret).await
}

async fn verdict_by(world: &World, plane: &Plane<'_>, id: &str, secret: &[u8]) -> String {
    let times = Times::new(world.epoch_ms, 0).unwrap();
    let mut sent = Sent::new(&Step::default(), &world.keys, times).unwrap();
    let params = Params {
        created: Some(times.now_s),
        keyid: Some(id.to_owned()),
        ..Params::covering(&["@method", "@path", "@query"]).unwrap()
    };
    let message = Message::request(&sent.method, "https", AUTHORITY, &sent.target, None, &sent.headers);
    let made = sign(&message, "sig1", &params, &SigningKey::hmac(secret).unwrap()).unwrap();
    sent.headers.push(("signature-input".to_owned(), made.signature_input.into_bytes()));
    sent.headers.push(("signature".to_owned(), made.signature.into_bytes()));
    plane.decide(&sent, None).await.unwrap().verdict
}

/// Waits until it holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONGEST, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A client's secret is replaced in its file: no data plane is started again, the new one counts and the old one does
/// not. A file that others may read changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_that_changes_is_followed() {
    certs::install_crypto_provider();
    let case = "name: secrets\nstate_socket: true\nrequests: []\nroutes: [{ name: r, methods: [GET], \
                path: \"/{*rest}\", upstream: u, filters: { signature: { signer: client } } }]";
    let named = Named::parse(case).unwrap();
    for kind in Kind::ALL {
        let world = World::new().await.unwrap();
        let folder = world.case_folder(kind.name()).unwrap();
        let plane = Plane::start(&world, &programs(), kind, &named, &folder).await.unwrap();
        plane.at(world.epoch_ms).unwrap();
        let file = world.folder().join("partner-1.key");
        until("the first secret counts", async || verdict(&world, &plane, PARTNER_SECRET).await == "pass")
            .await;
        assert_eq!(verdict(&world, &plane, NEXT_SECRET.as_bytes()).await, "401 signature_invalid");

        std::fs::write(folder.join("loose"), NEXT_SECRET).unwrap();
        std::fs::set_permissions(folder.join("loose"), Permissions::from_mode(0o644)).unwrap();
        std::fs::rename(folder.join("loose"), &file).unwrap();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        assert_eq!(
            verdict(&world, &plane, PARTNER_SECRET).await,
            "pass",
            "{}: others may read it",
            kind.name()
        );

        certs::file::write_secret(&file, NEXT_SECRET).unwrap();
        let next = NEXT_SECRET.as_bytes();
        until("the next secret counts", async || verdict(&world, &plane, next).await == "pass").await;
        assert_eq!(verdict(&world, &plane, PARTNER_SECRET).await, "401 signature_invalid", "{}", kind.name());

        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let get = async |path: &str| {
            let answer = http.get(format!("http://{}{path}", plane.admin())).send().await.unwrap();
            answer.text().await.unwrap()
        };
        match kind {
            Kind::Gateway => {
                let metrics = get("/metrics").await;
                let refused = r#"cert_reload_failures_total{name="client-keys",reason="loose_key"} 1"#;
                assert!(metrics.contains(refused), "{metrics}");
                let report: Report = serde_json::from_str(&get("/certificates").await).unwrap();
                let ids: Vec<_> =
                    report.keys.iter().map(|key| (key.kind, key.owner.as_str(), key.id.as_str())).collect();
                assert!(ids.contains(&(KeyKind::Hmac, "acme-bank", "partner-1")), "{ids:?}");
                assert!(ids.contains(&(KeyKind::Jwks, "main", "k1")), "{ids:?}");
                assert!(report.keys.iter().all(|key| key.first_seen.is_some()), "{ids:?}");
            }
            Kind::Envoy => {
                // Told on a socket, they are in no configuration, and not to be seen on Envoy's admin address.
                let seen =
                    get("/config_dump").await + &std::fs::read_to_string(folder.join("envoy.json")).unwrap();
                for secret in [PARTNER_SECRET, next] {
                    assert!(
                        !seen.contains(&STANDARD.encode(secret)) && seen.contains("file:"),
                        "{}",
                        seen.len()
                    );
                }
            }
        }
    }
}

/// One key gives way to another in a file: both count for a while, then the new one alone, and never none.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_come_and_go_without_another_policy() {
    certs::install_crypto_provider();
    let case = "name: keys\nstate_socket: true\nrequests: []\nclients: { acme: { hmac_key_file: acme.keys } }\n\
                routes: [{ name: r, methods: [GET], path: \"/{*rest}\", upstream: u, filters: { signature: \
                { signer: client, clients: [acme] } } }]";
    let named = Named::parse(case).unwrap();
    let secrets = [("acme-1", PARTNER_SECRET), ("acme-2", NEXT_SECRET.as_bytes())];
    for kind in Kind::ALL {
        let world = World::new().await.unwrap();
        let write = |keys: &[(&str, &[u8])]| {
            let keys: Vec<_> = keys
                .iter()
                .map(|(id, secret)| serde_json::json!({ "id": id, "secret": STANDARD.encode(secret) }))
                .collect();
            let text = serde_json::json!({ "keys": keys }).to_string();
            certs::file::write_secret(&world.folder().join("acme.keys"), &text).unwrap();
        };
        write(&secrets[..1]);
        let folder = world.case_folder(&format!("keys-{}", kind.name())).unwrap();
        let plane = Plane::start(&world, &programs(), kind, &named, &folder).await.unwrap();
        plane.at(world.epoch_ms).unwrap();
        let counts = async |key: usize| verdict_by(&world, &plane, secrets[key].0, secrets[key].1).await;
        until("the first key counts", async || counts(0).await == "pass").await;
        assert_eq!(counts(1).await, "401 signature_key_unknown", "{}", kind.name());
        write(&secrets);
        until("both count", async || {
            assert_eq!(counts(0).await, "pass", "{}", kind.name());
            counts(1).await == "pass"
        })
        .await;
        certs::file::write_secret(&world.folder().join("acme.keys"), "{\"keys\": [").unwrap();
        tokio::time::sleep(Duration::from_millis(1_000)).await;
        assert_eq!((counts(0).await, counts(1).await), ("pass".to_owned(), "pass".to_owned()), "half a file");
        write(&secrets[1..]);
        until("the second counts alone", async || {
            assert_eq!(counts(1).await, "pass", "{}", kind.name());
            counts(0).await == "401 signature_key_unknown"
        })
        .await;
    }
}

/// The certificate is the connection's, whatever version of HTTP is spoken on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_known_over_http_2_too() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let case = "name: h2\nclient_certificates: true\nrequests: []\nclients: { acme: { certificates: [{ dns: \
                pay.acme.test }] } }\nroutes: [{ name: r, methods: [GET], path: \"/{*rest}\", upstream: u, filters: \
                { client_cert: {} } }]";
    let named = Named::parse(case).unwrap();
    let file = |name: &str| world.folder().join(name);
    let trust = Trust::load(&file("ca.pem")).unwrap();
    for kind in Kind::ALL {
        let folder = world.case_folder(&format!("h2-{}", kind.name())).unwrap();
        let plane = Plane::start(&world, &programs(), kind, &named, &folder).await.unwrap();
        let client = |identity: Option<&Identity>| {
            let tls = certs::client_config(&trust, identity, Versions::Tls13Only).unwrap();
            https_to(tls, ClientLimits::default(), AUTHORITY, plane.address()).unwrap()
        };
        let url = format!("https://{AUTHORITY}:{}/anything", plane.address().port());
        for (name, status) in [(None, 403), (Some("acme"), 200), (Some("other"), 403)] {
            let identity = name.map(|name| {
                Identity::load(&file(&format!("client-{name}.pem")), &file(&format!("client-{name}.key")))
                    .unwrap()
            });
            let client = client(identity.as_ref());
            // Twice on one connection: what was read of the certificate is still its own.
            for _ in 0..2 {
                let answer = client.get(&url).send().await.unwrap();
                assert_eq!(answer.version(), reqwest::Version::HTTP_2, "{}", kind.name());
                assert_eq!(answer.status(), status, "{}: {name:?}", kind.name());
                if status == 200 {
                    let seen: Seen = answer.json().await.unwrap();
                    let told = seen.fields.iter().filter(|(field, _)| field == "x-torana-client");
                    let told: Vec<_> = told.map(|(_, value)| value.as_slice()).collect();
                    assert_eq!(told, [b"acme"], "{}", kind.name());
                }
            }
        }
    }
}
