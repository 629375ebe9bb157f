//! A thin layer over epoll: numbers for sources, and two kinds of interest.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Limit on the events taken at once. Others wait for the next turn; the kernel rotates them.
const EVENTS_MAX: usize = 128;

/// What a source is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Interest {
    /// Bytes, or a connection to accept.
    pub(crate) readable: bool,
    /// Room for bytes.
    pub(crate) writable: bool,
}

impl Interest {
    pub(crate) const READABLE: Self = Self { readable: true, writable: false };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, self.readable);
        flags.set(EventFlags::OUT, self.writable);
        flags
    }
}

/// A source that is ready. A source with an error is reported as ready for both.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ready {
    /// The number given with the source.
    pub(crate) token: u64,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// The other side has closed, or the source failed. This is reported whatever the source is watched for.
    pub(crate) hung_up: bool,
}

/// A set of sources, watched level-triggered.
pub(crate) struct Poll {
    epoll: OwnedFd,
}

impl Poll {
    /// # Errors
    /// When the process has no descriptors left.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)? })
    }

    /// # Errors
    /// Those of the kernel: too many sources.
    pub(crate) fn add(&self, source: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        epoll::add(&self.epoll, source, EventData::new_u64(token), interest.flags())?;
        Ok(())
    }

    /// # Errors
    /// If the source was not added.
    pub(crate) fn modify(
        &self,
        source: impl AsFd,
        token: u64,
        interest: Interest,
    ) -> io::Result<()> {
        epoll::modify(&self.epoll, source, EventData::new_u64(token), interest.flags())?;
        Ok(())
    }

    /// # Errors
    /// If the source was not added.
    pub(crate) fn remove(&self, source: impl AsFd) -> io::Result<()> {
        epoll::delete(&self.epoll, source)?;
        Ok(())
    }

    /// Waits for sources or for `timeout`, and fills `ready`.
    ///
    /// # Errors
    /// Those of the kernel; a signal is not one.
    pub(crate) fn wait(&self, timeout: Option<Duration>, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        let timeout = timeout.map(|t| Timespec {
            tv_sec: i64::try_from(t.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: t.subsec_nanos().into(),
        });
        let mut room = [const { MaybeUninit::<Event>::uninit() }; EVENTS_MAX];
        let events = match epoll::wait(&self.epoll, &mut room[..], timeout.as_ref()) {
            Ok((events, _)) => events,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        ready.extend(events.iter().map(|event| {
            let flags = event.flags;
            let hung_up = flags.intersects(EventFlags::ERR | EventFlags::HUP);
            Ready {
                token: event.data.u64(),
                readable: hung_up || flags.contains(EventFlags::IN),
                writable: hung_up || flags.contains(EventFlags::OUT),
                hung_up,
            }
        }));
        Ok(())
    }
}
