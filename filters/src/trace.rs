//! Request ids and W3C Trace Context (<https://www.w3.org/TR/trace-context/>).

use std::fmt;

/// A trace and this hop's place in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    trace_id: u128,
    span_id: u64,
    sampled: bool,
}

impl TraceContext {
    /// Continues the caller's trace with a span of our own, or begins one. `random` is fresh for each call.
    pub fn continued(traceparent: Option<&str>, random: (u128, u64)) -> Self {
        let (trace_id, span_id) = random;
        match traceparent.and_then(parse) {
            Some(parent) => Self { span_id: span_id.max(1), ..parent },
            None => Self { trace_id: trace_id.max(1), span_id: span_id.max(1), sampled: true },
        }
    }

    /// 32 hexadecimal digits.
    pub fn trace_id(&self) -> String {
        format!("{:032x}", self.trace_id)
    }
}

impl fmt::Display for TraceContext {
    /// The `traceparent` field.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

/// A UUID of version 4 from random bits: what problems and logs share, so that a person can go from one to the
/// other.
pub fn request_id(random: u128) -> String {
    let id = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        id >> 96,
        id >> 80 & 0xffff,
        id >> 64 & 0xffff,
        id >> 48 & 0xffff,
        id & 0xffff_ffff_ffff
    )
}

/// Version 00; a later version may have more fields, which are ignored (section 3.2.2).
fn parse(text: &str) -> Option<TraceContext> {
    let mut fields = text.split('-');
    let version = hex(fields.next()?, 2)?;
    let trace_id = hex(fields.next()?, 32)?;
    let span_id = u64::try_from(hex(fields.next()?, 16)?).ok()?;
    let flags = hex(fields.next()?, 2)?;
    let more = fields.next().is_some();
    let valid = version != 0xff && trace_id != 0 && span_id != 0 && !(version == 0 && more);
    valid.then_some(TraceContext { trace_id, span_id, sampled: flags & 1 == 1 })
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    if text.len() == digits && lower { u128::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids_are_version_4_uuids() {
        for (random, expected) in [
            (0, "00000000-0000-4000-8000-000000000000"),
            (u128::MAX, "ffffffff-ffff-4fff-bfff-ffffffffffff"),
            (0x0123_4567_89ab_cdef_0123_4567_89ab_cdef, "01234567-89ab-4def-8123-456789abcdef"),
        ] {
            assert_eq!(request_id(random), expected);
        }
    }

    #[test]
    fn a_callers_trace_goes_on_and_a_broken_one_does_not() {
        const OURS: &str = "00-00000000000000000000000000000007-0000000000000009-01";
        for (given, expected) in [
            (
                Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                "00-0af7651916cd43dd8448eb211c80319c-0000000000000009-01",
            ),
            (
                Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),
                "00-0af7651916cd43dd8448eb211c80319c-0000000000000009-00",
            ),
            (
                Some("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"),
                "00-0af7651916cd43dd8448eb211c80319c-0000000000000009-01",
            ),
            (None, OURS),
            (Some(""), OURS),
            (Some("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"), OURS),
            (Some("00-00000000000000000000000000000000-b7ad6b7169203331-01"), OURS),
            (Some("ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), OURS),
            (Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more"), OURS),
        ] {
            assert_eq!(TraceContext::continued(given, (7, 9)).to_string(), expected, "{given:?}");
        }
    }
}
