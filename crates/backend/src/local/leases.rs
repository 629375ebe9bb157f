//! Leases as locks on files, which the operating system ends with the process.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use marcot_store::{Lock, LockMode};

use super::{Place, layout};
use crate::{Lease, Leases};

/// Limit on the size of a holder's note that is read, in bytes.
const HOLDER_BYTES_MAX: usize = 256;

pub(super) struct LocalLeases(pub Arc<Place>);

impl LocalLeases {
    fn path(&self, lease: Lease) -> PathBuf {
        layout::lease(&self.0.directory, lease)
    }
}

impl Leases for LocalLeases {
    fn take(&self, lease: Lease, mode: LockMode, wait: bool) -> io::Result<Option<Box<dyn Lock>>> {
        self.0.disk.lock(&self.path(lease), mode, wait)
    }

    fn was_taken(&self, lease: Lease) -> bool {
        self.0.disk.mode(&self.path(lease)).is_ok()
    }

    fn note_holder(&self, lease: Lease, holder: &str) {
        if let Ok(file) = self.0.disk.open(&self.path(lease), true) {
            let _ = file.set_length(0);
            let _ = file.write_at(0, &[format!("{holder}\n").as_bytes()]);
        }
    }

    fn holder(&self, lease: Lease) -> Option<String> {
        let file = self.0.disk.open(&self.path(lease), false).ok()?;
        let mut bytes = vec![0; HOLDER_BYTES_MAX];
        let n = file.read_at(0, &mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes[..n]).trim().to_owned())
    }

    fn forget(&self, lease: Lease) {
        let _ = self.0.disk.remove_file(&self.path(lease));
    }

    fn show(&self, lease: Lease) -> String {
        self.path(lease).display().to_string()
    }
}
