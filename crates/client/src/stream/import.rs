//! From a stream to an image: `import-diff`, and `import` of a whole image.
//!
//! RBD applies a difference as it comes. If it ends too early, the image has a part of it. Here
//! nothing is left of such a stream wherever that is possible:
//!
//! - A difference in a file is first read without its data (`check_difference`). If it is not complete,
//!   nothing is changed.
//! - A difference that comes through a pipe is applied as it comes. When it breaks, an image that was
//!   exactly in the state that the difference begins with, and that nobody else has open, goes back
//!   to that state.
//! - In all other cases the image keeps the part ([`Left::Partly`]). Importing the whole difference
//!   then gives the same image as importing it once.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use marcot::{BLOCK_BYTES, Error, ErrorKind, IMAGE_BYTES_MAX, Result};
use marcot_serve::control::Command;

use super::records::{Records, Unreadable};
use super::wire::{Form, Item, What};
use crate::image::Image;
use crate::inspect::{DiffExtent, PART_BYTES_MIN};
use crate::operation::Operation;
use crate::owner::Access;
use crate::retry::interrupted;
use crate::sparse;

/// Why a stream is not imported.
#[derive(Debug)]
pub enum Trouble {
    /// It cannot be read.
    Stream(Unreadable),
    /// It begins with a snapshot that the image does not have.
    NoStart(String),
    /// It ends with a snapshot that the image has already.
    HasEnd(String),
    /// It ends with a protected snapshot, and the image has none ([`Difference::may_protect`]).
    Protected(String),
    /// The image cannot take it.
    Image(Error),
}

impl From<Unreadable> for Trouble {
    fn from(unreadable: Unreadable) -> Self {
        Self::Stream(unreadable)
    }
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Image(error)
    }
}

/// What an image has of a difference that was not imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Everything that came before the error.
    Partly,
}

/// A difference that was not imported.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub trouble: Trouble,
    /// What the image has of it.
    pub left: Left,
}

/// What a difference is applied to.
pub(super) trait Target {
    fn size_bytes(&self) -> u64;
    /// Called before the first change, with the snapshot that the difference begins with.
    fn begin(&mut self, _from: Option<&str>) {}
    fn resize(&mut self, size_bytes: u64) -> Result<()>;
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()>;
    fn zero(&mut self, offset: u64, length: u64) -> Result<()>;
    fn finish(&mut self, snapshot: Option<(&str, bool)>) -> Result<()>;
}

/// What an image has and can have.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// Whether it has a snapshot of this name.
    pub has_snapshot: &'a dyn Fn(&str) -> bool,
    /// As [`Difference::may_protect`].
    pub may_protect: bool,
}

/// What the records of a difference have said so far, and whether the next one makes sense.
struct Course<'a> {
    size_bytes: u64,
    known: Known<'a>,
    from: Option<String>,
    to: String,
    protected: bool,
}

impl<'a> Course<'a> {
    fn new(size_bytes: u64, known: Known<'a>) -> Self {
        Self { size_bytes, known, from: None, to: String::new(), protected: false }
    }

    fn take(&mut self, item: &Item<'_>) -> std::result::Result<(), Trouble> {
        match item {
            Item::From(name) if !(self.known.has_snapshot)(name) => {
                return Err(Trouble::NoStart(name.clone()));
            }
            Item::From(name) => self.from = Some(name.clone()),
            Item::To(name) if (self.known.has_snapshot)(name) => {
                return Err(Trouble::HasEnd(name.clone()));
            }
            Item::To(name) => {
                if !name.is_empty() {
                    marcot::check_snapshot_name(name)?;
                }
                self.to.clone_from(name);
            }
            Item::Protected(protected) => self.protected = *protected,
            Item::Size(bytes) if *bytes > IMAGE_BYTES_MAX => {
                let message = format!("an image cannot have {bytes} bytes");
                return Err(Error::new(ErrorKind::Invalid, message).into());
            }
            Item::Size(bytes) => self.size_bytes = *bytes,
            Item::Write { offset, length } | Item::Zero { offset, length }
                if *length > 0 && *offset >= self.size_bytes =>
            {
                let message =
                    format!("the stream has data beyond the end of the image, at {offset}");
                return Err(Error::new(ErrorKind::Invalid, message).into());
            }
            Item::End if self.protected && !self.to.is_empty() && !self.known.may_protect => {
                return Err(Trouble::Protected(self.to.clone()));
            }
            _ => {}
        }
        Ok(())
    }

    /// As many of `length` bytes from `offset` on as the image holds. RBD drops the rest too.
    fn clip(&self, offset: u64, length: u64) -> u64 {
        length.min(self.size_bytes.saturating_sub(offset))
    }

