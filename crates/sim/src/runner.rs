//! Runs a sequence of operations, tries crashes at its I/Os, and compares with the oracle.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use marcot::{Error, ErrorKind, Image, ImageId, Namespace, Pool, Store};

use crate::crash::{self, Tally};
use crate::disk::{Cut, Machine};
use crate::model::{Model, Plan};
use crate::observe::{self, open_pools};
use crate::operations::{Operation, Profile};
use crate::rules::{PROCESSES, Rule, Settings, Violation, open_store, violation};

/// A run that failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What was violated.
    pub violation: Violation,
    /// Number of the operation, from 0.
    pub step: usize,
    /// I/O before which the crash came; `None` where there was none.
    pub crash: Option<u64>,
    /// The last I/Os, where they were kept.
    pub lines: Vec<String>,
}

/// The outcome of a run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The first violation.
    pub failure: Option<Failure>,
    /// Hash of the trace.
    pub hash: u64,
    /// I/Os of the sequence itself.
    pub ios: u64,
    /// Operations that had something to work on.
    pub operations: u64,
    /// Crashes tried beside the sequence, and those in it.
    pub crashes: u64,
    /// Faults of the medium that hit.
    pub faults: u64,
}

pub(crate) struct Process {
    pub store: Option<Store>,
    pub images: BTreeMap<u8, Image>,
}

pub(crate) struct Runner {
    pub(crate) machine: Arc<Machine>,
    pub(crate) processes: Vec<Process>,
    /// The process that has each image open, or will open it.
    pub(crate) homes: BTreeMap<u8, usize>,
    pub(crate) model: Model,
    pub(crate) settings: Settings,
    /// The states that a crash may lead to now.
    pub(crate) expected: Vec<Model>,
    tally: Arc<Mutex<Tally>>,
    pub(crate) outcome: Outcome,
    lives: u64,
}

pub(crate) type Done = Result<(), Ended>;

/// Why an operation failed.
pub(crate) enum Ended {
    /// An error of the engine.
    Error(Error),
    Violation(Violation),
}

impl From<Error> for Ended {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Violation> for Ended {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// Runs a sequence.
#[must_use]
pub fn run(settings: Settings, operations: &[Operation]) -> Outcome {
    let mut runner = Runner::new(settings);
    let mut step = 0;
    let result = catch_unwind(AssertUnwindSafe(|| {
        runner.set_up()?;
        for (number, operation) in operations.iter().enumerate() {
            step = number;
            if !runner.step(operation)? {
                break;
            }
        }
        runner.finish()
    }));
    runner.finished(step, result)
}

impl Runner {
    fn new(settings: Settings) -> Self {
        let machine = Machine::new(settings.seed, PROCESSES);
        if settings.lines {
            machine.keep_lines();
        }
        let process = || Process { store: None, images: BTreeMap::new() };
        let tally = Tally { one_in: settings.crash_one_in, ..Tally::default() };
        Self {
            machine,
            processes: (0..PROCESSES).map(|_| process()).collect(),
            homes: BTreeMap::new(),
            model: Model { log_may_rot: settings.profile == Profile::Damage, ..Model::default() },
            settings,
            expected: Vec::new(),
            tally: Arc::new(Mutex::new(tally)),
            outcome: Outcome::default(),
            lives: 0,
        }
    }

    fn finished(
        mut self,
        step: usize,
        result: std::thread::Result<Result<(), Violation>>,
    ) -> Outcome {
        self.machine.set_probe(None);
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.outcome.hash = self.machine.hash();
        self.outcome.ios = self.machine.ios();
        self.outcome.faults = self.machine.faults_hit();
        self.outcome.crashes += tally.crashes;
        let violation = match result {
            Ok(Ok(())) => None,
            Ok(Err(violation)) => Some(violation),
            Err(panic) => {
                Some(Violation { rule: Rule::Panic, message: crash::panic_text(&*panic) })
            }
        };
        // A failed crash came before the error of the sequence.
        let (violation, crash, lines) = match tally.failure {
            Some((violation, io, lines)) => (Some(violation), Some(io), lines),
            None => (violation, None, Vec::new()),
        };
        self.outcome.failure = violation.map(|violation| {
            let mut all = self.machine.take_lines();
            all.extend(lines);
            Failure { violation, step, crash, lines: all }
        });
        self.outcome
    }

    fn set_up(&mut self) -> Result<(), Violation> {
        self.expect_crashes(vec![self.model.clone()]);
        let store = self
            .store(0)
            .map_err(|e| Violation { rule: Rule::Model, message: e.sentence().to_string() })?;
        open_pools(&store)?;
        self.crash_failed()
    }

    /// The store of a process, opened if it is not.
    pub(crate) fn store(&mut self, process: usize) -> marcot::Result<Store> {
        if let Some(store) = &self.processes[process].store {
            return Ok(store.clone());
        }
        self.lives += 1;
        let seed = self.settings.seed ^ (self.lives << 32);
        let store = open_store(&self.machine, process, seed)?;
        self.processes[process].store = Some(store.clone());
        Ok(store)
    }

    pub(crate) fn pool(&mut self, process: usize, pool: usize) -> marcot::Result<Pool> {
        self.store(process)?.pool(observe::POOLS[pool])
    }

    pub(crate) fn home(&self, slot: u8) -> usize {
        self.homes.get(&slot).copied().unwrap_or(usize::from(slot) % PROCESSES)
    }

    pub(crate) fn open_image(&mut self, process: usize, slot: u8) -> marcot::Result<Image> {
        let (pool, id) = self.find(process, slot)?;
        pool.open(id)
    }

