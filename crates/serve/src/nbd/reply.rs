//! Replies of the transmission phase: fixed headers, written into reserved space.

use super::wire::{
    BASE_ALLOCATION_ID, CHUNK_DONE, SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO,
    STRUCTURED_REPLY_MAGIC, chunk, errno,
};
use marcot::{ErrorKind, Extent};

/// Bytes of a simple reply without data.
pub const SIMPLE_BYTES: usize = 16;
/// Bytes before the payload of a chunk.
pub const CHUNK_BYTES: usize = 20;
/// Bytes of an OFFSET_DATA chunk before its data.
pub const DATA_CHUNK_BYTES: usize = CHUNK_BYTES + 8;
/// Bytes of an OFFSET_HOLE chunk.
pub const HOLE_CHUNK_BYTES: usize = CHUNK_BYTES + 12;
/// Bytes of one run of a BLOCK_STATUS chunk.
const STATUS_RUN_BYTES: usize = 8;
/// Longest error message sent; the protocol's limit for strings is 4096.
const MESSAGE_BYTES_MAX: usize = 1024;

/// The error number for a client, by the kind of an engine error.
#[must_use]
pub fn errno_of(kind: ErrorKind) -> u32 {
    match kind {
        ErrorKind::ReadOnly | ErrorKind::PermissionDenied => errno::EPERM,
        ErrorKind::NoSpace => errno::ENOSPC,
        ErrorKind::Invalid | ErrorKind::OutOfRange => errno::EINVAL,
        ErrorKind::Unsupported => errno::ENOTSUP,
        ErrorKind::Fenced => errno::ESHUTDOWN,
        _ => errno::EIO,
    }
}

/// The message for a client, by the kind of an engine error. The error itself may name files of this machine,
/// so it is only logged.
#[must_use]
pub fn message_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::ReadOnly | ErrorKind::PermissionDenied => "the image cannot be written",
        ErrorKind::NoSpace => "the server has no space left",
        ErrorKind::Invalid | ErrorKind::OutOfRange => "the range does not lie within the image",
        ErrorKind::Unsupported => "the server cannot do this",
        ErrorKind::Fenced => "the image is no longer served",
        ErrorKind::Poisoned => "an earlier write could not be made durable; connect again",
        ErrorKind::Corrupt => "a block fails verification: it does not match its checksum",
        ErrorKind::Unreachable => "the service that keeps the image does not answer",
        _ => "the server met an input or output error; its log says which",
    }
}