    fn snapshot(&self) -> Option<(&str, bool)> {
        (!self.to.is_empty()).then_some((&*self.to, self.protected))
    }
}

/// Applies one difference. `progress` gets the position in the stream, and the place in the image.
pub(super) fn apply<R: Read>(
    records: &mut Records<R>,
    target: &mut dyn Target,
    grain_bytes: usize,
    known: Known<'_>,
    progress: &mut dyn FnMut(u64, Option<u64>, u64),
) -> std::result::Result<(), Trouble> {
    let mut course = Course::new(target.size_bytes(), known);
    let mut begun = false;
    while let Some(item) = records.next_item()? {
        course.take(&item)?;
        let changes =
            matches!(item, Item::Size(_) | Item::Write { .. } | Item::Zero { .. } | Item::End);
        if changes && !begun {
            target.begin(course.from.as_deref());
            begun = true;
        }
        let mut place = None;
        match item {
            Item::Size(bytes) if bytes != target.size_bytes() => target.resize(bytes)?,
            Item::Data { offset, bytes } => {
                place = Some(offset);
                let held = course.clip(offset, bytes.len() as u64);
                // At most the length of a piece.
                write_sparse(target, offset, &bytes[..held as usize], grain_bytes)?;
            }
            Item::Zero { offset, length } => {
                place = Some(offset);
                let held = course.clip(offset, length);
                if held > 0 {
                    target.zero(offset, held)?;
                }
            }
            Item::End => continue,
            _ => {}
        }
        progress(records.position(), place, course.size_bytes);
    }
    target.finish(course.snapshot())?;
    Ok(())
}

fn write_sparse(
    target: &mut dyn Target,
    offset: u64,
    data: &[u8],
    grain_bytes: usize,
) -> Result<()> {
    let mut at = 0;
    for run in sparse::data_runs(data, grain_bytes) {
        if run.start > at {
            target.zero(offset + at as u64, (run.start - at) as u64)?;
        }
        target.write(offset + run.start as u64, &data[run.clone()])?;
        at = run.end;
    }
    match data.len() > at {
        true => target.zero(offset + at as u64, (data.len() - at) as u64),
        false => Ok(()),
    }
}

/// Reads a file from a place on, without moving its position.
struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.file.read_at(buf, self.at)?;
        self.at += bytes as u64;
        Ok(bytes)
    }
}

/// Reads the records of a difference in a file, from `start` on and without their data, and checks whether
/// an image can take it: that nothing is missing, that its snapshots are as the difference wants them.
fn check_difference(
    file: &File,
    start: u64,
    size_bytes: u64,
    known: Known<'_>,
    last_good: &mut u64,
) -> std::result::Result<(), Trouble> {
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let mut records = Records::new(At { file, at: start }, What::Difference(Form::One));
    let mut course = Course::new(size_bytes, known);
    while let Some(item) = records.next_item()? {
        course.take(&item)?;
        if matches!(item, Item::Write { .. }) {
            records.pass_data(|source, bytes| {
                source.at = source.at.saturating_add(bytes);
                source.at <= length
            })?;
        }
        *last_good = records.position();
    }
    Ok(())
}

/// A difference to import.
pub struct Difference<'a> {
    /// Its bytes.
    pub source: &'a mut dyn Read,
    /// The same bytes, if they are in a file: the file, and the place where they begin.
    pub file: Option<(&'a File, u64)>,
    /// Runs of zeros at least this long, in bytes, are not stored.
    pub grain_bytes: usize,
    /// Whether the image may have protected snapshots. With RBD it needs the feature `layering` for that.
    pub may_protect: bool,
}

impl Image {
    /// Applies a difference that `export-diff` has written, and takes the snapshot that it ends with. The image
    /// may be in use. `progress` gets the position in the stream, the place in the image if there is one, and
    /// the size of the image, in bytes.
    ///
    /// # Errors
    /// With what is left of the difference: it cannot be read, or the image does not have the snapshot
    /// it begins with, or has the one it ends with; those of writing, resizing and taking snapshots.
    pub fn import_difference(
        &self,
        difference: Difference<'_>,
        progress: &mut dyn FnMut(u64, Option<u64>, u64),
    ) -> std::result::Result<(), Failed> {
        let mut outcome = Ok(());
        let admitted = self.operate(Operation::ImportDifference, || {
            outcome = import_difference(self, difference, progress);
            Ok(())
        });
        admitted.map_err(|error| nothing_left(error.into()))?;
        outcome
    }
}

fn nothing_left(trouble: Trouble) -> Failed {
    Failed { trouble, left: Left::Nothing }
}

