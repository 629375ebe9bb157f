//! Asynchronous reads and writes.

use std::io;
use std::sync::Arc;

use crate::{AlignedBytes, DiskFile};

/// An asynchronous read.
pub struct AsyncRead {
    /// The owner's number for it.
    pub number: u64,
    /// From this file.
    pub file: Arc<dyn DiskFile>,
    /// First byte.
    pub offset: u64,
    /// Filled from its start.
    pub buf: Vec<u8>,
    /// Bytes read. They may be fewer than asked for, anywhere in the file.
    pub result: io::Result<usize>,
}

/// An asynchronous write that bypasses the page cache.
pub struct AsyncWrite {
    /// The owner's number for it.
    pub number: u64,
    /// Into this file, which [`DiskFile::direct`] has returned.
    pub file: Arc<dyn DiskFile>,
    /// First byte. Offset and length are multiples of [`crate::ALIGNMENT_BYTES`].
    pub offset: u64,
    /// What to write.
    pub data: AlignedBytes,
    /// Bytes written. Where this is an error, or less than the length, any part may have been written.
    pub result: io::Result<usize>,
}

/// A completion.
pub enum IoCompletion {
    /// A read.
    Read(AsyncRead),
    /// A write. Like any other write it is durable after a sync.
    Write(AsyncWrite),
}

/// Makes the descriptor of an owner's asynchronous I/O readable, from any thread.
pub type Waker = Arc<dyn Fn() + Send + Sync>;

/// The reads and writes of one owner that are in flight. Dropping it waits for them.
pub trait AsyncIo: Send {
    /// True where another operation may be started.
    fn has_room(&self) -> bool;

    /// True where writes can be started.
    fn takes_writes(&self) -> bool {
        false
    }

    /// Starts a read, at the latest with the next [`Self::submit`]. A read that cannot be started
    /// completes with an error.
    fn start(&mut self, read: AsyncRead);

    /// Starts a write, as [`Self::start`] does a read. Only where [`Self::takes_writes`].
    fn start_write(&mut self, write: AsyncWrite);

    /// Hands everything that was started to the operating system.
    fn submit(&mut self);

    /// The next completion, if there is one.
    fn take(&mut self) -> Option<IoCompletion>;

    /// Waits for a completion, if anything is in flight.
    fn wait(&mut self);

    /// A descriptor that is readable when there may be a completion.
    fn raw_fd(&self) -> Option<i32>;

    /// Makes that descriptor readable until the next [`Self::take`]: for what the owner waits for besides. `None` where
    /// there is no descriptor.
    fn waker(&mut self) -> Option<Waker> {
        None
    }
}
