//! A copy of an image with its snapshots, their protection, its metadata, and its parent.
//!
//! The copy is made state by state: each snapshot, oldest first, and then the image as it is now. Of every state
//! but the first only what differs from the one before is copied. A copy that keeps the parent begins as a clone of
//! the same snapshot, and of its first state only the blocks that differ from the parent's are written.

use marcot::{CloneOptions, CreateOptions, DiffExtent, Error, ErrorKind, ImageInfo, ImageName};
use marcot::{ParentInfo, Result, SnapInfo};

use crate::content::{Content, States, walk};
use crate::copy::{GRAIN_BYTES, kept_layout};
use crate::image::Image;
use crate::incoming::Incoming;
use crate::inspect::PART_BYTES_MIN;
use crate::layering::FORMAT_UNPROTECTED;
use crate::operation::Operation;
use crate::pool::Pool;

/// How much of a difference is read at a time.
const PIECE_BYTES: u64 = 4 << 20;

/// What of an image is copied, and how.
#[derive(Debug, Clone, Default)]
pub struct DeepCopy<'a> {
    /// The last snapshot that is copied, whose content the copy has. `None`: all of them, and the content of now.
    pub up_to: Option<&'a str>,
    /// The layout and features that the copy reports; `None`: those of the image. The size in it means nothing.
    pub layout: Option<CreateOptions>,
    /// The copy has no parent, but all data itself.
    pub flatten: bool,
    /// The clone format of a copy that has a parent; `None`: that of the image. Format 1 becomes 2 where the
    /// parent's snapshot is not protected, or lies in another namespace.
    pub clone_format: Option<u32>,
}

/// A state of an image.
struct State<'a> {
    /// The snapshot; `None` for the image as it is now.
    snapshot: Option<&'a SnapInfo>,
    parent: Option<&'a ParentInfo>,
}

impl State<'_> {
    fn name(&self) -> Option<&str> {
        self.snapshot.map(|snapshot| snapshot.name.as_str())
    }
}

impl Image {
    /// Copies the image as `name` in `dest`, with its snapshots and metadata. The copy has the same parent, unless
    /// it is to be flat, or the image had a parent only in some of its states. It is hidden until it is complete,
    /// and an interrupted operation leaves none. `progress` gets (done, total), in bytes of the image's size.
    ///
    /// # Errors
    /// `NotFound` for the snapshot; `Invalid` for objects smaller than the image's own; `Exists`;
    /// `Unsupported` where the parent's snapshot is removed; those of [`crate::Snapshot::clone_into`] for the
    /// parent; those of [`Image::content`]; `NoSpace`; `Interrupted`.
    pub fn deep_copy_into(
        &self,
        dest: &Pool,
        name: impl Into<ImageName>,
        what: DeepCopy<'_>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self> {
        let name = name.into();
        self.operate(Operation::CopyImage, || {
            let info = self.engine_pool().info(self.id())?;
            if info.migration.is_some() {
                let message = format!("image '{}' is being migrated", info.name);
                return Err(Error::new(ErrorKind::Busy, message));
            }
            let states = states(&info, what.up_to)?;
            let parent = common_parent(&states).filter(|_| !what.flatten);
            let format = what.clone_format;
            let mut copy = self.begin_copy(dest, &name, &info, what.layout, parent, format)?;
            for (key, value) in &info.metadata {
                copy.set_metadata(key, value)?;
            }
            let (mut from, mut overlap_before) = (None, u64::MAX);
            for (n, state) in states.iter().enumerate() {
                let mut content = self.open_content(state.name())?;
                let size_bytes = content.size_bytes();
                // The states together count as much as the image.
                let (n, count) = (n as u64, states.len() as u64);
                let share = |done| {
                    (u128::from(n) * u128::from(size_bytes) + u128::from(done)) / u128::from(count)
                };
                let share = |done| u64::try_from(share(done)).unwrap_or(size_bytes);
                let mut report = |done| progress(share(done), size_bytes);
                // What was cut off once stays cut off, and the copy takes nothing there from the parent again.
                let overlap_bytes = state.parent.map_or(u64::MAX, |parent| parent.overlap_bytes);
                let cut = parent.is_some() && overlap_bytes < copy.size_bytes().min(overlap_before);
                if cut {
                    copy.resize(overlap_bytes)?;
                }
                overlap_before = overlap_bytes;
                copy.set_size(size_bytes)?;
                let took = match n == 0 || cut {
                    true => take_all(content.as_mut(), &mut copy, 1 << info.order, &mut report),
                    false => {
                        let states = States { from, to: state.name() };
                        take(content.as_mut(), &mut copy, states, (0, size_bytes), &mut report)
                    }
                };
                let closed = content.close();
                took?;
                closed?;
                report(size_bytes);
                if let Some(snapshot) = state.snapshot {
                    copy.snapshot(&snapshot.name, snapshot.protected)?;
                }
                from = state.name();
            }
            copy.finish()
        })
    }

