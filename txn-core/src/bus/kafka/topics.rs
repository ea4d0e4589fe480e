//! The topics as the design has them: `txn-core topics`.

use anyhow::{Context as _, bail};
use rdkafka::admin::{AdminClient, AdminOptions, ConfigEntry, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::Client;
use rdkafka::metadata::MetadataTopic;

use super::config::{DEAD_LETTERS_KEPT_MS, SEGMENT_MS};
use super::context::Ear;
use super::{ASK_WITHIN, KafkaConfig};
use crate::bus::Topic;

/// A dead letter is what it was, and why it died besides.
pub(super) const LETTER_MAX_BYTES: u32 = 2 * 1024 * 1024;

/// What became of one topic, or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub topic: String,
    pub state: TopicState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TopicState {
    AsWanted,
    Made,
    /// Only looked: it is not there.
    Missing,
    /// There, and not as the design has it: what, and how it is. Nothing is changed; an operator decides.
    Differs(Vec<String>),
}

/// Whether to make what is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    Make,
    Report,
}

/// Looks at every topic and makes what is missing; never changes what is there.
///
/// # Errors
/// When no broker answers, or one refuses.
pub async fn align(config: &KafkaConfig, replication: i32, missing: Missing) -> anyhow::Result<Vec<Finding>> {
    let admin: AdminClient<Ear> = config.client()?.create_with_context(Ear::default())?;
    let options = AdminOptions::new().request_timeout(Some(ASK_WITHIN)).operation_timeout(Some(ASK_WITHIN));
    let wanted = Topic::ALL.into_iter().map(|topic| Wanted::of(topic, config, replication));
    let wanted: Vec<Wanted> = wanted.collect();
    let (mut findings, mut new) = (Vec::new(), Vec::new());
    for wanted in &wanted {
        let state = match described(admin.inner(), &wanted.name)? {
            Some(there) => {
                let named = [ResourceSpecifier::Topic(&wanted.name)];
                let entries = admin.describe_configs(&named, &options).await?.into_iter().next();
                let entries = entries.context("no answer")?;
                let entries = entries.map_err(|error| anyhow::anyhow!("{}: {error}", wanted.name))?.entries;
                let differs = wanted.differences(there, &entries);
                if differs.is_empty() { TopicState::AsWanted } else { TopicState::Differs(differs) }
            }
            None if missing == Missing::Report => TopicState::Missing,
            None => {
                new.push(wanted.new_topic());
                TopicState::Made
            }
        };
        findings.push(Finding { topic: wanted.name.clone(), state });
    }
    if !new.is_empty() {
        for result in admin.create_topics(&new, &options).await? {
            if let Err((name, error)) = result {
                bail!("{name} could not be made: {error}");
            }
        }
    }
    Ok(findings)
}

/// A topic as it should be.
#[derive(Debug)]
struct Wanted {
    name: String,
    partitions: i32,
    replicas: i32,
    settings: Vec<(&'static str, String)>,
}

impl Wanted {
    fn of(topic: Topic, config: &KafkaConfig, replicas: i32) -> Wanted {
        let retention_ms = match topic {
            Topic::DeadLetter => DEAD_LETTERS_KEPT_MS,
            Topic::Initiated
            | Topic::Debited
            | Topic::Completed
            | Topic::Audit
            | Topic::Notification
            | Topic::RetryDelayed => config.retention_ms,
        };
        let mut settings = vec![
            ("cleanup.policy", "delete".to_owned()),
            ("retention.ms", retention_ms.to_string()),
            ("segment.ms", SEGMENT_MS.to_string()),
            // What is published is taken out of the outbox: one broker that is lost must not have been the only one.
            ("min.insync.replicas", (replicas - 1).max(1).to_string()),
        ];
        if matches!(topic, Topic::DeadLetter | Topic::RetryDelayed) {
            settings.push(("max.message.bytes", LETTER_MAX_BYTES.to_string()));
        }
        let name = format!("{}{}", config.prefix, topic.name());
        Wanted { name, partitions: topic.partitions(), replicas, settings }
    }

    fn new_topic(&self) -> NewTopic<'_> {
        let new = NewTopic::new(&self.name, self.partitions, TopicReplication::Fixed(self.replicas));
        self.settings.iter().fold(new, |new, (key, value)| new.set(key, value))
    }

    fn differences(&self, there: Described, entries: &[ConfigEntry]) -> Vec<String> {
        let mut differs = Vec::new();
        if i32::try_from(there.partitions) != Ok(self.partitions) {
            differs.push(format!("partitions: {}, not {}", there.partitions, self.partitions));
        }
        if i32::try_from(there.replicas) != Ok(self.replicas) {
            differs.push(format!("replicas: {}, not {}", there.replicas, self.replicas));
        }
        for (key, wanted) in &self.settings {
            let found =
                entries.iter().find(|entry| entry.name == *key).and_then(|entry| entry.value.as_deref());
            if found != Some(wanted) {
                differs.push(format!("{key}: {}, not {wanted}", found.unwrap_or("unset")));
            }
        }
        differs
    }
}

/// Partitions and replicas of a topic, if it is there.
#[derive(Debug, Clone, Copy)]
struct Described {
    partitions: usize,
    replicas: usize,
}

fn described(client: &Client<Ear>, name: &str) -> anyhow::Result<Option<Described>> {
    let metadata = client.fetch_metadata(Some(name), ASK_WITHIN).context("no broker answers")?;
    let there = |topic: &&MetadataTopic| topic.name() == name && topic.error().is_none();
    Ok(metadata.topics().iter().find(there).map(|topic| Described {
        partitions: topic.partitions().len(),
        replicas: topic.partitions().first().map_or(0, |partition| partition.replicas().len()),
    }))
}
