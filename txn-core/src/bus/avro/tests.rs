//! Schemas stay readable both ways, and a registry is asked for what only it knows.

use std::sync::atomic::{AtomicUsize, Ordering};

use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use axum::{Json, Router};
use certs::pki::{Authority, Leaf};
use certs::{ClientAuth, Identity, Versions};
use serde_json::{Value, json};

use super::*;
use crate::bus::contract::message;

/// Each reads what the other writes, whatever it is.
fn compatible(a: &Schema, b: &Schema) -> bool {
    matches!(SchemaCompatibility::mutual_read(a, b), Ok(Compatibility::Full))
}

fn changed(change: impl FnOnce(&mut Value)) -> String {
    let mut schema: Value = serde_json::from_str(RELEASED[RELEASED.len() - 1]).unwrap();
    change(&mut schema);
    schema.to_string()
}

fn fields(schema: &mut Value) -> &mut Vec<Value> {
    schema["fields"].as_array_mut().unwrap()
}

#[test]
fn every_released_schema_reads_and_is_read_by_every_other() {
    for (n, a) in SCHEMAS.iter().enumerate() {
        for b in SCHEMAS.iter().skip(n + 1) {
            assert!(
                compatible(a, b),
                "version {} and a later one: make the change so that old readers and old \
                                       messages live: new fields with defaults, and nothing else",
                n + 1
            );
        }
    }
}

#[test]
fn every_file_is_released_and_none_is_edited() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    let mut files: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let expected: Vec<String> = (1..=RELEASED.len()).map(|n| format!("transaction-event.{n}.avsc")).collect();
    assert_eq!(files, expected, "a new version is a new file, named in RELEASED");
    // Of the parsing canonical form and the defaults: documentation may be bettered.
    let fingerprints = ["7bf753e086437686"];
    for (text, expected) in RELEASED.iter().zip(fingerprints) {
        let schema = Schema::parse_str(text).unwrap();
        let fingerprint = schema.fingerprint::<apache_avro::rabin::Rabin>().to_string();
        assert_eq!(fingerprint, expected, "messages were written with it: make the next version instead");
    }
}

#[test]
fn what_is_no_compatible_change() {
    let ours = SCHEMAS.last().unwrap();
    let field = |default: Option<Value>| {
        let mut field = json!({"name": "channel", "type": ["null", "string"]});
        if let Some(default) = default {
            field["default"] = default;
        }
        field
    };
    let cases: [(&str, bool, String); 6] = [
        ("nothing", true, changed(|_| {})),
        ("a field with a default", true, changed(|schema| fields(schema).push(field(Some(Value::Null))))),
        ("a field without one", false, changed(|schema| fields(schema).push(field(None)))),
        ("a field gone", false, changed(|schema| drop(fields(schema).remove(0)))),
        ("another type", false, changed(|schema| fields(schema)[9]["type"] = json!("double"))),
        ("another name", false, changed(|schema| fields(schema)[2]["name"] = json!("transactionId"))),
    ];
    for (what, ok, text) in cases {
        assert_eq!(compatible(ours, &Schema::parse_str(&text).unwrap()), ok, "{what}");
    }
}

#[tokio::test]
async fn there_and_back_in_the_wire_format() {
    let codec = Codec::new(None);
    let json = message(Topic::Initiated, "TOR1", 3).payload.event().unwrap().to_owned();
    let id = codec.id(Topic::Initiated, "subject").await.unwrap();
    let bytes = codec.encode(id, &json).unwrap();
    assert_eq!(bytes[..5], [0, 0x54, 0x4f, 0, 1]);
    assert_eq!(codec.decode(&bytes).await.unwrap(), json);
    assert!(codec.encode(id, &json.replace("150.75", "1.5e2")).unwrap_err().contains("amount"));
    assert!(codec.encode(id, "{}").is_err());
    for end in [0, 3, 5, bytes.len() - 1] {
        assert!(matches!(codec.decode(&bytes[..end]).await, Err(DecodeError::Unreadable(_))), "cut at {end}");
    }
}

/// A registry of one process: ids count from 100.
#[derive(Debug, Default)]
struct Fake {
    schemas: Mutex<Vec<String>>,
    asked: AtomicUsize,
    away: std::sync::atomic::AtomicBool,
}

const AUTHORIZATION: &str = "Basic dG9yYW5hOmh1bnRlcjI=";

