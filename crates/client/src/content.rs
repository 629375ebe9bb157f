//! Reading the whole content of an image or snapshot, whoever has it open.

use marcot::{DiffExtent, Error, Extent, Result};
use marcot_serve::control::Command;

use crate::image::Image;
use crate::operation::Operation;
use crate::owner::{Access, strange_reply};
use crate::snapshot::Snapshot;

/// Largest number of extents that are requested at a time.
const EXTENTS_MAX: usize = 4096;

/// Content that can be read.
pub trait Content {
    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `OutOfRange`, `Corrupt`, `Io`.
    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()>;

    /// Extents of data and holes from `offset` on: in order and without gaps, but they may end before
    /// `offset + length`.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>>;

    /// Where the state `to` of the image (`None`: its state now) differs from the snapshot `from` (`None`: an image
    /// without data), in a range, in order of offset.
    ///
    /// # Errors
    /// `NotFound` for a snapshot; `Invalid` if there are too many differences for one answer; as
    /// [`Self::read`].
    fn differences(
        &mut self,
        states: States<'_>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<DiffExtent>>;

    /// Closes it.
    ///
    /// # Errors
    /// Those of closing the image.
    fn close(self: Box<Self>) -> Result<()>;
}

/// Two states of an image, which [`Content::differences`] compares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct States<'a> {
    /// The earlier one: a snapshot; `None`: an image without data.
    pub from: Option<&'a str>,
    /// The later one: a snapshot; `None`: the image itself.
    pub to: Option<&'a str>,
}

impl Image {
    /// Opens the content of the image, here or at its owner. At an owner, others may write to it meanwhile.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`; `Owned` for an owner that cannot be reached; `Interrupted`.
    pub fn content(&self) -> Result<Box<dyn Content>> {
        self.operate(Operation::ReadImage, || self.open_content(None))
    }

    pub(crate) fn open_content(&self, snap: Option<&str>) -> Result<Box<dyn Content>> {
        let pool = self.engine_pool();
        if let Some(snap) = snap {
            return Ok(Box::new(Opened(pool.open_snapshot(self.id(), snap)?)));
        }
        if pool.read_only() {
            return Ok(Box::new(Opened(pool.open_read_only(self.id())?)));
        }
        Ok(Box::new(self.shared_content()?))
    }

    /// The content of the image, here or at its owner.
    pub(crate) fn shared_content(&self) -> Result<Shared> {
        let size_bytes = self.engine_pool().info(self.id())?.size_bytes;
        let access = Access::open(self, "reading")?;
        Ok(Shared { access, size_bytes })
    }
}

impl Snapshot {
    /// Opens the content of the snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn content(&self) -> Result<Box<dyn Content>> {
        let open = || self.image().open_content(Some(self.name()));
        self.image().operate(Operation::ReadImage, open)
    }
}

/// Open in this process only.
struct Opened(marcot::Image);

impl Content for Opened {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf)
    }

    fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.0.extents(offset, length, EXTENTS_MAX)
    }

    fn differences(
        &mut self,
        states: States<'_>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<DiffExtent>> {
        self.0.diff(states.from, states.to, offset, length)
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.0.close()
    }
}

/// Open here or elsewhere; others may write to it meanwhile.
pub(crate) struct Shared {
    access: Access,
    size_bytes: u64,
}

impl Content for Shared {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
        let length = buf.len() as u64;
        let command = Command::Read { offset, length };
        let data: Vec<u8> = self.access.execute(&command, &mut |_, _| {})?;
        if data.len() != buf.len() {
            return Err(strange_reply());
        }
        buf.copy_from_slice(&data);
        Ok(())
    }

    fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        self.access.execute(&Command::Extents { offset, length }, &mut |_, _| {})
    }

    fn differences(
        &mut self,
        states: States<'_>,
        offset: u64,
        length: u64,
    ) -> Result<Vec<DiffExtent>> {
        let (from_snap, to_snap) = (states.from.map(str::to_owned), states.to.map(str::to_owned));
        let command = Command::Diff { from_snap, to_snap, offset, length };
        self.access.execute(&command, &mut |_, _| {})
    }

    fn close(self: Box<Self>) -> Result<()> {
        self.access.close()
    }
}

