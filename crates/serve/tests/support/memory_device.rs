//! A sparse device in memory, with errors on demand, for tests of front ends.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use marcot::{
    BlockDevice, CompletedRead, Completion, Error, ErrorKind, Extent, Housekeeping, IdleOutcome,
    Read, Result, Write,
};
use marcot_serve::control::{Command, Execute, Reply, UsageRow};

/// Unit of allocation in bytes.
pub const BLOCK_BYTES: u64 = 4096;

/// State that a test reads and sets from outside.
#[derive(Default)]
pub struct Probe {
    /// Sizes of the write batches so far.
    pub write_batches: Vec<usize>,
    /// Sizes of the read batches so far.
    pub read_batches: Vec<usize>,
    /// Flushes so far.
    pub flushes: usize,
    /// Discards so far: offset and length.
    pub discards: Vec<(u64, u64)>,
    /// Ranges read ahead.
    pub cached: Vec<(u64, u64)>,
    /// First bytes of the ranges that were searched for runs.
    pub looked_at: Vec<u64>,
    /// How many searches there had been when each batch of reads came.
    pub looked_before_reads: Vec<usize>,
    /// Background steps so far.
    pub steps: usize,
    /// Times that it was called to give memory back.
    pub memory_calls: usize,
    /// Background steps that report more work.
    pub steps_with_more: usize,
    /// Every write fails with this.
    pub fail_writes: Option<ErrorKind>,
    /// Every flush fails with this.
    pub fail_flushes: Option<ErrorKind>,
    /// Reads that touch this byte fail as corrupt.
    pub corrupt_at: Option<u64>,
    /// A checkpoint takes this long, and reports no progress.
    pub checkpoint_time: std::time::Duration,
    /// Closed properly.
    pub closed: bool,
    /// Closing takes this long.
    pub close_time: std::time::Duration,
    /// Bytes written since the last flush.
    pub unflushed_bytes: u64,
    /// Reads that may stay in flight do so.
    pub in_flight: bool,
    /// Reads in flight: number, offset and length.
    pub reads_in_flight: Vec<(u64, u64, usize)>,
    /// Reads that have completed.
    pub completed: Vec<CompletedRead>,
    /// Writes stay in flight.
    pub async_writes: bool,
    /// Number of batches of writes so far.
    pub batches: u64,
    /// The completion to report for writes.
    pub written: Option<Result<u64>>,
    /// Flushes stay under way.
    pub async_flushes: bool,
    /// Flushes that are under way.
    pub flushes_under_way: usize,
    /// The completion to report for flushes.
    pub flushed: Option<Result<u64>>,
}

/// A handle on a device's [`Probe`].
#[derive(Clone)]
pub struct Probes(Arc<Mutex<Probe>>, Arc<OwnedFd>);

