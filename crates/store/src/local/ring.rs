//! Batches of reads through `io_uring`: one system call for many reads. Reads that the page cache does not
//! hold are in flight at the same time.
//!
//! Each thread has its own ring, made at its first batch. Where the kernel refuses a ring, the caller uses
//! plain reads, and this thread does not ask again.

use std::cell::RefCell;
use std::io;

use io_uring::{IoUring, opcode, types};

use crate::FileRead;

/// Limit on reads in flight; a power of two.
const RING_ENTRIES: u32 = 128;

enum Ring {
    Untried,
    Refused,
    Ready(IoUring),
}

thread_local! {
    static RING: RefCell<Ring> = const { RefCell::new(Ring::Untried) };
}

/// Performs all reads. Returns false where there is no ring, or where it has failed. Then the caller has to
/// perform all of them.
pub(super) fn read_all(reads: &mut [FileRead<'_>]) -> bool {
    RING.with_borrow_mut(|ring| {
        if matches!(ring, Ring::Untried) {
            *ring = IoUring::new(RING_ENTRIES).map_or(Ring::Refused, Ring::Ready);
        }
        let Ring::Ready(uring) = ring else { return false };
        for batch in reads.chunks_mut(RING_ENTRIES as usize) {
            if read_batch(uring, batch).is_err() {
                // The ring cannot perform these reads, or cannot be trusted any more.
                *ring = Ring::Refused;
                return false;
            }
        }
        true
    })
}

fn read_batch(uring: &mut IoUring, batch: &mut [FileRead<'_>]) -> io::Result<()> {
    if batch.iter().any(|r| r.file.raw_fd().is_none() || u32::try_from(r.buf.len()).is_err()) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    for (i, read) in batch.iter_mut().enumerate() {
        read.result = Ok(0);
        let fd = types::Fd(read.file.raw_fd().unwrap_or(-1));
        let entry = opcode::Read::new(fd, read.buf.as_mut_ptr(), read.buf.len() as u32)
            .offset(read.offset)
            .build()
            .user_data(i as u64);
        // SAFETY: the buffer and the file outlive the operation: every operation pushed is waited
        // for below before this function returns, and the ring has room for RING_ENTRIES.
        unsafe { uring.submission().push(&entry) }.map_err(|_| io::ErrorKind::QuotaExceeded)?;
    }
    let mut waiting = batch.len();
    while waiting > 0 {
        match uring.submit_and_wait(waiting) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The kernel may still write into borrowed buffers, which only an abort prevents.
            // EAGAIN and EBUSY are transient; other errors have not been seen.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => {
                std::thread::yield_now();
            }
            Err(error) if uring.submission().len() == batch.len() && waiting == batch.len() => {
                return Err(error);
            }
            Err(_) => std::process::abort(),
        }
        for completion in uring.completion() {
            waiting -= 1;
            let read = &mut batch[completion.user_data() as usize];
            read.result = match completion.result() {
                n if n >= 0 => Ok(n as usize),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            };
        }
    }
    finish_short_reads(batch);
    Ok(())
}

/// Finishes reads that were short or interrupted before the end of the file.
fn finish_short_reads(batch: &mut [FileRead<'_>]) {
    for read in batch {
        let done = match &read.result {
            Ok(n) if *n < read.buf.len() => *n,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => 0,
            _ => continue,
        };
        let rest = read.file.read_at(read.offset + done as u64, &mut read.buf[done..]);
        read.result = rest.map(|n| done + n);
    }
}
