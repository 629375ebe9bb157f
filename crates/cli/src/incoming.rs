//! An image on its way in: it has a temporary name until it is whole.
//!
//! Import and copy write into it. When the data is durable it gets its own name; when anything
//! fails before, or the user interrupts, it is removed. What a killed process leaves behind is
//! removed by the next import into the same namespace.

use marcot::{
    BlockDevice, Command, CreateOptions, Error, ErrorKind, ImageId, Pool, Result, Store, Write,
};

use crate::{signals, sparse};

/// Begins the name of an image that is not whole.
const PARTIAL_PREFIX: &str = ".marcot-partial.";
/// First size of an image whose size is not known.
const GROWN_BYTES_MIN: u64 = 64 << 20;

/// True for the name of an image that is not whole.
pub fn is_partial(name: &str) -> bool {
    name.starts_with(PARTIAL_PREFIX)
}

/// An image that is not whole yet.
pub struct Incoming<'a> {
    store: &'a Store,
    pool: &'a Pool,
    namespace: &'a str,
    name: &'a str,
    partial_name: String,
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
        signals::catch();
        let partial_name = format!("{PARTIAL_PREFIX}{}.{name}", std::process::id());
        let id = pool.create(namespace, &partial_name, options)?;
        let mut incoming =
            Self { store, pool, namespace, name, partial_name, id, device: None, whole: false };
        incoming.device = Some(Box::new(pool.open(id)?));
        Ok(incoming)
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
        if let Some(device) = self.device.take() {
            device.close()?;
        }
        self.pool.rename(self.namespace, &self.partial_name, self.name)?;
        self.whole = true;
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

/// Removes the partial images of processes that are no more.
pub fn remove_remains(store: &Store, pool: &Pool, namespace: &str) {
    let Ok(images) = pool.images(namespace) else { return };
    for (name, id) in images {
        if is_partial(&name) && !maker_lives(&name) {
            let _ = store.remove_image(pool, id, &mut |_, _| {});
        }
    }
}

fn maker_lives(name: &str) -> bool {
    let pid = name.strip_prefix(PARTIAL_PREFIX).and_then(|rest| rest.split('.').next());
    let pid = pid.and_then(|pid| pid.parse().ok()).and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn makers_are_told_from_the_name() {
        let own = format!("{PARTIAL_PREFIX}{}.disk", std::process::id());
        assert!(is_partial(&own) && maker_lives(&own));
        assert!(!maker_lives(&format!("{PARTIAL_PREFIX}x.disk")));
        assert!(!is_partial("disk"));
    }
}
