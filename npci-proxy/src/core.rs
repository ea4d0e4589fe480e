//! The way of a callback to txn-core, which makes it durable.

use std::time::Duration;

use certs::{Live, Versions, Watch};
use http::StatusCode;
use serde::Deserialize;

use crate::{
    config,
    network::{base_url, tls_to},
    wire::Callback,
};

#[derive(Debug)]
pub struct Core {
    client: Live<reqwest::Client>,
    url: String,
}

/// Why a callback is not durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    #[error("txn-core knows no such transaction")]
    UnknownTransaction,
    #[error("txn-core refused the callback with status {0}")]
    Refused(u16),
    #[error("txn-core is away")]
    Away,
}

#[derive(Debug, thiserror::Error)]
pub enum CoreSetupError {
    #[error("core.url must be https://host:port and nothing after it")]
    Url,
    #[error("core.tls: {0}")]
    Certificates(#[from] certs::CertError),
}

#[derive(Deserialize)]
struct Durable {
    applied: bool,
}

impl Core {
    pub fn new(config: &config::Core, watch: &Watch) -> Result<Core, CoreSetupError> {
        let tls = tls_to("core", &config.url, &config.tls, watch)?;
        let limits = certs::client::ClientLimits {
            timeout: Duration::from_millis(config.timeout_ms),
            ..certs::client::ClientLimits::default()
        };
        Ok(Core {
            client: tls.client(watch, Versions::Tls13Only, limits)?,
            url: base_url(&config.url).ok_or(CoreSetupError::Url)?,
        })
    }

    /// Returns once the callback is durable; `false` if it was so already.
    pub async fn deliver(&self, callback: &Callback, request_id: &str) -> Result<bool, CoreError> {
        let url = format!("{}/internal/v1/network-events", self.url);
        let request = self.client.current().post(url).header("x-request-id", request_id).json(callback);
        let response = request.send().await.map_err(|error| {
            let cause = certs::client::cause(error);
            tracing::warn!(request_id, txn_id = %callback.txn_id, cause, "txn-core did not take a callback");
            CoreError::Away
        })?;
        match response.status() {
            StatusCode::OK => {
                let durable: Durable = response.json().await.map_err(|_| CoreError::Away)?;
                Ok(durable.applied)
            }
            StatusCode::NOT_FOUND => Err(CoreError::UnknownTransaction),
            status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                Err(CoreError::Refused(status.as_u16()))
            }
            _ => Err(CoreError::Away),
        }
    }

    pub fn url(&self) -> &str {
        &self.url
    }
}
