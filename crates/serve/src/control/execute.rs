//! Carrying out commands on an open image: from the words of the control protocol to the engine's calls.

use marcot::{Error, ErrorKind, FlattenPart, Image, Result, SnapId};

use super::command::{Command, GroupStep, MigrationStep, READ_BYTES_MAX, Reply, Watcher};

/// Most extents of one answer. In JSON they take less than 100 bytes each, and an answer that crosses a
/// control socket has at most 32 MiB.
const EXTENTS_MAX: usize = 1 << 18;

/// What commands can be given to: an open image, as its owner has it.
pub trait Execute {
    /// Carries out a command. `progress` gets (done, total) of those that take long.
    ///
    /// # Errors
    /// As the command says.
    fn execute(&mut self, command: &Command, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply>;
}

fn copied(part: FlattenPart) -> Reply {
    let FlattenPart { left_blocks, more, waits } = part;
    Reply::Copied { left_blocks, more, waits }
}

impl Execute for Image {
    fn execute(&mut self, command: &Command, progress: &mut dyn FnMut(u64, u64)) -> Result<Reply> {
        match command {
            Command::Checkpoint => self.take_checkpoint()?,
            Command::SnapCreate { name } | Command::SnapCreateWith { name, .. } => {
                let SnapId(id) = self.snapshot(name)?;
                return Ok(Reply::Snapshot { id });
            }
            Command::SnapRemove { name, force } => self.remove_snapshot(name, *force)?,
            Command::SnapRename { from, to } => self.rename_snapshot(from, to)?,
            Command::SnapRollback { name } => self.roll_back(name)?,
            Command::SnapProtect { name } => self.protect(name)?,
            Command::SnapUnprotect { name } => self.unprotect(name)?,
            Command::MarkShared { name } => self.mark_shared(name)?,
            Command::Resize { size_bytes, allow_shrink } => {
                self.resize(*size_bytes, *allow_shrink)?;
            }
            Command::Flatten => self.flatten_with(progress)?,
            Command::FlattenPart => {
                return Ok(copied(self.flatten_part()?));
            }
            Command::MetaSet { key, value } => self.set_metadata(key, value)?,
            Command::FeaturesChange { names, enable } => self.change_features(names, *enable)?,
            Command::SnapLimit { limit } => self.limit_snapshots(*limit)?,
            Command::LockAdd { lock } => self.add_lock(&lock.clone().into())?,
            Command::LockRemove { client, cookie } => self.remove_lock(*client, cookie)?,
            Command::Tidy => self.tidy()?,
            Command::Usage => {
                let rows = self.usage()?.into_iter().map(Into::into).collect();
                return Ok(Reply::Usage { rows });
            }
            Command::Diff { from_snap, to_snap, offset, length } => {
                let (from, to) = (from_snap.as_deref(), to_snap.as_deref());
                let extents = self.diff(from, to, *offset, *length)?;
                return Ok(Reply::Diff { extents: extents.into_iter().map(Into::into).collect() });
            }
            Command::Read { offset, length } => {
                if *length > READ_BYTES_MAX {
                    return Err(Error::new(ErrorKind::Invalid, "too much to read at once"));
                }
                let mut data = vec![0; *length as usize];
                self.read_at(*offset, &mut data)?;
                return Ok(Reply::Data { data });
            }
            Command::Write { offset, data } => self.write_at(*offset, data)?,
            Command::Discard { offset, length } => self.discard(*offset, *length)?,
            Command::Flush => self.flush()?,
            Command::Extents { offset, length } => {
                let extents = self.extents(*offset, *length, EXTENTS_MAX)?;
                let extents = extents.into_iter().map(Into::into).collect();
                return Ok(Reply::Extents { extents });
            }
            Command::Sparsify { offset, length, piece_bytes } => {
                let bytes = self.sparsify(*offset, *length, *piece_bytes)?;
                return Ok(Reply::Reclaimed { bytes });
            }
            Command::Reclaim => return Ok(Reply::Reclaimed { bytes: self.reclaim()? }),
            Command::Status => {
                let pid = std::process::id();
                let watcher = Watcher { pid, usage: "library".to_owned(), ..Watcher::default() };
                return Ok(Reply::Status { watchers: vec![watcher] });
            }
            Command::Migration { step } => match step {
                MigrationStep::CopyPart => return Ok(copied(self.migrate_part()?)),
                MigrationStep::Finish => self.migrate(progress)?,
                MigrationStep::Verify => self.check_migrated()?,
                MigrationStep::End => self.end_migration()?,
            },
            Command::ForGroup { step } => match step {
                GroupStep::Create(id) => {
                    let SnapId(id) = self.snapshot_for_group((*id).into())?;
                    return Ok(Reply::Snapshot { id });
                }
                GroupStep::RollBack(id) => self.roll_back_for_group((*id).into())?,
                GroupStep::Remove(id) => self.remove_snapshot_for_group((*id).into())?,
                // Whoever has users quiets them, and keeps them waiting.
                GroupStep::Quiesce { .. } | GroupStep::Hold | GroupStep::Release => {}
            },
            // Whoever keeps images open without using them decides before it comes here.
            Command::GiveWay => {
                let message = format!("process {}", std::process::id());
                return Err(Error::new(ErrorKind::Busy, message));
            }
        }
        Ok(Reply::Done)
    }
}
