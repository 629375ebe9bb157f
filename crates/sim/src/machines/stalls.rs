//! An owner is stalled at a request, others take its image over and work, and then it goes on.
//!
//! The stalled owner is one that opens an image, works, and closes it. So it is stalled at every request of all of
//! these, also in the middle of a takeover of its own.

use std::sync::{Arc, Mutex, PoisonError};

use marcot::{CreateOptions, ImageId};

use super::Machines;
use super::lineage::Lineage;
use super::session::{Act, Ended, Session, collect_and_check, look};
use crate::rules::{Rule, Violation, violation};
use crate::service::{Moment, Service, ServiceSettings};

/// Blocks of the image.
const BLOCKS: u64 = 48;
/// Bytes of a block.
const BLOCK: u64 = 4096;
/// The machine that has made the image, and two that take it over, and one that looks.
const MACHINES: usize = 4;
const STALLED: usize = 0;
const FIRST: usize = 1;
const SECOND: usize = 2;
const OBSERVER: usize = 3;

/// How the image was left when the owner that is stalled opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// It was closed.
    Closed,
    /// Its owner, on the machine of the one that is stalled, was killed after a flush.
    KilledHere,
    /// Its owner, on another machine, has lost its power after a flush.
    GoneElsewhere,
}

/// Who works while the owner is stalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// One successor.
    One,
    /// Two successors, one after the other.
    Two,
    /// A successor that removes a snapshot and closes, and then a collection of the pool.
    OneAndGc,
}

/// A case.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs, reason = "the parts are documented")]
pub struct Case {
    pub seed: u64,
    pub before: Before,
    pub others: Others,
    pub ships_flushes: bool,
    /// The successors are gone without having closed the image.
    pub others_vanish: bool,
}

/// All combinations.
#[must_use]
pub fn cases(seed: u64) -> Vec<Case> {
    let mut all = Vec::new();
    for before in [Before::Closed, Before::KilledHere, Before::GoneElsewhere] {
        for others in [Others::One, Others::Two, Others::OneAndGc] {
            for others_vanish in [false, true] {
                all.push(Case { seed, before, others, ships_flushes: true, others_vanish });
            }
        }
    }
    all
}

fn write(block: u64, blocks: u64, salt: u64) -> Act {
    Act::Write { block, blocks, salt }
}

/// What the owner does that is stalled.
const OWNER: [Act; 16] = [
    Act::Write { block: 0, blocks: 8, salt: 100 },
    Act::Flush,
    Act::Write { block: 4, blocks: 4, salt: 101 },
    Act::Write { block: 20, blocks: 20, salt: 102 },
    Act::Flush,
    Act::Checkpoint,
    Act::Write { block: 6, blocks: 2, salt: 103 },
    Act::Flush,
    Act::Snapshot(1),
    Act::Write { block: 0, blocks: 40, salt: 104 },
    Act::Write { block: 0, blocks: 40, salt: 105 },
    Act::Write { block: 0, blocks: 40, salt: 106 },
    Act::Flush,
    Act::Read,
    Act::Reclaim,
    Act::Flush,
];

struct Stage {
    machines: Arc<Machines>,
    id: ImageId,
    lineage: Lineage,
    case: Case,
    wrong: Mutex<Option<Violation>>,
}

impl Stage {
    fn note(&self, result: Result<(), Violation>) {
        let mut wrong = self.wrong.lock().unwrap_or_else(PoisonError::into_inner);
        if let (None, Err(violation)) = (&*wrong, result) {
            *wrong = Some(violation);
        }
    }

    /// A successor takes the image over, and works.
    fn succeed(&self, machine: usize, salt: u64) -> Result<(), Violation> {
        let reign = || -> Result<(), Ended> {
            let mut session = Session::take_over(&self.machines, machine, self.id, &self.lineage)?;
            session.act(write(2, 3, salt))?;
            session.act(Act::Flush)?;
            session.act(write(10, 30, salt + 1))?;
            session.act(Act::Flush)?;
            if self.case.others == Others::OneAndGc {
                session.act(Act::RemoveSnapshot(0))?;
                session.act(Act::Reclaim)?;
            }
            session.act(Act::Checkpoint)?;
            session.act(write(3, 30, salt + 2))?;
            session.act(Act::Flush)?;
            session.act(Act::Read)?;
            if self.case.others_vanish {
                self.machines.crash(machine);
                drop(session);
                return Ok(());
            }
            session.close()
        };
        reign().map_err(|ended| ended.must_not_be(&format!("the successor on machine {machine}")))
    }

