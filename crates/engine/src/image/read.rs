//! Reading: look up, read what lies together in one go, verify every block.

use std::sync::Arc;

use marcot_format::{BLOCK_BYTES, MAP_FANOUT, MapEntry, SegmentIndex, Slot, crc32c};
use marcot_store::{DiskFile, FileRead};

use super::Image;
use crate::device::Read;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::fault::{self, Fault};
use crate::fetches::{From, LeftRead, Part};
use crate::in_flight::Candidate;
use crate::map::{Leaf, position};
use crate::segment::{Need, SegmentName};

const BLOCK: usize = BLOCK_BYTES as usize;

/// Blocks that lie together in a segment and belong together in a buffer.
struct Piece {
    /// Index of the read.
    target: usize,
    /// Where in the target's buffer, in bytes.
    at: usize,
    /// First block of the image.
    block: u64,
    index: SegmentIndex,
    slot: Slot,
    blocks: usize,
    /// Index of its first checksum in the plan.
    crc_at: usize,
    /// They are still in the source of a migration, outside the store. There is no segment then.
    external: bool,
}

#[derive(Default)]
struct Plan {
    pieces: Vec<Piece>,
    crcs: Vec<u32>,
    files: Vec<PlanFile>,
    /// Reads that are not planned, because something has to be fetched before.
    left: Vec<usize>,
    /// Some of the files may have to wait for a service.
    waits: bool,
}

/// A segment that is read.
struct PlanFile {
    index: SegmentIndex,
    name: SegmentName,
    file: Arc<dyn DiskFile>,
    /// See [`DiskFile::local_copy`].
    copy: Option<Arc<dyn DiskFile>>,
}

impl PlanFile {
    /// Where it is read first.
    fn nearest(&self) -> &Arc<dyn DiskFile> {
        self.copy.as_ref().unwrap_or(&self.file)
    }
}

/// The entries of a leaf, into which the log is to be brought. Where the leaf is damaged, the blocks about
/// which the log says nothing are lost.
fn entries_below(
    leaf: Result<Option<&Leaf>>,
    range: std::ops::Range<usize>,
) -> Result<Vec<MapEntry>> {
    match leaf {
        Ok(Some(leaf)) => Ok(leaf[range].to_vec()),
        Ok(None) => Ok(vec![MapEntry::HOLE; range.len()]),
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(vec![MapEntry::LOST; range.len()]),
        Err(error) => Err(error),
    }
}

/// True where a read may have failed because its data was moved to another pool.
fn may_have_moved(read: &Read<'_>) -> bool {
    let kind = read.result.as_ref().err().map(Error::kind);
    matches!(kind, Some(ErrorKind::Corrupt | ErrorKind::Io))
}

