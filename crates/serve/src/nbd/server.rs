//! The NBD server: listening, running, stopping.
//!
//! ```text
//!   accept + negotiate      one thread, an epoll of its own (acceptor)
//!   open, list, close       a thread each, because these may block; how many: opens, lists, places
//!   serve                   the thread of each image (host)
//! ```
//!
//! Limits on what clients can take, whatever they send ([`ServerOptions`]):
//!
//! | who | memory | how long | how many |
//! |---|---|---|---|
//! | negotiates | less than 1 KiB, 16 KiB for an option, 66 KiB for replies | `handshake_time_max` | `negotiating_max`, then the slowest goes |
//! | has asked for a list | 4 MiB, shared by all | `answer_time_max` | one list at a time |
//! | has asked for an export | | `answer_time_max` | 4 of one pool at a time, 64 in all |
//! | has negotiated, is idle | less than 2 KiB | no limit: a guest may be paused | `connections_max` in all, 7/8 of them by one peer, then new ones go |
//! | is in the midst of a request | 64 KiB, and what the clients' memory allows, at most 4 MiB | no limit | |
//! | takes no replies | 128 KiB, and what the clients' memory allows, at most 4 MiB or one reply | no limit | |
//! | uses an image | | no limit | `images_max` open in all, 7/8 of them by one peer |
//!
//! The clients' memory is [`CLIENTS_BYTES_MAX`](super::CLIENTS_BYTES_MAX) for all together, and
//! [`PEER_BYTES_MAX`](super::PEER_BYTES_MAX) for a peer: a user of this machine, or an address. For a client
//! that gets none of it, long requests are carried out in parts.

use std::sync::Arc;
use std::time::Duration;

use marcot::{Error, Result};

use super::acceptor::Acceptor;
use super::exports::{Exports, OpenExports};
use super::listen::{Address, Listener};
use crate::wake::Wake;

/// Default limit on the clients of a server. Each may use 192 KiB besides the memory that all share.
pub const CONNECTIONS_DEFAULT: usize = 2048;

/// Options of a server.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Where to listen; at least one.
    pub addresses: Vec<Address>,
    /// An image that nobody uses for this long is closed.
    pub idle_time: Duration,
    /// A client that has not finished its negotiation after this time is disconnected.
    pub handshake_time_max: Duration,
    /// A client that waits this long for an export to be opened, or for a list, gets an error.
    pub answer_time_max: Duration,
    /// Limit on the clients that negotiate at the same time. One more replaces the client that has
    /// negotiated longest.
    pub negotiating_max: usize,
    /// Limit on connected clients. Further ones are disconnected at once. Each takes a descriptor.
    pub connections_max: usize,
    /// Limit on open images. A client that asks for one more is refused. Each takes up to
    /// [`IMAGE_DESCRIPTORS_MAX`](crate::descriptors::IMAGE_DESCRIPTORS_MAX) descriptors.
    pub images_max: usize,
    /// Limit on opens in progress. Each takes up to
    /// [`OPEN_DESCRIPTORS_MAX`](crate::descriptors::OPEN_DESCRIPTORS_MAX) descriptors.
    pub opens_max: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            idle_time: Duration::from_secs(30),
            handshake_time_max: Duration::from_secs(30),
            // Longer than the replay of a log, shorter than the timeout of a guest's disk driver.
            answer_time_max: Duration::from_secs(20),
            negotiating_max: 1024,
            connections_max: CONNECTIONS_DEFAULT,
            images_max: 1024,
            opens_max: 128,
        }
    }
}

/// Stops a server from any thread.
#[derive(Debug, Clone)]
pub struct StopHandle(pub(super) Arc<StopState>);

#[derive(Debug)]
pub(super) struct StopState {
    pub(super) asked: std::sync::atomic::AtomicBool,
    pub(super) wake: Arc<Wake>,
}

impl StopHandle {
    /// Makes [`NbdServer::run`] flush and close every image and return. Does not wait for that.
    pub fn stop(&self) {
        self.0.asked.store(true, std::sync::atomic::Ordering::SeqCst);
        self.0.wake.raise();
    }
}

/// An NBD server. It listens once it is bound, and serves once it is run.
pub struct NbdServer {
    acceptor: Acceptor,
    addresses: Vec<Address>,
    open: Arc<OpenExports>,
    stop: StopHandle,
}

impl NbdServer {
    /// Starts to listen. Clients wait until [`Self::run`].
    ///
    /// # Errors
    /// `Exists` if a server answers at an address, `Invalid` if a path is too long, and those of
    /// the operating system.
    pub fn bind(options: &ServerOptions, exports: Arc<dyn Exports>) -> Result<Self> {
        let listeners: Vec<Listener> =
            options.addresses.iter().map(Listener::bind).collect::<Result<_>>()?;
        let addresses = listeners.iter().map(|l| l.address.clone()).collect();
        let open = Arc::new(OpenExports::new(exports, options.idle_time, options.images_max));
        let at = |error| Error::from_io("cannot start the nbd server", error);
        let wake = Arc::new(Wake::new().map_err(at)?);
        let stop = StopHandle(Arc::new(StopState { asked: false.into(), wake }));
        let acceptor =
            Acceptor::new(options, listeners, Arc::clone(&open), stop.clone()).map_err(at)?;
        Ok(Self { acceptor, addresses, open, stop })
    }

    /// The addresses on which it listens, with the ports that the system has chosen.
    #[must_use]
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The handle that stops it.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    /// Serves until stopped; then answers what has been received and closes every image.
    ///
    /// # Errors
    /// If the server cannot go on, or an image could not be closed properly.
    pub fn run(self) -> Result<()> {
        let ran = self.acceptor.run();
        let closed = self.open.close_all();
        ran.map_err(|error| Error::from_io("the nbd server cannot go on", error))?;
        closed
    }
}
