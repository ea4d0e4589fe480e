//! What is written in a document, whatever it says, and where.

use std::fmt;

use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_path_to_error::Segment;

use super::super::{At, Mistake};

/// What stands in a place.
pub(super) enum Written {
    /// Nothing, or `null`. It would be read as if its key were not there: `jwt:` would ask for no token.
    Nothing,
    Word,
    List(Vec<At<Written>>),
    Map(Vec<(At<String>, Written)>),
}

impl Written {
    /// The first key or item behind which there is nothing, and the path to it.
    pub(super) fn nothing(&self) -> Option<(Vec<Segment>, Mistake)> {
        let mut path = Vec::new();
        self.nothing_below(&mut path).map(|mistake| (path, mistake))
    }

    /// Leaves the path at what is found.
    fn nothing_below(&self, path: &mut Vec<Segment>) -> Option<Mistake> {
        match self {
            Self::Nothing | Self::Word => None,
            Self::List(items) => items.iter().enumerate().find_map(|(index, At { value: item, location })| {
                path.push(Segment::Seq { index });
                let found = match item {
                    Self::Nothing => {
                        Some(Mistake::at(*location, "an item of a list is empty: write it, or leave it out"))
                    }
                    item => item.nothing_below(path),
                };
                found.or_else(|| path.pop().and(None))
            }),
            Self::Map(entries) => entries.iter().find_map(|(key, value)| {
                path.push(Segment::Map { key: key.value.clone() });
                let found = match value {
                    Self::Nothing => {
                        let message = format!(
                            "nothing is written for `{}`: write its value, `{{}}` for all by default, or leave it out",
                            key.value
                        );
                        Some(Mistake::of(key, message))
                    }
                    value => value.nothing_below(path),
                };
                found.or_else(|| path.pop().and(None))
            }),
        }
    }
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Written;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Written, E> {
        Ok(Written::Nothing)
    }

    fn visit_none<E>(self) -> Result<Written, E> {
        Ok(Written::Nothing)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Written, D::Error> {
        Written::deserialize(deserializer)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Written, E> {
        Ok(Written::Word)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Written, E> {
        Ok(Written::Word)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Written, E> {
        Ok(Written::Word)
    }

    fn visit_i128<E>(self, _: i128) -> Result<Written, E> {
        Ok(Written::Word)
    }

    fn visit_u128<E>(self, _: u128) -> Result<Written, E> {
        Ok(Written::Word)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Written, E> {
        Ok(Written::Word)
    }

    fn visit_str<E>(self, _: &str) -> Result<Written, E> {
        Ok(Written::Word)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Written, E> {
        Ok(Written::Word)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Written, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Written::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Written::Map(entries))
    }
}
