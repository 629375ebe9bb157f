//! Asynchronous I/O. An operation in flight is performed when its completion is taken. Operations in flight are
//! lost with the process.

use std::collections::VecDeque;
use std::io;

use marcot_store::{AsyncIo, AsyncRead, AsyncWrite, IoCompletion};

use crate::random::Rng;

/// Limit on the operations in flight.
const IN_FLIGHT_MAX: usize = 4;

pub(super) struct SimAsyncIo {
    rng: Rng,
    reads: VecDeque<AsyncRead>,
    writes: VecDeque<AsyncWrite>,
    /// The owner has waited, so the next `take` returns a completion.
    waited: bool,
}

impl SimAsyncIo {
    pub(super) fn new(rng: Rng) -> Self {
        Self { rng, reads: VecDeque::new(), writes: VecDeque::new(), waited: false }
    }
}

impl AsyncIo for SimAsyncIo {
    fn has_room(&self) -> bool {
        self.reads.len() + self.writes.len() < IN_FLIGHT_MAX
    }

    fn takes_writes(&self) -> bool {
        true
    }

    fn start(&mut self, read: AsyncRead) {
        self.reads.push_back(read);
    }

    fn start_write(&mut self, write: AsyncWrite) {
        self.writes.push_back(write);
    }

    fn submit(&mut self) {}

    fn take(&mut self) -> Option<IoCompletion> {
        if !std::mem::take(&mut self.waited) && self.rng.below(2) == 0 {
            return None;
        }
        if let Some(mut read) = self.reads.pop_front() {
            read.result = read.file.read_at(read.offset, &mut read.buf);
            return Some(IoCompletion::Read(read));
        }
        // Writes complete in any order.
        let at = self.rng.below(self.writes.len() as u64) as usize;
        let mut write = self.writes.remove(at)?;
        let data = write.data.as_slice();
        let written: io::Result<()> = write.file.write_at(write.offset, &[data]);
        write.result = written.map(|()| data.len());
        Some(IoCompletion::Write(write))
    }

    fn wait(&mut self) {
        self.waited = true;
    }

    fn raw_fd(&self) -> Option<i32> {
        None
    }
}
