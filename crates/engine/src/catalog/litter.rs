//! Leftovers: temporary files of record writes that were interrupted.
//!
//! Invariant: a leftover is removed only where nobody can be writing it. Either the lock of its writers is
//! held, or it has not changed for an hour. Writing it takes milliseconds.

use marcot_backend::{Beside, Leftover};
use marcot_store::LockMode;

use super::pool::Pool;
use super::store::Store;
use crate::error::Result;

/// A leftover that has not changed for this time, in seconds, is abandoned.
const ABANDONED_S: i64 = 3600;

fn is_abandoned(left: &Leftover, now_s: i64) -> bool {
    left.written_s.is_some_and(|at_s| now_s.saturating_sub(at_s) > ABANDONED_S)
}

impl Pool {
    fn leftovers(&self, at: &Beside) -> Vec<Leftover> {
        self.records().leftovers(at)
    }

    /// Removes leftovers and returns how many. Leftovers that cannot be removed stay.
    fn sweep(&self, leftovers: &[Leftover]) -> u64 {
        leftovers.iter().filter(|left| self.records().remove_leftover(left)).count() as u64
    }

    /// Removes leftovers of names in a namespace. The pool's lock is held; names are written only with it.
    pub(crate) fn sweep_names(&self, namespace: &str) -> u64 {
        self.sweep(&self.leftovers(&Beside::Names(namespace.to_owned())))
    }

    fn all_namespaces(&self) -> Vec<String> {
        let named = self.namespaces().unwrap_or_default();
        named.into_iter().chain([String::new()]).collect()
    }

    /// The number of abandoned leftovers.
    pub(crate) fn count_abandoned(&self) -> Result<u64> {
        let mut places: Vec<Beside> = vec![Beside::Pool, Beside::Children, Beside::Groups];
        places.extend(self.all_namespaces().into_iter().map(Beside::Names));
        places.extend(self.image_ids()?.into_iter().map(Beside::Head));
        let now_s = self.now_s();
        let all = places.iter().flat_map(|at| self.leftovers(at));
        Ok(all.filter(|left| is_abandoned(left, now_s)).count() as u64)
    }

    /// Removes what interrupted commands left in this pool. Returns how many files that were.
    pub(crate) fn sweep_litter(&self) -> Result<u64> {
        let _catalogue = self.lock(LockMode::Exclusive)?;
        let now_s = self.now_s();
        // The pool's own record, names, and records of this pool's children are written under this
        // lock.
        let mut removed = self.sweep(&self.leftovers(&Beside::Pool));
        removed += self.sweep(&self.leftovers(&Beside::Groups));
        for namespace in self.all_namespaces() {
            removed += self.sweep_names(&namespace);
        }
        let mut children = self.leftovers(&Beside::Children);
        let own = |left: &Leftover| left.child.is_some_and(|child| child.child_pool == self.id());
        children.retain(|left| own(left) || is_abandoned(left, now_s));
        removed += self.sweep(&children);
        for image in self.image_ids()? {
            let mut left = self.leftovers(&Beside::Head(image));
            if left.is_empty() {
                continue;
            }
            // Only the image's owner writes heads.
            let lock = self.lock_image(image).ok().flatten();
            left.retain(|left| lock.is_some() || is_abandoned(left, now_s));
            removed += self.sweep(&left);
        }
        Ok(removed)
    }
}

impl Store {
    /// Removes what interrupted commands have left in the store's own directories.
    pub(crate) fn sweep_litter(&self) -> Result<()> {
        let _lock = self.lock("collect what was left in it")?;
        let home = &self.inner.home;
        let mut left = home.leftovers(true);
        let now_s = self.inner.world.clock.now_s();
        // A process that creates a store holds no lock yet, so only abandoned files of it are removed.
        left.extend(home.leftovers(false).into_iter().filter(|left| is_abandoned(left, now_s)));
        left.iter().for_each(|left| home.remove_leftover(left));
        Ok(())
    }
}
