//! Random sequences on several machines: owners that come and go, commands, and machines that die at any request
//! or stop for long, on a service with all its faults.
//!
//! The machines take turns, and the seed decides at every request whose turn is next. Every image has an oracle of
//! its own ([`Lineage`](super::lineage::Lineage)). At the end the trouble is over: then everything works, all that
//! was promised is there, and nothing that was never written.

use std::sync::Arc;

use marcot::{ImageId, Namespace, Pool, PoolOptions, Store};

use super::Machines;
use super::family::{Family, POOLS, check_parent};
use super::session::{Act, Ended, Session, collect_and_check_except, look_at};
use super::user::{Done, User, names};
use crate::random::Rng;
use crate::rules::{Rule, Violation, violation};
use crate::service::turns::Work;
use crate::service::{Moment, Service, ServiceSettings};

/// Limits on the machines at work. One more looks.
const MACHINES_MIN: u64 = 2;
const MACHINES_MAX: u64 = 4;
/// Limits on what a machine does before something may happen to it.
const ACTS_MIN: u64 = 4;
const ACTS_MAX: u64 = 16;
/// Limit on the requests of a machine before it dies.
const REQUESTS_MAX: u64 = 120;
/// What names in the trash begin with.
const TRASH_PREFIX: &str = ".marcot-trash.";
/// Times that the pools are made, on a service that fails.
const TRIES_MAX: u64 = 10;

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "counts of what is named")]
pub struct Ran {
    pub hash: u64,
    pub machines: u64,
    pub done: Done,
    pub deaths: u64,
    pub faults: u64,
    pub requests: u64,
}

struct Turmoil {
    machines: Arc<Machines>,
    service: Arc<Service>,
    family: Family,
    users: Vec<User>,
    /// The machine that looks at the end.
    observer: usize,
    rng: Rng,
    deaths: u64,
}

/// Runs a sequence with so many rounds.
///
/// # Errors
/// A violation.
pub fn run(seed: u64, rounds: u64) -> Result<Ran, Violation> {
    let mut rng = Rng::with(seed, 700);
    let count = MACHINES_MIN + rng.below(MACHINES_MAX - MACHINES_MIN + 1);
    let service = Service::new(ServiceSettings::of(seed), count as usize + 1);
    let ships_flushes = !rng.one_in(3);
    let machines = Machines::new(Arc::clone(&service), seed, count as usize + 1, ships_flushes);
    if rng.one_in(2) {
        machines.use_caches();
    }
    if rng.one_in(2) {
        service.turns().stop_for_longer(8 + rng.below(40));
    }
    service.keep_lines();
    let family = Family::default();
    let users = (0..count as usize)
        .map(|machine| {
            User::new(machine, &machines, &family, Rng::with(seed, 710 + machine as u64))
        })
        .collect();
    let (observer, deaths) = (count as usize, 0);
    let mut turmoil = Turmoil { machines, service, family, users, observer, rng, deaths };
    let at = |when: String| {
        move |v: Violation| Violation {
            message: format!("seed {seed}, {when}: {}", v.message),
            ..v
        }
    };
    turmoil.make_pools().map_err(at("making the pools".to_owned()))?;
    for round in 0..rounds {
        let done = turmoil.round().map_err(at(format!("round {round}")));
        turmoil.with_requests(done)?;
    }
    let done = turmoil.finish().map_err(at("at the end".to_owned()));
    turmoil.with_requests(done)?;
    Ok(turmoil.ran())
}

/// True for what `check` says of an image that a machine was making when it was lost. Only that machine takes it back.
fn is_unfinished(message: &str) -> bool {
    message.contains("has no name, so no command can reach it")
}

impl Turmoil {
    fn make_pools(&self) -> Result<(), Violation> {
        let mut failed = None;
        for _ in 0..TRIES_MAX {
            let made = || -> marcot::Result<()> {
                let store = self.machines.store(self.observer)?;
                for pool in POOLS {
                    if !store.pools()?.iter().any(|made| made == pool) {
                        store.pool_create(pool, &PoolOptions::default())?;
                    }
                }
                Ok(())
            };
            match made() {
                Ok(()) => return Ok(()),
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), |error| Err(Ended::Error(error).must_not_be("all tries")))
    }

