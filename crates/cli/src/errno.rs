//! The numbers that `rbd` exits with.

use marcot::{Error, ErrorKind};

/// Input/output error: also for kinds that this version does not know.
const EIO: i32 = 5;

/// The errno that `rbd` 16.2 would exit with for an error of this kind.
#[must_use]
pub fn of_kind(kind: ErrorKind) -> i32 {
    match kind {
        ErrorKind::NotFound => 2,
        ErrorKind::Interrupted => 4,
        ErrorKind::Io | ErrorKind::Corrupt | ErrorKind::Poisoned => EIO,
        ErrorKind::PermissionDenied => 13,
        ErrorKind::Busy
        | ErrorKind::Owned
        | ErrorKind::HasChildren
        | ErrorKind::Protected
        | ErrorKind::NotEmpty => 16,
        ErrorKind::Exists => 17,
        ErrorKind::Invalid
        | ErrorKind::NotProtected
        | ErrorKind::NoParent
        | ErrorKind::OutOfRange => 22,
        ErrorKind::Exhausted => 24,
        ErrorKind::NoSpace => 28,
        ErrorKind::ReadOnly => 30,
        ErrorKind::NameTooLong => 36,
        ErrorKind::HasSnapshots => 39,
        ErrorKind::Unsupported | ErrorKind::NewerFormat => 95,
        ErrorKind::Fenced => 108,
        ErrorKind::TooMany => 122,
        _ => EIO,
    }
}

/// As [`of_kind`], for an error.
#[must_use]
pub fn of(error: &Error) -> i32 {
    of_kind(error.kind())
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
