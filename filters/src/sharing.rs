//! Which of a route's upstreams serves a request: by weight alone, or always the same one for the same sender.
//!
//! Who sticks is assigned by weighted rendezvous hashing (Thaler and Ravishankar 1998; its weighted form, Schindelhauer
//! and Schomaker 2005): every instance assigns alike without asking anybody, and a weight that grows draws senders to
//! its share and moves no other.

use crate::crypto::sha256;
use crate::policy::Share;

/// The share of one draw. `draw` is random.
pub(crate) fn by_chance(shares: &[Share], draw: u32) -> Option<usize> {
    let sum: u32 = shares.iter().map(|share| share.weight).sum();
    let mut left = draw.checked_rem(sum)?;
    shares.iter().position(|share| match left.checked_sub(share.weight) {
        None => true,
        Some(rest) => {
            left = rest;
            false
        }
    })
}

/// The share of a subject, among those that go by `name`.
pub(crate) fn of_subject(shares: &[Share], name: &str, subject: &str) -> Option<usize> {
    let mut nearest: Option<(usize, u64, u64)> = None;
    for (position, share) in shares.iter().enumerate().filter(|(_, share)| share.weight > 0) {
        let (distance, weight) = (distance(name, subject, share.key()), u64::from(share.weight));
        // Of distance / weight the least, without dividing: 38 bits by 14.
        let is_nearer =
            nearest.is_none_or(|(_, least, of)| distance.saturating_mul(of) < least.saturating_mul(weight));
        if is_nearer {
            nearest = Some((position, distance, weight));
        }
    }
    nearest.map(|(position, _, _)| position)
}

/// How far the subject is from the share: distributed exponentially, so that the nearest by weight is as likely as its
/// weight.
fn distance(name: &str, subject: &str, share: &str) -> u64 {
    // Lengths first: no two subjects can be written alike.
    let text = format!("{}/{name}/{}/{share}/{subject}", name.len(), share.len());
    let digest = sha256(text.as_bytes());
    let drawn = digest.iter().take(8).fold(0_u64, |drawn, byte| drawn << 8 | u64::from(*byte));
    minus_log2(drawn)
}

/// The negative binary logarithm of `drawn` / 2^64, with 32 bits after the point. In whole numbers, so that every data
/// plane computes the same.
fn minus_log2(drawn: u64) -> u64 {
    let drawn = drawn.max(1);
    let zeros = drawn.leading_zeros();
    let mut mantissa = drawn << zeros;
    let mut fraction: u64 = 0;
    for _ in 0..32 {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        fraction <<= 1;
        match u64::try_from(square) {
            Ok(below_two) => mantissa = below_two,
            Err(_) => {
                fraction |= 1;
                mantissa = u64::try_from(square >> 1).unwrap_or(u64::MAX);
            }
        }
    }
    ((u64::from(zeros) + 1) << 32) - fraction
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shares(weights: &[u32]) -> Vec<Share> {
        let share = |(position, weight): (usize, &u32)| Share {
            upstream: format!("u{position}"),
            weight: *weight,
            variant: None,
        };
        weights.iter().enumerate().map(share).collect()
    }

    #[test]
    fn logarithms_are_right() {
        for (drawn, expected) in
            [(u64::MAX, 0.0), (1 << 63, 1.0), (1 << 62, 2.0), (1, 64.0), (0, 64.0), (3 << 61, 1.415_037_5)]
        {
            let told = minus_log2(drawn) as f64 / 2_f64.powi(32);
            assert!((told - expected).abs() < 1e-6, "{drawn}: {told}");
        }
    }

    #[test]
    fn chance_goes_by_weight() {
        let shares = shares(&[3, 0, 1]);
        for (draw, expected) in [(0, 0), (2, 0), (3, 2), (4, 0), (7, 2), (u32::MAX, 2)] {
            assert_eq!(by_chance(&shares, draw), Some(expected), "{draw}");
        }
        assert_eq!(by_chance(&[], 1), None);
    }

    #[test]
    fn subjects_are_shared_out_by_weight() {
        for weights in [&[95, 5][..], &[1, 1, 2], &[0, 1], &[10_000, 10_000]] {
            let shares = shares(weights);
            let mut counts = vec![0_u32; shares.len()];
            for subject in 0..20_000 {
                counts[of_subject(&shares, "route", &format!("user-{subject}")).unwrap()] += 1;
            }
            let sum: u32 = weights.iter().sum();
            for (count, weight) in counts.iter().zip(weights) {
                let (got, wanted) = (f64::from(*count) / 20_000.0, f64::from(*weight) / f64::from(sum));
                assert!((got - wanted).abs() < 0.012, "{weights:?}: {counts:?}");
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// A canary that grows takes on senders and sends none elsewhere.
        #[test]
        fn a_weight_that_grows_moves_senders_to_its_share_alone(
            weights in prop::collection::vec(0_u32..10_000, 1..6), grown in 0_usize..6, more in 1_u32..5_000,
            subject in ".{0,20}",
        ) {
            let grown = grown % weights.len();
            let before = of_subject(&shares(&weights), "n", &subject);
            let mut weights = weights;
            weights[grown] += more;
            let after = of_subject(&shares(&weights), "n", &subject);
            prop_assert!(after == before || after == Some(grown));
        }

        #[test]
        fn no_input_overflows(weights in prop::collection::vec(0_u32..=10_000, 0..4), name in ".*", subject in ".*", draw: u32) {
            let shares = shares(&weights);
            let some = weights.iter().any(|weight| *weight > 0);
            prop_assert_eq!(of_subject(&shares, &name, &subject).is_some(), some);
            prop_assert_eq!(by_chance(&shares, draw).is_some(), some);
        }
    }
}
