//! From an image to a stream: `export-diff`, and `export` of a whole image.
//!
//! The cost follows what differs between the two states, not the size of the image. Data that reads as zeros
//! is written as a range of zeros.

use std::io;

use marcot::{DiffExtent, Error, ErrorKind, ImageInfo, Result};

use super::wire::{Form, Item, What, encode};
use crate::content::{Content, States};
use crate::image::Image;
use crate::inspect::PART_BYTES_MIN;
use crate::operation::Operation;
use crate::retry::interrupted;
use crate::sparse::is_zero;

/// Why an image is not exported.
#[derive(Debug)]
pub enum Trouble {
    /// The image cannot be read.
    Image(Error),
    /// The stream cannot be written.
    Sink(io::Error),
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Image(error)
    }
}

type Outcome<T = ()> = std::result::Result<T, Trouble>;

/// Takes the bytes of a stream.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> io::Result<()>;

/// Receives (done, total).
type Progress<'a> = &'a mut dyn FnMut(u64, u64);

impl Image {
    /// Writes how the state `states.to` differs from `states.from`, in RBD's format 1. With `whole_objects`,
    /// the whole of each object that differs. `progress` gets the place in the image and its size, in bytes.
    ///
    /// # Errors
    /// `NotFound` for a snapshot; `Invalid` if `from` is not the earlier one; those of reading; those of
    /// `sink`.
    pub fn export_difference(
        &self,
        states: States<'_>,
        whole_objects: bool,
        sink: Sink<'_>,
        progress: Progress<'_>,
    ) -> Outcome {
        self.exporting(|| {
            let info = self.engine_pool().info(self.id())?;
            check_order(&info, states)?;
            let part = Part { image: self, info: &info, states, form: Form::One, whole_objects };
            part.write(sink, progress)
        })
    }

    /// Writes the image with its metadata and snapshots, in RBD's format 2. `properties` are the bits and
    /// numbers of the header. `progress` gets how many differences are written, and how many there are.
    ///
    /// # Errors
    /// Those of reading; those of `sink`.
    pub fn export_whole(
        &self,
        properties: &[Item<'_>],
        sink: Sink<'_>,
        progress: Progress<'_>,
    ) -> Outcome {
        self.exporting(|| {
            let info = self.engine_pool().info(self.id())?;
            let mut header = What::Properties.banner().to_vec();
            for property in properties {
                encode(What::Properties, property, &mut header);
            }
            let mut metadata = info.metadata.clone();
            metadata.sort();
            for (key, value) in metadata {
                encode(What::Properties, &Item::Meta(key, value), &mut header);
            }
            encode(What::Properties, &Item::End, &mut header);
            let names: Vec<&str> =
                info.snapshots.iter().filter(|s| s.is_of_users()).map(|s| &*s.name).collect();
            let count = names.len() as u64 + 1;
            header.extend(What::Count.banner());
            encode(What::Count, &Item::Count(count), &mut header);
            sink(&header).map_err(Trouble::Sink)?;
            let mut from = None;
            for (done, to) in names.into_iter().map(Some).chain([None]).enumerate() {
                let (image, form, whole_objects) = (self, Form::Two, false);
                let states = States { from, to };
                let part = Part { image, info: &info, states, form, whole_objects };
                part.write(sink, &mut |_, _| {})?;
                match to {
                    Some(_) => progress(done as u64, count),
                    None => progress(count, count),
                }
                from = to;
            }
            Ok(())
        })
    }

    fn exporting(&self, work: impl FnOnce() -> Outcome) -> Outcome {
        let mut outcome = Ok(());
        self.operate(Operation::ExportStream, || {
            outcome = work();
            Ok(())
        })?;
        outcome
    }
}

/// Fails unless both snapshots exist and `from` is not the later one.
fn check_order(info: &ImageInfo, states: States<'_>) -> Result<()> {
    let find = |name: &str| {
        let found = info.snapshots.iter().position(|s| s.name == name && s.is_of_users());
        let message = || format!("there is no snapshot '{name}'");
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, message()))
    };
    let to = states.to.map(find).transpose()?;
    let Some(name) = states.from else { return Ok(()) };
    let from = find(name)?;
    if to.is_some_and(|to| from > to) {
        let message = format!("snapshot '{name}' is not older than the one to compare with");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(())
}

/// A difference to write.
struct Part<'a> {
    image: &'a Image,
    info: &'a ImageInfo,
    states: States<'a>,
    form: Form,
    whole_objects: bool,
}

