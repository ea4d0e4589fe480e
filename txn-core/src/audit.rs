//! The audit trail: every event of `upi.audit.log` as a line in a file of its day, for years and for auditors.
//!
//! `<folder>/txn/YYYY/MM/DD/partition-NN.jsonl`, by the event's own time (UTC) and the topic's partition: the same
//! event always belongs into the same file, whoever writes it and whenever, and one reader of the group writes a
//! file at a time. Files are only appended to, and what was written is on the disk before its offset is committed.
//! A line holds the payment's facts with both addresses masked: whoever may see whole ones looks the payment up by
//! its id.

mod file;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use self::file::DayFile;
use crate::bus::Delivery;
use crate::bus::consume::{self, Handler, HandlerError};
use crate::store::record::Envelope;
use crate::txn::{EventType, UnixMs, mask_vpas};

/// The name of its consumer group.
pub const GROUP: &str = "audit";

/// Where the trail is kept.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// Of several instances: the same folder, on storage that they share.
    pub folder: PathBuf,
}

impl Default for AuditConfig {
    fn default() -> Self {
        AuditConfig { folder: "data/audit".into() }
    }
}

/// Writes the trail. What came together is on the disk with one `fsync` a file.
#[derive(Debug)]
pub struct Audit {
    queue: mpsc::Sender<Entry>,
}

/// A line of the trail.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    event_id: String,
    #[serde(rename = "type")]
    event_type: EventType,
    txn_id: &'a str,
    tenant: &'a str,
    at: &'a str,
    version: u32,
    status: &'a str,
    #[serde(rename = "fromVPA")]
    from_vpa: String,
    #[serde(rename = "toVPA")]
    to_vpa: String,
    amount: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rrn: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    partition: i32,
    offset: i64,
}

#[derive(Debug)]
struct Entry {
    file: PathBuf,
    event_id: u128,
    line: String,
    written: oneshot::Sender<Result<(), String>>,
}

const QUEUE: usize = 1024;
const BATCH: usize = 512;
/// Today's partitions, yesterday's around midnight, and what comes late.
const MAX_OPEN: usize = 64;

impl Audit {
    /// Opens the folder, making it if need be. Ends when it is dropped.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn open(config: &AuditConfig) -> anyhow::Result<Arc<Audit>> {
        let folder = config.folder.join("txn");
        std::fs::create_dir_all(&folder).with_context(|| format!("audit.folder {}", folder.display()))?;
        let (queue, waiting) = mpsc::channel(QUEUE);
        std::thread::Builder::new().name("audit".to_owned()).spawn(move || write_all(&folder, waiting))?;
        Ok(Arc::new(Audit { queue }))
    }
}

#[async_trait]
impl Handler for Audit {
    async fn handle(&self, delivery: &Delivery) -> Result<(), HandlerError> {
        let envelope = consume::event(&delivery.message)?;
        let at = UnixMs::parse(&envelope.at).ok_or_else(|| HandlerError::Poison("at".to_owned()))?;
        let (written, answer) = oneshot::channel();
        let entry = Entry {
            file: file_of(at, delivery.place.partition),
            event_id: envelope.event_id.as_u128(),
            line: line(&envelope, delivery)?,
            written,
        };
        let closed = || HandlerError::Unavailable("the audit trail is closed".to_owned());
        self.queue.send(entry).await.map_err(|_| closed())?;
        // A disk that is full or away is nobody's fault: everything waits for it.
        answer.await.map_err(|_| closed())?.map_err(HandlerError::Unavailable)
    }
}

fn file_of(at: UnixMs, partition: i32) -> PathBuf {
    let day = at.to_string().get(..10).unwrap_or_default().replace('-', "/");
    Path::new(&day).join(format!("partition-{partition:02}.jsonl"))
}

fn line(envelope: &Envelope, delivery: &Delivery) -> Result<String, HandlerError> {
    let data = &envelope.data;
    let line = Line {
        event_id: envelope.event_id.simple().to_string(),
        event_type: envelope.event_type,
        txn_id: &envelope.txn_id,
        tenant: &envelope.tenant,
        at: &envelope.at,
        version: data.version,
        status: &data.status,
        from_vpa: mask_vpas(&data.from_vpa),
        to_vpa: mask_vpas(&data.to_vpa),
        amount: &data.amount,
        code: data.code.as_deref(),
        rrn: data.rrn.as_deref(),
        reason: data.reason.as_deref().map(mask_vpas),
        request_id: envelope.trace.request_id.as_deref(),
        partition: delivery.place.partition,
        offset: delivery.place.offset,
    };
    serde_json::to_string(&line).map_err(|error| HandlerError::Poison(error.to_string()))
}

