//! A file in memory.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use marcot_store::DiskFile;

/// Unit of allocation, in bytes.
const PAGE_BYTES: u64 = 4096;

/// A handle of a file in memory. All clones refer to the same file.
#[derive(Clone, Default)]
pub(super) struct MemoryFile {
    content: Arc<Mutex<Content>>,
    write: bool,
}

#[derive(Default)]
struct Content {
    pages: BTreeMap<u64, Box<[u8]>>,
    length: u64,
    removed: bool,
}

impl MemoryFile {
    /// A handle that may also write.
    pub(super) fn writable(&self) -> Self {
        Self { content: Arc::clone(&self.content), write: true }
    }

    /// Notes that the file was removed.
    pub(super) fn remove(&self) {
        self.content().removed = true;
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn content_to_change(&self) -> io::Result<MutexGuard<'_, Content>> {
        match self.write {
            true => Ok(self.content()),
            false => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

/// Calls `each` for every page that a range touches: with the page's number, the range within the page, and
/// the offset of that part in the whole range.
fn for_pages(offset: u64, length: u64, mut each: impl FnMut(u64, std::ops::Range<usize>, usize)) {
    let mut at = offset;
    while at < offset + length {
        let start = at % PAGE_BYTES;
        let bytes = (PAGE_BYTES - start).min(offset + length - at);
        let within = start as usize..(start + bytes) as usize;
        each(at / PAGE_BYTES, within, (at - offset) as usize);
        at += bytes;
    }
}

fn empty_page() -> Box<[u8]> {
    vec![0; PAGE_BYTES as usize].into()
}

impl Content {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        for_pages(offset, bytes.len() as u64, |page, within, from| {
            let count = within.len();
            let page = self.pages.entry(page).or_insert_with(empty_page);
            page[within].copy_from_slice(&bytes[from..from + count]);
        });
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    fn zero(&mut self, offset: u64, length: u64) {
        for_pages(offset, length, |number, within, _| {
            if within.len() as u64 == PAGE_BYTES {
                self.pages.remove(&number);
            } else if let Some(page) = self.pages.get_mut(&number) {
                page[within].fill(0);
            }
        });
    }
}

impl DiskFile for MemoryFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let content = self.content();
        let count = content.length.saturating_sub(offset).min(buf.len() as u64) as usize;
        for_pages(offset, count as u64, |page, within, from| {
            let target = &mut buf[from..from + within.len()];
            match content.pages.get(&page) {
                Some(page) => target.copy_from_slice(&page[within]),
                None => target.fill(0),
            }
        });
        Ok(count)
    }

    fn write_at(&self, offset: u64, parts: &[&[u8]]) -> io::Result<()> {
        let mut content = self.content_to_change()?;
        let mut at = offset;
        for part in parts {
            content.write(at, part);
            at += part.len() as u64;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.content().length)
    }

    fn allocated_bytes(&self) -> io::Result<u64> {
        Ok(self.content().pages.len() as u64 * PAGE_BYTES)
    }

    fn is_removed(&self) -> io::Result<bool> {
        Ok(self.content().removed)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut content = self.content_to_change()?;
        if length < content.length {
            let cut = content.length - length;
            content.zero(length, cut);
            content.pages.split_off(&length.div_ceil(PAGE_BYTES));
        }
        content.length = length;
        Ok(())
    }

    fn punch(&self, offset: u64, length: u64) -> io::Result<()> {
        let mut content = self.content_to_change()?;
        let within = length.min(content.length.saturating_sub(offset));
        content.zero(offset, within);
        Ok(())
    }

    fn advise(&self, _offset: u64, _length: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_the_rest_is_zeros() {
        let file = MemoryFile::default().writable();
        file.write_at(4090, &[b"hello ", b"world"]).unwrap();
        assert_eq!(file.length().unwrap(), 4101);
        let mut buf = [0xFF; 20];
        assert_eq!(file.read_at(4085, &mut buf).unwrap(), 16);
        assert_eq!(&buf[..16], b"\0\0\0\0\0hello world");
        assert_eq!(file.allocated_bytes().unwrap(), 8192);
        file.punch(0, 4096).unwrap();
        assert_eq!(file.allocated_bytes().unwrap(), 4096);
        assert_eq!(file.read_at(4090, &mut buf).unwrap(), 11);
        assert_eq!(&buf[..11], b"\0\0\0\0\0\0world");
    }

    #[test]
    fn a_file_that_was_cut_and_extended_reads_as_zeros_there() {
        let file = MemoryFile::default().writable();
        file.write_at(0, &[&[7; 9000]]).unwrap();
        file.set_length(10).unwrap();
        file.set_length(9000).unwrap();
        let mut buf = [1; 9000];
        assert_eq!(file.read_at(0, &mut buf).unwrap(), 9000);
        assert!(buf[..10].iter().all(|b| *b == 7) && buf[10..].iter().all(|b| *b == 0));
    }

    #[test]
    fn a_handle_for_reading_does_not_write() {
        let file = MemoryFile::default();
        assert!(file.write_at(0, &[b"x"]).is_err() && file.punch(0, 1).is_err());
        assert!(file.set_length(1).is_err());
    }
}
