//! Records in a bucket, under several machines at once.
//!
//! Machines call the records of one pool, in turns that the seed decides at every request to the service. The
//! service has the faults of the seed, and machines are killed at requests. Afterwards all answers must be
//! explained by an order of the calls in which each of them happened at one moment, or, where its outcome is not
//! known, perhaps later or not at all (see [`history`]).

pub mod calls;
pub mod history;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use marcot::World;
use marcot_backend::object::envelope::Objects;
use marcot_backend::object::records::ObjectRecords;
use marcot_backend::object::{Policy, Retry, Settled};
use marcot_backend::{Key, Listed, Prefix, Records, Stamp, SwapError};
use marcot_format::frame::{FrameKind, decode_message, encode_message};
use marcot_format::record::HeadRecord;
use marcot_format::{ImageId, PoolId};

use crate::clock::SharedClock;
use crate::disk::{Machine, SimDisk};
use crate::random::{Rng, SimRandom};
use crate::rules::{Rule, Violation, violation};
use crate::service::turns::Work;
use crate::service::{Moment, Service, ServiceSettings};
use crate::workers::SimWorkers;
use calls::{Answered, Call, FIRST_STAMP, Outcome, Part, RecordCalls, State, stamp_after};
use history::{Entry, NEVER, linearise};

/// Machines at work at the same time. One more looks at the end.
const MACHINES: usize = 3;
/// Times that all machines work, and calls of a machine each time.
const ROUNDS: u64 = 3;
const CALLS: u64 = 6;
/// Images, and names in each namespace.
const IMAGES: u64 = 3;
const NAMES: u64 = 4;
/// Namespaces. The first one is the default one.
const NAMESPACES: [&str; 2] = ["", "n"];
/// Limit on the length of a record.
const BYTES_MAX: u64 = 1 << 20;
/// The pool.
const POOL: PoolId = PoolId(77);
/// Machines' clocks differ by up to this much.
const CLOCK_ERROR_S: u64 = 7200;

/// What a run did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ran {
    /// Hash of the trace.
    pub hash: u64,
    /// Calls.
    pub calls: u64,
    /// Calls whose outcome is not known.
    pub unknown: u64,
    /// Faults of the service.
    pub faults: u64,
    /// Machines that were killed.
    pub kills: u64,
}

/// The calls of all machines, with the moments of their beginnings and ends.
#[derive(Default)]
struct History {
    moments: u64,
    entries: Vec<Entry<Answered>>,
}

type Shared = Arc<Mutex<History>>;

fn moment(history: &Shared) -> u64 {
    let mut history = history.lock().unwrap_or_else(PoisonError::into_inner);
    history.moments += 1;
    history.moments
}

/// A machine at work.
struct User {
    machine: usize,
    records: Arc<dyn Records>,
    rng: Rng,
    history: Shared,
    /// The stamp of each head as this machine has seen it last.
    seen: BTreeMap<u64, Stamp>,
    /// Tells apart what it writes.
    tag: u64,
}

/// The records of one life of a machine.
fn records(service: &Arc<Service>, machine: usize, rng: &mut Rng) -> Arc<dyn Records> {
    let wrong_by_s = rng.below(2 * CLOCK_ERROR_S) as i64 - CLOCK_ERROR_S as i64;
    // Some give up early, and have to live with not knowing.
    let patience = if rng.one_in(2) { Duration::from_secs(600) } else { Duration::from_secs(1) };
    let policy = Policy { give_up_after: Some(patience), ..Policy::command() };
    let world = World {
        disk: Arc::new(SimDisk::new(&Machine::new(0, 1), 0)),
        clock: Arc::new(SharedClock::new(service.time(), wrong_by_s)),
        random: Arc::new(SimRandom::new(Rng::new(rng.draw()))),
        workers: Arc::new(SimWorkers::new(Rng::new(rng.draw()))),
    };
    let retry = Retry::new(&world, policy, "sim".to_owned(), Arc::default());
    let settled = Settled::new(Arc::new(service.way(machine)), retry);
    Arc::new(ObjectRecords::new(Arc::new(Objects::new(settled, world.random)), POOL, 0))
}

fn head_bytes(stamp: Stamp, tag: u64) -> Vec<u8> {
    let (epoch, version) = (stamp.epoch, stamp.version);
    let head = HeadRecord { epoch, version, image_id: tag, ..HeadRecord::default() };
    encode_message(FrameKind::Head, &head)
}

/// What an error says about a call.
fn refused(error: &io::Error) -> Outcome {
    match error.kind() {
        io::ErrorKind::NotFound => Outcome::Absent,
        io::ErrorKind::AlreadyExists => Outcome::Exists,
        io::ErrorKind::DirectoryNotEmpty => Outcome::NotEmpty,
        _ => Outcome::Unknown,
    }
}

fn done(result: io::Result<()>) -> Outcome {
    result.map_or_else(|error| refused(&error), |()| Outcome::Done)
}

