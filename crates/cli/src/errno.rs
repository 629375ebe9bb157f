//! The numbers that `rbd` exits with.

use marcot::{Error, ErrorKind};

/// Operation not permitted.
pub const EPERM: i32 = 1;
/// No such file or directory.
pub const ENOENT: i32 = 2;
/// Input/output error.
pub const EIO: i32 = 5;
/// Bad file descriptor.
pub const EBADF: i32 = 9;
/// Device or resource busy.
pub const EBUSY: i32 = 16;
/// File exists.
pub const EEXIST: i32 = 17;
/// Invalid cross-device link.
pub const EXDEV: i32 = 18;
/// Is a directory.
pub const EISDIR: i32 = 21;
/// Invalid argument.
pub const EINVAL: i32 = 22;
/// Inappropriate ioctl for device.
pub const ENOTTY: i32 = 25;
/// Read-only file system.
pub const EROFS: i32 = 30;
/// Numerical argument out of domain.
pub const EDOM: i32 = 33;
/// Numerical result out of range.
pub const ERANGE: i32 = 34;
/// Connection timed out.
pub const ETIMEDOUT: i32 = 110;
/// Function not implemented.
pub const ENOSYS: i32 = 38;
/// Directory not empty.
pub const ENOTEMPTY: i32 = 39;
/// Bad message.
pub const EBADMSG: i32 = 74;
/// Operation not supported.
pub const EOPNOTSUPP: i32 = 95;

/// The name of a number, as Ceph's `ceph` writes it.
#[must_use]
pub fn name(errno: i32) -> &'static str {
    match errno {
        EPERM => "EPERM",
        ENOENT => "ENOENT",
        13 => "EACCES",
        EBUSY => "EBUSY",
        EEXIST => "EEXIST",
        EINVAL => "EINVAL",
        28 => "ENOSPC",
        30 => "EROFS",
        36 => "ENAMETOOLONG",
        ENOTEMPTY => "ENOTEMPTY",
        EOPNOTSUPP => "EOPNOTSUPP",
        _ => "EIO",
    }
}

/// The errno that `rbd` 16.2 would exit with for an error of this kind.
#[must_use]
pub fn of_kind(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::NotFound => ENOENT,
        ErrorKind::Interrupted => 4,
        ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Poisoned => EIO,
        ErrorKind::PermissionDenied => 13,
        ErrorKind::Busy
        | ErrorKind::Owned
        | ErrorKind::HasChildren
        | ErrorKind::Protected
        | ErrorKind::NotEmpty => EBUSY,
        ErrorKind::Exists => EEXIST,
        ErrorKind::Invalid
        | ErrorKind::NotProtected
        | ErrorKind::NoParent
        | ErrorKind::OutOfRange => EINVAL,
        ErrorKind::Exhausted => 24,
        ErrorKind::NoSpace => 28,
        ErrorKind::ReadOnly => 30,
        ErrorKind::InGroup => 31,
        ErrorKind::NameTooLong => 36,
        ErrorKind::HasSnapshots => ENOTEMPTY,
        ErrorKind::Unsupported | ErrorKind::NewerFormat => EOPNOTSUPP,
        ErrorKind::Fenced => 108,
        ErrorKind::Unreachable => ETIMEDOUT,
        ErrorKind::TooMany => 122,
        // A kind that this version does not know.
        _ => EIO,
    }
}

/// As [`of_kind`], for an error. An image that was given up because its service did not answer counts as that.
#[must_use]
pub fn of(error: &Error) -> i32 {
    if error.kind() == ErrorKind::Poisoned && has_timed_out(error) {
        return ETIMEDOUT;
    }
    of_kind(error.kind())
}

fn has_timed_out(error: &Error) -> bool {
    let below = std::iter::successors(std::error::Error::source(error), |error| error.source());
    let mut system = below.filter_map(|error| error.downcast_ref::<std::io::Error>());
    system.any(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

/// The obstacle ([`ErrorKind::is_obstacle`]) that a command with this exit status has met, if it was one.
#[must_use]
pub fn obstacle(status: i32) -> Option<ErrorKind> {
    let mut kinds = ErrorKind::ALL.iter().copied();
    kinds.find(|kind| kind.is_obstacle() && of_kind(*kind) == status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_of_input_and_output_have_the_number_that_unknown_kinds_get() {
        let eio = ErrorKind::ALL.iter().filter(|kind| of_kind(**kind) == EIO);
        let eio: Vec<_> = eio.copied().collect();
        assert_eq!(eio, [ErrorKind::Corrupt, ErrorKind::Poisoned, ErrorKind::Io]);
    }

    #[test]
    fn an_obstacle_is_told_by_its_exit_status() {
        assert_eq!(obstacle(24), Some(ErrorKind::Exhausted));
        assert_eq!(obstacle(16), Some(ErrorKind::Busy));
        assert_eq!(obstacle(5), None);
    }
}
