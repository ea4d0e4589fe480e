//! Reading JSON that was made of a document that is good.

use serde::{Deserialize, Deserializer};

use super::super::{At, Document, Mistake};

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::nowhere)
    }
}

/// Reads a document.
pub(crate) fn read(text: &str) -> Result<Document, Vec<Mistake>> {
    serde_json::from_str(text).map_err(|error| vec![Mistake::whole(error.to_string())])
}
