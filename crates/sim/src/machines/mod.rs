//! Several machines with disks of their own, and pools in one bucket.
//!
//! Each machine runs the real engine on its simulated disk. Records, segments and logs of the pools go through the
//! simulated service. A machine can be killed, can lose its disk, and can be stalled at any request while others
//! work.
//!
//! ```text
//! home      what a machine knows of the pools
//! lineage   the oracle of an image that several machines own one after the other
//! session   an owner of an image: the engine and the oracle
//! stalls    an owner is stalled at every request, and others take its image over
//! copying   an owner compacts beside its log, and its host is lost
//! closed    an owner closes an image while a part of its log is under way
//! replaced  what an owner leaves behind that was replaced
//! commands  a command is stalled at every request, and another one runs on another machine
//! turmoil   random sequences on all machines at once
//! user      what a machine does in them
//! family    the images in them, and what must hold between parents and children
//! ```

pub mod closed;
pub mod commands;
mod content;
pub mod copying;
mod family;
mod home;
pub mod lineage;
pub mod replaced;
pub mod session;
pub mod stalls;
pub mod turmoil;
mod user;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use marcot::{ImageId, Limits, Pool, Store, World};
use marcot_backend::local::LocalHome;
use marcot_backend::object::envelope::Objects;
use marcot_backend::object::records::ObjectRecords;
use marcot_backend::object::{Policy, Retry, Settled};
use marcot_backend::{Key, Records};
use marcot_format::PoolId;
use marcot_format::frame::{FrameKind, decode_message};
use marcot_format::record::{HeadRecord, ObjectRecord};

use crate::clock::SharedClock;
use crate::disk::{Machine, SimDisk};
use crate::random::{Rng, SimRandom};
use crate::rules::{LIMITS, Rule, STORE, Violation, violation};
use crate::service::Service;
use crate::workers::SimWorkers;
use home::{Registry, SimHome};
use lineage::Host;

/// Machines' clocks differ by up to this much.
const CLOCK_ERROR_S: u64 = 7200;

/// Limit on the length of a head.
const HEAD_BYTES_MAX: u64 = 1 << 20;

/// See the module.
pub struct Machines {
    service: Arc<Service>,
    seed: u64,
    ships_flushes: bool,
    caches: AtomicBool,
    limits: Mutex<Limits>,
    /// The disk of each machine, and the number of the disk.
    disks: Vec<Mutex<(Arc<Machine>, u64)>>,
    registry: Arc<Registry>,
    lives: AtomicU64,
}

impl Machines {
    /// Machines that use this service. `ships_flushes`: a flush is durable when the service has stored it.
    #[must_use]
    pub fn new(service: Arc<Service>, seed: u64, count: usize, ships_flushes: bool) -> Arc<Self> {
        let disk = |number: u64| Mutex::new((Machine::new(seed ^ number, 1), number));
        let disks = (1..=count as u64).map(disk).collect();
        let (registry, lives) = (Arc::default(), AtomicU64::new(count as u64));
        let caches = AtomicBool::new(false);
        let limits = Mutex::new(LIMITS);
        Arc::new(Self { service, seed, ships_flushes, caches, limits, disks, registry, lives })
    }

