//! JSON bodies that every reader understands the same way: well-formed (RFC 8259), of bounded depth, and with
//! no member named twice, for readers differ on which of the two counts.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// Why a body is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    NotJson,
    TooDeep { limit: usize },
    Duplicate,
}

impl Flaw {
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::NotJson => "json_invalid",
            Self::TooDeep { .. } => "json_too_deep",
            Self::Duplicate => "json_duplicate_member",
        }
    }

    pub(super) fn detail(self) -> Cow<'static, str> {
        match self {
            Self::NotJson => "The body is not JSON.".into(),
            Self::TooDeep { limit } => format!("The body is nested deeper than {limit} levels.").into(),
            Self::Duplicate => "The body names a member twice.".into(),
        }
    }
}

/// Whether every reader understands the text the same way.
pub(crate) fn unambiguous(text: &[u8], max_depth: usize) -> bool {
    check(text, max_depth).is_ok()
}

/// Reads the whole body once and keeps nothing of it.
pub(super) fn check(body: &[u8], max_depth: usize) -> Result<(), Flaw> {
    let mut flaw = Flaw::NotJson;
    let mut reader = serde_json::Deserializer::from_slice(body);
    let read = Node { left: max_depth, limit: max_depth, flaw: &mut flaw }
        .deserialize(&mut reader)
        .and_then(|()| reader.end());
    read.map_err(|_| flaw)
}

struct Node<'f> {
    left: usize,
    limit: usize,
    flaw: &'f mut Flaw,
}

impl Node<'_> {
    fn deeper<E: Error>(&mut self) -> Result<Node<'_>, E> {
        match self.left.checked_sub(1) {
            Some(left) => Ok(Node { left, limit: self.limit, flaw: self.flaw }),
            None => {
                *self.flaw = Flaw::TooDeep { limit: self.limit };
                Err(E::custom("too deep"))
            }
        }
    }
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self.deeper()?)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            if !seen.insert(name) {
                *self.flaw = Flaw::Duplicate;
                return Err(A::Error::custom("duplicate"));
            }
            map.next_value_seed(self.deeper()?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bodies() {
        let deep = |n: usize| format!("{}1{}", "[".repeat(n), "]".repeat(n));
        for (body, expected) in [
            (r#"{"a":1,"b":[1,2,{"c":null}]}"#.to_owned(), Ok(())),
            ("1".into(), Ok(())),
            (deep(8), Ok(())),
            (deep(9), Err(Flaw::TooDeep { limit: 8 })),
            (deep(10_000), Err(Flaw::TooDeep { limit: 8 })),
            (r#"{"a":1,"a":2}"#.into(), Err(Flaw::Duplicate)),
            (r#"{"a":1,"\u0061":2}"#.into(), Err(Flaw::Duplicate)),
            (r#"{"x":{"a":1},"y":{"a":1}}"#.into(), Ok(())),
            (r#"{"a":1"#.into(), Err(Flaw::NotJson)),
            (r#"{"a":1} x"#.into(), Err(Flaw::NotJson)),
            (r#"{'a':1}"#.into(), Err(Flaw::NotJson)),
            ("NaN".into(), Err(Flaw::NotJson)),
            (r#"{"a":1,}"#.into(), Err(Flaw::NotJson)),
            ("\u{feff}{}".into(), Err(Flaw::NotJson)),
        ] {
            assert_eq!(check(body.as_bytes(), 8), expected, "{}", &body[..body.len().min(40)]);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..200), depth in 0usize..20) {
            let _ = check(&body, depth);
        }
    }
}
