//! A full, independent copy of an image or snapshot.

use marcot::{CreateOptions, Error, ImageInfo, ImageName, Result};

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
    /// `dest`. The copy is hidden until it is complete, and an interrupted operation leaves none. `options` say
    /// what the copy reports; their size and metadata do not count, and `None` keeps what the image reports. `progress` gets
    /// bytes (done, total).
    ///
    /// # Errors
    /// `Exists`; those of [`Pool::create`] and
    /// [`Image::content`]; `NoSpace`; `Interrupted`.
    pub fn copy_into(
        &self,
        dest: &Pool,
        name: impl Into<ImageName>,
        options: Option<CreateOptions>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Image> {
        let to = Destination { pool: dest, name: name.into(), options };
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
        options: Option<CreateOptions>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Image> {
        let (image, to) = (self.image(), Destination { pool: dest, name: name.into(), options });
        image.operate(Operation::CopyImage, || copy(image, Some(self), &to, progress))
    }
}

struct Destination<'a> {
    pool: &'a Pool,
    name: ImageName,
    options: Option<CreateOptions>,
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
    let mut options = to.options.clone().unwrap_or_else(|| kept_layout(&info));
    (options.size_bytes, options.metadata) = (size_bytes, info.metadata);
    let incoming = Incoming::begin(to.pool, &to.name, &options)?;
    let mut source = image.open_content(snapshot.map(Snapshot::name))?;
    let copied = transfer(source.as_mut(), incoming, 1 << info.order, progress)?;
    source.close()?;
    Ok(copied)
}

/// The layout and features of a copy that is to have those of its image.
pub(crate) fn kept_layout(info: &ImageInfo) -> CreateOptions {
    let options = CreateOptions::default().order(info.order).features(&*info.features);
    options.stripe(info.stripe_unit_bytes, info.stripe_count)
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
