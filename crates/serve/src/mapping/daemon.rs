//! The process that serves a device. A command starts it, and it goes on when the command has ended.
//!
//! ```text
//!   command                       server
//!   spawn(args, input) ------->   setsid; reads its input
//!         <---- one line -------  report_ready / report_failure; stdout becomes /dev/null
//!   prints the device, exits      serves until it gets SIGTERM
//! ```

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use marcot::{BUCKET_VARIABLES, Error, ErrorKind, Result};

use crate::control::message;

/// Where the server finds the programs that it runs (`modprobe`, hooks).
const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Variables of the command's environment that the server needs, beside those of buckets.
const VARIABLES: &[&str] = &["MARCOT_DEV_DIR", "MARCOT_IO", "MARCOT_LOG"];
/// First descriptor after standard input, output and error.
const DESCRIPTOR_FIRST: libc::c_uint = 3;
/// Limit on the descriptors that are marked one by one, where the kernel cannot mark all at once.
const DESCRIPTORS_MAX: libc::rlim_t = 1 << 20;

/// The report of the server: that it is ready, or has failed.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub enum Ready {
    /// It serves this device.
    Device {
        /// The kernel's name, such as `/dev/nbd0`.
        device: PathBuf,
        /// Its name as an RBD device, where it has one.
        node: Option<PathBuf>,
        /// Bytes at the image's end that the device lacks.
        lacking_bytes: u64,
    },
    /// It serves a directory of images.
    Directory,
    /// It could not serve.
    Failed {
        /// The kind of the error, by its name.
        #[serde(deserialize_with = "message::kind_or_io")]
        kind: ErrorKind,
        /// The error's message.
        message: String,
    },
}

/// Reads the job that [`spawn`] has given this process. `what` is what it is to serve.
///
/// # Errors
/// `Invalid` for input that is no job; errors of the operating system.
pub fn read_job<T: serde::de::DeserializeOwned>(input: &mut dyn Read, what: &str) -> Result<T> {
    let mut job = Vec::new();
    let read = input.read_to_end(&mut job);
    read.map_err(|error| Error::from_io(format!("cannot read what {what} to serve"), error))?;
    serde_json::from_slice(&job).map_err(|_| {
        Error::new(ErrorKind::Invalid, format!("this is no job for a {what}'s server"))
    })
}

/// Starts this program again with `arguments` as a process of its own session, gives it `input`,
/// and waits for its report. Its messages go to `log`, whose path is `log_path`.
///
/// The server may run for a long time, so it inherits little from the command: no descriptors (it would hold
/// a script's lock or pipe all the time), no working directory, and only the variables that it needs. Among
/// these are the credentials of pools in buckets.
///
/// # Errors
/// `Io` where it cannot be started, or ends without a report; then the log says why.
pub fn spawn(arguments: &[&str], input: &[u8], log: OwnedFd, log_path: &Path) -> Result<Ready> {
    let context = |what: &str| format!("cannot {what} the process that serves the device");
    let program = std::env::current_exe().map_err(|e| Error::from_io(context("find"), e))?;
    let mut command = program_of_server(&program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .envs(set_variables(BUCKET_VARIABLES))
        .current_dir("/");
    // SAFETY: between fork and exec only `setsid`, `close_range`, `getrlimit` and `fcntl` are called,
    // which are async-signal-safe system calls.
    unsafe {
        command.pre_exec(|| {
            rustix::process::setsid()?;
            close_descriptors_on_exec();
            Ok(())
        });
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
        let message =
            format!("the process that serves the device ended; see {}", log_path.display());
        Error::new(ErrorKind::Io, message)
    })
}

/// A program that the server starts. It gets no credentials.
pub(super) fn program_of_server(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", SEARCH_PATH).envs(set_variables(VARIABLES));
    command
}

fn set_variables(names: &[&'static str]) -> impl Iterator<Item = (&'static str, OsString)> {
    names.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)))
}

/// Marks every descriptor above standard error to be closed by exec. The standard library's descriptor for
/// reporting a failed exec is marked already.
fn close_descriptors_on_exec() {
    // SAFETY: the calls take only numbers, and change only flags of descriptors.
    unsafe {
        let flags = libc::CLOSE_RANGE_CLOEXEC;
        if libc::syscall(libc::SYS_close_range, DESCRIPTOR_FIRST, libc::c_uint::MAX, flags) == 0 {
            return;
        }
        let mut limit = libc::rlimit { rlim_cur: DESCRIPTORS_MAX, rlim_max: DESCRIPTORS_MAX };
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        for descriptor in DESCRIPTOR_FIRST as i32..limit.rlim_cur.min(DESCRIPTORS_MAX) as i32 {
            libc::fcntl(descriptor, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
}

/// Reports to the command that the device exists, and releases its terminal.
///
/// # Errors
/// What the operating system says.
pub fn report_ready(ready: &Ready) -> Result<()> {
    report(ready)?;
    let null = File::options().read(true).write(true).open("/dev/null");
    let detached = null.and_then(|null| {
        rustix::stdio::dup2_stdin(&null)?;
        Ok(rustix::stdio::dup2_stdout(&null)?)
    });
    detached.map_err(|e| Error::from_io("cannot let go of the terminal", e))
}

/// Reports to the command why there is no device.
///
/// # Errors
/// What the operating system says.
pub fn report_failure(error: &Error) -> Result<()> {
    report(&Ready::Failed { kind: error.kind(), message: error.sentence().to_string() })
}

fn report(ready: &Ready) -> Result<()> {
    let line = serde_json::to_string(ready).unwrap_or_default();
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    written.map_err(|e| Error::from_io("cannot report to the command", e))
}
