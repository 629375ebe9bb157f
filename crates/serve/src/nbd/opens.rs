//! Which opens of exports are under way, and which wait.
//!
//! Opening an export may take long, or for ever where its pool lies on something that hangs. So each
//! open has a thread, and these rules:
//! - one open of an export at a time: whoever asks for it meanwhile waits for that one, because he
//!   could do nothing else;
//! - [`PER_POOL_MAX`] in one pool at a time: a pool that hangs keeps only itself busy;
//! - [`OPENS_MAX`] in all;
//! - the peer with the fewest goes first, so that a crowd of one peer's delays nobody else.
//!
//! No I/O here: this only decides what is next.

use std::collections::{HashMap, VecDeque};

use super::peer::PeerKey;

/// Opens of one pool's exports at a time: what a local disk does well beside each other.
pub(super) const PER_POOL_MAX: usize = 4;

/// Opens at a time. Each is a thread; so many pools would have to hang before others wait.
pub(super) const OPENS_MAX: usize = 16 * PER_POOL_MAX;

/// A client that has asked: its number, and what tells it from an earlier one of the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asker {
    pub(super) index: usize,
    pub(super) generation: u64,
}

/// An open that a client has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) asker: Asker,
    pub(super) peer: PeerKey,
    pub(super) pool: String,
    /// The export's canonical name.
    pub(super) name: String,
}

#[derive(Default)]
struct Pool {
    running: Vec<(PeerKey, String)>,
    waiting: VecDeque<Open>,
}

impl Pool {
    fn take(&mut self) -> Option<Open> {
        if self.running.len() >= PER_POOL_MAX {
            return None;
        }
        let running_of = |peer| self.running.iter().filter(|(p, _)| *p == peer).count();
        let is_running = |name: &str| self.running.iter().any(|(_, running)| running == name);
        let next = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, open)| !is_running(&open.name))
            .min_by_key(|(_, open)| running_of(open.peer))
            .map(|(index, _)| index)?;
        let open = self.waiting.remove(next)?;
        self.running.push((open.peer, open.name.clone()));
        Some(open)
    }
}

/// All opens of a server.
#[derive(Default)]
pub(super) struct Opens {
    pools: HashMap<String, Pool>,
    running: usize,
}

impl Opens {
    /// A client asks for an export.
    pub(super) fn ask(&mut self, open: Open) {
        self.pools.entry(open.pool.clone()).or_default().waiting.push_back(open);
    }

    /// The client does not wait any more. What is under way for it goes on.
    pub(super) fn forget(&mut self, asker: Asker) {
        for pool in self.pools.values_mut() {
            pool.waiting.retain(|open| open.asker != asker);
        }
        self.tidy();
    }

    /// An open that [`Self::next`] has given is over.
    pub(super) fn ended(&mut self, pool: &str, peer: PeerKey, name: &str) {
        if let Some(pool) = self.pools.get_mut(pool)
            && let Some(place) = pool.running.iter().position(|(p, n)| *p == peer && n == name)
        {
            pool.running.swap_remove(place);
            self.running -= 1;
        }
        self.tidy();
    }

    /// What is to be opened now, if anything.
    pub(super) fn next(&mut self) -> Option<Open> {
        if self.running >= OPENS_MAX {
            return None;
        }
        let open = self.pools.values_mut().find_map(Pool::take)?;
        self.running += 1;
        Some(open)
    }

    fn tidy(&mut self) {
        self.pools.retain(|_, pool| !pool.running.is_empty() || !pool.waiting.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(index: usize, uid: u32, pool: &str, name: &str) -> Open {
        Open {
            asker: Asker { index, generation: 1 },
            peer: PeerKey::Uid(uid),
            pool: pool.to_owned(),
            name: name.to_owned(),
        }
    }

    fn taken(opens: &mut Opens) -> Vec<usize> {
        std::iter::from_fn(|| opens.next()).map(|open| open.asker.index).collect()
    }

    #[test]
    fn a_pool_that_hangs_keeps_only_itself_busy() {
        let mut opens = Opens::default();
        for index in 0..20 {
            opens.ask(open(index, 1, "hung", &format!("hung/{index}")));
        }
        assert_eq!(taken(&mut opens).len(), PER_POOL_MAX);
        opens.ask(open(30, 1, "other", "other/a"));
        assert_eq!(taken(&mut opens), [30]);
        opens.ended("other", PeerKey::Uid(1), "other/a");
        assert_eq!(opens.pools.len(), 1);
    }

    #[test]
    fn an_export_is_opened_once_at_a_time() {
        let mut opens = Opens::default();
        for index in 0..9 {
            opens.ask(open(index, 1, "p", "p/hung"));
        }
        opens.ask(open(10, 1, "p", "p/b"));
        assert_eq!(taken(&mut opens), [0, 10]);
        opens.forget(Asker { index: 1, generation: 1 });
        opens.ended("p", PeerKey::Uid(1), "p/hung");
        assert_eq!(taken(&mut opens), [2]);
    }

    #[test]
    fn who_asks_for_little_goes_before_a_crowd() {
        let mut opens = Opens::default();
        for index in 0..50 {
            opens.ask(open(index, 1, "p", &format!("p/{index}")));
        }
        assert_eq!(taken(&mut opens), [0, 1, 2, 3]);
        opens.ask(open(99, 2, "p", "p/honest"));
        opens.ended("p", PeerKey::Uid(1), "p/2");
        assert_eq!(taken(&mut opens), [99]);
    }

    #[test]
    fn there_is_a_limit_for_all_pools_together() {
        let mut opens = Opens::default();
        for index in 0..2 * OPENS_MAX {
            let pool = index.to_string();
            opens.ask(open(index, 1, &pool, &pool));
        }
        assert_eq!(taken(&mut opens).len(), OPENS_MAX);
    }
}
