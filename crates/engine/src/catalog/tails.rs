//! Writes that were acknowledged on this host and are no part of their image, because another host took the image
//! over before they were uploaded (`flush=local`).
//!
//! They are kept beside the pool's directory of this host, and are never replayed. An operator can look at them and
//! take from them what is wanted.

use std::sync::Arc;

use marcot_backend::{Shipping, Tail};
use marcot_format::group::{GROUP_BESIDE_LOG, GroupHeader, RecordKind};
use marcot_format::{BLOCK_BYTES, ImageId, Slot, crc32c};
use marcot_store::DiskFile;

use super::pool::Pool;
use crate::error::{Error, ErrorKind, IoContext, Result, fail};
use crate::segment::{groups, read_blocks};

const BLOCK: usize = BLOCK_BYTES as usize;

/// The end of a log that was put aside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TailInfo {
    /// What it is called in this pool, on this host.
    pub name: String,
    /// The image whose log it is.
    pub image: ImageId,
    /// What the image is called now, `pool/image` or `pool/namespace/image`; `None` where it is gone.
    pub image_name: Option<String>,
    /// When it was put aside, in seconds since 1970.
    pub since_s: i64,
    /// What it takes on the disk of this host, in bytes.
    pub bytes: u64,
}

/// A change in the end of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TailChange<'a> {
    /// Whole blocks were written.
    Write {
        /// First byte of the image.
        offset: u64,
        /// What was written.
        data: &'a [u8],
    },
    /// A range was discarded.
    Discard {
        /// First byte of the image.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

impl Pool {
    fn shipping(&self) -> Option<Arc<dyn Shipping>> {
        self.segments().shipping()
    }

    /// What was put aside on this host for images of this pool.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn tails(&self) -> Result<Vec<TailInfo>> {
        self.kept_tails()?.into_iter().map(|tail| self.tail_info(tail)).collect()
    }

    fn kept_tails(&self) -> Result<Vec<Tail>> {
        let tails = self.shipping().map_or_else(|| Ok(Vec::new()), |shipping| shipping.tails());
        tails.at(|| format!("cannot see what was put aside for pool '{}'", self.name()))
    }

    /// One of [`Self::tails`].
    ///
    /// # Errors
    /// `NotFound`; as there.
    pub fn tail(&self, name: &str) -> Result<TailInfo> {
        match self.kept_tails()?.into_iter().find(|tail| tail.name == name) {
            Some(tail) => self.tail_info(tail),
            None => Err(self.no_tail(name)),
        }
    }

    fn tail_info(&self, tail: Tail) -> Result<TailInfo> {
        let Tail { name, image, since_s, bytes } = tail;
        let image_name = match self.read_head(image) {
            Ok(head) => Some(self.image_label(&head)),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => None,
                ErrorKind::Corrupt | ErrorKind::NewerFormat => Some(self.label_by_names(image)),
                _ => return Err(error),
            },
        };
        Ok(TailInfo { name, image, image_name, since_s, bytes })
    }

    fn no_tail(&self, name: &str) -> Error {
        let message = format!("nothing named '{name}' was put aside for pool '{}'", self.name());
        Error::new(ErrorKind::NotFound, message)
    }

    /// Gives `each` the changes of the end of a log, in the order in which they were acknowledged: those that were not
    /// uploaded, and perhaps some before them that were. As in a replay, it ends before the first group that is not
    /// whole, unless a later one says that it was durable.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` for data that was damaged; those of `each`; what the operating system says.
    pub fn read_tail(
        &self,
        tail: &TailInfo,
        each: &mut dyn FnMut(TailChange<'_>) -> Result<()>,
    ) -> Result<()> {
        let name = &tail.name;
        let context = || format!("cannot read what was put aside as '{name}'");
        let files = self.of_tail(name, |shipping| shipping.open_tail(name), context)?;
        let log = log_of(tail.image, &files).at(context)?;
        let durable_below = log.iter().map(|found| found.group.durable_below).max().unwrap_or(0);
        let mut next = log.first().map_or(0, |found| found.group.group);
        for found in &log {
            if found.group.group != next || !found.give(each, &context)? {
                break;
            }
            next += 1;
        }
        if next < durable_below {
            return fail(ErrorKind::Corrupt, format!("{}: it is damaged", context()));
        }
        Ok(())
    }

    /// Removes what was put aside.
    ///
    /// # Errors
    /// `NotFound`; what the operating system says.
    pub fn remove_tail(&self, name: &str) -> Result<()> {
        let remove = |shipping: &dyn Shipping| shipping.remove_tail(name);
        self.of_tail(name, remove, || format!("cannot remove '{name}'"))
    }

    /// What `call` returns. `NotFound` says which pool has no such tail.
    fn of_tail<T>(
        &self,
        name: &str,
        call: impl FnOnce(&dyn Shipping) -> std::io::Result<T>,
        context: impl Fn() -> String,
    ) -> Result<T> {
        match self.shipping().map(|shipping| call(&*shipping)) {
            None => Err(self.no_tail(name)),
            Some(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(self.no_tail(name))
            }
            Some(done) => done.at(context),
        }
    }
}

