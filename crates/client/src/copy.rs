//! A full, independent copy of an image or snapshot. An interrupted copy can be continued: the same copy, begun again
//! on the same host, goes on where it was, if the source is still in the same state.

use marcot::{CreateOptions, Error, ImageInfo, ImageName, Result, SnapId};

use crate::content::{Content, walk_from};
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
    let (size_bytes, state) = match snapshot {
        None => (info.size_bytes, image.state_note(None).ok().flatten()),
        // Where the state cannot be told, reading it fails too.
        // This also finds a removed snapshot that is kept for its children, by the name it has now.
        Some(snapshot) => match info.snapshots.iter().find(|s| s.name == snapshot.name()) {
            Some(found) => (found.size_bytes, image.state_note(Some(found.id)).ok().flatten()),
            None => return Err(snapshot.missing_in(&info)),
        },
    };
    let mut options = to.options.clone().unwrap_or_else(|| kept_layout(&info));
    (options.size_bytes, options.metadata) = (size_bytes, info.metadata);
    let incoming = match state {
        Some(state) => Incoming::begin_or_continue(to.pool, &to.name, &options, &state)?,
        None => Incoming::begin(to.pool, &to.name, &options)?,
    };
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
    let (size_bytes, from) = (source.size_bytes(), incoming.done_bytes());
    let copied = walk_from::<Error>(source, from, piece_bytes, |offset, length, data| {
        match data {
            Some(data) => incoming.write(offset, data, GRAIN_BYTES)?,
            None => incoming.check_interrupted()?,
        }
        progress(offset + length, size_bytes);
        Ok(())
    });
    if let Err(error) = copied {
        incoming.give_up(&error);
        return Err(error);
    }
    incoming.finish()
}

impl Image {
    /// A text that tells the state of a snapshot, or of the image as it is now, from all others. `None` where that
    /// cannot be told, because the image is in use, or in a pool that several hosts use.
    ///
    /// # Errors
    /// Those of opening the image.
    pub fn state_note(&self, snapshot: Option<SnapId>) -> Result<Option<String>> {
        match snapshot {
            Some(snapshot) => {
                let pool = self.engine_pool().id();
                Ok(Some(format!("snapshot {pool}/{}@{}", self.id(), snapshot.0)))
            }
            None => {
                let state = self.engine_pool().settled_state(self.id())?;
                Ok(state.map(|state| format!("image {state}")))
            }
        }
    }
}