fn import_difference(
    image: &Image,
    difference: Difference<'_>,
    progress: &mut dyn FnMut(u64, Option<u64>, u64),
) -> std::result::Result<(), Failed> {
    let info = image.engine_pool().info(image.id());
    let info = info.map_err(|error| nothing_left(error.into()))?;
    let names: Vec<String> =
        info.snapshots.iter().filter(|s| s.is_of_users()).map(|s| s.name.clone()).collect();
    let has = |name: &str| names.iter().any(|known| known == name);
    let known = Known { has_snapshot: &has, may_protect: difference.may_protect };
    if let Some((file, start)) = difference.file {
        let mut last_good = 0;
        let checked = check_difference(file, start, info.size_bytes, known, &mut last_good);
        checked.map_err(|trouble| {
            // Where RBD, which applies what it reads, would have come to.
            progress(last_good, None, info.size_bytes);
            nothing_left(trouble)
        })?;
    }
    // Before the image is opened: a stream that is none at all must not disturb anybody.
    let mut records = Records::new(difference.source, What::Difference(Form::One));
    records.read_banner().map_err(|unreadable| nothing_left(unreadable.into()))?;
    let access = Access::open(image, "importing a difference");
    let access = access.map_err(|error| nothing_left(error.into()))?;
    let mut target = Opened {
        image,
        access,
        size_bytes: info.size_bytes,
        old_bytes: info.size_bytes,
        undo: Undo::Nothing,
        changed: false,
        written: Written::default(),
    };
    let grain_bytes = difference.grain_bytes;
    match apply(&mut records, &mut target, grain_bytes, known, progress) {
        Ok(()) => target
            .access
            .close()
            .map_err(|error| Failed { trouble: error.into(), left: Left::Partly }),
        Err(trouble) => {
            let left = target.undo();
            // The first error is the one to report.
            let _ = target.access.close();
            Err(Failed { trouble, left })
        }
    }
}

/// How an image gets back to the state before a difference.
enum Undo {
    /// It does not.
    Nothing,
    /// It is brought back to this snapshot.
    RollBack(String),
    /// It had no data.
    Empty,
}

/// An image that is open here or elsewhere.
struct Opened<'a> {
    image: &'a Image,
    access: Access,
    size_bytes: u64,
    old_bytes: u64,
    undo: Undo,
    changed: bool,
    written: Written,
}

/// The ranges that were changed, as whole blocks and in the order of the changes. Neighbours are joined.
#[derive(Default)]
struct Written {
    ranges: Vec<(u64, u64)>,
}

/// Largest number of changed ranges that are kept. After a difference with more, nothing is undone.
const WRITTEN_MAX: usize = 1 << 20;
/// The range of which differences are asked for at a time, in bytes. They always fit into an answer.
const ASKED_BYTES: u64 = 2 * PART_BYTES_MIN;

impl Written {
    fn add(&mut self, offset: u64, length: u64) {
        let (start, end) = (offset / BLOCK_BYTES, (offset + length).div_ceil(BLOCK_BYTES));
        match self.ranges.last_mut() {
            Some((first, last)) if *first <= start && start <= *last => *last = end.max(*last),
            _ => self.ranges.push((start, end)),
        }
    }

    fn is_complete(&self) -> bool {
        self.ranges.len() < WRITTEN_MAX
    }

    /// Sorts the ranges and joins those that overlap, for [`Self::holds`].
    fn settle(&mut self) {
        self.ranges.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (start, end) in self.ranges.drain(..) {
            match joined.last_mut() {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                _ => joined.push((start, end)),
            }
        }
        self.ranges = joined;
    }

    /// True if the whole range was changed.
    fn holds(&self, offset: u64, length: u64) -> bool {
        let (start, end) = (offset / BLOCK_BYTES, (offset + length).div_ceil(BLOCK_BYTES));
        let after = self.ranges.partition_point(|(first, _)| *first <= start);
        after > 0 && end <= self.ranges[after - 1].1
    }
}

