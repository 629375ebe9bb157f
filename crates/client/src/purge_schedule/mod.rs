//! Schedules by which the trash is emptied: for all pools, for a pool, for a namespace.
//!
//! The most special schedule holds: a namespace has its own, else that of its pool, else that for all pools. The
//! schedule for all pools is kept in the store's record, the others in the records of their pools. A pool's record
//! also says when its trash was last emptied by schedule, so a run that was missed is made up for.
//!
//! Nothing here runs by itself: [`Client::purge_by_schedule`] does what is due.

mod times;

use marcot::{Error, ErrorKind, Namespace, Result};

use crate::client::Client;
use crate::operation::Operation;
use crate::pool::Pool;
use crate::trash::{Emptied, Stale};

pub use times::{Interval, ScheduleItem, StartTime};

/// For whom a store keeps the schedule for all pools, and the key; Ceph uses the same.
const STORE_ENTITY: &str = "mgr";
const STORE_KEY: &str = "mgr/rbd_support/trash_purge_schedule";
/// The key in a pool's record; a slash and a namespace may follow.
const POOL_KEY: &str = "trash_purge_schedule";
/// The key in a pool's record for the time of the last run.
const RUN_KEY: &str = "trash_purge_run";
/// So that a schedule fits into a record's value.
const ITEMS_MAX: usize = 32;

/// What a schedule holds for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All pools.
    Store,
    /// A pool, with its namespaces.
    Pool(String),
    /// A namespace of a pool.
    Namespace(String, String),
}

impl Level {
    /// The pool; empty for all of them.
    #[must_use]
    pub fn pool(&self) -> &str {
        match self {
            Self::Store => "",
            Self::Pool(pool) | Self::Namespace(pool, _) => pool,
        }
    }

    /// The namespace; empty for all of them.
    #[must_use]
    pub fn namespace(&self) -> &str {
        match self {
            Self::Store | Self::Pool(_) => "",
            Self::Namespace(_, namespace) => namespace,
        }
    }
}

/// A schedule: one or more intervals, sorted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Schedule {
    items: Vec<ScheduleItem>,
    /// When it was last added to, in seconds since 1970. What was due before is not made up for.
    since_s: i64,
}

impl Schedule {
    /// Its intervals.
    #[must_use]
    pub fn items(&self) -> &[ScheduleItem] {
        &self.items
    }

    /// The next time after `now_s`, in seconds since 1970. `local_s` is how far the clock of this machine is ahead
    /// of UTC.
    fn next_s(&self, now_s: i64, local_s: i64) -> Option<i64> {
        self.items.iter().map(|item| item.around(now_s, local_s).1).min()
    }

    /// True where a time has come after `done_s`, up to `now_s`.
    fn is_due(&self, done_s: i64, now_s: i64, local_s: i64) -> bool {
        let after_s = done_s.max(self.since_s);
        self.items.iter().any(|item| item.around(now_s, local_s).0 > after_s)
    }

    fn add(&mut self, item: ScheduleItem, now_s: i64) -> Result<()> {
        if self.items.contains(&item) {
            return Ok(());
        }
        if self.items.len() >= ITEMS_MAX {
            let message = format!("a schedule has at most {ITEMS_MAX} intervals");
            return Err(Error::new(ErrorKind::TooMany, message));
        }
        self.items.push(item);
        self.items.sort_unstable();
        self.since_s = now_s;
        Ok(())
    }

    /// `SECONDS INTERVAL[@START] ...`; nothing for a schedule without intervals.
    fn to_value(&self) -> Option<String> {
        let item = |item: &ScheduleItem| match item.start {
            Some(start) => format!(" {}@{start}", item.interval),
            None => format!(" {}", item.interval),
        };
        let items: String = self.items.iter().map(item).collect();
        (!items.is_empty()).then(|| format!("{}{items}", self.since_s))
    }

