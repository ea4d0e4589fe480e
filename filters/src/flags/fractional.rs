//! `fractional`: a share of the requests to each variant, the same for the same sender everywhere
//! (flagd.dev, "Fractional Operation"; its bucketing of 2026, which hashes CBOR).

use std::borrow::Cow;

use serde_json::Value;

/// The variant of the bucket that the sender falls into; `null` where that cannot be told.
pub(super) fn choose(values: &[Cow<'_, Value>], facts: &Value) -> Value {
    let Some((bucket_by, shares)) = bucket_by(values, facts) else { return Value::Null };
    let mut buckets: Vec<(&Value, u64)> = Vec::new();
    for share in shares {
        let Some(bucket) = bucket(share) else { return Value::Null };
        buckets.push(bucket);
    }
    let sum: u64 = buckets.iter().map(|(_, weight)| weight).sum();
    if sum == 0 || sum > MOST_WEIGHT {
        return Value::Null;
    }
    let mut left = (u64::from(murmur3(&bucket_by)) * sum) >> 32;
    for (variant, weight) in buckets {
        match left.checked_sub(weight) {
            None => return variant.clone(),
            Some(rest) => left = rest,
        }
    }
    Value::Null
}

const MOST_WEIGHT: u64 = i32::MAX as u64;

/// What decides, and the shares. The first argument decides if it is no share; otherwise the flag and the sender do.
fn bucket_by<'v>(values: &'v [Cow<'v, Value>], facts: &Value) -> Option<(Vec<u8>, &'v [Cow<'v, Value>])> {
    let (first, rest) = values.split_first()?;
    let mut bytes = Vec::new();
    match &**first {
        Value::Null | Value::Object(_) => return None,
        Value::Array(_) => {
            let sender = facts.get("targetingKey")?.as_str().filter(|key| !key.is_empty())?;
            let flag = facts.get("$flagd").and_then(|own| own.get("flagKey")).and_then(Value::as_str);
            head(&mut bytes, ARRAY, 2);
            cbor_text(&mut bytes, flag.unwrap_or_default());
            cbor_text(&mut bytes, sender);
            return Some((bytes, values));
        }
        Value::String(text) => cbor_text(&mut bytes, text),
        Value::Bool(value) => bytes.push(if *value { 0xf5 } else { 0xf4 }),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()?) {
            (Some(number), _, _) => head(&mut bytes, UNSIGNED, number),
            (None, Some(number), _) => head(&mut bytes, NEGATIVE, !number.cast_unsigned()),
            (None, None, _) => return None,
        },
    }
    (!rest.is_empty()).then_some((bytes, rest))
}

/// `[variant, weight]`, or `[variant]`, which weighs 1.
fn bucket(share: &Value) -> Option<(&Value, u64)> {
    let share = share.as_array()?;
    let variant = share.first().filter(|variant| !variant.is_array() && !variant.is_object())?;
    let weight = match share.get(1) {
        None => 1,
        Some(weight) => {
            let weight = weight.as_f64()?;
            if weight.fract() != 0.0 || weight > MOST_WEIGHT as f64 {
                return None;
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole and bounded")]
            let weight = weight.max(0.0) as u64;
            weight
        }
    };
    Some((variant, weight))
}

const UNSIGNED: u8 = 0 << 5;
const NEGATIVE: u8 = 1 << 5;
const TEXT: u8 = 3 << 5;
const ARRAY: u8 = 4 << 5;

fn cbor_text(bytes: &mut Vec<u8>, text: &str) {
    head(bytes, TEXT, text.len() as u64);
    bytes.extend_from_slice(text.as_bytes());
}

/// The head of a CBOR item (RFC 8949 section 3), as short as it can be.
fn head(bytes: &mut Vec<u8>, major: u8, argument: u64) {
    let [.., b3, b2, b1, b0] = argument.to_be_bytes();
    match argument {
        0..=23 => bytes.push(major | b0),
        24..=0xff => bytes.extend([major | 24, b0]),
        0x100..=0xffff => bytes.extend([major | 25, b1, b0]),
        0x1_0000..=0xffff_ffff => bytes.extend([major | 26, b3, b2, b1, b0]),
        0x1_0000_0000.. => {
            bytes.push(major | 27);
            bytes.extend(argument.to_be_bytes());
        }
    }
}

/// MurmurHash3 x86 32 with seed 0 (Appleby, SMHasher).
fn murmur3(bytes: &[u8]) -> u32 {
    let mixed = |word: u32| word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let (blocks, tail) = bytes.as_chunks::<4>();
    let mut hash: u32 = 0;
    for block in blocks {
        hash ^= mixed(u32::from_le_bytes(*block));
        hash = hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    if !tail.is_empty() {
        hash ^= mixed(tail.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte)));
    }
    #[allow(clippy::cast_possible_truncation, reason = "the algorithm's length is of 32 bits")]
    let length = bytes.len() as u32;
    hash ^= length;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_the_reference() {
        for (text, expected) in
            [("", 0), ("test", 0xba6b_d213), ("Hello, world!", 0xc036_3e43), ("flag-user", 2_410_693_464)]
        {
            assert_eq!(murmur3(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn heads_are_as_short_as_they_can_be() {
        for (argument, expected) in [
            (0, &[0x60][..]),
            (23, &[0x77]),
            (24, &[0x78, 24]),
            (256, &[0x79, 1, 0]),
            (65_536, &[0x7a, 0, 1, 0, 0]),
            (1 << 32, &[0x7b, 0, 0, 0, 1, 0, 0, 0, 0]),
        ] {
            let mut bytes = Vec::new();
            head(&mut bytes, TEXT, argument);
            assert_eq!(bytes, expected, "{argument}");
        }
    }
}
