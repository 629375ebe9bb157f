//! Requests that wait for the medium while the image goes on: reads, and the direct writes of the journal.
//!
//! A read whose data is not in the page cache is left in flight, if it lies in one piece and the caller is
//! prepared for that. Meanwhile anything may happen: its blocks may be overwritten or copied elsewhere, and
//! their old place may be punched or removed. The read returns what the image held when the read began, or
//! what it held later: bytes that do not match the checksums of the beginning are read again, as things are
//! then. Reads that have to wait for a service are in flight too; see `fetches`.

use std::collections::{HashMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use marcot_format::{BLOCK_BYTES, crc32c};
use marcot_store::{AsyncIo, AsyncRead, AsyncWrite, Disk, DiskFile, IoCompletion, Waker, World};

use crate::fetches::{Fetched, Fetches, Hands, LeftRead, Part};
use crate::segment::{Files, Need};

/// Longest read that is left in flight, in bytes. Longer reads are waited for: they move enough data to be
/// worth it.
const READ_BYTES_MAX: usize = 1 << 20;

/// What a read in flight has to return.
struct Asked {
    offset: u64,
    crcs: Vec<u32>,
}

/// A read that may be left in flight.
pub(crate) struct Candidate<'a> {
    /// The caller's number for it.
    pub number: u64,
    /// First byte of the image.
    pub offset: u64,
    /// Where its blocks lie: the file, and the first byte there.
    pub file: &'a Arc<dyn DiskFile>,
    pub place: u64,
    /// What each block must match.
    pub crcs: &'a [u32],
}

/// A read that has completed.
pub(crate) struct EndedRead {
    pub number: u64,
    /// First byte of the image.
    pub offset: u64,
    pub buf: Vec<u8>,
    /// All of it was read, and matches the checksums of the beginning.
    pub is_whole: bool,
}

/// A request that has completed.
pub(crate) enum Ended {
    Read(EndedRead),
    Write(AsyncWrite),
    Fetched(LeftRead, Fetched),
}

/// The requests of an open image that are in flight. Its front end waits for all of them by one descriptor.
#[derive(Default)]
pub(crate) struct InFlight {
    io: Option<Box<dyn AsyncIo>>,
    /// The disk has no asynchronous I/O.
    refused: bool,
    asked: HashMap<u64, Asked>,
    /// Reads that completed while a write was waited for.
    reads: VecDeque<AsyncRead>,
    fetches: Fetches,
}

impl InFlight {
    /// `None` where the disk has no asynchronous I/O, and where no more requests can be in flight.
    fn io(&mut self, disk: &dyn Disk) -> Option<&mut (dyn AsyncIo + 'static)> {
        self.any_io(disk).filter(|io| io.has_room())
    }

    fn any_io(&mut self, disk: &dyn Disk) -> Option<&mut (dyn AsyncIo + 'static)> {
        if self.io.is_none() && !self.refused {
            self.io = disk.async_io();
            self.refused = self.io.is_none();
        }
        self.io.as_deref_mut()
    }

    /// True where a read that waits for a service can be left in flight.
    pub(crate) fn takes_fetches(&mut self, disk: &dyn Disk) -> bool {
        self.any_io(disk).is_some()
    }

    /// What wakes the front end; `None` where it looks by itself.
    pub(crate) fn waker(&mut self) -> Option<Waker> {
        self.io.as_mut().and_then(|io| io.waker())
    }

    /// Fetches what a read needs before it can go on. Returns the read with a note of this. Only where
    /// [`Self::takes_fetches`].
    pub(crate) fn meet(&mut self, read: LeftRead, need: Need, files: &Arc<Files>) -> LeftRead {
        let hands = Hands { workers: &*files.world().workers, waker: self.waker() };
        self.fetches.meet(hands, read, need, Arc::clone(files))
    }

