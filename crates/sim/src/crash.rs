//! Crashes of copies: a copy of the machine crashes, is recovered and compared, while the sequence itself
//! goes on.
//!
//! Before every I/O that changes something, a copy may lose its power, or have all its processes killed. A
//! crash during an I/O is covered by the next copy: there the I/O is not durable, and may be kept, torn or
//! lost. Reads change nothing, so a crash at a read is the same as one at the change before it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use marcot::Store;

use crate::disk::{Cut, Machine, Probe};
use crate::model::{self, Model};
use crate::observe;
use crate::random::Rng;
use crate::rules::{PROCESSES, Rule, Settings, Violation, open_store};

/// The crashes of a run.
#[derive(Clone, Default)]
pub(crate) struct Tally {
    pub one_in: u64,
    pub crashes: u64,
    /// The first crash that failed: the violation, the I/O before which it came, and the last I/Os.
    pub failure: Option<(Violation, u64, Vec<String>)>,
}

/// The message of a panic.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic").to_owned()
}

/// Drops the states before the latest acknowledged one: the kill of a process loses no acknowledged write.
pub(crate) fn keep_acknowledged(candidates: &mut [Model], before: &Model) {
    for candidate in candidates {
        for (slot, image) in &mut candidate.images {
            let latest = before.images.get(slot).map(|m| m.latest());
            let same = |s: &model::Bytes| latest.is_some_and(|l| Arc::ptr_eq(l, s));
            if let Some(at) = image.history.iter().position(same) {
                image.history.drain(..at);
            }
        }
    }
}

/// A probe that tries crashes. Each must lead to one of `candidates`.
pub(crate) fn probe(
    candidates: Vec<Model>,
    settings: Settings,
    tally: &Arc<Mutex<Tally>>,
) -> Probe {
    let tally = Arc::clone(tally);
    Box::new(move |machine, io| {
        let mut rng = Rng::with(settings.seed, io.wrapping_mul(3));
        {
            let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
            if tally.failure.is_some() || !rng.one_in(tally.one_in.max(1)) {
                return 0;
            }
        }
        let machine = Arc::new(machine);
        let tried = catch_unwind(AssertUnwindSafe(|| {
            try_crash(&machine, &candidates, settings.seed ^ io, &mut rng)
        }));
        let mut tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.crashes += 1;
        let failed = match tried {
            Ok(Ok(())) => return machine.hash(),
            Ok(Err(violation)) => violation,
            Err(panic) => Violation { rule: Rule::Panic, message: panic_text(&*panic) },
        };
        tally.failure = Some((failed, io, machine.take_lines()));
        machine.hash()
    })
}

fn context(what: &str) -> impl Fn(Violation) -> Violation + '_ {
    move |v| Violation { message: format!("{what}: {}", v.message), ..v }
}

fn open(machine: &Arc<Machine>, seed: u64) -> Result<Store, Violation> {
    open_store(machine, 0, seed).map_err(|e| Violation {
        rule: Rule::I1,
        message: format!("opening the store: {}", e.sentence()),
    })
}

fn lose_power(machine: &Machine) {
    machine.power_off();
    machine.power_on();
    let _ = machine.take_cut();
}

fn try_crash(
    machine: &Arc<Machine>,
    candidates: &[Model],
    seed: u64,
    rng: &mut Rng,
) -> Result<(), Violation> {
    match rng.below(9) {
        8 => after_kill_and_removals(machine, candidates, seed),
        0 => {
            (0..PROCESSES).for_each(|process| machine.kill(process));
            let _ = machine.take_cut();
            let how = "after a kill";
            recover(machine, candidates, seed, None).map_err(context(how))?;
            lose_power(machine);
            let how = "after a kill, recovery and a loss of power";
            recover(machine, candidates, seed + 1, Some(rng)).map(drop).map_err(context(how))
        }
        1 => {
            // Only part of the recovery happens.
            lose_power(machine);
            machine.cut_after(rng.below(150), Cut::Power);
            let _ = recover(machine, candidates, seed, None);
            let again = machine.take_cut().is_some();
            if again {
                machine.power_on();
            }
            let how = "after a loss of power in the middle of recovery from another";
            recover(machine, candidates, seed + 1, Some(rng)).map(drop).map_err(context(how))
        }
        _ => {
            lose_power(machine);
            recover(machine, candidates, seed, Some(rng))
                .map(drop)
                .map_err(context("after a loss of power"))
        }
    }
}

