//! What Prometheus is told of certificates: computed when it asks.

use std::fmt;
use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{GaugeVec, IntCounterVec, Opts, TextEncoder};
use time::OffsetDateTime;

use crate::Watch;
use crate::report::KeyKind;

/// Collects `certs_expiry_seconds{name,kind}`, `certs_last_reload_timestamp_seconds{name}`,
/// `certs_reload_refused{name}`, which is 1 while the files as they are now are refused, and
/// `cert_reload_failures_total{name,reason}`. Names are those of sets of files; kinds are `certificate`, `ca`, `crl`
/// and `key`. What has expired has negative seconds.
pub struct Metrics {
    watches: Box<Watches>,
    descriptions: Vec<Desc>,
}

type Watches = dyn Fn() -> Vec<Arc<Watch>> + Send + Sync;

/// Made anew each time: what is no longer in use is no longer told of.
struct Families {
    expiry: GaugeVec,
    last_reload: GaugeVec,
    refused: GaugeVec,
    failures: IntCounterVec,
}

impl Metrics {
    /// # Errors
    /// Never, as long as the names are well-formed.
    pub fn new(watch: Arc<Watch>) -> Result<Metrics, prometheus::Error> {
        Metrics::of(move || vec![Arc::clone(&watch)])
    }

    /// Of a process whose watches come and go: they are asked for each time. No two have sets of one name.
    ///
    /// # Errors
    /// As of [`Metrics::new`].
    pub fn of(
        watches: impl Fn() -> Vec<Arc<Watch>> + Send + Sync + 'static,
    ) -> Result<Metrics, prometheus::Error> {
        let Families { expiry, last_reload, refused, failures } = Families::new()?;
        let descriptions = [expiry.desc(), last_reload.desc(), refused.desc(), failures.desc()].concat();
        let descriptions = descriptions.into_iter().cloned().collect();
        Ok(Metrics { watches: Box::new(watches), descriptions })
    }
}

impl Metrics {
    /// In the text format, for who has no registry.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.collect()).unwrap_or_default()
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let Ok(families) = Families::new() else { return Vec::new() };
        let now = OffsetDateTime::now_utc();
        (self.watches)().iter().for_each(|watch| families.tell(watch, now));
        families.collect()
    }
}

impl Families {
    fn new() -> Result<Families, prometheus::Error> {
        let expiry = "Seconds until a certificate, a list or a key in use is no longer good";
        let last_reload = "When files were last put into use, Unix time";
        let refused = "Whether the files as they are now are refused: 1, and those before are in use, or 0";
        let failures = "Times that new files were refused, by reason";
        Ok(Families {
            expiry: GaugeVec::new(Opts::new("certs_expiry_seconds", expiry), &["name", "kind"])?,
            last_reload: GaugeVec::new(
                Opts::new("certs_last_reload_timestamp_seconds", last_reload),
                &["name"],
            )?,
            refused: GaugeVec::new(Opts::new("certs_reload_refused", refused), &["name"])?,
            failures: IntCounterVec::new(
                Opts::new("cert_reload_failures_total", failures),
                &["name", "reason"],
            )?,
        })
    }

    fn tell(&self, watch: &Watch, now: OffsetDateTime) {
        for set in watch.sets() {
            for (kind, at) in set.expiries() {
                self.expiry.with_label_values(&[set.name(), kind]).set((at - now).as_seconds_f64());
            }
            let reloaded = (set.last_reload() - OffsetDateTime::UNIX_EPOCH).as_seconds_f64();
            self.last_reload.with_label_values(&[set.name()]).set(reloaded);
            self.refused.with_label_values(&[set.name()]).set(f64::from(u8::from(set.is_refused())));
            for (reason, count) in set.failures() {
                self.failures.with_label_values(&[set.name(), reason]).inc_by(count);
            }
        }
        for key in watch.report().keys {
            let Some(at) = key.not_after else { continue };
            let kind = match key.kind {
                KeyKind::Hmac => "hmac",
                KeyKind::Device => "device",
                KeyKind::Jwks => "jwks",
                KeyKind::Network => "network",
                KeyKind::ApiKey => "api_key",
            };
            let name = format!("{kind}/{}/{}", key.owner, key.id);
            self.expiry.with_label_values(&[name.as_str(), "key"]).set((at - now).as_seconds_f64());
        }
    }

    fn collect(&self) -> Vec<MetricFamily> {
        [self.expiry.collect(), self.last_reload.collect(), self.refused.collect(), self.failures.collect()]
            .concat()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("watches", &(self.watches)()).finish_non_exhaustive()
    }
}
