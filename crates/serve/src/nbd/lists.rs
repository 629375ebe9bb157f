//! LIST: one at a time, for all who wait.
//!
//! A list reads every pool, so a crowd that asks for it must not have it made for each. Who asks
//! while one is being made waits for the next, which shows what was there when he asked. After each
//! there is a pause as long as the list took, so that at most half a processor makes lists.
//!
//! The reply is the same bytes for all. Invariant: at most [`KEPT_MAX`] different ones are kept, each
//! of at most [`super::negotiation::LIST_BYTES_MAX`]; a client that has not taken an older one by then
//! loses its connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::opens::Asker;

/// Replies kept for clients that take them slowly.
const KEPT_MAX: usize = 4;

/// Longest pause between two lists.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// The LISTs of a server.
#[derive(Default)]
pub(super) struct Lists {
    waiting: Vec<Asker>,
    /// Who gets the list that is being made.
    served: Option<Vec<Asker>>,
    pause_until: Option<Instant>,
    kept: VecDeque<Arc<[u8]>>,
}

impl Lists {
    pub(super) fn ask(&mut self, asker: Asker) {
        self.waiting.push(asker);
    }

    /// The client does not wait any more.
    pub(super) fn forget(&mut self, asker: Asker) {
        self.waiting.retain(|a| *a != asker);
    }

    /// When [`Self::begins`] will be true, if somebody waits for that.
    pub(super) fn due(&self) -> Option<Instant> {
        self.pause_until.filter(|_| self.served.is_none() && !self.waiting.is_empty())
    }

    /// True if a list is to be made now, for all who have asked so far.
    pub(super) fn begins(&mut self, now: Instant) -> bool {
        let pauses = self.pause_until.is_some_and(|until| now < until);
        if self.served.is_some() || self.waiting.is_empty() || pauses {
            return false;
        }
        self.served = Some(std::mem::take(&mut self.waiting));
        true
    }

    /// The list has been made; who gets it.
    pub(super) fn ended(&mut self, now: Instant, took: Duration) -> Vec<Asker> {
        self.pause_until = Some(now + took.min(PAUSE_MAX));
        self.served.take().unwrap_or_default()
    }

    /// Keeps a reply: the one of before, if nothing has changed.
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

    /// False for a reply that is too old to be kept.
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
