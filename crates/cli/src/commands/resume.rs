//! A file that is being exported, and a note of how far it has come, for the next run.
//!
//! ```text
//! .NAME.marcot-partial        the start of the file, locked by the process that writes it
//! .NAME.marcot-partial.note   from which state of an image, and up to which byte it is on the medium
//! ```
//!
//! Invariants:
//! - The note says no more than the medium has: the file is synced before the note is replaced.
//! - A note that is damaged, or of another state, counts as none. Then the file begins anew.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags, flock};

/// How much is written between two notes, in bytes: what is written once more after a loss of power.
const NOTE_EVERY_BYTES: u64 = 64 << 20;
/// Longest note, in bytes.
const NOTE_BYTES_MAX: u64 = 8192;
const VERSION: &str = "marcot export 1";
/// A note without it was cut off.
const END: &str = "end\n";

/// See the module.
pub struct Resume {
    note: PathBuf,
    state: String,
    /// What an earlier run has written.
    pub done_bytes: u64,
    /// What was written, and what the note says.
    written_bytes: u64,
    noted_bytes: u64,
    /// Both files stay if the export is not finished.
    pub kept: bool,
}

impl Resume {
    /// Opens the start of the file, or begins it. `None` where it cannot be continued later.
    pub fn begin(path: &Path, state: &str, mode: u32) -> Option<(File, PathBuf, Self)> {
        let name = path.file_name()?.to_str()?;
        let partial = path.with_file_name(format!(".{name}.marcot-partial"));
        let note = path.with_file_name(format!(".{name}.marcot-partial.note"));
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode)
            .custom_flags(i32::try_from(flags.bits()).ok()?)
            .open(&partial)
            .ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        // The process before may have given the file its name, or removed it.
        let (here, there) = (file.metadata().ok()?, partial.symlink_metadata().ok()?);
        if !here.is_file() || (here.dev(), here.ino()) != (there.dev(), there.ino()) {
            return None;
        }
        let done_bytes = noted(&note, state).unwrap_or(0);
        let (written_bytes, noted_bytes) = (done_bytes, done_bytes);
        let state = state.to_owned();
        let kept = true;
        let resume = Self { note, state, done_bytes, written_bytes, noted_bytes, kept };
        // What was written behind the note may be there or not.
        let begun = resume.write_note(done_bytes).and_then(|()| file.set_len(done_bytes));
        if begun.is_err() && done_bytes == 0 {
            let _ = std::fs::remove_file(&partial);
        }
        begun.ok()?;
        Some((file, partial, resume))
    }

    /// Everything up to this byte was written.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn reached(&mut self, file: &File, offset: u64) -> io::Result<()> {
        self.written_bytes = offset;
        match offset - self.noted_bytes < NOTE_EVERY_BYTES {
            true => Ok(()),
            false => self.settle(file),
        }
    }

    /// Makes durable what was written, and notes it.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn settle(&mut self, file: &File) -> io::Result<()> {
        file.sync_all()?;
        self.write_note(self.written_bytes)?;
        self.noted_bytes = self.written_bytes;
        Ok(())
    }

    fn write_note(&self, bytes: u64) -> io::Result<()> {
        let temporary = self.note.with_extension("note.tmp");
        let text = format!("{VERSION}\n{}\n{bytes}\n", self.state);
        std::fs::write(&temporary, format!("{text}{END}"))?;
        std::fs::rename(&temporary, &self.note)
    }

    /// Removes the note.
    pub fn remove(&self) {
        let _ = std::fs::remove_file(&self.note);
    }
}

/// How much of the file there is, by a note for this state.
fn noted(note: &Path, state: &str) -> Option<u64> {
    let about = note.symlink_metadata().ok()?;
    if !about.is_file() || about.len() > NOTE_BYTES_MAX {
        return None;
    }
    let whole = std::fs::read_to_string(note).ok()?;
    let mut lines = whole.strip_suffix(END)?.lines();
    let is_this = lines.next() == Some(VERSION) && lines.next() == Some(state);
    lines.next().filter(|_| is_this)?.parse().ok()
}