    fn collect(&self, machine: usize) -> Result<(), Violation> {
        let opened = || {
            let store = self.machines.store(machine)?;
            let pool = store.pool("rbd")?;
            Ok((store, pool))
        };
        let (store, pool) =
            opened().map_err(|e| Ended::Error(e).must_not_be("opening the pool"))?;
        collect_and_check(&store, &pool)
    }

    fn others(&self) -> Result<(), Violation> {
        self.succeed(FIRST, 200)?;
        match self.case.others {
            Others::One => Ok(()),
            Others::Two => self.succeed(SECOND, 300),
            Others::OneAndGc => self.collect(SECOND),
        }
    }

    /// The owner that is stalled. Once it was, it may meet errors.
    fn stalled(&self) -> Result<(), Ended> {
        let mut session = Session::take_over(&self.machines, STALLED, self.id, &self.lineage)?;
        let mut failed = None;
        for act in OWNER {
            match session.act(act) {
                // It goes on, as guests do: later acts must not succeed where they promise something.
                Err(Ended::Error(error)) => failed = failed.or(Some(error)),
                done => done?,
            }
        }
        let closed = session.close();
        match failed {
            None => closed,
            Some(error) => match closed {
                Err(Ended::Violation(violation)) => Err(violation.into()),
                _ => Err(error.into()),
            },
        }
    }

    /// Everything that was promised is there, for everybody.
    fn judge(&self) -> Result<(), Violation> {
        self.machines.service().deliver_all();
        self.machines.check_unchanged()?;
        look(&self.machines, OBSERVER, self.id, &self.lineage)?;
        for machine in [STALLED, OBSERVER] {
            let succeed = || -> Result<(), Ended> {
                let mut session =
                    Session::take_over(&self.machines, machine, self.id, &self.lineage)?;
                session.act(write(1, 1, 400 + machine as u64))?;
                session.close()
            };
            succeed()
                .map_err(|ended| ended.must_not_be(&format!("machine {machine} at the end")))?;
            self.collect(machine)?;
            look(&self.machines, FIRST, self.id, &self.lineage)?;
        }
        Ok(())
    }
}

fn set_up(case: Case) -> Result<Stage, Ended> {
    let service = Service::new(ServiceSettings::sound(case.seed), MACHINES);
    let machines = Machines::new(service, case.seed, MACHINES, case.ships_flushes);
    let machine = match case.before {
        Before::GoneElsewhere => OBSERVER,
        _ => STALLED,
    };
    let pool = machines.pool(machine)?;
    let id = pool.create("image", &CreateOptions::sized(BLOCKS * BLOCK))?;
    let (lineage, reign) =
        Lineage::begin(machines.host(machine), Arc::new(vec![0; (BLOCKS * BLOCK) as usize]));
    let mut session = Session::of(&machines, pool.open(id)?, &lineage, reign);
    for act in [write(0, 30, 1), Act::Flush, Act::Snapshot(0), write(5, 20, 2), Act::Flush] {
        session.act(act)?;
    }
    match case.before {
        Before::Closed => session.close()?,
        Before::KilledHere => {
            session.act(write(7, 2, 3))?;
            machines.kill(machine);
            drop(session);
        }
        Before::GoneElsewhere => {
            session.act(write(7, 2, 3))?;
            machines.crash(machine);
            drop(session);
        }
    }
    Ok(Stage { machines, id, lineage, case, wrong: Mutex::new(None) })
}

/// What came of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// The owner was stalled.
    Stalled,
    /// It has fewer requests, and was not stalled.
    NotStalled,
}

/// Stalls the owner at its `request`-th request, from 0.
///
/// # Errors
/// A violation.
pub fn run(case: Case, request: u64, moment: Moment) -> Result<Reached, Violation> {
    let stage = Arc::new(set_up(case).map_err(|ended| ended.must_not_be("setting up"))?);
    let service = Arc::clone(stage.machines.service());
    service.keep_lines();
    run_on(&stage, request, moment).map_err(|v| Violation {
        message: format!("{}\n    {}", v.message, service.take_lines().join("\n    ")),
        ..v
    })
}

