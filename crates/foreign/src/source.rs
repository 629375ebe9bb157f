//! A disk that can be read: the one trait that every format and every place has.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};

/// Tells whether the user wants to stop.
pub type Interrupted = Arc<dyn Fn() -> bool + Send + Sync>;

/// A part of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// Its length in bytes, more than 0.
    pub length: u64,
    /// False: it reads as zeros. True: it may have other bytes.
    pub data: bool,
}

/// A state of the disk that its file keeps beside the present one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The name that a person gave it. It may be empty, and others may have the same.
    pub name: String,
    /// A text that tells it from the others of the same file.
    pub id: String,
    /// Size of the disk in this state, in bytes.
    pub size_bytes: u64,
}

/// A disk that can be read at any place, by several threads.
pub trait Source: Send + Sync {
    /// Its size in bytes. It stays the same.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `Invalid` for a range that ends behind the disk; `Damaged`, `Io`, `Interrupted`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Data and holes from `offset` on, in order and without gaps. They may end before `offset + length`, but there is at
    /// least one if the range is not empty. The range lies inside the disk.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>>;

    /// The states that its file keeps, the oldest first. The disk itself is the present state.
    fn snapshots(&self) -> &[Snapshot] {
        &[]
    }

    /// The disk in the state of the snapshot with this index.
    ///
    /// # Errors
    /// `Invalid` where there is none; `Damaged`.
    fn at_snapshot(&self, index: usize) -> Result<Arc<dyn Source>> {
        Err(Error::invalid(format!("there is no snapshot {index}")))
    }

    /// Parts from `offset` on as [`Self::extents`] has them, of which `data` says that they may differ from the state of
    /// the snapshot with this index. The range lies inside both.
    ///
    /// # Errors
    /// As [`Self::read_at`].
    fn changes(&self, snapshot: usize, offset: u64, length: u64) -> Result<Vec<Extent>> {
        let _ = snapshot;
        Ok(vec![Extent { offset, length, data: true }])
    }
}

/// The start of the next data at or after `offset`; the size of the disk if there is none.
///
/// # Errors
/// As [`Source::extents`].
pub fn next_data(source: &dyn Source, mut offset: u64) -> Result<u64> {
    let size_bytes = source.size_bytes();
    while offset < size_bytes {
        let extents = source.extents(offset, size_bytes - offset)?;
        if let Some(data) = extents.iter().find(|extent| extent.data) {
            return Ok(data.offset.max(offset));
        }
        let end = extents.last().map_or(offset, |last| last.offset + last.length);
        if end <= offset {
            return Err(Error::damaged("its map of holes goes nowhere"));
        }
        offset = end;
    }
    Ok(size_bytes)
}

/// The bytes of a disk from its start to its end, as a stream.
pub struct Reader {
    source: Arc<dyn Source>,
    at: u64,
}

impl Reader {
    /// From the first byte on.
    pub fn new(source: Arc<dyn Source>) -> Self {
        Self { source, at: 0 }
    }
}

impl std::io::Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let rest = self.source.size_bytes() - self.at;
        let bytes = usize::try_from(rest).unwrap_or(usize::MAX).min(buf.len());
        self.source.read_at(self.at, &mut buf[..bytes]).map_err(|error| match error.kind() {
            ErrorKind::Interrupted => std::io::ErrorKind::Interrupted.into(),
            _ => std::io::Error::new(std::io::ErrorKind::UnexpectedEof, error.to_string()),
        })?;
        self.at += bytes as u64;
        Ok(bytes)
    }
}

/// Adds a part behind the others. Neighbours of one kind are joined.
pub(crate) fn push(extents: &mut Vec<Extent>, offset: u64, length: u64, data: bool) {
    match extents.last_mut() {
        Some(last) if last.data == data && last.offset + last.length == offset => {
            last.length += length;
        }
        _ => extents.push(Extent { offset, length, data }),
    }
}

/// Fails unless the range lies inside `size_bytes`.
pub(crate) fn check_range(offset: u64, length: u64, size_bytes: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if end <= size_bytes => Ok(()),
        _ => Err(Error::invalid(format!("bytes {offset}+{length} lie behind the end of the disk"))),
    }
}
