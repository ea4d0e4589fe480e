//! Compressed answers over the wire: what arrives is what was sent, whatever its length, and none of it waits for the
//! rest.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use flate2::read::MultiGzDecoder;
use parity::case::Named;
use parity::mint::{AUTHORITY, Sent, Times};
use parity::plane::{Kind, Plane, Programs};
use parity::wire::{bytes, parse};
use parity::world::World;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The upstream answers with what it was sent, four bytes for each: 120 KB and 250 KB.
const CASE: &str = r#"
name: compressed
routes:
  - { name: r, methods: [POST], path: /r, upstream: u, filters: { compression: {} } }
requests:
  - { method: POST, target: /r, long_body: 30000, headers: { accept-encoding: gzip }, says: { length: in_halves }, verdict: pass }
  - { method: POST, target: /r, long_body: 62000, headers: { accept-encoding: gzip }, verdict: pass }
  - { method: POST, target: /r, long_body: 62000, verdict: pass }
"#;

/// Less than the first half of the first answer, and more than what compressing alone would hold back.
const MUCH: usize = 50_000;

const LONGEST: Duration = Duration::from_secs(30);

fn programs() -> Programs {
    Programs::beside_test().unwrap()
}

/// What of a chunked, compressed answer can be read already.
fn readable(read: &[u8]) -> Vec<u8> {
    let Some(head) = read.windows(4).position(|window| window == b"\r\n\r\n") else { return Vec::new() };
    let (mut rest, mut compressed) = (&read[head + 4..], Vec::new());
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let length = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let chunk = &rest[end + 2..];
        compressed.extend_from_slice(&chunk[..length.min(chunk.len())]);
        rest = chunk.get(length + 2..).unwrap_or_default();
    }
    let mut plain = Vec::new();
    // It ends in the middle, which is an error that leaves what came before it.
    let _ = MultiGzDecoder::new(compressed.as_slice()).read_to_end(&mut plain);
    plain
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_arrive_whole_and_as_they_come() {
    certs::install_crypto_provider();
    let world = World::new().await.unwrap();
    let named = Named::parse(CASE).unwrap();
    for kind in Kind::ALL {
        let folder = world.case_folder(kind.name()).unwrap();
        let plane = Plane::start(&world, &programs(), kind, &named, &folder).await.unwrap();
        plane.at(world.epoch_ms).unwrap();
        let times = Times::new(world.epoch_ms, 0).unwrap();
        let sent = named.case.requests.iter().map(|step| Sent::new(step, &world.keys, times).unwrap());
        let [in_halves, long, plain] = sent.collect::<Vec<_>>().try_into().unwrap();

        // Each is compared with what was sent, byte for byte.
        for (sent, coding) in [(&long, Some("gzip")), (&plain, None)] {
            let outcome = plane.decide(sent, None).await.unwrap();
            let told = outcome.answer.get("content-encoding").map(|values| values.join(", "));
            assert_eq!((outcome.verdict.as_str(), told.as_deref()), ("pass", coding), "{}", kind.name());
        }

        let answered = tokio::time::timeout(LONGEST, async {
            let stream = TcpStream::connect(plane.address()).await.unwrap();
            let name = ServerName::try_from(AUTHORITY).unwrap();
            let mut stream =
                TlsConnector::from(Arc::clone(&world.client)).connect(name, stream).await.unwrap();
            stream.write_all(&bytes(&in_halves)).await.unwrap();
            let (mut read, mut chunk) = (Vec::new(), vec![0; 16 * 1024]);
            // The upstream has not sent the second half, and does not before the first is here.
            while readable(&read).len() < MUCH {
                let length = stream.read(&mut chunk).await.unwrap();
                assert_ne!(length, 0, "the answer broke off");
                read.extend_from_slice(&chunk[..length]);
            }
            assert!(parse(&read).unwrap().is_none(), "the answer is whole");
            world.upstreams[0].go_on();
            loop {
                if let Some(answer) = parse(&read).unwrap() {
                    return answer;
                }
                let length = stream.read(&mut chunk).await.unwrap();
                assert_ne!(length, 0, "the answer broke off");
                read.extend_from_slice(&chunk[..length]);
            }
        });
        let answer = answered.await.unwrap_or_else(|_| panic!("{}: held back", kind.name()));
        let seen: serde_json::Value = serde_json::from_slice(&answer.plain().unwrap()).unwrap();
        let body: Vec<u8> = serde_json::from_value(seen["body"].clone()).unwrap();
        assert!(body == in_halves.body, "{}: another body", kind.name());
    }
}
