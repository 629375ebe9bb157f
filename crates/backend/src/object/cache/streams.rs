//! Recognizing sequential readers of an object.
//!
//! A fetch for a reader that goes on where it has stopped takes as much as the reader has read so far. So at most
//! half of what is fetched is not needed. When the fetches are large, the next one begins before the reader needs
//! it.

use std::ops::Range;

use super::layout::{CHUNK_BYTES, CHUNKS_MAX};

/// Readers of one object that are told apart. Ten clones that boot read the same segments at the same time.
const STREAMS: usize = 4;
/// A reader may leave out so many bytes and still count as sequential: headers of groups lie between the data.
const SKIP_BYTES_MAX: u64 = 64 << 10;
/// The longest fetch, in chunks: 4 MiB.
pub(super) const WINDOW_MAX: u32 = 16;
/// From this window on, in chunks, the next fetch begins early: 1 MiB.
const AHEAD_FROM: u32 = 4;

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// Where it began.
    start: u64,
    /// Where its next read is expected.
    next: u64,
    /// The chunk before which everything was fetched ahead.
    ahead: u32,
    /// When it was seen last; 0: never.
    seen: u64,
}

/// The readers of one object.
#[derive(Debug, Default)]
pub(super) struct Streams {
    streams: [Stream; STREAMS],
    reads: u64,
}

/// What a read tells.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Noted {
    /// How many chunks are to be fetched where one is missing.
    pub window: u32,
    /// Chunks to be fetched ahead.
    pub ahead: Range<u32>,
}

impl Streams {
    /// Notes a read.
    pub(super) fn note(&mut self, offset: u64, bytes: u64) -> Noted {
        self.reads += 1;
        let goes_on = |stream: &Stream| {
            stream.seen > 0 && offset >= stream.next && offset - stream.next <= SKIP_BYTES_MAX
        };
        let number = match self.streams.iter().position(goes_on) {
            Some(number) => number,
            None => {
                let oldest = (0..STREAMS).min_by_key(|i| self.streams[*i].seen).unwrap_or(0);
                self.streams[oldest] = Stream { start: offset, ..Stream::default() };
                oldest
            }
        };
        let stream = &mut self.streams[number];
        stream.seen = self.reads;
        stream.next = offset + bytes;
        let chunks = |bytes: u64| (bytes / CHUNK_BYTES).min(u64::from(CHUNKS_MAX)) as u32;
        // One long read does not make a sequential reader.
        let run = if stream.start < offset { stream.next - stream.start } else { 0 };
        let window = chunks(run).clamp(1, WINDOW_MAX);
        let next = chunks(stream.next);
        if window < AHEAD_FROM || next + window / 2 < stream.ahead {
            return Noted { window, ahead: 0..0 };
        }
        let from = stream.ahead.max(next);
        stream.ahead = (from + window).min(CHUNKS_MAX);
        Noted { window, ahead: from..stream.ahead }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: u64 = 64 << 10;

    #[test]
    fn a_sequential_reader_gets_more_and_more_and_then_ahead() {
        let mut streams = Streams::default();
        let (mut fetched, mut waited_for, mut ahead) = (0, Vec::new(), Vec::new());
        for i in 0..512 {
            let noted = streams.note(i * READ, READ);
            if !noted.ahead.is_empty() {
                fetched = fetched.max(noted.ahead.end);
                ahead.push(noted.ahead);
            }
            let chunk = (i * READ / CHUNK_BYTES) as u32;
            if chunk >= fetched {
                waited_for.push(noted.window);
                fetched = chunk + noted.window;
            }
        }
        // The reader has waited for the first MiB only.
        assert_eq!(waited_for, [1, 1, 2]);
        for (one, next) in ahead.iter().zip(&ahead[1..]) {
            assert_eq!(one.end, next.start, "nothing is fetched twice or left out");
        }
        assert!(ahead.iter().any(|chunks| chunks.len() == WINDOW_MAX as usize), "{ahead:?}");
    }

    #[test]
    fn a_random_reader_gets_one_chunk_at_a_time() {
        let mut streams = Streams::default();
        for i in 0..1000u64 {
            let noted = streams.note((i * 7919 % 8192) * 4096, 4096);
            assert_eq!(noted, Noted { window: 1, ahead: 0..0 });
        }
    }

    #[test]
    fn readers_that_take_turns_are_each_sequential() {
        let mut streams = Streams::default();
        let mut last = 0;
        for i in 0..20 {
            for reader in 0..STREAMS as u64 {
                last = streams.note((reader * 40 + i) * CHUNK_BYTES, CHUNK_BYTES).window;
            }
        }
        assert_eq!(last, WINDOW_MAX);
    }

    #[test]
    fn what_is_fetched_is_at_most_twice_what_a_reader_has_read() {
        for bytes in [1, 10, 100, 300] {
            let (mut streams, mut fetched) = (Streams::default(), 0);
            for i in 0..bytes {
                let noted = streams.note(i * READ, READ);
                let chunk = (i * READ / CHUNK_BYTES) as u32;
                if chunk >= fetched {
                    fetched = chunk + noted.window;
                }
                fetched = fetched.max(noted.ahead.end);
            }
            let read = (bytes * READ).div_ceil(CHUNK_BYTES) as u32;
            assert!(fetched <= 2 * read + WINDOW_MAX / 2, "{fetched} for {read}");
        }
    }
}