impl User {
    fn name(&mut self) -> String {
        format!("name-{}", self.rng.below(NAMES))
    }

    fn call(&mut self) -> Call {
        let image = self.rng.below(IMAGES);
        let namespace = NAMESPACES[self.rng.below(4) as usize / 3].to_owned();
        let name = self.name();
        self.tag += 1;
        let tag = self.tag * 10 + self.machine as u64;
        match self.rng.below(20) {
            0..2 => Call::CreateHead { image, tag },
            2..7 => {
                let from = self.seen.get(&image).copied().unwrap_or(FIRST_STAMP);
                Call::SwapHead { image, from, tag }
            }
            7 => Call::RemoveHead { image },
            8..10 => Call::GetHead { image },
            10 => match self.rng.one_in(2) {
                true => Call::CreateNamespace { namespace: NAMESPACES[1].to_owned() },
                false => Call::RemoveNamespace { namespace: NAMESPACES[1].to_owned() },
            },
            11..14 => Call::CreateName { namespace, name, tag },
            14 => Call::RemoveName { namespace, name },
            15..18 => Call::Rename { namespace, from: name, to: self.name() },
            _ => Call::GetName { namespace, name },
        }
    }

    fn perform(&mut self, call: &Call) -> Outcome {
        let key = |namespace: &String, name: &String| Key::Name {
            namespace: namespace.clone(),
            name: name.clone(),
        };
        let records = Arc::clone(&self.records);
        match call {
            Call::CreateHead { image, tag } => {
                done(records.create(&Key::Head(ImageId(*image)), &head_bytes(FIRST_STAMP, *tag)))
            }
            Call::SwapHead { image, from, tag } => {
                let bytes = head_bytes(stamp_after(*from), *tag);
                match records.swap(&Key::Head(ImageId(*image)), *from, &bytes) {
                    Ok(()) => {
                        self.seen.insert(*image, stamp_after(*from));
                        Outcome::Done
                    }
                    Err(SwapError::Changed) => {
                        self.seen.remove(image);
                        Outcome::Changed
                    }
                    Err(SwapError::Unchanged(error)) => match refused(&error) {
                        Outcome::Absent => Outcome::Absent,
                        _ => Outcome::Failed,
                    },
                    Err(SwapError::Unknown(_)) => Outcome::Unknown,
                }
            }
            Call::RemoveHead { image } => done(records.remove(&Key::Head(ImageId(*image)))),
            Call::GetHead { image } => match records.get(&Key::Head(ImageId(*image)), BYTES_MAX) {
                Ok(bytes) => match decode_message::<HeadRecord>(FrameKind::Head, &bytes) {
                    Ok((head, _)) => {
                        self.seen.insert(*image, Stamp::of(&head));
                        Outcome::Head(Stamp::of(&head), head.image_id)
                    }
                    Err(error) => panic!("a head that nobody has written: {error}"),
                },
                Err(error) => refused(&error),
            },
            Call::CreateNamespace { namespace } => {
                done(records.create(&Key::Namespace(namespace.clone()), &[]))
            }
            Call::RemoveNamespace { namespace } => {
                done(records.remove(&Key::Namespace(namespace.clone())))
            }
            Call::CreateName { namespace, name, tag } => {
                done(records.create(&key(namespace, name), &tag.to_le_bytes()))
            }
            Call::RemoveName { namespace, name } => done(records.remove(&key(namespace, name))),
            Call::Rename { namespace, from, to } => {
                done(records.rename(&key(namespace, from), &key(namespace, to)))
            }
            Call::GetName { namespace, name } => {
                match records.get(&key(namespace, name), BYTES_MAX) {
                    Ok(bytes) => match bytes.try_into() {
                        Ok(bytes) => Outcome::Name(u64::from_le_bytes(bytes)),
                        Err(bytes) => panic!("a name that nobody has written: {bytes:?}"),
                    },
                    Err(error) => refused(&error),
                }
            }
        }
    }

    /// Performs a call, and notes what it answered.
    fn make(&mut self, call: Call) {
        let began = moment(&self.history);
        let outcome = self.perform(&call);
        let ended = match outcome {
            Outcome::Unknown => NEVER,
            _ => moment(&self.history),
        };
        let reads = matches!(call, Call::GetHead { .. } | Call::GetName { .. });
        if reads && outcome == Outcome::Unknown {
            return;
        }
        let entry = Entry { machine: self.machine, call: Answered { call, outcome }, began, ended };
        self.history.lock().unwrap_or_else(PoisonError::into_inner).entries.push(entry);
    }

    fn work(&mut self) {
        for _ in 0..CALLS {
            let call = self.call();
            if !matches!(&call, Call::Rename { from, to, .. } if from == to) {
                self.make(call);
            }
        }
    }
}

