//! Decides which opens of exports run, and which wait.
//!
//! Opening an export may take long, or for ever where its pool lies on a medium that hangs. So each open has
//! a thread, and these rules:
//! - An export has one open at a time. A client that asks for it meanwhile waits for that open.
//! - A pool has [`PER_POOL_MAX`] opens at a time. So a pool that hangs delays only its own clients.
//! - An open that takes longer than [`SLOW_TIME`] does not count against this limit. It may hang while others
//!   of its pool do not: for example, the image's parent may lie in a pool that hangs. At most
//!   [`SLOW_PER_POOL_MAX`] slow opens are allowed for each pool.
//! - In all there are as many opens as there are descriptors for.
//! - The peer with the fewest opens goes first. So many requests of one peer do not delay others.
//!
//! There is no I/O here: this only decides what comes next.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::peer::PeerKey;

/// Concurrent opens in one pool: as many as a local disk handles well.
pub(super) const PER_POOL_MAX: usize = 4;

/// An open that takes longer than this is slow: it may hang.
pub(super) const SLOW_TIME: Duration = Duration::from_secs(2);

/// Limit on the slow opens in one pool.
pub(super) const SLOW_PER_POOL_MAX: usize = 16;

/// A client that has asked: its number, and a generation that tells it from an earlier client with this
/// number.
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

/// An open in progress.
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
    /// No opens. At most `running_max` will run at a time.
    pub(super) fn new(running_max: usize) -> Self {
        Self { pools: HashMap::new(), running: 0, running_max }
    }

    /// Notes that a client asks for an export.
    pub(super) fn ask(&mut self, open: Open) {
        self.pools.entry(open.pool.clone()).or_default().waiting.push_back(open);
    }

    /// Notes that a client does not wait any more. An open in progress goes on.
    pub(super) fn forget(&mut self, asker: Asker) {
        for pool in self.pools.values_mut() {
            pool.waiting.retain(|open| open.asker != asker);
        }
        self.tidy();
    }

    /// Notes that an open which [`Self::next`] has returned is over.
    pub(super) fn ended(&mut self, pool: &str, peer: PeerKey, name: &str) {
        if let Some(pool) = self.pools.get_mut(pool)
            && let Some(place) = pool.running.iter().position(|r| r.peer == peer && r.name == name)
        {
            pool.running.swap_remove(place);
            self.running -= 1;
        }
        self.tidy();
    }

    /// The next open to start now, if there is one.
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
    fn a_peer_with_few_opens_goes_before_one_with_many() {
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
