//! Reading small things of a container: headers at once, and tables through a bounded cache.
//!
//! A table of a large disk has hundreds of megabytes, and a hostile one says so of any size. So no table is ever read as a
//! whole: an entry is read with the page around it, and a fixed number of pages is kept.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::source::Source;

/// How much of a table is read at a time, in bytes.
const PAGE_BYTES: u64 = 64 << 10;
/// How many pages are kept. 8 MiB: for qcow2 with clusters of 64 KiB these map 64 GiB.
const PAGES_MAX: usize = 128;

/// The container of a disk image, with a cache of its tables.
pub struct Pages {
    container: Arc<dyn Source>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    pages: HashMap<u64, (Arc<[u8]>, u64)>,
    clock: u64,
}

impl Pages {
    /// Of this container. Nothing is read yet.
    pub fn new(container: Arc<dyn Source>) -> Self {
        Self { container, kept: Mutex::default() }
    }

    /// The container.
    pub fn container(&self) -> &Arc<dyn Source> {
        &self.container
    }

    /// Length of the container in bytes.
    pub fn length_bytes(&self) -> u64 {
        self.container.size_bytes()
    }

    /// Fails unless the container has this range. `what` names it.
    ///
    /// # Errors
    /// `Damaged`.
    pub fn require(&self, offset: u64, length: u64, what: &str) -> Result<()> {
        let has = self.length_bytes();
        match offset.checked_add(length) {
            Some(end) if end <= has => Ok(()),
            _ => Err(Error::damaged(format!(
                "{what} at byte {offset} lies behind the end of the file ({has} bytes): it is cut off or damaged"
            ))),
        }
    }

    /// Reads a range past the cache.
    ///
    /// # Errors
    /// `Damaged` if the container does not have it; those of reading.
    pub fn read(&self, offset: u64, buf: &mut [u8], what: &str) -> Result<()> {
        self.require(offset, buf.len() as u64, what)?;
        self.container.read_at(offset, buf)
    }

    /// Reads `N` bytes of a table.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn entry<const N: usize>(&self, offset: u64, what: &str) -> Result<[u8; N]> {
        self.require(offset, N as u64, what)?;
        let (page, within) = (offset / PAGE_BYTES, (offset % PAGE_BYTES) as usize);
        let mut entry = [0; N];
        let bytes = self.page(page)?;
        let first = N.min(bytes.len() - within);
        entry[..first].copy_from_slice(&bytes[within..within + first]);
        if first < N {
            entry[first..].copy_from_slice(&self.page(page + 1)?[..N - first]);
        }
        Ok(entry)
    }

    fn page(&self, page: u64) -> Result<Arc<[u8]>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clock += 1;
        let now = kept.clock;
        if let Some((bytes, used)) = kept.pages.get_mut(&page) {
            *used = now;
            return Ok(Arc::clone(bytes));
        }
        let offset = page * PAGE_BYTES;
        // At most PAGE_BYTES; the container has it, since an entry in it was required.
        let mut bytes = vec![0; PAGE_BYTES.min(self.length_bytes() - offset) as usize];
        self.container.read_at(offset, &mut bytes)?;
        if kept.pages.len() >= PAGES_MAX {
            let oldest =
                kept.pages.iter().min_by_key(|(_, (_, used))| *used).map(|(page, _)| *page);
            oldest.map(|oldest| kept.pages.remove(&oldest));
        }
        let bytes: Arc<[u8]> = bytes.into();
        kept.pages.insert(page, (Arc::clone(&bytes), now));
        Ok(bytes)
    }
}

/// A number in the bytes of a header. `N` bytes from `at` on, which the header has.
pub(crate) fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}
