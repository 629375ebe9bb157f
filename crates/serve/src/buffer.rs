//! Buffers of a connection: bytes received and not yet used, and bytes not yet sent.
//!
//! Both hand out positions instead of slices, so that one round can gather the payloads of many
//! connections without copying. Invariant: bytes at a position that was handed out stay where they are
//! until the next [`ReceiveBuffer::room`] or until the [`SendBuffer`] is drained.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::fd::BorrowedFd;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};

use crate::pages::Pages;

/// Room for a read of a socket whose client sends much. One read takes everything that a client with 32
/// requests of 4 KiB in flight has sent.
pub(crate) const RECEIVE_BYTES: usize = 256 << 10;

/// Where less room than this is left, unread bytes are first moved to the front of the buffer.
const RECEIVE_ROOM_BYTES_MIN: usize = 128 << 10;

/// Pieces given to one `sendmsg`; far below the kernel's 1024.
const SEND_PIECES_MAX: usize = 64;

/// The outcome of a transfer on a non-blocking socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Bytes were moved.
    Moved,
    /// The socket has nothing to give or takes nothing now.
    Blocked,
    /// The other side has closed.
    Closed,
}

/// Bytes received and not yet consumed.
pub(crate) struct ReceiveBuffer {
    pages: Pages,
    start: usize,
    end: usize,
    /// The last read of the socket filled all the room.
    filled: bool,
}

