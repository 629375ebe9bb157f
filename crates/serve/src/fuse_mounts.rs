//! What FUSE mounts share: limits, answers, the numbers of errors, and unmounting.

use std::io;
use std::path::Path;

use fuser::{Errno, InitFlags, KernelConfig, ReplyEmpty};
use marcot::{Error, ErrorKind, Result};

use crate::host::Completion;

/// Limit on the requests that the kernel has in flight; its own default would be 16.
const REQUESTS_MAX: u16 = 128;
/// Size of the largest write that the kernel sends, in bytes.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Where FUSE's helper is found.
const HELPER_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Asks the kernel for what makes a mount fast: these capabilities, large writes, and many requests at a time. None of it
/// has to be granted.
pub(crate) fn make_fast(config: &mut KernelConfig, wanted: InitFlags) {
    let _ = config.add_capabilities(wanted & config.capabilities());
    let _ = config.set_max_write(WRITE_BYTES_MAX);
    let _ = config.set_max_background(REQUESTS_MAX);
    let _ = config.set_congestion_threshold(REQUESTS_MAX);
}

/// Answers a request whose answer has no data.
pub(crate) fn answer(reply: ReplyEmpty) -> Completion {
    Completion::new(move |outcome: Result<Vec<u8>>| match outcome {
        Ok(_) => reply.ok(),
        Err(error) => reply.error(errno(&error)),
    })
}

/// What the kernel is told of an error.
pub(crate) fn errno(error: &Error) -> Errno {
    match error.kind() {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::Exists => Errno::EEXIST,
        ErrorKind::Busy | ErrorKind::Owned | ErrorKind::HasChildren | ErrorKind::Protected => {
            Errno::EBUSY
        }
        ErrorKind::HasSnapshots | ErrorKind::NotEmpty => Errno::ENOTEMPTY,
        ErrorKind::InGroup => Errno::EMLINK,
        ErrorKind::NameTooLong => Errno::ENAMETOOLONG,
        ErrorKind::Invalid | ErrorKind::OutOfRange => Errno::EINVAL,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::Exhausted => Errno::EMFILE,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::Fenced => Errno::ESHUTDOWN,
        ErrorKind::PermissionDenied => Errno::EACCES,
        ErrorKind::Unsupported | ErrorKind::NewerFormat => Errno::EOPNOTSUPP,
        ErrorKind::Interrupted => Errno::EINTR,
        ErrorKind::Unreachable => Errno::ETIMEDOUT,
        _ => Errno::EIO,
    }
}

/// Takes a mount away, also one whose server has died. It is no error if there is none.
pub(crate) fn unmount_dead(directory: &Path) -> Result<()> {
    match rustix::mount::unmount(directory, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        // The kernel refuses other users than root before it checks whether there is a mount.
        Err(rustix::io::Errno::PERM) if !is_mounted(directory) => Ok(()),
        Err(rustix::io::Errno::PERM) if unmount_as_user(directory) => Ok(()),
        Err(error) => {
            let context = format!("cannot unmount {}", directory.display());
            Err(Error::from_io(context, error.into()))
        }
    }
}

fn is_mounted(directory: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let file_system = |path: &Path| std::fs::metadata(path).map(|m| m.dev());
    let above = directory.parent().map(file_system);
    // `stat` fails on a mount whose server is dead.
    match (file_system(directory), above) {
        (Ok(here), Some(Ok(above))) => here != above,
        (Err(error), _) => error.kind() != io::ErrorKind::NotFound,
        _ => true,
    }
}

/// Lets FUSE's helper unmount what another user than root has mounted. Returns false if it cannot.
fn unmount_as_user(directory: &Path) -> bool {
    ["fusermount3", "fusermount"].into_iter().any(|helper| {
        let mut command = std::process::Command::new(helper);
        // It gets no credentials of buckets.
        command.env_clear().env("PATH", HELPER_PATH);
        let ended = command.args(["-u", "-z", "--"]).arg(directory).status();
        ended.is_ok_and(|status| status.success())
    })
}
