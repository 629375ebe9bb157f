//! The open files of the directory, and the images behind them.
//!
//! ```text
//!   file --(way)--> Hosted (shared by all files of the image) --> HostHandle
//!            \----> Reader (of this file alone)
//! ```
//!
//! Opening and closing of one image exclude each other (the lock of its [`Slot`]). The number of files that use a
//! slot changes at once, on the thread that reads requests; so a request that comes after a close knows of it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use marcot::{Error, ErrorKind, Result};

use super::{ImageEntry, Images, NewImage, Opened, Reader};
use crate::host::{Attendant, Hold, HostHandle};

/// How often an image is opened, if it gives way to a command each time before it is used.
const OPEN_ATTEMPTS_MAX: u32 = 10;

/// An image whose owner is this process.
pub(super) struct Hosted {
    pub(super) number: u64,
    pub(super) host: HostHandle,
    writable: bool,
    /// Exact size in bytes. The host's is in whole sectors.
    size_bytes: Arc<AtomicU64>,
    /// Held while a write makes the image grow.
    growing: Mutex<()>,
}

impl Hosted {
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }
}

/// Learns the size when the image is resized, by whomever.
struct Sizes {
    images: Arc<dyn Images>,
    number: u64,
    size_bytes: Arc<AtomicU64>,
}

impl Attendant for Sizes {
    fn before_snapshot(&self) -> Result<()> {
        Ok(())
    }

    fn after_snapshot(&self) {}

    fn resized(&self, _in_whole_sectors: u64) -> Result<()> {
        let size_bytes = self.images.entry(self.number)?.size_bytes;
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }
}

/// How a file reaches its image.
#[derive(Clone)]
pub(super) enum Way {
    /// This process is the owner.
    Here(Arc<Hosted>),
    /// Another one is.
    Elsewhere(Arc<Mutex<Box<dyn Reader>>>),
}

#[derive(Default)]
struct Slot {
    image: Mutex<Option<Arc<Hosted>>>,
    /// Files that are open, or are being opened.
    users: AtomicUsize,
    /// Keeps the image from giving way to commands while it has users.
    hold: Mutex<Option<Hold>>,
}

struct File {
    number: u64,
    slot: Arc<Slot>,
    way: Way,
}

#[derive(Default)]
struct Table {
    last: u64,
    files: HashMap<u64, File>,
    slots: HashMap<u64, Arc<Slot>>,
    /// Lists of directories that are being read.
    lists: HashMap<u64, Arc<Vec<(String, u64)>>>,
}

/// All open files.
pub(super) struct Files {
    images: Arc<dyn Images>,
    table: Mutex<Table>,
    new: Mutex<NewImage>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn in_use() -> Error {
    Error::new(ErrorKind::Busy, "the image's file is open here")
}

impl Files {
    pub(super) fn new(images: Arc<dyn Images>) -> Self {
        Self { images, table: Mutex::default(), new: Mutex::default() }
    }

    pub(super) fn images(&self) -> &dyn Images {
        &*self.images
    }

    /// The image with a number, with its size now.
    pub(super) fn entry(&self, number: u64) -> Result<ImageEntry> {
        self.images.entry(number)
    }

    /// Opens a file of the image with this number, and returns the file's number. Blocks.
    pub(super) fn open(&self, number: u64, writes: bool) -> Result<u64> {
        let slot = {
            let mut table = lock(&self.table);
            let slot = Arc::clone(table.slots.entry(number).or_default());
            slot.users.fetch_add(1, Ordering::SeqCst);
            slot
        };
        let way = {
            let mut image = lock(&slot.image);
            self.open_slot(number, writes, &slot, &mut image)
        };
        let way = way.inspect_err(|_| {
            self.leave(&slot);
            self.settle(number, &slot);
        })?;
        let mut table = lock(&self.table);
        table.last += 1;
        let file = table.last;
        table.files.insert(file, File { number, slot, way });
        Ok(file)
    }

    fn open_slot(
        &self,
        number: u64,
        writes: bool,
        slot: &Slot,
        image: &mut Option<Arc<Hosted>>,
    ) -> Result<Way> {
        for _ in 0..OPEN_ATTEMPTS_MAX {
            let hosted = match image.take() {
                Some(hosted) => hosted,
                None => match self.images.open(number, writes)? {
                    Opened::Here { host, writable } => self.hosted(number, host, writable)?,
                    Opened::Elsewhere(reader) => {
                        return Ok(Way::Elsewhere(Arc::new(Mutex::new(reader))));
                    }
                },
            };
            if writes && !hosted.writable {
                *image = Some(hosted);
                return Err(Error::new(ErrorKind::ReadOnly, "the image cannot be written"));
            }
            let mut hold = lock(&slot.hold);
            if hold.is_none() || hosted.host.is_over() {
                *hold = hosted.host.hold();
            }
            if hold.is_some() {
                *image = Some(Arc::clone(&hosted));
                return Ok(Way::Here(hosted));
            }
            // It has given way to a command of another process.
            drop(hold);
            hosted.host.wait()?;
        }
        Err(Error::new(ErrorKind::Busy, "commands want the image for themselves"))
    }