impl Probes {
    /// Completes `count` reads in flight, the last one first. `end` gives the byte of each, or its error.
    pub fn complete(&self, count: usize, end: impl Fn(u64) -> Result<u8>) {
        let mut probe = self.get();
        for _ in 0..count {
            let (number, offset, bytes) = probe.reads_in_flight.pop().unwrap();
            let result = end(offset).map(|byte| vec![byte; bytes]);
            probe.completed.push(CompletedRead { number, result });
        }
        drop(probe);
        rustix::io::write(&*self.1, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Reports that batches below a number are stored, or that none will be.
    pub fn tell_written(&self, written: Result<u64>) {
        self.get().written = Some(written);
        rustix::io::write(&*self.1, &1_u64.to_ne_bytes()).unwrap();
    }

    /// Waits until this many batches of writes have come.
    pub fn await_batches(&self, count: u64) {
        for _ in 0..3000 {
            if self.get().batches == count {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} batches of writes have come, not {count}", self.get().batches);
    }

    /// Waits until this many reads are in flight.
    pub fn await_completions(&self, count: usize) {
        for _ in 0..3000 {
            if self.get().reads_in_flight.len() == count {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("{} reads are under way, not {count}", self.get().reads_in_flight.len());
    }

    /// The probe, to read or change it.
    pub fn get(&self) -> MutexGuard<'_, Probe> {
        self.0.lock().unwrap()
    }
}

/// The device.
pub struct MemoryDevice {
    blocks: BTreeMap<u64, Box<[u8]>>,
    size_bytes: u64,
    read_only: bool,
    probe: Probes,
    record: bool,
}

impl MemoryDevice {
    /// A device of holes.
    pub fn new(size_bytes: u64) -> Self {
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let probe = Probes(Arc::default(), Arc::new(event));
        Self { blocks: BTreeMap::new(), size_bytes, read_only: false, probe, record: true }
    }

    /// The same, refusing writes.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Does not record batch sizes, which would take more and more memory in a long run.
    pub fn unrecorded(mut self) -> Self {
        self.record = false;
        self
    }

    /// The probe of this device.
    pub fn probe(&self) -> Probes {
        self.probe.clone()
    }

    fn check(&self, offset: u64, length: u64) -> Result<()> {
        if offset.checked_add(length).is_some_and(|end| end <= self.size_bytes) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::OutOfRange, "out of range"))
    }

    fn store(&mut self, mut offset: u64, mut data: &[u8]) {
        while !data.is_empty() {
            let within = (offset % BLOCK_BYTES) as usize;
            let count = data.len().min(BLOCK_BYTES as usize - within);
            let block = self.blocks.entry(offset / BLOCK_BYTES).or_insert_with(zero_block);
            block[within..within + count].copy_from_slice(&data[..count]);
            data = &data[count..];
            offset += count as u64;
        }
    }

    fn load(&self, mut offset: u64, mut buf: &mut [u8]) {
        while !buf.is_empty() {
            let within = (offset % BLOCK_BYTES) as usize;
            let count = buf.len().min(BLOCK_BYTES as usize - within);
            let (part, rest) = buf.split_at_mut(count);
            match self.blocks.get(&(offset / BLOCK_BYTES)) {
                Some(block) => part.copy_from_slice(&block[within..within + count]),
                None => part.fill(0),
            }
            buf = rest;
            offset += count as u64;
        }
    }

    fn load_checked(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let length = buf.len() as u64;
        self.check(offset, length)?;
        let corrupt_at = self.probe.get().corrupt_at;
        if corrupt_at.is_some_and(|at| (offset..offset + length).contains(&at)) {
            return Err(Error::new(ErrorKind::Corrupt, "a block fails verification"));
        }
        self.load(offset, buf);
        Ok(())
    }

    fn usage(&self) -> Reply {
        let row = UsageRow {
            snapshot: None,
            snapshot_id: 0,
            provisioned_bytes: self.size_bytes,
            used_bytes: self.blocks.len() as u64 * BLOCK_BYTES,
        };
        Reply::Usage { rows: vec![row] }
    }
}

fn zero_block() -> Box<[u8]> {
    vec![0; BLOCK_BYTES as usize].into_boxed_slice()
}

fn injected(kind: Option<ErrorKind>) -> Result<()> {
    kind.map_or(Ok(()), |kind| Err(Error::new(kind, "injected")))
}

impl BlockDevice for MemoryDevice {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn write_batch(&mut self, writes: &[Write<'_>]) -> Result<()> {
        if self.record {
            self.probe.get().write_batches.push(writes.len());
        }
        injected(self.probe.get().fail_writes)?;
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "read-only"));
        }
        for write in writes {
            self.check(write.offset, write.data.len() as u64)?;
            self.store(write.offset, write.data);
            self.probe.get().unflushed_bytes += write.data.len() as u64;
        }
        Ok(())
    }

