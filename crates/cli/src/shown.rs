//! Names of devices in this program's output, lists of names, and the library's warnings as sentences.

use std::path::{Path, PathBuf};

use marcot::SnapInfo;
use marcot_client::Warning;
use marcot_client::devices::{Driver, MappedRecord};

use crate::program;
use crate::size;

/// How many names a line has at most.
pub const NAMES_MAX: usize = 5;

/// The name of a device in the output, if the program is called `program` and lists devices of `driver`:
/// called as `rbd`, it is the name that the kernel's RBD driver would give the device.
pub fn shown_device(
    program: &str,
    driver: Option<Driver>,
    device: &Path,
    node: Option<PathBuf>,
) -> String {
    let as_rbd = program == program::RBD && driver.is_none();
    let shown = node.filter(|_| as_rbd).unwrap_or_else(|| device.to_owned());
    shown.display().to_string()
}

/// The sentence of a warning of the library.
pub fn worded(program: &str, warning: &Warning) -> String {
    let shown = |r: &MappedRecord| shown_device(program, None, &r.device, r.names.node());
    match warning {
        Warning::MappedAlready(record) => {
            format!("warning: image already mapped as {}", shown(record))
        }
        Warning::MappedMoreThanOnce { image, record } => {
            format!("{image} is mapped more than once; {} is meant", shown(record))
        }
        Warning::GoesOn { image, done_bytes, size_bytes } => {
            let (done, all) = (size::show(*done_bytes), size::show(*size_bytes));
            format!("going on with '{image}': {done} of {all} are there")
        }
        warning => warning.to_string(),
    }
}

/// `a, b and 3 more`.
pub fn some_of(names: impl Iterator<Item = String>) -> Option<String> {
    let names: Vec<String> = names.collect();
    let shown = names.iter().take(NAMES_MAX).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMES_MAX) {
        _ if names.is_empty() => None,
        0 => Some(shown),
        more => Some(format!("{shown} and {more} more")),
    }
}

/// Users' snapshots of an image by their names.
pub fn snapshots_of(snapshots: &[SnapInfo]) -> Option<String> {
    some_of(snapshots.iter().filter(|snap| snap.is_of_users()).map(|snap| snap.name.clone()))
}
