//! Storing what was fetched.

use std::io;
use std::sync::Arc;

use marcot_format::BLOCK_BYTES;

use super::layout::CHUNK_BYTES;
use super::space::{CHUNK_COST_BYTES, FILE_COST_BYTES};
use super::state::State;
use super::{CachedObject, Inner};

/// What these bytes take on the disk.
fn cost(bytes: &[u8]) -> u64 {
    let chunks = (bytes.len() as u64).div_ceil(CHUNK_BYTES);
    (bytes.len() as u64).next_multiple_of(BLOCK_BYTES) + chunks * CHUNK_COST_BYTES + FILE_COST_BYTES
}

impl Inner {
    /// Stores chunks, from `first` on. What cannot be stored is fetched again when it is needed.
    pub(super) fn keep(self: &Arc<Self>, object: &CachedObject, first: u32, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        match self.try_keep(&object.state, first, bytes) {
            Ok(()) => self.trouble.end(&self.place.paths.directory.display()),
            Err(error) => self.trouble(&error),
        }
        if object.state.is_to_complete() {
            self.complete(object);
        }
    }

    pub(super) fn trouble(&self, why: &io::Error) {
        self.trouble.begin(&self.place.paths.directory.display(), why);
    }

    fn try_keep(self: &Arc<Self>, state: &Arc<State>, first: u32, bytes: &[u8]) -> io::Result<()> {
        match self.keep_once(state, first, bytes) {
            // Somebody has removed the directory.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.place.make()?;
                state.close();
            }
            // The file is damaged, or that of an object with the same number.
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                self.bound.remove(&self.place, &state.path)?;
            }
            kept => return kept,
        }
        self.keep_once(state, first, bytes)
    }

    fn keep_once(self: &Arc<Self>, state: &Arc<State>, first: u32, bytes: &[u8]) -> io::Result<()> {
        let cost = cost(bytes);
        let Some(space) = self.bound.reserve(&self.place, cost, &state.path)? else {
            let message = "there is no room, neither in it nor on its disk";
            return Err(io::Error::new(io::ErrorKind::StorageFull, message));
        };
        let kept = self.store(state, first, bytes);
        if kept.is_err() {
            self.bound.give_back(&self.place, cost)?;
        }
        if self.bound.is_recount_due(space) {
            self.recount_later();
        }
        kept
    }

    fn store(&self, state: &Arc<State>, first: u32, bytes: &[u8]) -> io::Result<()> {
        let (file, opened) = state.file_to_store(&self.place)?;
        if opened {
            self.note_opened(state);
        }
        let chunks = bytes.chunks(CHUNK_BYTES as usize);
        let records: io::Result<Vec<_>> =
            (first..).zip(chunks).map(|(chunk, data)| file.store(chunk, data)).collect();
        // What was written after the file was cut takes space until the last process closes it.
        if file.is_removed()? {
            // Whoever has removed the file may have counted it or not, so that it stays counted.
            file.cut();
            state.close();
            return Ok(());
        }
        state.stored(&file, first, records?);
        let last = first + (bytes.len() as u64 / CHUNK_BYTES) as u32;
        let short = bytes.len() as u64 % CHUNK_BYTES;
        if short > 0 {
            state.set_length(u64::from(last) * CHUNK_BYTES + short);
        }
        Ok(())
    }
}
