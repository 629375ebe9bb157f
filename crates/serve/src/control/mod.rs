//! The owner's control socket: how other processes ask the process that has an image open.
//!
//! The owner listens on [`SOCKET_NAME`] in the image's directory. A client connects, sends
//! [`marcot::Command`]s, and gets for each any number of progress reports and one reply or error.
//! Access is that of the socket file: mode 0600, so the owner's user.
//!
//! Invariants:
//! - What arrives is bounded ([`frame`]) and malformed bytes close that connection only.
//! - An error keeps its [`marcot::ErrorKind`] across the socket ([`message`]).
//! - Paths of any length work: the socket is reached through a descriptor of its directory.

pub mod client;
mod connection;
pub mod frame;
mod listener;
pub mod message;

pub use client::{Client, ask};
pub(crate) use connection::ControlConnection;
pub use listener::ControlListener;

/// Name of the socket in an image's directory.
pub const SOCKET_NAME: &str = "owner.sock";
