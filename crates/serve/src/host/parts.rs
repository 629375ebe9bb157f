//! Long requests that are carried out in parts, because their client may not use the memory for the whole.
//!
//! A WRITE in parts consists of several writes. Only the last one is answered, with the first error of them
//! all. A READ in parts consists of several reads whose data follow each other in one reply. A simple reply
//! cannot report an error after its data has begun. So an error in a later part closes the connection, as
//! the protocol demands.

use std::collections::HashMap;

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

/// The parts of WRITEs that are not answered yet: what has become of them, and how many are still to end.
///
/// A part ends later where its bytes are on their way to the medium, or where the device has parked it. Then the next
/// WRITE may begin before this one is answered. `A` says how it is answered.
#[derive(Debug)]
pub(super) struct PartedWrites<A> {
    /// Number of the WRITE whose parts come now.
    current: u64,
    writes: HashMap<u64, PartedWrite<A>>,
}

#[derive(Debug)]
struct PartedWrite<A> {
    failure: Option<Error>,
    /// Parts that have not ended, and how many of them are parked.
    left: usize,
    parked: usize,
    /// Known once the last part has come.
    answer: Option<A>,
}

impl<A> Default for PartedWrites<A> {
    fn default() -> Self {
        Self { current: 0, writes: HashMap::new() }
    }
}

impl<A> Default for PartedWrite<A> {
    fn default() -> Self {
        Self { failure: None, left: 0, parked: 0, answer: None }
    }
}

impl<A> PartedWrites<A> {
    /// The number of the WRITE to which a part belongs that comes now.
    pub(super) fn write_of(&mut self, place: Place) -> u64 {
        self.current += u64::from(place.first);
        self.writes.entry(self.current).or_default();
        self.current
    }

    /// A part of this WRITE ends later.
    pub(super) fn ends_later(&mut self, write: u64, is_parked: bool) {
        let write = self.writes.entry(write).or_default();
        write.left += 1;
        write.parked += usize::from(is_parked);
    }

    /// A part has ended that was to end later.
    pub(super) fn ended(&mut self, write: u64, is_parked: bool, outcome: &Result<()>) {
        if let Some(write) = self.writes.get_mut(&write) {
            write.left -= 1;
            write.parked -= usize::from(is_parked);
        }
        self.note(write, outcome);
    }

    /// Notes what has become of a part. The first failure is the outcome of the WRITE.
    pub(super) fn note(&mut self, write: u64, outcome: &Result<()>) {
        if let (Some(write), Err(failure)) = (self.writes.get_mut(&write), outcome) {
            write.failure.get_or_insert_with(|| failure.clone());
        }
    }

    /// The last part of this WRITE has come.
    pub(super) fn has_all(&mut self, write: u64, answer: A) {
        self.writes.entry(write).or_default().answer = Some(answer);
    }

    /// How a WRITE is answered of which no part is parked any more, as far as its parts have come.
    pub(super) fn unparked(&self, write: u64) -> Option<&A> {
        self.writes.get(&write).filter(|write| write.parked == 0)?.answer.as_ref()
    }

    /// Takes a WRITE whose parts have all ended: how it is answered, and its outcome.
    pub(super) fn take_ended(&mut self, write: u64) -> Option<(A, Result<()>)> {
        let ended = self.writes.get(&write)?;
        if ended.left > 0 || ended.answer.is_none() {
            return None;
        }
        let PartedWrite { failure, answer, .. } = self.writes.remove(&write)?;
        Some((answer?, failure.map_or(Ok(()), Err)))
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

    const FIRST: Place = Place { first: true, last: false };

    fn failed(text: &str) -> Result<()> {
        Err(Error::new(ErrorKind::NoSpace, text))
    }

    #[test]
    fn the_first_failure_of_a_write_is_its_outcome() {
        let mut writes = PartedWrites::default();
        let write = writes.write_of(FIRST);
        for outcome in [Ok(()), failed("one"), failed("two")] {
            writes.note(write, &outcome);
            assert!(writes.take_ended(write).is_none(), "not all parts have come");
        }
        writes.has_all(write, 'a');
        let (answer, outcome) = writes.take_ended(write).unwrap();
        assert_eq!((answer, outcome.unwrap_err().message()), ('a', "one"));
        let next = writes.write_of(FIRST);
        writes.has_all(next, 'b');
        assert!(writes.take_ended(next).unwrap().1.is_ok(), "a failure is over with its write");
    }

    #[test]
    fn a_write_is_answered_when_its_last_part_has_ended_and_others_may_come_meanwhile() {
        let mut writes = PartedWrites::default();
        let slow = writes.write_of(FIRST);
        writes.ends_later(slow, true);
        assert_eq!(writes.write_of(Place { first: false, last: true }), slow);
        writes.ends_later(slow, false);
        writes.has_all(slow, 'a');
        let quick = writes.write_of(FIRST);
        writes.has_all(quick, 'b');
        assert!(writes.take_ended(quick).is_some());
        assert!(writes.unparked(slow).is_none());
        writes.ended(slow, true, &failed("late"));
        assert_eq!(writes.unparked(slow), Some(&'a'));
        assert!(writes.take_ended(slow).is_none());
        writes.ended(slow, false, &Ok(()));
        assert_eq!(writes.take_ended(slow).unwrap().1.unwrap_err().message(), "late");
        assert!(writes.take_ended(slow).is_none());
    }
}