    /// From now on, processes have these limits.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// From now on, machines keep ranges of objects in caches on their disks.
    pub fn use_caches(&self) {
        self.caches.store(true, Ordering::Relaxed);
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// The disk of a machine.
    #[must_use]
    pub fn disk(&self, machine: usize) -> Arc<Machine> {
        Arc::clone(&self.disks[machine].lock().unwrap_or_else(PoisonError::into_inner).0)
    }

    /// A machine with the disk that it has now.
    #[must_use]
    pub fn host(&self, machine: usize) -> Host {
        let disk = self.disks[machine].lock().unwrap_or_else(PoisonError::into_inner).1;
        Host { machine, disk }
    }

    /// True where the head of an image names a host as the owner at this moment. Nothing is requested for that.
    #[must_use]
    pub fn names(&self, pool: &str, image: ImageId, host: Host) -> bool {
        let head = || -> Option<HeadRecord> {
            let bytes = self.service.bytes(&format!("{pool}/images/{image}/head"))?;
            let (object, _): (ObjectRecord, _) = decode_message(FrameKind::Object, &bytes).ok()?;
            Some(decode_message(FrameKind::Head, &object.body).ok()?.0)
        };
        let owner = head().and_then(|head| head.owner);
        owner.is_some_and(|owner| owner.host == host.disk)
    }

    fn new_life(&self) -> u64 {
        self.lives.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Cuts the power of a machine, and restores it. What was not durable on its disk may be gone.
    pub fn crash(&self, machine: usize) {
        self.service.kill(machine);
        let disk = self.disk(machine);
        disk.power_off();
        disk.power_on();
        let _ = disk.take_cut();
    }

    /// Kills the machine's process. Its disk stays as processes see it.
    pub fn kill(&self, machine: usize) {
        self.service.kill(machine);
        let disk = self.disk(machine);
        disk.kill(0);
        let _ = disk.take_cut();
    }

    /// Replaces a machine by one with an empty disk.
    pub fn replace(&self, machine: usize) {
        self.crash(machine);
        let number = self.new_life();
        let empty = (Machine::new(self.seed ^ number, 1), number);
        *self.disks[machine].lock().unwrap_or_else(PoisonError::into_inner) = empty;
    }

    /// The world of a new process of a machine.
    fn world(&self, machine: usize) -> World {
        let mut rng = Rng::with(self.seed ^ (self.new_life() << 32), 600 + machine as u64);
        let wrong_by_s = rng.below(2 * CLOCK_ERROR_S) as i64 - CLOCK_ERROR_S as i64;
        World {
            disk: Arc::new(SimDisk::new(&self.disk(machine), 0)),
            clock: Arc::new(SharedClock::new(self.service.time(), wrong_by_s)),
            random: Arc::new(SimRandom::new(Rng::new(rng.draw()))),
            workers: Arc::new(SimWorkers::new(Rng::new(rng.draw()))),
        }
    }

    /// The store, as a new process of a machine sees it.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn store(&self, machine: usize) -> marcot::Result<Store> {
        let world = self.world(machine);
        // The disk is simulated, and any directory of it can be opened.
        let local = LocalHome::open(&world, Path::new(STORE)).expect("a simulated disk");
        self.registry.join(&local);
        let home = SimHome {
            local,
            world: world.clone(),
            service: Arc::clone(&self.service),
            registry: Arc::clone(&self.registry),
            machine,
            number: self.host(machine).disk,
            ships_flushes: self.ships_flushes,
            caches: self.caches.load(Ordering::Relaxed),
        };
        let limits = *self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        Store::open_home(world, Arc::new(home), Path::new(STORE), limits)
    }

    /// The head of an image, as it is in the bucket.
    ///
    /// # Errors
    /// A violation where it cannot be read.
    pub fn head(&self, machine: usize, image: ImageId) -> Result<HeadRecord, Violation> {
        let way = Arc::new(self.service.way_below(machine, "rbd/"));
        let world = self.world(machine);
        let retry = Retry::new(&world, Policy::command(), "sim".to_owned(), Arc::default());
        let objects = Objects::new(Settled::new(way, retry), world.random);
        let records = ObjectRecords::new(Arc::new(objects), PoolId(0), 0);
        let read = records.get(&Key::Head(image), HEAD_BYTES_MAX).map_err(|e| e.to_string());
        let decode = |bytes: Vec<u8>| decode_message(FrameKind::Head, &bytes);
        let head = read.and_then(|bytes| decode(bytes).map_err(|e| e.to_string()));
        let (head, _) = head.or_else(|e| violation(Rule::I1, format!("head of {image}: {e}")))?;
        Ok(head)
    }

    /// Segments and logs never change (I9).
    ///
    /// # Errors
    /// A violation of I9.
    pub fn check_unchanged(&self) -> Result<(), Violation> {
        let mut replaced = self.service.replaced().into_iter();
        match replaced.find(|key| key.contains("/segments/") || key.contains("/log/")) {
            Some(key) => violation(Rule::I9, format!("{key} was replaced by other bytes")),
            None => Ok(()),
        }
    }

    /// The default pool, as a new process of a machine sees it.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn pool(&self, machine: usize) -> marcot::Result<Pool> {
        self.store(machine)?.pool("rbd")
    }
}
