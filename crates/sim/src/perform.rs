//! Performs operations with the engine, as the command line and the server would.

use std::sync::Arc;

use marcot::{
    BlockDevice, CloneOptions, Completion, CreateOptions, ErrorKind, Housekeeping, Namespace, Write,
};

use crate::model::{self, Bytes, snap_name};
use crate::observe;
use crate::operations::{Act, Operation, Profile};
use crate::rules::{Rule, violation};
use crate::runner::{Done, Runner};

/// Limit on the rounds of background work. More of them mean a mistake.
const BACKGROUND_ROUNDS_MAX: u32 = 10_000;
/// Pauses in which the image is idle: one for each checkpoint that its work waits for, and one more.
const IDLE_PAUSES: u32 = 6;

impl Runner {
    pub(crate) fn perform(&mut self, operation: &Operation) -> Done {
        match operation {
            Operation::Create { slot, pool, size } => {
                let home = self.home(*slot);
                let options = CreateOptions::sized(*size);
                let pool = self.pool(home, usize::from(*pool))?;
                pool.create(format!("i{slot}"), &options)?;
            }
            Operation::Write { slot, offset, length, salt } => {
                let (offset, length) = self.model.images[slot].clip(*offset, *length);
                let data = model::data(*salt, length);
                self.write(*slot, &[Write { offset, data: &data }], *salt)?;
            }
            Operation::Fua { slot, offset, length, salt } => {
                let (offset, length) = self.model.images[slot].clip(*offset, *length);
                self.image(*slot)?.write_at(offset, &model::data(*salt, length))?;
                self.image(*slot)?.flush()?;
            }
            Operation::Batch { slot, writes, salt } => {
                let image = &self.model.images[slot];
                let writes: Vec<_> = writes.iter().map(|(o, l)| image.clip(*o, *l)).collect();
                let data: Vec<Vec<u8>> = (0u64..)
                    .zip(&writes)
                    .map(|(i, (_, l))| model::data(salt.wrapping_add(i), *l))
                    .collect();
                let batch: Vec<Write<'_>> = writes
                    .iter()
                    .zip(&data)
                    .map(|((offset, _), data)| Write { offset: *offset, data })
                    .collect();
                self.write(*slot, &batch, *salt)?;
            }
            Operation::Fill { slot, salt } => {
                let data = model::data(*salt, model::FILL_BYTES);
                let image = self.image(*slot)?;
                for writes in model::FILL_WRITES {
                    image.write_batch(&vec![Write { offset: 0, data: &data }; writes])?;
                }
            }
            Operation::Discard { slot, offset, length } => {
                let (offset, length) = self.model.images[slot].clip(*offset, *length);
                self.image(*slot)?.discard(offset, length)?;
            }
            Operation::Flush { slot } => self.image(*slot)?.flush()?,
            Operation::Read { slot } => self.read(*slot)?,
            Operation::Background { slot } => {
                let image = self.image(*slot)?;
                let mut rounds = 0;
                // A server does the same: it waits for checkpoints, and calls the idle image after a while.
                for _ in 0..IDLE_PAUSES {
                    while image.background_step()? {
                        rounds += 1;
                        if rounds > BACKGROUND_ROUNDS_MAX {
                            violation(Rule::Model, "background work has no end")?;
                        }
                    }
                    image.give_space_back();
                }
                image.rest()?;
            }
            Operation::Close { slot } => self.close(*slot)?,
            Operation::Move { slot } => {
                self.close(*slot)?;
                let home = self.home(*slot);
                self.homes.insert(*slot, 1 - home);
            }
            Operation::Contend { slot } => self.contend(*slot)?,
            Operation::Stale { slot, successor, stale } => {
                self.stale_owner(*slot, successor, stale)?;
            }
            Operation::Gc { pool } => {
                let pool = self.pool(0, usize::from(*pool))?;
                self.store(0)?.gc(&pool, &mut |_, _| {})?;
            }
            Operation::Check => {
                let store = self.store(0)?;
                if matches!(self.settings.profile, Profile::Crashes | Profile::Space) {
                    observe::check(&store, false)?;
                }
            }
            Operation::Remove { slot } => {
                self.close(*slot)?;
                let home = self.home(*slot);
                let (pool, id) = self.find(home, *slot)?;
                self.store(home)?.remove_image(&pool, id, &mut |_, _| {})?;
            }
            Operation::Rename { slot } => {
                let (home, image) = (self.home(*slot), self.model.images[slot].clone());
                self.pool(home, image.pool)?.rename(&image.name, &format!("{}r", image.name))?;
            }
            Operation::Trash { slot } => {
                let (home, name) = (self.home(*slot), self.model.images[slot].name.clone());
                let (pool, id) = self.find(home, *slot)?;
                pool.move_to_trash(id, name, None)?;
            }
            Operation::Restore { slot, renamed } => {
                let (home, name) = (self.home(*slot), self.model.images[slot].name.clone());
                let (pool, id) = self.find(home, *slot)?;
                let new = renamed.then(|| format!("{name}r"));
                pool.restore(&Namespace::DEFAULT, id, new.as_deref())?;
            }
            Operation::Clone { slot, snap, to, pool, format } => {
                self.clone_snapshot(*slot, *snap, *to, usize::from(*pool), *format)?;
            }
            other => self.command(other)?,
        }
        Ok(())
    }

