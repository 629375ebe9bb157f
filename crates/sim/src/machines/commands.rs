//! Two commands on two machines: one is stalled at a request, and the other is run as a whole meanwhile.
//!
//! A family of images lies in the pool: a template with snapshots, clones of them, and an image of its own. After
//! every pair of commands, whatever they answered, each image must have its content, every child must be known to
//! its parent, what was acknowledged must be there, and `check` and a collection must find nothing wrong.

use std::sync::{Arc, Mutex, PoisonError};

use marcot::{CloneOptions, CreateOptions, ErrorKind, Namespace, Pool, Store};

use super::Machines;
use super::family::check_parent;
use super::session::{collect_and_check, read_all};
use crate::model::{self, Bytes};
use crate::rules::{Rule, Violation, violation};
use crate::service::{Moment, Service, ServiceSettings};

/// Blocks of an image.
const BLOCKS: u64 = 12;
/// Bytes of a block.
const BLOCK: u64 = 4096;
/// The machine that is stalled, the other one, and one that looks.
const STALLED: usize = 0;
const OTHER: usize = 1;
const OBSERVER: usize = 2;
const MACHINES: usize = 3;

/// A command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Creates an image, and writes it.
    Create,
    /// Clones a protected snapshot.
    CloneProtected,
    /// Clones a snapshot that is not protected.
    CloneUnprotected,
    /// Unprotects a snapshot without children.
    Unprotect,
    /// Removes a snapshot that is not protected.
    RemoveSnapshot,
    /// Makes a clone independent.
    Flatten,
    /// Renames an image.
    Rename,
    /// Removes an image.
    Remove,
    /// Removes a clone.
    RemoveClone,
    /// Clones an image, makes the clone independent, and removes the image.
    Inherit,
    /// Collects the pool.
    Collect,
}

/// All commands.
pub const ALL: [Command; 11] = [
    Command::Create,
    Command::CloneProtected,
    Command::CloneUnprotected,
    Command::Unprotect,
    Command::RemoveSnapshot,
    Command::Flatten,
    Command::Rename,
    Command::Remove,
    Command::RemoveClone,
    Command::Inherit,
    Command::Collect,
];

struct Stage {
    machines: Arc<Machines>,
    template: Bytes,
    own: Bytes,
}

fn opened(machines: &Machines, machine: usize) -> marcot::Result<(Store, Pool)> {
    let store = machines.store(machine)?;
    let pool = store.pool("rbd")?;
    Ok((store, pool))
}

fn failed(what: &str) -> impl Fn(marcot::Error) -> Violation + '_ {
    move |e| Violation {
        rule: Rule::Model,
        message: format!("{what}: {} ({:?})", e.sentence(), e.kind()),
    }
}

impl Stage {
    fn set_up(seed: u64) -> Result<Self, Violation> {
        let service = Service::new(ServiceSettings::sound(seed), MACHINES);
        let machines = Machines::new(service, seed, MACHINES, true);
        let bytes = |salt| Arc::new(model::data(salt, BLOCKS * BLOCK));
        let stage = Self { machines, template: bytes(1), own: bytes(2) };
        stage.make_family().map_err(failed("setting up"))?;
        Ok(stage)
    }

    fn make_family(&self) -> marcot::Result<()> {
        let (_, pool) = opened(&self.machines, OBSERVER)?;
        let contents = [("template", &self.template), ("own", &self.own), ("ancestor", &self.own)];
        for (name, content) in contents {
            let id = pool.create(name, &CreateOptions::sized(BLOCKS * BLOCK))?;
            let mut image = pool.open(id)?;
            image.write_at(0, content)?;
            if name == "template" {
                for snap in ["parent", "free", "loose"] {
                    image.snapshot(snap)?;
                }
                image.protect("parent")?;
                image.protect("free")?;
            } else if name == "ancestor" {
                image.snapshot("left")?;
            }
            image.close()?;
        }
        let id = pool.find("template")?;
        let options = CloneOptions::new().format(1);
        pool.snapshot(id, "parent").clone_to(&pool, "clone", &options)?;
        Ok(())
    }

    fn run(&self, machine: usize, command: Command) -> marcot::Result<()> {
        let (store, pool) = opened(&self.machines, machine)?;
        let clone = |snap: &str, format: u32| {
            let options = CloneOptions::new().format(format);
            let parent = pool.find("template")?;
            let name = format!("{snap}-{machine}");
            pool.snapshot(parent, snap).clone_to(&pool, name, &options).map(drop)
        };
        let remove = |name: &str| {
            let id = pool.find(name)?;
            store.remove_image(&pool, id, &mut |_, _| {})
        };
        match command {
            Command::Create => {
                let options = CreateOptions::sized(BLOCKS * BLOCK);
                let mut image = pool.open(pool.create(format!("new-{machine}"), &options)?)?;
                image.write_at(0, &self.own)?;
                image.close()
            }
            Command::CloneProtected => clone("free", 1),
            Command::CloneUnprotected => clone("loose", 2),
            Command::Unprotect => {
                let mut image = pool.open(pool.find("template")?)?;
                image.unprotect("free")?;
                image.close()
            }
            Command::RemoveSnapshot => {
                let mut image = pool.open(pool.find("template")?)?;
                image.remove_snapshot("loose", false)?;
                image.close()
            }
            Command::Flatten => {
                let mut image = pool.open(pool.find("clone")?)?;
                image.flatten()?;
                image.close()
            }
            Command::Rename => pool.rename("own", &format!("renamed-{machine}")),
            Command::Remove => remove("own"),
            Command::RemoveClone => remove("clone"),
            Command::Inherit => {
                let (id, heir) = (pool.find("ancestor")?, format!("heir-{machine}"));
                let options = CloneOptions::new().format(2);
                let heir = pool.snapshot(id, "left").clone_to(&pool, heir, &options)?;
                let mut image = pool.open(heir)?;
                image.flatten()?;
                image.close()?;
                let mut image = pool.open(id)?;
                image.remove_snapshot("left", false)?;
                image.close()?;
                remove("ancestor")
            }
            Command::Collect => store.gc(&pool, &mut |_, _| {}).map(drop),
        }
    }

