//! Which opens of exports are under way, and which wait.
//!
//! Opening an export may take long, or for ever where its pool lies on something that hangs. So each
//! open has a thread, and these rules:
//! - one open of an export at a time: whoever asks for it meanwhile waits for that one, because he
//!   could do nothing else;
//! - [`PER_POOL_MAX`] in one pool at a time: a pool that hangs keeps only itself busy;
//! - one that takes longer than [`SLOW_TIME`] does not count among those, because it may hang, and
//!   others of its pool may not: an image whose parent lies in a pool that hangs. Up to
//!   [`SLOW_PER_POOL_MAX`] of those;
//! - in all, as many as there are descriptors for;
//! - the peer with the fewest goes first, so that a crowd of one peer's delays nobody else.
//!
//! No I/O here: this only decides what is next.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::peer::PeerKey;

/// Opens of one pool's exports at a time: what a local disk does well beside each other.
pub(super) const PER_POOL_MAX: usize = 4;

/// An open that has taken so long may take for ever.
pub(super) const SLOW_TIME: Duration = Duration::from_secs(2);

/// Opens of one pool's exports that take so long.
pub(super) const SLOW_PER_POOL_MAX: usize = 16;

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

/// An open that is under way.
struct Running {
    peer: PeerKey,
    name: String,
    since: Instant,
}

#[derive(Default)]
struct Pool {
    running: Vec<Running>,
    waiting: VecDeque<Open>,
}

impl Pool {
    fn take(&mut self, now: Instant) -> Option<Open> {
        let is_slow = |r: &&Running| now.saturating_duration_since(r.since) >= SLOW_TIME;
        let slow = self.running.iter().filter(is_slow).count();
        if self.running.len() - slow >= PER_POOL_MAX || slow >= SLOW_PER_POOL_MAX {
            return None;
        }
        let running_of = |peer| self.running.iter().filter(|r| r.peer == peer).count();
        let is_running = |name: &str| self.running.iter().any(|r| r.name == name);
        let next = self
            .waiting
            .iter()
            .enumerate()
            .filter(|(_, open)| !is_running(&open.name))
            .min_by_key(|(_, open)| running_of(open.peer))
            .map(|(index, _)| index)?;
        let open = self.waiting.remove(next)?;
        self.running.push(Running { peer: open.peer, name: open.name.clone(), since: now });
        Some(open)
    }
}

/// All opens of a server.
pub(super) struct Opens {
    pools: HashMap<String, Pool>,
    running: usize,
    running_max: usize,
}

impl Opens {
    /// No opens; at most so many at a time.
    pub(super) fn new(running_max: usize) -> Self {
        Self { pools: HashMap::new(), running: 0, running_max }
    }

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
            && let Some(place) = pool.running.iter().position(|r| r.peer == peer && r.name == name)
        {
            pool.running.swap_remove(place);
            self.running -= 1;
        }
        self.tidy();
    }

    /// What is to be opened now, if anything.
    pub(super) fn next(&mut self, now: Instant) -> Option<Open> {
        if self.running >= self.running_max {
            return None;
        }
        let open = self.pools.values_mut().find_map(|pool| pool.take(now))?;
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

    const OPENS_MAX: usize = 100;

    fn open(index: usize, uid: u32, pool: &str, name: &str) -> Open {
        Open {
            asker: Asker { index, generation: 1 },
            peer: PeerKey::Uid(uid),
            pool: pool.to_owned(),
            name: name.to_owned(),
        }
    }

    fn taken_at(opens: &mut Opens, now: Instant) -> Vec<usize> {
        std::iter::from_fn(|| opens.next(now)).map(|open| open.asker.index).collect()
    }

    fn taken(opens: &mut Opens) -> Vec<usize> {
        taken_at(opens, Instant::now())
    }

    #[test]
    fn a_pool_that_hangs_keeps_only_itself_busy() {
        let mut opens = Opens::new(OPENS_MAX);
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
    fn images_that_hang_do_not_keep_their_whole_pool_busy() {
        let (mut opens, now) = (Opens::new(OPENS_MAX), Instant::now());
        for index in 0..100 {
            opens.ask(open(index, 1, "p", &format!("p/{index}")));
        }
        assert_eq!(taken_at(&mut opens, now).len(), PER_POOL_MAX);
        let mut all = PER_POOL_MAX;
        for turn in 1..10 {
            all += taken_at(&mut opens, now + turn * SLOW_TIME).len();
        }
        assert_eq!(all, SLOW_PER_POOL_MAX, "of those that hang there is a limit, too");
    }

    #[test]
    fn an_export_is_opened_once_at_a_time() {
        let mut opens = Opens::new(OPENS_MAX);
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
        let mut opens = Opens::new(OPENS_MAX);
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
        let mut opens = Opens::new(OPENS_MAX);
        for index in 0..2 * OPENS_MAX {
            let pool = index.to_string();
            opens.ask(open(index, 1, &pool, &pool));
        }
        assert_eq!(taken(&mut opens).len(), OPENS_MAX);
    }
}
