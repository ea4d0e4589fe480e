//! A schema registry, over Confluent's REST API: says which id a schema has, and which schema an id means.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use apache_avro::Schema;
use certs::client::ClientLimits;
use certs::{Trust, Versions};
use reqwest::{RequestBuilder, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::secret::{Secret, SecretRef};

/// Where the registry is.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// `https://host:port`; `http://` is for a loopback address alone.
    pub url: String,
    /// Who may have signed its certificate.
    pub ca: Option<PathBuf>,
    pub username: Option<String>,
    pub password: Option<SecretRef>,
    /// For a whole call.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

fn default_timeout_ms() -> u64 {
    2_000
}

/// The registry gave no answer that counts.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RegistryError {
    /// Try again.
    #[error("the schema registry does not answer: {0}")]
    Away(String),
    /// Its operator has to look: trying again changes nothing by itself.
    #[error("the schema registry refused: {0}")]
    Refused(String),
}

/// A registry, and what it has said so far.
#[derive(Debug)]
pub struct Registry {
    http: reqwest::Client,
    url: String,
    login: Option<(String, Secret)>,
    said: Mutex<HashMap<u32, Said>>,
}

/// What the registry said about an id, and when.
#[derive(Debug)]
struct Said {
    /// None: it did not know it.
    schema: Option<Arc<Schema>>,
    at: Instant,
}

/// An id that was unknown is asked for again after this: it may have been registered since.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);
/// Nobody has that many schemas for these topics; an id that is no schema's costs a place.
const MAX_KNOWN: usize = 1_000;
const MAX_ANSWER: usize = 256 * 1024;
const MEDIA_TYPE: &str = "application/vnd.schemaregistry.v1+json";

impl RegistryConfig {
    /// The same, relative paths counted from `folder`.
    #[must_use]
    pub fn relative_to(mut self, folder: &Path) -> RegistryConfig {
        self.ca = self.ca.map(|ca| folder.join(ca));
        self.password = self.password.map(|password| password.relative_to(folder));
        self
    }

    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> anyhow::Result<()> {
        let plain = self.url.strip_prefix("http://");
        let on_loopback = plain.is_some_and(|rest| {
            ["127.0.0.1", "[::1]", "localhost"].iter().any(|host| {
                rest.strip_prefix(host)
                    .is_some_and(|rest| matches!(rest.bytes().next(), None | Some(b':' | b'/')))
            })
        });
        ensure!(
            self.url.starts_with("https://") || on_loopback,
            "url: https:// only; http:// on a loopback address"
        );
        ensure!(on_loopback || self.ca.is_some(), "ca: whose certificates to believe has to be said");
        ensure!(self.username.is_some() == self.password.is_some(), "username and password go together");
        Ok(())
    }
}

impl Registry {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// A file or a password that cannot be read.
    pub fn new(config: &RegistryConfig) -> anyhow::Result<Registry> {
        let limits =
            ClientLimits { timeout: Duration::from_millis(config.timeout_ms), ..ClientLimits::default() };
        let http = match &config.ca {
            Some(ca) => {
                let tls = certs::client_config(&Trust::load(ca)?, None, Versions::Tls12And13)?;
                certs::client::https(tls, limits)?
            }
            None => reqwest::Client::builder()
                .no_proxy()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(limits.connect_timeout)
                .timeout(limits.timeout)
                .build()?,
        };
        let login = match (&config.username, &config.password) {
            (Some(username), Some(password)) => {
                Some((username.clone(), password.load().context("password")?))
            }
            (_, _) => None,
        };
        let url = config.url.trim_end_matches('/').to_owned();
        Ok(Registry { http, url, login, said: Mutex::default() })
    }

    /// Registers a schema under a subject, or finds it there; gives its id.
    ///
    /// # Errors
    /// [`RegistryError`] says whether trying again helps.
    pub async fn register(&self, subject: &str, schema: &str) -> Result<u32, RegistryError> {
        let url = format!("{}/subjects/{subject}/versions", self.url);
        let body = json!({"schema": schema}).to_string();
        let request = self.http.post(url).header("content-type", MEDIA_TYPE).body(body);
        let (status, answer) = self.ask(request).await?;
        match (status, answer.get("id").and_then(Value::as_u64).map(u32::try_from)) {
            (StatusCode::OK, Some(Ok(id))) => Ok(id),
            (_, _) => Err(RegistryError::Refused(format!("subject {subject}: {}", message(status, &answer)))),
        }
    }

    /// The schema with this id, if there is one.
    ///
    /// # Errors
    /// [`RegistryError::Away`]; [`RegistryError::Refused`] when it may not be read.
    pub async fn schema(&self, id: u32) -> Result<Option<Arc<Schema>>, RegistryError> {
        if let Some(known) = self.known(id) {
            return Ok(known);
        }
        let (status, answer) = self.ask(self.http.get(format!("{}/schemas/ids/{id}", self.url))).await?;
        let schema = match (status, answer.get("schema").and_then(Value::as_str)) {
            // One that cannot be parsed is as good as none.
            (StatusCode::OK, Some(text)) => Schema::parse_str(text).ok().map(Arc::new),
            (StatusCode::NOT_FOUND, _) => None,
            (_, _) => {
                return Err(RegistryError::Refused(format!("schema {id}: {}", message(status, &answer))));
            }
        };
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= MAX_KNOWN {
            said.clear();
        }
        said.insert(id, Said { schema: schema.clone(), at: Instant::now() });
        Ok(schema)
    }

    fn known(&self, id: u32) -> Option<Option<Arc<Schema>>> {
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let Said { schema, at } = said.get(&id)?;
        (schema.is_some() || at.elapsed() < UNKNOWN_FOR).then(|| schema.clone())
    }

    async fn ask(&self, request: RequestBuilder) -> Result<(StatusCode, Value), RegistryError> {
        let request = match &self.login {
            Some((username, password)) => request.basic_auth(username, Some(password.as_str())),
            None => request,
        };
        let away = |error: reqwest::Error| RegistryError::Away(certs::client::cause(error));
        let mut response = request.header("accept", MEDIA_TYPE).send().await.map_err(away)?;
        let status = response.status();
        if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            return Err(RegistryError::Away(status.to_string()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(away)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(RegistryError::Refused("its answer is too long".to_owned()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }
}

fn message(status: StatusCode, answer: &Value) -> String {
    let message: String = answer
        .get("message")
        .and_then(Value::as_str)
        .unwrap_or("no reason given")
        .chars()
        .take(200)
        .collect();
    format!("{status}, {message}")
}
