//! What this process knows of one object: its file, the chunks that are here, and the fetches that go on.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use marcot_format::SEGMENT_BYTES;

use super::file::{Found, ObjectFile};
use super::flight::Flight;
use super::layout::{CHUNK_BYTES, CHUNKS_MAX, OBJECT_BYTES_MAX, ObjectId, Record};
use super::place::Place;
use super::streams::Streams;

/// The time is looked at after so many reads of an object.
const READS_PER_LOOK: u32 = 64;
/// The last use is noted in the file after this time, in seconds.
const NOTE_USE_AFTER_S: i64 = 60;
/// An object of which this part is here is worth making whole: numerator and denominator.
const NEARLY_WHOLE: (u32, u32) = (3, 4);

/// All handles of an object share one.
pub(super) struct State {
    pub id: ObjectId,
    pub number: u64,
    pub path: PathBuf,
    /// The object's length, once it is known.
    length: OnceLock<u64>,
    slot: Mutex<Slot>,
    /// It was used since somebody looked.
    recent: AtomicBool,
}

#[derive(Default)]
pub(super) struct Slot {
    pub open: Option<Open>,
    pub flights: Vec<Arc<Flight>>,
    pub streams: Streams,
    /// What is missing is being fetched.
    pub completing: bool,
    reads: u32,
    used_s: i64,
}

/// The open file.
pub(super) struct Open {
    pub file: ObjectFile,
    chunks: Vec<Option<Record>>,
    present: u32,
}

/// How [`State::look`] has found a chunk.
pub(super) struct Look {
    /// Its file and its record, where it is here.
    pub chunk: Option<(ObjectFile, Record)>,
    /// The file was opened just now.
    pub opened: bool,
    /// It is time to look whether files were removed.
    pub now_s: Option<i64>,
}

impl Open {
    fn new(file: ObjectFile, chunks: Vec<Option<Record>>) -> Self {
        let present = chunks.iter().flatten().count() as u32;
        Self { file, chunks, present }
    }

    fn set(&mut self, chunk: u32, record: Option<Record>) {
        let place = &mut self.chunks[chunk as usize];
        self.present -= u32::from(place.is_some());
        self.present += u32::from(record.is_some());
        *place = record;
    }

    pub(super) fn has(&self, chunk: u32) -> bool {
        self.chunks.get(chunk as usize).is_some_and(Option::is_some)
    }
}

impl State {
    pub(super) fn new(place: &Place, id: ObjectId) -> Self {
        let number = id.number();
        Self {
            path: place.paths.object(number),
            id,
            number,
            length: OnceLock::new(),
            slot: Mutex::default(),
            recent: AtomicBool::new(true),
        }
    }

    pub(super) fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn length(&self) -> Option<u64> {
        self.length.get().copied()
    }

    pub(super) fn set_length(&self, bytes: u64) {
        // It never changes, so that the first one is as good.
        let _ = self.length.set(bytes);
    }

    /// Chunks that the object has, or may have.
    pub(super) fn chunks(&self) -> u32 {
        let bytes = self.length().unwrap_or(OBJECT_BYTES_MAX);
        bytes.div_ceil(CHUNK_BYTES).min(u64::from(CHUNKS_MAX)) as u32
    }

    /// True where the record can be that of the chunk. A short one ends the object.
    fn fits(&self, chunk: u32, record: &Record) -> bool {
        let start = u64::from(chunk) * CHUNK_BYTES;
        match self.length() {
            Some(length) => {
                u64::from(record.bytes) == CHUNK_BYTES.min(length.saturating_sub(start))
            }
            None => true,
        }
    }

    /// Looks whether a chunk is here.
    pub(super) fn look(&self, place: &Place, chunk: u32) -> Look {
        let mut slot = self.slot();
        let opened = slot.open.is_none() && self.open(place, &mut slot);
        let Some(open) = &mut slot.open else {
            return Look { chunk: None, opened: false, now_s: None };
        };
        if !open.has(chunk) && chunk < CHUNKS_MAX {
            // Another process may have fetched it.
            let record = open.file.record(chunk).filter(|record| self.fits(chunk, record));
            if record.is_some() {
                open.set(chunk, record);
            }
        }
        let found = open.chunks.get(chunk as usize).cloned().flatten();
        let found = found.filter(|record| self.fits(chunk, record));
        if let Some(record) = &found
            && u64::from(record.bytes) < CHUNK_BYTES
        {
            self.set_length(u64::from(chunk) * CHUNK_BYTES + u64::from(record.bytes));
        }
        let file = open.file.clone();
        let now_s = found.as_ref().and_then(|_| self.note_use(place, &mut slot));
        Look { chunk: found.map(|record| (file, record)), opened, now_s }
    }

    /// Opens the file. Returns true where there is one.
    fn open(&self, place: &Place, slot: &mut Slot) -> bool {
        match ObjectFile::open(place, &self.id, &self.path) {
            Ok(Found::File(file, chunks)) => {
                slot.open = Some(Open::new(file, chunks));
                slot.used_s = 0;
                true
            }
            Ok(Found::None | Found::Other) => false,
            Err(error) => {
                tracing::debug!(%error, file = %self.path.display(), "cannot be opened");
                false
            }
        }
    }