impl Opened<'_> {
    fn execute(&mut self, command: &Command) -> Result<()> {
        if self.image.client().interrupted() {
            return Err(interrupted());
        }
        self.changed = true;
        self.access.execute(command, &mut |_, _| {})
    }

    fn note(&mut self, offset: u64, length: u64) {
        if self.written.is_complete() {
            self.written.add(offset, length);
        }
    }

    /// True if the image reads as `from`, or as zeros.
    fn equals(&mut self, from: Option<&str>) -> bool {
        let info = self.image.engine_pool().info(self.image.id());
        let same_size = info.is_ok_and(|info| {
            let size_bytes = match from {
                Some(name) => {
                    let mut snapshots = info.snapshots.iter().filter(|s| s.is_of_users());
                    snapshots.find(|s| s.name == name).map(|s| s.size_bytes)
                }
                None => Some(info.size_bytes),
            };
            // A clone without data of its own is not empty: its parent has some.
            size_bytes == Some(self.size_bytes) && (from.is_some() || info.parent.is_none())
        });
        let command = Command::Diff {
            from_snap: from.map(str::to_owned),
            to_snap: None,
            offset: 0,
            length: self.size_bytes,
        };
        let differs: Result<Vec<DiffExtent>> = self.access.execute(&command, &mut |_, _| {});
        same_size && differs.is_ok_and(|extents| extents.is_empty())
    }

    /// True if the image differs from the state before only where this difference has changed it: nobody else
    /// has written to it meanwhile.
    fn is_ours(&mut self) -> bool {
        let from_snap = match &self.undo {
            Undo::Nothing => return false,
            Undo::RollBack(name) => Some(name.clone()),
            Undo::Empty => None,
        };
        let info = self.image.engine_pool().info(self.image.id());
        if !self.written.is_complete() || !info.is_ok_and(|i| i.size_bytes == self.size_bytes) {
            return false;
        }
        self.written.settle();
        let mut offset = 0;
        while offset < self.size_bytes {
            let length = ASKED_BYTES.min(self.size_bytes - offset);
            let (from_snap, to_snap) = (from_snap.clone(), None);
            let command = Command::Diff { from_snap, to_snap, offset, length };
            let differs: Result<Vec<DiffExtent>> = self.access.execute(&command, &mut |_, _| {});
            let ours = |extent: &DiffExtent| self.written.holds(extent.offset, extent.length);
            if !differs.is_ok_and(|extents| extents.iter().all(ours)) {
                return false;
            }
            offset += length;
        }
        true
    }

    fn undo(&mut self) -> Left {
        if !self.changed {
            return Left::Nothing;
        }
        if !self.is_ours() {
            return Left::Partly;
        }
        let old_bytes = self.old_bytes;
        let mut resize = |size_bytes| -> Result<()> {
            let command = Command::Resize { size_bytes, allow_shrink: true };
            self.access.execute(&command, &mut |_, _| {})
        };
        let undone = match &self.undo {
            Undo::Nothing => return Left::Partly,
            Undo::Empty => resize(0).and_then(|()| resize(old_bytes)),
            Undo::RollBack(name) => {
                let command = Command::SnapRollback { name: name.clone() };
                self.access.execute(&command, &mut |_, _| {})
            }
        };
        if undone.is_ok() { Left::Nothing } else { Left::Partly }
    }
}

impl Target for Opened<'_> {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn begin(&mut self, from: Option<&str>) {
        // With the image open elsewhere, others may write to it meanwhile, and that must not be lost.
        if !self.access.is_here() || !self.equals(from) {
            return;
        }
        self.undo = match from {
            Some(name) => Undo::RollBack(name.to_owned()),
            None => Undo::Empty,
        };
    }

    fn resize(&mut self, size_bytes: u64) -> Result<()> {
        self.execute(&Command::Resize { size_bytes, allow_shrink: true })?;
        // What shrinking cuts off.
        if size_bytes < self.size_bytes {
            self.note(size_bytes, self.size_bytes - size_bytes);
        }
        self.size_bytes = size_bytes;
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.note(offset, data.len() as u64);
        self.execute(&Command::Write { offset, data: data.to_vec() })
    }

    fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.note(offset, length);
        self.execute(&Command::Discard { offset, length })
    }

    fn finish(&mut self, snapshot: Option<(&str, bool)>) -> Result<()> {
        let Some((name, protected)) = snapshot else { return self.execute(&Command::Flush) };
        self.execute(&Command::SnapCreate { name: name.to_owned() })?;
        // From here on the image has the whole difference.
        self.undo = Undo::Nothing;
        match protected {
            true => self.execute(&Command::SnapProtect { name: name.to_owned() }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_changed_counts_as_changed() {
        const BLOCK: u64 = BLOCK_BYTES;
        let mut written = Written::default();
        for (offset, length) in [(10 * BLOCK, BLOCK), (11 * BLOCK, 5), (0, 1), (12 * BLOCK, 0)] {
            written.add(offset, length);
        }
        written.settle();
        assert!(written.holds(0, BLOCK) && written.holds(10 * BLOCK, 2 * BLOCK));
        assert!(!written.holds(0, BLOCK + 1) && !written.holds(9 * BLOCK, 2 * BLOCK));
        assert!(!written.holds(12 * BLOCK, 1) && !written.holds(5 * BLOCK, 1));
        assert!(!Written::default().holds(0, 1));
    }
}
