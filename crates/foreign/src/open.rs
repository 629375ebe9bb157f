//! Telling the formats apart, and opening a disk with all the files that it needs.

use std::path::Path;
use std::sync::Arc;

pub use crate::backing::{Directory, Files, Nobody};
use crate::error::{Error, Result};
use crate::pages::{Pages, field};
use crate::qcow2::Qcow2;
use crate::qcow2::header::{self, Header, Needed};
use crate::source::Source;
use crate::{vhd, vhdx, vmdk};

/// A format of disk images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// See [`crate::qcow2`].
    Qcow2,
    /// See [`crate::vmdk`].
    Vmdk,
    /// See [`crate::vhd`].
    Vhd,
    /// See [`crate::vhdx`].
    Vhdx,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Raw, Self::Qcow2, Self::Vmdk, Self::Vhd, Self::Vhdx];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
        }
    }

    /// The format with this name. QEMU's name for VHD is known too.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let name = if name == "vpc" { "vhd" } else { name };
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

/// The format that the first bytes of a file tell; `None` if they tell none. Of a fixed VHD only the end tells.
#[must_use]
pub fn recognise_start(bytes: &[u8]) -> Option<Format> {
    let is = |magic: &[u8]| bytes.starts_with(magic);
    if is(&header::MAGIC) {
        // Versions that do not exist are a sign that this is something else.
        return (bytes.len() >= 8 && bytes[4..7] == [0; 3]).then_some(Format::Qcow2);
    }
    match () {
        () if is(&vmdk::MAGIC) || is(vmdk::DESCRIPTION) => Some(Format::Vmdk),
        () if is(&vhdx::MAGIC) => Some(Format::Vhdx),
        () if is(&vhd::COOKIE) => Some(Format::Vhd),
        () => None,
    }
}

/// The format of a file, by its content. What has no known mark is raw.
///
/// # Errors
/// Those of reading.
pub fn recognise(container: &dyn Source) -> Result<Format> {
    let size_bytes = container.size_bytes();
    let mut first = vec![0; size_bytes.min(vmdk::DESCRIPTION.len() as u64) as usize];
    container.read_at(0, &mut first)?;
    if let Some(format) = recognise_start(&first) {
        return Ok(format);
    }
    let mut footer = [0; vhd::FOOTER_BYTES];
    if let Some(at) = size_bytes.checked_sub(footer.len() as u64) {
        container.read_at(at, &mut footer)?;
        // Only the footer of a fixed disk of just this size.
        if vhd::is_footer(&footer) && u64::from_be_bytes(field(&footer, 48)) == at {
            return Ok(Format::Vhd);
        }
    }
    Ok(Format::Raw)
}

/// Opens the disk in a file of this format, whose other files are relative to no directory.
///
/// # Errors
/// `Invalid` if it is not of this format; `Damaged`, `Unsupported`, `Refused`; those of reading.
pub fn open(
    container: Arc<dyn Source>,
    format: Format,
    files: &mut dyn Files,
) -> Result<Arc<dyn Source>> {
    open_at(container, format, Path::new(""), files)
}

/// Opens the disk in the file at `path`. Its other files are named relative to that.
///
/// # Errors
/// As [`open`].
pub fn open_at(
    container: Arc<dyn Source>,
    format: Format,
    path: &Path,
    files: &mut dyn Files,
) -> Result<Arc<dyn Source>> {
    Ok(match format {
        Format::Raw => container,
        Format::Vmdk => Arc::new(vmdk::open(container)?),
        Format::Vhd => Arc::new(vhd::open(container)?),
        Format::Vhdx => Arc::new(vhdx::open(container)?),
        Format::Qcow2 => {
            let pages = Pages::new(container);
            let header = Header::read(&pages)?;
            let mut data = None;
            if let Some(needed) = &header.data_file {
                data = Some(files.open(path, needed)?.0);
            }
            let mut below = None;
            if let Some(needed) = &header.backing {
                below = Some(open_backing(path, needed, files)?);
            }
            Arc::new(Qcow2::open(pages, header, data, below)?)
        }
    })
}

/// Opens a backing file. `files` bounds how many there are.
fn open_backing(from: &Path, needed: &Needed, files: &mut dyn Files) -> Result<Arc<dyn Source>> {
    let (container, path) = files.open(from, needed)?;
    let format = match needed.format.as_deref() {
        None => recognise(container.as_ref())?,
        Some(name) => Format::named(name)
            .ok_or_else(|| Error::unsupported(format!("'{name}' is not read")).of(&needed.name))?,
    };
    open_at(container, format, &path, files).map_err(|error| error.of(&needed.name))
}