/// Runs the machines of a seed.
///
/// # Errors
/// A violation where no order of the calls explains what was seen.
pub fn run(seed: u64) -> Result<Ran, Violation> {
    let service = Service::new(ServiceSettings::of(seed), MACHINES + 1);
    run_on(seed, &service).map_err(|violation| {
        let lines = service.take_lines().join("\n    ");
        match lines.is_empty() {
            true => violation,
            false => {
                let message = format!("{}\nrequests:\n    {lines}", violation.message);
                Violation { message, ..violation }
            }
        }
    })
}

/// Runs the machines of a seed on a service that was prepared.
///
/// # Errors
/// A violation where no order of the calls explains what was seen.
pub fn run_on(seed: u64, service: &Arc<Service>) -> Result<Ran, Violation> {
    let mut rng = Rng::with(seed, 500);
    let history = Shared::default();
    let mut users: Vec<User> = (0..=MACHINES)
        .map(|machine| User {
            machine,
            records: records(service, machine, &mut rng),
            rng: Rng::with(seed, 510 + machine as u64),
            history: Arc::clone(&history),
            seen: BTreeMap::new(),
            tag: 0,
        })
        .collect();
    let mut kills = 0;
    for _ in 0..ROUNDS {
        let victim = rng.below(MACHINES as u64) as usize;
        if rng.one_in(3) {
            let request = service.counts(victim).all() + rng.below(30);
            let moment = if rng.one_in(2) { Moment::BeforeEffect } else { Moment::BeforeAnswer };
            let killed = Arc::clone(service);
            service.stall(victim, request, moment, Box::new(move || killed.kill(victim)));
            kills += 1;
        }
        let working = users.iter_mut().take(MACHINES);
        let works = working.map(|user| -> Work<'_> { Box::new(|| user.work()) }).collect();
        service.turns().run(works);
        if !service.forget_stall() {
            service.kill(victim);
            users[victim].records = records(service, victim, &mut rng);
            users[victim].seen.clear();
        }
    }
    service.disarm();
    service.deliver_all();
    look(&mut users[MACHINES])?;
    let history = history.lock().unwrap_or_else(PoisonError::into_inner);
    compare(&history.entries)?;
    let unknown = history.entries.iter().filter(|entry| entry.ended == NEVER).count() as u64;
    let (calls, faults) = (history.entries.len() as u64, service.faults_hit());
    Ok(Ran { hash: service.hash(), calls, unknown, faults, kills })
}

/// Looks at everything, when no request is under way any more: with calls for each record, and with lists, which
/// must show the same.
fn look(user: &mut User) -> Result<(), Violation> {
    let listed = |prefix: Prefix| {
        let mut keys = Vec::new();
        let list = user.records.list(&prefix, &mut |listed| {
            if let Listed::Key(key) = listed {
                keys.push(key.clone());
            }
            true
        });
        list.map(|()| keys)
    };
    let heads = listed(Prefix::Heads);
    let names = NAMESPACES.map(|namespace| listed(Prefix::Names(namespace.to_owned())));
    for image in 0..IMAGES {
        user.make(Call::GetHead { image });
        let is_there = user.perform(&Call::GetHead { image }) != Outcome::Absent;
        let is_listed = matches!(&heads, Ok(keys) if keys.contains(&Key::Head(ImageId(image))));
        if is_there != is_listed {
            return violation(
                Rule::I1,
                format!("head {image}: there {is_there}, listed {is_listed}"),
            );
        }
    }
    for (namespace, keys) in NAMESPACES.into_iter().zip(names) {
        for name in (0..NAMES).map(|name| format!("name-{name}")) {
            let namespace = namespace.to_owned();
            let key = Key::Name { namespace: namespace.clone(), name: name.clone() };
            let call = Call::GetName { namespace, name };
            user.make(call.clone());
            let is_there = user.perform(&call) != Outcome::Absent;
            let is_listed = matches!(&keys, Ok(keys) if keys.contains(&key));
            if is_there != is_listed {
                let message = format!("{key:?}: there {is_there}, listed {is_listed}");
                return violation(Rule::I1, message);
            }
        }
    }
    // The records must still work, whatever a machine has left in the middle of a change.
    for name in (0..NAMES).map(|name| format!("name-{name}")) {
        let namespace = NAMESPACES[0].to_owned();
        user.make(Call::RemoveName { namespace: namespace.clone(), name: name.clone() });
        user.tag += 1;
        user.make(Call::CreateName { namespace, name, tag: user.tag });
    }
    Ok(())
}

fn compare(entries: &[Entry<Answered>]) -> Result<(), Violation> {
    let mut parts: BTreeMap<Part, Vec<Entry<Answered>>> = BTreeMap::new();
    for entry in entries {
        parts.entry(entry.call.call.part()).or_default().push(entry.clone());
    }
    for (part, history) in parts {
        linearise::<RecordCalls>(State::default(), &history)
            .or_else(|why| violation(Rule::I1, format!("{part:?}: {why}")))?;
    }
    Ok(())
}