    fn write_batch_async(&mut self, writes: &[Write<'_>]) -> Result<Option<u64>> {
        self.write_batch(writes)?;
        let mut probe = self.probe.get();
        probe.batches += 1;
        Ok(probe.async_writes.then_some(probe.batches))
    }

    fn read_batch(&mut self, reads: &mut [Read<'_>]) {
        if self.record {
            let mut probe = self.probe.get();
            probe.read_batches.push(reads.len());
            let looked = probe.looked_at.len();
            probe.looked_before_reads.push(looked);
        }
        for read in reads {
            read.result = self.load_checked(read.offset, read.buf);
            let mut probe = self.probe.get();
            match read.in_flight.filter(|_| probe.in_flight) {
                Some(number) => probe.reads_in_flight.push((number, read.offset, read.buf.len())),
                None => read.in_flight = None,
            }
        }
    }

    fn take_completion(&mut self) -> Option<Completion> {
        let mut probe = self.probe.get();
        if let Some(written) = probe.written.take() {
            return Some(Completion::Written(written));
        }
        if let Some(flushed) = probe.flushed.take() {
            probe.flushes_under_way = 0;
            return Some(Completion::Flushed(flushed));
        }
        let completed = probe.completed.pop();
        if completed.is_none() {
            let _ = rustix::io::read(&*self.probe.1, &mut [0; 8]);
        }
        completed.map(Completion::Read)
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.probe.1.as_fd())
    }

    fn flush_async(&mut self) -> Result<Option<u64>> {
        self.flush()?;
        let mut probe = self.probe.get();
        if !probe.async_flushes {
            return Ok(None);
        }
        probe.flushes_under_way += 1;
        Ok(Some(probe.flushes as u64))
    }

    fn awaits_flush(&self) -> bool {
        self.probe.get().flushes_under_way > 0
    }

    fn discard(&mut self, offset: u64, length: u64) -> Result<()> {
        self.check(offset, length)?;
        if self.record {
            self.probe.get().discards.push((offset, length));
        }
        let end = offset + length;
        let first = offset.next_multiple_of(BLOCK_BYTES).min(end);
        let last = (end / BLOCK_BYTES * BLOCK_BYTES).max(first);
        for (from, to) in [(offset, first), (last, end)] {
            self.store(from, &vec![0; (to - from) as usize]);
        }
        let mut tail = self.blocks.split_off(&(first / BLOCK_BYTES));
        let mut rest = tail.split_off(&(last / BLOCK_BYTES).max(first / BLOCK_BYTES));
        self.blocks.append(&mut rest);
        if first == last {
            self.blocks.append(&mut tail);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let mut probe = self.probe.get();
        probe.flushes += 1;
        injected(probe.fail_flushes)?;
        probe.unflushed_bytes = 0;
        Ok(())
    }

    fn extents(&mut self, offset: u64, length: u64, extents_max: usize) -> Result<Vec<Extent>> {
        self.check(offset, length)?;
        if self.record {
            self.probe.get().looked_at.push(offset);
        }
        let mut extents: Vec<Extent> = Vec::new();
        let (mut position, end) = (offset, offset + length);
        while position < end {
            let stop = (position / BLOCK_BYTES + 1) * BLOCK_BYTES;
            let length = stop.min(end) - position;
            let data = self.blocks.contains_key(&(position / BLOCK_BYTES));
            if let Some(last) = extents.last_mut()
                && last.data == data
            {
                last.length += length;
            } else if extents.len() < extents_max {
                extents.push(Extent { offset: position, length, data });
            } else {
                break;
            }
            position += length;
        }
        Ok(extents)
    }

    fn cache(&mut self, offset: u64, length: u64) -> Result<()> {
        self.check(offset, length)?;
        self.probe.get().cached.push((offset, length));
        Ok(())
    }
}

impl Housekeeping for MemoryDevice {
    fn background_step(&mut self) -> Result<bool> {
        let mut probe = self.probe.get();
        probe.steps += 1;
        let more = probe.steps_with_more > 0;
        probe.steps_with_more = probe.steps_with_more.saturating_sub(1);
        Ok(more)
    }

    fn give_space_back(&mut self) {}

    fn rest(&mut self) -> Result<IdleOutcome> {
        self.probe.get().memory_calls += 1;
        Ok(IdleOutcome { freed_bytes: 0, unfinished: false })
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        let flushed = self.flush();
        let close_time = self.probe.get().close_time;
        std::thread::sleep(close_time);
        self.probe.get().closed = true;
        flushed
    }
}

impl Execute for MemoryDevice {
    fn execute(&mut self, command: &Command, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply> {
        match command {
            Command::Resize { size_bytes, .. } => self.size_bytes = *size_bytes,
            Command::Usage => return Ok(self.usage()),
            Command::Flatten => (0..=10).for_each(|done| progress(done, 10)),
            Command::Read { offset, length } => {
                let mut data = vec![0; *length as usize];
                self.load_checked(*offset, &mut data)?;
                return Ok(Reply::Data { data });
            }
            Command::Write { offset, data } => self.store(*offset, data),
            Command::SnapProtect { name } => {
                return Err(Error::new(ErrorKind::NotFound, format!("no snapshot {name}")));
            }
            Command::Checkpoint => {
                let time = self.probe.get().checkpoint_time;
                std::thread::sleep(time);
            }
            Command::Reclaim => panic!("injected panic"),
            _ => {}
        }
        Ok(Reply::Done)
    }
}
