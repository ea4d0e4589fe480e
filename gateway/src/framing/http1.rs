//! Where the messages of an HTTP/1.1 connection begin and end, read more strictly than Pingora reads it.
//!
//! Two readers of one connection must find the same requests in it, or one client's bytes become another's request
//! (request smuggling). Pingora corrects a few malformed messages. This reader sees every byte before Pingora does and says
//! what is wrong with a header ([`Http1::take_flaw`]), or that a body has no certain end ([`Broken`]).

use super::chunked::Chunked;

/// A larger header is refused while it arrives, here and at Envoy. Policies allow 16 KiB by default.
pub(crate) const MOST_HEADER_BYTES: usize = MOST_HEADER_KIB as usize * 1024;
pub(crate) const MOST_HEADER_KIB: u32 = 96;

/// Why nothing more can be read from a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The header is larger than [`MOST_HEADER_BYTES`].
    HeaderTooLarge,
    /// The framing of the body is malformed. So many of the bytes came before it: the request's header, for example.
    Body { after: usize },
}

/// What is wrong with a header that Pingora reads all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// The body has no certain end.
    Framing,
    /// The target has a blank, a fragment, or bytes that are no ASCII.
    Target,
    /// A line ends without a carriage return, or a field is not `name: value`.
    Line,
}

#[derive(Debug)]
enum Part {
    /// Its bytes so far.
    Header(Vec<u8>),
    /// So many bytes of body are to come.
    Length(u64),
    Chunked(Chunked),
    /// What follows is of no known length: the connection ends after it.
    Unframed,
}

/// Reads the framing of one connection.
#[derive(Debug)]
pub(crate) struct Http1 {
    part: Part,
    flaw: Option<Flaw>,
}

impl Http1 {
    pub(crate) fn new() -> Self {
        Self { part: Part::Header(Vec::new()), flaw: None }
    }

    /// The flaw of a header that has arrived since it was last asked.
    pub(crate) fn take_flaw(&mut self) -> Option<Flaw> {
        self.flaw.take()
    }

    /// Bytes of a header whose end has not arrived yet.
    pub(crate) fn unfinished_header(&self) -> usize {
        match &self.part {
            Part::Header(bytes) => bytes.len(),
            Part::Length(_) | Part::Chunked(_) | Part::Unframed => 0,
        }
    }

    /// Takes the bytes that have arrived.
    pub(crate) fn read(&mut self, all: &[u8]) -> Result<(), Broken> {
        let mut bytes = all;
        while !bytes.is_empty() {
            bytes = match &mut self.part {
                Part::Unframed => return Ok(()),
                Part::Length(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= u64::try_from(taken).unwrap_or(*left);
                    if *left == 0 {
                        self.part = Part::Header(Vec::new());
                    }
                    bytes.get(taken..).unwrap_or_default()
                }
                Part::Chunked(chunked) => {
                    let rest = chunked.read(bytes).ok_or(Broken::Body { after: all.len() - bytes.len() })?;
                    if chunked.is_done() {
                        self.part = Part::Header(Vec::new());
                    }
                    rest
                }
                Part::Header(before) => {
                    if before.is_empty() {
                        // Empty lines before a request are ignored (RFC 9112 section 2.2).
                        let begins = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
                        bytes = bytes.get(begins.unwrap_or(bytes.len())..).unwrap_or_default();
                    }
                    // The empty line may have begun in what came before.
                    let seen = before.len();
                    before.extend_from_slice(bytes);
                    let Some(end) = header_end(before, seen.saturating_sub(3)) else {
                        if before.len() > MOST_HEADER_BYTES {
                            return Err(Broken::HeaderTooLarge);
                        }
                        return Ok(());
                    };
                    if end > MOST_HEADER_BYTES {
                        return Err(Broken::HeaderTooLarge);
                    }
                    let header = Header::read(before.get(..end).unwrap_or_default());
                    self.flaw = self.flaw.or(header.flaw);
                    self.part = header.body;
                    bytes.get(end - seen..).unwrap_or_default()
                }
            };
        }
        Ok(())
    }
}

/// The length of the header with the empty line at its end, if that is there.
fn header_end(bytes: &[u8], from: usize) -> Option<usize> {
    let rest = bytes.get(from..)?;
    let mut ends = rest.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(end, _)| end);
    ends.find_map(|end| match rest.get(end + 1..)? {
        [b'\n', ..] => Some(from + end + 2),
        [b'\r', b'\n', ..] => Some(from + end + 3),
        _ => None,
    })
}

