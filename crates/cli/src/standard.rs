//! Standard input, output and error of the process: whether they were there when it was started, and
//! streams of bytes through them that a signal ends.
//!
//! A descriptor that was closed when the program was started is opened on `/dev/null` before `main`, by
//! Rust's runtime: so no file gets its number by chance. But what is written there is lost, and what is
//! read there is empty, and both would look like success. So that is noted before.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::{FileType, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::signals;

/// Bit N: descriptor N was closed when the process was started.
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// Zeros that are written at a time.
const ZEROS: &[u8] = &[0; 1 << 20];

/// The loader calls this before `main`, and so before the runtime opens what is closed.
#[used]
// SAFETY: the section holds pointers to functions of this type. This one needs nothing of the runtime:
// it makes system calls and stores to an atomic.
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        for fd in 0..3 {
            // SAFETY: the call reads the table of descriptors only.
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

/// Fails where the process was started without standard input.
///
/// # Errors
/// `EBADF`.
pub fn check_input() -> io::Result<()> {
    check(0)
}

/// Fails where the process was started without standard output.
///
/// # Errors
/// `EBADF`.
pub fn check_output() -> io::Result<()> {
    check(1)
}

/// Reads standard input once.
///
/// # Errors
/// `Interrupted` once the user wants the command to end; what the operating system says.
pub fn read(buffer: &mut [u8]) -> io::Result<usize> {
    let input = rustix::stdio::stdin();
    // Waiting in `poll` rather than in `read`: a signal just before a `read` would be missed.
    wait_readable(input)?;
    loop {
        match rustix::io::read(input, &mut *buffer) {
            Err(Errno::INTR) if signals::stop_asked() => return Err(interrupted()),
            Err(Errno::INTR) => {}
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
            // What cannot be waited for is found out by reading.
            _ => return Ok(()),
        }
    }
}

fn interrupted() -> io::Error {
    io::ErrorKind::Interrupted.into()
}

/// A stream to standard output, with holes where that is a file.
pub struct Output {
    seeks: bool,
}

impl Output {
    /// # Errors
    /// `EBADF` where the process was started without standard output.
    pub fn open() -> io::Result<Self> {
        check_output()?;
        let output = rustix::stdio::stdout();
        let file = rustix::fs::fstat(output)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        // What is appended goes to the end, wherever the position is.
        let appends = rustix::fs::fcntl_getfl(output).is_ok_and(|f| f.contains(OFlags::APPEND));
        Ok(Self { seeks: file && !appends })
    }

    /// Writes all of `data`.
    ///
    /// # Errors
    /// `Interrupted` once the user wants the command to end; what the operating system says.
    pub fn write(&mut self, mut data: &[u8]) -> io::Result<()> {
        while !data.is_empty() {
            if signals::stop_asked() {
                return Err(interrupted());
            }
            match rustix::io::write(rustix::stdio::stdout(), data) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => data = &data[bytes..],
                Err(Errno::INTR) => {}
                // Whoever has given it to us has it not wait.
                Err(Errno::AGAIN) => std::thread::sleep(signals::POLL_INTERVAL / 100),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Goes on by zeros: all of `length` where that costs nothing, else a part; returns how many.
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

    /// Leaves a hole at the end of the file; false where there is something behind the position, which
    /// would show.
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
