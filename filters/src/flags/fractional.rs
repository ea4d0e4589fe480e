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

/// What decides, and the shares. The first argument decides if it is no list; otherwise the flag and the sender do.
fn bucket_by<'v>(values: &'v [Cow<'v, Value>], facts: &Value) -> Option<(Vec<u8>, &'v [Cow<'v, Value>])> {
    let (first, rest) = values.split_first()?;
    let mut bytes = Vec::new();
    match &**first {
        Value::Null => None,
        Value::Array(_) => {
            let sender = facts.get("targetingKey")?.as_str().filter(|key| !key.is_empty())?;
            let flag = facts.get("$flagd").and_then(|own| own.get("flagKey")).and_then(Value::as_str);
            head(&mut bytes, ARRAY, 2);
            cbor_text(&mut bytes, flag.unwrap_or_default());
            cbor_text(&mut bytes, sender);
            Some((bytes, values))
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {
            cbor(&mut bytes, first);
            (!rest.is_empty()).then_some((bytes, rest))
        }
    }
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
const MAP: u8 = 5 << 5;
const TWO_TO_64: f64 = 18_446_744_073_709_551_616.0;

/// One way to write each value (RFC 8949 section 4.2): numbers as short as they can be, short names first.
fn cbor(bytes: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Null => bytes.push(0xf6),
        Value::Bool(value) => bytes.push(if *value { 0xf5 } else { 0xf4 }),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(number), _) => head(bytes, UNSIGNED, number),
            (None, Some(number)) => head(bytes, NEGATIVE, !number.cast_unsigned()),
            (None, None) => cbor_float(bytes, number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => cbor_text(bytes, text),
        Value::Array(items) => {
            head(bytes, ARRAY, items.len() as u64);
            items.iter().for_each(|item| cbor(bytes, item));
        }
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| (name.len(), *name));
            head(bytes, MAP, fields.len() as u64);
            for (name, field) in fields {
                cbor_text(bytes, name);
                cbor(bytes, field);
            }
        }
    }
}

/// As short as it can be without another worth.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "checked before, or seen by what comes back"
)]
fn cbor_float(bytes: &mut Vec<u8>, number: f64) {
    match number.fract() == 0.0 {
        true if (0.0..TWO_TO_64).contains(&number) => return head(bytes, UNSIGNED, number as u64),
        true if (-TWO_TO_64 / 2.0..0.0).contains(&number) => {
            return head(bytes, NEGATIVE, !(number as i64).cast_unsigned());
        }
        true | false => {}
    }
    let short = number as f32;
    if f64::from(short).to_bits() != number.to_bits() {
        bytes.push(0xfb);
        bytes.extend(number.to_be_bytes());
    } else if let Some(shorter) = half(short) {
        bytes.push(0xf9);
        bytes.extend(shorter.to_be_bytes());
    } else {
        bytes.push(0xfa);
        bytes.extend(short.to_be_bytes());
    }
}

/// The bits of the number in half precision, if it is one there: 5 of its exponent, 10 of its fraction (IEEE 754).
#[allow(clippy::cast_possible_truncation, reason = "of each, those bits are there and no others")]
fn half(number: f32) -> Option<u16> {
    let bits = number.to_bits();
    let (sign, biased, fraction) = ((bits >> 16) as u16 & 0x8000, bits >> 23 & 0xff, bits & 0x7f_ffff);
    match biased {
        // 2^-14 to 2^15.
        113..=142 => (fraction.trailing_zeros() >= 13)
            .then_some(sign | ((biased - 112) << 10) as u16 | (fraction >> 13) as u16),
        // Below, a multiple of 2^-24.
        103..=112 => {
            let (whole, shift) = (fraction | 0x80_0000, 126 - biased);
            (whole.trailing_zeros() >= shift).then_some(sign | (whole >> shift) as u16)
        }
        _ => None,
    }
}

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
    fn numbers_are_as_short_as_they_can_be() {
        // RFC 8949, appendix A.
        for (number, expected) in [
            (1.0, &[0x01][..]),
            (-10.0, &[0x29]),
            (1.1, &[0xfb, 0x3f, 0xf1, 0x99, 0x99, 0x99, 0x99, 0x99, 0x9a]),
            (1.5, &[0xf9, 0x3e, 0x00]),
            (-4.1, &[0xfb, 0xc0, 0x10, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66]),
            (-4.5, &[0xf9, 0xc4, 0x80]),
            (5.960_464_477_539_063e-8, &[0xf9, 0x00, 0x01]),
            (0.000_061_035_156_25, &[0xf9, 0x04, 0x00]),
            (3.402_823_466_385_288_6e38, &[0xfa, 0x7f, 0x7f, 0xff, 0xff]),
            (0.1_f32.into(), &[0xfa, 0x3d, 0xcc, 0xcc, 0xcd]),
        ] {
            let mut bytes = Vec::new();
            cbor(&mut bytes, &Value::from(number));
            assert_eq!(bytes, expected, "{number}");
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