    /// Operations that are one call on an open image.
    fn command(&mut self, operation: &Operation) -> marcot::Result<()> {
        match operation {
            Operation::Snapshot { slot, snap } => {
                self.image(*slot)?.snapshot(&snap_name(*snap)).map(drop)
            }
            Operation::Protect { slot, snap } => self.image(*slot)?.protect(&snap_name(*snap)),
            Operation::Unprotect { slot, snap } => self.image(*slot)?.unprotect(&snap_name(*snap)),
            Operation::RemoveSnapshot { slot, snap, force } => {
                self.image(*slot)?.remove_snapshot(&snap_name(*snap), *force)
            }
            Operation::Rollback { slot, snap } => self.image(*slot)?.roll_back(&snap_name(*snap)),
            Operation::Flatten { slot } => self.image(*slot)?.flatten(),
            Operation::FlattenPart { slot } => self.image(*slot)?.flatten_part().map(drop),
            Operation::Resize { slot, size } => self.image(*slot)?.resize(*size, true),
            Operation::Reclaim { slot } => self.image(*slot)?.reclaim().map(drop),
            Operation::Checkpoint { slot } => self.image(*slot)?.take_checkpoint(),
            _ => Ok(()),
        }
    }

    fn read(&mut self, slot: u8) -> Done {
        let want = Arc::clone(self.model.images[&slot].latest());
        let image = self.image(slot)?;
        let mut bytes = vec![0xAA; image.size_bytes() as usize];
        image.read_at(0, &mut bytes)?;
        if bytes != *want {
            violation(Rule::I2, format!("image {slot} reads otherwise than it was written"))?;
        }
        Ok(())
    }

    fn clone_snapshot(
        &mut self,
        slot: u8,
        snap: u8,
        to: u8,
        pool: usize,
        format: u8,
    ) -> marcot::Result<()> {
        let (home, image) = (self.home(to), self.model.images[&slot].clone());
        let name = snap_name(snap);
        let owner = self.home(slot);
        if format == 2 && self.processes[owner].images.contains_key(&slot) {
            // As the command line does where the parent has an owner.
            self.image(slot)?.mark_shared(&name)?;
        }
        let (parent, dest) = (self.pool(home, image.pool)?, self.pool(home, pool)?);
        let id = parent.find(&image.name)?;
        let options = CloneOptions::new().format(u32::from(format));
        parent.snapshot(id, &name).clone_to(&dest, format!("i{to}"), &options)?;
        Ok(())
    }

    /// Another process tries in vain to become the owner, and reads the image.
    fn contend(&mut self, slot: u8) -> Done {
        self.image(slot)?;
        let other = 1 - self.home(slot);
        match self.open_image(other, slot) {
            Ok(_) => violation(Rule::I6, format!("image {slot} has two owners"))?,
            Err(error) if error.kind() == ErrorKind::Owned => {}
            Err(error) => return Err(error.into()),
        }
        let bytes = self.read_as_reader(other, slot)?;
        let image = &self.model.images[&slot];
        // Where the log is damaged, a reader sees the state before the damage.
        let earlier = self.model.log_may_rot && image.history.contains(&bytes);
        if bytes != *image.latest() && !earlier {
            violation(Rule::I1, format!("a reader of image {slot} sees another state"))?;
        }
        Ok(())
    }

