//! Constants of the NBD protocol, from its specification (`doc/proto.md` of the NetworkBlockDevice project).
//! All numbers are big-endian.

/// First eight bytes a server sends: "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Before every option, and after the greeting's magic: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before every simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Before every chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag of the server: options can be refused without closing the connection.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag of the server: the 124 zeros after EXPORT_NAME can be left out.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
/// Handshake flag of the client, as [`FLAG_FIXED_NEWSTYLE`].
pub const CLIENT_FIXED_NEWSTYLE: u32 = 1 << 0;
/// Handshake flag of the client, as [`FLAG_NO_ZEROES`].
pub const CLIENT_NO_ZEROES: u32 = 1 << 1;

/// Padding after the answer to EXPORT_NAME.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// Options of the negotiation.
pub mod option {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod option_reply {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = (1 << 31) | 1;
    pub const ERR_POLICY: u32 = (1 << 31) | 2;
    pub const ERR_INVALID: u32 = (1 << 31) | 3;
    pub const ERR_UNKNOWN: u32 = (1 << 31) | 6;
    pub const ERR_SHUTDOWN: u32 = (1 << 31) | 7;
    pub const ERR_TOO_BIG: u32 = (1 << 31) | 9;
}

/// Kinds of information about an export.
pub mod info {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do.
pub mod transmission_flag {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const HAS_FLAGS: u16 = 1 << 0;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Requests of the transmission phase.
pub mod command {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of requests.
pub mod command_flag {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const FUA: u16 = 1 << 0;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
}

/// Types of the chunks of structured replies.
pub mod chunk {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const ERROR: u16 = (1 << 15) | 1;
}

/// Chunk flag: the last one of its reply.
pub const CHUNK_DONE: u16 = 1 << 0;

/// `base:allocation`: nothing is allocated there.
pub const STATE_HOLE: u32 = 1 << 0;
/// `base:allocation`: it reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;

/// Errors of the transmission phase.
pub mod errno {
    #![allow(missing_docs, reason = "the names are those of the specification")]
    pub const EPERM: u32 = 1;
    pub const EIO: u32 = 5;
    pub const ENOMEM: u32 = 12;
    pub const EINVAL: u32 = 22;
    pub const ENOSPC: u32 = 28;
    pub const EOVERFLOW: u32 = 75;
    pub const ENOTSUP: u32 = 95;
    pub const ESHUTDOWN: u32 = 108;
}

/// The metadata context that tells holes from data.
pub const BASE_ALLOCATION: &str = "base:allocation";

/// The number that this server uses for `base:allocation`.
pub const BASE_ALLOCATION_ID: u32 = 1;

/// Longest string of the protocol.
pub const STRING_BYTES_MAX: usize = 4096;

/// Largest payload of a READ or WRITE. Clients assume this limit by default.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Block size that clients should prefer. A smaller write needs a read-modify-write.
pub const BLOCK_BYTES_PREFERRED: u32 = 4096;