/// Calls `each` with every piece of `content` in order: `Some(bytes)` for data, at most
/// `piece_bytes` long and never across a multiple of that; `None` for a hole of any length. So the cost
/// depends on the amount of data, not on the size.
///
/// # Errors
/// Those of reading, and of `each`.
pub fn walk<E: From<Error>>(
    content: &mut dyn Content,
    piece_bytes: u64,
    each: impl FnMut(u64, u64, Option<&[u8]>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    walk_from(content, 0, piece_bytes, each)
}

/// As [`walk`], from a byte on.
///
/// # Errors
/// As [`walk`].
pub fn walk_from<E: From<Error>>(
    content: &mut dyn Content,
    from: u64,
    piece_bytes: u64,
    mut each: impl FnMut(u64, u64, Option<&[u8]>) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let size_bytes = content.size_bytes();
    let mut buffer = Vec::new();
    let mut offset = from;
    while offset < size_bytes {
        let extents = content.extents(offset, size_bytes - offset)?;
        let start = offset;
        for extent in extents {
            let end = (extent.offset + extent.length).min(size_bytes);
            while offset < end {
                if !extent.data {
                    each(offset, end - offset, None)?;
                    offset = end;
                    continue;
                }
                let piece_end = ((offset / piece_bytes + 1) * piece_bytes).min(end);
                let length = piece_end - offset;
                buffer.resize(usize::try_from(length).unwrap_or(0), 0);
                content.read(offset, &mut buffer)?;
                each(offset, length, Some(&buffer))?;
                offset = piece_end;
            }
        }
        if offset == start {
            return Err(strange_reply().into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three bytes of data, three bytes of hole, and so on.
    struct Striped;

    impl Content for Striped {
        fn size_bytes(&self) -> u64 {
            11
        }

        fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
            for (i, byte) in buf.iter_mut().enumerate() {
                *byte = offset as u8 + i as u8;
            }
            Ok(())
        }

        fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>> {
            let end = (offset / 3 + 1) * 3;
            let length = length.min(end - offset);
            Ok(vec![Extent { offset, length, data: (offset / 3) % 2 == 1 }])
        }

        fn differences(&mut self, _: States<'_>, _: u64, _: u64) -> Result<Vec<DiffExtent>> {
            Ok(Vec::new())
        }

        fn close(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_walk_covers_everything_once_and_splits_at_pieces() {
        let mut seen = Vec::new();
        walk::<Error>(&mut Striped, 4, |offset, length, data| {
            seen.push((offset, length, data.map(<[u8]>::to_vec)));
            Ok(())
        })
        .unwrap();
        assert_eq!(
            seen,
            [
                (0, 3, None),
                (3, 1, Some(vec![3])),
                (4, 2, Some(vec![4, 5])),
                (6, 3, None),
                (9, 2, Some(vec![9, 10])),
            ]
        );
    }

    /// A block of data in the middle of a pebibyte.
    struct Sparse;

    const DATA_AT: u64 = 1 << 49;

    impl Content for Sparse {
        fn size_bytes(&self) -> u64 {
            1 << 50
        }

        fn read(&mut self, offset: u64, buf: &mut [u8]) -> Result<()> {
            assert_eq!((offset, buf.len()), (DATA_AT, 4096));
            Ok(())
        }

        fn extents(&mut self, offset: u64, length: u64) -> Result<Vec<Extent>> {
            assert_eq!((offset, length), (0, 1 << 50));
            let after = DATA_AT + 4096;
            let row = |offset, length, data| Extent { offset, length, data };
            let rest = row(after, (1 << 50) - after, false);
            Ok(vec![row(0, DATA_AT, false), row(DATA_AT, 4096, true), rest])
        }

        fn differences(&mut self, _: States<'_>, _: u64, _: u64) -> Result<Vec<DiffExtent>> {
            Ok(Vec::new())
        }

        fn close(self: Box<Self>) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_walk_takes_as_many_steps_as_there_is_data_whatever_the_size() {
        let mut steps = 0;
        walk::<Error>(&mut Sparse, 4096, |_, _, _| {
            steps += 1;
            Ok(())
        })
        .unwrap();
        assert_eq!(steps, 3);
    }
}
