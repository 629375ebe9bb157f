//! Reads and writes that go on while their owner does other things.

use std::io;
use std::sync::Arc;

use crate::{AlignedBytes, DiskFile};

/// A read that goes on while its owner does other things.
pub struct AsyncRead {
    /// The owner's number for it.
    pub number: u64,
    /// From this file.
    pub file: Arc<dyn DiskFile>,
    /// First byte.
    pub offset: u64,
    /// Filled from its start.
    pub buf: Vec<u8>,
    /// Bytes read; may be fewer than asked anywhere.
    pub result: io::Result<usize>,
}

/// A write past the page cache that goes on while its owner does other things.
pub struct AsyncWrite {
    /// The owner's number for it.
    pub number: u64,
    /// Into this file, as [`DiskFile::direct`] gives it.
    pub file: Arc<dyn DiskFile>,
    /// First byte, a multiple of [`crate::ALIGNMENT_BYTES`], as the length is.
    pub offset: u64,
    /// What to write.
    pub data: AlignedBytes,
    /// Bytes written; any part of them may have been where that is an error, or fewer than all.
    pub result: io::Result<usize>,
}

/// What has ended.
pub enum IoCompletion {
    /// A read.
    Read(AsyncRead),
    /// A write. It is durable after a sync, as any other.
    Write(AsyncWrite),
}

/// Reads and writes of one owner that are under way. Dropping it waits for them.
pub trait AsyncIo: Send {
    /// True where another one may be started.
    fn has_room(&self) -> bool;

    /// True where writes can be started.
    fn takes_writes(&self) -> bool {
        false
    }

    /// Starts a read, at the latest with the next [`Self::submit`]. One that cannot be started ends
    /// with an error.
    fn start(&mut self, read: AsyncRead);

    /// The same for a write, where [`Self::takes_writes`].
    fn start_write(&mut self, write: AsyncWrite);

    /// Lets everything started go.
    fn submit(&mut self);

    /// One that has ended.
    fn take(&mut self) -> Option<IoCompletion>;

    /// Waits until there is something to take, if anything is under way.
    fn wait(&mut self);

    /// A descriptor that is readable when there may be one.
    fn raw_fd(&self) -> Option<i32>;
}
