//! Control sockets: how other processes ask the process that has an image open.
//!
//! The owner listens on [`SOCKET_NAME`] in the image's directory. A client connects, sends
//! [`Command`]s, and gets for each any number of progress reports and signs of life, and one
//! reply or error. Who has the image or a snapshot open for reading only listens there too, under a
//! name of its own, and can be asked to give way.
//!
//! Invariants:
//! - What arrives is bounded ([`frame`]) and malformed bytes close that connection only.
//! - An error keeps its [`marcot::ErrorKind`] across the socket ([`message`]).
//! - Paths of any length work: the socket is reached through a descriptor of its directory.
//! - Both sides look who the other is: an owner serves its own user and root, a client speaks to a
//!   socket and a process of the user to whom the pool belongs. No link is followed.
//! - A command says which image it is for, and an owner of another image refuses it.
//! - An owner that works gives a sign of life every second (`pulse`), so that nobody has to wait for
//!   one that is stopped, and nobody gives up one that is slow.

mod client;
mod command;
mod connection;
mod execute;
pub mod frame;
mod interrupt;
mod listener;
pub mod message;
mod place;
mod pulse;

pub use client::{Client, LOOK_SILENCE_MAX, Patience, SILENCE_MAX, ask};
pub use command::{
    Command, ExtentRow, GroupSnapshot, GroupStep, IoCount, IoCounts, Lock, MigrationStep,
    QuiesceMode, READ_BYTES_MAX, Reply, UsageRow, Watcher,
};
pub(crate) use connection::ControlConnection;
pub use execute::Execute;
pub use interrupt::Interrupt;
pub use listener::ControlListener;
pub use place::Place;
pub(crate) use pulse::{Beating, Pulse};

/// Name of the owner's socket in an image's directory.
pub const SOCKET_NAME: &str = "owner.sock";
/// Begins the names of readers' sockets.
const READER_PREFIX: &str = "reader.";
/// Ends the names of readers' sockets.
const READER_SUFFIX: &str = ".sock";