    /// The machines work, and one of them may die.
    fn round(&mut self) -> Result<(), Violation> {
        let victim = self.rng.below(self.users.len() as u64) as usize;
        let dies_at_work = self.rng.one_in(2);
        if dies_at_work {
            let request = self.service.counts(victim).all() + self.rng.below(REQUESTS_MAX);
            let moment =
                if self.rng.one_in(2) { Moment::BeforeEffect } else { Moment::BeforeAnswer };
            let service = Arc::clone(&self.service);
            self.service.stall(victim, request, moment, Box::new(move || service.kill(victim)));
        }
        let acts = ACTS_MIN + self.rng.below(ACTS_MAX - ACTS_MIN);
        let works = self.users.iter_mut().map(|user| -> Work<'_> { Box::new(|| user.work(acts)) });
        self.service.turns().run(works.collect());
        let has_died = dies_at_work && !self.service.forget_stall();
        if let Some(wrong) = self.users.iter_mut().find_map(|user| user.wrong.take()) {
            return Err(wrong);
        }
        if has_died || (!dies_at_work && self.rng.one_in(2)) {
            self.end_machine(victim);
        }
        Ok(())
    }

    /// A machine's process is killed, or the machine loses its power, or is lost with its disk.
    fn end_machine(&mut self, machine: usize) {
        self.deaths += 1;
        let how = self.rng.below(3);
        match how {
            0 => self.machines.kill(machine),
            1 => {
                let host = self.machines.host(machine);
                self.machines.crash(machine);
                let images = self.family.images();
                images.all.values().for_each(|known| known.lineage.power_lost(host));
            }
            _ => self.machines.replace(machine),
        }
        self.users[machine].is_dead(how == 0);
    }

    /// Without trouble everything works again, and all that was promised is there.
    fn finish(&mut self) -> Result<(), Violation> {
        self.service.disarm();
        self.service.deliver_all();
        for user in &mut self.users {
            user.close_all()?;
        }
        for machine in [0, self.observer] {
            for pool in POOLS {
                let opened = || -> marcot::Result<(Store, Pool)> {
                    let store = self.machines.store(machine)?;
                    let pool = store.pool(pool)?;
                    Ok((store, pool))
                };
                let (store, pool) =
                    opened().map_err(|e| Ended::from(e).must_not_be("opening a pool"))?;
                // This also ends what was left unfinished.
                collect_and_check_except(&store, &pool, is_unfinished)?;
                self.look(machine, &store, &pool)?;
                collect_and_check_except(&store, &pool, is_unfinished)?;
                self.look(machine, &store, &pool)?;
            }
            self.machines.check_unchanged()?;
        }
        Ok(())
    }

    /// The images of a pool, those in the trash too.
    fn listed(pool: &Pool) -> marcot::Result<Vec<(String, ImageId)>> {
        let mut listed = pool.images(&Namespace::DEFAULT)?;
        listed.retain(|(name, _)| !name.starts_with(TRASH_PREFIX));
        let trashed = pool.trash(&Namespace::DEFAULT)?;
        listed.extend(trashed.into_iter().map(|trashed| (trashed.name, trashed.id)));
        Ok(listed)
    }

    /// Looks at all images of a pool, and uses them.
    fn look(&self, machine: usize, store: &Store, pool: &Pool) -> Result<(), Violation> {
        let listed =
            Self::listed(pool).map_err(|e| Ended::from(e).must_not_be("the list of images"))?;
        let images = self.family.images().all.clone();
        let mine = || images.iter().filter(|(_, known)| known.pool == pool.name());
        for (name, id) in &listed {
            let known = mine().find(|(image, known)| {
                names(**image).contains(name) && known.id.is_none_or(|known| known == *id)
            });
            let Some((image, known)) = known else {
                return violation(Rule::Model, format!("{name} ({id}) was never made"));
            };
            if known.is_gone {
                return violation(Rule::I1, format!("i{image} is back after its removal"));
            }
            let used = || -> Result<(), Ended> {
                let open = || pool.take_over(*id);
                let mut session =
                    Session::open(&self.machines, machine, &known.lineage, *id, open)?;
                session.act(Act::Write { block: 1, blocks: 2, salt: u64::MAX - image })?;
                session.act(Act::Flush)?;
                session.close()?;
                look_at(pool, machine, *id, &known.lineage)
            };
            used().map_err(|e| e.must_not_be(&format!("i{image} on machine {machine}")))?;
            check_parent(store, pool, name, *id)?;
        }
        for (image, known) in mine() {
            let times = listed.iter().filter(|(_, id)| known.id == Some(*id)).count();
            if times > 1 || (times == 0 && known.existing().is_some()) {
                violation(Rule::I1, format!("i{image} is listed {times} times"))?;
            }
        }
        Ok(())
    }

    /// Adds the last requests to a violation.
    fn with_requests(&self, done: Result<(), Violation>) -> Result<(), Violation> {
        done.map_err(|v| {
            let lines = self.service.take_lines().join("\n    ");
            Violation { message: format!("{}\nthe last requests:\n    {lines}", v.message), ..v }
        })
    }

    fn ran(&self) -> Ran {
        let mut done = Done::default();
        for user in &self.users {
            let one = user.done;
            done.acts += one.acts;
            done.errors += one.errors;
            done.openings += one.openings;
            done.flushes += one.flushes;
            done.clones += one.clones;
            done.removals += one.removals;
            done.collections += one.collections;
        }
        let requests = (0..=self.observer).map(|machine| self.service.counts(machine).all()).sum();
        Ran {
            hash: self.service.hash(),
            machines: self.users.len() as u64,
            done,
            deaths: self.deaths,
            faults: self.service.faults_hit(),
            requests,
        }
    }
}