    fn content(&self, name: &str) -> Bytes {
        match name.split('-').next().unwrap_or_default() {
            "template" | "clone" | "free" | "loose" | "parent" => Arc::clone(&self.template),
            _ => Arc::clone(&self.own),
        }
    }

    /// Compares everything in the pool, as one machine sees it.
    fn look(&self, machine: usize, made: &[String]) -> Result<(), Violation> {
        let (store, pool) = opened(&self.machines, machine).map_err(failed("opening the pool"))?;
        let images = pool.images(&Namespace::DEFAULT).map_err(failed("listing"))?;
        for name in made {
            if !images.iter().any(|(found, _)| found == name) {
                violation(Rule::I1, format!("{name} was acknowledged, and is missing"))?;
            }
        }
        for (name, id) in &images {
            let failed = |what: &'static str| {
                move |e: marcot::Error| Violation {
                    rule: Rule::I1,
                    message: format!("{what} {name}: {}", e.sentence()),
                }
            };
            let mut image = pool.open_read_only(*id).map_err(failed("opening"))?;
            if read_all(&mut image).map_err(failed("reading"))? != self.content(name) {
                violation(Rule::I1, format!("{name} has another content"))?;
            }
            let info = pool.info(*id).map_err(failed("info of"))?;
            for snap in info.snapshots.iter().filter(|snap| !snap.trashed) {
                let mut image =
                    pool.open_snapshot(*id, &snap.name).map_err(failed("a snapshot of"))?;
                if read_all(&mut image).map_err(failed("reading a snapshot of"))?
                    != self.content(name)
                {
                    violation(Rule::I1, format!("{name}@{} has another content", snap.name))?;
                }
            }
            check_parent(&store, &pool, name, *id)?;
        }
        Ok(())
    }

    /// The images that this command has made, where it was acknowledged.
    fn made(machine: usize, command: Command) -> Option<String> {
        match command {
            Command::Create => Some(format!("new-{machine}")),
            Command::CloneProtected => Some(format!("free-{machine}")),
            Command::CloneUnprotected => Some(format!("loose-{machine}")),
            _ => None,
        }
    }
}

/// Stalls a command at its `request`-th request, from 0, and runs another one meanwhile. Returns false where
/// the command has fewer requests.
///
/// # Errors
/// A violation.
pub fn run(
    seed: u64,
    stalled: Command,
    other: Command,
    request: u64,
    moment: Moment,
) -> Result<bool, Violation> {
    let stage = Arc::new(Stage::set_up(seed)?);
    let service = Arc::clone(stage.machines.service());
    let answer = Arc::new(Mutex::new(None));
    let from = service.counts(STALLED).all();
    let (others, told) = (Arc::clone(&stage), Arc::clone(&answer));
    let meanwhile = move || {
        let done = others.run(OTHER, other);
        *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(done);
    };
    service.stall(STALLED, from + request, moment, Box::new(meanwhile));
    let first = stage.run(STALLED, stalled);
    let reached = !service.forget_stall();
    let second = answer.lock().unwrap_or_else(PoisonError::into_inner).take();
    let mut made = Vec::new();
    for (machine, command, done) in [(STALLED, stalled, Some(first)), (OTHER, other, second)] {
        match done {
            Some(Ok(())) => made.extend(Stage::made(machine, command)),
            Some(Err(error)) if !reached => return Err(failed("not stalled")(error)),
            Some(Err(error)) if error.kind() == ErrorKind::Corrupt => {
                return Err(failed("nothing is damaged")(error));
            }
            _ => {}
        }
    }
    stage.look(OBSERVER, &made)?;
    let (store, pool) = opened(&stage.machines, OBSERVER).map_err(failed("opening the pool"))?;
    collect_and_check(&store, &pool)?;
    stage.look(OTHER, &made)?;
    Ok(reached)
}

/// Stalls a command at its requests, with another one meanwhile. Of the requests only every `every`-th one counts,
/// beginning with one that the seed chooses. Returns the number of stalls.
///
/// # Errors
/// A violation, with the request.
pub fn run_all(seed: u64, stalled: Command, other: Command, every: u64) -> Result<u64, Violation> {
    let mut stalls = 0;
    for moment in [Moment::BeforeEffect, Moment::BeforeAnswer] {
        let mut request = seed % every;
        while run(seed, stalled, other, request, moment).map_err(|v| Violation {
            message: format!(
                "seed {seed}, {stalled:?} stalled at request {request} ({moment:?}), {other:?} \
                 meanwhile: {}",
                v.message
            ),
            ..v
        })? {
            stalls += 1;
            request += every;
        }
    }
    Ok(stalls)
}