    /// Notes that the object is used. Returns the time, where it was looked at.
    fn note_use(&self, place: &Place, slot: &mut Slot) -> Option<i64> {
        self.recent.store(true, Ordering::Relaxed);
        slot.reads = slot.reads.wrapping_add(1);
        if slot.used_s != 0 && !slot.reads.is_multiple_of(READS_PER_LOOK) {
            return None;
        }
        let now_s = place.world.clock.now_s();
        if (now_s - slot.used_s).abs() >= NOTE_USE_AFTER_S || slot.used_s == 0 {
            slot.used_s = now_s.max(1);
            if let Some(open) = &slot.open {
                let _ = open.file.note_use(now_s);
            }
        }
        Some(now_s)
    }

    /// The file, if it lacks nothing; with the time, where it was looked at.
    pub(super) fn whole(&self, place: &Place) -> Option<(ObjectFile, Option<i64>)> {
        let mut slot = self.slot();
        let chunks = self.length()?.div_ceil(CHUNK_BYTES);
        let open = slot.open.as_ref()?;
        if u64::from(open.present) < chunks {
            return None;
        }
        let file = open.file.clone();
        let now_s = self.note_use(place, &mut slot);
        Some((file, now_s))
    }

    /// True where most of the object is here, but not all. It is true once only, until [`Self::completed`]. An
    /// object whose length is not known counts as a full segment.
    pub(super) fn is_to_complete(&self) -> bool {
        let mut slot = self.slot();
        let chunks = self.length().unwrap_or(SEGMENT_BYTES).div_ceil(CHUNK_BYTES) as u32;
        let present = slot.open.as_ref().map_or(0, |open| open.present);
        let (part, of) = NEARLY_WHOLE;
        let is_whole = self.length().is_some() && present >= chunks;
        let worth_it = !is_whole && present * of >= chunks * part;
        worth_it && !std::mem::replace(&mut slot.completing, true)
    }

    pub(super) fn completed(&self) {
        self.slot().completing = false;
    }

    /// Notes records that were stored in a file.
    pub(super) fn stored(&self, file: &ObjectFile, first: u32, records: Vec<Record>) {
        let mut slot = self.slot();
        if let Some(open) = slot.open.as_mut().filter(|open| open.file.is_same(file)) {
            for (chunk, record) in (first..).zip(records) {
                open.set(chunk, Some(record));
            }
        }
    }

    /// Forgets a chunk that was read and was not what it should be. Returns true where that is damage, and false
    /// where another process has removed the file, or where this was noticed before.
    pub(super) fn distrust(&self, file: &ObjectFile, chunk: u32, record: &Record) -> bool {
        let mut slot = self.slot();
        let Some(open) = slot.open.as_mut().filter(|open| open.file.is_same(file)) else {
            return false;
        };
        if file.is_removed().unwrap_or(true) {
            slot.open = None;
            return false;
        }
        let known = open.chunks[chunk as usize].as_ref();
        if !known.is_some_and(|known| Arc::ptr_eq(&known.crcs, &record.crcs)) {
            return false;
        }
        open.set(chunk, None);
        if let Err(error) = file.forget(chunk) {
            tracing::debug!(%error, "a damaged part of the cache cannot be forgotten");
        }
        true
    }

    /// Closes the file. It is opened again when it is needed.
    pub(super) fn close(&self) {
        self.slot().open = None;
    }

    /// Closes the file if it was removed. A slot that is in use is left for later.
    pub(super) fn close_if_removed(&self) {
        if let Ok(mut slot) = self.slot.try_lock()
            && slot.open.as_ref().is_some_and(|open| open.file.is_removed().unwrap_or(true))
        {
            slot.open = None;
        }
    }

    /// True where it was used since the last call.
    pub(super) fn take_recent(&self) -> bool {
        self.recent.swap(false, Ordering::Relaxed)
    }

    pub(super) fn is_open(&self) -> bool {
        self.slot.try_lock().is_ok_and(|slot| slot.open.is_some())
    }

    /// The file, for storing something in it. It is made where there is none. Returns true with it where it was
    /// opened just now.
    ///
    /// # Errors
    /// What the operating system says.
    pub(super) fn file_to_store(&self, place: &Place) -> std::io::Result<(ObjectFile, bool)> {
        let mut slot = self.slot();
        if let Some(open) = &slot.open {
            if !open.file.is_removed()? {
                return Ok((open.file.clone(), false));
            }
            slot.open = None;
        }
        let made = match ObjectFile::open(place, &self.id, &self.path)? {
            Found::File(file, chunks) => Open::new(file, chunks),
            Found::Other => return Err(std::io::ErrorKind::InvalidData.into()),
            Found::None => match ObjectFile::create(place, &self.id, &self.path) {
                Ok(file) => Open::new(file, vec![None; CHUNKS_MAX as usize]),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    match ObjectFile::open(place, &self.id, &self.path)? {
                        Found::File(file, chunks) => Open::new(file, chunks),
                        _ => return Err(error),
                    }
                }
                Err(error) => return Err(error),
            },
        };
        let file = made.file.clone();
        slot.open = Some(made);
        slot.used_s = 0;
        Ok((file, true))
    }
}
