//! Reads that wait for the medium while the image goes on.
//!
//! What the page cache has is read at once; a read that lies in one piece and is not there is left
//! under way, if the caller is prepared for that. Meanwhile anything may happen: the blocks may be
//! overwritten, copied elsewhere, and what is under way may be punched or removed. It is a read of
//! the moment when it began, or of a later one where that is gone: bytes that do not match the
//! checksums of the beginning are read again, as things are now.

use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use marcot_format::{BLOCK_BYTES, crc32c};
use marcot_store::{AsyncIo, Disk, DiskFile, IoCompletion};

use super::Image;
use crate::device::{CompletedRead, Completion};

/// Longest read that is left under way, in bytes; longer ones move enough to be worth the wait.
const IN_FLIGHT_BYTES_MAX: usize = 1 << 20;

/// What a read under way has to be.
struct Asked {
    offset: u64,
    bytes: usize,
    crcs: Vec<u32>,
}

/// What is under way: reads, and the writes of [`super::direct`].
#[derive(Default)]
pub(super) struct State {
    io: Option<Box<dyn AsyncIo>>,
    /// The disk has none.
    refused: bool,
    asked: HashMap<u64, Asked>,
}

/// A read that may be left under way.
pub(super) struct Candidate<'a> {
    pub number: u64,
    /// First byte of the image.
    pub offset: u64,
    pub file: &'a Arc<dyn DiskFile>,
    /// Where it lies in the file.
    pub place: u64,
    pub crcs: &'a [u32],
}

impl State {
    /// Where reads and writes go on, if the disk has such a place and it takes one more.
    pub(super) fn io(&mut self, disk: &dyn Disk) -> Option<&mut (dyn AsyncIo + 'static)> {
        if self.io.is_none() && !self.refused {
            self.io = disk.async_io();
            self.refused = self.io.is_none();
        }
        self.io.as_deref_mut().filter(|io| io.has_room())
    }

    /// True where a read of that many bytes could be left under way.
    pub(super) fn takes(&mut self, disk: &dyn Disk, bytes: usize) -> bool {
        bytes <= IN_FLIGHT_BYTES_MAX && self.io(disk).is_some()
    }

    /// Starts a read that [`Self::takes`] has agreed to.
    pub(super) fn start(&mut self, candidate: Candidate<'_>) {
        let Some(io) = &mut self.io else { return };
        let Candidate { number, offset, file, place, crcs } = candidate;
        let bytes = crcs.len() * BLOCK_BYTES as usize;
        let (file, buf, result) = (Arc::clone(file), vec![0; bytes], Ok(0));
        self.asked.insert(number, Asked { offset, bytes, crcs: crcs.to_vec() });
        io.start(marcot_store::AsyncRead { number, file, offset: place, buf, result });
    }

    /// Lets go what was started.
    pub(super) fn submit(&mut self) {
        if let Some(io) = &mut self.io {
            io.submit();
        }
    }

    /// Waits until something has completed, and takes it.
    pub(super) fn wait(&mut self) -> Option<IoCompletion> {
        let io = self.io.as_mut()?;
        io.wait();
        io.take()
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.io.as_ref()?.raw_fd()?;
        // SAFETY: the descriptor belongs to `io`, which lives as long as the borrow.
        Some(unsafe { BorrowedFd::borrow_raw(fd) })
    }
}

impl Image {
    /// Something that has ended since, and that somebody waits for.
    pub(super) fn take_completion(&mut self) -> Option<Completion> {
        loop {
            if let Some(told) = self.tell_written() {
                return Some(told);
            }
            let completed = match self.direct.take_read() {
                Some(read) => IoCompletion::Read(read),
                None => self.in_flight.io.as_mut()?.take()?,
            };
            match completed {
                IoCompletion::Read(read) => match self.finish_read(read) {
                    Some(read) => return Some(Completion::Read(read)),
                    None => continue,
                },
                IoCompletion::Write(write) => self.direct_completed(write),
            }
        }
    }

    fn finish_read(&mut self, read: marcot_store::AsyncRead) -> Option<CompletedRead> {
        let number = read.number;
        let asked = self.in_flight.asked.remove(&number)?;
        let blocks = read.buf.chunks_exact(BLOCK_BYTES as usize);
        let whole = read.result.is_ok_and(|n| n == asked.bytes)
            && blocks.zip(&asked.crcs).all(|(block, crc)| crc32c(block) == *crc);
        let mut buf = read.buf;
        let result = match whole {
            true => Ok(buf),
            false => self.read_at(asked.offset, &mut buf).map(|()| buf),
        };
        Some(CompletedRead { number, result })
    }
}