impl ReceiveBuffer {
    /// Begins with bytes that were read before.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn new(unread: &[u8]) -> io::Result<Self> {
        let mut pages = Pages::empty();
        pages.grow(unread.len())?;
        pages.as_mut_slice()[..unread.len()].copy_from_slice(unread);
        Ok(Self { pages, start: 0, end: unread.len(), filled: false })
    }

    /// Bytes received and not consumed.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.pages.as_slice()[self.start..self.end]
    }

    /// Takes `bytes` off the front, at most all unread ones. Returns where they lie.
    pub(crate) fn consume(&mut self, bytes: usize) -> Range<usize> {
        let start = self.start;
        self.start = self.end.min(start + bytes);
        start..self.start
    }

    /// Bytes that were consumed, by position.
    pub(crate) fn at(&self, range: Range<usize>) -> &[u8] {
        &self.pages.as_slice()[range]
    }

    /// Reads once, with room for a message of `message_bytes` at the front.
    ///
    /// # Errors
    /// Those of the socket, and a lack of memory.
    pub(crate) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        message_bytes: usize,
    ) -> io::Result<Progress> {
        self.receive_with(socket, message_bytes.max(RECEIVE_BYTES), usize::MAX)
    }

    /// Reads once, with room for `room_bytes`, until at most `unread_bytes_max` are unread.
    ///
    /// # Errors
    /// As [`Self::receive`].
    pub(crate) fn receive_with(
        &mut self,
        socket: BorrowedFd<'_>,
        room_bytes: usize,
        unread_bytes_max: usize,
    ) -> io::Result<Progress> {
        self.room(room_bytes)?;
        let end = self.pages.len().min(self.start.saturating_add(unread_bytes_max));
        let room = &mut self.pages.as_mut_slice()[self.end..end];
        match rustix::net::recv(socket, room, RecvFlags::empty()) {
            Ok((0, _)) => Ok(Progress::Closed),
            Ok((bytes, _)) => {
                self.end += bytes;
                self.filled = self.end == self.pages.len();
                Ok(Progress::Moved)
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(Progress::Blocked),
            Err(error) => Err(error.into()),
        }
    }

    /// True if the client may have sent more than the last read of the socket had room for.
    pub(crate) fn was_filled(&self) -> bool {
        self.filled
    }

    fn room(&mut self, bytes: usize) -> io::Result<()> {
        self.pages.grow(bytes)?;
        let short = self.pages.len() - self.end < RECEIVE_ROOM_BYTES_MIN.min(self.pages.len() / 2);
        let cramped = short || self.pages.len() - self.start < bytes;
        if self.start > 0 && (self.start == self.end || cramped) {
            self.pages.as_mut_slice().copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.pages.len() {
            self.pages.grow(self.end + 1)?;
        }
        Ok(())
    }

    /// Gives memory back if nothing is unread.
    pub(crate) fn release_if_empty(&mut self) {
        if self.start == self.end {
            self.pages.release();
            (self.start, self.end, self.filled) = (0, 0, false);
        }
    }

    /// Bytes of address space held.
    pub(crate) fn capacity(&self) -> usize {
        self.pages.len()
    }
}

/// Replies under construction and replies waiting for the socket.
///
/// Room is reserved, filled in place, and committed or abandoned; only what is committed is sent,
/// in the order of the commits.
pub(crate) struct SendBuffer {
    pages: Pages,
    filled: usize,
    committed: VecDeque<Range<usize>>,
}

impl SendBuffer {
    /// Nothing to send.
    pub(crate) fn new() -> Self {
        Self { pages: Pages::empty(), filled: 0, committed: VecDeque::new() }
    }

    /// Bytes in use: reserved, committed, and sent but not yet reclaimed.
    pub(crate) fn used_bytes(&self) -> usize {
        self.filled
    }

    /// True when everything committed has been sent.
    pub(crate) fn is_drained(&self) -> bool {
        self.committed.is_empty()
    }

    /// Sets `bytes` aside; the content is unspecified.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn reserve(&mut self, bytes: usize) -> io::Result<Range<usize>> {
        let range = self.filled..self.filled + bytes;
        self.pages.grow(range.end)?;
        self.filled = range.end;
        Ok(range)
    }

    /// All bytes, by position.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.pages.as_mut_slice()
    }

    /// Queues a filled range for sending.
    pub(crate) fn commit(&mut self, range: Range<usize>) {
        match self.committed.back_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.committed.push_back(range),
        }
    }

    /// Queues a copy of `bytes`.
    ///
    /// # Errors
    /// When there is no memory.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let range = self.reserve(bytes.len())?;
        self.pages.as_mut_slice()[range.clone()].copy_from_slice(bytes);
        self.commit(range);
        Ok(())
    }

    /// Sends what the socket takes, without blocking.
    ///
    /// # Errors
    /// Those of the socket.
    pub(crate) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<Progress> {
        while !self.committed.is_empty() {
            match self.send_once(socket) {
                Ok(bytes) => self.sent(bytes),
                Err(rustix::io::Errno::AGAIN) => return Ok(Progress::Blocked),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Progress::Moved)
    }

    fn send_once(&self, socket: BorrowedFd<'_>) -> rustix::io::Result<usize> {
        let bytes = self.pages.as_slice();
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        if let [only] = self.committed.as_slices().0
            && self.committed.len() == 1
        {
            return rustix::net::send(socket, &bytes[only.clone()], flags);
        }
        let mut pieces = [IoSlice::new(&[]); SEND_PIECES_MAX];
        let count = self.committed.len().min(SEND_PIECES_MAX);
        for (piece, range) in pieces.iter_mut().zip(&self.committed) {
            *piece = IoSlice::new(&bytes[range.clone()]);
        }
        let mut no_ancillary = SendAncillaryBuffer::default();
        rustix::net::sendmsg(socket, &pieces[..count], &mut no_ancillary, flags)
    }

    fn sent(&mut self, mut bytes: usize) {
        while let Some(front) = self.committed.front_mut() {
            let taken = bytes.min(front.len());
            front.start += taken;
            bytes -= taken;
            if front.start < front.end {
                return;
            }
            self.committed.pop_front();
        }
    }

    /// Makes the space of sent replies usable again. Every reservation must have been committed
    /// or given up.
    pub(crate) fn reclaim(&mut self) {
        if self.committed.is_empty() {
            self.filled = 0;
        }
    }

    /// Gives memory back if nothing waits to be sent.
    pub(crate) fn release_if_empty(&mut self) {
        if self.committed.is_empty() {
            self.filled = 0;
            self.pages.release();
        }
    }

    /// Bytes of address space held.
    pub(crate) fn capacity(&self) -> usize {
        self.pages.len()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn abandoned_reservations_are_not_sent() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut buffer = SendBuffer::new();
        buffer.append(b"one").unwrap();
        buffer.reserve(5).unwrap();
        buffer.append(b"two").unwrap();
        assert_eq!(buffer.send(ours.as_fd()).unwrap(), Progress::Moved);
        buffer.reclaim();
        assert_eq!(buffer.used_bytes(), 0);
        drop(ours);
        let mut got = String::new();
        theirs.read_to_string(&mut got).unwrap();
        assert_eq!(got, "onetwo");
    }

    #[test]
    fn a_full_socket_blocks_and_resumes_where_it_stopped() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let mut buffer = SendBuffer::new();
        buffer.append(&data).unwrap();
        let mut got = Vec::new();
        while buffer.send(ours.as_fd()).unwrap() == Progress::Blocked {
            let mut chunk = vec![0; 65_536];
            let bytes = theirs.read(&mut chunk).unwrap();
            got.extend_from_slice(&chunk[..bytes]);
        }
        drop(ours);
        theirs.read_to_end(&mut got).unwrap();
        assert_eq!(got, data);
    }

    #[test]
    fn a_message_larger_than_the_buffer_fits() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let writer = std::thread::spawn(move || theirs.write_all(&vec![9; 1 << 20]).unwrap());
        let mut buffer = ReceiveBuffer::new(b"left").unwrap();
        while buffer.unread().len() < (1 << 20) + 4 {
            buffer.receive(ours.as_fd(), (1 << 20) + 4).unwrap();
        }
        writer.join().unwrap();
        assert_eq!(&buffer.unread()[..5], b"left\x09");
        let all = buffer.consume(usize::MAX >> 1);
        assert_eq!(all.len(), (1 << 20) + 4);
        buffer.release_if_empty();
        assert_eq!(buffer.capacity(), 0);
    }
}
