//! The process that serves a device: started by a command, and living on when that has ended.
//!
//! ```text
//!   command                       server
//!   spawn(args, input) ------->   setsid; reads its input
//!         <---- one line -------  report_ready / report_failure; stdout becomes /dev/null
//!   prints the device, exits      serves until it gets SIGTERM
//! ```

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use marcot::{Error, ErrorKind, Result};

/// What the server says when it is ready, or has failed.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub enum Ready {
    /// It serves this device.
    Device(String),
    /// It could not: errno and sentence.
    Failed(i32, String),
}

/// Starts this program again with `arguments` as a process of its own session, gives it `input`,
/// and waits for its report.
///
/// # Errors
/// `Io` where it cannot be started, or ends without a report; then the log tells why.
pub fn spawn(arguments: &[&str], input: &[u8], log: &Path) -> Result<Ready> {
    let context = |what: &str| format!("cannot {what} the process that serves the device");
    let program = std::env::current_exe().map_err(|e| Error::from_io(context("find"), e))?;
    let log_file = File::options().create(true).append(true).open(log);
    let log_file = log_file.map_err(|e| Error::from_io(context("log for"), e))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log_file)
        .current_dir("/");
    // SAFETY: between fork and exec only `setsid` is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| rustix::process::setsid().map(drop).map_err(Into::into));
    }
    let mut child = command.spawn().map_err(|e| Error::from_io(context("start"), e))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input).map_err(|e| Error::from_io(context("reach"), e))?;
    }
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        let read = BufReader::new(stdout).read_line(&mut line);
        read.map_err(|e| Error::from_io(context("hear"), e))?;
    }
    serde_json::from_str(&line).map_err(|_| {
        let message = format!("the process that serves the device ended; see {}", log.display());
        Error::new(ErrorKind::Io, message)
    })
}

/// Tells the command that the device is there, and lets go of its terminal.
///
/// # Errors
/// What the operating system says.
pub fn report_ready(device: &Path) -> Result<()> {
    report(&Ready::Device(device.to_string_lossy().into_owned()))?;
    let null = File::options().write(true).open("/dev/null");
    let detached = null.and_then(|null| Ok(rustix::stdio::dup2_stdout(&null)?));
    detached.map_err(|e| Error::from_io("cannot let go of the terminal", e))
}

/// Tells the command why there is no device.
///
/// # Errors
/// What the operating system says.
pub fn report_failure(error: &Error) -> Result<()> {
    report(&Ready::Failed(error.errno(), error.to_string()))
}

fn report(ready: &Ready) -> Result<()> {
    let line = serde_json::to_string(ready).unwrap_or_default();
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(|e| Error::from_io("cannot report to the command", e))
}
