//! The layout of the reply to a READ: headers and data lie side by side in the send buffer. So the device
//! reads into place, and one `send` takes all of it.
//!
//! For a long structured read the device is first asked for holes. A hole takes a few bytes in the reply.

use std::io;
use std::ops::Range;

use marcot::{BlockDevice, Extent};

use super::connection::ReadPiece;
use super::parts::Place;
use crate::buffer::SendBuffer;
use crate::nbd::reply;

/// Shorter reads are not searched for holes: zeros are cheaper than the search.
const SEARCHED_BYTES_MIN: u32 = 64 << 10;

/// Shorter holes are sent as zeros among the data.
const HOLE_BYTES_MIN: u64 = 16 << 10;

/// Limit on the chunks of one reply. The rest of the range is then one last chunk of data.
const CHUNKS_MAX: usize = 32;

/// A READ to be laid out.
pub(super) struct Request {
    pub(super) exchange: usize,
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
    /// Reply in chunks.
    pub(super) structured: bool,
    /// The client asked for a single chunk.
    pub(super) whole: bool,
    /// Which part of the reply it is.
    pub(super) place: Place,
}

impl Request {
    /// Reserves room for the reply and fills everything except the data, for which `pieces` gets
    /// entries. Returns the place of the whole reply.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn lay_out(
        &self,
        device: &mut dyn BlockDevice,
        send: &mut SendBuffer,
        pieces: &mut Vec<ReadPiece>,
    ) -> io::Result<Range<usize>> {
        if !self.structured {
            let head = reply::simple(self.cookie, 0);
            let place = write(send, if self.place.first { &head } else { &[] })?;
            let data = self.piece(self.offset, self.length, send, pieces)?;
            return Ok(place.start..data.end);
        }
        let runs = self.runs(device);
        let mut place = send.used_bytes()..send.used_bytes();
        for (index, run) in runs.iter().enumerate() {
            let last = index + 1 == runs.len() && self.place.last;
            // A run lies inside the request, so its length fits.
            let length = run.length as u32;
            place.end = if run.data {
                write(send, &reply::data_chunk(self.cookie, last, run.offset, length))?;
                self.piece(run.offset, length, send, pieces)?.end
            } else {
                write(send, &reply::hole_chunk(self.cookie, last, run.offset, length))?.end
            };
        }
        Ok(place)
    }

    fn piece(
        &self,
        offset: u64,
        length: u32,
        send: &mut SendBuffer,
        pieces: &mut Vec<ReadPiece>,
    ) -> io::Result<Range<usize>> {
        let place = send.reserve(length as usize)?;
        pieces.push(ReadPiece { exchange: self.exchange, offset, place: place.clone() });
        Ok(place)
    }

    /// The request divided into data and holes. If the device cannot find holes, everything counts as
    /// data; the read itself then reports what is wrong.
    fn runs(&self, device: &mut dyn BlockDevice) -> Vec<Extent> {
        let length = u64::from(self.length);
        if self.whole || self.length < SEARCHED_BYTES_MIN {
            return vec![Extent { offset: self.offset, length, data: true }];
        }
        let extents = device.extents_at_hand(self.offset, length, CHUNKS_MAX).unwrap_or_default();
        chunks(self.offset, length, &extents)
    }
}

/// Covers `[offset, offset + length)` by at most [`CHUNKS_MAX`] alternating runs. Small holes
/// become data.
fn chunks(offset: u64, length: u64, extents: &[Extent]) -> Vec<Extent> {
    let end = offset + length;
    let mut runs: Vec<Extent> = Vec::new();
    let mut position = offset;
    for extent in extents.iter().take(CHUNKS_MAX - 1) {
        let stop = extent.offset.saturating_add(extent.length).min(end);
        if extent.offset != position || stop <= position {
            break;
        }
        let length = stop - position;
        let hole = !extent.data && (length >= HOLE_BYTES_MIN || length == end - offset);
        push(&mut runs, Extent { offset: position, length, data: !hole });
        position = stop;
    }
    if position < end {
        push(&mut runs, Extent { offset: position, length: end - position, data: true });
    }
    runs
}

fn push(runs: &mut Vec<Extent>, run: Extent) {
    match runs.last_mut() {
        Some(last) if last.data == run.data => last.length += run.length,
        _ => runs.push(run),
    }
}

fn write(send: &mut SendBuffer, bytes: &[u8]) -> io::Result<Range<usize>> {
    let place = send.reserve(bytes.len())?;
    send.bytes_mut()[place.clone()].copy_from_slice(bytes);
    Ok(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    const K: u64 = 1024;

    fn extent(offset: u64, length: u64, data: bool) -> Extent {
        Extent { offset, length, data }
    }

    #[test]
    fn small_holes_are_data_and_large_ones_are_told() {
        let extents = [
            extent(0, 8 * K, true),
            extent(8 * K, 4 * K, false),
            extent(12 * K, 52 * K, true),
            extent(64 * K, 64 * K, false),
        ];
        let want = [extent(0, 64 * K, true), extent(64 * K, 64 * K, false)];
        assert_eq!(chunks(0, 128 * K, &extents), want);
    }

    #[test]
    fn what_the_device_does_not_tell_is_data() {
        assert_eq!(chunks(5, 100 * K, &[]), [extent(5, 100 * K, true)]);
        let gap = [extent(0, 32 * K, false), extent(40 * K, 60 * K, false)];
        let want = [extent(0, 32 * K, false), extent(32 * K, 68 * K, true)];
        assert_eq!(chunks(0, 100 * K, &gap), want);
        let beyond = [extent(0, u64::MAX, false)];
        assert_eq!(chunks(0, 100 * K, &beyond), [extent(0, 100 * K, false)]);
    }

    #[test]
    fn the_number_of_chunks_is_bounded() {
        let extents: Vec<Extent> =
            (0..100).map(|i| extent(i * 16 * K, 16 * K, i % 2 == 0)).collect();
        let runs = chunks(0, 1600 * K, &extents);
        assert!(runs.len() <= CHUNKS_MAX);
        assert_eq!(runs.iter().map(|r| r.length).sum::<u64>(), 1600 * K);
    }
}
