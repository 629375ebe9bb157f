//! An image that is being made from data: it is hidden until it is complete.
//!
//! Import and copy write into it. When the data is durable, the image gets its name. When anything fails
//! before, or the user interrupts, it is removed. The remains of a killed process are removed by
//! the next import into the same namespace, and by `gc`.
//!
//! If its maker can say what it is made from ([`Pool::begin_or_continue`]), it is kept for a while instead: the same
//! command, run again, goes on with it.

use marcot::{
    BlockDevice as _, CloneOptions, CreateOptions, Error, ErrorKind, ImageId, ImageName, Keep,
    Result, Write,
};

use crate::image::Image;
use crate::operation::Operation;
use crate::options::Warning;
use crate::pool::Pool;
use crate::retry::interrupted;
use crate::snapshot::Snapshot;
use crate::sparse;

/// First size of an image whose final size is not known.
const GROWN_BYTES_MIN: u64 = 64 << 20;

/// A data run of an image that was begun before ends at a multiple of this, in bytes, or with the image.
const BLOCK_BYTES: u64 = marcot::BLOCK_BYTES;
/// How many extents are looked at at a time.
const EXTENTS_MAX: usize = 4096;

/// How many zeros are written at a time.
const ZEROS_BYTES: usize = 4 << 20;

/// An image that is not complete yet. If it is dropped before [`Self::finish`], it is removed.
pub struct Incoming {
    pool: Pool,
    name: ImageName,
    id: ImageId,
    device: Option<marcot::Image>,
    whole: bool,
    /// It stays if it is not finished, unless it is known that going on with it helps nobody.
    kept: bool,
    /// What an earlier run has brought: all data of the source that lies before, in bytes.
    done_bytes: u64,
    is_out_of_reach: bool,
}

impl Pool {
    /// Begins an image that will be called `name`. It is hidden until it is complete.
    ///
    /// # Errors
    /// `Exists` if the name is taken, and those of creating and opening an image.
    pub fn begin_image(
        &self,
        name: impl Into<ImageName>,
        options: &CreateOptions,
    ) -> Result<Incoming> {
        let name = name.into();
        let begin = || Incoming::begin(self, &name, options);
        self.client().operate(Operation::ImportImage, self.name(), None, begin)
    }

    /// As [`Self::begin_image`], for an image that is written from its start to its end, with the data of `source`
    /// in their order. If an earlier run on this host has begun it under the same name, from the same source, and with
    /// the same options, the image is the one that it has left ([`Incoming::done_bytes`]). `source` tells the source, in
    /// its present state, from all others, in at most 4096 bytes.
    ///
    /// # Errors
    /// As [`Self::begin_image`].
    pub fn begin_or_continue(
        &self,
        name: impl Into<ImageName>,
        options: &CreateOptions,
        source: &str,
    ) -> Result<Incoming> {
        let name = name.into();
        let begin = || Incoming::begin_or_continue(self, &name, options, source);
        self.client().operate(Operation::ImportImage, self.name(), None, begin)
    }
}

impl Incoming {
    pub(crate) fn begin(pool: &Pool, name: &ImageName, options: &CreateOptions) -> Result<Self> {
        pool.remove_remains(name.namespace(), Keep::InterruptedExcept(name));
        refuse_taken(pool, name)?;
        Ok(Self::new(pool, name, pool.engine().create_partial(name, options)?))
    }

    pub(crate) fn begin_or_continue(
        pool: &Pool,
        name: &ImageName,
        options: &CreateOptions,
        source: &str,
    ) -> Result<Self> {
        refuse_taken(pool, name)?;
        let (image, found) = pool.engine().begin_partial(name, options, source)?;
        let mut incoming = Self::new(pool, name, image);
        incoming.kept = true;
        // This one is open. Others of the same name are of no use any more.
        pool.remove_remains(name.namespace(), Keep::InterruptedExcept(name));
        if found {
            incoming.done_bytes = incoming.end_of_data()?;
            let (image, done_bytes) = (name.name().to_owned(), incoming.done_bytes);
            let size_bytes = incoming.size_bytes();
            pool.client().options().warn(&Warning::GoesOn { image, done_bytes, size_bytes });
        }
        Ok(incoming)
    }

    fn new(pool: &Pool, name: &ImageName, image: marcot::Image) -> Self {
        let (pool, name, id) = (pool.clone(), name.clone(), image.id());
        Self {
            pool,
            name,
            id,
            device: Some(image),
            whole: false,
            kept: false,
            done_bytes: 0,
            is_out_of_reach: false,
        }
    }

