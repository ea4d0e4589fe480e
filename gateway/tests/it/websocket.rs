//! WebSockets through a real gateway: what is asked for is opened or refused as the upstream says, and then all passes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream as ClientStream;
use tokio_rustls::server::TlsStream;

use crate::running::{
    ASKS_FOR_WEBSOCKET, Gateway, LOG, OPENS_WEBSOCKET, TLS, connect, header, pki, raw_upstream, serve, until,
};

/// Whether an upstream has hung up once.
static GONE: AtomicBool = AtomicBool::new(false);

/// Answers as the path says, and repeats what then comes.
async fn answer(asked: String, mut stream: TlsStream<TcpStream>) -> Option<()> {
    let asked = asked.to_lowercase();
    let asked_for =
        asked.contains("\r\nupgrade: websocket\r\n") && asked.contains("\r\nconnection: upgrade\r\n");
    let word = asked.split(['/', ' ']).nth(2).filter(|_| asked_for).unwrap_or("not asked for");
    let answer = match word {
        "at-once" | "idle" => OPENS_WEBSOCKET.to_vec(),
        "talkative" => [OPENS_WEBSOCKET, b"ok"].concat(),
        "later" => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            OPENS_WEBSOCKET.to_vec()
        }
        "hinted" => [b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", OPENS_WEBSOCKET].concat(),
        "refused" => b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\nserver: u\r\n\r\nno".to_vec(),
        "chunked" => {
            b"HTTP/1.1 426 Upgrade Required\r\ntransfer-encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n"
                .to_vec()
        }
        "broken" => b"HTTP/1.1 403 Forbidden\r\ncontent-length: 9\r\n\r\nno".to_vec(),
        "empty" => b"HTTP/1.1 204 No Content\r\n\r\n".to_vec(),
        "odd" => b"HTTP/1.1 101 Switching Protocols\r\n\r\n".to_vec(),
        "gone" => return None,
        "once-gone" if !GONE.swap(true, Ordering::Relaxed) => return None,
        "once-gone" => OPENS_WEBSOCKET.to_vec(),
        "silent" => Vec::new(),
        _ => b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n".to_vec(),
    };
    stream.write_all(&answer).await.ok()?;
    stream.flush().await.ok()?;
    if matches!(word, "refused" | "chunked" | "broken" | "empty" | "odd") {
        return stream.shutdown().await.ok();
    }
    let (mut read, mut write) = tokio::io::split(stream);
    tokio::io::copy(&mut read, &mut write).await.ok().map(drop)
}

struct House {
    folder: TempDir,
    gateway: Gateway,
}

