//! A machine at work: it opens images, uses them, and runs commands, whatever the others do meanwhile.
//!
//! Owners that were replaced go on, and their answers are judged like all others. Errors are no violations, because
//! machines are in each other's way and the service fails. But an owner that the head names never meets damage.

use std::collections::BTreeMap;
use std::sync::Arc;

use marcot::{CloneOptions, CreateOptions, ErrorKind, ImageId, Namespace, Pool, Store};

use super::Machines;
use super::family::{BLOCK, BLOCKS, Family, Known, POOLS};
use super::lineage::Lineage;
use super::session::{Act, Ended, Session, look_at};
use crate::model::Bytes;
use crate::random::Rng;
use crate::rules::{Rule, Violation, violation};

/// Images at most.
const IMAGES_MAX: usize = 5;
/// Snapshots of an image at most.
const SNAPSHOTS_MAX: usize = 3;

/// What users did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "counts of what is named")]
pub struct Done {
    pub acts: u64,
    pub errors: u64,
    pub openings: u64,
    pub flushes: u64,
    pub clones: u64,
    pub removals: u64,
    pub collections: u64,
}

/// See the module.
pub struct User {
    machine: usize,
    machines: Arc<Machines>,
    family: Family,
    rng: Rng,
    /// The life of the machine in which it works.
    life: u64,
    /// The images that it has open.
    sessions: BTreeMap<u64, Session>,
    /// What it did.
    pub done: Done,
    /// What it has found.
    pub wrong: Option<Violation>,
}

/// The names that an image may have.
#[must_use]
pub fn names(image: u64) -> [String; 2] {
    [format!("i{image}"), format!("r{image}")]
}

impl User {
    /// A user of a machine.
    #[must_use]
    pub fn new(machine: usize, machines: &Arc<Machines>, family: &Family, rng: Rng) -> Self {
        let (machines, family) = (Arc::clone(machines), family.clone());
        let (sessions, done) = (BTreeMap::new(), Done::default());
        let life = machines.service().life(machine);
        Self { machine, machines, family, rng, life, sessions, done, wrong: None }
    }

    /// Does so many things, unless something is wrong.
    pub fn work(&mut self, count: u64) {
        self.life = self.machines.service().life(self.machine);
        for _ in 0..count {
            if self.wrong.is_some() {
                return;
            }
            self.done.acts += 1;
            self.wrong = self.step().err();
        }
    }

    /// The process is gone, with all that it had open. `is_killed`: its disk is as it has left it.
    pub fn is_dead(&mut self, is_killed: bool) {
        for session in std::mem::take(&mut self.sessions).into_values() {
            if is_killed {
                session.was_killed();
            }
        }
    }

    /// Closes everything.
    ///
    /// # Errors
    /// A violation.
    pub fn close_all(&mut self) -> Result<(), Violation> {
        for (image, session) in std::mem::take(&mut self.sessions) {
            let closed = session.close();
            self.forgive(Some(image), closed)?;
        }
        Ok(())
    }

    /// Goes on after an error.
    fn forgive<T>(
        &mut self,
        image: Option<u64>,
        result: Result<T, Ended>,
    ) -> Result<Option<T>, Violation> {
        let error = match result {
            Ok(done) => return Ok(Some(done)),
            Err(Ended::Violation(violation)) => return Err(violation),
            Err(Ended::Error(error)) => error,
        };
        self.done.errors += 1;
        let known = image.and_then(|image| self.family.get(image));
        if let Some(Known { pool, id: Some(id), removals: 0, .. }) = known
            && error.kind() == ErrorKind::Corrupt
            && self.life == self.machines.service().life(self.machine)
            && self.machines.names(pool, id, self.machines.host(self.machine))
        {
            return violation(Rule::I2, format!("the owner meets damage: {}", error.sentence()));
        }
        Ok(None)
    }

    fn opened(&self, pool: &str) -> Result<(Store, Pool), Ended> {
        let store = self.machines.store(self.machine)?;
        let pool = store.pool(pool)?;
        Ok((store, pool))
    }