    /// What [`Self::to_value`] wrote, here or on another host.
    fn from_value(value: &str) -> Result<Self> {
        let damaged = || Error::new(ErrorKind::Corrupt, "a trash purge schedule cannot be read");
        let mut words = value.split(' ');
        let since_s = words.next().and_then(|word| word.parse().ok()).ok_or_else(damaged)?;
        let item = |word: &str| {
            let (interval, start) = match word.split_once('@') {
                Some((interval, start)) => (interval, Some(start)),
                None => (word, None),
            };
            let start = start.map(str::parse).transpose().map_err(|_| damaged())?;
            let interval = interval.parse().map_err(|_| damaged())?;
            Ok(ScheduleItem { interval, start })
        };
        let items = words.map(item).collect::<Result<Vec<_>>>()?;
        Ok(Self { items, since_s })
    }
}

fn decoded(value: Option<&str>) -> Result<Schedule> {
    value.map_or_else(|| Ok(Schedule::default()), Schedule::from_value)
}

fn value_of<'a>(values: &'a [(String, String)], key: &str) -> Option<&'a str> {
    values.iter().find(|(there, _)| there == key).map(|(_, value)| value.as_str())
}

/// The key of a namespace's schedule in its pool's record; an empty name is the pool itself. It goes with the namespace.
fn pool_key(namespace: &str) -> String {
    if namespace.is_empty() { POOL_KEY.to_owned() } else { format!("{POOL_KEY}/{namespace}") }
}

/// The trash of a namespace, and when it is to be emptied next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// The pool.
    pub pool: String,
    /// The namespace; empty for the default one.
    pub namespace: String,
    /// Seconds since 1970.
    pub next_s: i64,
}

/// A trash that was emptied because its time had come.
#[derive(Debug)]
pub struct Run {
    /// The pool.
    pub pool: String,
    /// The namespace; empty for the default one.
    pub namespace: String,
    /// What was removed, or why not.
    pub outcome: Result<Emptied>,
}

/// The schedules of a pool.
struct PoolPlan {
    pool: Pool,
    /// By namespace, the default one first: its own schedule.
    own: Vec<(String, Schedule)>,
    /// The last run, in seconds since 1970.
    done_s: Option<i64>,
}

impl PoolPlan {
    /// The schedule that holds for a namespace.
    fn holding<'a>(&'a self, own: &'a Schedule, of_store: &'a Schedule) -> &'a Schedule {
        let of_pool = self.own.first().map(|(_, schedule)| schedule);
        let levels = [Some(own), of_pool, Some(of_store)];
        levels.into_iter().flatten().find(|s| !s.items.is_empty()).unwrap_or(of_store)
    }
}

impl Client {
    /// The schedule of a level itself, without those above it.
    ///
    /// # Errors
    /// `NotFound` for the pool; `Corrupt`, `NewerFormat`; errors of the operating system.
    pub fn purge_schedule(&self, level: &Level) -> Result<Schedule> {
        self.operate(Operation::ReadConfiguration, level.pool(), None, || {
            if *level == Level::Store {
                return self.store_schedule();
            }
            let values = self.store().pool(level.pool())?.configuration()?;
            decoded(value_of(&values, &pool_key(level.namespace())))
        })
    }

    /// The schedules that are set, by level: all of them, or those of a pool and its namespaces.
    ///
    /// # Errors
    /// As [`Self::purge_schedule`].
    pub fn purge_schedules(&self, pool: Option<&str>) -> Result<Vec<(Level, Schedule)>> {
        self.operate(Operation::ReadConfiguration, pool.unwrap_or_default(), None, || {
            let mut all = Vec::new();
            if pool.is_none() {
                all.push((Level::Store, self.store_schedule()?));
            }
            for name in self.chosen(pool)? {
                for (namespace, schedule) in self.plan(&name)?.own {
                    let level = match namespace.is_empty() {
                        true => Level::Pool(name.clone()),
                        false => Level::Namespace(name.clone(), namespace),
                    };
                    all.push((level, schedule));
                }
            }
            all.retain(|(_, schedule)| !schedule.items.is_empty());
            Ok(all)
        })
    }

