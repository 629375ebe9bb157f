//! Streams packed by gzip, xz or zstd.
//!
//! Checksums in the streams are verified, several streams behind each other are one, and a stream that is cut off is an
//! error. Memory is bounded, whatever a stream asks for.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// A way to pack a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Packing {
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// zstd.
    Zstd,
}

/// What a stream of xz may take, in KiB. `xz -9` takes 64 MiB.
const XZ_MEMORY_KIB_MAX: u32 = 256 << 10;
/// What a stream of zstd may look back, in bytes. `zstd --ultra -22` takes 128 MiB.
const ZSTD_WINDOW_BYTES_MAX: u64 = 128 << 20;
/// How much is read at a time, in bytes.
const READ_BYTES: usize = 256 << 10;

impl Packing {
    /// How many bytes tell it.
    pub const MARK_BYTES: usize = 6;

    /// What the first bytes of a stream tell.
    #[must_use]
    pub fn recognise(bytes: &[u8]) -> Option<Self> {
        let is = |mark: &[u8]| bytes.starts_with(mark);
        match () {
            // Deflate is the only method that exists.
            () if is(&[0x1f, 0x8b, 8]) => Some(Self::Gzip),
            () if is(&[0xfd, b'7', b'z', b'X', b'Z', 0]) => Some(Self::Xz),
            () if is(&[0x28, 0xb5, 0x2f, 0xfd]) => Some(Self::Zstd),
            () => None,
        }
    }

    /// The program that unpacks it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// What was packed into `stream`.
    pub fn unpack<'a>(self, stream: impl Read + Send + 'a) -> Box<dyn Read + Send + 'a> {
        let stream = BufReader::with_capacity(READ_BYTES, stream);
        match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(stream)),
            Self::Xz => Box::new(XzReader::new_mem_limit(stream, true, XZ_MEMORY_KIB_MAX)),
            Self::Zstd => Box::new(ZstdReader { state: ZstdState::Between(stream) }),
        }
    }
}

/// All frames of a stream of zstd.
struct ZstdReader<R: Read> {
    state: ZstdState<R>,
}

enum ZstdState<R: Read> {
    /// A frame or the end of the stream follows.
    Between(R),
    Inside(R, Box<FrameDecoder>),
    /// The stream has ended, or it has failed.
    Over,
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.state, ZstdState::Over) {
                ZstdState::Over => return Ok(0),
                ZstdState::Between(mut stream) => {
                    if stream.fill_buf()?.is_empty() {
                        return Ok(0);
                    }
                    self.state = begin_frame(stream)?;
                }
                ZstdState::Inside(mut stream, mut frame) => {
                    while frame.can_collect() == 0 && !frame.is_finished() {
                        let one = BlockDecodingStrategy::UptoBlocks(1);
                        frame.decode_blocks(&mut stream, one).map_err(broken)?;
                    }
                    let bytes = frame.read(buf)?;
                    if bytes > 0 || buf.is_empty() {
                        self.state = ZstdState::Inside(stream, frame);
                        return Ok(bytes);
                    }
                    let told = frame.get_checksum_from_data();
                    if told.is_some() && told != frame.get_calculated_checksum() {
                        return Err(broken("its checksum is wrong"));
                    }
                    self.state = ZstdState::Between(stream);
                }
            }
        }
    }
}

fn begin_frame<R: BufRead>(mut stream: R) -> io::Result<ZstdState<R>> {
    let mut frame = Box::new(FrameDecoder::new());
    frame.set_max_window_size(ZSTD_WINDOW_BYTES_MAX);
    match frame.init(&mut stream) {
        Ok(()) => Ok(ZstdState::Inside(stream, frame)),
        Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
            length,
            ..
        })) => {
            let skipped = io::copy(&mut (&mut stream).take(length.into()), &mut io::sink())?;
            if skipped < length.into() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(ZstdState::Between(stream))
        }
        Err(error) => Err(broken(error)),
    }
}

/// The decoder wraps the errors of its source. An interruption stays one.
fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    let error = error.into();
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error.as_ref());
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if let Some(errno) = io.raw_os_error() {
                return io::Error::from_raw_os_error(errno);
            }
            if io.kind() == io::ErrorKind::Interrupted {
                return io::ErrorKind::Interrupted.into();
            }
        }
        next = error.source();
    }
    io::Error::new(io::ErrorKind::InvalidData, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_told_apart_and_nothing_else_is_taken_for_one() {
        assert_eq!(Packing::recognise(&[0x1f, 0x8b, 8, 0]), Some(Packing::Gzip));
        assert_eq!(Packing::recognise(&[0x1f, 0x8b, 7, 0]), None);
        assert_eq!(Packing::recognise(b"\xfd7zXZ\0"), Some(Packing::Xz));
        assert_eq!(Packing::recognise(&[0x28, 0xb5, 0x2f, 0xfd]), Some(Packing::Zstd));
        assert_eq!(Packing::recognise(b""), None);
    }
}
