//! Feature flags, followed while the edge runs: a file that changes counts a second later, as a whole, or is refused
//! with a reason and the flags before it stay.
//!
//! Owns the file, and what is counted. What a flag says of a request is the crate `filters`'.

mod audited;
pub(crate) mod ofrep;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use certs::file::Content;
use certs::{Bytes, CertError, Set, Subject, Watch};
use filters::filter::Context;
use filters::flags::{Evaluation, Flags};
use filters::policy::{Document, FlagFile, Policy, as_json};
use prometheus::IntCounterVec;
use prometheus::core::Collector as _;
use serde_json::{Value, json};

pub(crate) use self::audited::Audited;
use crate::load;

/// The flags of a policy as they are now; none where it has no file of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct FeatureFlags(Option<Set<Held>>);

#[derive(Debug)]
struct Held {
    flags: Arc<Flags>,
    /// The same, JSON, for Envoy's workers.
    json: Arc<str>,
    version: String,
}

impl FeatureFlags {
    /// Reads the file, and has `watch` follow it. A file without a flag that the policy counts on is refused.
    pub(crate) fn follow(policy: &Policy, folder: &Path, watch: &Watch) -> Result<Self, CertError> {
        let Some(path) = file(policy.document(), folder) else { return Ok(Self::default()) };
        let uses = policy.flag_uses().to_vec();
        let accept = move |read: &[Bytes], _: Option<&Held>, _| {
            let Some(file) = read.first() else {
                return Err(CertError::Unreadable {
                    path: PathBuf::new(),
                    source: std::io::ErrorKind::NotFound.into(),
                });
            };
            let held = Held::read(&file.path, &file.bytes)?;
            match held.flags.lacks(&uses).as_slice() {
                [] => Ok(held),
                lacking => {
                    let reason = format!("the policy counts on it: {}", lacking.join("; "));
                    Err(CertError::Content { path: file.path.clone(), reason })
                }
            }
        };
        Ok(Self(Some(watch.files("flags".to_owned(), vec![(path, Content::Public)], accept)?)))
    }

    pub(crate) fn current(&self) -> Option<Arc<Flags>> {
        Some(Arc::clone(&self.0.as_ref()?.current().flags))
    }

    /// The file's text as JSON, and the first digits of its SHA-256.
    pub(crate) fn written(&self) -> Option<(String, Arc<str>)> {
        let held = self.0.as_ref()?.current();
        Some((held.version.clone(), Arc::clone(&held.json)))
    }

    /// What there is, whether the file as it is now counts, and what each flag has said, where that is counted.
    pub(crate) fn report(&self, counted: Option<&IntCounterVec>) -> Value {
        let Some(set) = &self.0 else { return json!({ "file": null, "flags": {} }) };
        let held = set.current();
        let said = counted.map(said);
        let flags: BTreeMap<&str, Value> = held
            .flags
            .iter()
            .map(|(key, flag)| {
                let variants: Vec<&str> = flag.variants().map(|(name, _)| name).collect();
                let mut told = json!({
                    "state": flag.state(), "variants": variants, "defaultVariant": flag.default(),
                    "targeting": flag.has_targeting(), "metadata": flag.metadata(),
                });
                if let Some(said) = &said {
                    told["said"] = json!(said.get(key));
                }
                (key, told)
            })
            .collect();
        json!({
            "file": set.files().next(), "version": held.version, "reloads": set.reloads(), "flags": flags,
        })
    }
}

/// Where the flags of a policy are.
pub(crate) fn file(document: &Document, folder: &Path) -> Option<PathBuf> {
    let FlagFile { file, .. } = &document.flags.as_ref()?.value;
    load::file(folder, file).ok()
}

/// Reads a file of flags once.
pub(crate) fn read(path: &Path) -> Result<Flags, CertError> {
    let held = Held::read(path, &certs::file::read(path, Content::Public)?)?;
    Ok(Arc::into_inner(held.flags).unwrap_or_default())
}

/// Counts what flags have said of a request.
pub(crate) fn count(context: &Context, counted: &IntCounterVec) {
    for (flag, Evaluation { variant, reason }) in context.flags.said() {
        counted.with_label_values(&[flag, variant.as_deref().unwrap_or_default(), reason.name()]).inc();
    }
}

/// What flags have said of a request, for its line in the log: `new-core=on surge=`.
pub(crate) fn told(context: &Context) -> Option<String> {
    let said: Vec<String> = context
        .flags
        .said()
        .map(|(flag, said)| format!("{flag}={}", said.variant.as_deref().unwrap_or_default()))
        .collect();
    (!said.is_empty()).then(|| said.join(" "))
}

/// How often each flag said what: by its key, and by the variant or, where it said none, by the reason.
fn said(counted: &IntCounterVec) -> BTreeMap<String, BTreeMap<String, u64>> {
    let mut all: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    for family in counted.collect() {
        for metric in family.get_metric() {
            let label = |name: &str| {
                let labels = metric.get_label().iter();
                labels.filter(|pair| pair.name() == name).map(|pair| pair.value()).next().unwrap_or_default()
            };
            let what = Some(label("variant")).filter(|name| !name.is_empty()).unwrap_or(label("reason"));
            let of_flag = all.entry(label("flag").to_owned()).or_default();
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of requests")]
            let count = metric.get_counter().get_value() as u64;
            *of_flag.entry(what.to_owned()).or_default() += count;
        }
    }
    all
}

impl Held {
    fn read(path: &Path, bytes: &[u8]) -> Result<Self, CertError> {
        let wrong = |reason: String| CertError::Content { path: path.to_owned(), reason };
        let text = load::utf8(bytes).map_err(wrong)?;
        let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        let json = if is_yaml {
            as_json(text).map_err(|mistake| wrong(mistake.in_file("YAML")))?
        } else {
            text.to_owned()
        };
        let flags = Flags::read(&json).map_err(|mistakes| wrong(mistakes.join("; ")))?;
        Ok(Self { flags: Arc::new(flags), json: json.into(), version: load::version(text) })
    }
}

impl Subject for Held {
    fn summary(&self) -> String {
        format!("{} flags, {}", self.flags.len(), self.version)
    }
}

impl FeatureFlags {
    /// What a flag says where these are the facts: for people and programs that ask, and not counted.
    pub(crate) fn asked(&self, key: &str, facts: &Value) -> Option<(Evaluation, Value, Value)> {
        let flags = self.current()?;
        let flag = flags.get(key)?;
        let said = flags.evaluate(key, facts);
        let value = said.variant.as_deref().and_then(|name| flag.variant(name)).cloned().unwrap_or_default();
        Some((said, value, json!(flag.metadata())))
    }

    fn keys(&self) -> Vec<String> {
        let flags = self.current();
        flags.iter().flat_map(|flags| flags.iter()).map(|(key, _)| key.to_owned()).collect()
    }
}