    fn chosen(&self, pool: Option<&str>) -> Result<Vec<String>> {
        pool.map_or_else(|| self.store().pools(), |pool| Ok(vec![pool.to_owned()]))
    }

    /// Adds an interval to the schedule of a level. One that is there already stays.
    ///
    /// # Errors
    /// `NotFound` for the pool; `TooMany`; `ReadOnly`; `PermissionDenied`.
    pub fn add_purge_schedule(&self, level: &Level, item: ScheduleItem) -> Result<()> {
        let now_s = self.now_s();
        self.change_purge_schedule(level, |schedule| schedule.add(item, now_s))
    }

    /// Removes an interval from the schedule of a level, or all of them. That there is none is no error, as with RBD.
    ///
    /// # Errors
    /// As [`Self::add_purge_schedule`].
    pub fn remove_purge_schedule(&self, level: &Level, item: Option<ScheduleItem>) -> Result<()> {
        self.change_purge_schedule(level, |schedule| {
            schedule.items.retain(|there| item.is_some_and(|item| item != *there));
            Ok(())
        })
    }

    fn change_purge_schedule(
        &self,
        level: &Level,
        mut change: impl FnMut(&mut Schedule) -> Result<()>,
    ) -> Result<()> {
        let mut changed = |value: Option<&str>| {
            let mut schedule = decoded(value)?;
            change(&mut schedule)?;
            Ok(schedule.to_value())
        };
        self.operate(Operation::Configure, level.pool(), None, || match level {
            Level::Store => {
                self.store().change_configuration(STORE_ENTITY, STORE_KEY, &mut changed)
            }
            _ => {
                let pool = self.store().pool(level.pool())?;
                pool.change_configuration(&pool_key(level.namespace()), &mut changed)
            }
        })
    }

    /// When the trash of each namespace is to be emptied next, by pool and namespace: of all pools, or of one. Those
    /// without a schedule are left out. `local_s` is how far the clock of this machine is ahead of UTC, in seconds.
    ///
    /// # Errors
    /// As [`Self::purge_schedules`].
    pub fn purge_plan(&self, pool: Option<&str>, local_s: i64) -> Result<Vec<Planned>> {
        let now_s = self.now_s();
        self.operate(Operation::ReadConfiguration, pool.unwrap_or_default(), None, || {
            let of_store = self.store_schedule()?;
            let mut planned = Vec::new();
            for name in self.chosen(pool)? {
                let plan = self.plan(&name)?;
                planned.extend(plan.own.iter().filter_map(|(namespace, own)| {
                    let next_s = plan.holding(own, &of_store).next_s(now_s, local_s)?;
                    Some(Planned { pool: name.clone(), namespace: namespace.clone(), next_s })
                }));
            }
            Ok(planned)
        })
    }

    /// Empties each trash whose time has come since the last run. A pool that has not been seen before is only
    /// noted. A pool that cannot be changed from here is left to its owner. What could not be emptied, or not
    /// wholly because images are in use, is said to `report`; the first is tried again by the next run.
    ///
    /// # Errors
    /// Errors that keep the list of pools from being read. That of one pool goes to `report`.
    pub fn purge_by_schedule(&self, local_s: i64, report: &mut dyn FnMut(Run)) -> Result<()> {
        let of_store = self.store_schedule()?;
        for name in self.pools()? {
            if let Err(error) = self.purge_pool_by_schedule(&name, &of_store, local_s, report)
                && error.kind() != ErrorKind::ReadOnly
            {
                report(Run { pool: name, namespace: String::new(), outcome: Err(error) });
            }
        }
        Ok(())
    }