    fn read_as_reader(&mut self, process: usize, slot: u8) -> marcot::Result<Bytes> {
        let (pool, id) = self.find(process, slot)?;
        let mut image = pool.open_read_only(id)?;
        let mut bytes = vec![0xAA; image.size_bytes() as usize];
        image.read_at(0, &mut bytes)?;
        Ok(Arc::new(bytes))
    }

    /// Stops the owner, takes its lock away, lets a successor act, and wakes the owner up.
    fn stale_owner(&mut self, slot: u8, successor: &[Act], stale: &[Act]) -> Done {
        self.image(slot)?;
        let home = self.home(slot);
        let mut old = self.processes[home].images.remove(&slot).expect("open");
        self.machine.steal_locks(home, &old.pool().image_directory(old.id()));
        self.homes.insert(slot, 1 - home);
        // From the successor's first change of the head on, nothing that the old owner writes counts.
        for act in successor {
            self.act(slot, *act)?;
        }
        self.expect_crashes(vec![self.model.clone()]);
        for act in stale {
            let size = old.size_bytes();
            let _ = match act {
                Act::Write(salt) => old
                    .write_at(0, &model::data(*salt, size.min(model::FILL_BYTES)))
                    .and_then(|()| old.flush()),
                Act::Snapshot => {
                    let name = "stale".to_owned();
                    old.snapshot(&name).map(drop)
                }
                Act::Checkpoint => old.take_checkpoint(),
                Act::Reclaim => old.reclaim().map(drop),
                Act::Close => break,
            };
            self.compare_reader(home, slot)?;
        }
        drop(old);
        self.read(slot)?;
        self.compare_reader(home, slot)
    }

    /// Writes, and waits for the acknowledgement as a front end does. Other things happen meanwhile.
    fn write(&mut self, slot: u8, writes: &[Write<'_>], salt: u64) -> Done {
        let image = self.image(slot)?;
        let Some(number) = image.write_batch_async(writes)? else { return Ok(()) };
        let meanwhile = match salt % 4 {
            0 => image.flush(),
            1 => image.read_at(writes[0].offset, &mut vec![0; writes[0].data.len()]),
            2 => image.background_step().map(drop),
            _ => Ok(()),
        };
        // The disk returns completions after some calls. If something else failed meanwhile, the write is still
        // under way, and completes.
        loop {
            if let Some(Completion::Written(below)) = image.take_completion()
                && below? > number
            {
                return Ok(meanwhile?);
            }
        }
    }

    fn compare_reader(&mut self, process: usize, slot: u8) -> Done {
        let bytes = self.read_as_reader(process, slot)?;
        if !self.model.images[&slot].history.contains(&bytes) {
            violation(
                Rule::I6,
                format!("a reader of image {slot} accepts what a stale owner wrote"),
            )?;
        }
        Ok(())
    }

    /// Performs one act of an image's owner, in the engine and in the model.
    fn act(&mut self, slot: u8, act: Act) -> Done {
        let unused =
            || (0..u8::MAX).find(|s| self.model.images[&slot].snap(&snap_name(*s)).is_none());
        let operation = match act {
            Act::Write(salt) => Operation::Fua { slot, offset: 0, length: 5000, salt },
            Act::Snapshot => Operation::Snapshot { slot, snap: unused().unwrap_or(0) },
            Act::Checkpoint => Operation::Checkpoint { slot },
            Act::Reclaim => Operation::Reclaim { slot },
            Act::Close => Operation::Close { slot },
        };
        let Some(plan) = self.model.plan(&operation) else { return Ok(()) };
        self.expect_crashes(plan.interrupted.clone());
        self.perform(&operation)?;
        self.model = plan.done;
        self.learn(&operation)?;
        Ok(())
    }
}
