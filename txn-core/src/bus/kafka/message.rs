//! Messages as Kafka has them, and back.

use bytes::Bytes;
use rdkafka::message::{BorrowedMessage, Header, Headers as _, Message as _, OwnedHeaders};

use crate::bus::avro::{Codec, DecodeError, RegistryError};
use crate::bus::{Delivery, Message, Payload, Place, Topic};

/// Readable by whoever cannot read the event itself.
const EVENT_ID: &str = "x-event-id";

/// A message as it was fetched, not yet read.
#[derive(Debug)]
pub(super) struct Fetched {
    pub(super) place: Place,
    key: String,
    headers: Vec<(String, String)>,
    payload: Bytes,
}

pub(super) fn headers(message: &Message) -> OwnedHeaders {
    let id = OwnedHeaders::new_with_capacity(message.headers.len() + 1)
        .insert(Header { key: EVENT_ID, value: Some(message.event_id.as_str()) });
    message
        .headers
        .iter()
        .fold(id, |headers, (key, value)| headers.insert(Header { key, value: Some(value.as_str()) }))
}

impl Fetched {
    /// Names in foreign messages that are not UTF-8 lose what is not; the payload stays as it is.
    pub(super) fn of(message: &BorrowedMessage<'_>) -> Fetched {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let headers = message.headers().map(|headers| {
            let header = |header: Header<'_, &[u8]>| {
                (header.key.to_owned(), header.value.map(text).unwrap_or_default())
            };
            headers.iter().map(header).collect()
        });
        Fetched {
            place: Place { partition: message.partition(), offset: message.offset() },
            key: message.key().map(text).unwrap_or_default(),
            headers: headers.unwrap_or_default(),
            payload: Bytes::copy_from_slice(message.payload().unwrap_or_default()),
        }
    }

    /// What it says.
    ///
    /// # Errors
    /// The registry has to be asked and does not answer.
    pub(super) async fn read(&self, topic: Topic, codec: &Codec) -> Result<Delivery, RegistryError> {
        let payload = match codec.decode(&self.payload).await {
            Ok(json) => Payload::read(json, self.payload.clone()),
            Err(DecodeError::Unreadable(why)) => Payload::unreadable(why, self.payload.clone()),
            Err(DecodeError::Away(error)) => return Err(error),
        };
        let mut headers = self.headers.clone();
        let id = headers.iter().position(|(key, _)| key == EVENT_ID).map(|at| headers.remove(at).1);
        let Place { partition, offset } = self.place;
        Ok(Delivery {
            place: self.place,
            message: Message {
                topic,
                key: self.key.clone(),
                event_id: id.unwrap_or_else(|| format!("{}/{partition}/{offset}", topic.name())),
                headers,
                payload,
            },
        })
    }
}