    fn purge_pool_by_schedule(
        &self,
        name: &str,
        of_store: &Schedule,
        local_s: i64,
        report: &mut dyn FnMut(Run),
    ) -> Result<()> {
        let plan = self.plan(name)?;
        if plan.own.iter().all(|(_, own)| plan.holding(own, of_store).items.is_empty()) {
            return Ok(());
        }
        let now_s = self.now_s();
        let note = || {
            let now = Some(now_s.to_string());
            plan.pool.operate(Operation::Configure, || {
                plan.pool.engine().change_configuration(RUN_KEY, |_| Ok(now.clone()))
            })
        };
        let Some(done_s) = plan.done_s else { return note() };
        let mut due = plan.own.iter().filter(|(_, own)| {
            plan.holding(own, of_store).is_due(done_s.min(now_s), now_s, local_s)
        });
        let Some(first) = due.next() else { return Ok(()) };
        let mut all_done = true;
        for (namespace, _) in std::iter::once(first).chain(due) {
            let place = Namespace::named(namespace.as_str());
            let outcome = plan.pool.empty_trash(&place, Stale::ExpiredBy(now_s), &mut |_, _| {});
            all_done &= outcome.is_ok();
            let (pool, namespace) = (name.to_owned(), namespace.clone());
            report(Run { pool, namespace, outcome });
        }
        if all_done { note() } else { Ok(()) }
    }

    fn store_schedule(&self) -> Result<Schedule> {
        let entries = self.store().configuration()?;
        let mut values = entries.iter().filter(|e| e.entity == STORE_ENTITY && e.key == STORE_KEY);
        decoded(values.next().map(|entry| entry.value.as_str()))
    }

    fn plan(&self, name: &str) -> Result<PoolPlan> {
        let pool = self.pool(name)?;
        let values = pool.engine().configuration()?;
        let own = |namespace: String| {
            let schedule = decoded(value_of(&values, &pool_key(&namespace)))
                .map_err(|error| error.context(format!("pool '{name}'")))?;
            Ok((namespace, schedule))
        };
        let namespaces = pool.engine().namespaces()?;
        let own = std::iter::once(String::new()).chain(namespaces).map(own);
        let own = own.collect::<Result<Vec<_>>>()?;
        let done_s = value_of(&values, RUN_KEY).and_then(|value| value.parse().ok());
        Ok(PoolPlan { pool, own, done_s })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(text: &str) -> ScheduleItem {
        ScheduleItem { interval: text.parse().unwrap(), start: None }
    }

    #[test]
    fn a_schedule_is_read_as_it_was_written_and_fits_into_a_record() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.to_value(), None);
        for minutes in 0..ITEMS_MAX as u32 {
            let interval = (u32::MAX - minutes).to_string().parse().unwrap();
            let start = Some("23:59-11:59".parse().unwrap());
            schedule.add(ScheduleItem { interval, start }, i64::from(u32::MAX)).unwrap();
        }
        let value = schedule.to_value().unwrap();
        assert!(value.len() <= 1024, "{}", value.len());
        assert_eq!(Schedule::from_value(&value).unwrap(), schedule);
        let refused = schedule.add(item("1d"), 0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TooMany);
    }

    #[test]
    fn a_value_that_nobody_here_wrote_is_refused() {
        for value in ["", "x 1d", "1 0d", "1 1d@", "1  1d", "1 1d@25:00", "1 é"] {
            let refused = Schedule::from_value(value).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Corrupt, "{value}");
        }
    }

    #[test]
    fn what_was_due_before_the_schedule_was_made_is_not_made_up_for() {
        const DAY_S: i64 = 24 * 3600;
        let (midnight_s, noon_s) = (20_000 * DAY_S, 20_000 * DAY_S + DAY_S / 2);
        let mut schedule = Schedule::default();
        schedule.add(item("1d"), noon_s).unwrap();
        let yesterday_s = noon_s - DAY_S;
        assert!(!schedule.is_due(yesterday_s, noon_s + 60, 0));
        assert!(schedule.is_due(yesterday_s, midnight_s + DAY_S, 0));
        assert!(!schedule.is_due(midnight_s + DAY_S, midnight_s + DAY_S + 60, 0));
        // A machine that was off for days makes up for them once.
        assert!(schedule.is_due(midnight_s, midnight_s + 5 * DAY_S + 60, 0));
        assert!(!schedule.is_due(midnight_s + 5 * DAY_S + 60, midnight_s + 5 * DAY_S + 120, 0));
    }
}
