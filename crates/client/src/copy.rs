//! A full, independent copy of an image or snapshot.

use marcot::{CreateOptions, Error, ErrorKind, ImageName, Result};

use crate::content::{Content, walk};
use crate::image::Image;
use crate::incoming::Incoming;
use crate::operation::Operation;
use crate::pool::Pool;
use crate::snapshot::Snapshot;

/// Runs of zeros shorter than this are stored as data: the size of a block, in bytes.
pub const GRAIN_BYTES: usize = 4096;

impl Image {
    /// Copies the image as it is now, without snapshots and without parent, as `name` in
    /// `dest`. The copy is hidden until it is complete, and an interrupted operation leaves none. `order` is
    /// log2 of the object size that the copy reports; `None` keeps the image's own. `progress` gets bytes
    /// (done, total).
    ///
    /// # Errors
    /// `Invalid` for an `order` smaller than the image's own; `Exists`; those of [`Pool::create`] and
    /// [`Image::content`]; `NoSpace`; `Interrupted`.
    pub fn copy_into(
        &self,
        dest: &Pool,
        name: impl Into<ImageName>,
        order: Option<u32>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Image> {
        let to = Destination { pool: dest, name: name.into(), order };
        self.operate(Operation::CopyImage, || copy(self, None, &to, progress))
    }
}

impl Snapshot {
    /// As [`Image::copy_into`], of a snapshot.
    ///
    /// # Errors
    /// As [`Image::copy_into`]; `NotFound` for the snapshot.
    pub fn copy_into(
        &self,
        dest: &Pool,
        name: impl Into<ImageName>,
        order: Option<u32>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Image> {
        let (image, to) = (self.image(), Destination { pool: dest, name: name.into(), order });
        image.operate(Operation::CopyImage, || copy(image, Some(self), &to, progress))
    }
}

struct Destination<'a> {
    pool: &'a Pool,
    name: ImageName,
    order: Option<u32>,
}

fn copy(
    image: &Image,
    snapshot: Option<&Snapshot>,
    to: &Destination<'_>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Image> {
    let info = image.engine_pool().info(image.id())?;
    let size_bytes = match snapshot {
        None => info.size_bytes,
        // This also finds a removed snapshot that is kept for its children, by the name it has now.
        Some(snapshot) => match info.snapshots.iter().find(|s| s.name == snapshot.name()) {
            Some(found) => found.size_bytes,
            None => return Err(snapshot.missing_in(&info)),
        },
    };
    if to.order.is_some_and(|order| order < info.order) {
        let message = "the object size must not be smaller than that of the source";
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let order = to.order.unwrap_or(info.order);
    let options = CreateOptions::sized(size_bytes).order(order).features(&*info.features);
    let incoming = Incoming::begin(to.pool, &to.name, &options)?;
    let mut source = image.open_content(snapshot.map(Snapshot::name))?;
    let copied = transfer(source.as_mut(), incoming, 1 << info.order, progress)?;
    source.close()?;
    Ok(copied)
}

fn transfer(
    source: &mut dyn Content,
    mut incoming: Incoming,
    piece_bytes: u64,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Image> {
    let size_bytes = source.size_bytes();
    walk::<Error>(source, piece_bytes, |offset, length, data| {
        match data {
            Some(data) => incoming.write(offset, data, GRAIN_BYTES)?,
            None => incoming.check_interrupted()?,
        }
        progress(offset + length, size_bytes);
        Ok(())
    })?;
    incoming.finish()
}