async fn fake() -> (Arc<Fake>, Codec) {
    certs::install_crypto_provider();
    let fake = Arc::new(Fake::default());
    let register = async |State(fake): State<Arc<Fake>>,
                          Path(subject): Path<String>,
                          headers: HeaderMap,
                          Json(body): Json<Value>| {
        if fake.away.load(Ordering::SeqCst) {
            return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({})));
        }
        if headers["authorization"] != AUTHORIZATION {
            return (StatusCode::UNAUTHORIZED, Json(json!({"message": "who?"})));
        }
        if subject == "frozen-value" {
            return (StatusCode::CONFLICT, Json(json!({"error_code": 409, "message": "incompatible"})));
        }
        fake.asked.fetch_add(1, Ordering::SeqCst);
        let text = body["schema"].as_str().unwrap().to_owned();
        let mut schemas = fake.schemas.lock().unwrap();
        let at = schemas.iter().position(|known| *known == text).unwrap_or_else(|| {
            schemas.push(text);
            schemas.len() - 1
        });
        (StatusCode::OK, Json(json!({"id": 100 + at})))
    };
    let find = async |State(fake): State<Arc<Fake>>, Path(id): Path<usize>| {
        fake.asked.fetch_add(1, Ordering::SeqCst);
        if fake.away.load(Ordering::SeqCst) {
            return (StatusCode::SERVICE_UNAVAILABLE, Json(json!({})));
        }
        match id.checked_sub(100).and_then(|at| fake.schemas.lock().unwrap().get(at).cloned()) {
            Some(schema) => (StatusCode::OK, Json(json!({"schema": schema}))),
            None => {
                (StatusCode::NOT_FOUND, Json(json!({"error_code": 40403, "message": "Schema not found"})))
            }
        }
    };
    let app = Router::new()
        .route("/subjects/{subject}/versions", post(register))
        .route("/schemas/ids/{id}", get(find))
        .with_state(fake.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let dir = tempfile::tempdir().unwrap();
    let (ca, other) = (Authority::create("ours").unwrap(), Authority::create("theirs").unwrap());
    std::fs::write(dir.path().join("ca.pem"), ca.certificate_pem()).unwrap();
    std::fs::write(dir.path().join("theirs.pem"), other.certificate_pem()).unwrap();
    let leaf = ca.issue(&Leaf::new("registry", &["localhost"])).unwrap();
    let [certificate, key] = leaf.write(dir.path(), "registry").unwrap();
    let identity = Identity::load(&certificate, &key).unwrap();
    let tls = certs::server_config(&identity, ClientAuth::Off, Versions::Tls13Only, &[b"http/1.1"]).unwrap();
    let limits = certs::serve::Limits::default();
    tokio::spawn(certs::serve::serve(listener, tls, app, limits, std::future::pending()));
    certs::file::write_secret(&dir.path().join("password"), "hunter2\n").unwrap();
    let config = RegistryConfig {
        url: format!("https://localhost:{port}/"),
        ca: Some("ca.pem".into()),
        username: Some("torana".to_owned()),
        password: Some(crate::secret::SecretRef::File("password".into())),
        timeout_ms: 2_000,
    };
    config.check().unwrap();
    let config = config.relative_to(dir.path());
    let stranger = RegistryConfig { ca: Some(dir.path().join("theirs.pem")), ..config.clone() };
    let error = Registry::new(&stranger).unwrap().schema(100).await.unwrap_err();
    assert!(matches!(error, RegistryError::Away(_)), "whoever answers, it is not the registry: {error}");
    let registry = Registry::new(&config).unwrap();
    (fake, Codec::new(Some(registry)))
}

#[tokio::test]
async fn a_registry_gives_the_ids_and_is_asked_once() {
    let (fake, codec) = fake().await;
    let json = message(Topic::Initiated, "TOR1", 3).payload.event().unwrap().to_owned();
    for _ in 0..3 {
        assert_eq!(codec.id(Topic::Initiated, "upi.transaction.initiated-value").await.unwrap(), 100);
    }
    let bytes = codec.encode(100, &json).unwrap();
    assert_eq!(bytes[..5], [0, 0, 0, 0, 100]);
    for _ in 0..3 {
        assert_eq!(codec.decode(&bytes).await.unwrap(), json);
    }
    assert_eq!(fake.asked.load(Ordering::SeqCst), 2, "one registration, one look-up");
    // Written before there was a registry: read all the same.
    assert_eq!(codec.decode(&codec.encode(own_id(1), &json).unwrap()).await.unwrap(), json);
    let refused = codec.id(Topic::Audit, "frozen-value").await.unwrap_err();
    assert!(matches!(&refused, RegistryError::Refused(why) if why.contains("incompatible")), "{refused}");
}

#[tokio::test]
async fn an_event_of_a_newer_schema_is_read_and_an_unknown_id_is_poison() {
    let (fake, codec) = fake().await;
    let newer = changed(|schema| {
        fields(schema).insert(0, json!({"name": "channel", "type": "string", "default": "app"}));
    });
    fake.schemas.lock().unwrap().push(newer.clone());
    let json = message(Topic::Initiated, "TOR1", 3).payload.event().unwrap().to_owned();
    let old = codec.encode(own_id(1), &json).unwrap();
    // The new field comes first: the length of "web", doubled, and its letters.
    let bytes = [&[0, 0, 0, 0, 100, 6][..], b"web", &old[5..]].concat();
    fake.away.store(true, Ordering::SeqCst);
    assert!(matches!(codec.decode(&bytes).await, Err(DecodeError::Away(_))), "it may be known later");
    fake.away.store(false, Ordering::SeqCst);
    assert_eq!(codec.decode(&bytes).await.unwrap(), json);

    let unknown = [&[0, 0, 0, 0, 111][..], &old[5..]].concat();
    let asked = fake.asked.load(Ordering::SeqCst);
    for _ in 0..3 {
        let error = codec.decode(&unknown).await.unwrap_err();
        assert!(matches!(&error, DecodeError::Unreadable(why) if why.contains("schema 111")), "{error}");
    }
    assert_eq!(fake.asked.load(Ordering::SeqCst), asked + 1, "a wrong id floods no registry");
}