/// A group of the log.
struct Found<'a> {
    file: &'a dyn DiskFile,
    sequence: u32,
    slot: Slot,
    group: GroupHeader,
}

impl Found<'_> {
    /// Gives the changes of the group. False, and nothing given, where its data does not match its checksums.
    fn give(
        &self,
        each: &mut dyn FnMut(TailChange<'_>) -> Result<()>,
        context: &dyn Fn() -> String,
    ) -> Result<bool> {
        let group = &self.group;
        let first = self.slot.after(group.header_blocks() as u32);
        let data = read_blocks(self.file, first, group.crcs.len()).at(context)?;
        let mut blocks = data.chunks_exact(BLOCK).zip(&group.crcs);
        let whole = data.len() == group.crcs.len() * BLOCK;
        if !whole || !blocks.all(|(block, crc)| crc32c(block) == *crc) {
            return Ok(false);
        }
        let mut rest = &data[..];
        for record in &group.records {
            let (offset, length) = (record.block * BLOCK_BYTES, record.count * BLOCK_BYTES);
            match record.kind {
                RecordKind::Discard => each(TailChange::Discard { offset, length })?,
                RecordKind::Write => {
                    // Decoding has compared the records with the number of blocks.
                    let (data, behind) = rest.split_at(length as usize);
                    rest = behind;
                    each(TailChange::Write { offset, data })?;
                }
            }
        }
        Ok(true)
    }
}

/// The groups of the last log in the data segments of an image, by their numbers.
fn log_of(image: ImageId, files: &[(u32, Arc<dyn DiskFile>)]) -> std::io::Result<Vec<Found<'_>>> {
    let mut log = Vec::new();
    for (sequence, file) in files {
        let (sequence, file) = (*sequence, &**file);
        let groups = groups(file, sequence)?.into_iter();
        let groups =
            groups.filter(|(_, group)| group.author == image.0 && group.group != GROUP_BESIDE_LOG);
        log.extend(groups.map(|(slot, group)| Found { file, sequence, slot, group }));
    }
    // An owner makes a root of the log of the one before, and stores it, before its own log begins.
    let epoch = log.iter().map(|found| found.group.epoch).max().unwrap_or(0);
    log.retain(|found| found.group.epoch == epoch);
    // A log goes through every segment. One that is missing was removed, so a root covers it and all before it.
    let mut sequences: Vec<u32> = log.iter().map(|found| found.sequence).collect();
    sequences.dedup();
    let begin = sequences.windows(2).rev().find(|pair| pair[1] - pair[0] > 1);
    let begin = begin.map_or(0, |pair| pair[1]);
    log.retain(|found| found.sequence >= begin);
    // An append that failed was done again, with its number, in the next segment.
    log.sort_by_key(|found| (found.group.group, std::cmp::Reverse(found.sequence)));
    log.dedup_by_key(|found| found.group.group);
    Ok(log)
}
