//! What of the log other hosts can find: parts of it that were shipped, and what is to be shipped next.
//!
//! Only images in pools of which several hosts may be owners have this ([`Shipping`]).
//!
//! Invariants:
//! - The parts together are a prefix of the log behind the head's position.
//! - A part is shipped only after the part before was stored.

use std::sync::Arc;

use marcot_backend::{Recovered, ShipError, Shipping};
use marcot_format::record::{LogPiece, ShippedLog};
use marcot_format::{BLOCK_BYTES, ImageId};
use marcot_store::DiskFile;

use crate::error::{Error, ErrorKind, Result};

/// Longest part of a log, in bytes, without its frame.
const PART_BYTES_MAX: u64 = 8 << 20;

/// What was appended to a segment that is not the open one.
struct Closed {
    sequence: u32,
    file: Arc<dyn DiskFile>,
    /// Bytes that were not shipped.
    from: u64,
    to: u64,
    /// All that was ever written to the segment belongs to the log, and nothing of it was shipped.
    is_whole: bool,
}

/// See the module.
pub(crate) struct Shipped {
    shipping: Arc<dyn Shipping>,
    image: ImageId,
    term: u64,
    /// Number of the next part.
    next: u64,
    /// Numbers of the parts that were stored and not removed.
    parts: Vec<u64>,
    closed: Vec<Closed>,
    /// First byte of the open segment that was not shipped.
    open_from: u64,
}

/// The end of the open segment.
pub(super) struct OpenEnd<'a> {
    pub sequence: u32,
    pub file: &'a Arc<dyn DiskFile>,
    /// Slot where the next group starts.
    pub slot: u32,
}

impl Shipped {
    /// For an owner with this term, which has found these parts.
    pub(crate) fn new(
        shipping: Arc<dyn Shipping>,
        image: ImageId,
        term: u64,
        recovered: Recovered,
    ) -> Self {
        let Recovered { next, parts } = recovered;
        Self { shipping, image, term, next, parts, closed: Vec::new(), open_from: 0 }
    }

    /// Number of the next part.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The log begins again, in a segment of its own. A root covers what was before.
    pub(super) fn start(&mut self) {
        self.closed.clear();
        self.open_from = 0;
    }

    /// The log goes on in another segment: nothing more is appended to this one.
    pub(super) fn closed(&mut self, sequence: u32, file: Arc<dyn DiskFile>, slot: u32) {
        let (from, to) = (self.open_from, u64::from(slot) * BLOCK_BYTES);
        self.closed.push(Closed { sequence, file, from, to, is_whole: from == 0 });
        self.open_from = 0;
    }

    /// The log has passed through a segment beside it: its header and the passage belong to the log.
    pub(super) fn passed(&mut self, sequence: u32, file: Arc<dyn DiskFile>) {
        let to = 2 * BLOCK_BYTES;
        self.closed.push(Closed { sequence, file, from: 0, to, is_whole: false });
    }

    /// A root covers all segments of the log below this one.
    pub(super) fn covered(&mut self, below: u32) {
        self.closed.retain(|closed| closed.sequence >= below);
    }

    /// Removes parts below the one with this number, on a worker of the caller's: a root covers them.
    pub(super) fn take_covered_parts(&mut self, below: u64) -> Vec<u64> {
        let (gone, left) = std::mem::take(&mut self.parts).into_iter().partition(|n| *n < below);
        self.parts = left;
        gone
    }

    pub(super) fn shipping(&self) -> Arc<dyn Shipping> {
        Arc::clone(&self.shipping)
    }

    /// Ships what was appended, where a flush has to.
    ///
    /// # Errors
    /// `Fenced` where another host has taken the image over; `Poisoned` where it cannot be told whether the part
    /// was stored.
    pub(super) fn ship(&mut self, open: &OpenEnd<'_>, label: &str) -> Result<()> {
        if !self.shipping.ships_flushes() {
            return Ok(());
        }
        let end = u64::from(open.slot) * BLOCK_BYTES;
        let mut pieces = Pieces::default();
        for closed in std::mem::take(&mut self.closed) {
            if closed.is_whole {
                self.shipping
                    .seal_data(self.image, closed.sequence)
                    .map_err(|e| failed(label, &e))?;
                let sequence = closed.sequence;
                pieces.list.push(LogPiece { sequence, offset: 0, bytes: Vec::new() });
                continue;
            }
            self.add(&mut pieces, closed.sequence, &*closed.file, closed.from..closed.to, label)?;
        }
        self.add(&mut pieces, open.sequence, &**open.file, self.open_from..end, label)?;
        self.open_from = end;
        self.store(&mut pieces, label)
    }

    /// Adds bytes of a segment, and stores parts that are full.
    fn add(
        &mut self,
        pieces: &mut Pieces,
        sequence: u32,
        file: &dyn DiskFile,
        range: std::ops::Range<u64>,
        label: &str,
    ) -> Result<()> {
        let mut offset = range.start;
        while offset < range.end {
            let bytes = (range.end - offset).min(PART_BYTES_MAX - pieces.bytes);
            let mut piece = vec![0; bytes as usize];
            let n = file.read_at(offset, &mut piece).map_err(|e| failed(label, &e))?;
            if n < piece.len() {
                let error = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(failed(label, &error));
            }
            pieces.list.push(LogPiece { sequence, offset, bytes: piece });
            pieces.bytes += bytes;
            offset += bytes;
            if pieces.bytes == PART_BYTES_MAX {
                self.store(pieces, label)?;
            }
        }
        Ok(())
    }

    fn store(&mut self, pieces: &mut Pieces, label: &str) -> Result<()> {
        if pieces.list.is_empty() {
            return Ok(());
        }
        let part = ShippedLog {
            image_id: self.image.0,
            number: self.next,
            term: self.term,
            fence: false,
            pieces: std::mem::take(&mut pieces.list),
        };
        pieces.bytes = 0;
        match self.shipping.ship(&part) {
            Ok(()) => {
                self.parts.push(self.next);
                self.next += 1;
                Ok(())
            }
            Err(ShipError::Fenced) => {
                let message = format!("{label} was taken over by another host");
                Err(Error::new(ErrorKind::Fenced, message))
            }
            Err(ShipError::Io(error)) => Err(failed(label, &error)),
        }
    }
}

/// What is gathered for the next part.
#[derive(Default)]
struct Pieces {
    list: Vec<LogPiece>,
    bytes: u64,
}

fn failed(label: &str, error: &std::io::Error) -> Error {
    let message = format!("flushing {label} failed; reopen it: {error}");
    Error::new(ErrorKind::Poisoned, message)
}
