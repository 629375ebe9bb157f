//! Management commands on an open image.

use super::Image;
use crate::command::{Command, ExtentRow, READ_BYTES_MAX, Reply, Watcher};
use crate::error::{ErrorKind, Result, fail};

/// Most extents of one answer. In JSON they take less than 100 bytes each, and an answer that crosses a
/// control socket has at most 32 MiB.
const EXTENTS_MAX: usize = 1 << 18;
/// Longest metadata key or value in bytes.
const META_BYTES_MAX: usize = 64 << 10;

impl Image {
    pub(super) fn run_command(
        &mut self,
        command: &Command,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Reply> {
        // Where that fails, the image is poisoned, and says so to what changes it.
        let _ = self.journal.finish(&mut self.in_flight);
        let of_data = matches!(
            command,
            Command::Read { .. } | Command::Write { .. } | Command::Discard { .. } | Command::Flush
        );
        if !of_data {
            self.settle()?;
        }
        match command {
            Command::Checkpoint => self.checkpoint()?,
            Command::SnapCreate { name } | Command::SnapCreateWith { name, .. } => {
                let id = self.snap_create(name)?;
                return Ok(Reply::Snapshot { id });
            }
            Command::SnapRemove { name, force } => self.snap_remove(name, *force)?,
            Command::SnapRename { from, to } => self.snap_rename(from, to)?,
            Command::SnapRollback { name } => self.snap_rollback(name)?,
            Command::SnapProtect { name } => self.snap_protect(name)?,
            Command::SnapUnprotect { name } => self.snap_unprotect(name)?,
            Command::MarkShared { name } => self.mark_shared(name)?,
            Command::Resize { size_bytes, allow_shrink } => {
                self.resize(*size_bytes, *allow_shrink)?;
            }
            Command::Flatten => self.flatten(progress)?,
            Command::FlattenPart => {
                let (left_blocks, more) = self.flatten_part()?;
                return Ok(Reply::Copied { left_blocks, more });
            }
            Command::MetaSet { key, value } => self.meta_set(key, value)?,
            Command::Tidy => self.tidy_snapshots()?,
            Command::Usage => return self.usage().map(|rows| Reply::Usage { rows }),
            Command::Diff { from_snap, to_snap, offset, length } => {
                let (from, to) = (from_snap.as_deref(), to_snap.as_deref());
                let extents = self.diff(from, to, *offset, *length)?;
                return Ok(Reply::Diff { extents });
            }
            Command::Read { offset, length } => {
                if *length > READ_BYTES_MAX {
                    return fail(ErrorKind::Invalid, "too much to read at once");
                }
                let mut data = vec![0; *length as usize];
                self.read_at(*offset, &mut data)?;
                return Ok(Reply::Data { data });
            }
            Command::Write { offset, data } => self.write_at(*offset, data)?,
            Command::Discard { offset, length } => self.discard_range(*offset, *length)?,
            Command::Flush => self.flush()?,
            Command::Extents { offset, length } => {
                let extents = self.extents_of(*offset, *length, EXTENTS_MAX)?;
                let extents = extents.into_iter().map(ExtentRow::from).collect();
                return Ok(Reply::Extents { extents });
            }
            Command::Reclaim => {
                self.check_owner()?;
                self.compact_fully()?;
                let bytes = self.reclaim_unnamed()?;
                return Ok(Reply::Reclaimed { bytes });
            }
            Command::Status => {
                let pid = self.identity.pool.process_id();
                let watchers = vec![Watcher { pid, usage: "library".to_owned() }];
                return Ok(Reply::Status { watchers });
            }
            // Whoever keeps images open without using them decides before it comes here.
            Command::GiveWay => {
                return fail(
                    ErrorKind::Busy,
                    format!("process {}", self.identity.pool.process_id()),
                );
            }
        }
        Ok(Reply::Done)
    }

    fn meta_set(&mut self, key: &str, value: &str) -> Result<()> {
        self.check_owner()?;
        if key.is_empty() || key.len() > META_BYTES_MAX || value.len() > META_BYTES_MAX {
            return fail(ErrorKind::Invalid, "metadata keys and values have 1 to 65536 bytes");
        }
        self.publish(|head| {
            head.metadata.retain(|m| m.key != *key);
            if !value.is_empty() {
                let (key, value) = (key.to_owned(), value.to_owned());
                head.metadata.push(marcot_format::record::MetaRecord { key, value });
            }
        })
    }
}
