//! Requests of the transmission phase: bytes to a checked request, without I/O.
//!
//! ```text
//!  0        4      6      8                16               24        28
//!  | magic  | flags| type | cookie         | offset         | length  | payload of a WRITE ...
//! ```
//!
//! [`parse`] only splits the fields; [`Request::check`] decides whether an export accepts the request. A client
//! may send anything. The outcome is a request, a refusal of that request, or a closed connection.

use super::wire::{PAYLOAD_BYTES_MAX, REQUEST_MAGIC, command, command_flag, errno};

/// Bytes of a request before its payload.
pub const REQUEST_BYTES: usize = 28;

/// A request as it came, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Modifiers.
    pub flags: u16,
    /// The command; see [`command`].
    pub command: u16,
    /// Chosen by the client, repeated in the reply.
    pub cookie: u64,
    /// First byte on the export.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
}

/// What the first bytes of a stream are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Fewer than [`REQUEST_BYTES`].
    Incomplete,
    /// A request; its payload, if any, follows.
    Request(Request),
    /// Not a request: the stream cannot be trusted any more.
    BadMagic(u32),
}

/// What an export and a connection allow.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Size of the export.
    pub size_bytes: u64,
    /// Nothing may be written.
    pub read_only: bool,
    /// Structured replies were negotiated.
    pub structured_replies: bool,
    /// `base:allocation` was negotiated.
    pub allocation_context: bool,
}

/// Why a request is not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Error number of the protocol.
    pub errno: u32,
    /// A sentence for people.
    pub message: &'static str,
}

const fn refuse(errno: u32, message: &'static str) -> Result<(), Refusal> {
    Err(Refusal { errno, message })
}

/// Reads the request at the front of `bytes`.
#[must_use]
pub fn parse(bytes: &[u8]) -> Parsed {
    let Some(header) = bytes.first_chunk::<REQUEST_BYTES>() else { return Parsed::Incomplete };
    let magic = u32::from_be_bytes(field(header, 0));
    if magic != REQUEST_MAGIC {
        return Parsed::BadMagic(magic);
    }
    Parsed::Request(Request {
        flags: u16::from_be_bytes(field(header, 4)),
        command: u16::from_be_bytes(field(header, 6)),
        cookie: u64::from_be_bytes(field(header, 8)),
        offset: u64::from_be_bytes(field(header, 16)),
        length: u32::from_be_bytes(field(header, 24)),
    })
}

