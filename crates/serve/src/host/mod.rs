//! The host of an image: one thread that serves all requests to one open image.
//!
//! An [`ImageHost`] owns a [`HostDevice`] and serves, in one epoll loop, its NBD clients, the
//! requests of other threads in this process, and the owner's control socket. There is no lock on
//! the data path.
//!
//! ```text
//!   NBD sockets ------------------\
//!   HostHandle (FUSE, commands) ---+--> round --> write_batch / read_batch / flush --> answers
//!   control socket ---------------/
//! ```
//!
//! Invariants:
//! - The device is touched by this thread only.
//! - A FLUSH is answered after a device flush that began after every write acknowledged before it,
//!   on whatever connection (module `round`).
//! - A client can break only its own connection, and its memory is limited.
//! - When the image becomes unusable (`Poisoned`, `Fenced`), the requests of the round are answered with the
//!   error, all clients are disconnected, and the host ends with that error.

mod attendant;
mod connection;
mod event_loop;
mod handle;
mod heap;
mod idle;
mod local;
mod looking;
mod operation;
mod pacer;
mod padded;
mod parts;
mod read_layout;
mod round;
mod spin;
mod tally;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread;

use marcot::{BlockDevice, Error, ErrorKind, Housekeeping, Result};

pub use attendant::Attendant;
pub use handle::{Hold, HostHandle};
pub use local::{Completion, DeviceRequest, LOCAL_BYTES_MAX};

use crate::control::{ControlListener, Execute, Place};
use crate::wake::Wake;
use event_loop::EventLoop;
use handle::Shared;
use padded::{Padded, Sectors};

/// Linux cuts thread names at this many bytes.
const THREAD_NAME_BYTES_MAX: usize = 15;

/// How an image is served.
#[derive(Debug, Default)]
pub struct HostOptions {
    /// Names the image in logs.
    pub name: String,
    /// How `status` describes the use; with `None` it shows the number of NBD connections.
    pub usage: Option<String>,
    /// Where to listen for commands of other processes. For a device that can be written, the caller must
    /// hold the image's lock, because a socket found there counts as left by a dead owner.
    pub control: Option<Place>,
    /// The image is only kept open for clients that may come. While it has none, it gives way to a command
    /// that needs the image for itself.
    pub gives_way: bool,
}

/// What can be served: a block device that keeps house for itself and takes commands.
pub trait HostDevice: BlockDevice + Housekeeping + Execute {}

impl<T: BlockDevice + Housekeeping + Execute> HostDevice for T {}

/// Starts threads that serve images.
pub struct ImageHost;

impl ImageHost {
    /// Serves `device` on a thread of its own until it is stopped or becomes unusable.
    ///
    /// # Errors
    /// If the control socket cannot be made, unless because of a full disk, or if the process is out of
    /// descriptors or threads. The device is dropped then, not closed.
    pub fn start(device: Box<dyn HostDevice>, options: HostOptions) -> Result<HostHandle> {
        let device = Padded::new(device, &options.name, Sectors::WhereWritable);
        Self::start_padded(device, options)
    }

    /// As [`Self::start`], but shows whole sectors of 512 bytes for read-only images too. This is for
    /// kernels, whose devices consist of sectors.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_for_kernel(
        device: Box<dyn HostDevice>,
        options: HostOptions,
    ) -> Result<HostHandle> {
        let device = Padded::new(device, &options.name, Sectors::Always);
        Self::start_padded(device, options)
    }

    fn start_padded(device: Padded, options: HostOptions) -> Result<HostHandle> {
        let device: Box<dyn HostDevice> = Box::new(device);
        let control = listen(&options, device.read_only())?;
        let wake = Arc::new(Wake::new().map_err(no_resources)?);
        let shared = Arc::new(Shared::default());
        shared.size_bytes.store(device.size_bytes(), Ordering::Release);
        shared.read_only.store(device.read_only(), Ordering::Release);
        let (sender, inbox) = mpsc::channel();
        let handle = HostHandle::new(sender, Arc::clone(&wake), Arc::clone(&shared));
        let name = thread_name(&options.name);
        let parts =
            event_loop::Parts { device, options, control, wake, inbox, shared: shared.clone() };
        let events = EventLoop::new(parts).map_err(no_resources)?;
        thread::Builder::new()
            .name(name)
            .spawn(move || shared.set_end(run(events)))
            .map_err(no_resources)?;
        Ok(handle)
    }
}

/// Listens for commands. A full disk may have no space for the socket's name; the image is served all the
/// same. A reader serves without a socket wherever it cannot listen.
fn listen(options: &HostOptions, reader: bool) -> Result<Option<ControlListener>> {
    let Some(place) = &options.control else { return Ok(None) };
    let bound = match reader {
        true => ControlListener::bind_reader(place),
        false => ControlListener::bind(place),
    };
    match bound {
        Err(error) if reader => {
            tracing::debug!(image = %options.name, error = %error.sentence(), "read without taking commands");
            Ok(None)
        }
        Err(error) if error.kind() == ErrorKind::NoSpace => {
            tracing::warn!(image = %options.name, error = %error.sentence(), "served without taking commands");
            Ok(None)
        }
        bound => bound.map(Some),
    }
}

/// Runs the loop. A panic in the engine ends only this image.
fn run(events: EventLoop) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| events.run())).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Io, "the thread that served the image has panicked"))
    })
}

fn thread_name(image: &str) -> String {
    image[..image.floor_char_boundary(THREAD_NAME_BYTES_MAX)].replace('\0', "")
}

fn no_resources(error: std::io::Error) -> Error {
    Error::from_io("cannot start to serve the image", error)
}
