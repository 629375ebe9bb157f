//! A disk whose bytes lie somewhere in a container: what all formats with a map share.
//!
//! A format says where the bytes at an offset are ([`Map::run`]). Reading and the map of holes follow from that.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::source::{Extent, Source, check_range, push};

/// How many parts one call of `extents` returns at most, and how many runs it looks at.
const EXTENTS_MAX: usize = 4096;
const RUNS_MAX: usize = 1 << 13;

/// Where bytes of a disk are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: they are zeros.
    Zero,
    /// In the disk below.
    Below,
    /// In the container, from this byte on.
    Plain(u64),
    /// In a unit that has to be unpacked.
    Packed {
        /// What [`Map::unpack`] needs to find it: an offset in the container.
        at: u64,
        /// The first byte of the unit, as an offset in the disk.
        unit: u64,
    },
}

/// Bytes of a disk that are in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Where.
    pub place: Place,
    /// How many bytes from the offset on, more than 0. It may reach behind the end of the disk.
    pub length: u64,
}

/// The map of a format.
pub trait Map: Send + Sync {
    /// Size of the disk in bytes.
    fn size_bytes(&self) -> u64;

    /// Where the bytes from `offset` on are. `offset` lies inside the disk.
    ///
    /// # Errors
    /// `Damaged`, and those of reading the container.
    fn run(&self, offset: u64) -> Result<Run>;

    /// Unpacks the unit at `at`, which begins at the byte `unit` of the disk.
    ///
    /// # Errors
    /// `Damaged`, and those of reading the container.
    fn unpack(&self, at: u64, unit: u64) -> Result<Vec<u8>>;
}

/// A disk made of a map, the container that it leads to, and perhaps a disk below.
pub struct Mapped<M> {
    /// The map.
    pub map: M,
    data: Arc<dyn Source>,
    below: Option<Arc<dyn Source>>,
    /// The unit that was unpacked last, and where it came from.
    unpacked: Mutex<Option<(u64, u64, Vec<u8>)>>,
}

impl<M: Map> Mapped<M> {
    /// Plain runs lead to `data`. Where there is no disk below, its bytes are zeros.
    pub fn new(map: M, data: Arc<dyn Source>, below: Option<Arc<dyn Source>>) -> Self {
        Self { map, data, below, unpacked: Mutex::default() }
    }

    /// The disk below.
    pub fn below(&self) -> Option<&Arc<dyn Source>> {
        self.below.as_ref()
    }

    /// The run at `offset`, no longer than to `end`.
    pub(crate) fn run(&self, offset: u64, end: u64) -> Result<Run> {
        let run = self.map.run(offset)?;
        if run.length == 0 {
            return Err(Error::damaged("its map goes nowhere"));
        }
        Ok(Run { length: run.length.min(end - offset), ..run })
    }

    fn read_plain(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        let (length, has) = (buf.len() as u64, self.data.size_bytes());
        if at.checked_add(length).is_none_or(|end| end > has) {
            return Err(Error::damaged(format!(
                "data at byte {at} lies behind the end of the file ({has} bytes): it is cut off or damaged"
            )));
        }
        self.data.read_at(at, buf)
    }

    fn read_below(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let Some(below) = &self.below else {
            buf.fill(0);
            return Ok(());
        };
        // It may be shorter than the disk above.
        let has = below.size_bytes().saturating_sub(offset);
        let inside = usize::try_from(has).unwrap_or(usize::MAX).min(buf.len());
        let (inside, behind) = buf.split_at_mut(inside);
        behind.fill(0);
        if inside.is_empty() { Ok(()) } else { below.read_at(offset, inside) }
    }

    fn read_packed(&self, (at, unit): (u64, u64), offset: u64, buf: &mut [u8]) -> Result<()> {
        let mut last = self.unpacked.lock().unwrap_or_else(PoisonError::into_inner);
        if !matches!(&*last, Some((a, u, _)) if (*a, *u) == (at, unit)) {
            *last = None;
            *last = Some((at, unit, self.map.unpack(at, unit)?));
        }
        let bytes = last.as_ref().map_or(&[][..], |(_, _, bytes)| bytes);
        let from = usize::try_from(offset - unit).unwrap_or(usize::MAX);
        let found = from.checked_add(buf.len()).and_then(|end| bytes.get(from..end));
        let short = || Error::damaged(format!("what is packed at byte {at} is too short"));
        buf.copy_from_slice(found.ok_or_else(short)?);
        Ok(())
    }

    fn push_below(&self, extents: &mut Vec<Extent>, offset: u64, length: u64) -> Result<()> {
        let Some(below) = &self.below else {
            push(extents, offset, length, false);
            return Ok(());
        };
        let end = offset + length;
        let (mut at, inside) = (offset, end.min(below.size_bytes()));
        while at < inside && extents.len() < EXTENTS_MAX {
            for part in below.extents(at, inside - at)? {
                push(extents, part.offset, part.length, part.data);
                at = part.offset + part.length;
            }
        }
        if at >= inside && at < end {
            push(extents, at, end - at, false);
        }
        Ok(())
    }
}

impl<M: Map> Source for Mapped<M> {
    fn size_bytes(&self) -> u64 {
        self.map.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size_bytes())?;
        let end = offset + buf.len() as u64;
        let (mut at, mut rest) = (offset, buf);
        while at < end {
            let mut run = self.run(at, end)?;
            // Neighbours in the container are read at once.
            while let (Place::Plain(first), true) = (run.place, at + run.length < end) {
                let next = self.run(at + run.length, end)?;
                if next.place != Place::Plain(first.saturating_add(run.length)) {
                    break;
                }
                run.length += next.length;
            }
            // Not longer than `rest`.
            let (part, after) = rest.split_at_mut(run.length as usize);
            match run.place {
                Place::Zero => part.fill(0),
                Place::Below => self.read_below(at, part)?,
                Place::Plain(place) => self.read_plain(place, part)?,
                Place::Packed { at: place, unit } => self.read_packed((place, unit), at, part)?,
            }
            at += run.length;
            rest = after;
        }
        Ok(())
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        check_range(offset, length, self.size_bytes())?;
        let (mut extents, end) = (Vec::new(), offset + length);
        let mut at = offset;
        for _ in 0..RUNS_MAX {
            if at >= end || extents.len() >= EXTENTS_MAX {
                break;
            }
            let run = self.run(at, end)?;
            match run.place {
                Place::Zero => push(&mut extents, at, run.length, false),
                Place::Below => self.push_below(&mut extents, at, run.length)?,
                Place::Plain(_) | Place::Packed { .. } => {
                    push(&mut extents, at, run.length, true);
                }
            }
            at = extents.last().map_or(end, |last| last.offset + last.length);
        }
        Ok(extents)
    }
}
