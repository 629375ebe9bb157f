//! Frames of the control protocol, without I/O.
//!
//! ```text
//!  0            4               8
//!  | json bytes | payload bytes | json ...        | payload ...      |
//!  | u32 LE     | u32 LE        | at most 1 MiB   | at most 32 MiB   |
//! ```

use marcot::{Error, ErrorKind, Result};

/// Bytes before the JSON.
pub const HEADER_BYTES: usize = 8;
/// Longest JSON.
pub const JSON_BYTES_MAX: usize = 1 << 20;
/// Longest payload: the data of the largest read or write.
pub const PAYLOAD_BYTES_MAX: usize = 32 << 20;

/// A complete frame at the front of received bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The message.
    pub json: &'a [u8],
    /// Bytes that go with it.
    pub payload: &'a [u8],
}

/// What received bytes hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded<'a> {
    /// Not yet a frame; it needs this many bytes in all.
    Incomplete(usize),
    /// A frame.
    Complete(Frame<'a>),
}

impl Frame<'_> {
    /// Bytes of the whole frame.
    #[must_use]
    pub fn bytes(&self) -> usize {
        HEADER_BYTES + self.json.len() + self.payload.len()
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// `Invalid` if a part is too long.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<()> {
        if self.json.len() > JSON_BYTES_MAX || self.payload.len() > PAYLOAD_BYTES_MAX {
            return Err(too_long());
        }
        // Both fit: the limits are far below 4 GiB.
        out.extend((self.json.len() as u32).to_le_bytes());
        out.extend((self.payload.len() as u32).to_le_bytes());
        out.extend(self.json);
        out.extend(self.payload);
        Ok(())
    }
}

/// Finds the frame at the front of `bytes`.
///
/// # Errors
/// `Invalid` if it announces more than the limits: the stream cannot be followed any further.
pub fn decode(bytes: &[u8]) -> Result<Decoded<'_>> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(Decoded::Incomplete(HEADER_BYTES));
    };
    let [j0, j1, j2, j3, p0, p1, p2, p3] = *header;
    let json_bytes = u32::from_le_bytes([j0, j1, j2, j3]) as usize;
    let payload_bytes = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
    if json_bytes > JSON_BYTES_MAX || payload_bytes > PAYLOAD_BYTES_MAX {
        return Err(too_long());
    }
    if rest.len() < json_bytes + payload_bytes {
        return Ok(Decoded::Incomplete(HEADER_BYTES + json_bytes + payload_bytes));
    }
    let (json, rest) = rest.split_at(json_bytes);
    Ok(Decoded::Complete(Frame { json, payload: &rest[..payload_bytes] }))
}

fn too_long() -> Error {
    Error::new(ErrorKind::Invalid, "a message on the control socket is too long")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_found_once_complete() {
        let mut bytes = Vec::new();
        Frame { json: b"{}", payload: b"xyz" }.encode(&mut bytes).unwrap();
        for cut in 0..bytes.len() {
            assert!(matches!(decode(&bytes[..cut]).unwrap(), Decoded::Incomplete(n) if n > cut));
        }
        bytes.push(0);
        let Decoded::Complete(frame) = decode(&bytes).unwrap() else { panic!() };
        assert_eq!(frame, Frame { json: b"{}", payload: b"xyz" });
        assert_eq!(frame.bytes(), bytes.len() - 1);
    }

    #[test]
    fn announced_lengths_are_bounded() {
        assert!(decode(&[0xff; 8]).is_err());
        assert!(
            Frame { json: &[0; JSON_BYTES_MAX + 1], payload: b"" }.encode(&mut Vec::new()).is_err()
        );
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&bytes);
        }
    }
}
