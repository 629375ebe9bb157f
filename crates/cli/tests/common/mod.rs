//! A store of its own for each test, and the program under both of its names.
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(missing_docs)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Long enough for a slow machine; a longer wait is a hang.
pub const WAIT_MAX: Duration = Duration::from_secs(120);

/// The result of a run of the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub out: String,
    pub err: String,
    pub status: i32,
}

/// A directory with a store, and a link called `rbd`.
pub struct World {
    directory: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let program = env!("CARGO_BIN_EXE_marcot");
        std::os::unix::fs::symlink(program, directory.path().join("rbd")).unwrap();
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_string()
    }

    fn command(&self, program: &Path, line: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(line.split_whitespace())
            .current_dir(self.directory.path())
            .env("MARCOT_STORE", self.path("store"))
            .env("TZ", "UTC");
        command
    }

    pub fn rbd_command(&self, line: &str) -> Command {
        self.command(&self.path("rbd"), line)
    }

    /// The program under the name of one of Ceph's programs.
    pub fn called_command(&self, name: &str, line: &str) -> Command {
        let link = self.path(name);
        if !link.is_symlink() {
            std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_marcot"), &link).unwrap();
        }
        self.command(&link, line)
    }

    pub fn called(&self, name: &str, line: &str) -> Ran {
        ran(self.called_command(name, line).stdin(Stdio::null()))
    }

    pub fn marcot_command(&self, line: &str) -> Command {
        self.command(Path::new(env!("CARGO_BIN_EXE_marcot")), line)
    }

    pub fn marcot(&self, line: &str) -> Ran {
        ran(self.marcot_command(line).stdin(Stdio::null()))
    }

    pub fn rbd(&self, line: &str) -> Ran {
        ran(self.rbd_command(line).stdin(Stdio::null()))
    }

    pub fn rbd_with_input(&self, line: &str, input: &Path) -> Ran {
        ran(self.rbd_command(line).stdin(std::fs::File::open(input).unwrap()))
    }

    /// Runs a command with `bytes` in a pipe that ends after them.
    pub fn rbd_piped(&self, line: &str, bytes: &[u8]) -> Ran {
        let mut command = self.rbd_command(line);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // The command may end before it has read everything.
        let _ = child.stdin.take().expect("a pipe").write_all(bytes);
        ran_with(child.wait_with_output().unwrap())
    }

    /// Runs commands that must succeed without output on standard error.
    pub fn silently(&self, lines: &[&str]) {
        for line in lines {
            let ran = self.rbd(line);
            assert_eq!((ran.status, ran.err.as_str()), (0, ""), "{line}");
        }
    }
}

/// Waits until a server that was started with a pipe as standard output listens. Its socket exists
/// a moment before it listens.
pub fn await_listening(server: &mut Child) {
    let mut line = String::new();
    let said = server.stdout.as_mut().expect("a pipe");
    // The child keeps the pipe, and the server writes no more than these lines.
    BufReader::new(said).read_line(&mut line).unwrap();
    assert!(line.starts_with("listening on "), "the server does not listen: {line:?}");
}

/// Waits until a condition holds, longer than it takes on the slowest machine.
pub fn await_that(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn ran(command: &mut Command) -> Ran {
    ran_with(command.output().unwrap())
}

fn ran_with(output: Output) -> Ran {
    Ran {
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
        status: output.status.code().unwrap_or(-1),
    }
}

/// A successful run that prints `out` and nothing else.
pub fn prints(out: &str) -> Ran {
    Ran { out: out.to_string(), err: String::new(), status: 0 }
}

/// A run that prints `err` on standard error only.
pub fn says(err: &str, status: i32) -> Ran {
    Ran { out: String::new(), err: err.to_string(), status }
}

/// The run without the lines in the form of the Ceph client's log.
pub fn without_log(ran: Ran) -> Ran {
    let kept = ran.err.split_inclusive('\n').filter(|line| !line.contains(" -1 librbd: "));
    Ran { err: kept.collect(), ..ran }
}

/// Bytes without repetitions close to each other.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8 | 1
    };
    (0..length).map(|_| next()).collect()
}