/// A simple reply; the data of a successful READ follows it.
#[must_use]
pub fn simple(cookie: u64, errno: u32) -> [u8; SIMPLE_BYTES] {
    let mut bytes = [0; SIMPLE_BYTES];
    bytes[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&errno.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

fn chunk_header(cookie: u64, last: bool, kind: u16, payload_bytes: u32) -> [u8; CHUNK_BYTES] {
    let flags = if last { CHUNK_DONE } else { 0 };
    let mut bytes = [0; CHUNK_BYTES];
    bytes[..4].copy_from_slice(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&kind.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..].copy_from_slice(&payload_bytes.to_be_bytes());
    bytes
}

/// Head of an OFFSET_DATA chunk for `length` bytes of data.
#[must_use]
pub fn data_chunk(cookie: u64, last: bool, offset: u64, length: u32) -> [u8; DATA_CHUNK_BYTES] {
    let mut bytes = [0; DATA_CHUNK_BYTES];
    let header = chunk_header(cookie, last, chunk::OFFSET_DATA, length.saturating_add(8));
    bytes[..CHUNK_BYTES].copy_from_slice(&header);
    bytes[CHUNK_BYTES..].copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// An OFFSET_HOLE chunk: `length` zeros.
#[must_use]
pub fn hole_chunk(cookie: u64, last: bool, offset: u64, length: u32) -> [u8; HOLE_CHUNK_BYTES] {
    let mut bytes = [0; HOLE_CHUNK_BYTES];
    bytes[..CHUNK_BYTES].copy_from_slice(&chunk_header(cookie, last, chunk::OFFSET_HOLE, 12));
    bytes[CHUNK_BYTES..CHUNK_BYTES + 8].copy_from_slice(&offset.to_be_bytes());
    bytes[CHUNK_BYTES + 8..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// An ERROR chunk that ends its reply, with a sentence for people.
#[must_use]
pub fn error_chunk(cookie: u64, errno: u32, message: &str) -> Vec<u8> {
    let message = &message.as_bytes()[..message.floor_char_boundary(MESSAGE_BYTES_MAX)];
    // At most 1 KiB, so both lengths fit.
    let message_bytes = u16::try_from(message.len()).unwrap_or(0);
    let mut bytes = chunk_header(cookie, true, chunk::ERROR, 6 + u32::from(message_bytes)).to_vec();
    bytes.extend(errno.to_be_bytes());
    bytes.extend(message_bytes.to_be_bytes());
    bytes.extend(&message[..usize::from(message_bytes)]);
    bytes
}

/// A BLOCK_STATUS chunk of `base:allocation` that ends its reply. Neighbouring runs of one kind are merged. At
/// most `runs_max` runs are reported; it is at least one.
#[must_use]
pub fn status_chunk(cookie: u64, extents: &[Extent], runs_max: usize) -> Vec<u8> {
    let runs = merge(extents, runs_max);
    let payload_bytes = 4 + runs.len() * STATUS_RUN_BYTES;
    let payload_bytes = u32::try_from(payload_bytes).unwrap_or(u32::MAX);
    let mut bytes = chunk_header(cookie, true, chunk::BLOCK_STATUS, payload_bytes).to_vec();
    bytes.extend(BASE_ALLOCATION_ID.to_be_bytes());
    for (length, data) in runs {
        let state = if data { 0 } else { STATE_HOLE | STATE_ZERO };
        bytes.extend(length.to_be_bytes());
        bytes.extend(state.to_be_bytes());
    }
    bytes
}

fn merge(extents: &[Extent], runs_max: usize) -> Vec<(u32, bool)> {
    let mut runs: Vec<(u32, bool)> = Vec::new();
    for extent in extents.iter().filter(|e| e.length > 0) {
        let length = u32::try_from(extent.length).unwrap_or(u32::MAX);
        if let Some((total, data)) = runs.last_mut()
            && *data == extent.data
        {
            let Some(sum) = total.checked_add(length) else { break };
            *total = sum;
        } else if runs.len() < runs_max {
            runs.push((length, extent.data));
        } else {
            break;
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_kind_are_one_run() {
        let extent = |offset, length, data| Extent { offset, length, data };
        let extents =
            [extent(0, 10, true), extent(10, 5, true), extent(15, 5, false), extent(20, 1, true)];
        assert_eq!(merge(&extents, 9), [(15, true), (5, false), (1, true)]);
        assert_eq!(merge(&extents, 1), [(15, true)]);
        let bytes = status_chunk(3, &extents, 2);
        assert_eq!(bytes.len(), CHUNK_BYTES + 4 + 2 * STATUS_RUN_BYTES);
        assert_eq!(bytes[16..20], 20_u32.to_be_bytes());
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let chunk = error_chunk(1, 5, &"ä".repeat(2000));
        assert_eq!(chunk.len(), CHUNK_BYTES + 6 + MESSAGE_BYTES_MAX);
        let chunk = error_chunk(1, 5, &format!("x{}", "ä".repeat(2000)));
        assert_eq!(chunk.len(), CHUNK_BYTES + 6 + MESSAGE_BYTES_MAX - 1);
    }

    #[test]
    fn engine_errors_have_protocol_numbers() {
        assert_eq!(errno_of(ErrorKind::Corrupt), errno::EIO);
        assert_eq!(errno_of(ErrorKind::NoSpace), errno::ENOSPC);
        assert_eq!(errno_of(ErrorKind::Fenced), errno::ESHUTDOWN);
        assert_eq!(errno_of(ErrorKind::ReadOnly), errno::EPERM);
    }
}