    /// How far an earlier run has come: all data of the source before this offset is in the image. 0 where it begins
    /// now.
    #[must_use]
    pub fn done_bytes(&self) -> u64 {
        self.done_bytes
    }

    /// True where what is there stays, for the next run of the same command, if the image is not finished.
    #[must_use]
    pub fn is_kept(&self) -> bool {
        self.kept && self.device.is_some()
    }

    /// The end of the last block that holds data.
    fn end_of_data(&mut self) -> Result<u64> {
        let size_bytes = self.size_bytes();
        let (mut at, mut end) = (0, 0);
        while at < size_bytes {
            let extents = self.device()?.extents(at, size_bytes - at, EXTENTS_MAX)?;
            let Some(last) = extents.last() else { break };
            at = last.offset + last.length;
            if let Some(data) = extents.iter().rev().find(|extent| extent.data) {
                end = data.offset + data.length;
            }
        }
        Ok((end / BLOCK_BYTES * BLOCK_BYTES).min(size_bytes))
    }

    /// Notes why the image is not finished. It does not stay where a further run would meet the same.
    pub fn give_up(&mut self, error: &Error) {
        // A flush that fails, as in an outage, poisons the image; its log has what was written.
        let (unreachable, poisoned) = (ErrorKind::Unreachable, ErrorKind::Poisoned);
        self.is_out_of_reach |= [unreachable, poisoned].contains(&error.kind());
        self.kept &= self.is_out_of_reach || error.kind() == ErrorKind::Interrupted;
    }

    /// Notes that the source is of no use: a further run would meet the same.
    pub(crate) fn give_up_source(&mut self) {
        self.kept = false;
    }

    /// As [`Self::begin`], as a clone of a snapshot.
    pub(crate) fn begin_clone(
        pool: &Pool,
        name: &ImageName,
        parent: &Snapshot,
        options: &CloneOptions,
    ) -> Result<Self> {
        pool.remove_remains(name.namespace(), Keep::InterruptedExcept(name));
        refuse_taken(pool, name)?;
        Ok(Self::new(pool, name, parent.clone_partial(pool, name, options)?))
    }

    fn device(&mut self) -> Result<&mut marcot::Image> {
        let closed = || Error::new(ErrorKind::Io, "the image is closed");
        self.device.as_mut().ok_or_else(closed)
    }

    /// Writes `data` at byte `offset`, without its zeros. Runs of zeros are found in steps of `grain_bytes`.
    ///
    /// # Errors
    /// `Interrupted` if the caller interrupts; those of writing.
    pub fn write(&mut self, offset: u64, data: &[u8], grain_bytes: usize) -> Result<()> {
        self.check_interrupted()?;
        let runs = sparse::data_runs(data, grain_bytes);
        let writes: Vec<Write<'_>> = runs
            .into_iter()
            .map(|run| Write { offset: offset + run.start as u64, data: &data[run] })
            .collect();
        if writes.is_empty() {
            return Ok(());
        }
        // The flush waits for writes in flight. Meanwhile more of the source is read.
        self.device()?.write_batch_async(&writes).map(drop)
    }

    /// Writes every block of the image, as zeros, so that each has its place on the medium. `progress` gets bytes
    /// (done, total).
    ///
    /// # Errors
    /// `NoSpace`; `Interrupted`; those of writing.
    pub fn fill_with_zeros(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        let size_bytes = self.size_bytes();
        let zeros = vec![0; ZEROS_BYTES.min(usize::try_from(size_bytes).unwrap_or(ZEROS_BYTES))];
        let mut offset = 0;
        while offset < size_bytes {
            let length = (zeros.len() as u64).min(size_bytes - offset);
            self.write_run(offset, &zeros[..length as usize])?;
            offset += length;
            progress(offset, size_bytes);
        }
        self.device()?.flush()
    }

    /// Writes those parts of `data` at byte `offset` that the image does not have there already, in steps of
    /// `grain_bytes`.
    pub(crate) fn write_changed(
        &mut self,
        offset: u64,
        data: &[u8],
        grain_bytes: usize,
    ) -> Result<()> {
        self.check_interrupted()?;
        let mut now = vec![0; data.len()];
        self.device()?.read_at(offset, &mut now)?;
        let grains = data.chunks(grain_bytes).zip(now.chunks(grain_bytes)).enumerate();
        let changed = grains.filter(|(_, (new, old))| new != old);
        let writes: Vec<Write<'_>> = changed
            .map(|(n, (data, _))| Write { offset: offset + (n * grain_bytes) as u64, data })
            .collect();
        match writes.is_empty() {
            true => Ok(()),
            false => self.device()?.write_batch_async(&writes).map(drop),
        }
    }

