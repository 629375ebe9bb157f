//! The process that serves a device: started by a command, and living on when that has ended.
//!
//! ```text
//!   command                          server
//!   spawn(arguments, payload) ---->  a session of its own; payload() reads stdin
//!         <---- one JSON line -----  ReadyPipe: ready(device) or failed(error)
//!   prints the device, exits         serves until SIGTERM
//! ```
//!
//! Invariants:
//! - The server has nothing of the command's terminal: stdin is the payload's pipe, stdout is
//!   `/dev/null`, stderr is a log file.
//! - `spawn` returns when the server has reported or has ended, whichever is first: the only other
//!   end of the ready pipe is the server's.
//!
//! `unsafe` is here for what happens between fork and exec, and for the inherited descriptor.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use marcot::{Error, ErrorKind, Result};
use rustix::io::FdFlags;
use rustix::pipe::PipeFlags;

use super::registry::Failure;

/// Tells the server which descriptor is its end of the pipe.
const READY_VARIABLE: &str = "MARCOT_READY_FD";
/// Bytes of the longest report that is read.
const REPORT_BYTES_MAX: u64 = 1 << 16;
/// `oom_score_adj` that spares a process: a device whose server is killed loses its users' data.
const OOM_SPARED: &[u8] = b"-1000";

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// It serves this device.
    Device(String),
    /// It could not.
    Failed(Failure),
}

fn cannot(what: &str, error: impl Into<std::io::Error>) -> Error {
    Error::from_io(format!("cannot {what} the process that serves the device"), error.into())
}

/// Starts this program again with `arguments`, gives it `payload`, and waits for its report.
///
/// # Errors
/// `Io` where it cannot be started, or ends without a report; then `log` tells why.
pub fn spawn(arguments: &[&str], payload: &[u8], log: &Path) -> Result<Report> {
    let program = std::env::current_exe().map_err(|e| cannot("find", e))?;
    let log_file = File::options().create(true).append(true).open(log);
    let log_file = log_file.map_err(|e| cannot("log for", e))?;
    let (ours, theirs) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|e| cannot("hear", e))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env(READY_VARIABLE, theirs.as_raw_fd().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log_file)
        .current_dir("/");
    detach(&mut command, theirs.as_raw_fd());
    let mut child = command.spawn().map_err(|e| cannot("start", e))?;
    drop(theirs);
    if let Some(mut stdin) = child.stdin.take() {
        // One that has ended does not read; its report is what counts.
        let _ = stdin.write_all(payload);
    }
    let report = receive(ours)?;
    let Some(report) = report else {
        // Reaped, so that its exit status can be told.
        let ended = child.wait().map_err(|e| cannot("wait for", e))?;
        let why = format!("the process that serves the device ended ({ended})");
        let message = format!("{why}; see {}", log.display());
        return Err(Error::new(ErrorKind::Io, message));
    };
    Ok(report)
}

/// Gives the command's process a session of its own, and leaves it the pipe.
fn detach(command: &mut Command, ready: RawFd) {
    let inherit = move || {
        rustix::process::setsid()?;
        // SAFETY: the parent keeps the descriptor open until `spawn` returns, so that its copy is
        // open in the child for this call.
        let ready = unsafe { std::os::fd::BorrowedFd::borrow_raw(ready) };
        rustix::io::fcntl_setfd(ready, FdFlags::empty())?;
        Ok(())
    };
    // SAFETY: between fork and exec nothing but two system calls is made; no memory is allocated
    // and no lock is taken.
    unsafe { command.pre_exec(inherit) };
}

/// `None` where the other end was closed before a report.
fn receive(pipe: OwnedFd) -> Result<Option<Report>> {
    let mut line = String::new();
    let mut reader = BufReader::new(File::from(pipe).take(REPORT_BYTES_MAX));
    reader.read_line(&mut line).map_err(|e| cannot("hear", e))?;
    Ok(serde_json::from_str(&line).ok())
}

/// The server's end of the pipe. Dropping it tells the command that there is no report.
#[derive(Debug)]
pub struct ReadyPipe(File);

impl ReadyPipe {
    /// The pipe that `spawn` has left to this process. To be called once, before threads are
    /// started.
    ///
    /// # Errors
    /// `Invalid` where `spawn` has not started this process.
    pub fn inherited() -> Result<Self> {
        let missing = || Error::new(ErrorKind::Invalid, "not started to serve a device");
        let named = std::env::var(READY_VARIABLE).ok();
        let number: RawFd = named.and_then(|n| n.parse().ok()).ok_or_else(missing)?;
        // Standard streams are never it, and a number that is not open is nobody's.
        if number <= 2 || !Path::new(&format!("/proc/self/fd/{number}")).exists() {
            return Err(missing());
        }
        // SAFETY: the descriptor is open, and was left to this process by `spawn` for this purpose
        // alone; nothing else in the process knows it.
        let pipe = unsafe { OwnedFd::from_raw_fd(number) };
        // Not for processes that this one starts.
        rustix::io::fcntl_setfd(&pipe, FdFlags::CLOEXEC).map_err(|_| missing())?;
        Ok(Self(File::from(pipe)))
    }

    /// Tells the command that the device is there. A command that has gone is no error.
    pub fn ready(self, device: &Path) {
        self.report(&Report::Device(device.to_string_lossy().into_owned()));
    }

    /// Tells the command why there is no device.
    pub fn failed(self, error: &Error) {
        self.report(&Report::Failed(Failure::from(error)));
    }

    fn report(mut self, report: &Report) {
        let line = serde_json::to_string(report).unwrap_or_default();
        if let Err(error) = writeln!(self.0, "{line}") {
            tracing::debug!(%error, "the command that started this process has ended");
        }
    }
}

/// What `spawn` was given for this process.
///
/// # Errors
/// What the operating system says.
pub fn payload() -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| cannot("hear", e))?;
    Ok(bytes)
}

/// Lets this process work while the machine is out of memory: pages are written through it, so that
/// it must neither be killed nor wait for pages to be written. To be called before threads are
/// started. Without the privilege, it changes nothing.
pub fn protect_from_memory_pressure() {
    let flusher = rustix::process::configure_io_flusher_behavior(true);
    let spared = std::fs::write("/proc/self/oom_score_adj", OOM_SPARED);
    if flusher.is_err() || spared.is_err() {
        tracing::debug!("no privilege to be spared when memory is short");
    }
}