    /// Fetches the data of a read; see [`Fetches::read`]. Only where [`Self::takes_fetches`].
    pub(crate) fn fetch(
        &mut self,
        world: &World,
        read: LeftRead,
        blocks: Vec<u8>,
        parts: Vec<Part>,
    ) {
        let hands = Hands { workers: &*world.workers, waker: self.waker() };
        self.fetches.read(hands, read, blocks, parts);
    }

    /// True where a read of that many bytes could be left in flight.
    pub(crate) fn takes_read(&mut self, disk: &dyn Disk, bytes: usize) -> bool {
        bytes <= READ_BYTES_MAX && self.io(disk).is_some()
    }

    /// Starts a read for which [`Self::takes_read`] was true.
    pub(crate) fn start_read(&mut self, candidate: Candidate<'_>) {
        let Some(io) = &mut self.io else { return };
        let Candidate { number, offset, file, place, crcs } = candidate;
        let bytes = crcs.len() * BLOCK_BYTES as usize;
        let (file, buf, result) = (Arc::clone(file), vec![0; bytes], Ok(0));
        self.asked.insert(number, Asked { offset, crcs: crcs.to_vec() });
        io.start(AsyncRead { number, file, offset: place, buf, result });
    }

    /// True where a write could be started now.
    pub(crate) fn takes_writes(&mut self, disk: &dyn Disk) -> bool {
        self.io(disk).is_some_and(|io| io.takes_writes())
    }

    /// Starts a write.
    ///
    /// # Errors
    /// Gives it back where it cannot be started now.
    pub(crate) fn start_write(
        &mut self,
        disk: &dyn Disk,
        write: AsyncWrite,
    ) -> Result<(), AsyncWrite> {
        let Some(io) = self.io(disk) else { return Err(write) };
        io.start_write(write);
        io.submit();
        Ok(())
    }

    /// Hands the reads that were started to the operating system.
    pub(crate) fn submit(&mut self) {
        if let Some(io) = &mut self.io {
            io.submit();
        }
    }

    /// Waits until a write has completed, and takes it; reads that complete meanwhile are kept. `None`: there
    /// is nothing to wait for.
    pub(crate) fn wait_for_write(&mut self) -> Option<AsyncWrite> {
        let io = self.io.as_mut()?;
        loop {
            io.wait();
            match io.take()? {
                IoCompletion::Write(write) => return Some(write),
                IoCompletion::Read(read) => self.reads.push_back(read),
            }
        }
    }

    /// Takes a request that has completed by now.
    pub(crate) fn take(&mut self, world: &World) -> Option<Ended> {
        loop {
            let ended = match self.reads.pop_front() {
                Some(read) => IoCompletion::Read(read),
                // Wakes that come later are for fetches that end later.
                None => match self.io.as_mut()?.take() {
                    Some(ended) => ended,
                    None if self.fetches.is_empty() => return None,
                    None => {
                        let (read, fetched) = self.fetches.take(&*world.workers)?;
                        return Some(Ended::Fetched(read, fetched));
                    }
                },
            };
            match ended {
                IoCompletion::Write(write) => return Some(Ended::Write(write)),
                IoCompletion::Read(read) => {
                    if let Some(asked) = self.asked.remove(&read.number) {
                        return Some(Ended::Read(asked.compare(read)));
                    }
                }
            }
        }
    }

    /// Readable when a request may have completed.
    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.io.as_ref()?.raw_fd()?;
        // SAFETY: the descriptor belongs to `io`, which lives as long as the borrow.
        Some(unsafe { BorrowedFd::borrow_raw(fd) })
    }
}

impl Asked {
    fn compare(self, read: AsyncRead) -> EndedRead {
        let AsyncRead { number, buf, result, .. } = read;
        let blocks = buf.chunks_exact(BLOCK_BYTES as usize);
        let is_whole = result.is_ok_and(|n| n == buf.len())
            && blocks.zip(&self.crcs).all(|(block, crc)| crc32c(block) == *crc);
        EndedRead { number, offset: self.offset, buf, is_whole }
    }
}