impl Image {
    pub(super) fn read_all(&mut self, reads: &mut [Read<'_>]) {
        let waits =
            |read: &Read<'_>| self.is_behind_parked(read.offset, read.buf.len() as u64, true);
        if !reads.iter().any(waits) {
            return self.read_all_after(reads, None);
        }
        for read in reads {
            let (offset, length) = (read.offset, read.buf.len() as u64);
            match read.in_flight {
                Some(number) if self.park_read(number, offset, length) => continue,
                None if self.is_behind_parked(offset, length, true) => self.finish_parked(),
                _ => {}
            }
            self.read_all_after(std::slice::from_mut(read), None);
        }
    }

    /// Reads, although parked requests may be in the way.
    pub(super) fn read_now(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut reads = [Read::new(offset, buf)];
        self.read_all_after(&mut reads, None);
        let [read] = reads;
        read.result
    }

    /// Loads a block that a write covers in part. What has to be fetched of it is noted where waiting is refused.
    pub(super) fn load_block(&mut self, block: u64) -> Result<()> {
        let (mut plan, mut buffer) = (Plan::default(), vec![0; BLOCK]);
        self.plan_one(0, block, &mut buffer, &mut plan)?;
        for piece in &plan.pieces {
            if let Some(source) = self.external.as_ref().filter(|_| piece.external) {
                let at = piece.block * BLOCK_BYTES;
                // A write that fails needs nothing more.
                if !source.has_fetched(at)? {
                    return self.state.table.need(Need::External(Arc::clone(source), at));
                }
                continue;
            }
            let Some(file) = plan.file(piece.index) else { continue };
            if file.nearest().waits_for_service() {
                let (files, at) = (self.identity.pool.files(), piece.slot.offset_bytes());
                self.state.table.read_segment(files, file.name, at, &mut buffer)?;
            }
        }
        Ok(())
    }

    /// Goes on with a read for which something was fetched. `None`: it needs more.
    pub(super) fn read_on(&mut self, left: LeftRead) -> Option<Result<Vec<u8>>> {
        let mut buf = vec![0; left.bytes];
        let mut reads = [Read { in_flight: Some(left.number), ..Read::new(left.offset, &mut buf) }];
        self.read_all_after(&mut reads, Some(left));
        let [Read { result, in_flight, .. }] = reads;
        in_flight.is_none().then(|| result.map(|()| buf))
    }

    /// `left`: what the only read was when it was left in flight.
    fn read_all_after(&mut self, reads: &mut [Read<'_>], left: Option<LeftRead>) {
        for read in reads.iter_mut() {
            read.result = self.check_range(read.offset, read.buf.len() as u64);
        }
        self.read_left(reads, left);
    }

    /// Performs the reads whose `result` is `Ok` so far. Whole blocks may reach beyond the image's end.
    pub(super) fn read_checked(&mut self, reads: &mut [Read<'_>]) {
        self.read_left(reads, None);
    }

    fn read_left(&mut self, reads: &mut [Read<'_>], left: Option<LeftRead>) {
        let mut spare: Vec<(usize, Vec<u8>)> = Vec::new();
        for (i, read) in reads.iter_mut().enumerate() {
            let aligned =
                read.offset.is_multiple_of(BLOCK_BYTES) && read.buf.len().is_multiple_of(BLOCK);
            if !aligned && read.result.is_ok() {
                let start = read.offset / BLOCK_BYTES;
                let end = (read.offset + read.buf.len() as u64).div_ceil(BLOCK_BYTES);
                spare.push((i, vec![0; (end - start) as usize * BLOCK]));
            }
        }
        let mut plan = Plan::default();
        self.plan_all(reads, &mut spare, &mut plan, left);
        self.perform(reads, &mut spare, &plan, left);
        if reads.iter().any(may_have_moved) && self.state.table.follow() {
            self.read_again(reads, &mut spare);
        }
        for (i, buffer) in &spare {
            let read = &mut reads[*i];
            let within = (read.offset % BLOCK_BYTES) as usize;
            let length = read.buf.len();
            read.buf.copy_from_slice(&buffer[within..within + length]);
        }
        self.evict(self.limits().map_memory_bytes);
    }

    /// Performs those reads again whose data may have moved.
    fn read_again(&mut self, reads: &mut [Read<'_>], spare: &mut [(usize, Vec<u8>)]) {
        for (i, read) in reads.iter_mut().enumerate().filter(|(_, read)| may_have_moved(read)) {
            let whole = spare.iter_mut().find(|(at, _)| *at == i);
            let buffer = match whole {
                Some((_, buffer)) => &mut buffer[..],
                None => &mut *read.buf,
            };
            let mut again = [Read::new(read.offset / BLOCK_BYTES * BLOCK_BYTES, buffer)];
            let mut plan = Plan::default();
            self.plan_all(&mut again, &mut [], &mut plan, None);
            self.perform(&mut again, &mut [], &plan, None);
            let [again] = again;
            read.result = again.result;
        }
    }

    fn plan_all(
        &mut self,
        reads: &mut [Read<'_>],
        spare: &mut [(usize, Vec<u8>)],
        plan: &mut Plan,
        left: Option<LeftRead>,
    ) {
        let disk = Arc::clone(&self.identity.pool.files().world().disk);
        let mut spares = spare.iter_mut().peekable();
        for (i, read) in reads.iter_mut().enumerate() {
            if read.result.is_err() {
                continue;
            }
            let (block, bytes) = (read.offset / BLOCK_BYTES, read.buf.len());
            let buffer: &mut [u8] = match spares.next_if(|(at, _)| *at == i) {
                Some((_, buffer)) => buffer,
                None => read.buf,
            };
            let Some(number) = read.in_flight.filter(|_| self.in_flight.takes_fetches(&*disk))
            else {
                read.result = self.plan_one(i, block, buffer, plan);
                continue;
            };
            self.state.table.refuse_waiting();
            read.result = self.plan_one(i, block, buffer, plan);
            let Some(need) = self.state.table.allow_waiting() else { continue };
            plan.forget(i);
            let asked = left.unwrap_or_else(|| LeftRead::new(number, read.offset, bytes));
            if asked.has_to_wait(&need) {
                read.result = self.plan_one(i, block, buffer, plan);
            } else {
                read.result = Ok(());
                plan.left.push(i);
                self.in_flight.meet(asked, need, self.identity.pool.files());
            }
        }
    }

    /// Plans the read of one buffer. Holes are filled with zeros at once.
    fn plan_one(
        &mut self,
        target: usize,
        block: u64,
        buffer: &mut [u8],
        plan: &mut Plan,
    ) -> Result<()> {
        let end = block + (buffer.len() / BLOCK) as u64;
        let mut at = block;
        while at < end {
            let stop = end.min((at | (MAP_FANOUT as u64 - 1)) + 1);
            let overlaid = self.overlay_for(at, stop)?.is_some_and(|o| o.has_any(at, stop));
            let (map, mut source) = self.state.parts();
            let leaf = map.leaf(at, &mut source);
            let bytes = &mut buffer[(at - block) as usize * BLOCK..(stop - block) as usize * BLOCK];
            let place = (at - block) as usize * BLOCK;
            let range = position(at, 0)..position(at, 0) + (stop - at) as usize;
            match self.overlay.as_ref().filter(|_| overlaid) {
                Some(overlay) => {
                    let mut entries = entries_below(leaf, range)?;
                    overlay.patch(at, &mut entries);
                    plan.add_leaf(target, place, at, &entries, bytes);
                }
                None => match leaf? {
                    None => bytes.fill(0),
                    Some(leaf) => plan.add_leaf(target, place, at, &leaf[range], bytes),
                },
            }
            at = stop;
        }
        for i in (0..plan.pieces.len()).rev().take_while(|i| plan.pieces[*i].target == target) {
            let index = plan.pieces[i].index;
            if plan.pieces[i].external && self.external.is_some() {
                plan.waits = true;
                continue;
            }
            if index == SegmentIndex::default() {
                let block = plan.pieces[i].block;
                let message = format!(
                    "block {block} of {} was lost with a damaged map page",
                    self.identity.label
                );
                tracing::error!(image = %self.identity.label, block, "{message}");
                return fail(ErrorKind::Corrupt, message);
            }
            if plan.file(index).is_none() {
                let name = self.state.table.name(index, self.identity.pool.files())?;
                let file = self.state.table.file(self.identity.pool.files(), name);
                let file = file.inspect_err(|error| {
                    if self.state.table.needs_something() {
                        return;
                    }
                    let block = plan.pieces[i].block;
                    tracing::error!(image = %self.identity.label, block, segment = %name, error = %error.sentence(), "a block cannot be read");
                })?;
                let copy = file.local_copy();
                let file = PlanFile { index, name, file, copy };
                plan.waits |= file.nearest().waits_for_service();
                plan.files.push(file);
            }
        }
        Ok(())
    }

    fn perform(
        &mut self,
        reads: &mut [Read<'_>],
        spare: &mut [(usize, Vec<u8>)],
        plan: &Plan,
        left_before: Option<LeftRead>,
    ) {
        if !self.journal.is_idle() {
            for piece in &plan.pieces {
                let slots = piece.slot..piece.slot.after(piece.blocks as u32);
                self.journal.await_slots(piece.index, &slots, &mut self.in_flight);
            }
        }
        let disk = Arc::clone(&self.identity.pool.files().world().disk);
        let mut ops: Vec<FileRead<'_>> = Vec::with_capacity(plan.pieces.len());
        let mut of_op: Vec<usize> = Vec::with_capacity(plan.pieces.len());
        let mut failed: Vec<(usize, Error)> = Vec::new();
        let mut pieces = plan.pieces.iter().enumerate().peekable();
        let mut spares = spare.iter_mut().peekable();
        let mut left = false;
        for (i, read) in reads.iter_mut().enumerate() {
            if plan.left.contains(&i) {
                spares.next_if(|(at, _)| *at == i);
                continue;
            }
            let asked = read.in_flight.take();
            // Only whole blocks that lie together are left to the medium.
            let wanted = asked.filter(|_| spares.peek().is_none_or(|(at, _)| *at != i));
            let bytes = read.buf.len();
            let mut rest: &mut [u8] = match spares.next_if(|(at, _)| *at == i) {
                Some((_, buffer)) => buffer,
                None => read.buf,
            };
            if let Some(number) = asked.filter(|_| plan.waits && read.result.is_ok())
                && plan.waits_for_service(i)
                && self.in_flight.takes_fetches(&*disk)
            {
                let asked =
                    left_before.unwrap_or_else(|| LeftRead::new(number, read.offset, bytes));
                read.in_flight = self.fetch(asked, rest, plan.of_target(i), plan);
                while pieces.next_if(|(_, p)| p.target == i).is_some() {}
                continue;
            }
            let mut position = 0;
            while let Some((number, piece)) = pieces.next_if(|(_, p)| p.target == i) {
                if read.result.is_err() {
                    continue;
                }
                let (_, tail) = std::mem::take(&mut rest).split_at_mut(piece.at - position);
                let (buf, tail) = tail.split_at_mut(piece.blocks * BLOCK);
                (rest, position) = (tail, piece.at + buf.len());
                if let Some(source) = self.external.as_ref().filter(|_| piece.external) {
                    if let Err(error) = source.take(piece.block * BLOCK_BYTES, buf) {
                        failed.push((i, error));
                    }
                    continue;
                }
                let Some(file) = plan.file(piece.index).map(PlanFile::nearest) else { continue };
                let offset = piece.slot.offset_bytes();
                if let Some(asked) = wanted.filter(|_| piece.blocks * BLOCK == bytes)
                    && self.in_flight.takes_read(&*disk, bytes)
                {
                    let result = file.read_cached_at(offset, buf);
                    if result.as_ref().is_ok_and(|n| *n == bytes) {
                        let mut op = FileRead { file: &**file, offset, buf, result };
                        if let Err(error) = self.verify(&mut op, piece, plan) {
                            failed.push((i, error));
                        }
                        continue;
                    }
                    if result.is_ok()
                        || result.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock)
                    {
                        let crcs = &plan.crcs[piece.crc_at..piece.crc_at + piece.blocks];
                        let (number, place) = (asked, offset);
                        let offset = read.offset;
                        self.in_flight.start_read(Candidate { number, offset, file, place, crcs });
                        (read.in_flight, left) = (Some(asked), true);
                        continue;
                    }
                }
                ops.push(FileRead { file: &**file, offset, buf, result: Ok(0) });
                of_op.push(number);
            }
        }
        if left {
            self.in_flight.submit();
        }
        if !ops.is_empty() {
            disk.read_batch(&mut ops);
        }
        for (op, number) in ops.iter_mut().zip(&of_op) {
            let piece = &plan.pieces[*number];
            if let Err(error) = self.verify(op, piece, plan) {
                failed.push((piece.target, error));
            }
        }
        drop(ops);
        for (target, error) in failed {
            reads[target].result = Err(error);
        }
    }

    /// Reads what the cache of the host has of a read, and leaves the rest in flight. Returns the read's number, where
    /// there is a rest.
    fn fetch<'p>(
        &mut self,
        read: LeftRead,
        blocks: &mut [u8],
        pieces: impl Iterator<Item = &'p Piece>,
        plan: &Plan,
    ) -> Option<u64> {
        let mut missing = Vec::new();
        for piece in pieces {
            if let Some(source) = self.external.as_ref().filter(|_| piece.external) {
                let (from, place) = (From::External(Arc::clone(source)), piece.block * BLOCK_BYTES);
                missing.push(Part { from, place, at: piece.at, blocks: piece.blocks });
                continue;
            }
            let Some(file) = plan.file(piece.index).map(PlanFile::nearest) else { continue };
            let (offset, bytes) = (piece.slot.offset_bytes(), piece.blocks * BLOCK);
            let buf = &mut blocks[piece.at..piece.at + bytes];
            let result = file.read_cached_at(offset, buf);
            if first_wrong(&FileRead { file: &**file, offset, buf, result }, piece, plan).is_some()
            {
                let crcs = plan.crcs[piece.crc_at..piece.crc_at + piece.blocks].to_vec();
                let from = From::Segment(Arc::clone(file), crcs);
                missing.push(Part { from, place: offset, at: piece.at, blocks: piece.blocks });
            }
        }
        if missing.is_empty() {
            return None;
        }
        let world = self.identity.pool.files().world();
        self.in_flight.fetch(world, read, blocks.to_vec(), missing);
        Some(read.number)
    }

    /// Compares what was read with the checksums in the map. What is wrong in a local copy of the segment is read
    /// from the segment itself.
    fn verify(&self, op: &mut FileRead<'_>, piece: &Piece, plan: &Plan) -> Result<()> {
        if op.result.as_ref().is_err_and(is_of_service) {
            let outcome = std::mem::replace(&mut op.result, Ok(0));
            return outcome.map(drop).at(|| format!("{} cannot be read", self.identity.label));
        }
        let mut wrong = first_wrong(op, piece, plan);
        if wrong.is_some()
            && let Some(PlanFile { file, copy: Some(_), name, .. }) = plan.file(piece.index)
        {
            tracing::debug!(segment = %name, "read from the segment, because its copy is wrong");
            op.result = file.read_at(op.offset, op.buf);
            wrong = first_wrong(op, piece, plan);
        }
        match wrong {
            None => Ok(()),
            Some((i, what)) => self.damaged(piece, plan, i, &what),
        }
    }

    fn damaged(&self, piece: &Piece, plan: &Plan, i: usize, what: &str) -> Result<()> {
        let (block, slot) = (piece.block + i as u64, piece.slot.after(i as u32).0);
        let name = plan.file(piece.index).map(|file| file.name);
        let segment = name.map(|n| n.to_string()).unwrap_or_default();
        let message = format!(
            "block {block} of {} (segment {segment}, slot {slot}) {what}",
            self.identity.label
        );
        tracing::error!(image = %self.identity.label, block, segment, slot, "{message}");
        fail(ErrorKind::Corrupt, message)
    }

    /// Reads one whole block, zeros where nothing is mapped.
    pub(super) fn read_exact_block(&mut self, block: u64, buffer: &mut [u8]) -> Result<()> {
        let mut reads = [Read::new(block * BLOCK_BYTES, buffer)];
        let mut plan = Plan::default();
        self.plan_all(&mut reads, &mut [], &mut plan, None);
        self.perform(&mut reads, &mut [], &plan, None);
        if may_have_moved(&reads[0]) && self.state.table.follow() {
            self.read_again(&mut reads, &mut []);
        }
        let [read] = reads;
        read.result
    }

    pub(super) fn advise(&mut self, offset: u64, length: u64) -> Result<()> {
        self.check_range(offset, length)?;
        let (from, to) = (offset / BLOCK_BYTES, (offset + length).div_ceil(BLOCK_BYTES));
        let mut plan = Plan::default();
        let mut at = from;
        while at < to {
            let stop = to.min((at | (MAP_FANOUT as u64 - 1)) + 1);
            let mut buffer = vec![0; (stop - at) as usize * BLOCK];
            self.plan_one(0, at, &mut buffer, &mut plan)?;
            at = stop;
        }
        for piece in &plan.pieces {
            if let Some(file) = plan.file(piece.index).map(PlanFile::nearest) {
                file.advise(piece.slot.offset_bytes(), (piece.blocks * BLOCK) as u64);
            }
        }
        self.evict(self.limits().map_memory_bytes);
        Ok(())
    }
}

/// True where a service does not give what it has, which says nothing of the blocks.
fn is_of_service(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{PermissionDenied, TimedOut};
    matches!(error.kind(), TimedOut | PermissionDenied)
}

/// The first of the blocks that is not what it should be, and what is wrong with it.
fn first_wrong(op: &FileRead<'_>, piece: &Piece, plan: &Plan) -> Option<(usize, String)> {
    let have = match &op.result {
        Ok(n) => *n,
        Err(error) => return Some((0, format!("cannot be read: {error}"))),
    };
    for i in 0..piece.blocks {
        let end = (i + 1) * BLOCK;
        if have < end {
            return Some((i, "lies beyond the end of its segment".to_owned()));
        }
        let right = crc32c(&op.buf[i * BLOCK..end]) == plan.crcs[piece.crc_at + i];
        if !right && !fault::is(Fault::ReadUnverified) {
            return Some((i, "does not match its checksum".to_owned()));
        }
    }
    None
}

impl Plan {
    /// The pieces of a read.
    fn of_target(&self, target: usize) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(move |piece| piece.target == target)
    }

    /// Forgets the pieces of the read that was planned last.
    fn forget(&mut self, target: usize) {
        while let Some(piece) = self.pieces.pop_if(|piece| piece.target == target) {
            self.crcs.truncate(piece.crc_at);
        }
    }

    /// True where a read may have to wait for a service.
    fn waits_for_service(&self, target: usize) -> bool {
        self.of_target(target).any(|piece| match self.file(piece.index) {
            Some(file) => file.nearest().waits_for_service(),
            None => piece.external,
        })
    }

    fn file(&self, index: SegmentIndex) -> Option<&PlanFile> {
        self.files.iter().find(|file| file.index == index)
    }

    /// Adds the blocks of one leaf that cover `bytes`, from block `block` on.
    fn add_leaf(
        &mut self,
        target: usize,
        at: usize,
        block: u64,
        entries: &[MapEntry],
        bytes: &mut [u8],
    ) {
        for (i, entry) in entries.iter().enumerate() {
            let address = entry.address;
            let place = at + i * BLOCK;
            if address.is_hole() {
                bytes[i * BLOCK..(i + 1) * BLOCK].fill(0);
                continue;
            }
            let external = address.is_external();
            match self.pieces.last_mut() {
                Some(p)
                    if p.target == target
                        && p.index == address.index()
                        && p.external == external
                        && (external || p.slot.after(p.blocks as u32) == address.slot())
                        && p.at + p.blocks * BLOCK == place =>
                {
                    p.blocks += 1;
                }
                _ => self.pieces.push(Piece {
                    target,
                    at: place,
                    block: block + i as u64,
                    index: address.index(),
                    slot: address.slot(),
                    blocks: 1,
                    crc_at: self.crcs.len(),
                    external,
                }),
            }
            self.crcs.push(entry.crc);
        }
    }
}