/// Recovers a machine in a fresh process. The state that it finds must be one of the candidates, and must
/// work. `usage` chooses how the images are used; with `None` nothing is changed.
fn recover(
    machine: &Arc<Machine>,
    candidates: &[Model],
    seed: u64,
    usage: Option<&mut Rng>,
) -> Result<Model, Violation> {
    let store = open(machine, seed)?;
    observe::check(&store, false)?;
    observe::collect(&store)?;
    observe::check(&store, true)?;
    let seen = observe::look(&store)?;
    let model = observe::settle(candidates, &seen)?;
    let Some(rng) = usage else { return Ok(model) };
    for slot in model.images.keys() {
        if rng.one_in(3) {
            use_image(&store, &model, *slot, rng).map_err(context("in use after recovery"))?;
        }
    }
    observe::check(&store, true).map_err(context("in use after recovery"))?;
    Ok(model)
}

/// A killed process has left a state that is not durable yet. Other processes act on it: they remove a
/// snapshot whose last child is gone, and perhaps collect a pool. Then the power goes. The state on which
/// they acted must not be undone.
fn after_kill_and_removals(
    machine: &Arc<Machine>,
    candidates: &[Model],
    seed: u64,
) -> Result<(), Violation> {
    (0..PROCESSES).for_each(|process| machine.kill(process));
    let _ = machine.take_cut();
    let failed =
        |e: marcot::Error| Violation { rule: Rule::Model, message: e.sentence().to_string() };
    let store = open(machine, seed)?;
    // Nothing is collected before this, because that would make the visible state durable.
    let seen = observe::look(&store)?;
    // A clone that has no name yet, or a removal that has lost it, counts until it is collected. The other
    // crashes cover these states.
    let Ok(model) = observe::settle(candidates, &seen) else { return Ok(()) };
    let pools = observe::open_pools(&store)?;
    let mut left = candidates.to_vec();
    for (slot, image) in &model.images {
        let orphaned = |s: &&model::Snap| {
            let before = candidates.iter().any(|c| c.has_children(image, s));
            before && !s.trashed && !model.has_children(image, s)
        };
        for snap in image.snaps.iter().filter(orphaned) {
            let Some(id) = image.id else { continue };
            let mut owner = pools[image.pool].open(id).map_err(failed)?;
            owner.remove_snapshot(&snap.name, true).map_err(failed)?;
            // Now states in which the snapshot has children are impossible.
            let without = |c: &Model| c.without_snap(*slot, &snap.name, image.latest());
            left = left.iter().filter_map(without).collect();
        }
    }
    if seed.is_multiple_of(2) {
        // Only one pool is collected. Heads in the other pool may name segments of it.
        let freed = store.gc(&pools[0], &mut |_, _| {});
        freed.map_err(|e| Violation { rule: Rule::I5, message: e.sentence().to_string() })?;
    }
    lose_power(machine);
    let how = "after a kill, removals by others and a loss of power";
    recover(machine, &left, seed + 2, None).map(drop).map_err(context(how))
}

/// Opens an image as its owner, which must find the same content, and must be able to write.
fn use_image(store: &Store, model: &Model, slot: u8, rng: &mut Rng) -> Result<(), Violation> {
    let known = &model.images[&slot];
    let pool = &observe::open_pools(store)?[known.pool];
    let failed = |e: marcot::Error| Violation { rule: Rule::I1, message: e.sentence().to_string() };
    let Some(id) = known.id else { return Ok(()) };
    let mut image = pool.open(id).map_err(failed)?;
    let mut want = Vec::clone(known.latest());
    let mut bytes = vec![0; image.size_bytes() as usize];
    image.read_at(0, &mut bytes).map_err(failed)?;
    if bytes != want {
        let message = format!("the owner of {} finds other bytes than a reader", known.name);
        return Err(Violation { rule: Rule::I1, message });
    }
    if rng.one_in(2) || want.is_empty() {
        return Ok(());
    }
    let (offset, length) = known.clip(rng.below(1 << 20), 9000);
    let data = model::data(rng.draw(), length);
    image.write_at(offset, &data).map_err(failed)?;
    want[offset as usize..(offset + length) as usize].copy_from_slice(&data);
    if rng.one_in(2) {
        image.close().map_err(failed)?;
    } else {
        image.flush().map_err(failed)?;
        drop(image);
    }
    let mut image = pool.open_read_only(id).map_err(failed)?;
    image.read_at(0, &mut bytes).map_err(failed)?;
    if bytes != want {
        let message = format!("{} reads otherwise than it was written", known.name);
        return Err(Violation { rule: Rule::I1, message });
    }
    Ok(())
}
