//! What is fetched from a service while the image serves other requests.
//!
//! A read that would have to wait for a service is left in flight, if the caller is prepared for that. There are two
//! things that it may need. Before its blocks are known: a segment that has to be opened, or a page of the map or of
//! the segment table. When that is here, the read is begun again. Then its data: a worker reads it and compares it
//! with the checksums of the beginning, as for reads from the medium (see the room `in_flight`).
//!
//! Invariants:
//! - The image's thread does not wait for a service because of such a read, as long as what was fetched stays in the
//!   cache of the host. What does not stay there is waited for the second time, so that every read ends.
//! - Requests are no more than without this: a worker reads through the cache of the host, as everybody does.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use marcot_format::{BLOCK_BYTES, crc32c};
use marcot_store::{DiskFile, Job, Running, Waker, Workers};

use crate::external::External;
use crate::segment::{Files, Need, NeedPlace};

/// Workers of an image that fetch at a time. More of them are no faster, and each is a thread.
const WORKERS_MAX: usize = 32;
/// How often a read is begun again before it waits. It needs less: a page of each level of the map, a page of the
/// table and a file for each of them.
const ROUNDS_MAX: u32 = 32;

const BLOCK: usize = BLOCK_BYTES as usize;

/// A read that was left in flight, or a request that is parked (see `image/parked`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LeftRead {
    /// The caller's number for it.
    pub number: u64,
    /// First byte of the image.
    pub offset: u64,
    /// How many bytes.
    pub bytes: usize,
    /// How often it was begun.
    pub rounds: u32,
    /// What was fetched for it last.
    pub met: Option<NeedPlace>,
    /// It is no read, but a request that is parked, and has a number among these.
    pub is_parked: bool,
}

impl LeftRead {
    /// A read that is begun.
    pub(crate) fn new(number: u64, offset: u64, bytes: usize) -> Self {
        Self { number, offset, bytes, rounds: 0, met: None, is_parked: false }
    }

    /// A request that is parked.
    pub(crate) fn parked(number: u64) -> Self {
        Self { is_parked: true, ..Self::new(number, 0, 0) }
    }

    /// True where fetching this would not help.
    pub(crate) fn has_to_wait(&self, need: &Need) -> bool {
        self.met == Some(need.place()) || self.rounds >= ROUNDS_MAX
    }
}

/// Blocks that lie together.
pub(crate) struct Part {
    pub from: From,
    /// First byte there.
    pub place: u64,
    /// Where in the buffer they belong, in bytes.
    pub at: usize,
    /// How many there are.
    pub blocks: usize,
}

/// Where blocks are fetched from.
pub(crate) enum From {
    /// A segment, and what each block must match.
    Segment(Arc<dyn DiskFile>, Vec<u32>),
    /// The source of a migration, outside the store.
    External(Arc<External>),
}

/// What was fetched.
pub(crate) enum Fetched {
    /// What a read needs is here. It is to be begun again.
    Met,
    /// The data of a read: `None` where it does not match the checksums of the beginning.
    Data(io::Result<Option<Vec<u8>>>),
}

type End = Arc<Mutex<Option<Fetched>>>;

struct Fetch {
    read: LeftRead,
    end: End,
    running: Box<dyn Running>,
}

/// The fetches of an image.
#[derive(Default)]
pub(crate) struct Fetches {
    running: Vec<Fetch>,
    queued: VecDeque<(LeftRead, End, Job)>,
}

/// Who fetches, and who is told.
pub(crate) struct Hands<'a> {
    pub workers: &'a dyn Workers,
    /// `None` where the image's owner looks by itself.
    pub waker: Option<Waker>,
}

impl Fetches {
    /// Fetches what a read needs before it can go on. Returns the read with a note of this.
    pub(crate) fn meet(
        &mut self,
        hands: Hands<'_>,
        read: LeftRead,
        need: Need,
        files: Arc<Files>,
    ) -> LeftRead {
        let read = LeftRead { rounds: read.rounds + 1, met: Some(need.place()), ..read };
        self.start(hands, read, move || {
            need.meet(&files);
            Fetched::Met
        });
        read
    }

    /// Fetches those parts of a read that are missing in `blocks`, which has whole blocks.
    pub(crate) fn read(
        &mut self,
        hands: Hands<'_>,
        read: LeftRead,
        mut blocks: Vec<u8>,
        parts: Vec<Part>,
    ) {
        let within = (read.offset % BLOCK_BYTES) as usize;
        self.start(hands, read, move || {
            let outcome = fill(&mut blocks, &parts);
            Fetched::Data(outcome.map(|is_whole| {
                is_whole.then(|| match blocks.len() == read.bytes {
                    true => blocks,
                    false => blocks[within..within + read.bytes].to_vec(),
                })
            }))
        });
    }

    fn start(
        &mut self,
        hands: Hands<'_>,
        read: LeftRead,
        fetch: impl FnOnce() -> Fetched + Send + 'static,
    ) {
        let end = End::default();
        let (told, waker) = (Arc::clone(&end), hands.waker);
        let job: Job = Box::new(move || {
            let fetched = fetch();
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(fetched);
            if let Some(wake) = waker {
                wake();
            }
        });
        self.queued.push_back((read, end, job));
        self.go_on(hands.workers);
    }

    fn go_on(&mut self, workers: &dyn Workers) {
        while self.running.len() < WORKERS_MAX
            && let Some((read, end, job)) = self.queued.pop_front()
        {
            self.running.push(Fetch { read, end, running: workers.start(job) });
        }
    }

    /// Takes a fetch that has ended.
    pub(crate) fn take(&mut self, workers: &dyn Workers) -> Option<(LeftRead, Fetched)> {
        for at in 0..self.running.len() {
            let fetch = &mut self.running[at];
            let is_finished = fetch.running.is_finished();
            let fetched = fetch.end.lock().unwrap_or_else(PoisonError::into_inner).take();
            let fetched = match fetched {
                // A job that panicked leaves nothing.
                None if is_finished => Fetched::Met,
                None => continue,
                Some(fetched) => fetched,
            };
            let Fetch { read, .. } = self.running.swap_remove(at);
            self.go_on(workers);
            return Some((read, fetched));
        }
        None
    }

    /// True while nothing is fetched.
    pub(crate) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }
}

/// Reads the parts into a buffer; false where one is short or does not match its checksums.
fn fill(blocks: &mut [u8], parts: &[Part]) -> io::Result<bool> {
    for part in parts {
        let buf = &mut blocks[part.at..part.at + part.blocks * BLOCK];
        match &part.from {
            From::External(source) => {
                source
                    .read(part.place, buf)
                    .map_err(|error| io::Error::other(error.sentence().to_string()))?;
            }
            From::Segment(file, crcs) => {
                let n = file.read_at(part.place, buf)?;
                let matches = |(block, crc): (&[u8], &u32)| crc32c(block) == *crc;
                if n < buf.len() || !buf.chunks_exact(BLOCK).zip(crcs).all(matches) {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}
