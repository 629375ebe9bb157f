//! What an owner that was replaced has left behind is no part of the image, for nobody.
//!
//! Random sequences meet this too, but rarely: each sequence here takes the shortest way to it.

use std::sync::{Arc, Mutex, PoisonError};

use marcot::{CreateOptions, ImageId};

use super::Machines;
use super::lineage::Lineage;
use super::session::{Act, Ended, Session, look};
use crate::rules::{Rule, Violation, violation};
use crate::service::{Moment, Service, ServiceSettings};

/// Bytes of the image.
const IMAGE_BYTES: u64 = 48 * 4096;
const MACHINES: usize = 2;
const OWNER: usize = 0;
const SUCCESSOR: usize = 1;

#[derive(Clone)]
struct Stage {
    machines: Arc<Machines>,
    id: ImageId,
    lineage: Lineage,
}

fn write(block: u64, salt: u64) -> Act {
    Act::Write { block, blocks: 1, salt }
}

impl Stage {
    /// An image, and its first owner.
    fn set_up(seed: u64, ships_flushes: bool) -> Result<(Self, Session), Ended> {
        let service = Service::new(ServiceSettings::sound(seed), MACHINES);
        let machines = Machines::new(service, seed, MACHINES, ships_flushes);
        let pool = machines.pool(OWNER)?;
        let id = pool.create("image", &CreateOptions::sized(IMAGE_BYTES))?;
        let zeros = Arc::new(vec![0; IMAGE_BYTES as usize]);
        let (lineage, reign) = Lineage::begin(machines.host(OWNER), zeros);
        let owner = Session::of(&machines, pool.open(id)?, &lineage, reign);
        Ok((Self { machines, id, lineage }, owner))
    }

    fn take_over(&self, machine: usize) -> Result<Session, Ended> {
        Session::take_over(&self.machines, machine, self.id, &self.lineage)
    }

    /// The successor takes the image over, and leaves it. Then the image is removed.
    fn take_over_and_remove(&self, how: Leaving) -> Result<(), Ended> {
        let successor = self.take_over(SUCCESSOR)?;
        match how {
            Leaving::Closes => successor.close()?,
            Leaving::IsKilled => {
                self.machines.kill(SUCCESSOR);
                drop(successor);
            }
        }
        let store = self.machines.store(SUCCESSOR)?;
        store.remove_image(&store.pool("rbd")?, self.id, &mut |_, _| {})?;
        self.lineage.removed();
        Ok(())
    }

    /// Readers on both machines.
    fn look(&self) -> Result<(), Ended> {
        for machine in [OWNER, SUCCESSOR] {
            look(&self.machines, machine, self.id, &self.lineage)?;
        }
        Ok(())
    }
}

/// A log lies on the machine of the first owner, and reached nobody else. Then that machine becomes the owner again; it
/// dies at its `request`-th request, from 0, and tries once more. True where it has died.
fn a_log_that_was_not_stored(seed: u64, ships_flushes: bool, request: u64) -> Result<bool, Ended> {
    let (stage, mut owner) = Stage::set_up(seed, ships_flushes)?;
    for act in [write(0, 1), Act::Snapshot(0), write(0, 2)] {
        owner.act(act)?;
    }
    // The successor writes nothing, so the log of the first owner would still fit to the head.
    let successor = stage.take_over(SUCCESSOR)?;
    stage.machines.kill(OWNER);
    drop(owner);
    stage.look()?;
    stage.machines.kill(SUCCESSOR);
    drop(successor);
    let service = Arc::clone(stage.machines.service());
    let (from, killed) = (service.counts(OWNER).all(), Arc::clone(&service));
    let die = Box::new(move || killed.kill(OWNER));
    service.stall(OWNER, from + request, Moment::BeforeAnswer, die);
    let tried = stage.take_over(OWNER);
    let has_died = !service.forget_stall();
    match tried {
        Err(Ended::Error(_)) if has_died => stage.machines.kill(OWNER),
        tried => drop(tried?),
    }
    let mut again = stage.take_over(OWNER)?;
    again.act(write(1, 3))?;
    again.close()?;
    stage.look()?;
    Ok(has_died)
}

/// The first owner uploads the segment of its log, with more than what its successor has found, and finds out only
/// then that it was replaced.
fn a_segment_that_was_uploaded_late(seed: u64, ships_flushes: bool) -> Result<(), Ended> {
    let (stage, mut owner) = Stage::set_up(seed, ships_flushes)?;
    // The protection makes a head whose log begins in the same segment as the log before it.
    for act in [write(0, 1), Act::Snapshot(0), Act::Protect(0), write(1, 2), Act::Flush] {
        owner.act(act)?;
    }
    let mut successor = stage.take_over(SUCCESSOR)?;
    owner.act(write(3, 4))?;
    match owner.close() {
        Ok(()) => violation(Rule::I1, "an owner that was replaced has closed the image")?,
        Err(Ended::Violation(violation)) => return Err(violation.into()),
        Err(Ended::Error(_)) => {}
    }
    stage.look()?;
    successor.act(write(2, 3))?;
    successor.act(Act::Flush)?;
    stage.look()?;
    successor.close()?;
    stage.look()
}

/// How a successor leaves the image.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    Closes,
    IsKilled,
}

/// The first owner is stalled at its `request`-th request, from 0. Meanwhile its successor takes the image over, and
/// removes it. Then the first owner goes on: it must not acknowledge what nobody will ever read. True where it was
/// stalled.
fn an_image_that_was_removed(seed: u64, how: Leaving, request: u64) -> Result<bool, Ended> {
    let (stage, mut owner) = Stage::set_up(seed, true)?;
    let service = Arc::clone(stage.machines.service());
    let removed = Arc::new(Mutex::new(Ok(())));
    let (others, told) = (stage, Arc::clone(&removed));
    let remove = move || {
        *told.lock().unwrap_or_else(PoisonError::into_inner) = others.take_over_and_remove(how);
    };
    let from = service.counts(OWNER).all();
    service.stall(OWNER, from + request, Moment::BeforeEffect, Box::new(remove));
    for act in [write(0, 1), Act::Flush, write(1, 2), Act::Flush, write(2, 3), Act::Flush] {
        // After it was replaced it meets errors. The oracle judges what it acknowledges.
        if let Err(Ended::Violation(violation)) = owner.act(act) {
            return Err(violation.into());
        }
    }
    let was_stalled = !service.forget_stall();
    std::mem::replace(&mut *removed.lock().unwrap_or_else(PoisonError::into_inner), Ok(()))?;
    Ok(was_stalled)
}

/// Runs all sequences.
///
/// # Errors
/// A violation.
pub fn run_all(seed: u64) -> Result<(), Violation> {
    let named = |what: &'static str| move |ended: Ended| ended.must_not_be(what);
    for how in [Leaving::Closes, Leaving::IsKilled] {
        let mut requests = 0;
        while an_image_that_was_removed(seed, how, requests)
            .map_err(named("an image that was removed"))?
        {
            requests += 1;
        }
        if requests == 0 {
            return violation(Rule::Model, "the owner has sent no requests");
        }
    }
    for ships_flushes in [true, false] {
        let not_stored = |request| a_log_that_was_not_stored(seed, ships_flushes, request);
        let mut requests = 0;
        while not_stored(requests).map_err(named("a log that was not stored"))? {
            requests += 1;
        }
        if requests == 0 {
            return violation(Rule::Model, "the owner has sent no requests");
        }
        a_segment_that_was_uploaded_late(seed, ships_flushes)
            .map_err(named("a segment that was uploaded late"))?;
    }
    Ok(())
}
