//! `flock` among simulated processes. Every taken lock has a holder of its own.

use marcot_store::LockMode;

use super::node::NodeId;

/// A held lock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub number: u64,
    pub node: NodeId,
    pub process: usize,
    pub mode: LockMode,
}

/// All held locks of a machine.
#[derive(Debug, Clone, Default)]
pub(super) struct Locks {
    held: Vec<Held>,
    next: u64,
}

impl Locks {
    /// Takes a lock; `None` where another holder prevents it.
    pub(super) fn take(&mut self, node: NodeId, process: usize, mode: LockMode) -> Option<u64> {
        let shared = mode == LockMode::Shared;
        let free = |held: &Held| held.node != node || (shared && held.mode == LockMode::Shared);
        if !self.held.iter().all(free) {
            return None;
        }
        self.next += 1;
        self.held.push(Held { number: self.next, node, process, mode });
        Some(self.next)
    }

    pub(super) fn release_where(&mut self, wanted: impl Fn(&Held) -> bool) {
        self.held.retain(|held| !wanted(held));
    }
}
