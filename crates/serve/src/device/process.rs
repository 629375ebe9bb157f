//! Processes, known so that a number given to another one is not mistaken.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A process of this machine's uptime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: u32,
    /// When it began, in clock ticks since boot; zero where that is unknown.
    pub started_ticks: u64,
}

impl ProcessId {
    /// This process.
    #[must_use]
    pub fn own() -> Self {
        let pid = std::process::id();
        Self { pid, started_ticks: started_ticks(pid).unwrap_or_default() }
    }

    /// True until it ends.
    #[must_use]
    pub fn is_alive(self) -> bool {
        started_ticks(self.pid).is_some_and(|ticks| ticks == self.started_ticks)
    }

    /// A hold on the process; `None` where it has ended.
    pub(super) fn open(self) -> Result<Option<OpenProcess>, Errno> {
        let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) else {
            return Ok(None);
        };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Looked at only now that the number cannot change hands any more.
            Ok(fd) if self.is_alive() => Ok(Some(OpenProcess(fd))),
            Ok(_) | Err(Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno),
        }
    }
}

/// Field 22 of `/proc/PID/stat`; `None` for a process that has ended.
fn started_ticks(pid: u32) -> Option<u64> {
    /// Fields between the state, which is the third, and the start.
    const BETWEEN: usize = 18;
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    if ended { None } else { fields.nth(BETWEEN)?.parse().ok() }
}

/// A process whose number stays its own while this lives.
pub(super) struct OpenProcess(OwnedFd);

impl OpenProcess {
    /// Asks it to end.
    pub(super) fn terminate(&self) -> Result<(), Errno> {
        match pidfd_send_signal(&self.0, Signal::TERM) {
            Err(Errno::SRCH) => Ok(()),
            sent => sent,
        }
    }

    /// True once it has ended; waits for that at most `limit`.
    pub(super) fn wait_end(&self, limit: Duration) -> Result<bool, Errno> {
        let limit = Timespec::try_from(limit).map_err(|_| Errno::INVAL)?;
        match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&limit)) {
            Err(Errno::INTR) => Ok(false),
            ended => Ok(ended? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_number_and_start() {
        let own = ProcessId::own();
        assert!(own.started_ticks > 0 && own.is_alive());
        let reused = ProcessId { started_ticks: own.started_ticks - 1, ..own };
        assert!(!reused.is_alive() && reused.open().unwrap().is_none());
        assert!(!ProcessId { pid: u32::MAX, started_ticks: 1 }.is_alive());
    }

    #[test]
    fn the_end_of_a_process_is_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let id = ProcessId { pid, started_ticks: started_ticks(pid).unwrap() };
        let open = id.open().unwrap().unwrap();
        assert!(!open.wait_end(Duration::ZERO).unwrap());
        open.terminate().unwrap();
        assert!(open.wait_end(Duration::from_secs(10)).unwrap());
        // Not waited for yet, it is a zombie, which is dead.
        assert!(!id.is_alive());
        child.wait().unwrap();
    }
}