impl Part<'_> {
    fn write(&self, sink: Sink<'_>, progress: Progress<'_>) -> Outcome {
        let mut content = self.image.open_content(self.states.to)?;
        let outcome = self.write_content(content.as_mut(), sink, progress);
        let closed = content.close();
        outcome?;
        Ok(closed?)
    }

    fn write_content(
        &self,
        content: &mut dyn Content,
        sink: Sink<'_>,
        progress: Progress<'_>,
    ) -> Outcome {
        let (what, size_bytes) = (What::Difference(self.form), content.size_bytes());
        let mut header = what.banner().to_vec();
        if let Some(from) = self.states.from {
            encode(what, &Item::From(from.to_owned()), &mut header);
        }
        if let Some(to) = self.states.to {
            encode(what, &Item::To(to.to_owned()), &mut header);
            if self.form == Form::Two {
                let mut snapshots = self.info.snapshots.iter().filter(|s| s.is_of_users());
                let protected = snapshots.any(|snap| snap.name == to && snap.protected);
                encode(what, &Item::Protected(protected), &mut header);
            }
        }
        encode(what, &Item::Size(size_bytes), &mut header);
        sink(&header).map_err(Trouble::Sink)?;
        let mut pieces = Pieces { what, object_bytes: 1 << self.info.order, buffer: Vec::new() };
        self.parts(content, 0, size_bytes, &mut |content, extents| {
            let extents = match self.whole_objects {
                true => whole_objects(&extents, pieces.object_bytes, size_bytes),
                false => extents,
            };
            for extent in extents {
                pieces.write(content, extent, sink, &mut |at| progress(at, size_bytes))?;
                if self.image.client().interrupted() {
                    return Err(interrupted().into());
                }
            }
            Ok(())
        })?;
        let mut end = Vec::new();
        encode(what, &Item::End, &mut end);
        sink(&end).map_err(Trouble::Sink)
    }

    /// Calls `each` with the differences in a range, in order: all at once, or in as many parts as needed to
    /// make each answer short. The parts end at the edges of objects.
    fn parts(
        &self,
        content: &mut dyn Content,
        offset: u64,
        length: u64,
        each: &mut dyn FnMut(&mut dyn Content, Vec<DiffExtent>) -> Outcome,
    ) -> Outcome {
        match content.differences(self.states, offset, length) {
            Err(error) if error.kind() == ErrorKind::Invalid && length > PART_BYTES_MIN => {
                let half = (length / 2).next_multiple_of(PART_BYTES_MIN);
                self.parts(content, offset, half, each)?;
                self.parts(content, offset + half, length - half, each)
            }
            extents => each(content, extents?),
        }
    }
}

/// Writes extents, divided at the edges of objects.
struct Pieces {
    what: What,
    object_bytes: u64,
    buffer: Vec<u8>,
}

impl Pieces {
    fn write(
        &mut self,
        content: &mut dyn Content,
        extent: DiffExtent,
        sink: Sink<'_>,
        progress: &mut dyn FnMut(u64),
    ) -> Outcome {
        let end = extent.offset + extent.length;
        let mut offset = extent.offset;
        while offset < end {
            let next = ((offset / self.object_bytes + 1) * self.object_bytes).min(end);
            let length = next - offset;
            let data = extent.data && self.read(content, offset, length)?;
            let item = match data {
                true => Item::Write { offset, length },
                false => Item::Zero { offset, length },
            };
            let mut record = Vec::new();
            encode(self.what, &item, &mut record);
            sink(&record).map_err(Trouble::Sink)?;
            if data {
                sink(&self.buffer).map_err(Trouble::Sink)?;
            }
            progress(offset);
            offset = next;
        }
        Ok(())
    }

    /// Reads a piece of an object. False if it is all zeros.
    fn read(&mut self, content: &mut dyn Content, offset: u64, length: u64) -> Outcome<bool> {
        // At most the size of an object, 32 MiB.
        self.buffer.resize(length as usize, 0);
        content.read(offset, &mut self.buffer)?;
        Ok(!is_zero(&self.buffer))
    }
}

/// Grows extents to whole objects. Each is read, which shows whether it has data.
fn whole_objects(extents: &[DiffExtent], object_bytes: u64, size_bytes: u64) -> Vec<DiffExtent> {
    let mut objects: Vec<DiffExtent> = Vec::new();
    for extent in extents {
        let mut offset = extent.offset / object_bytes * object_bytes;
        while offset < extent.offset + extent.length {
            if objects.last().is_none_or(|last| last.offset < offset) {
                let length = object_bytes.min(size_bytes.saturating_sub(offset));
                objects.push(DiffExtent { offset, length, data: true });
            }
            offset += object_bytes;
        }
    }
    objects
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_of_an_object_make_one_object_and_the_last_one_ends_with_the_image() {
        let extent = |offset, length, data| DiffExtent { offset, length, data };
        let extents = [extent(1, 1, false), extent(3, 2, true), extent(9, 1, true)];
        let objects = whole_objects(&extents, 4, 10);
        assert_eq!(objects, [extent(0, 4, true), extent(4, 4, true), extent(8, 2, true)]);
    }
}
