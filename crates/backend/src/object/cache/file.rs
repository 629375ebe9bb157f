//! The file of one object.
//!
//! Invariants:
//! - A chunk's data is written before its record. Nothing is synced: after a crash the checksums tell what is
//!   whole.
//! - A file gets its name when its header is written. So a file with a name is that of the object in its header,
//!   or damaged.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use marcot_format::{BLOCK_BYTES, crc32c};
use marcot_store::DiskFile;

use super::layout::{
    CHUNK_BYTES, CHUNKS_MAX, DIRECTORY_MODE, FILE_MODE, HEADER_BYTES, INDEX_AT, ObjectId,
    RECORD_BYTES, RECORDS_AT, Record, USED_PLACE, temporary,
};
use super::place::Place;

const BLOCK: usize = BLOCK_BYTES as usize;

/// An open file. Clones refer to the same one.
#[derive(Clone)]
pub(super) struct ObjectFile(Arc<dyn DiskFile>);

/// What [`ObjectFile::open`] has found.
pub(super) enum Found {
    /// The file, and the chunks that are here.
    File(ObjectFile, Vec<Option<Record>>),
    /// There is none.
    None,
    /// There is one that was damaged, or that of another object.
    Other,
}

/// How a read ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Checked {
    /// So many bytes are right.
    Bytes(usize),
    /// The bytes do not match their checksums, or are not there.
    Damaged,
}

/// Where the record of a chunk lies.
fn record_at(chunk: u32) -> u64 {
    RECORDS_AT + u64::from(chunk) * RECORD_BYTES as u64
}

impl ObjectFile {
    /// Opens the file of an object.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn open(place: &Place, id: &ObjectId, path: &Path) -> io::Result<Found> {
        let file = match place.disk().open(path, true) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::None),
            opened => opened?,
        };
        let mut bytes = vec![0; HEADER_BYTES as usize + CHUNKS_MAX as usize * RECORD_BYTES];
        let n = file.read_at(INDEX_AT, &mut bytes)?;
        if !bytes.starts_with(&id.header()) {
            return Ok(Found::Other);
        }
        // A record that was not written, or only in part, is not there.
        let records =
            bytes[HEADER_BYTES as usize..n.max(HEADER_BYTES as usize)].chunks(RECORD_BYTES);
        let mut chunks: Vec<_> =
            records.zip(0..CHUNKS_MAX).map(|(bytes, chunk)| Record::decode(chunk, bytes)).collect();
        chunks.resize(CHUNKS_MAX as usize, None);
        Ok(Found::File(Self(file), chunks))
    }

    /// Creates the file of an object. `AlreadyExists` where another process has done it meanwhile.
    ///
    /// # Errors
    /// What the operating system says; `NotFound` where the directory is gone.
    pub(super) fn create(place: &Place, id: &ObjectId, path: &Path) -> io::Result<Self> {
        let (disk, shard) = (place.disk(), path.parent().unwrap_or(Path::new(".")));
        let unfinished: PathBuf = temporary(shard, place.world.random.number());
        let file = match disk.create_new(&unfinished, FILE_MODE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                disk.create_directory(shard, DIRECTORY_MODE)?;
                disk.create_new(&unfinished, FILE_MODE)?
            }
            created => created?,
        };
        let file = Self(file);
        let made = file.0.write_at(INDEX_AT, &[&id.header()]);
        let made = made.and_then(|()| file.note_use(place.world.clock.now_s()));
        let made = made.and_then(|()| disk.rename_new(&unfinished, path));
        if let Err(error) = made {
            let _ = disk.remove_file(&unfinished);
            return Err(error);
        }
        Ok(file)
    }

    /// The file, for whoever verifies what it reads.
    pub(super) fn plain(&self) -> Arc<dyn DiskFile> {
        Arc::clone(&self.0)
    }

    /// True for clones.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// True where the file has no name any more: another process has removed it.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn is_removed(&self) -> io::Result<bool> {
        self.0.is_removed()
    }

    /// Notes when the object was used last. It is only a hint.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn note_use(&self, now_s: i64) -> io::Result<()> {
        self.0.write_at(USED_PLACE, &[&now_s.to_le_bytes()])
    }

    /// The record of a chunk, as it is now; another process may have written it.
    pub(super) fn record(&self, chunk: u32) -> Option<Record> {
        let mut bytes = [0; RECORD_BYTES];
        match self.0.read_at(record_at(chunk), &mut bytes) {
            Ok(RECORD_BYTES) => Record::decode(chunk, &bytes),
            _ => None,
        }
    }

    /// Stores a chunk.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn store(&self, chunk: u32, data: &[u8]) -> io::Result<Record> {
        self.0.write_at(u64::from(chunk) * CHUNK_BYTES, &[data])?;
        let record = Record::of(data);
        self.0.write_at(record_at(chunk), &[&record.encode(chunk)])?;
        Ok(record)
    }

    /// Forgets a chunk, for all processes.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn forget(&self, chunk: u32) -> io::Result<()> {
        self.0.write_at(record_at(chunk), &[&[0; RECORD_BYTES]])
    }

    /// Gives the space of a file back that has no name any more.
    pub(super) fn cut(&self) {
        let _ = self.0.set_length(0);
    }

    /// Reads bytes of a chunk, from `within` on, and compares them with their checksums. They may be fewer at the
    /// end of the chunk, and with `cached`, which never waits for the medium.
    ///
    /// # Errors
    /// What the operating system says; `WouldBlock` where nothing could be read without waiting.
    pub(super) fn read(
        &self,
        chunk: u32,
        record: &Record,
        within: usize,
        buf: &mut [u8],
        cached: bool,
    ) -> io::Result<Checked> {
        let end = (record.bytes as usize).min(within + buf.len());
        if within >= end {
            return Ok(Checked::Bytes(0));
        }
        // Whole blocks, because these have checksums.
        let start = within / BLOCK * BLOCK;
        let stop = end.next_multiple_of(BLOCK).min(record.bytes as usize);
        let place = u64::from(chunk) * CHUNK_BYTES + start as u64;
        if (start, stop) == (within, end) {
            let buf = &mut buf[..end - within];
            return self.read_blocks(place, record, start, buf, cached);
        }
        let mut blocks = vec![0; stop - start];
        let checked = self.read_blocks(place, record, start, &mut blocks, cached)?;
        let Checked::Bytes(n) = checked else { return Ok(checked) };
        let right = (start + n).min(end).saturating_sub(within);
        if right == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        buf[..right].copy_from_slice(&blocks[within - start..within - start + right]);
        Ok(Checked::Bytes(right))
    }

    fn read_blocks(
        &self,
        place: u64,
        record: &Record,
        start: usize,
        buf: &mut [u8],
        cached: bool,
    ) -> io::Result<Checked> {
        let mut n = match cached {
            true => self.0.read_cached_at(place, buf)?,
            false => self.0.read_at(place, buf)?,
        };
        if n < buf.len() {
            if !cached {
                return Ok(Checked::Damaged);
            }
            n = n / BLOCK * BLOCK;
            if n == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        let crcs = &record.crcs[start / BLOCK..];
        let right = buf[..n].chunks(BLOCK).zip(crcs).all(|(block, crc)| crc32c(block) == *crc);
        Ok(if right { Checked::Bytes(n) } else { Checked::Damaged })
    }
}
