//! Events in Avro and the Confluent wire format: a zero byte, the schema's id in four, then the event.
//!
//! Owns the schemas (files under `schemas/`, one a version, never edited once released) and what each id means.
//! The newest version is what is written; whatever version an event was written with is read.

mod registry;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use apache_avro::Schema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::writer::datum::GenericDatumWriter;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use registry::{Registry, RegistryConfig, RegistryError};

use super::Topic;
use crate::store::Trace;
use crate::store::record::{Envelope, EventData};
use crate::txn::{AmountPaise, EventType, UnixMs, mask_vpas};

/// Every released version, in its order.
const RELEASED: &[&str] = &[include_str!("../../../schemas/transaction-event.1.avsc")];
/// Ids without a registry: this and the version. No registry counts that far, so that messages written with and
/// without one can lie in one topic.
const OWN_IDS: u32 = 0x544F_0000;
const MAGIC: u8 = 0;
const HEAD: usize = 5;
/// The library prints the whole schema into some of its errors.
const WHY_CHARS: usize = 200;

#[expect(clippy::expect_used, reason = "the schemas are compiled in, and a test parses each")]
static SCHEMAS: LazyLock<Vec<Arc<Schema>>> = LazyLock::new(|| {
    RELEASED.iter().map(|text| Arc::new(Schema::parse_str(text).expect("a released schema"))).collect()
});

/// An event as the schema has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename = "TransactionEvent", rename_all = "camelCase")]
struct Record {
    event_id: String,
    event_type: String,
    txn_id: String,
    tenant: String,
    timestamp: i64,
    version: i64,
    status: String,
    #[serde(rename = "fromVPA")]
    from_vpa: String,
    #[serde(rename = "toVPA")]
    to_vpa: String,
    amount_paise: i64,
    code: Option<String>,
    rrn: Option<String>,
    reason: Option<String>,
    request_id: Option<String>,
    traceparent: Option<String>,
}

/// Why bytes gave no event.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// Nobody can read it, ever.
    #[error("{0}")]
    Unreadable(String),
    /// The registry, which may know the schema, did not answer: try again.
    #[error(transparent)]
    Away(#[from] RegistryError),
}

/// Writes and reads events.
#[derive(Debug)]
pub struct Codec {
    registry: Option<Registry>,
    /// The id that each topic's events are written with, once the registry has said it.
    ids: Mutex<HashMap<Topic, u32>>,
}

impl Codec {
    pub fn new(registry: Option<Registry>) -> Codec {
        Codec { registry, ids: Mutex::default() }
    }

    /// The id to write a topic's events with; asks the registry the first time.
    ///
    /// # Errors
    /// Of the registry.
    pub async fn id(&self, topic: Topic, subject: &str) -> Result<u32, RegistryError> {
        let Some(registry) = &self.registry else { return Ok(own_id(RELEASED.len())) };
        let known = self.ids.lock().unwrap_or_else(PoisonError::into_inner).get(&topic).copied();
        if let Some(id) = known {
            return Ok(id);
        }
        let text = RELEASED.last().copied().unwrap_or_default();
        let id = registry.register(subject, text).await?;
        self.ids.lock().unwrap_or_else(PoisonError::into_inner).insert(topic, id);
        Ok(id)
    }

    /// An [`Envelope`]'s JSON as it goes over the wire.
    ///
    /// # Errors
    /// Says what in it is no event. A fault of ours: trying again changes nothing.
    pub fn encode(&self, id: u32, json: &str) -> Result<Vec<u8>, String> {
        let envelope: Envelope = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let schema = SCHEMAS.last().ok_or("no schema")?;
        let mut bytes = Vec::with_capacity(256);
        bytes.push(MAGIC);
        bytes.extend(id.to_be_bytes());
        let writer = GenericDatumWriter::builder(schema).build().map_err(|error| error.to_string())?;
        let record = Record::try_from(envelope)?;
        writer.write_ser(&mut bytes, &record).map_err(|error| error.to_string())?;
        Ok(bytes)
    }

