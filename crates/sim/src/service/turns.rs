//! Turns: machines that work at the same time, in an order that the seed decides.
//!
//! Each machine has a thread, and one of them runs. At each request to the service the seed decides which one
//! goes on. What a machine does between two requests depends on nobody else, so every interleaving that matters
//! can come, and the same seed gives the same one.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::random::Rng;

/// Limit on the turns of others during which a machine stops for longer.
const LONG_TURNS_MAX: u64 = 150;

/// The work of a machine.
pub type Work<'a> = Box<dyn FnOnce() + Send + 'a>;

struct State {
    /// The machine that runs; `None` where nobody takes turns.
    current: Option<usize>,
    /// The machines whose work is not done.
    left: Vec<usize>,
    /// One in this many times that a machine waits, it waits for longer; 0 for never.
    long_one_in: u64,
    /// The machines that wait for longer, and for how many turns of others.
    waiting: BTreeMap<usize, u64>,
    rng: Rng,
}

impl State {
    fn next(&mut self) {
        self.waiting.retain(|_, turns| {
            *turns -= 1;
            *turns > 0
        });
        let ready = |machine: &&usize| !self.waiting.contains_key(machine);
        let ready: Vec<usize> = self.left.iter().filter(ready).copied().collect();
        let among = if ready.is_empty() { &self.left } else { &ready };
        let at = self.rng.below(among.len() as u64) as usize;
        self.current = among.get(at).copied();
    }

    /// A machine may stop for so long that others do much meanwhile.
    fn may_wait_for_longer(&mut self, machine: usize) {
        if self.long_one_in > 0 && self.rng.one_in(self.long_one_in) {
            self.waiting.insert(machine, 1 + self.rng.below(LONG_TURNS_MAX));
        }
    }
}

/// See the module.
pub struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

impl Turns {
    /// Nobody takes turns yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let (waiting, rng) = (BTreeMap::new(), Rng::with(seed, 401));
        let state = State { current: None, left: Vec::new(), long_one_in: 0, waiting, rng };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// From now on, one in this many times that a machine waits, it waits for longer.
    pub fn stop_for_longer(&self, one_in: u64) {
        self.state().long_one_in = one_in;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the work of each machine in turns, until all of it is done. The first is that of
    /// machine 0.
    ///
    /// # Panics
    /// Where a machine's work panics, after the others are done.
    pub fn run(&self, works: Vec<Work<'_>>) {
        {
            let mut state = self.state();
            state.left = (0..works.len()).collect();
            state.next();
        }
        // A thread makes the mistakes of the one that has started it.
        #[cfg(feature = "deliberate-faults")]
        let fault = marcot::fault::made();
        let mut panics = Vec::new();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..)
                .zip(works)
                .map(|(machine, work)| {
                    scope.spawn(move || {
                        #[cfg(feature = "deliberate-faults")]
                        marcot::fault::make(fault);
                        self.wait(machine);
                        let result = catch_unwind(AssertUnwindSafe(work));
                        let mut state = self.state();
                        state.left.retain(|other| *other != machine);
                        state.next();
                        drop(state);
                        self.changed.notify_all();
                        result
                    })
                })
                .collect();
            for thread in threads {
                panics.extend(thread.join().and_then(|result| result).err());
            }
        });
        if let Some(panic) = panics.into_iter().next() {
            resume_unwind(panic);
        }
    }

    fn wait(&self, machine: usize) {
        let mut state = self.state();
        while state.current != Some(machine) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A machine may have to wait here until others have done something. Returns at once where nobody takes
    /// turns, and for a machine whose turn it is not, because it works within the turn of another one.
    pub fn give(&self, machine: usize) {
        let mut state = self.state();
        if state.current != Some(machine) {
            return;
        }
        state.may_wait_for_longer(machine);
        state.next();
        if state.current != Some(machine) {
            drop(state);
            self.changed.notify_all();
            self.wait(machine);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(seed: u64, long_one_in: u64) -> Vec<usize> {
        let (turns, order) = (Turns::new(seed), Mutex::new(Vec::new()));
        turns.stop_for_longer(long_one_in);
        let work = |machine| -> Work<'_> {
            let (turns, order) = (&turns, &order);
            Box::new(move || {
                for _ in 0..20 {
                    order.lock().unwrap().push(machine);
                    turns.give(machine);
                }
            })
        };
        turns.run((0..3).map(work).collect());
        order.into_inner().unwrap()
    }

    #[test]
    fn the_seed_alone_decides_whose_turn_it_is() {
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(2, 0));
        let changes = |order: &[usize]| order.windows(2).filter(|two| two[0] != two[1]).count();
        assert!(changes(&order(1, 0)) > 10);
        let longer: usize = (0..20).map(|seed| changes(&order(seed, 3))).sum();
        let shorter: usize = (0..20).map(|seed| changes(&order(seed, 0))).sum();
        assert!(longer < shorter, "{longer} {shorter}");
    }

    #[test]
    fn a_panic_in_one_turn_ends_no_other_and_is_passed_on() {
        let (turns, done) = (Turns::new(1), Mutex::new(false));
        let works: Vec<Work<'_>> = vec![
            Box::new(|| panic!("on purpose")),
            Box::new(|| {
                turns.give(1);
                *done.lock().unwrap() = true;
            }),
        ];
        assert!(catch_unwind(AssertUnwindSafe(|| turns.run(works))).is_err());
        assert!(*done.lock().unwrap());
    }
}