    fn hosted(&self, number: u64, host: HostHandle, writable: bool) -> Result<Arc<Hosted>> {
        let size_bytes = Arc::new(AtomicU64::new(0));
        let images = Arc::clone(&self.images);
        let sizes = Sizes { images, number, size_bytes: Arc::clone(&size_bytes) };
        // From here on no change of the size is missed.
        host.set_attendant(Arc::new(sizes))?;
        size_bytes.store(self.images.entry(number)?.size_bytes, Ordering::Release);
        Ok(Arc::new(Hosted { number, host, writable, size_bytes, growing: Mutex::default() }))
    }

    /// The way of a file.
    pub(super) fn way(&self, file: u64) -> Option<Way> {
        lock(&self.table).files.get(&file).map(|file| file.way.clone())
    }

    /// Ends a file. Does not block. The image has to be closed by [`Self::close_unused`] then.
    pub(super) fn release(&self, file: u64) -> Option<u64> {
        let file = lock(&self.table).files.remove(&file)?;
        self.leave(&file.slot);
        Some(file.number)
    }

    fn leave(&self, slot: &Slot) {
        // New users come under the same lock.
        let _table = lock(&self.table);
        if slot.users.fetch_sub(1, Ordering::SeqCst) == 1 {
            lock(&slot.hold).take();
        }
    }

    /// Closes the image if no file uses it. Returns false if one does. Blocks.
    pub(super) fn close_unused(&self, number: u64) -> bool {
        let slot = lock(&self.table).slots.get(&number).cloned();
        slot.is_none_or(|slot| self.settle(number, &slot))
    }

    fn settle(&self, number: u64, slot: &Arc<Slot>) -> bool {
        let mut image = lock(&slot.image);
        {
            let table = lock(&self.table);
            if slot.users.load(Ordering::SeqCst) > 0 {
                return false;
            }
            drop(table);
        }
        if let Some(hosted) = image.take() {
            let closed = hosted.host.stop();
            closed.unwrap_or_else(|error| report(number, "closing", &error));
        }
        drop(image);
        let mut table = lock(&self.table);
        // While the table is locked, nobody can take another reference.
        let unused = |slot: &Arc<Slot>| slot.users.load(Ordering::SeqCst) == 0;
        if table.slots.get(&number).is_some_and(|known| Arc::ptr_eq(known, slot) && unused(known)) {
            table.slots.remove(&number);
        }
        true
    }

    /// Makes an image large enough for a write that ends at `end`. Blocks.
    pub(super) fn grow(&self, hosted: &Hosted, end: u64) -> Result<()> {
        let _growing = lock(&hosted.growing);
        if end > hosted.size_bytes() {
            self.images.resize(hosted.number, end)?;
            hosted.size_bytes.fetch_max(end, Ordering::AcqRel);
        }
        Ok(())
    }

    /// Changes the size of an image, open or not. Blocks.
    pub(super) fn resize(&self, number: u64, size_bytes: u64) -> Result<()> {
        self.images.resize(number, size_bytes)
    }

    /// Removes an image that has no open file. Blocks.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        let number = self.images.find(name)?.number;
        match self.close_unused(number) {
            true => self.images.remove(name),
            false => Err(in_use()),
        }
    }

    /// What new images are like.
    pub(super) fn new_image(&self) -> NewImage {
        *lock(&self.new)
    }

    /// Changes what new images are like. Blocks.
    pub(super) fn set_new_image(&self, name: &str, value: &[u8]) -> Result<()> {
        let mut new = lock(&self.new);
        let changed = new.with_attribute(name, value)?;
        self.images.check_new(&changed)?;
        *new = changed;
        Ok(())
    }

    /// Reads the list of images, for a directory that was opened. Blocks.
    pub(super) fn open_list(&self) -> Result<u64> {
        let list = Arc::new(self.images.list()?);
        let mut table = lock(&self.table);
        table.last += 1;
        let number = table.last;
        table.lists.insert(number, list);
        Ok(number)
    }

    pub(super) fn list(&self, number: u64) -> Option<Arc<Vec<(String, u64)>>> {
        lock(&self.table).lists.get(&number).cloned()
    }

    pub(super) fn close_list(&self, number: u64) {
        lock(&self.table).lists.remove(&number);
    }

    /// Closes every image, though files may be open. Blocks.
    ///
    /// # Errors
    /// The last one of closing an image.
    pub(super) fn close_all(&self) -> Result<()> {
        let slots: Vec<_> = lock(&self.table).slots.drain().collect();
        let mut outcome = Ok(());
        for (number, slot) in slots {
            let Some(hosted) = lock(&slot.image).take() else { continue };
            if let Err(error) = hosted.host.stop() {
                report(number, "closing", &error);
                outcome = Err(error);
            }
        }
        outcome
    }
}

/// Users see a number only; the log has the sentence.
pub(super) fn report(number: u64, what: &str, error: &Error) {
    tracing::warn!(image = format!("{number:016x}"), error = %error.sentence(), "{what}");
}

/// Does what may block. If there is no thread for it, dropping `work` answers the request with an error.
pub(super) fn in_background(work: impl FnOnce() + Send + 'static) {
    if let Err(error) = thread::Builder::new().name("directory".to_owned()).spawn(work) {
        tracing::warn!(%error, "a request to the directory fails");
    }
}
