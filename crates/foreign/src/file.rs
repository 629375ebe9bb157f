//! A file or a block device as a disk.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt};

use rustix::fs::SeekFrom;

use crate::error::{Error, ErrorKind, Result};
use crate::source::{Extent, Source, check_range};

/// See the module.
pub struct FileSource {
    file: File,
    size_bytes: u64,
}

impl FileSource {
    /// A regular file or a block device, with the size that it has now.
    ///
    /// # Errors
    /// `Invalid` for anything else; `Io`.
    pub fn new(file: File) -> Result<Self> {
        let about = file.metadata()?;
        let size_bytes = match about.file_type() {
            kind if kind.is_file() => about.len(),
            kind if kind.is_block_device() => rustix::fs::seek(&file, SeekFrom::End(0))?,
            _ => return Err(Error::invalid("neither a file nor a block device")),
        };
        Ok(Self { file, size_bytes })
    }

    /// The end of the data or the hole that begins at `offset`.
    fn seek(&self, to: SeekFrom) -> Option<u64> {
        match rustix::fs::seek(&self.file, to) {
            Ok(found) => Some(found.min(self.size_bytes)),
            Err(rustix::io::Errno::NXIO) => Some(self.size_bytes),
            // The file system does not know.
            Err(_) => None,
        }
    }
}

impl Source for FileSource {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        check_range(offset, buf.len() as u64, self.size_bytes)?;
        self.file.read_exact_at(buf, offset).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => {
                Error::new(ErrorKind::Io, "it has become shorter while it was read")
            }
            _ => error.into(),
        })
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        let end = offset + length;
        let data = self.seek(SeekFrom::Data(offset)).unwrap_or(offset).clamp(offset, end);
        if data > offset {
            return Ok(vec![Extent { offset, length: data - offset, data: false }]);
        }
        // A file may change while it is read: then it may be a hole by now.
        let hole = self.seek(SeekFrom::Hole(offset)).filter(|hole| *hole > offset).unwrap_or(end);
        Ok(vec![Extent { offset, length: hole.min(end) - offset, data: true }])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::next_data;

    #[test]
    fn holes_of_a_file_are_skipped_in_one_step() {
        const SIZE: u64 = 1 << 40;
        const AT: u64 = SIZE / 2 + 5000;
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        file.write_all_at(&[1], AT).unwrap();
        let source = FileSource::new(file).unwrap();
        let first = source.extents(0, SIZE).unwrap();
        assert!(first.len() == 1 && !first[0].data && first[0].length <= AT);
        let data = next_data(&source, 0).unwrap();
        assert!(data <= AT && AT < data + (1 << 20), "{data}");
        assert_eq!(next_data(&source, data + (1 << 21)).unwrap(), SIZE);
    }
}
