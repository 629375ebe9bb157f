//! Long requests that are carried out in parts, because their client may not use the memory for the whole.
//!
//! A WRITE in parts consists of several writes. Only the last one is answered, with the first error of them
//! all. A READ in parts consists of several reads whose data follow each other in one reply. A simple reply
//! cannot report an error after its data has begun. So an error in a later part closes the connection, as
//! the protocol demands.

use marcot::{Error, Result};

use crate::nbd::request::Request;

/// Parts end at multiples of this, so that no block of the image is written twice.
const PART_GRAIN_BYTES: u64 = 4096;

/// Sizes of parts in bytes, the best first. The first is large enough to stream to the medium. The last is
/// small enough for the memory that every connection may use.
const PART_BYTES: [usize; 3] = [4 << 20, 512 << 10, PART_BYTES_MIN];

/// Smallest part.
pub(super) const PART_BYTES_MIN: usize = 60 << 10;

/// The position of a part in its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) first: bool,
    pub(super) last: bool,
}

impl Place {
    /// A request in one part.
    pub(super) const WHOLE: Self = Self { first: true, last: true };
}

/// A request with parts left to do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parted {
    pub(super) request: Request,
    done_bytes: u32,
}

/// A part of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) offset: u64,
    pub(super) bytes: u32,
    pub(super) place: Place,
}

impl Parted {
    pub(super) fn new(request: Request) -> Self {
        Self { request, done_bytes: 0 }
    }

    /// Takes the next part, of at most `bytes_max`, which is [`PART_BYTES_MIN`] or more.
    pub(super) fn take(&mut self, bytes_max: usize) -> Part {
        let offset = self.request.offset + u64::from(self.done_bytes);
        let left = self.request.length - self.done_bytes;
        let most = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        // Far below 4 GiB, and larger than the grain.
        let bytes = match left > most {
            true => most - ((offset + u64::from(most)) % PART_GRAIN_BYTES) as u32,
            false => left,
        };
        let place = Place { first: self.done_bytes == 0, last: bytes == left };
        self.done_bytes += bytes;
        Part { offset, bytes, place }
    }
}

/// The largest size of a part that `affords` accepts.
pub(super) fn part_bytes(mut affords: impl FnMut(usize) -> bool) -> usize {
    PART_BYTES.into_iter().find(|bytes| affords(*bytes)).unwrap_or(PART_BYTES_MIN)
}

/// The outcome of the parts of a WRITE so far.
#[derive(Debug, Default)]
pub(super) struct WriteOutcome(Option<Error>);

impl WriteOutcome {
    /// Notes the outcome of a part. Returns the outcome of all parts where it was the last.
    pub(super) fn note(&mut self, place: Place, outcome: &Result<()>) -> Option<Result<()>> {
        if let Err(failure) = outcome {
            self.0.get_or_insert_with(|| failure.clone());
        }
        place.last.then(|| self.0.take().map_or(Ok(()), Err))
    }
}

#[cfg(test)]
mod tests {
    use marcot::ErrorKind;

    use super::*;

    fn parted(offset: u64, length: u32) -> Parted {
        Parted::new(Request { flags: 0, command: 0, cookie: 0, offset, length })
    }

    #[test]
    fn parts_cover_the_request_and_end_at_blocks() {
        for (offset, length) in [(0, 1 << 20), (1, 1 << 20), (4095, 60 << 10), (512, 61 << 10)] {
            let mut parted = parted(offset, length);
            let (mut position, mut first) = (offset, true);
            loop {
                let part = parted.take(PART_BYTES_MIN);
                assert_eq!((part.offset, part.place.first), (position, first));
                assert!(part.bytes > 0 && part.bytes as usize <= PART_BYTES_MIN);
                position += u64::from(part.bytes);
                first = false;
                if part.place.last {
                    break;
                }
                assert_eq!(position % PART_GRAIN_BYTES, 0);
            }
            assert_eq!(position, offset + u64::from(length));
        }
    }

    #[test]
    fn the_first_failure_of_a_write_is_its_outcome() {
        let mut outcome = WriteOutcome::default();
        let part = Place { first: false, last: false };
        let failed = |text: &str| Err(Error::new(ErrorKind::NoSpace, text));
        assert!(outcome.note(part, &Ok(())).is_none());
        assert!(outcome.note(part, &failed("one")).is_none());
        assert!(outcome.note(part, &failed("two")).is_none());
        let end = outcome.note(Place { last: true, ..part }, &Ok(())).unwrap();
        assert_eq!(end.unwrap_err().message(), "one");
        assert!(outcome.note(Place::WHOLE, &Ok(())).unwrap().is_ok(), "it is over with its write");
    }
}