    /// One of the images that exist for sure.
    fn image(&mut self) -> Option<(u64, Known, ImageId)> {
        let images = self.family.images();
        let existing = images.all.iter().filter_map(|(image, known)| {
            let id = known.existing()?;
            Some((*image, known.clone(), id))
        });
        let mut existing: Vec<_> = existing.collect();
        match existing.len() as u64 {
            0 => None,
            some => Some(existing.swap_remove(self.rng.below(some) as usize)),
        }
    }

    /// One of the images that it has open.
    fn open_image(&mut self) -> Option<u64> {
        let open: Vec<u64> = self.sessions.keys().copied().collect();
        match open.len() as u64 {
            0 => None,
            some => Some(open[self.rng.below(some) as usize]),
        }
    }

    fn step(&mut self) -> Result<(), Violation> {
        if self.family.images().count() == 0 {
            return self.create();
        }
        match self.rng.below(64) {
            0..2 => self.create(),
            2..10 => self.open(),
            10..14 => self.snapshot(),
            14..16 => self.remove_snapshot(),
            16..19 => self.protection(),
            19..23 => self.clone_snapshot(),
            23..25 => self.flatten(),
            25..27 => self.remove(),
            27..29 => self.rename(),
            29..31 => self.trash(),
            31..34 => self.collect(),
            34..38 => self.close(),
            38..41 => self.look(),
            _ => self.use_it(),
        }
    }

    fn create(&mut self) -> Result<(), Violation> {
        let pool = POOLS[self.rng.below(POOLS.len() as u64) as usize];
        let content = Arc::new(vec![0; (BLOCKS * BLOCK) as usize]);
        let Some(image) = self.begin(pool, content, false) else { return Ok(()) };
        let create = || -> Result<ImageId, Ended> {
            let (_, pool) = self.opened(pool)?;
            Ok(pool.create(&*names(image)[0], &CreateOptions::sized(BLOCKS * BLOCK))?)
        };
        let created = create();
        let created = self.forgive(None, created)?;
        self.family.note(image, |known| known.id = created);
        Ok(())
    }

    /// Begins the history of a new image.
    fn begin(&self, pool: &'static str, content: Bytes, is_clone: bool) -> Option<u64> {
        let mut images = self.family.images();
        if images.count() >= IMAGES_MAX {
            return None;
        }
        let (lineage, _) = Lineage::begin(self.machines.host(self.machine), content);
        let (snaps, removals, is_gone) = (Vec::new(), 0, false);
        let known = Known { pool, id: None, lineage, snaps, is_clone, removals, is_gone };
        let image = images.give();
        images.all.insert(image, known);
        Some(image)
    }

    fn open(&mut self) -> Result<(), Violation> {
        self.open_some().map(drop)
    }

    /// Opens an image, perhaps one that another machine has open.
    fn open_some(&mut self) -> Result<Option<u64>, Violation> {
        let Some((image, known, id)) = self.image() else { return Ok(None) };
        if self.sessions.contains_key(&image) {
            return Ok(Some(image));
        }
        let by_force = self.rng.one_in(2);
        let open = || -> Result<Session, Ended> {
            let (_, pool) = self.opened(known.pool)?;
            let open = || if by_force { pool.take_over(id) } else { pool.open(id) };
            Session::open(&self.machines, self.machine, &known.lineage, id, open)
        };
        let opened = open();
        let Some(session) = self.forgive(Some(image), opened)? else { return Ok(None) };
        self.done.openings += 1;
        self.sessions.insert(image, session);
        Ok(Some(image))
    }

    /// An image that it has open, perhaps one that is opened for that.
    fn some_open(&mut self) -> Result<Option<u64>, Violation> {
        match self.open_image() {
            Some(image) if !self.rng.one_in(6) => Ok(Some(image)),
            _ => self.open_some(),
        }
    }

