//! Whether a client takes gzip: `Accept-Encoding` (RFC 9110 section 12.5.3), as Envoy's compressor reads it.
//!
//! Where a field can be read in two ways, the answer is that of Envoy: a name counts only in lower case, as everybody
//! writes it, and a weight is any number. What cannot be read at all is no wish, and who wishes nothing gets plain bytes,
//! which every client takes.

/// Whether an answer may be sent as gzip, and the client likes that no less than a plain one.
pub(super) fn takes_gzip<'v>(lines: impl Iterator<Item = &'v [u8]>) -> bool {
    let text = lines.filter_map(|line| std::str::from_utf8(line).ok());
    let wishes: Vec<Wish> = text.flat_map(|line| line.split(',')).filter_map(Wish::read).collect();
    if wishes.iter().any(|wish| wish.what == What::Gzip && wish.weight == 0.0) {
        return false;
    }
    let mut choice = Wish { what: What::Plain, weight: 0.0 };
    for wish in wishes {
        let is_as_good = wish.what == What::Gzip && wish.weight == choice.weight;
        if wish.weight > choice.weight || is_as_good {
            choice = wish;
        }
    }
    choice.weight > 0.0
        && match choice.what {
            What::Gzip | What::Any => true,
            What::Plain => false,
        }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Gzip,
    Plain,
    Any,
}

#[derive(Clone, Copy, Debug)]
struct Wish {
    what: What,
    weight: f32,
}

impl Wish {
    /// Of `gzip;q=0.5`; nothing for a coding that is none of ours.
    fn read(member: &str) -> Option<Self> {
        let (name, parameters) = match member.split_once(';') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (member, None),
        };
        let what = match name.trim() {
            "gzip" => What::Gzip,
            "identity" => What::Plain,
            "*" => What::Any,
            _ => return None,
        };
        let weight = match parameters.and_then(|parameters| parameters.split_once('=')) {
            Some((name, weight)) if name.trim().eq_ignore_ascii_case("q") => weight.trim().parse().ok()?,
            Some(_) | None => 1.0,
        };
        Some(Self { what, weight })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_takes_gzip() {
        let cases: [(&[&str], bool); 32] = [
            (&[], false),
            (&[""], false),
            (&["gzip"], true),
            (&["gzip, deflate, br, zstd"], true),
            (&["br;q=1.0, gzip;q=0.2"], true),
            (&["deflate", "gzip"], true),
            (&["br, zstd"], false),
            (&["*"], true),
            (&["br, *;q=0.1"], true),
            (&["*;q=0"], false),
            (&["gzip, *;q=0"], true),
            (&["gzip;q=0"], false),
            (&["gzip;q=0.000"], false),
            (&["gzip;q=0, *"], false),
            (&["*, gzip;q=0"], false),
            (&["identity"], false),
            (&["identity;q=0"], false),
            (&["identity;q=0, gzip"], true),
            (&["identity;q=0, *"], true),
            (&["gzip, identity"], true),
            (&["identity, gzip"], true),
            (&["identity;q=0.5, gzip;q=0.4"], false),
            (&["identity;q=0.4, gzip;q=0.5"], true),
            (&["identity, *;q=0.5"], false),
            (&[" gzip ; Q = 0.5 "], true),
            (&["gzip;q=high"], false),
            (&["gzip;q="], false),
            (&["gzip;q=-1"], false),
            (&["gzip;level=9"], true),
            (&["x-gzip, gzipped"], false),
            (&["GZIP"], false),
            (&[",,gzip,,"], true),
        ];
        for (lines, expected) in cases {
            assert_eq!(takes_gzip(lines.iter().map(|line| line.as_bytes())), expected, "{lines:?}");
        }
        assert!(!takes_gzip([b"\xff, gzip".as_slice()].into_iter()));
    }

    fn member() -> impl Strategy<Value = String> {
        let name = prop_oneof!["gzip", "identity", "\\*", "br", "[a-z*]{0,4}"];
        let weight = prop_oneof![
            Just(String::new()),
            "; ?q=(0(\\.[0-9]{0,3})?|1(\\.0{0,3})?)",
            ";[ -~]{0,8}",
        ];
        (name, weight).prop_map(|(name, weight)| name + &weight)
    }

    proptest! {
        /// Whatever is sent: who names no coding of ours gets plain bytes, and so does who refuses gzip.
        #[test]
        fn nobody_gets_what_he_refuses(members in proptest::collection::vec(member(), 0..6), noise in proptest::collection::vec(any::<u8>(), 0..40)) {
            let line = members.join(",");
            let takes = takes_gzip([line.as_bytes(), &noise].into_iter());
            prop_assert_eq!(takes_gzip([line.as_bytes()].into_iter()), takes_gzip(members.iter().map(|member| member.as_bytes())));
            if takes {
                let sent = format!("{line},{}", String::from_utf8_lossy(&noise));
                prop_assert!(sent.contains("gzip") || sent.contains('*'));
            }
            let refused = format!("{line},gzip;q=0");
            prop_assert!(!takes_gzip([refused.as_bytes()].into_iter()));
            // Gzip at the highest weight is always taken, unless it is refused as well.
            let refuses = members.iter().filter_map(|member| Wish::read(member)).any(|wish| wish.what == What::Gzip && wish.weight == 0.0);
            let over = members.iter().filter_map(|member| Wish::read(member)).any(|wish| wish.weight > 1.0);
            let wanted = format!("{line},gzip");
            prop_assert!(refuses || over || takes_gzip([wanted.as_bytes()].into_iter()));
        }
    }
}