impl House {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        pki(folder.path());
        let port = raw_upstream(folder.path(), answer).await;
        let policy = format!(
            r#"
upstreams: {{ u: {{ addresses: ["127.0.0.1:{port}"], outlier: {{ failures: 0 }}, tls: {TLS} }} }}
filters: {{ concurrency: {{ limits: [{{ name: one, by: ip, most: 1, lease_s: 3600 }}] }} }}
routes:
  - {{ name: idle, methods: [GET], path: /idle, upstream: u, websocket: {{ idle_timeout_ms: 2000 }} }}
  - {{ name: silent, methods: [GET], path: /silent, upstream: u, websocket: {{ idle_timeout_ms: 200 }} }}
  - {{ name: again, methods: [GET], path: /once-gone, upstream: u, retries: 1, websocket: {{}} }}
  - {{ name: ws, methods: [GET], path: "/{{word}}", upstream: u, websocket: {{}} }}
  - {{ name: compressed, methods: [GET], path: /talkative, upstream: u, websocket: {{}}, filters: {{ compression: {{ least_bytes: 1 }} }} }}
"#
        );
        let gateway = serve(folder.path(), &policy).await;
        Self { folder, gateway }
    }

    /// Asks for a WebSocket, and says something in the same breath.
    async fn ask(&self, path: &str, says: &str) -> ClientStream<TcpStream> {
        let mut client = connect(self.folder.path(), &self.gateway, None, b"http/1.1").await;
        let asked = format!(
            "GET {path} HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\n{ASKS_FOR_WEBSOCKET}{says}"
        );
        client.write_all(asked.as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        client
    }

    /// What cut off each exchange of a path, once it is told of.
    async fn cut(&self, path: &str) -> Vec<String> {
        let told = || {
            let log = std::fs::read_to_string(self.folder.path().join(LOG)).unwrap();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            let of_path = lines.filter(|line| line["path"] == path);
            of_path.map(|line| line["cut_off"].as_str().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        until("it is told of", async || !told().is_empty()).await;
        told()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_opened_stays_open() {
    let house = House::start().await;
    // How the upstream answers; what the client says at once and then; what it hears.
    for (word, says, then, hears) in [
        ("at-once", "", "hi", "hi"),
        ("talkative", "", "hi", "okhi"),
        ("later", "early ", "hi", "early hi"),
        ("hinted", "", "hi", "hi"),
        ("once-gone", "", "hi", "hi"),
    ] {
        // Whether it stays open was a matter of chance, one in fifteen.
        let times = if word == "later" { 1 } else { 100 };
        for time in 0..times {
            let mut client = house.ask(&format!("/{word}"), says).await;
            let told = header(&mut client).await.unwrap();
            assert!(told.starts_with("HTTP/1.1 101 "), "{word}: {told}");
            assert!(told.to_lowercase().contains("\r\nupgrade: websocket\r\n"), "{word}: {told}");
            client.write_all(then.as_bytes()).await.unwrap();
            let mut heard = vec![0; hears.len()];
            client.read_exact(&mut heard).await.unwrap_or_else(|error| panic!("{word}, {time}: {error}"));
            assert_eq!(heard, hears.as_bytes(), "{word}, {time}");
            client.shutdown().await.unwrap();
            // Its place is free before the next one asks.
            assert_eq!(client.read_to_end(&mut heard).await.unwrap(), 0, "{word}, {time}");
        }
    }
}

/// More than all buffers on the way hold: neither way may wait for the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_passes_both_ways_at_once() {
    let house = House::start().await;
    let mut client = house.ask("/at-once", "").await;
    header(&mut client).await.unwrap();
    let (mut hears, mut says) = tokio::io::split(client);
    let said: Vec<u8> = (0..32_000_000_u32).map(|at| at.to_le_bytes()[(at % 3) as usize]).collect();
    let expected = said.clone();
    let saying = tokio::spawn(async move {
        says.write_all(&said).await.unwrap();
        says.flush().await.unwrap();
        says
    });
    let mut heard = vec![0; expected.len()];
    hears.read_exact(&mut heard).await.unwrap();
    assert!(heard == expected);
    drop(saying.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_not_opened_is_answered_as_the_upstream_says() {
    let house = House::start().await;
    for (word, status, body, cut) in [
        ("refused", "403", "no", ""),
        ("chunked", "426", "2\r\nno\r\n0\r\n\r\n", ""),
        ("empty", "204", "", ""),
        ("broken", "403", "no", "upstream_broke"),
        ("odd", "502", "upstream_failed", ""),
        ("gone", "502", "upstream_failed", ""),
        ("silent", "504", "upstream_timeout", ""),
    ] {
        let path = format!("/{word}");
        let mut client = house.ask(&path, "").await;
        let told = header(&mut client).await.unwrap();
        assert!(told.starts_with(&format!("HTTP/1.1 {status} ")), "{word}: {told}");
        assert!(!told.to_lowercase().contains("\r\nupgrade:"), "{word}: {told}");
        let _ =
            client.write_all(b"GET /no/where HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest).await;
        let rest = String::from_utf8_lossy(&rest);
        match status {
            "502" | "504" => assert!(rest.contains(&format!(r#""code":"{body}""#)), "{word}: {rest}"),
            _ => assert!(rest.starts_with(body), "{word}: {rest}"),
        }
        // The connection is still one of HTTP, where the answer was whole.
        assert_eq!(rest.contains("route_not_found"), cut.is_empty(), "{word}: {rest}");
        assert_eq!(house.cut(&path).await, [cut], "{word}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_on_which_nothing_passes_is_ended() {
    let house = House::start().await;
    let mut client = house.ask("/idle", "").await;
    header(&mut client).await.unwrap();
    assert_eq!(client.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    assert_eq!(house.cut("/idle").await, ["time_over"]);
}
