//! Payments as a phone sends them.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use filters::signature::digest::content_digest;
use filters::signature::message::{Algorithm, Message, Params, SigningKey, sign};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use crate::Device;

/// What a device signs of every request that moves money.
pub const COVERED: [&str; 6] =
    ["@method", "@path", "@query", "content-digest", "authorization", "idempotency-key"];
const LABEL: &str = "sig1";
const SEND_PATH: &str = "/v1/transactions/send";
const POLL: Duration = Duration::from_millis(100);

/// What a user wants paid.
#[derive(Debug, Clone)]
pub struct Payment {
    pub from: String,
    pub to: String,
    /// Rupees as they stand in the JSON body, such as `150.75`; any JSON value, for tests.
    pub amount: String,
    pub note: String,
    pub idempotency_key: String,
}

impl Payment {
    /// A payment with a fresh idempotency key.
    pub fn new(from: &str, to: &str, amount: &str) -> Payment {
        Payment {
            from: from.to_owned(),
            to: to.to_owned(),
            amount: amount.to_owned(),
            note: "Lunch".to_owned(),
            idempotency_key: uuid::Uuid::new_v4().to_string(),
        }
    }

    fn body(&self, device_id: &str) -> anyhow::Result<Vec<u8>> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Body<'a> {
            #[serde(rename = "fromVPA")]
            from: &'a str,
            #[serde(rename = "toVPA")]
            to: &'a str,
            amount: &'a RawValue,
            txn_note: &'a str,
            device_id: &'a str,
            idempotency_key: &'a str,
        }
        let amount = serde_json::from_str(&self.amount);
        Ok(serde_json::to_vec(&Body {
            from: &self.from,
            to: &self.to,
            amount: amount.with_context(|| format!("the amount {} is not a number", self.amount))?,
            txn_note: &self.note,
            device_id,
            idempotency_key: &self.idempotency_key,
        })?)
    }
}

/// A request to the edge, every byte of which may be changed before it is sent.
#[derive(Clone)]
pub struct EdgeRequest {
    pub method: String,
    pub url: String,
    /// Lower-case names, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl EdgeRequest {
    /// A payment, with everything that a signature covers but not signed yet.
    pub fn payment(
        edge_url: &str,
        token: &str,
        device: &Device,
        payment: &Payment,
    ) -> anyhow::Result<EdgeRequest> {
        let body = payment.body(device.id())?;
        let header = |name: &str, value: String| (name.to_owned(), value);
        Ok(EdgeRequest {
            method: "POST".to_owned(),
            url: format!("{edge_url}{SEND_PATH}"),
            headers: vec![
                header("authorization", format!("Bearer {token}")),
                header("content-type", "application/json".to_owned()),
                header("content-digest", content_digest(&body)),
                header("idempotency-key", payment.idempotency_key.clone()),
            ],
            body,
        })
    }

    /// The request with the device's signature: made now, with a fresh nonce, over all of [`COVERED`].
    pub fn signed(self, device: &Device) -> anyhow::Result<EdgeRequest> {
        let params = signature_params(device.id())?;
        self.signed_as(&params, device.key())
    }

    /// The request with a signature of any kind (RFC 9421).
    pub fn signed_as(mut self, params: &Params, key: &SigningKey) -> anyhow::Result<EdgeRequest> {
        let (scheme, rest) = self.url.split_once("://").context("the URL has no scheme")?;
        let (authority, target) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        let message = Message::request(&self.method, scheme, authority, path, query, &self.headers);
        let signed = sign(&message, LABEL, params, key)?;
        self.headers.push(("signature-input".to_owned(), signed.signature_input));
        self.headers.push(("signature".to_owned(), signed.signature));
        Ok(self)
    }

    /// Replaces or removes a header field.
    pub fn set(&mut self, name: &str, value: Option<&str>) {
        self.headers.retain(|(there, _)| there != name);
        self.headers.extend(value.map(|value| (name.to_owned(), value.to_owned())));
    }

    /// # Errors
    /// Only when no answer comes; a refusal is an answer.
    pub async fn send(&self, http: &reqwest::Client) -> reqwest::Result<reqwest::Response> {
        let method = reqwest::Method::from_bytes(self.method.as_bytes()).unwrap_or_default();
        let mut request = http.request(method, &self.url).body(self.body.clone());
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.send().await
    }

    /// The same request as a command line for `sh`. The token stays in its file.
    pub fn curl(&self, ca_file: &Path, token_file: &Path) -> String {
        let mut line = format!("curl --cacert {} -X {}", quoted(&ca_file.display().to_string()), self.method);
        for (name, value) in &self.headers {
            let _ = match name.as_str() {
                "authorization" => write!(
                    line,
                    " \\\n  -H \"authorization: Bearer $(cat {})\"",
                    quoted(&token_file.display().to_string())
                ),
                _ => write!(line, " \\\n  -H {}", quoted(&format!("{name}: {value}"))),
            };
        }
        let body = quoted(&String::from_utf8_lossy(&self.body));
        let _ = write!(line, " \\\n  --data-raw {body} \\\n  {}", quoted(&self.url));
        line
    }
}

