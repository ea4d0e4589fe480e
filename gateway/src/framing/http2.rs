//! How many bytes of an unfinished header an HTTP/2 connection holds (RFC 9113 section 4.1).

/// What a client sends first (section 3.4).
const PREFACE_BYTES: u32 = 24;
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Reads the frames of one connection.
#[derive(Debug)]
pub(crate) struct Http2 {
    /// So many bytes are of no interest.
    skip: u32,
    frame: Vec<u8>,
    unfinished: usize,
    /// The frame that arrives now ends its header.
    ends: bool,
}

impl Http2 {
    pub(crate) fn new() -> Self {
        Self { skip: PREFACE_BYTES, frame: Vec::new(), unfinished: 0, ends: false }
    }

    /// Bytes of a header whose end has not arrived yet.
    pub(crate) fn unfinished_header(&self) -> usize {
        self.unfinished
    }

    /// Takes the bytes that have arrived.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
            self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
            bytes = bytes.get(skipped..).unwrap_or_default();
            if self.skip == 0 && self.ends {
                (self.unfinished, self.ends) = (0, false);
            }
            let taken = FRAME_HEADER_BYTES.saturating_sub(self.frame.len()).min(bytes.len());
            if self.skip > 0 || taken == 0 {
                continue;
            }
            self.frame.extend_from_slice(bytes.get(..taken).unwrap_or_default());
            bytes = bytes.get(taken..).unwrap_or_default();
            if let [high, middle, low, kind, flags, ..] = *self.frame
                && self.frame.len() == FRAME_HEADER_BYTES
            {
                self.skip = u32::from_be_bytes([0, high, middle, low]);
                if matches!(kind, HEADERS | CONTINUATION) {
                    // Counted before it arrives: the length is the client's word that it will.
                    self.unfinished += FRAME_HEADER_BYTES + usize::try_from(self.skip).unwrap_or(0);
                    self.ends = flags & END_HEADERS != 0;
                }
                self.frame.clear();
                if self.skip == 0 && self.ends {
                    (self.unfinished, self.ends) = (0, false);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut frame = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        frame.resize(FRAME_HEADER_BYTES + usize::from(length), 0xff);
        frame
    }

    #[test]
    fn headers_are_unfinished_until_their_end() {
        let preface = vec![0; 24];
        let (settings, data) = (frame(4, 0, 6), frame(0, 1, 200));
        for (frames, expected) in [
            (vec![&preface], 0),
            (vec![&preface, &settings, &data], 0),
            (vec![&preface, &frame(HEADERS, END_HEADERS, 50), &data], 0),
            (vec![&preface, &settings, &frame(HEADERS, 0, 50)], 59),
            (vec![&preface, &frame(HEADERS, 0, 50), &frame(CONTINUATION, 0, 30)], 98),
            (vec![&preface, &frame(HEADERS, 0, 50), &frame(CONTINUATION, 0, 0)], 68),
            (vec![&preface, &frame(HEADERS, 0, 50), &frame(CONTINUATION, END_HEADERS, 30)], 0),
            (vec![&preface, &frame(HEADERS, 0, 50), &frame(CONTINUATION, END_HEADERS, 0), &data], 0),
            (vec![&preface, &frame(HEADERS, END_HEADERS, 50)[..20].to_vec()], 59),
        ] {
            let bytes: Vec<u8> = frames.into_iter().flatten().copied().collect();
            for piece in [1, 10, usize::MAX] {
                let mut reader = Http2::new();
                bytes.chunks(piece).for_each(|bytes| reader.read(bytes));
                assert_eq!(reader.unfinished_header(), expected, "{bytes:?} in pieces of {piece}");
            }
        }
    }
}