/// The `N` bytes at `at`, which must lie inside the header.
fn field<const N: usize>(header: &[u8; REQUEST_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

impl Request {
    /// Bytes that follow the header.
    #[must_use]
    pub fn payload_bytes(&self) -> u32 {
        if self.command == command::WRITE { self.length } else { 0 }
    }

    /// True if `flag` is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Decides whether the request can be carried out.
    ///
    /// # Errors
    /// The reason to give the client; its connection stays good.
    pub fn check(&self, limits: &Limits) -> Result<(), Refusal> {
        if self.flags & !self.flags_allowed(limits) != 0 {
            return refuse(errno::EINVAL, "a flag does not belong to this request");
        }
        match self.command {
            command::READ | command::WRITE => self.check_payload_length()?,
            command::DISC | command::FLUSH => return Ok(()),
            command::BLOCK_STATUS if !limits.allocation_context => {
                return refuse(errno::EINVAL, "no metadata context was negotiated");
            }
            command::TRIM | command::CACHE | command::WRITE_ZEROES | command::BLOCK_STATUS => {}
            _ => return refuse(errno::EINVAL, "unknown request"),
        }
        if self.changes_data() && limits.read_only {
            return refuse(errno::EPERM, "the export is read-only");
        }
        self.check_range(limits)
    }

    fn changes_data(&self) -> bool {
        matches!(self.command, command::WRITE | command::TRIM | command::WRITE_ZEROES)
    }

    fn flags_allowed(&self, limits: &Limits) -> u16 {
        // FUA is valid with every request, even where it means nothing.
        command_flag::FUA
            | match self.command {
                command::READ if limits.structured_replies => command_flag::DF,
                command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
                command::BLOCK_STATUS => command_flag::REQ_ONE,
                _ => 0,
            }
    }

    fn check_payload_length(&self) -> Result<(), Refusal> {
        if self.length <= PAYLOAD_BYTES_MAX {
            return Ok(());
        }
        if self.has(command_flag::DF) {
            return refuse(errno::EOVERFLOW, "too long for one chunk");
        }
        refuse(errno::EINVAL, "longer than the largest payload, 32 MiB")
    }

    fn check_range(&self, limits: &Limits) -> Result<(), Refusal> {
        if self.length == 0 {
            return refuse(errno::EINVAL, "a length of zero is not defined");
        }
        let end = self.offset.checked_add(u64::from(self.length));
        if end.is_some_and(|end| end <= limits.size_bytes) {
            return Ok(());
        }
        match self.command {
            command::WRITE | command::WRITE_ZEROES => {
                refuse(errno::ENOSPC, "the range ends beyond the export")
            }
            _ => refuse(errno::EINVAL, "the range ends beyond the export"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        size_bytes: 1 << 20,
        read_only: false,
        structured_replies: true,
        allocation_context: true,
    };

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
        Request { flags, command, cookie: 1, offset, length }
    }

    fn refused(request: Request, limits: Limits) -> u32 {
        request.check(&limits).unwrap_err().errno
    }

    #[test]
    fn a_header_is_cut_at_28_bytes() {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend([0, 1, 0, 6]);
        bytes.extend(7_u64.to_be_bytes());
        bytes.extend(4096_u64.to_be_bytes());
        bytes.extend(512_u32.to_be_bytes());
        assert_eq!(parse(&bytes[..27]), Parsed::Incomplete);
        let want = Request { flags: 1, command: 6, cookie: 7, offset: 4096, length: 512 };
        assert_eq!(parse(&bytes), Parsed::Request(want));
        bytes[0] = 0;
        assert!(matches!(parse(&bytes), Parsed::BadMagic(_)));
    }

    #[test]
    fn ranges_beyond_the_end_are_refused_without_overflow() {
        assert_eq!(refused(request(command::READ, 0, 1 << 20, 1), LIMITS), errno::EINVAL);
        assert_eq!(refused(request(command::READ, 0, u64::MAX, 1), LIMITS), errno::EINVAL);
        assert_eq!(refused(request(command::WRITE, 0, (1 << 20) - 1, 2), LIMITS), errno::ENOSPC);
        assert_eq!(refused(request(command::TRIM, 0, 0, u32::MAX), LIMITS), errno::EINVAL);
        assert!(request(command::WRITE, 0, (1 << 20) - 1, 1).check(&LIMITS).is_ok());
    }

    #[test]
    fn flags_belong_to_their_requests() {
        for (command, flag) in [
            (command::WRITE, command_flag::DF),
            (command::READ, command_flag::NO_HOLE),
            (command::TRIM, command_flag::FAST_ZERO),
            (command::READ, command_flag::REQ_ONE),
            (command::FLUSH, 1 << 9),
        ] {
            assert_eq!(refused(request(command, flag, 0, 512), LIMITS), errno::EINVAL);
        }
        let simple = Limits { structured_replies: false, ..LIMITS };
        assert_eq!(refused(request(command::READ, command_flag::DF, 0, 512), simple), 22);
        assert!(request(command::READ, command_flag::FUA, 0, 512).check(&simple).is_ok());
    }

    #[test]
    fn a_read_only_export_refuses_what_changes_data() {
        let limits = Limits { read_only: true, ..LIMITS };
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(refused(request(command, 0, 0, 512), limits), errno::EPERM);
        }
        assert!(request(command::FLUSH, 0, 0, 0).check(&limits).is_ok());
    }

    #[test]
    fn oversized_payloads_and_unknown_requests_are_refused() {
        let large = Limits { size_bytes: 1 << 40, ..LIMITS };
        let length = PAYLOAD_BYTES_MAX + 1;
        assert_eq!(refused(request(command::READ, 0, 0, length), large), errno::EINVAL);
        let df = request(command::READ, command_flag::DF, 0, length);
        assert_eq!(refused(df, large), errno::EOVERFLOW);
        assert_eq!(refused(request(99, 0, 0, 1), large), errno::EINVAL);
        let no_context = Limits { allocation_context: false, ..LIMITS };
        assert_eq!(refused(request(command::BLOCK_STATUS, 0, 0, 1), no_context), errno::EINVAL);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64), good: bool) {
            let mut bytes = bytes;
            if good && bytes.len() >= 4 {
                bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
            }
            if let Parsed::Request(request) = parse(&bytes)
                && request.check(&LIMITS).is_ok()
                && request.command == command::READ
            {
                prop_assert!(request.offset + u64::from(request.length) <= LIMITS.size_bytes);
            }
        }
    }
}