/// What a header says of the body after it.
struct Header {
    body: Part,
    flaw: Option<Flaw>,
}

impl Header {
    fn read(header: &[u8]) -> Self {
        let mut flaw = None;
        let mut find = |found: Flaw| {
            flaw.get_or_insert(found);
        };
        let header = header.strip_suffix(b"\n").unwrap_or(header);
        let mut lines = header.split(|byte| *byte == b'\n').map(|line| match line {
            [line @ .., b'\r'] => (line, true),
            line => (line, false),
        });
        let (first, is_whole) = lines.next().unwrap_or_default();
        if !is_request_line(first) {
            find(Flaw::Target);
        }
        if !is_whole {
            find(Flaw::Line);
        }
        let (mut codings, mut length) = (Vec::new(), Ok(None));
        for (line, is_whole) in lines {
            if !is_whole {
                find(Flaw::Line);
            }
            if line.is_empty() {
                continue;
            }
            let Some((name, value)) = field(line) else {
                find(Flaw::Line);
                continue;
            };
            if name.eq_ignore_ascii_case(b"transfer-encoding") {
                codings.push(value);
            } else if name.eq_ignore_ascii_case(b"content-length") {
                length = length.and_then(|before| one_length(before, value));
            }
        }
        let body = match (codings.as_slice(), length) {
            ([], Ok(length)) => match length {
                None | Some(0) => Part::Header(Vec::new()),
                Some(length) => Part::Length(length),
            },
            // What one says is certain. A policy's own filter refuses another spelling.
            ([coding], Ok(None)) if coding.to_ascii_lowercase().ends_with(b"chunked") => {
                Part::Chunked(Chunked::new())
            }
            (_, _) => {
                find(Flaw::Framing);
                Part::Unframed
            }
        };
        Self { body, flaw }
    }
}

/// Whether a line is a method, a target without blanks and fragment, and a version, with one space between them.
fn is_request_line(line: &[u8]) -> bool {
    let mut parts = line.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let is_target = |byte: &u8| byte.is_ascii_graphic() && *byte != b'#';
    !method.is_empty() && !target.is_empty() && target.iter().all(is_target) && version.starts_with(b"HTTP/")
}

/// A field's name and its value without the blanks around it.
pub(super) fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (line.get(..colon)?, line.get(colon + 1..)?);
    let is_value = |byte: &u8| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..);
    (!name.is_empty() && name.iter().all(is_token) && value.iter().all(is_value))
        .then(|| (name, value.trim_ascii()))
}

/// A byte of a token (RFC 9110 section 5.6.2).
fn is_token(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte)
}

