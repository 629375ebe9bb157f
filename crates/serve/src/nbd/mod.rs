//! The NBD server: fixed newstyle negotiation, simple and structured replies.
//!
//! The rules are those of the protocol's specification, `doc/proto.md` of the NetworkBlockDevice project.
//! [`negotiation`], [`request`] and [`reply`] encode and decode messages without I/O. Sockets are handled by
//! `server` until a client's negotiation is over, and by the image's [host](crate::host) after that.

mod acceptor;
mod client;
mod exports;
mod listen;
mod lists;
mod memory;
pub mod negotiation;
mod opens;
mod peer;
mod permits;
mod places;
pub mod reply;
pub mod request;
mod server;
pub mod wire;

pub use exports::{ExportName, Exports};
pub use listen::{Address, SOCKET_MODE_DEFAULT};
pub(crate) use memory::Grant;
pub use memory::{CLIENTS_BYTES_MAX, CONNECTION_BYTES_MAX, PEER_BYTES_MAX};
pub use permits::Permit;
pub use server::{CONNECTIONS_DEFAULT, NbdServer, ServerOptions, StopHandle};

/// The result of a client's negotiation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NbdConnection {
    /// Replies may come in chunks.
    pub structured_replies: bool,
    /// The client wants `base:allocation`.
    pub allocation_context: bool,
    /// Bytes that the client has sent after the negotiation.
    pub received: Vec<u8>,
    /// The peer's name in logs.
    pub peer: String,
    /// Its permit, if it is a client of a server.
    pub permit: Option<Permit>,
}