    fn begin_copy(
        &self,
        dest: &Pool,
        name: &ImageName,
        info: &ImageInfo,
        layout: Option<CreateOptions>,
        parent: Option<&ParentInfo>,
        clone_format: Option<u32>,
    ) -> Result<Incoming> {
        let mut layout = layout.unwrap_or_else(|| kept_layout(info));
        layout.size_bytes = 0;
        if layout.order < info.order {
            let message = "the object size must not be smaller than that of the source";
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        let Some(parent) = parent else {
            return Incoming::begin(dest, name, &layout);
        };
        if parent.trashed || !parent.reachable {
            let ParentInfo { pool, image, snap, .. } = parent;
            let message = format!(
                "the parent {pool}/{image}@{snap} is removed or out of reach, and takes no new clones: copy with '--flatten'"
            );
            return Err(Error::new(ErrorKind::Unsupported, message));
        }
        let pool =
            Pool::new(self.client().clone(), self.client().store().pool_by_id(parent.pool_id)?);
        let of = ImageName::new(&*parent.image).in_namespace(parent.namespace.clone());
        let image = pool.known_image(of, parent.image_id);
        let format = match clone_format {
            None => parent.clone_format,
            Some(format)
                if format != FORMAT_UNPROTECTED
                    && (parent.namespace != *name.namespace()
                        || !is_protected(&image, parent)?) =>
            {
                FORMAT_UNPROTECTED
            }
            Some(format) => format,
        };
        let options = CloneOptions::new()
            .format(format)
            .order(layout.order)
            .features(layout.features)
            .stripe(layout.stripe_unit_bytes, layout.stripe_count)
            .data_pool(layout.data_pool);
        Incoming::begin_clone(dest, name, &image.snapshot(&parent.snap), &options)
    }
}

fn is_protected(image: &Image, parent: &ParentInfo) -> Result<bool> {
    let info = image.engine_pool().info(image.id())?;
    Ok(info.snapshots.iter().any(|snap| snap.id == parent.snap_id && snap.protected))
}

/// The states to copy, oldest first.
fn states<'a>(info: &'a ImageInfo, up_to: Option<&str>) -> Result<Vec<State<'a>>> {
    let of = |snapshot: &'a SnapInfo| State {
        snapshot: Some(snapshot),
        parent: snapshot.parent.as_ref(),
    };
    let mut states: Vec<State<'a>> =
        info.snapshots.iter().filter(|snap| snap.is_of_users()).map(of).collect();
    match up_to {
        None => states.push(State { snapshot: None, parent: info.parent.as_ref() }),
        Some(name) => match states.iter().position(|state| state.name() == Some(name)) {
            Some(last) => states.truncate(last + 1),
            None => {
                let message = format!("image '{}' has no snapshot '{name}'", info.name);
                return Err(Error::new(ErrorKind::NotFound, message));
            }
        },
    }
    Ok(states)
}

/// The parent of the first state, if all states have the same one.
fn common_parent<'a>(states: &[State<'a>]) -> Option<&'a ParentInfo> {
    let first = states.first()?.parent?;
    let number = |parent: &ParentInfo| (parent.pool_id, parent.image_id, parent.snap_id);
    let same = |state: &State<'_>| state.parent.map(number) == Some(number(first));
    states.iter().all(same).then_some(first)
}

/// Gives the copy the whole content of the first state.
fn take_all(
    content: &mut dyn Content,
    copy: &mut Incoming,
    piece_bytes: u64,
    report: &mut dyn FnMut(u64),
) -> Result<()> {
    walk::<Error>(content, piece_bytes, |offset, length, data| {
        match data {
            Some(data) => copy.write_changed(offset, data, GRAIN_BYTES)?,
            // A clone has the parent's data here.
            None => copy.zero(offset, length)?,
        }
        report(offset + length);
        Ok(())
    })
}

/// Gives the copy what differs between two states in a range: its offset and length.
fn take(
    content: &mut dyn Content,
    copy: &mut Incoming,
    states: States<'_>,
    (offset, length): (u64, u64),
    report: &mut dyn FnMut(u64),
) -> Result<()> {
    let extents = match content.differences(states, offset, length) {
        // There are too many for one answer.
        Err(error) if error.kind() == ErrorKind::Invalid && length > PART_BYTES_MIN => {
            let half = (length / 2).next_multiple_of(PART_BYTES_MIN);
            take(content, copy, states, (offset, half), report)?;
            return take(content, copy, states, (offset + half, length - half), report);
        }
        extents => extents?,
    };
    let mut buffer = Vec::new();
    for DiffExtent { offset, length, data } in extents {
        if !data {
            copy.zero(offset, length)?;
            continue;
        }
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let piece = (end - at).min(PIECE_BYTES);
            buffer.resize(usize::try_from(piece).unwrap_or_default(), 0);
            content.read(at, &mut buffer)?;
            copy.write_changed(at, &buffer, GRAIN_BYTES)?;
            at += piece;
            report(at);
        }
    }
    Ok(())
}
