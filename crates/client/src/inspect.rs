//! Queries about an image that change nothing. They go to its owner if there is one, since the owner knows
//! more than the disk; else they read the disk.

pub use marcot::{DiffExtent, UsageRow};
use marcot::{ErrorKind, Result};
use marcot_serve::control::Command;
pub use marcot_serve::control::{IoCount, IoCounts, Watcher};

use crate::image::Image;
use crate::operation::Operation;

/// Smallest range to ask for. The answer for this much always fits into a message.
pub(crate) const PART_BYTES_MIN: u64 = 256 << 20;

/// Two states of an image to compare, and a range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Diff<'a> {
    /// The earlier state: a snapshot; `None`: an image without data.
    pub from: Option<&'a str>,
    /// The later state: a snapshot; `None`: the image itself.
    pub to: Option<&'a str>,
    /// First byte of the range.
    pub offset: u64,
    /// Length of the range in bytes.
    pub length: u64,
}

impl Image {
    /// Provisioned and used bytes: a row for each snapshot, oldest first, and one for the image itself.
    /// Snapshots that were removed and wait for their children are left out.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`; `Interrupted`.
    pub fn usage(&self) -> Result<Vec<UsageRow>> {
        self.operate(Operation::ImageUsage, || self.inspect(&Command::Usage))
    }

    /// Who has the image open: the answer of its owner, or the owner's process number if it does not answer.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `NewerFormat`; `Interrupted`.
    pub fn status(&self) -> Result<Vec<Watcher>> {
        self.operate(Operation::ImageStatus, || {
            if let Some(watchers) = self.look(&Command::Status)? {
                return Ok(watchers);
            }
            let owner = self.engine_pool().info(self.id())?.owned_by;
            Ok(owner.map(|pid| Watcher { pid, ..Watcher::default() }).into_iter().collect())
        })
    }

    /// What the users of the image have asked for since its owner has opened it; `None` where no process of this host
    /// and user has it open for writing, or where that one does not answer. Nothing is read from the medium.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn io_counts(&self) -> Result<Option<IoCounts>> {
        self.operate(Operation::ImageStatus, || {
            let watchers: Option<Vec<Watcher>> = self.look(&Command::Status)?;
            Ok(watchers.and_then(|watchers| watchers.first().map(|watcher| watcher.io)))
        })
    }

    /// The extents in which two states of the image differ within a range, in order of offset. Extents that
    /// read the same in both are left out.
    ///
    /// # Errors
    /// `NotFound` for a snapshot; `OutOfRange`; `Corrupt`; `Interrupted`.
    pub fn diff(&self, diff: &Diff<'_>) -> Result<Vec<DiffExtent>> {
        let (from_snap, to_snap) = (diff.from.map(str::to_owned), diff.to.map(str::to_owned));
        let ask = |offset, length| {
            let (from_snap, to_snap) = (from_snap.clone(), to_snap.clone());
            self.inspect(&Command::Diff { from_snap, to_snap, offset, length })
        };
        self.operate(Operation::DiffImage, || in_parts(diff.offset, diff.length, &ask))
    }
}

/// Asks for a range at once, or in as many parts as needed to make each answer short enough for the
/// owner's socket.
fn in_parts(
    offset: u64,
    length: u64,
    ask: &dyn Fn(u64, u64) -> Result<Vec<DiffExtent>>,
) -> Result<Vec<DiffExtent>> {
    match ask(offset, length) {
        Err(error) if error.kind() == ErrorKind::Invalid && length > PART_BYTES_MIN => {
            let half = (length / 2).next_multiple_of(PART_BYTES_MIN);
            let mut extents = in_parts(offset, half, ask)?;
            for extent in in_parts(offset + half, length - half, ask)? {
                match extents.last_mut() {
                    Some(last)
                        if last.offset + last.length == extent.offset
                            && last.data == extent.data =>
                    {
                        last.length += extent.length;
                    }
                    _ => extents.push(extent),
                }
            }
            Ok(extents)
        }
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn extent(offset: u64, length: u64, data: bool) -> DiffExtent {
        DiffExtent { offset, length, data }
    }

    #[test]
    fn a_range_that_is_too_much_for_one_answer_is_asked_for_in_parts_with_the_same_result() {
        let whole = vec![extent(5, PART_BYTES_MIN, true), extent(PART_BYTES_MIN * 3, 9, false)];
        let size_bytes = PART_BYTES_MIN * 5 + 7;
        let ask = |offset: u64, length: u64| {
            if length > PART_BYTES_MIN {
                return Err(marcot::Error::new(ErrorKind::Invalid, "too long"));
            }
            let cut = |e: &DiffExtent| {
                let start = e.offset.max(offset);
                let end = (e.offset + e.length).min(offset + length);
                (start < end).then(|| extent(start, end.saturating_sub(start), e.data))
            };
            Ok(whole.iter().filter_map(cut).collect())
        };
        assert_eq!(in_parts(0, size_bytes, &ask).unwrap(), whole);
    }
}
