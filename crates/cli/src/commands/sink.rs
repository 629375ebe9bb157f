//! Where a command writes a file or a stream: standard output, or a file that is complete or does not
//! exist.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use marcot_client::copy::GRAIN_BYTES;
use marcot_client::sparse;

use super::files::PIPE;
use super::resume::Resume;
use crate::errno::{EEXIST, ENOENT, ETIMEDOUT};
use crate::failure::{Failure, Outcome};
use crate::signals::{self, HalfDone};
use crate::standard::Output;

/// The mode with which `rbd` creates the file. The umask applies.
const FILE_MODE: u32 = 0o644;

/// The destination.
pub enum Sink {
    /// Standard output.
    Stdout(Output),
    /// It has a temporary name until it is complete.
    File {
        /// The file.
        file: File,
        /// Where appended bytes go.
        end: u64,
        /// Its name until then.
        partial: PathBuf,
        /// Its name.
        path: PathBuf,
        /// True when it has that.
        whole: bool,
        /// Removes it if the process is ended; `None` where it stays for the next run.
        _half_done: Option<HalfDone>,
        /// How far it has come, for the next run; `None` where there is none.
        resume: Option<Resume>,
    },
}

impl Sink {
    /// Opens standard output for `-`, else a file that does not exist yet. `error` names the failure.
    pub fn open(path: &str, error: &str) -> Outcome<Self> {
        if path == PIPE {
            let output = Output::open();
            let closed = |e| Failure::io(error, &e).because("standard output is closed");
            return output.map(Self::Stdout).map_err(closed);
        }
        Self::open_file(path, error).map_err(|failure| match failure.status {
            EEXIST => failure.because(format!("'{path}' exists already; nothing is overwritten")),
            _ => failure.because(format!("cannot write to '{path}'")),
        })
    }

    fn open_file(path: &str, error: &str) -> Outcome<Self> {
        let path = PathBuf::from(path);
        if path.symlink_metadata().is_ok() {
            return Err(Failure::errno(error, EEXIST));
        }
        let partial = partial_path(&path).ok_or_else(|| Failure::errno(error, ENOENT))?;
        let half_done = Some(HalfDone::file(&partial));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(FILE_MODE)
            .open(&partial)
            .map_err(|e| Failure::io(error, &e))?;
        let _half_done = half_done;
        Ok(Self::File { file, end: 0, partial, path, whole: false, _half_done, resume: None })
    }

    /// As [`Self::open`], for a file that is written from its start to its end from `state`, which is one line. Where an
    /// earlier run has left the start of this file, made from the same state, it goes on there ([`Self::done_bytes`]).
    pub fn open_or_continue(path: &str, error: &str, state: &str) -> Outcome<Self> {
        if path == PIPE || Path::new(path).symlink_metadata().is_ok() {
            return Self::open(path, error);
        }
        // Another process may write the same file, or this may be no place for notes. Then nobody goes on.
        match Resume::begin(Path::new(path), state, FILE_MODE) {
            Some((file, partial, resume)) => Ok(Self::File {
                file,
                end: 0,
                partial,
                path: PathBuf::from(path),
                whole: false,
                _half_done: None,
                resume: Some(resume),
            }),
            None => Self::open(path, error),
        }
    }

    /// What an earlier run has written of the file: all up to this byte.
    pub fn done_bytes(&self) -> u64 {
        match self {
            Self::File { resume: Some(resume), .. } => resume.done_bytes,
            _ => 0,
        }
    }

    /// Everything up to this byte was written.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn reached(&mut self, offset: u64) -> io::Result<()> {
        match self {
            Self::File { file, resume: Some(resume), .. } => resume.reached(file, offset),
            _ => Ok(()),
        }
    }

    /// Keeps what is there after a failure with this status, and says whether it does: not where a further run would
    /// meet the same.
    pub fn keep_after(&mut self, status: i32) -> bool {
        let Self::File { file, resume: Some(resume), .. } = self else { return false };
        resume.kept &= status == signals::status() || status == ETIMEDOUT;
        resume.kept && resume.settle(file).is_ok()
    }

    /// Writes data of an image at its place, without its zeros.
    ///
    /// # Errors
    /// `Interrupted` once the user wants the command to end; errors of the operating system.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(output) => output.write(data),
            Self::File { file, .. } => {
                for run in sparse::data_runs(data, GRAIN_BYTES) {
                    file.write_all_at(&data[run.clone()], offset + run.start as u64)?;
                }
                Ok(())
            }
        }
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn append(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout(output) => output.write(data),
            Self::File { file, end, .. } => {
                if signals::stop_asked() {
                    return Err(io::ErrorKind::Interrupted.into());
                }
                file.write_all_at(data, *end)?;
                *end += data.len() as u64;
                Ok(())
            }
        }
    }

    /// Adds at most `length` zeros, and returns how many.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn skip(&mut self, length: u64) -> io::Result<u64> {
        match self {
            Self::Stdout(output) => output.skip(length),
            Self::File { .. } => Ok(length),
        }
    }

    /// Completes a stream that was appended.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn finish_stream(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(_) => Ok(()),
            Self::File { end, .. } => {
                let size_bytes = *end;
                self.finish(size_bytes)
            }
        }
    }

    /// Completes a file of `size_bytes`.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn finish(&mut self, size_bytes: u64) -> io::Result<()> {
        match self {
            Self::Stdout(_) => Ok(()),
            Self::File { file, partial, path, whole, resume, .. } => file
                .set_len(size_bytes)
                .and_then(|()| file.sync_all())
                .and_then(|()| publish(partial, path))
                .inspect(|()| *whole = true)
                .inspect(|()| resume.iter().for_each(Resume::remove)),
        }
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let Self::File { partial, whole: false, resume, .. } = self else { return };
        if let Some(resume) = resume {
            if resume.kept {
                return;
            }
            resume.remove();
        }
        let _ = std::fs::remove_file(partial);
    }
}

/// The temporary path. It is in the directory of the file, so that it can be renamed.
fn partial_path(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy();
    let partial = format!(".{name}.marcot-partial.{}", std::process::id());
    Some(path.with_file_name(partial))
}

/// Gives the file its name, unless another file has that name.
fn publish(partial: &Path, path: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, partial, CWD, path, RenameFlags::NOREPLACE) {
        // For file systems without this kind of rename: a link does not replace a file either.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            std::fs::hard_link(partial, path)?;
            std::fs::remove_file(partial)
        }
        outcome => Ok(outcome?),
    }
}
