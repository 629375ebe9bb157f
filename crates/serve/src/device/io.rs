//! What a mapped device needs of the image behind it.
//!
//! Invariants for implementors:
//! - A request is answered exactly once, from any thread, possibly before `submit` returns.
//! - A flush is answered only when everything that was answered before it was submitted is on
//!   stable storage.

use std::os::fd::OwnedFd;

use rustix::io::Errno;

/// A block operation. Offsets and lengths are in bytes and lie within the image; they are multiples
/// of nothing in particular.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Read bytes; they come with the answer.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Store bytes.
    Write {
        /// First byte.
        offset: u64,
        /// What to store.
        data: Vec<u8>,
    },
    /// Make a range read as zeros and give its space back.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Make everything answered before durable.
    Flush,
}

/// Takes the answer: the bytes of a read, nothing for the others. It may write to the kernel but
/// waits for no other request. One that is dropped uncalled fails its request with an I/O error.
pub type Completion = Box<dyn FnOnce(Result<Vec<u8>, Errno>) + Send>;

/// An image, as a mapped device sees it.
pub trait DeviceIo: Send + Sync {
    /// Size in bytes; changes when the image is resized.
    fn size_bytes(&self) -> u64;

    /// True if nothing can be written.
    fn read_only(&self) -> bool;

    /// Queues an operation; `done` is called with its outcome. Does not wait for the operation.
    fn submit(&self, request: Request, done: Completion);

    /// Serves one NBD connection that is past its negotiation, in simple replies, until it ends.
    /// Returns at once.
    ///
    /// # Errors
    /// `OPNOTSUPP` where the image has no NBD server, which leaves the FUSE driver; else what
    /// starting it met.
    fn serve_nbd(&self, _socket: OwnedFd) -> Result<(), Errno> {
        Err(Errno::OPNOTSUPP)
    }
}