fn write_all(folder: &Path, mut waiting: mpsc::Receiver<Entry>) {
    let mut open: HashMap<PathBuf, DayFile> = HashMap::new();
    let mut taken = Vec::with_capacity(BATCH);
    while waiting.blocking_recv_many(&mut taken, BATCH) > 0 {
        let mut by_file: HashMap<PathBuf, Vec<Entry>> = HashMap::new();
        for entry in taken.drain(..) {
            by_file.entry(entry.file.clone()).or_default().push(entry);
        }
        for (file, entries) in by_file {
            if open.len() > MAX_OPEN {
                open.clear();
            }
            let lines = entries.iter().map(|entry| (entry.event_id, entry.line.as_str()));
            let written = DayFile::append(&mut open, folder, &file, lines);
            let written = written.map_err(|error| format!("audit file {}: {error}", file.display()));
            if let Err(error) = &written {
                tracing::error!(error, "the audit trail could not be written");
                // What of it is on the disk is found out when it is opened again.
                open.remove(&file);
            }
            for entry in entries {
                // Whoever asked may have gone; it comes again, and is there.
                let _gone = entry.written.send(written.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::contract::message;
    use crate::bus::{Message, Place, Topic};

    fn delivery(message: &Message, offset: i64) -> Delivery {
        Delivery { place: Place { partition: 3, offset }, message: message.clone() }
    }

    fn lines(folder: &Path) -> Vec<serde_json::Value> {
        let file = folder.join("txn").join(file_of(UnixMs::now(), 3));
        let text = std::fs::read_to_string(file).unwrap();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    #[tokio::test]
    async fn each_event_once_masked_and_after_a_restart_too() {
        let dir = tempfile::tempdir().unwrap();
        let config = AuditConfig { folder: dir.path().to_owned() };
        let events: Vec<Message> = (0..3).map(|n| message(Topic::Audit, "TOR1", n)).collect();
        let audit = Audit::open(&config).unwrap();
        for (offset, event) in [(0, 0), (1, 1), (1, 1), (2, 0)] {
            audit.handle(&delivery(&events[event], offset)).await.unwrap();
        }
        // Another writer of the same file, as when the partition moves.
        let other = Audit::open(&config).unwrap();
        for (offset, event) in [(1, 1), (3, 2)] {
            other.handle(&delivery(&events[event], offset)).await.unwrap();
        }
        // And it comes back, with a line that a crash cut off.
        let file = dir.path().join("txn").join(file_of(UnixMs::now(), 3));
        let mut text = std::fs::read_to_string(&file).unwrap();
        text += r#"{"eventId":"0198"#;
        std::fs::write(&file, text).unwrap();
        audit.handle(&delivery(&events[2], 3)).await.unwrap();
        let one_more = message(Topic::Audit, "TOR2", 9);
        audit.handle(&delivery(&one_more, 4)).await.unwrap();

        let lines = lines(dir.path());
        let versions: Vec<u64> = lines.iter().map(|line| line["version"].as_u64().unwrap()).collect();
        assert_eq!(versions, [0, 1, 2, 9]);
        assert_eq!(
            (&lines[0]["fromVPA"], &lines[0]["toVPA"]),
            (&"a***@torana".into(), &"b***@torana".into())
        );
        assert_eq!((&lines[3]["txnId"], &lines[3]["offset"]), (&"TOR2".into(), &4.into()));
        assert!(!std::fs::read_to_string(&file).unwrap().contains("alice"));
    }

    #[tokio::test]
    async fn what_cannot_be_written_waits() {
        let dir = tempfile::tempdir().unwrap();
        let audit = Audit::open(&AuditConfig { folder: dir.path().to_owned() }).unwrap();
        // Where the folder of the year should be lies a file.
        let year = dir.path().join("txn").join(file_of(UnixMs::now(), 3).components().next().unwrap());
        std::fs::write(&year, "").unwrap();
        let delivery = delivery(&message(Topic::Audit, "TOR1", 0), 0);
        let error = audit.handle(&delivery).await.unwrap_err();
        assert!(matches!(error, HandlerError::Unavailable(_)), "{error}");
        std::fs::remove_file(&year).unwrap();
        audit.handle(&delivery).await.unwrap();
        assert_eq!(lines(dir.path()).len(), 1);
    }
}
