//! Standard input, output and error of the process: whether they were open when it was started, and
//! streams through them that a signal interrupts.
//!
//! Before `main`, Rust's runtime opens descriptors that were closed at the start on `/dev/null`,
//! so that no file gets such a number by chance. But writes there are lost and reads there are
//! empty, and both would look like success. So this module notes beforehand which were closed.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::signals;

/// Bit N: descriptor N was closed when the process was started.
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// Zeros to write, at most this many at a time.
const ZEROS: &[u8] = &[0; 1 << 20];

/// The loader calls this before `main`, and so before the runtime opens what is closed.
#[used]
// SAFETY: the section holds pointers to functions of this type. This function needs no runtime:
// it makes system calls and stores to an atomic.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        for fd in 0..3 {
            // SAFETY: the call only reads the table of descriptors.
            if unsafe { libc::fcntl(fd, libc::F_GETFD) } == -1 {
                CLOSED.fetch_or(1 << fd, Ordering::Relaxed);
            }
        }
    }
    look
};

fn check(fd: u8) -> io::Result<()> {
    match CLOSED.load(Ordering::Relaxed) & 1 << fd {
        0 => Ok(()),
        _ => Err(Errno::BADF.into()),
    }
}

/// Fails if the process was started without standard input.
///
/// # Errors
/// `EBADF`.
pub fn check_input() -> io::Result<()> {
    check(0)
}

/// Fails if the process was started without standard output.
///
/// # Errors
/// `EBADF`.
pub fn check_output() -> io::Result<()> {
    check(1)
}

/// Reads once from a pipe or the like.
///
/// # Errors
/// `Interrupted` once the user wants the command to end; errors of the operating system.
pub fn read_from(input: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // Waits in `poll` and not in `read`: a signal just before a `read` would be missed.
        wait_readable(input)?;
        match rustix::io::read(input, &mut *buffer) {
            // With O_NONBLOCK, another reader can have been first.
            Err(Errno::INTR | Errno::AGAIN) => {}
            outcome => return Ok(outcome?),
        }
    }
}

fn wait_readable(fd: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let slice = Timespec::try_from(signals::POLL_INTERVAL).ok();
    loop {
        if signals::stop_asked() {
            return Err(interrupted());
        }
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], slice.as_ref()) {
            Ok(0) | Err(Errno::INTR) => {}
            // If `poll` cannot wait for the descriptor, the read shows the error.
            _ => return Ok(()),
        }
    }
}

fn interrupted() -> io::Error {
    io::ErrorKind::Interrupted.into()
}

/// A stream to standard output. If that is a file, it can get holes.
pub struct Output {
    seeks: bool,
}

impl Output {
    /// # Errors
    /// `EBADF` if the process was started without standard output.
    pub fn open() -> io::Result<Self> {
        check_output()?;
        let output = rustix::stdio::stdout();
        let file = rustix::fs::fstat(output)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        // With O_APPEND, writes go to the end, whatever the position is.
        let appends = rustix::fs::fcntl_getfl(output).is_ok_and(|f| f.contains(OFlags::APPEND));
        Ok(Self { seeks: file && !appends })
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// `Interrupted` once the user wants the command to end; errors of the operating system.
    pub fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            if signals::stop_asked() {
                return Err(interrupted());
            }
            match rustix::io::write(rustix::stdio::stdout(), data) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => data = &data[bytes..],
                Err(Errno::INTR) => {}
                // The caller has set O_NONBLOCK on it.
                Err(Errno::AGAIN) => std::thread::sleep(signals::POLL_INTERVAL / 100),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Adds zeros: all of `length` if a hole is possible, else a part. Returns how many.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn skip(&mut self, length: u64) -> io::Result<u64> {
        if self.seeks && self.seek_over(length)? {
            return Ok(length);
        }
        let bytes = length.min(ZEROS.len() as u64);
        // At most the length of ZEROS.
        self.write(&ZEROS[..bytes as usize])?;
        Ok(bytes)
    }

    /// Leaves a hole at the end of the file. Returns false if there is data after the position, since that
    /// would be read instead of zeros.
    fn seek_over(&mut self, length: u64) -> io::Result<bool> {
        let output = rustix::stdio::stdout();
        let at = rustix::fs::seek(output, SeekFrom::Current(0))?;
        if u64::try_from(rustix::fs::fstat(output)?.st_size).unwrap_or(0) > at {
            return Ok(false);
        }
        let end = at.checked_add(length).ok_or(Errno::FBIG)?;
        rustix::fs::ftruncate(output, end)?;
        rustix::fs::seek(output, SeekFrom::Start(end))?;
        Ok(true)
    }
}
