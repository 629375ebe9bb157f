//! An image in memory that counts what it is asked, and answers from a thread of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use crate::device::{Completion, DeviceIo, Request};

const BLOCK_BYTES: u64 = 4096;

/// What has been asked so far.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub reads: usize,
    pub writes: usize,
    pub write_bytes_max: usize,
    pub read_bytes_max: usize,
    pub flushes: usize,
    pub discards: Vec<(u64, u64)>,
}

#[derive(Default)]
struct State {
    blocks: BTreeMap<u64, Vec<u8>>,
    seen: Seen,
    fail_flushes: Option<Errno>,
}

impl State {
    fn read(&self, offset: u64, length: u32) -> Vec<u8> {
        let mut bytes = vec![0; length as usize];
        each_block(offset, length.into(), |block, within, at| {
            if let Some(stored) = self.blocks.get(&block) {
                bytes[at.clone()].copy_from_slice(&stored[within]);
            }
        });
        bytes
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        each_block(offset, data.len() as u64, |block, within, at| {
            let stored = self.blocks.entry(block).or_insert_with(|| vec![0; BLOCK_BYTES as usize]);
            stored[within].copy_from_slice(&data[at.clone()]);
        });
    }

    fn discard(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let whole = offset.div_ceil(BLOCK_BYTES)..end / BLOCK_BYTES;
        if whole.start < whole.end {
            let dropped: Vec<u64> = self.blocks.range(whole).map(|(block, _)| *block).collect();
            dropped.iter().for_each(|block| drop(self.blocks.remove(block)));
        }
        each_edge(offset, end, |from, to| {
            if self.blocks.contains_key(&(from / BLOCK_BYTES)) {
                self.write(from, &vec![0; (to - from) as usize]);
            }
        });
    }

    fn carry_out(&mut self, request: Request) -> Result<Vec<u8>, Errno> {
        match request {
            Request::Read { offset, length } => {
                self.seen.reads += 1;
                self.seen.read_bytes_max = self.seen.read_bytes_max.max(length as usize);
                return Ok(self.read(offset, length));
            }
            Request::Write { offset, data } => {
                self.seen.writes += 1;
                self.seen.write_bytes_max = self.seen.write_bytes_max.max(data.len());
                self.write(offset, &data);
            }
            Request::Discard { offset, length } => {
                self.seen.discards.push((offset, length));
                self.discard(offset, length);
            }
            Request::Flush => {
                self.seen.flushes += 1;
                if let Some(errno) = self.fail_flushes {
                    return Err(errno);
                }
            }
        }
        Ok(Vec::new())
    }
}

type Range = std::ops::Range<usize>;

/// Calls with the block, the range within it, and the range within the request.
fn each_block(offset: u64, length: u64, mut call: impl FnMut(u64, Range, &Range)) {
    let mut done = 0;
    while done < length {
        let (block, within) = ((offset + done) / BLOCK_BYTES, (offset + done) % BLOCK_BYTES);
        let count = (BLOCK_BYTES - within).min(length - done);
        let within = within as usize..(within + count) as usize;
        call(block, within, &(done as usize..(done + count) as usize));
        done += count;
    }
}

/// Calls with the parts of blocks at both ends.
fn each_edge(offset: u64, end: u64, mut call: impl FnMut(u64, u64)) {
    let (first, last) = (offset.next_multiple_of(BLOCK_BYTES), end / BLOCK_BYTES * BLOCK_BYTES);
    if first > last {
        return call(offset, end);
    }
    [(offset, first), (last, end)].iter().filter(|(a, b)| a < b).for_each(|(a, b)| call(*a, *b));
}

/// The image.
pub struct Memory {
    size_bytes: AtomicU64,
    read_only: bool,
    under_way: Arc<AtomicUsize>,
    depth_max: AtomicUsize,
    state: Arc<Mutex<State>>,
    queue: Mutex<Sender<(Request, Completion)>>,
}

impl Memory {
    pub fn new(size_bytes: u64) -> Arc<Self> {
        Self::with(size_bytes, false, Duration::ZERO)
    }

    pub fn read_only(size_bytes: u64) -> Arc<Self> {
        Self::with(size_bytes, true, Duration::ZERO)
    }

    /// One that gathers requests for `delay` before it answers them together.
    pub fn with(size_bytes: u64, read_only: bool, delay: Duration) -> Arc<Self> {
        let (queue, requests) = mpsc::channel::<(Request, Completion)>();
        let state = Arc::new(Mutex::new(State::default()));
        let under_way = Arc::new(AtomicUsize::new(0));
        let (theirs, counter) = (Arc::clone(&state), Arc::clone(&under_way));
        thread::spawn(move || {
            while let Ok(first) = requests.recv() {
                thread::sleep(delay);
                for (request, done) in std::iter::once(first).chain(requests.try_iter()) {
                    let outcome = theirs.lock().unwrap().carry_out(request);
                    counter.fetch_sub(1, Ordering::AcqRel);
                    done(outcome);
                }
            }
        });
        Arc::new(Self {
            size_bytes: size_bytes.into(),
            read_only,
            under_way,
            depth_max: AtomicUsize::new(0),
            state,
            queue: Mutex::new(queue),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn seen(&self) -> Seen {
        self.state().seen.clone()
    }

    pub fn forget(&self) {
        self.state().seen = Seen::default();
        self.depth_max.store(0, Ordering::Release);
    }

    /// Most requests that were under way at once.
    pub fn depth_max(&self) -> usize {
        self.depth_max.load(Ordering::Acquire)
    }

    /// Blocks that are not holes.
    pub fn blocks(&self) -> usize {
        self.state().blocks.len()
    }

    pub fn bytes(&self, offset: u64, length: u32) -> Vec<u8> {
        self.state().read(offset, length)
    }

    pub fn put(&self, offset: u64, data: &[u8]) {
        self.state().write(offset, data);
    }

    pub fn fail_flushes(&self, errno: Option<Errno>) {
        self.state().fail_flushes = errno;
    }

    pub fn resize(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }
}

impl DeviceIo for Memory {
    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn submit(&self, request: Request, done: Completion) {
        let depth = self.under_way.fetch_add(1, Ordering::AcqRel) + 1;
        self.depth_max.fetch_max(depth, Ordering::AcqRel);
        self.queue.lock().unwrap().send((request, done)).unwrap();
    }
}