    /// Changes the size, unless it is this one.
    pub(crate) fn set_size(&mut self, size_bytes: u64) -> Result<()> {
        match self.size_bytes() == size_bytes {
            true => Ok(()),
            false => self.resize(size_bytes),
        }
    }

    /// Writes `data` as it is at byte `offset`.
    pub(crate) fn write_run(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.check_interrupted()?;
        self.device()?.write_batch_async(&[Write { offset, data }]).map(drop)
    }

    /// Fails if the caller interrupts.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn check_interrupted(&self) -> Result<()> {
        match self.pool.client().interrupted() {
            true => Err(interrupted()),
            false => Ok(()),
        }
    }

    /// Grows the image to hold bytes up to `end`, and some more, when the final size is not known.
    ///
    /// # Errors
    /// Those of resizing.
    pub fn grow_to_hold(&mut self, end: u64) -> Result<()> {
        let size_bytes = self.device()?.size_bytes();
        if end <= size_bytes {
            return Ok(());
        }
        self.resize(end.max(size_bytes.saturating_mul(2)).max(GROWN_BYTES_MIN))
    }

    /// Changes the size to `size_bytes`.
    ///
    /// # Errors
    /// Those of resizing.
    pub fn resize(&mut self, size_bytes: u64) -> Result<()> {
        self.device()?.resize(size_bytes, true)
    }

    /// Its size now, in bytes.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.device.as_ref().map_or(0, marcot::Image::size_bytes)
    }

    /// Makes a range read as zeros.
    pub(crate) fn zero(&mut self, offset: u64, length: u64) -> Result<()> {
        self.check_interrupted()?;
        self.device()?.discard(offset, length)
    }

    /// See [`marcot::Image::leave_to_source`].
    pub(crate) fn set_source(
        &mut self,
        spec: &str,
        state: &str,
        ranges: &[(u64, u64)],
    ) -> Result<()> {
        self.device()?.leave_to_source(spec, state, ranges)
    }

    /// Takes a snapshot of what has been written so far.
    pub(crate) fn snapshot(&mut self, name: &str, protected: bool) -> Result<()> {
        let device = self.device()?;
        device.snapshot(name)?;
        if protected { device.protect(name) } else { Ok(()) }
    }

    /// Sets a key of the image's metadata.
    ///
    /// # Errors
    /// `Invalid` for a key or value that an image cannot have; those of changing the head.
    pub fn set_metadata(&mut self, key: &str, value: &str) -> Result<()> {
        self.device()?.set_metadata(key, value)
    }

    /// Makes everything durable and gives the image its name.
    ///
    /// # Errors
    /// `Exists` if the name has been taken meanwhile; those of flushing.
    pub fn finish(mut self) -> Result<Image> {
        if let Err(error) = self.publish() {
            self.give_up(&error);
            return Err(error);
        }
        self.whole = true;
        if let Some(Err(error)) = self.device.take().map(marcot::Image::close) {
            // The data is durable. The next owner replays the log.
            tracing::warn!(image = %self.name.name(), error = %error.sentence(), "the last checkpoint failed");
        }
        Ok(self.pool.known_image(&self.name, self.id))
    }
}

impl Incoming {
    fn publish(&mut self) -> Result<()> {
        self.check_interrupted()?;
        self.device()?.flush()?;
        // Before it is closed: a partial image that nobody has open counts as abandoned.
        self.pool.engine().publish_partial(self.id, &self.name)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.whole {
            return;
        }
        if self.is_kept() && self.size_bytes() > 0 {
            let image = self.name.name().to_owned();
            self.pool.client().options().warn(&Warning::Kept { image });
            // Where closing fails, the log has what was written. A service that is out of reach is not waited for.
            if self.is_out_of_reach {
                drop(self.device.take());
            } else if let Some(Err(error)) = self.device.take().map(marcot::Image::close) {
                tracing::debug!(image = %self.name.name(), error = %error.sentence(), "left unclosed");
            }
            return;
        }
        drop(self.device.take());
        // If this fails, the remains are removed by the next import.
        let store = self.pool.client().store();
        let _ = store.remove_partial(self.pool.engine(), self.name.namespace(), self.id);
    }
}

fn refuse_taken(pool: &Pool, name: &ImageName) -> Result<()> {
    match pool.engine().find(name) {
        Ok(_) => {
            let message = format!("image '{}' already exists", name.name());
            Err(Error::new(ErrorKind::Exists, message))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}
