//! LIST: one list at a time, for all clients that wait.
//!
//! A list reads every pool, so many clients must not cause one list each. A client that asks while a list is
//! being made gets the next one, which shows everything that existed when it asked. After each list there is
//! a pause as long as the list took. So lists take at most half a processor.
//!
//! The reply is the same bytes for all. Invariant: at most [`KEPT_MAX`] different replies are kept, each of at
//! most [`super::negotiation::LIST_BYTES_MAX`]. A client that has not taken an older reply by then loses its
//! connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::opens::Asker;

/// Limit on the replies kept for slow clients.
const KEPT_MAX: usize = 4;

/// Longest pause between two lists.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The lists of a server.
#[derive(Default)]
pub(super) struct Lists {
    waiting: Vec<Asker>,
    /// The clients that get the list being made.
    served: Option<Vec<Asker>>,
    pause_until: Option<Instant>,
    kept: VecDeque<Arc<[u8]>>,
}

impl Lists {
    pub(super) fn ask(&mut self, asker: Asker) {
        self.waiting.push(asker);
    }

    /// Notes that a client does not wait any more.
    pub(super) fn forget(&mut self, asker: Asker) {
        self.waiting.retain(|a| *a != asker);
    }

    /// When [`Self::begins`] will be true, if a client waits.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pause_until.filter(|_| self.served.is_none() && !self.waiting.is_empty())
    }

    /// True if a list is to be made now, for all clients that have asked so far.
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        let pauses = self.pause_until.is_some_and(|until| now < until);
        if self.served.is_some() || self.waiting.is_empty() || pauses {
            return false;
        }
        self.served = Some(std::mem::take(&mut self.waiting));
        true
    }

    /// Notes that the list has been made. Returns the clients that get it.
    pub(super) fn ended(&mut self, now: Instant, took: Duration) -> Vec<Asker> {
        self.pause_until = Some(now + took.min(PAUSE_MAX));
        self.served.take().unwrap_or_default()
    }

    /// Keeps a reply. Returns the previous reply, if nothing has changed.
    pub(super) fn keep(&mut self, reply: Vec<u8>) -> Arc<[u8]> {
        if let Some(last) = self.kept.back().filter(|last| ***last == *reply) {
            return Arc::clone(last);
        }
        let reply: Arc<[u8]> = reply.into();
        self.kept.push_back(Arc::clone(&reply));
        if self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
        reply
    }

    /// False for a reply that is no longer kept.
    pub(super) fn keeps(&self, reply: &Arc<[u8]>) -> bool {
        self.kept.iter().any(|kept| Arc::ptr_eq(kept, reply))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asker(index: usize) -> Asker {
        Asker { index, generation: 1 }
    }

    #[test]
    fn one_list_serves_all_who_wait_and_the_next_those_who_came_later() {
        let (mut lists, now) = (Lists::default(), Instant::now());
        (0..200).for_each(|index| lists.ask(asker(index)));
        assert!(lists.begins(now) && !lists.begins(now));
        lists.ask(asker(200));
        assert!(!lists.begins(now), "one at a time");
        let took = Duration::from_secs(1);
        assert_eq!(lists.ended(now, took).len(), 200);
        assert!(!lists.begins(now), "a pause as long as the list took");
        assert_eq!(lists.due(), Some(now + took));
        assert!(lists.begins(now + took));
        assert_eq!(lists.ended(now + took, took), [asker(200)]);
        assert!(!lists.begins(now + 9 * took), "nobody waits");
    }

    #[test]
    fn equal_replies_are_one_and_few_are_kept() {
        let mut lists = Lists::default();
        let first = lists.keep(vec![1]);
        assert!(Arc::ptr_eq(&first, &lists.keep(vec![1])));
        (2..=KEPT_MAX as u8).for_each(|byte| drop(lists.keep(vec![byte])));
        assert!(lists.keeps(&first));
        lists.keep(vec![99]);
        assert!(!lists.keeps(&first));
    }
}
