//! Where a command reads a file or a stream from: standard input, or a file.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;

use rustix::fs::{FileType, SeekFrom};

use super::files::PIPE;
use crate::errno::{EISDIR, ENOTTY};
use crate::failure::{Failure, Outcome};
use crate::output::warn;
use crate::session::Session;
use crate::standard;

/// What a command reads.
pub enum Source {
    /// A file that was opened by name.
    File(File),
    /// Standard input.
    Stdin,
}

impl Source {
    /// Opens standard input for `-`, else a file. `error` names the failure. `rbd` reports an error of
    /// the file on a line of its own, before the last progress line.
    pub fn open(session: &Session, path: &str, error: &str) -> Outcome<Self> {
        if path == PIPE {
            let open = standard::check_input().map(|()| Self::Stdin);
            let closed = |e| Failure::io(error, &e).because("standard input is closed");
            return open.map_err(closed);
        }
        Self::open_file(session, path, error)
    }

    /// Opens a file, whatever it is called.
    pub fn open_file(session: &Session, path: &str, error: &str) -> Outcome<Self> {
        // Opening a FIFO must not wait for a writer.
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
        let opened = rustix::fs::open(path, flags, rustix::fs::Mode::empty());
        opened.map(|fd| Self::File(File::from(fd))).map_err(|errno| {
            warn(session.program, &format!("error opening {path}"));
            Failure::errno(error, errno.raw_os_error())
        })
    }

    /// The size in bytes, or `None` for standard input.
    pub fn size_bytes(&self, session: &Session, error: &str) -> Outcome<Option<u64>> {
        let Self::File(file) = self else { return Ok(None) };
        let metadata = file.metadata().map_err(|e| Failure::io(error, &e))?;
        if metadata.is_dir() {
            warn(session.program, "cannot import a directory");
            return Err(Failure::errno(error, EISDIR));
        }
        let size_bytes = if metadata.file_type().is_block_device() {
            rustix::fs::seek(file, SeekFrom::End(0)).unwrap_or(0)
        } else {
            metadata.len()
        };
        if size_bytes == 0 {
            warn(session.program, "unable to get size of file/block device");
            return Err(Failure::errno(error, ENOTTY));
        }
        Ok(Some(size_bytes))
    }

    /// Reads it from where it stands. Of a pipe, nothing is read that nobody asks for: another command may go
    /// on with the rest.
    pub fn reader(&self) -> Box<dyn Read + Send + '_> {
        match self {
            Self::File(file) if self.regular_file().is_some() => Box::new(BufReader::new(file)),
            Self::File(file) => Box::new(Pipe(file.as_fd())),
            Self::Stdin => Box::new(Pipe(rustix::stdio::stdin())),
        }
    }

    /// The file behind it and the place where it stands, if it is a regular file.
    pub fn regular_file(&self) -> Option<(File, u64)> {
        let file = match self {
            Self::File(file) => file.try_clone().ok()?,
            Self::Stdin => File::from(rustix::io::dup(rustix::stdio::stdin()).ok()?),
        };
        let mode = rustix::fs::fstat(&file).ok()?.st_mode;
        let at = rustix::fs::seek(&file, SeekFrom::Current(0)).ok()?;
        (FileType::from_raw_mode(mode) == FileType::RegularFile).then_some((file, at))
    }
}

/// Standard input, or a FIFO whose writer may still come. A signal interrupts reads.
struct Pipe<'a>(BorrowedFd<'a>);

impl Read for Pipe<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        standard::read_from(self.0, buf)
    }
}
