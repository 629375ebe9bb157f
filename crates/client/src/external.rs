//! Sources of migrations outside the store, for the images that are opened through a client.

use std::sync::Arc;

use marcot::{Error, ErrorKind, Extent, ExternalDisk, ExternalSources, Result};
use marcot_foreign::Source;
use marcot_serve::control::Interrupt;

use crate::source_spec::{BadSpec, HAS_CHANGED, SourceSpec, Trouble};

/// Opens sources by their descriptions.
pub(crate) struct Sources(pub Interrupt);

impl ExternalSources for Sources {
    fn open(&self, spec: &str, state: &str) -> Result<Arc<dyn ExternalDisk>> {
        let spec = SourceSpec::parse(spec).map_err(|bad| failed(&bad.into()))?;
        let interrupt = self.0.clone();
        let opened = spec.open(&(Arc::new(move || interrupt.came()) as _));
        let opened = opened.map_err(|trouble| failed(&trouble))?;
        match opened.state == state {
            true => Ok(Arc::new(Disk(opened.disk))),
            false => Err(Error::new(ErrorKind::Io, HAS_CHANGED)),
        }
    }
}

/// One sentence for what is the matter with a source.
pub(crate) fn failed(trouble: &Trouble) -> Error {
    match trouble {
        Trouble::Spec(bad) => Error::new(ErrorKind::Invalid, told(bad)),
        Trouble::Disk(error) => of_disk(error),
    }
}

/// One sentence for what is wrong with a description.
#[must_use]
pub fn told(bad: &BadSpec) -> String {
    match bad {
        BadSpec::NotJson => "the description of the source is no JSON object".to_owned(),
        BadSpec::Missing(what) => format!("the description of the source lacks {what}"),
        BadSpec::Unknown(what) => format!("the {what} of the source is not known"),
    }
}

fn of_disk(error: &marcot_foreign::Error) -> Error {
    let kind = match error.kind() {
        marcot_foreign::ErrorKind::Interrupted => ErrorKind::Interrupted,
        _ => ErrorKind::Io,
    };
    Error::new(kind, error.to_string())
}

struct Disk(Arc<dyn Source>);

impl ExternalDisk for Disk {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(offset, buf).map_err(|error| of_disk(&error))
    }

    fn extents(&self, offset: u64, length: u64) -> Result<Vec<Extent>> {
        let found = self.0.extents(offset, length).map_err(|error| of_disk(&error))?;
        let shown = found.into_iter().map(|part| Extent {
            offset: part.offset,
            length: part.length,
            data: part.data,
        });
        Ok(shown.collect())
    }
}