    /// The pool and the number of an image, by its name, or by the name that it had before it was moved to the
    /// trash.
    pub(crate) fn find(&mut self, process: usize, slot: u8) -> marcot::Result<(Pool, ImageId)> {
        let image = self.model.images[&slot].clone();
        let pool = self.pool(process, image.pool)?;
        if !image.in_trash {
            let id = pool.find(&image.name)?;
            return Ok((pool, id));
        }
        let trash = pool.trash(&Namespace::DEFAULT)?;
        let found = trash.iter().find(|trashed| trashed.name == image.name).map(|found| found.id);
        let missing = || Error::new(ErrorKind::NotFound, "the image is not in the trash");
        Ok((pool, found.ok_or_else(missing)?))
    }

    pub(crate) fn image(&mut self, slot: u8) -> marcot::Result<&mut Image> {
        let home = self.home(slot);
        if !self.processes[home].images.contains_key(&slot) {
            let image = self.open_image(home, slot)?;
            self.processes[home].images.insert(slot, image);
        }
        Ok(self.processes[home].images.get_mut(&slot).expect("opened above"))
    }

    pub(crate) fn close(&mut self, slot: u8) -> marcot::Result<()> {
        let home = self.home(slot);
        self.processes[home].images.remove(&slot).map_or(Ok(()), Image::close)
    }

    /// Sets the states that crashes may lead to from now on.
    pub(crate) fn expect_crashes(&mut self, candidates: Vec<Model>) {
        self.expected.clone_from(&candidates);
        let damage = self.settings.profile == Profile::Damage;
        if self.settings.crash_one_in == 0 || damage {
            return;
        }
        self.machine.set_probe(Some(crash::probe(candidates, self.settings, &self.tally)));
    }

    pub(crate) fn crash_failed(&mut self) -> Result<(), Violation> {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        match &tally.failure {
            Some((violation, ..)) => Err(violation.clone()),
            None => Ok(()),
        }
    }

    /// Runs one operation. Returns false where the run ends here without a violation.
    fn step(&mut self, operation: &Operation) -> Result<bool, Violation> {
        match operation {
            Operation::Arm { fault, after } => {
                self.machine.arm(*fault, *after);
                return Ok(true);
            }
            Operation::Kill { process, after } => {
                self.machine.cut_after(*after, Cut::Kill(usize::from(*process)));
                return Ok(true);
            }
            Operation::PowerCut { after } => {
                self.machine.cut_after(*after, Cut::Power);
                return Ok(true);
            }
            _ => {}
        }
        let stale = matches!(operation, Operation::Stale { .. });
        if stale && self.settings.profile == Profile::Damage {
            // A log that lost its end by damage could not be told from one cut by a stale owner.
            return Ok(true);
        }
        if matches!(operation, Operation::Remove { .. }) && self.settings.profile == Profile::Space
        {
            // On a full disk an image is removed without being marked first. So a crash may leave an
            // image without a name (docs/durability.md, image removal), which the model does not know.
            self.machine.disarm();
        }
        let Some(plan) = self.model.plan(operation) else { return Ok(true) };
        self.outcome.operations += 1;
        self.expect_crashes(plan.interrupted.clone());
        let result = self.perform(operation);
        let going_on = self.conclude(operation, plan, result)?;
        self.crash_failed()?;
        Ok(going_on)
    }

    fn conclude(
        &mut self,
        operation: &Operation,
        plan: Plan,
        result: Done,
    ) -> Result<bool, Violation> {
        let cut = self.machine.take_cut();
        if let Err(Ended::Violation(violation)) = &result
            && cut.is_none()
        {
            return Err(violation.clone());
        }
        if let Some(cut) = cut {
            self.after_cut(cut)?;
            return Ok(true);
        }
        match result {
            Ok(()) if plan.may_succeed => {
                let stale = matches!(operation, Operation::Stale { .. });
                if !stale {
                    self.model = plan.done;
                }
                self.learn(operation)?;
                Ok(true)
            }
            Ok(()) => violation(Rule::Model, format!("{operation} should be refused")),
            Err(Ended::Error(error)) if plan.refused.contains(&error.kind()) => Ok(true),
            Err(Ended::Error(error)) => self.after_error(operation, &error),
            Err(Ended::Violation(violation)) => Err(violation),
        }
    }

    /// Notes the numbers that a command has assigned.
    pub(crate) fn learn(&mut self, operation: &Operation) -> Result<(), Violation> {
        let slot = match operation {
            Operation::Create { slot, .. }
            | Operation::Snapshot { slot, .. }
            | Operation::Flatten { slot } => *slot,
            Operation::Clone { to, .. } => *to,
            Operation::RemoveSnapshot { slot, .. } | Operation::Rollback { slot, .. } => *slot,
            _ => return Ok(()),
        };
        self.machine.set_probe(None);
        let home = self.home(slot);
        let info = self.find(home, slot).and_then(|(pool, id)| pool.info(id));
        let info = match info {
            Ok(info) => info,
            Err(_) if self.settings.profile == Profile::Damage => return Ok(()),
            Err(error) => return self.tolerate(&error, "info"),
        };
        let image = self.model.images.get_mut(&slot).expect("a known image");
        image.id = Some(info.id);
        for snap in &mut image.snaps {
            let same = |s: &&marcot::SnapInfo| match snap.id {
                Some(id) => s.id == id,
                None => s.name == snap.name && !s.trashed,
            };
            let Some(found) = info.snapshots.iter().find(same) else { continue };
            snap.id = Some(found.id);
        }
        Ok(())
    }
}