    /// The JSON of the [`Envelope`] that these bytes are.
    ///
    /// # Errors
    /// [`DecodeError`] says whether anybody will ever be able to.
    pub async fn decode(&self, bytes: &[u8]) -> Result<String, DecodeError> {
        let unreadable = |what: &dyn std::fmt::Display| {
            DecodeError::Unreadable(mask_vpas(&what.to_string()).chars().take(WHY_CHARS).collect())
        };
        let head: Option<([u8; HEAD], &[u8])> =
            bytes.split_at_checked(HEAD).and_then(|(head, body)| Some((head.try_into().ok()?, body)));
        let Some(([MAGIC, a, b, c, d], body)) = head else {
            return Err(unreadable(&"not in the Confluent wire format"));
        };
        let id = u32::from_be_bytes([a, b, c, d]);
        let ours = SCHEMAS.last().ok_or_else(|| unreadable(&"no schema"))?;
        let written_with = match (schema_of_own(id), &self.registry) {
            (Some(schema), _) => schema,
            (None, Some(registry)) => match registry.schema(id).await? {
                Some(schema) => schema,
                None => return Err(unreadable(&format!("schema {id} is unknown to the registry"))),
            },
            (None, None) => {
                return Err(unreadable(&format!("schema {id} is unknown, and no registry is set")));
            }
        };
        let record = read(&written_with, ours, body).map_err(|error| unreadable(&error))?;
        let envelope = Envelope::try_from(record).map_err(|error| unreadable(&error))?;
        serde_json::to_string(&envelope).map_err(|error| unreadable(&error))
    }
}

fn own_id(version: usize) -> u32 {
    OWN_IDS + u32::try_from(version).unwrap_or(u32::MAX - OWN_IDS)
}

fn schema_of_own(id: u32) -> Option<Arc<Schema>> {
    let version = id.checked_sub(OWN_IDS)?;
    SCHEMAS.get(usize::try_from(version).ok()?.checked_sub(1)?).cloned()
}

fn read(written_with: &Schema, ours: &Schema, mut body: &[u8]) -> Result<Record, apache_avro::Error> {
    let reader = GenericDatumReader::builder(written_with);
    if written_with == ours {
        return reader.build()?.read_deser(&mut body);
    }
    apache_avro::from_value(&reader.reader_schema(ours).build()?.read_value(&mut body)?)
}

impl TryFrom<Envelope> for Record {
    type Error = String;

    fn try_from(envelope: Envelope) -> Result<Record, String> {
        let Envelope { v: _, event_id, event_type, txn_id, tenant, at, trace, data } = envelope;
        let amount: AmountPaise = data.amount.parse().map_err(|error| format!("amount: {error}"))?;
        Ok(Record {
            event_id: event_id.simple().to_string(),
            event_type: event_type.name().to_owned(),
            txn_id,
            tenant,
            timestamp: UnixMs::parse(&at).ok_or("at: not a time in RFC 3339")?.0,
            version: data.version.into(),
            status: data.status,
            from_vpa: data.from_vpa,
            to_vpa: data.to_vpa,
            amount_paise: i64::try_from(amount.paise()).map_err(|_| "amount: too large")?,
            code: data.code,
            rrn: data.rrn,
            reason: data.reason,
            request_id: trace.request_id,
            traceparent: trace.traceparent,
        })
    }
}

impl TryFrom<Record> for Envelope {
    type Error = String;

    fn try_from(record: Record) -> Result<Envelope, String> {
        let paise = u64::try_from(record.amount_paise).map_err(|_| "amountPaise: below zero")?;
        Ok(Envelope {
            v: 1,
            event_id: Uuid::try_parse(&record.event_id).map_err(|_| "eventId: not a UUID")?,
            event_type: EventType::from_name(&record.event_type).ok_or("eventType: unknown")?,
            txn_id: record.txn_id,
            tenant: record.tenant,
            at: UnixMs(record.timestamp).to_string(),
            trace: Trace { request_id: record.request_id, traceparent: record.traceparent },
            data: EventData {
                version: u32::try_from(record.version).map_err(|_| "version: out of bounds")?,
                status: record.status,
                from_vpa: record.from_vpa,
                to_vpa: record.to_vpa,
                amount: AmountPaise::from_paise(paise)
                    .map_err(|error| format!("amountPaise: {error}"))?
                    .to_string(),
                code: record.code,
                rrn: record.rrn,
                reason: record.reason,
            },
        })
    }
}