/// Parameters of the signature that a phone makes: now, with a fresh nonce, over all of [`COVERED`].
pub fn signature_params(key_id: &str) -> anyhow::Result<Params> {
    Ok(Params {
        created: Some(now_s()),
        nonce: Some(uuid::Uuid::new_v4().to_string()),
        keyid: Some(key_id.to_owned()),
        alg: Some(Algorithm::EcdsaP256Sha256),
        ..Params::covering(&COVERED)?
    })
}

/// A state that a payment reached.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Progress {
    pub status: String,
    /// RFC 3339.
    pub at: String,
    #[serde(default)]
    pub reason: Option<String>,
}

impl Progress {
    /// Whether a payment stays in this status. DEEMED waits for reconciliation, which this stack does not do.
    pub fn is_final(&self) -> bool {
        matches!(
            self.status.as_str(),
            "COMPLETED" | "FAILED" | "DEEMED" | "REVERSED" | "DECLINED" | "EXPIRED"
        )
    }
}

/// Polls a payment and tells each state once, in order, until it is final; returns that state.
///
/// # Errors
/// When the edge refuses to tell, or the payment is not final `within` that time.
pub async fn follow(
    http: &reqwest::Client,
    url: &str,
    token: &str,
    within: Duration,
    mut tell: impl FnMut(&Progress),
) -> anyhow::Result<Progress> {
    #[derive(Deserialize)]
    struct Answer {
        history: Vec<Progress>,
    }
    let until = Instant::now() + within;
    let mut told = 0;
    while Instant::now() < until {
        let answer = http.get(url).bearer_auth(token).send().await?;
        match answer.status().as_u16() {
            200 => {}
            // Nothing was done: the edge, or what is behind it, asks for patience.
            429 | 503 => {
                let wait = answer.headers().get("retry-after").and_then(|value| value.to_str().ok());
                sleep(Duration::from_secs(wait.and_then(|s| s.parse().ok()).unwrap_or(1))).await;
                continue;
            }
            status => bail!("{url} answers {status}: {}", answer.text().await.unwrap_or_default()),
        }
        let Answer { history } = answer.json().await.with_context(|| format!("what {url} answers"))?;
        for progress in history.iter().skip(told) {
            tell(progress);
        }
        told = told.max(history.len());
        if let Some(last) = history.last().filter(|last| last.is_final()) {
            return Ok(last.clone());
        }
        sleep(POLL).await;
    }
    bail!("the payment is not final after {} s; its outcome is not known", within.as_secs())
}

pub(crate) fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

impl std::fmt::Debug for EdgeRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EdgeRequest")
            .field("method", &self.method)
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use filters::signature::message::parse;

    #[test]
    fn the_curl_line_is_safe_in_a_shell_and_hides_the_token() {
        let device = Device::generate("phone-1").unwrap();
        let payment = Payment { note: "Bob's $HOME".to_owned(), ..Payment::new("a@x", "b@x", "150.75") };
        let request = EdgeRequest::payment("https://localhost:1", "s3cret", &device, &payment).unwrap();
        let line = request.signed(&device).unwrap().curl(Path::new("/d/ca.pem"), Path::new("/d/token"));
        assert!(!line.contains("s3cret") && line.contains("$(cat '/d/token')"), "{line}");
        assert!(line.contains(r"Bob'\''s $HOME"), "{line}");
        assert!(line.contains(r#""amount":150.75"#), "{line}");
        assert!(line.ends_with("'https://localhost:1/v1/transactions/send'"), "{line}");
    }

    #[test]
    fn the_signature_holds() {
        let device = Device::generate("phone-1").unwrap();
        let payment = Payment::new("a@x", "b@x", "1");
        let request = EdgeRequest::payment("https://localhost:1", "t", &device, &payment).unwrap();
        let request = request.signed(&device).unwrap();
        let path = SEND_PATH;
        let message = Message::request("POST", "https", "localhost:1", path, None, &request.headers);
        let parsed = parse(&request.headers, Some(LABEL)).unwrap();
        parsed.verify(&message, &device.key().verifying_key().unwrap()).unwrap();
        assert_eq!(parsed.params().keyid.as_deref(), Some("phone-1"));
    }

    #[test]
    fn an_amount_is_json() {
        let device = Device::generate("phone-1").unwrap();
        for (amount, ok) in [("1e3", true), ("\"12\"", true), ("-1", true), ("1.2.3", false), ("", false)] {
            let payment = Payment::new("a@x", "b@x", amount);
            let made = EdgeRequest::payment("https://localhost:1", "t", &device, &payment);
            assert_eq!(made.is_ok(), ok, "{amount}");
        }
    }
}
