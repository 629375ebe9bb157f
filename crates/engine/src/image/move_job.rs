//! The move job: the part of compaction that workers do. One reads a part of a segment, and another one writes live
//! blocks of the part before to another segment meanwhile.
//!
//! The job knows nothing of the map. The image's thread decides between two jobs which blocks are live, and lets
//! the map name the copies once they are written.

use std::io;
use std::sync::Arc;

use marcot_format::group::GroupHeader;
use marcot_format::{BLOCK_BYTES, crc32c};
use marcot_store::{DiskFile, Task, Workers};

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

/// What a job does: a part is read while copies are written.
#[derive(Default)]
pub(super) struct MoveWork {
    /// Done before copies are written.
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

/// Copies that were written, or not, and the memory they came from.
struct Written {
    result: io::Result<()>,
    buffer: Vec<u8>,
}

fn write(cut: Option<&Cut>, copies: Option<CopiesToWrite>) -> Written {
    if let Some(cut) = cut {
        cut.make();
    }
    let result = copies.as_ref().map_or(Ok(()), CopiesToWrite::write);
    Written { result, buffer: copies.map(|copies| copies.bytes).unwrap_or_default() }
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

/// A job that workers run. Dropping it waits for its end.
pub(super) struct MoveJob {
    /// It shortens a file.
    cuts: bool,
    write: Option<Task<Written>>,
    read: Option<Task<io::Result<Part>>>,
}

impl MoveJob {
    pub(super) fn start(workers: &dyn Workers, work: MoveWork) -> Self {
        let MoveWork { cut, write: copies, read, buffer } = work;
        let cuts = cut.is_some();
        let writes = cuts || copies.is_some();
        let write = writes.then(|| Task::start(workers, move || self::write(cut.as_ref(), copies)));
        let read = read.map(|read| Task::start(workers, move || read.read(buffer)));
        Self { cuts, write, read }
    }

    pub(super) fn is_cutting(&mut self) -> bool {
        self.cuts && !self.is_finished()
    }

    pub(super) fn is_finished(&mut self) -> bool {
        let write = self.write.as_mut().is_none_or(|task| task.is_finished());
        write && self.read.as_mut().is_none_or(|task| task.is_finished())
    }

    /// Waits for the outcome.
    pub(super) fn wait(mut self) -> MoveOutcome {
        let ended = || io::Error::other("a worker ended without an outcome");
        let nothing = Written { result: Ok(()), buffer: Vec::new() };
        let Written { result: written, buffer } = match self.write.take() {
            Some(task) => {
                task.wait().unwrap_or_else(|| Written { result: Err(ended()), buffer: Vec::new() })
            }
            None => nothing,
        };
        let part = self.read.take().map(|task| task.wait().unwrap_or_else(|| Err(ended())));
        MoveOutcome { part: part.filter(|_| written.is_ok()), written, buffer }
    }
}

impl Drop for MoveJob {
    fn drop(&mut self) {
        let Self { write, read, .. } = self;
        write.take().map(Task::wait);
        read.take().map(Task::wait);
    }
}