    /// Acts on an image that is open. Where that fails, the image may be given up.
    fn act(&mut self, image: u64, act: Act) -> Result<bool, Violation> {
        let Some(session) = self.sessions.get_mut(&image) else { return Ok(false) };
        let done = session.act(act);
        let done = self.forgive(Some(image), done)?.is_some();
        if !done && self.rng.one_in(2) {
            self.sessions.remove(&image);
        }
        Ok(done)
    }

    fn use_it(&mut self) -> Result<(), Violation> {
        let Some(image) = self.some_open()? else { return Ok(()) };
        for _ in 0..1 + self.rng.below(4) {
            let block = self.rng.below(BLOCKS);
            let blocks = 1 + self.rng.below((BLOCKS - block).min(12));
            let act = match self.rng.below(16) {
                0..7 => Act::Write { block, blocks, salt: self.family.images().give() },
                7..11 => Act::Flush,
                11 => Act::Checkpoint,
                12 => Act::Reclaim,
                13 => Act::Background,
                _ => Act::Read,
            };
            if !self.act(image, act)? {
                break;
            }
            self.done.flushes += u64::from(act == Act::Flush);
        }
        Ok(())
    }

    fn snapshot(&mut self) -> Result<(), Violation> {
        let Some(image) = self.some_open()? else { return Ok(()) };
        let Some(session) = self.sessions.get(&image) else { return Ok(()) };
        if self.family.get(image).is_none_or(|known| known.snaps.len() >= SNAPSHOTS_MAX) {
            return Ok(());
        }
        let (number, content) = (self.family.images().give(), session.content());
        if self.act(image, Act::Snapshot(number))? {
            self.family.note(image, |known| known.snaps.push((number, content)));
        }
        Ok(())
    }

    /// A snapshot of an image that it has open.
    fn snap(&mut self) -> Result<Option<(u64, u64)>, Violation> {
        let Some(image) = self.some_open()? else { return Ok(None) };
        let snaps = self.family.get(image).map(|known| known.snaps).unwrap_or_default();
        Ok(match snaps.len() as u64 {
            0 => None,
            some => Some((image, snaps[self.rng.below(some) as usize].0)),
        })
    }

    fn remove_snapshot(&mut self) -> Result<(), Violation> {
        let Some((image, number)) = self.snap()? else { return Ok(()) };
        self.family.note(image, |known| known.snaps.retain(|snap| snap.0 != number));
        self.act(image, Act::RemoveSnapshot(number)).map(drop)
    }

    fn protection(&mut self) -> Result<(), Violation> {
        let Some((image, number)) = self.snap()? else { return Ok(()) };
        let protect = self.rng.one_in(2);
        let act = if protect { Act::Protect(number) } else { Act::Unprotect(number) };
        self.act(image, act).map(drop)
    }

    fn clone_snapshot(&mut self) -> Result<(), Violation> {
        let Some((_, parent, parent_id)) = self.image() else { return Ok(()) };
        let snaps = parent.snaps.len() as u64;
        if snaps == 0 {
            return Ok(());
        }
        let (snap, content) = parent.snaps[self.rng.below(snaps) as usize].clone();
        let pool = POOLS[self.rng.below(POOLS.len() as u64) as usize];
        let format = 1 + self.rng.below(2) as u32;
        let Some(image) = self.begin(pool, content, true) else { return Ok(()) };
        let clone = || -> Result<ImageId, Ended> {
            let (store, parent) = self.opened(parent.pool)?;
            let pool = store.pool(pool)?;
            let (snap, options) = (format!("s{snap}"), CloneOptions::new().format(format));
            Ok(parent.snapshot(parent_id, &snap).clone_to(&pool, &*names(image)[0], &options)?)
        };
        let cloned = clone();
        let cloned = self.forgive(None, cloned)?;
        self.done.clones += u64::from(cloned.is_some());
        self.family.note(image, |known| known.id = cloned);
        Ok(())
    }