fn run_on(stage: &Arc<Stage>, request: u64, moment: Moment) -> Result<Reached, Violation> {
    let service = Arc::clone(stage.machines.service());
    let from = service.counts(STALLED).all();
    let others = Arc::clone(stage);
    service.stall(STALLED, from + request, moment, Box::new(move || others.note(others.others())));
    let outcome = stage.stalled();
    let reached = if service.forget_stall() { Reached::NotStalled } else { Reached::Stalled };
    let wrong = stage.wrong.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(violation) = wrong {
        return Err(violation);
    }
    match outcome {
        Ok(()) => {}
        Err(Ended::Violation(violation)) => return Err(violation),
        Err(Ended::Error(error)) if reached == Reached::NotStalled => {
            return Err(Ended::Error(error).must_not_be("the owner, not stalled"));
        }
        Err(Ended::Error(_)) => {}
    }
    stage.judge()?;
    Ok(reached)
}

/// Stalls the owner at every request, before the effect and before the answer, until it is not stalled any more.
/// Of the requests only every `every`-th one counts, beginning with one that the seed chooses. Returns the number of stalls.
///
/// # Errors
/// A violation, with the request.
pub fn run_all(case: Case, every: u64) -> Result<u64, Violation> {
    let mut stalls = 0;
    for moment in [Moment::BeforeEffect, Moment::BeforeAnswer] {
        let mut request = case.seed % every;
        loop {
            let reached = run(case, request, moment).map_err(|v| Violation {
                message: format!("{case:?}, request {request}, {moment:?}: {}", v.message),
                ..v
            })?;
            if reached == Reached::NotStalled {
                break;
            }
            stalls += 1;
            request += every;
        }
    }
    if stalls == 0 {
        return violation(Rule::Model, "the owner has sent no requests");
    }
    Ok(stalls)
}

/// A machine that takes an image over dies at its `request`-th request, from 0, while the owner is idle. As long as the
/// head names the owner, the owner goes on.
///
/// # Errors
/// A violation.
pub fn attempt(seed: u64, request: u64, moment: Moment) -> Result<Reached, Violation> {
    let case = Case {
        seed,
        before: Before::Closed,
        others: Others::One,
        ships_flushes: true,
        others_vanish: true,
    };
    let stage = set_up(case).map_err(|ended| ended.must_not_be("setting up"))?;
    let (machines, id, lineage) = (&stage.machines, stage.id, &stage.lineage);
    let service = Arc::clone(machines.service());
    let owned = || -> Result<Session, Ended> {
        let mut owner = Session::take_over(machines, STALLED, id, lineage)?;
        owner.act(write(3, 4, 500))?;
        owner.act(Act::Flush)?;
        Ok(owner)
    };
    let mut owner = owned().map_err(|ended| ended.must_not_be("the owner"))?;
    let named = machines.head(OBSERVER, id)?.owner;
    let (from, killed) = (service.counts(FIRST).all(), Arc::clone(&service));
    service.stall(FIRST, from + request, moment, Box::new(move || killed.kill(FIRST)));
    let successor = Session::take_over(machines, FIRST, id, lineage);
    let reached = if service.forget_stall() { Reached::NotStalled } else { Reached::Stalled };
    machines.crash(FIRST);
    match successor {
        Err(Ended::Violation(violation)) => return Err(violation),
        Err(Ended::Error(error)) if reached == Reached::NotStalled => {
            return Err(Ended::Error(error).must_not_be("the successor"));
        }
        successor => drop(successor),
    }
    let goes_on = || -> Result<(), Ended> {
        owner.act(write(5, 4, 501))?;
        owner.act(Act::Flush)?;
        owner.act(Act::Checkpoint)?;
        owner.close()
    };
    match goes_on() {
        Err(Ended::Error(error)) if machines.head(OBSERVER, id)?.owner == named => {
            return Err(Ended::Error(error).must_not_be("the owner that the head names"));
        }
        Err(Ended::Violation(violation)) => return Err(violation),
        _ => {}
    }
    stage.judge()?;
    Ok(reached)
}

/// As [`attempt`], at every request.
///
/// # Errors
/// A violation, with the request.
pub fn attempt_all(seed: u64) -> Result<u64, Violation> {
    let mut stalls = 0;
    for moment in [Moment::BeforeEffect, Moment::BeforeAnswer] {
        let mut request = 0;
        while attempt(seed, request, moment).map_err(|v| Violation {
            message: format!("takeover that dies at request {request} ({moment:?}): {}", v.message),
            ..v
        })? == Reached::Stalled
        {
            request += 1;
        }
        stalls += request;
    }
    Ok(stalls)
}
