//! The bytes of a file, in pages that copies share. So a machine can be copied at every I/O.

use std::sync::Arc;

const PAGE: usize = 4096;
type Page = [u8; PAGE];

/// The content of a file. Copies are cheap.
#[derive(Clone, Default)]
pub(super) struct Content {
    pages: Arc<Vec<Option<Arc<Page>>>>,
    length: u64,
}

impl Content {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes that hold data, in whole pages.
    pub(super) fn allocated(&self) -> u64 {
        (self.pages.iter().flatten().count() * PAGE) as u64
    }

    /// Reads up to the end. Returns the number of bytes read.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> usize {
        let end = self.length.min(offset.saturating_add(buf.len() as u64));
        let total = end.saturating_sub(offset) as usize;
        let mut done = 0;
        while done < total {
            let at = offset as usize + done;
            let (page, within) = (at / PAGE, at % PAGE);
            let n = (PAGE - within).min(total - done);
            match self.pages.get(page).and_then(Option::as_ref) {
                Some(bytes) => buf[done..done + n].copy_from_slice(&bytes[within..within + n]),
                None => buf[done..done + n].fill(0),
            }
            done += n;
        }
        total
    }

    fn page_mut(&mut self, page: usize) -> &mut Page {
        let pages = Arc::make_mut(&mut self.pages);
        if pages.len() <= page {
            pages.resize(page + 1, None);
        }
        Arc::make_mut(pages[page].get_or_insert_with(|| Arc::new([0; PAGE])))
    }

    /// Writes, extending the file where needed.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) {
        let mut done = 0;
        while done < data.len() {
            let at = offset as usize + done;
            let (page, within) = (at / PAGE, at % PAGE);
            let n = (PAGE - within).min(data.len() - done);
            self.page_mut(page)[within..within + n].copy_from_slice(&data[done..done + n]);
            done += n;
        }
        self.length = self.length.max(offset + data.len() as u64);
    }

    /// Makes a range read as zeros. The length stays.
    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        let end = offset.saturating_add(length).min((self.pages.len() * PAGE) as u64);
        let mut at = offset;
        while at < end {
            let (page, within) = ((at as usize) / PAGE, (at as usize) % PAGE);
            let n = (PAGE - within).min((end - at) as usize);
            if n == PAGE {
                Arc::make_mut(&mut self.pages)[page] = None;
            } else if self.pages[page].is_some() {
                self.page_mut(page)[within..within + n].fill(0);
            }
            at += n as u64;
        }
    }

    /// Truncates or extends.
    pub(super) fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.zero(length, self.length - length);
            let pages = (length as usize).div_ceil(PAGE);
            if pages < self.pages.len() {
                Arc::make_mut(&mut self.pages).truncate(pages);
            }
        }
        self.length = length;
    }

    /// Flips one bit.
    pub(super) fn flip(&mut self, offset: u64, bit: u8) {
        if offset < self.length {
            let (page, within) = ((offset as usize) / PAGE, (offset as usize) % PAGE);
            self.page_mut(page)[within] ^= 1 << (bit % 8);
        }
    }
}
