//! Names of devices in this program's output, and the library's warnings as sentences.

use std::path::{Path, PathBuf};

use marcot_client::Warning;
use marcot_client::devices::{Driver, MappedRecord};

use crate::program;
use crate::size;

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
