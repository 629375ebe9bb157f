//! An image on its way in: it is hidden until it is whole.
//!
//! Import and copy write into it. When the data is durable it gets its name; when anything fails
//! before, or the user interrupts, it is removed. What a killed process leaves behind is removed by
//! the next import into the same namespace, and by `gc`.

use marcot::catalog::is_partial_name;
use marcot::{
    BlockDevice, Command, CreateOptions, Error, ErrorKind, ImageId, Pool, Result, Store, Write,
};

use crate::{signals, sparse};

/// First size of an image whose size is not known.
const GROWN_BYTES_MIN: u64 = 64 << 20;

/// True for the name of an image that is not whole.
pub fn is_partial(name: &str) -> bool {
    is_partial_name(name)
}

/// An image that is not whole yet.
pub struct Incoming<'a> {
    store: &'a Store,
    pool: &'a Pool,
    namespace: &'a str,
    name: &'a str,
    id: ImageId,
    device: Option<Box<dyn BlockDevice>>,
    whole: bool,
}

impl<'a> Incoming<'a> {
    /// Begins an image that will be called `name`.
    ///
    /// # Errors
    /// `Exists` if the name is taken, and those of creating and opening an image.
    pub fn begin(
        store: &'a Store,
        pool: &'a Pool,
        namespace: &'a str,
        name: &'a str,
        options: &CreateOptions,
    ) -> Result<Self> {
        remove_remains(store, pool, namespace);
        refuse_taken(pool, namespace, name)?;
        signals::catch_and_watch();
        let image = pool.create_partial(namespace, name, options)?;
        let id = image.id();
        let device: Option<Box<dyn BlockDevice>> = Some(Box::new(image));
        Ok(Self { store, pool, namespace, name, id, device, whole: false })
    }

    fn device(&mut self) -> Result<&mut Box<dyn BlockDevice>> {
        let closed = || Error::new(ErrorKind::Io, "the image is closed");
        self.device.as_mut().ok_or_else(closed)
    }

    /// Stores what is not zero of `data`, seen in steps of `grain_bytes`.
    ///
    /// # Errors
    /// `Interrupted` when a signal has come; those of writing.
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
        // What is still under way is waited for by the flush, while more of the source is read.
        self.device()?.write_batch_late(&writes).map(drop)
    }

    /// Stops early if the user asked for it.
    ///
    /// # Errors
    /// `Interrupted`.
    pub fn check_interrupted(&self) -> Result<()> {
        if signals::stop_asked() {
            return Err(Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        Ok(())
    }

    /// Makes room for bytes up to `end`.
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

    /// Changes the size.
    ///
    /// # Errors
    /// Those of resizing.
    pub fn resize(&mut self, size_bytes: u64) -> Result<()> {
        let command = Command::Resize { size_bytes, allow_shrink: true };
        self.device()?.execute(&command, &mut |_, _| {}).map(drop)
    }

    /// Makes everything durable and gives the image its name.
    ///
    /// # Errors
    /// `Exists` if the name has been taken meanwhile; those of flushing.
    pub fn finish(mut self) -> Result<()> {
        self.check_interrupted()?;
        self.device()?.flush()?;
        // Before it is closed: a partial image that nobody has open counts as abandoned.
        self.pool.publish_partial(self.namespace, self.id, self.name)?;
        self.whole = true;
        if let Some(Err(error)) = self.device.take().map(BlockDevice::close) {
            // The data is durable; the next owner does what closing could not.
            tracing::warn!(image = %self.name, %error, "the last checkpoint failed");
        }
        Ok(())
    }
}

impl Drop for Incoming<'_> {
    fn drop(&mut self) {
        if self.whole {
            return;
        }
        drop(self.device.take());
        // If this fails, the remains are removed by the next import.
        let _ = self.store.remove_image(self.pool, self.id, &mut |_, _| {});
    }
}

fn refuse_taken(pool: &Pool, namespace: &str, name: &str) -> Result<()> {
    match pool.find(namespace, name) {
        Ok(_) => Err(Error::new(ErrorKind::Exists, format!("image '{name}' already exists"))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// As [`remove_remains`], in every namespace.
pub fn remove_all_remains(store: &Store, pool: &Pool) {
    let namespaces = pool.namespaces().unwrap_or_default();
    for namespace in namespaces.iter().map(String::as_str).chain([""]) {
        remove_remains(store, pool, namespace);
    }
}

/// Removes the partial images of imports that are no more. What fails here is tried again by the next.
pub fn remove_remains(store: &Store, pool: &Pool, namespace: &str) {
    if let Err(error) = store.remove_abandoned(pool, namespace) {
        tracing::debug!(pool = %pool.name(), %error, "a partial image is left");
    }
}
