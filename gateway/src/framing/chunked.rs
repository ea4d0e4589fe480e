//! A chunked body (RFC 9112 section 7.1), read to the letter.

use super::http1::field;

/// More bytes of extensions after one size are refused. Nobody needs them.
const MOST_EXTENSION_BYTES: usize = 256;
/// More bytes of trailers are refused.
const MOST_TRAILER_BYTES: usize = 8 * 1024;
/// A size of more digits is refused.
const MOST_DIGITS: u32 = 16;

#[derive(Debug)]
enum At {
    Size { digits: u32, size: u64 },
    Extension { size: u64, bytes: usize },
    SizeLineFeed { size: u64 },
    Data { left: u64 },
    DataReturn,
    DataLineFeed,
    Trailer,
    TrailerLineFeed,
    Done,
}

/// Reads one body.
#[derive(Debug)]
pub(super) struct Chunked {
    at: At,
    /// The trailer line that is arriving.
    line: Vec<u8>,
    trailer_bytes: usize,
}

impl Chunked {
    pub(super) fn new() -> Self {
        Self { at: At::Size { digits: 0, size: 0 }, line: Vec::new(), trailer_bytes: 0 }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.at, At::Done)
    }

    /// Takes what belongs to the body and gives back the rest; `None`: it is malformed.
    pub(super) fn read<'b>(&mut self, mut bytes: &'b [u8]) -> Option<&'b [u8]> {
        while let Some((byte, rest)) = bytes.split_first() {
            if let At::Data { left } = &mut self.at {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                *left = left.checked_sub(u64::try_from(taken).ok()?)?;
                if *left == 0 {
                    self.at = At::DataReturn;
                }
                bytes = bytes.get(taken..)?;
                continue;
            }
            if self.is_done() {
                return Some(bytes);
            }
            self.at = self.next(*byte)?;
            bytes = rest;
        }
        Some(bytes)
    }

    fn next(&mut self, byte: u8) -> Option<At> {
        Some(match (&self.at, byte) {
            (At::Size { digits, size }, _) if byte.is_ascii_hexdigit() && *digits < MOST_DIGITS => {
                let digit = char::from(byte).to_digit(16)?;
                At::Size { digits: digits + 1, size: size.checked_mul(16)?.checked_add(digit.into())? }
            }
            (At::Size { digits: 1.., size }, b'\r') => At::SizeLineFeed { size: *size },
            (At::Size { digits: 1.., size }, b';') => At::Extension { size: *size, bytes: 1 },
            (At::Extension { size, .. }, b'\r') => At::SizeLineFeed { size: *size },
            (At::Extension { size, bytes }, b'\t' | 0x20..=0x7e | 0x80..)
                if *bytes < MOST_EXTENSION_BYTES =>
            {
                At::Extension { size: *size, bytes: bytes + 1 }
            }
            (At::SizeLineFeed { size: 0 }, b'\n') => At::Trailer,
            (At::SizeLineFeed { size }, b'\n') => At::Data { left: *size },
            (At::DataReturn, b'\r') => At::DataLineFeed,
            (At::DataLineFeed, b'\n') => At::Size { digits: 0, size: 0 },
            (At::Trailer, b'\r') => At::TrailerLineFeed,
            (At::Trailer, _) if self.trailer_bytes < MOST_TRAILER_BYTES => {
                self.trailer_bytes += 1;
                self.line.push(byte);
                At::Trailer
            }
            (At::TrailerLineFeed, b'\n') if self.line.is_empty() => At::Done,
            (At::TrailerLineFeed, b'\n') => {
                field(&self.line)?;
                self.line.clear();
                At::Trailer
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies() {
        let long = |bytes| format!("1;{}\r\nx\r\n0\r\n\r\n", "a".repeat(bytes));
        let trailers = |bytes| format!("0\r\nx: {}\r\n\r\n", "a".repeat(bytes));
        for (body, expected) in [
            ("0\r\n\r\n", Some("")),
            ("0\r\n\r\nGET / HTTP/1.1\r\n", Some("GET / HTTP/1.1\r\n")),
            ("2\r\n{}\r\n0\r\n\r\n", Some("")),
            ("A\r\n0123456789\r\n00\r\n\r\n", Some("")),
            ("0000000000000002\r\n{}\r\n0\r\n\r\n", Some("")),
            ("2;a=b;c=\"d e\"\r\n{}\r\n0;x\r\n\r\n", Some("")),
            ("0\r\nx: 1\r\ny:2\r\n\r\n", Some("")),
            (&long(MOST_EXTENSION_BYTES - 1), Some("")),
            (&trailers(MOST_TRAILER_BYTES - 3), Some("")),
            (&long(MOST_EXTENSION_BYTES), None),
            (&trailers(MOST_TRAILER_BYTES - 2), None),
            ("\r\n", None),
            ("\r\n0\r\n\r\n", None),
            ("00000000000000002\r\n{}\r\n", None),
            ("2\n{}\r\n0\r\n\r\n", None),
            ("2;a\n{}\r\n0\r\n\r\n", None),
            ("2;a\0\r\n{}\r\n0\r\n\r\n", None),
            ("2 \r\n{}\r\n0\r\n\r\n", None),
            ("2 ;a\r\n{}\r\n0\r\n\r\n", None),
            (" 2\r\n{}\r\n", None),
            ("0x2\r\n{}\r\n", None),
            ("-2\r\n", None),
            ("2\r{}\r\n", None),
            ("2\r\n{}0\r\n\r\n", None),
            ("2\r\n{}\n0\r\n\r\n", None),
            ("2\r\n{}x\r\n0\r\n\r\n", None),
            ("0\r\n\n", None),
            ("0\r\nGET / HTTP/1.1\r\n\r\n", None),
            ("0\r\nx : 1\r\n\r\n", None),
            ("0\r\nx: 1\n\r\n", None),
            ("0\r\n: 1\r\n\r\n", None),
            ("0\r\nx: a\r\n b\r\n\r\n", None),
        ] {
            let mut chunked = Chunked::new();
            let rest = chunked.read(body.as_bytes()).filter(|_| chunked.is_done());
            assert_eq!(rest, expected.map(str::as_bytes), "{body:?}");
        }
    }
}
