//! Finds out who holds a lock or a lease, from `/proc/locks`, for messages to people who wait for it.
//!
//! Nothing but messages depends on this. A process that has ended, or that runs in another container, is
//! not named.

use std::fmt;
use std::path::Path;

use rustix::fs::Stat;

/// A process that holds a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    pid: u32,
    command: Option<String>,
    stopped: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.pid)?;
        if let Some(command) = &self.command {
            write!(f, " ({command})")?;
        }
        match self.stopped {
            true => write!(f, ", which is stopped: 'kill -CONT {}' lets it go on", self.pid),
            false => Ok(()),
        }
    }
}

/// The first process that holds a lock of this kind (`FLOCK`, `LEASE`) on the file.
pub(super) fn holder_of(stat: &Stat, kind: &str) -> Option<Holder> {
    let table = std::fs::read_to_string("/proc/locks").ok()?;
    let file = name_of_file(stat);
    let pid = table.lines().find_map(|line| pid_of_line(line, kind, &file))?;
    let process = Path::new("/proc").join(pid.to_string());
    let command = std::fs::read_to_string(process.join("comm")).ok();
    let stat = std::fs::read_to_string(process.join("stat")).unwrap_or_default();
    Some(Holder {
        pid,
        command: command.map(|name| name.trim_end().to_owned()),
        stopped: state_of(&stat).is_some_and(|state| matches!(state, 'T' | 't')),
    })
}

/// The file's name in the table: device and inode.
fn name_of_file(stat: &Stat) -> String {
    let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
    format!("{major:02x}:{minor:02x}:{}", stat.st_ino)
}

/// The process in a line such as `1: FLOCK ADVISORY WRITE 1234 08:01:131 0 EOF`, if the line is about this
/// kind and file. A process that waits has a line too, with an arrow.
fn pid_of_line(line: &str, kind: &str, file: &str) -> Option<u32> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [_, this_kind, _, _, pid, this_file, ..] = words[..] else { return None };
    if this_kind != kind || this_file != file {
        return None;
    }
    pid.parse().ok().filter(|pid| *pid > 0)
}

/// The state of a process, from its line in `/proc`. Its name, in parentheses, may hold any characters.
fn state_of(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_holds_that_file_in_that_way_is_found() {
        let find = |line| pid_of_line(line, "FLOCK", "08:01:131");
        assert_eq!(find("1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF"), Some(1234));
        for other in [
            "1: -> FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF",
            "1: LEASE  ACTIVE    READ  1234 08:01:131 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 1234 08:01:13 0 EOF",
            "1: FLOCK  ADVISORY  WRITE 0 08:01:131 0 EOF",
            "1: FLOCK  ADVISORY  WRITE -1 08:01:131 0 EOF",
            "1: FLOCK",
            "",
        ] {
            assert_eq!(find(other), None, "{other}");
        }
    }

    #[test]
    fn a_name_in_parentheses_hides_no_state() {
        assert_eq!(state_of("12 (a) b) T 1 2"), Some('T'));
        assert_eq!(state_of("12 (sh) S 1 2"), Some('S'));
        assert_eq!(state_of(""), None);
    }
}
