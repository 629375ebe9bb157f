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
use marcot_store::{Disk, DiskFile, LateReads};

use super::Image;
use crate::device::LateRead;

/// Longest read that is left under way, in bytes; longer ones move enough to be worth the wait.
const LATE_BYTES_MAX: usize = 1 << 20;

/// What a read under way has to be.
struct Asked {
    offset: u64,
    bytes: usize,
    crcs: Vec<u32>,
}

/// Reads under way.
#[derive(Default)]
pub(super) struct State {
    reads: Option<Box<dyn LateReads>>,
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
    /// True where a read of that many bytes could be left under way.
    pub(super) fn takes(&mut self, disk: &dyn Disk, bytes: usize) -> bool {
        if self.reads.is_none() && !self.refused {
            self.reads = disk.late_reads();
            self.refused = self.reads.is_none();
        }
        bytes <= LATE_BYTES_MAX && self.reads.as_ref().is_some_and(|reads| reads.has_room())
    }

    /// Starts a read that [`Self::takes`] has agreed to.
    pub(super) fn start(&mut self, candidate: Candidate<'_>) {
        let Some(reads) = &mut self.reads else { return };
        let Candidate { number, offset, file, place, crcs } = candidate;
        let bytes = crcs.len() * BLOCK_BYTES as usize;
        let (file, buf, result) = (Arc::clone(file), vec![0; bytes], Ok(0));
        self.asked.insert(number, Asked { offset, bytes, crcs: crcs.to_vec() });
        reads.start(marcot_store::LateRead { number, file, offset: place, buf, result });
    }

    /// Lets go what was started.
    pub(super) fn submit(&mut self) {
        if let Some(reads) = &mut self.reads {
            reads.submit();
        }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        let fd = self.reads.as_ref()?.raw_fd()?;
        // SAFETY: the descriptor belongs to `reads`, which lives as long as the borrow.
        Some(unsafe { BorrowedFd::borrow_raw(fd) })
    }
}

impl Image {
    pub(super) fn take_late_read(&mut self) -> Option<LateRead> {
        let read = self.late.reads.as_mut()?.take()?;
        let number = read.number;
        let asked = self.late.asked.remove(&number)?;
        let blocks = read.buf.chunks_exact(BLOCK_BYTES as usize);
        let whole = read.result.is_ok_and(|n| n == asked.bytes)
            && blocks.zip(&asked.crcs).all(|(block, crc)| crc32c(block) == *crc);
        let mut buf = read.buf;
        let result = match whole {
            true => Ok(buf),
            false => self.read_at(asked.offset, &mut buf).map(|()| buf),
        };
        Some(LateRead { number, result })
    }
}
