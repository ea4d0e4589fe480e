//! Requests with malformed framing: nothing that follows them on the connection is read as another request.

use parity::case::Named;
use parity::plane::{Kind, Plane, Programs};
use parity::wire::converse;
use parity::world::World;

const CASE: &str = "
name: framing
requests: []
routes:
  - { name: get, methods: [GET], path: /anything, upstream: u }
  - name: post
    methods: [POST]
    path: /things
    upstream: u
    filters: { shape: { content_types: [], max_body_bytes: 65536 } }
  - { name: bare, methods: [POST], path: /bare, upstream: u }
";

/// The request that a proxy in front would call part of the body of the one before.
const SMUGGLED: &str = "GET /anything HTTP/1.1\r\nhost: edge.test\r\nconnection: close\r\n\r\n";

fn post(path: &str, fields: &str, body: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: edge.test\r\ncontent-type: text/plain\r\n{fields}\r\n{body}")
}

fn chunked(body: &str) -> String {
    post("/things", "transfer-encoding: chunked\r\n", body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_malformed_framing_is_no_request() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let named = Named::parse(CASE).unwrap();
    let extension = format!("2;{}\r\nab\r\n0\r\n\r\n", "a".repeat(8 * 1024));
    let trailers = format!("2\r\nab\r\n0\r\nx: {}\r\n\r\n", "a".repeat(70 * 1024));
    // What is sent first, and the statuses of all responses at the gateway and at Envoy.
    let cases: Vec<(&str, String, &[u16], &[u16])> = vec![
        ("well-formed", chunked("2\r\nab\r\n0\r\n\r\n"), &[200, 200], &[200, 200]),
        ("with trailers", chunked("2;x=y\r\nab\r\n0\r\nx: 1\r\n\r\n"), &[200, 200], &[200, 200]),
        ("with a length", post("/things", "content-length: 2\r\n", "ab"), &[200, 200], &[200, 200]),
        ("a size that is no number", chunked("x\r\nab\r\n0\r\n\r\n"), &[400], &[400]),
        ("an empty size", chunked("\r\n0\r\n\r\n"), &[400], &[400]),
        ("a size of 17 digits", chunked("00000000000000002\r\nab\r\n0\r\n\r\n"), &[400], &[200, 200]),
        ("a size above 64 bits", chunked("fffffffffffffffff\r\nab\r\n0\r\n\r\n"), &[400], &[400]),
        ("a bare line feed after a size", chunked("2\nab\r\n0\r\n\r\n"), &[400], &[400]),
        ("a bare line feed in an extension", chunked("2;a\nab\r\n0\r\n\r\n"), &[400], &[400]),
        ("NUL in an extension", chunked("2;a\0\r\nab\r\n0\r\n\r\n"), &[400], &[200, 200]),
        ("a long extension", chunked(&extension), &[400], &[200, 200]),
        ("a chunk longer than its size", chunked("1\r\nab\r\n0\r\n\r\n"), &[400], &[200, 200]),
        ("no line feed after a chunk", chunked("2\r\nab0\r\n\r\n"), &[400], &[400]),
        (
            "a request in the trailers",
            chunked("2\r\nab\r\n0\r\nGET /anything HTTP/1.1\r\n\r\n"),
            &[400],
            &[400],
        ),
        ("a bare line feed in the trailers", chunked("2\r\nab\r\n0\r\nx: 1\n\r\n"), &[400], &[200, 200]),
        ("long trailers", chunked(&trailers), &[400], &[200, 200]),
        (
            "two framings",
            post("/bare", "transfer-encoding: chunked\r\ncontent-length: 2\r\n", "0\r\n\r\n"),
            &[400],
            &[400],
        ),
        (
            "a second coding, empty",
            post("/bare", "transfer-encoding: chunked\r\ntransfer-encoding:\r\n", "0\r\n\r\n"),
            &[400],
            &[400],
        ),
        (
            "a coding with a carriage return",
            post("/bare", "transfer-encoding: chu\rnked\r\n", "0\r\n\r\n"),
            &[400],
            &[400],
        ),
        (
            "the second Connection field ends it",
            post("/things", "content-length: 2\r\nconnection: keep-alive\r\nconnection: close\r\n", "ab"),
            &[200],
            &[200],
        ),
        (
            "a blank in the target",
            "GET /anything?a b HTTP/1.1\r\nhost: edge.test\r\n\r\n".into(),
            &[400],
            &[400],
        ),
        ("a fragment", "GET /anything#a HTTP/1.1\r\nhost: edge.test\r\n\r\n".into(), &[400], &[400]),
    ];
    let mut wrong = Vec::new();
    for kind in Kind::ALL {
        let folder = world.case_folder(&format!("framing-{}", kind.name())).unwrap();
        let programs = Programs::beside_test().unwrap();
        let plane = Plane::start(&world, &programs, kind, &named, &folder).await.unwrap();
        for (name, first, gateway, envoy) in &cases {
            let expected = match kind {
                Kind::Gateway => gateway,
                Kind::Envoy => envoy,
            };
            let parts = [first.as_bytes(), SMUGGLED.as_bytes()];
            let statuses = converse(plane.address(), &world.client, &parts).await;
            match statuses {
                Ok(statuses) if statuses == *expected => {}
                other => wrong.push(format!("{} {name}: {other:?}, not {expected:?}", kind.name())),
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
