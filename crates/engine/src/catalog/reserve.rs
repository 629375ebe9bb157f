//! Room that a pool keeps back on its medium, so that a full disk can be emptied again.

use std::path::PathBuf;

use marcot_store::DiskFile;

use super::pool::Pool;
use crate::error::{ErrorKind, Result};

/// Where the whole reserve finds no room, a quarter of it is tried, and so on so many times: the last
/// is still enough for heads.
const RESERVE_SHIFTS: [u32; 3] = [0, 2, 4];

/// Makes a reserve longer. It is written, because room that is only promised can be taken by others.
fn grow_reserve(file: &dyn DiskFile, from: u64, to: u64) -> std::io::Result<()> {
    let zeros = vec![0; (to - from) as usize];
    file.write_at(from, &[&zeros]).and_then(|()| file.sync()).inspect_err(|_| {
        let _ = file.set_length(from);
    })
}

impl Pool {
    /// Does what is needed to make room; on a full disk, with what was kept back for it.
    pub(crate) fn with_reserve<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        match work() {
            Err(error) if error.kind() == ErrorKind::NoSpace && self.give_up_reserve() => {
                let done = work();
                self.keep_reserve();
                done
            }
            done => done,
        }
    }

    fn reserve_path(&self) -> PathBuf {
        self.0.directory.join("reserve")
    }

    /// Keeps some room on the medium back, so that a full disk can be emptied again by removing
    /// snapshots and images, by shrinking and by discarding. Where there is not room for all of it, it
    /// keeps what it can, and the rest is tried again later.
    pub(crate) fn keep_reserve(&self) {
        let path = self.reserve_path();
        let disk = self.disk();
        let file = match disk.open(&path, true) {
            Ok(file) => Ok(file),
            Err(_) => disk.create_new(&path, self.file_mode()),
        };
        let kept = file.and_then(|file| {
            let kept_bytes = file.length()?;
            let wanted = RESERVE_SHIFTS.map(|shift| self.store().limits().reserve_bytes >> shift);
            let mut grown = Ok(());
            for bytes in wanted.into_iter().take_while(|bytes| *bytes > kept_bytes) {
                grown = grow_reserve(&*file, kept_bytes, bytes);
                if grown.is_ok() {
                    break;
                }
            }
            if kept_bytes > 0 { Ok(()) } else { grown }
        });
        if let Err(error) = kept {
            tracing::debug!(pool = %self.name(), %error, "no room for the reserve");
            self.give_up_reserve();
        }
    }

    /// True where something is kept back.
    pub(crate) fn has_reserve(&self) -> bool {
        let file = self.disk().open(&self.reserve_path(), false);
        file.and_then(|file| file.length()).is_ok_and(|bytes| bytes > 0)
    }

    /// Gives the reserve to whoever needs it; true if there was one.
    pub(crate) fn give_up_reserve(&self) -> bool {
        let path = self.reserve_path();
        let Ok(file) = self.disk().open(&path, true) else { return false };
        let held = file.length().is_ok_and(|bytes| bytes > 0);
        // Cut first: what a removal frees may come free some time later.
        let cut = file.set_length(0).and_then(|()| file.sync());
        cut.and_then(|()| self.disk().remove_file(&path)).is_ok() && held
    }
}
