//! The NBD server: fixed newstyle negotiation, simple and structured replies.
//!
//! The rules are those of the protocol's specification, `doc/proto.md` of the NetworkBlockDevice
//! project. What is said on the wire is decided without I/O ([`negotiation`], [`request`],
//! [`reply`]); sockets are handled by [`server`] until a client's negotiation is over, and by the
//! image's [host](crate::host) from then on.

mod acceptor;
mod client;
pub mod exports;
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
pub mod server;
pub mod wire;

pub use exports::{ExportName, Exports};
pub use listen::{Address, SOCKET_MODE_DEFAULT};
pub(crate) use memory::Grant;
pub use memory::{CLIENTS_BYTES_MAX, CONNECTION_BYTES_MAX, PEER_BYTES_MAX};
pub use permits::Permit;
pub use server::{CONNECTIONS_DEFAULT, NbdServer, ServerOptions, StopHandle};

/// What the negotiation of a client has settled.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NbdConnection {
    /// Replies may come in chunks.
    pub structured_replies: bool,
    /// The client wants `base:allocation`.
    pub allocation_context: bool,
    /// Bytes that the client has sent beyond the negotiation.
    pub received: Vec<u8>,
    /// Who it is, for logs.
    pub peer: String,
    /// Its place among the clients of a server, if it has one.
    pub permit: Option<Permit>,
}
