//! A trip to shared state as the state service is asked: a list of operations in JSON, a list of answers back.

use filters::state::{Answer, Op, Unanswered};

use crate::envoy::Answered;

/// Where a batch is sent.
pub const PATH: &str = "/v1/state";

/// What to send. Strings and numbers always serialize; if they did not, nobody could be asked.
pub fn ask(ops: &[Op]) -> Option<Vec<u8>> {
    serde_json::to_vec(ops).ok()
}

/// What the state service said.
pub fn said(answered: &Answered) -> Result<Vec<Answer>, Unanswered> {
    match answered.status {
        Some(200) => serde_json::from_slice(&answered.body).map_err(|_| Unanswered::Away),
        Some(507) => Err(Unanswered::Full),
        Some(_) | None => Err(Unanswered::Away),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        for (status, body, expected) in [
            (Some(200), r#"["released","seen"]"#, Ok(vec![Answer::Released, Answer::Seen])),
            (Some(200), "<html>", Err(Unanswered::Away)),
            (Some(200), "", Err(Unanswered::Away)),
            (Some(200), r#"["something_else"]"#, Err(Unanswered::Away)),
            (Some(500), r#"["remembered"]"#, Err(Unanswered::Away)),
            (Some(507), "", Err(Unanswered::Full)),
            (None, "", Err(Unanswered::Away)),
        ] {
            let answered = Answered { status, etag: None, body: body.as_bytes().to_vec() };
            assert_eq!(said(&answered), expected, "{status:?} {body}");
        }
    }
}