/// The length that a field says, and those before it. They may be repeated (RFC 9110 section 8.6).
fn one_length(before: Option<u64>, value: &[u8]) -> Result<Option<u64>, ()> {
    value.split(|byte| *byte == b',').try_fold(before, |before, part| {
        let part = part.trim_ascii();
        let is_number = !part.is_empty() && part.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(part).ok().filter(|_| is_number).and_then(|part| part.parse().ok());
        match (before, number) {
            (Some(before), Some(number)) if before != number => Err(()),
            (_, Some(number)) => Ok(Some(number)),
            (_, None) => Err(()),
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(lines: &str) -> String {
        format!("POST /v1 HTTP/1.1\r\nhost: a\r\n{lines}\r\n")
    }

    /// Reads it in pieces, and says what became of it: the flaws, and how it ended.
    fn read(connection: &[u8], piece: usize) -> (Vec<Flaw>, Result<usize, Broken>) {
        let mut reader = Http1::new();
        let mut flaws = Vec::new();
        for bytes in connection.chunks(piece) {
            let outcome = reader.read(bytes);
            flaws.extend(reader.take_flaw());
            if let Err(broken) = outcome {
                return (flaws, Err(broken));
            }
        }
        (flaws, Ok(reader.unfinished_header()))
    }

    #[test]
    fn what_pingora_corrects_is_a_flaw() {
        let get = |target: &str| format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n");
        for (connection, expected) in [
            (header(""), None),
            (header("content-length: 2\r\n") + "{}" + &header(""), None),
            (header("content-length: 2\r\ncontent-length: 2, 2\r\n") + "{}" + &header(""), None),
            (header("transfer-encoding: chunked\r\n") + "2\r\n{}\r\n0\r\n\r\n" + &header(""), None),
            (header("Transfer-Encoding:  Chunked \r\n") + "0\r\n\r\n", None),
            ("\r\n\r\n".to_owned() + &header(""), None),
            (header("transfer-encoding: chunked\r\ncontent-length: 2\r\n"), Some(Flaw::Framing)),
            (header("content-length: 0\r\ntransfer-encoding: chunked\r\n"), Some(Flaw::Framing)),
            (header("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n"), Some(Flaw::Framing)),
            (header("transfer-encoding: chunked\r\ntransfer-encoding:\r\n"), Some(Flaw::Framing)),
            (header("transfer-encoding: identity\r\n"), Some(Flaw::Framing)),
            (header("content-length: 1\r\ncontent-length: 2\r\n"), Some(Flaw::Framing)),
            (header("content-length: +1\r\n"), Some(Flaw::Framing)),
            (header("content-length: 18446744073709551616\r\n"), Some(Flaw::Framing)),
            (get("/a b"), Some(Flaw::Target)),
            (get("/a\tb"), Some(Flaw::Target)),
            (get("/a?x y"), Some(Flaw::Target)),
            (get("/a#b"), Some(Flaw::Target)),
            (get("/a?x#b"), Some(Flaw::Target)),
            (get("/\u{e4}"), Some(Flaw::Target)),
            ("GET  /a HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), Some(Flaw::Target)),
            ("GET /a HTTP/1.1\nhost: a\r\n\r\n".to_owned(), Some(Flaw::Line)),
            ("GET /a HTTP/1.1\r\nhost: a\n\r\n".to_owned(), Some(Flaw::Line)),
            (header("x : 1\r\n"), Some(Flaw::Line)),
            (header("x\r\n"), Some(Flaw::Line)),
            (header("x: a\r\n folded\r\n"), Some(Flaw::Line)),
        ] {
            for piece in [1, 7, usize::MAX] {
                let (flaws, end) = read(connection.as_bytes(), piece);
                assert_eq!(flaws.first().copied(), expected, "{connection:?} in pieces of {piece}");
                assert!(end.is_ok(), "{connection:?}");
            }
        }
    }

    #[test]
    fn a_header_may_end_with_bare_line_feeds_and_is_flawed() {
        let (flaws, end) = read(b"GET /a HTTP/1.1\r\nhost: a\n\nGET /b HTTP/1.1\r\nhost: a\r\n\r\n", 5);
        assert_eq!((flaws.as_slice(), end), ([Flaw::Line].as_slice(), Ok(0)));
    }

    #[test]
    fn a_malformed_body_spoils_no_header() {
        let header = header("transfer-encoding: chunked\r\n");
        let connection = header.clone() + "x\r\n";
        assert_eq!(read(connection.as_bytes(), usize::MAX).1, Err(Broken::Body { after: header.len() }));
        assert_eq!(read(connection.as_bytes(), 1).1, Err(Broken::Body { after: 0 }));
    }

    #[test]
    fn a_header_has_a_bound() {
        let field = |length| header(&format!("x: {}\r\n", "a".repeat(length)));
        let most = MOST_HEADER_BYTES - field(0).len();
        for (length, expected) in [(most, Ok(0)), (most + 1, Err(Broken::HeaderTooLarge))] {
            for piece in [1000, usize::MAX] {
                assert_eq!(read(field(length).as_bytes(), piece).1, expected, "{length} in {piece}");
            }
        }
        let unfinished = "GET / HTTP/1.1\r\nx: ".to_owned() + &"a".repeat(500);
        assert_eq!(read(unfinished.as_bytes(), 100).1, Ok(unfinished.len()));
    }

    proptest! {
        /// How the network cuts a connection into pieces changes nothing.
        #[test]
        fn pieces_change_nothing(
            bytes in proptest::collection::vec(prop_oneof![
                Just(b"POST /v1 HTTP/1.1\r\n".to_vec()), Just(b"content-length: 3\r\n".to_vec()),
                Just(b"transfer-encoding: chunked\r\n".to_vec()), Just(b"\r\n".to_vec()), Just(b"3\r\nabc\r\n".to_vec()),
                Just(b"0\r\n\r\n".to_vec()), Just(b"abc".to_vec()), Just(b"\n".to_vec()), Just(b"\r".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..4),
            ], 0..20),
            piece in 1_usize..20,
        ) {
            let bytes = bytes.concat();
            let (flaws, end) = read(&bytes, 1);
            let (others, other_end) = read(&bytes, piece);
            let without_place = |end: Result<usize, Broken>| end.map_err(|broken| broken == Broken::HeaderTooLarge);
            prop_assert_eq!(without_place(end), without_place(other_end));
            // Of the flaws that arrive in one piece the first is kept.
            prop_assert_eq!(flaws.first(), others.first());
        }
    }
}
