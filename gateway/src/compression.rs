//! Answers compressed as they pass: gzip, chunk by chunk, each of which leaves as soon as it has come.
//!
//! Owns the bytes; whether an answer is compressed the policy decides ([`filters::compression`]).

use std::io::Write as _;

use async_trait::async_trait;
use bytes::Bytes;
use filters::compression::Coding;
use filters::filter::Headers;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, TRANSFER_ENCODING};
use pingora::http::ResponseHeader;
use pingora::modules::http::{HttpModule, HttpModuleBuilder, Module};
use pingora::prelude::*;

/// How hard it is tried, of 9: what more costs in time it hardly saves in bytes. Envoy tries as hard.
pub(crate) const LEVEL: u32 = 3;

/// The compression of one answer, in the last of Pingora's phases, which alone is told how the answer ends.
pub(crate) struct Compression {
    coding: Coding,
    /// While the answer is compressed; about 260 KiB.
    gzip: Option<GzEncoder<Vec<u8>>>,
}

impl Compression {
    /// Says what becomes of the answer whose header comes next.
    pub(crate) fn decide(session: &mut Session, coding: Coding) {
        if let Some(own) = session.downstream_modules_ctx.get_mut::<Self>() {
            own.coding = coding;
        }
    }

    /// What has come, compressed, and nothing held back.
    fn compress(&mut self, chunk: &[u8]) -> Result<Option<Bytes>> {
        let Some(gzip) = &mut self.gzip else { return Ok(None) };
        gzip.write_all(chunk).and_then(|()| gzip.flush()).map_err(failed)?;
        Ok(Some(std::mem::take(gzip.get_mut()).into()))
    }

    /// The end of the answer, unless that has left already.
    fn finish(&mut self) -> Result<Option<Bytes>> {
        let rest = self.gzip.take().map(GzEncoder::finish).transpose().map_err(failed)?;
        Ok(rest.map(Bytes::from))
    }
}

/// The memory that is written to takes everything, so this is the library's fault.
fn failed(error: std::io::Error) -> Box<Error> {
    Error::because(ErrorType::InternalError, "compressing an answer", error)
}

#[async_trait]
impl HttpModule for Compression {
    async fn response_header_filter(&mut self, header: &mut ResponseHeader, is_whole: bool) -> Result<()> {
        // Another header follows one that is no answer yet.
        if header.status.is_informational() {
            return Ok(());
        }
        let coding = std::mem::replace(&mut self.coding, Coding::AsItComes);
        let coding = if is_whole { coding.of_nothing() } else { coding };
        let fields: Headers<'_> =
            header.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        for (name, value) in coding.edits(&fields) {
            match value {
                Some(value) => header.insert_header(name, value)?,
                None => drop(header.remove_header(name)),
            }
        }
        if coding == Coding::Gzip {
            header.remove_header(&CONTENT_LENGTH);
            // Of HTTP/1.1, and dropped where it is another.
            header.insert_header(TRANSFER_ENCODING, "chunked")?;
            header.insert_header(CONTENT_ENCODING, "gzip")?;
            self.gzip = Some(GzEncoder::new(Vec::new(), flate2::Compression::new(LEVEL)));
        }
        Ok(())
    }

    fn response_body_filter(&mut self, body: &mut Option<Bytes>, is_end: bool) -> Result<()> {
        if self.gzip.is_none() {
            return Ok(());
        }
        let chunk = body.take().unwrap_or_default();
        let mut compressed = Vec::new();
        if !chunk.is_empty() {
            compressed.extend(self.compress(&chunk)?.unwrap_or_default());
        }
        if is_end {
            compressed.extend(self.finish()?.unwrap_or_default());
        }
        // Nothing at all would be taken for the end.
        *body = (!compressed.is_empty()).then(|| compressed.into());
        Ok(())
    }

    /// Trailers have come; the end takes their place.
    fn response_trailer_filter(
        &mut self,
        _trailers: &mut Option<Box<http::HeaderMap>>,
    ) -> Result<Option<Bytes>> {
        self.finish()
    }

    fn response_done_filter(&mut self) -> Result<Option<Bytes>> {
        self.finish()
    }

    fn as_any(&self) -> &dyn std::any::Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self
    }
}

/// Makes one for each answer.
pub(crate) struct Compressions;

impl HttpModuleBuilder for Compressions {
    fn init(&self) -> Module {
        Box::new(Compression { coding: Coding::AsItComes, gzip: None })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failure here is a failed test")]
mod tests {
    use std::io::Read as _;

    use flate2::read::{GzDecoder, MultiGzDecoder};
    use proptest::prelude::*;

    use super::*;

    fn begun() -> (Compression, ResponseHeader) {
        let mut compression = Compression { coding: Coding::Gzip, gzip: None };
        let mut header = ResponseHeader::build(200, None).unwrap();
        header.insert_header("content-length", "5").unwrap();
        let filter = compression.response_header_filter(&mut header, false);
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(filter).unwrap();
        (compression, header)
    }

    fn unpacked(bytes: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        GzDecoder::new(bytes).read_to_end(&mut plain).unwrap();
        plain
    }

    #[test]
    fn the_header_says_what_the_body_is() {
        let (_, header) = begun();
        let field = |name: &str| header.headers.get(name).map(|value| value.to_str().unwrap());
        assert_eq!(field("content-encoding"), Some("gzip"));
        assert_eq!(field("content-length"), None);
        assert_eq!(field("vary"), Some("Accept-Encoding"));
    }

    /// What has come can be read at once, before the rest has.
    #[test]
    fn nothing_is_held_back() {
        let (mut compression, _) = begun();
        let mut sent = Vec::new();
        for (chunk, so_far) in [("one ", "one "), ("two ", "one two "), ("three", "one two three")] {
            let mut body = Some(Bytes::from(chunk));
            compression.response_body_filter(&mut body, false).unwrap();
            sent.extend(body.unwrap());
            let mut read = vec![0; so_far.len()];
            MultiGzDecoder::new(sent.as_slice()).read_exact(&mut read).unwrap();
            assert_eq!(read, so_far.as_bytes());
        }
        sent.extend(compression.response_done_filter().unwrap().unwrap());
        assert_eq!(unpacked(&sent), b"one two three");
        assert_eq!(compression.response_done_filter().unwrap(), None, "it ends once");
    }

    proptest! {
        /// However an answer is cut, and whichever way it ends, it is what it was.
        #[test]
        fn every_answer_is_itself(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..3_000), 0..8), ends_with_the_last: bool) {
            let (mut compression, _) = begun();
            let mut sent = Vec::new();
            for (position, chunk) in chunks.iter().enumerate() {
                let mut body = Some(Bytes::from(chunk.clone()));
                let is_end = ends_with_the_last && position + 1 == chunks.len();
                compression.response_body_filter(&mut body, is_end).unwrap();
                sent.extend(body.unwrap_or_default());
            }
            sent.extend(compression.response_done_filter().unwrap().unwrap_or_default());
            prop_assert_eq!(unpacked(&sent), chunks.concat());
        }
    }
}