    fn flatten(&mut self) -> Result<(), Violation> {
        let Some(image) = self.some_open()? else { return Ok(()) };
        match self.family.get(image).is_some_and(|known| known.is_clone) {
            true => self.act(image, Act::Flatten).map(drop),
            false => Ok(()),
        }
    }

    fn remove(&mut self) -> Result<(), Violation> {
        let Some((image, known, id)) = self.image() else { return Ok(()) };
        if self.family.images().count() < 3 {
            return Ok(());
        }
        if let Some(session) = self.sessions.remove(&image) {
            let closed = session.close();
            self.forgive(Some(image), closed)?;
        }
        self.family.note(image, |known| known.removals += 1);
        let remove = || -> Result<(), Ended> {
            let (store, pool) = self.opened(known.pool)?;
            Ok(store.remove_image(&pool, id, &mut |_, _| {})?)
        };
        let removed = remove();
        let is_refused = matches!(&removed, Err(Ended::Error(error)) if is_refusal(error.kind()));
        let is_gone = self.forgive(None, removed)?.is_some();
        if is_gone {
            known.lineage.removed();
        }
        self.done.removals += u64::from(is_gone);
        self.family.note(image, |known| {
            known.is_gone |= is_gone;
            known.removals -= u64::from(is_refused);
        });
        Ok(())
    }

    fn rename(&mut self) -> Result<(), Violation> {
        let Some((image, known, _)) = self.image() else { return Ok(()) };
        let mut names = names(image);
        if self.rng.one_in(2) {
            names.reverse();
        }
        let rename = || -> Result<(), Ended> {
            let (_, pool) = self.opened(known.pool)?;
            Ok(pool.rename(&*names[0], &names[1])?)
        };
        let renamed = rename();
        self.forgive(None, renamed).map(drop)
    }

    /// Moves an image to the trash, or takes it back.
    fn trash(&mut self) -> Result<(), Violation> {
        let Some((image, known, id)) = self.image() else { return Ok(()) };
        let name = &names(image)[self.rng.below(2) as usize];
        let restores = self.rng.one_in(2);
        let moved = || -> Result<(), Ended> {
            let (_, pool) = self.opened(known.pool)?;
            match restores {
                true => drop(pool.restore(&Namespace::DEFAULT, id, None)?),
                false => pool.move_to_trash(id, name.as_str(), None)?,
            }
            Ok(())
        };
        let moved = moved();
        self.forgive(None, moved).map(drop)
    }

    fn collect(&mut self) -> Result<(), Violation> {
        let pool = POOLS[self.rng.below(POOLS.len() as u64) as usize];
        let collect = || -> Result<(), Ended> {
            let (store, pool) = self.opened(pool)?;
            Ok(store.gc(&pool, &mut |_, _| {}).map(drop)?)
        };
        let collected = collect();
        self.done.collections += u64::from(self.forgive(None, collected)?.is_some());
        Ok(())
    }

    /// Closes an image, or leaves it as it is.
    fn close(&mut self) -> Result<(), Violation> {
        let Some(image) = self.open_image() else { return Ok(()) };
        let Some(session) = self.sessions.remove(&image) else { return Ok(()) };
        if self.rng.one_in(4) {
            session.was_killed();
            return Ok(());
        }
        let closed = session.close();
        self.forgive(Some(image), closed).map(drop)
    }

    fn look(&mut self) -> Result<(), Violation> {
        let Some((_, known, id)) = self.image() else { return Ok(()) };
        let look = || -> Result<(), Ended> {
            let (_, pool) = self.opened(known.pool)?;
            look_at(&pool, self.machine, id, &known.lineage)
        };
        let looked = look();
        // Owners remove what readers of an earlier head may still need.
        self.forgive(None, looked).map(drop)
    }
}

/// True where a command was refused and has changed nothing.
fn is_refusal(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Busy | ErrorKind::Owned | ErrorKind::HasSnapshots | ErrorKind::HasChildren
    )
}
