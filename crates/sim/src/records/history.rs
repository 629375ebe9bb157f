//! Histories of calls that overlapped, and whether an order of them explains all answers.
//!
//! A history is *linearisable* where each call can be given one moment between its beginning and its end, so
//! that all calls, performed one after the other at these moments, give the answers that they gave. A call whose
//! outcome is not known may have happened at any moment after its beginning, also after its end, or not at all.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// Limit on the states that are tried for one history. Ordinary ones need a few hundred.
const STATES_MAX: usize = 1_000_000;
/// The end of a call whose outcome is not known.
pub const NEVER: u64 = u64::MAX;

/// What calls do, one after the other.
pub trait Specification {
    /// A call with its answer.
    type Call: Debug;
    /// What the calls work on.
    type State: Clone + Eq + Hash + Debug;

    /// The state after a call, if it can give this answer in this state. Where the answer is not known: the
    /// state after the call has done something.
    fn perform(state: &Self::State, call: &Self::Call) -> Option<Self::State>;

    /// True for calls that change nothing.
    fn only_reads(call: &Self::Call) -> bool;
}

/// A call in a history.
#[derive(Debug, Clone)]
pub struct Entry<C> {
    /// Who called.
    pub machine: usize,
    /// The call with its answer.
    pub call: C,
    /// When it began. All beginnings and ends are different.
    pub began: u64,
    /// When it ended; [`NEVER`] where its outcome is not known.
    pub ended: u64,
}

/// Looks for an order of the calls that explains all answers.
///
/// # Errors
/// Why there is none: the history.
pub fn linearise<S: Specification>(
    start: S::State,
    history: &[Entry<S::Call>],
) -> Result<(), String> {
    let mut search = Search::<S> { history, tried: HashSet::new() };
    let done = vec![0; history.len().div_ceil(64)];
    match search.from(done, start) {
        Some(true) => Ok(()),
        Some(false) => Err(format!("no order explains the answers:\n{}", show(history))),
        None => Err(format!("too many orders to try:\n{}", show(history))),
    }
}

fn show<C: Debug>(history: &[Entry<C>]) -> String {
    let line = |entry: &Entry<C>| {
        let ended = if entry.ended == NEVER { "?".to_owned() } else { entry.ended.to_string() };
        format!("    m{} {}-{ended} {:?}", entry.machine, entry.began, entry.call)
    };
    history.iter().map(line).collect::<Vec<_>>().join("\n")
}

struct Search<'a, S: Specification> {
    history: &'a [Entry<S::Call>],
    tried: HashSet<(Vec<u64>, S::State)>,
}

impl<S: Specification> Search<'_, S> {
    /// The calls that can come next: those that began before any other one that is left has ended.
    fn next(&self, done: &[u64]) -> Vec<usize> {
        let left = |at: &usize| done[at / 64] & (1 << (at % 64)) == 0;
        let all = (0..self.history.len()).filter(left);
        let first_end = all.clone().map(|at| self.history[at].ended).min().unwrap_or(NEVER);
        all.filter(|at| self.history[*at].began < first_end).collect()
    }

    /// True where an order is found; `None` where there are too many of them.
    fn from(&mut self, mut done: Vec<u64>, state: S::State) -> Option<bool> {
        let next = loop {
            let next = self.next(&done);
            // A call that only reads, and fits, can come first: it takes nothing away from the others.
            let fits = |at: &&usize| {
                let call = &self.history[**at].call;
                S::only_reads(call) && S::perform(&state, call).is_some()
            };
            match next.iter().find(fits) {
                Some(at) => done[at / 64] |= 1 << (at % 64),
                None => break next,
            }
        };
        if next.iter().all(|at| self.history[*at].ended == NEVER) {
            return Some(true);
        }
        if !self.tried.insert((done.clone(), state.clone())) {
            return Some(false);
        }
        if self.tried.len() > STATES_MAX {
            return None;
        }
        for at in next {
            if let Some(after) = S::perform(&state, &self.history[at].call) {
                let mut done = done.clone();
                done[at / 64] |= 1 << (at % 64);
                if self.from(done, after)? {
                    return Some(true);
                }
            }
        }
        Some(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One number, which is written and read.
    struct Register;

    #[derive(Debug, Clone, Copy)]
    enum Call {
        Write(u8),
        Read(u8),
    }

    impl Specification for Register {
        type Call = Call;
        type State = u8;

        fn perform(state: &u8, call: &Call) -> Option<u8> {
            match call {
                Call::Write(to) => Some(*to),
                Call::Read(found) => (found == state).then_some(*state),
            }
        }

        fn only_reads(call: &Call) -> bool {
            matches!(call, Call::Read(_))
        }
    }

    fn is_linearisable(calls: &[(u64, u64, Call)]) -> bool {
        let entry = |(began, ended, call): &(u64, u64, Call)| Entry {
            machine: 0,
            call: *call,
            began: *began,
            ended: *ended,
        };
        let history: Vec<_> = calls.iter().map(entry).collect();
        linearise::<Register>(0, &history).is_ok()
    }

    #[test]
    fn calls_that_overlap_may_have_happened_in_either_order() {
        use Call::{Read, Write};
        assert!(is_linearisable(&[(1, 4, Write(1)), (2, 5, Write(2)), (6, 7, Read(1))]));
        assert!(is_linearisable(&[(1, 4, Write(1)), (2, 5, Write(2)), (6, 7, Read(2))]));
        assert!(is_linearisable(&[(1, 4, Write(1)), (2, 3, Read(0))]));
        assert!(is_linearisable(&[(1, 4, Write(1)), (2, 3, Read(1))]));
    }

    #[test]
    fn an_answer_that_no_order_explains_is_found() {
        use Call::{Read, Write};
        assert!(!is_linearisable(&[(1, 2, Write(1)), (3, 4, Read(0))]));
        assert!(!is_linearisable(&[(1, 4, Write(1)), (2, 5, Write(2)), (6, 7, Read(0))]));
        // Two readers see two writes in different orders.
        assert!(!is_linearisable(&[
            (1, 20, Write(1)),
            (2, 21, Write(2)),
            (3, 4, Read(1)),
            (5, 6, Read(2)),
            (7, 8, Read(1)),
        ]));
        assert!(!is_linearisable(&[(1, 9, Write(1)), (2, 3, Read(1)), (4, 5, Read(0))]));
    }

    #[test]
    fn a_call_without_a_known_outcome_happens_late_or_never() {
        use Call::{Read, Write};
        for seen in [0, 1] {
            let read = (5, 6, Read(seen));
            assert!(is_linearisable(&[(1, NEVER, Write(1)), (3, 4, Read(0)), read]));
        }
        let back = (5, 6, Read(0));
        assert!(!is_linearisable(&[(1, NEVER, Write(1)), (3, 4, Read(1)), back]));
        assert!(!is_linearisable(&[(3, NEVER, Write(1)), (1, 2, Read(1))]));
    }
}
