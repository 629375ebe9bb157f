//! The move job: the part of compaction that a worker does. It reads a part of a segment, and writes live blocks
//! of the part before to another segment.
//!
//! The job knows nothing of the map. The image's thread decides between two jobs which blocks are live, and lets
//! the map name the copies once they are written.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use marcot_format::group::GroupHeader;
use marcot_format::{BLOCK_BYTES, crc32c};
use marcot_store::{DiskFile, Running, Workers};

const BLOCK: usize = BLOCK_BYTES as usize;
/// Slots of a segment that a job reads, unless a group is larger (2 MiB).
pub(super) const PART_SLOTS: usize = 512;

/// Groups that lie one after the other in a segment.
#[derive(Default)]
pub(super) struct Part {
    /// Slot where the first of them starts.
    pub slot: usize,
    pub bytes: Vec<u8>,
    /// Each group, and where it starts in `bytes`, in blocks.
    pub groups: Vec<(usize, GroupHeader)>,
    /// Blocks of `bytes` that do not match the checksum in their group's header.
    pub damaged: Vec<usize>,
    /// Length of the groups in blocks.
    pub blocks: usize,
}

/// A part to be read.
pub(super) struct PartToRead {
    pub file: Arc<dyn DiskFile>,
    /// The segment's number.
    pub sequence: u32,
    pub slot: usize,
}

/// Copies to be written.
pub(super) struct CopiesToWrite {
    pub file: Arc<dyn DiskFile>,
    pub offset: u64,
    /// Headers of groups, each with the blocks of `bytes` that follow it.
    pub groups: Vec<(Vec<u8>, Vec<usize>)>,
    pub bytes: Vec<u8>,
}

/// A file to be shortened.
pub(super) struct Cut {
    pub file: Arc<dyn DiskFile>,
    pub bytes: u64,
}

impl Cut {
    /// Where this fails, the file takes more room than it needs.
    pub(super) fn make(&self) {
        let _ = self.file.set_length(self.bytes);
    }
}

/// What a job does, in this order.
#[derive(Default)]
pub(super) struct MoveWork {
    pub cut: Option<Cut>,
    pub write: Option<CopiesToWrite>,
    pub read: Option<PartToRead>,
    /// Memory for the part.
    pub buffer: Vec<u8>,
}

/// What a job has done.
pub(super) struct MoveOutcome {
    pub written: io::Result<()>,
    /// The part; `None` where none was asked for, or the copies could not be written.
    pub part: Option<io::Result<Part>>,
    /// Memory for the next part.
    pub buffer: Vec<u8>,
}

impl MoveWork {
    fn run(self) -> MoveOutcome {
        if let Some(cut) = &self.cut {
            cut.make();
        }
        let written = self.write.as_ref().map_or(Ok(()), CopiesToWrite::write);
        let read = self.read.filter(|_| written.is_ok());
        let part = read.map(|read| read.read(self.buffer));
        let buffer = self.write.map(|write| write.bytes).unwrap_or_default();
        MoveOutcome { written, part, buffer }
    }
}

impl CopiesToWrite {
    fn write(&self) -> io::Result<()> {
        let mut parts: Vec<&[u8]> = Vec::new();
        for (header, blocks) in &self.groups {
            parts.push(header);
            parts.extend(blocks.iter().map(|at| &self.bytes[at * BLOCK..(at + 1) * BLOCK]));
        }
        self.file.write_at(self.offset, &parts)
    }
}

impl PartToRead {
    fn read(&self, mut bytes: Vec<u8>) -> io::Result<Part> {
        let offset = self.slot as u64 * BLOCK_BYTES;
        let read = |bytes: &mut Vec<u8>, slots: usize| {
            bytes.resize(slots * BLOCK, 0);
            let n = self.file.read_at(offset, bytes)?;
            bytes.truncate(n);
            Ok::<(), io::Error>(())
        };
        self.file.advise(offset, (2 * PART_SLOTS * BLOCK) as u64);
        read(&mut bytes, PART_SLOTS)?;
        if let Some(first) = self.header_at(&bytes, 0)
            && first.blocks() * BLOCK > bytes.len()
        {
            read(&mut bytes, first.blocks())?;
        }
        let mut part = Part { slot: self.slot, ..Part::default() };
        while let Some(header) = self.header_at(&bytes, part.blocks) {
            let next = part.blocks + header.blocks();
            if next * BLOCK > bytes.len() {
                break;
            }
            let first = part.blocks + header.header_blocks();
            let data = bytes[first * BLOCK..next * BLOCK].chunks_exact(BLOCK);
            let wrong =
                data.zip(&header.crcs).enumerate().filter(|(_, (b, crc))| crc32c(b) != **crc);
            part.damaged.extend(wrong.map(|(i, _)| first + i));
            part.groups.push((part.blocks, header));
            part.blocks = next;
        }
        part.bytes = bytes;
        Ok(part)
    }

    /// The header of the segment's group that starts at block `at` of `bytes`, if a whole one does.
    fn header_at(&self, bytes: &[u8], at: usize) -> Option<GroupHeader> {
        let rest = bytes.get(at * BLOCK..).filter(|rest| rest.len() >= BLOCK)?;
        let blocks = GroupHeader::peek(&rest[..BLOCK]).ok()?;
        let header = GroupHeader::decode(rest.get(..blocks * BLOCK)?).ok()?;
        // The file may have held another segment before.
        (header.sequence == self.sequence).then_some(header)
    }
}

/// A job that a worker runs. Dropping it waits for its end.
pub(super) struct MoveJob {
    /// It shortens a file.
    cuts: bool,
    running: Option<Box<dyn Running>>,
    outcome: Arc<Mutex<Option<MoveOutcome>>>,
}

impl MoveJob {
    pub(super) fn start(workers: &dyn Workers, work: MoveWork) -> Self {
        let outcome = Arc::new(Mutex::new(None));
        let (place, cuts) = (Arc::clone(&outcome), work.cut.is_some());
        let running = workers.start(Box::new(move || {
            let outcome = work.run();
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        }));
        Self { cuts, running: Some(running), outcome }
    }

    pub(super) fn is_cutting(&mut self) -> bool {
        self.cuts && !self.is_finished()
    }

    pub(super) fn is_finished(&mut self) -> bool {
        self.running.as_mut().is_none_or(|running| running.is_finished())
    }

    /// Waits for the outcome.
    pub(super) fn wait(mut self) -> MoveOutcome {
        if let Some(running) = self.running.take() {
            running.wait();
        }
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        outcome.unwrap_or_else(|| MoveOutcome {
            written: Err(io::Error::other("a worker ended without an outcome")),
            part: None,
            buffer: Vec::new(),
        })
    }
}

impl Drop for MoveJob {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            running.wait();
        }
    }
}
